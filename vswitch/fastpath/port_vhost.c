/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vhost-user ports on librte_vhost. Its threads do the control channel and
 * call back here; workers only look at `ready` and at the device number.
 */
#include <errno.h>
#include <linux/virtio_net.h>
#include <pthread.h>
#include <stdlib.h>

#include <rte_vhost.h>

#include "switch.h"

/* vhost-user.rst, "Front-end message types" */
#define VHOST_USER_SET_MEM_TABLE 5u
#define VHOST_USER_GET_QUEUE_NUM 17u

struct vhost_dev {
    struct ff_port *port;
    char path[108]; /* sizeof sun_path */
    bool server;
    _Atomic int vid;             /* -1 without a device */
    _Atomic uint32_t rx_enabled; /* bit q: the front-end's receive queue q is enabled */
    struct vhost_dev *next;
};

/* What librte_vhost's callbacks, which know only a path, look ports up in. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct vhost_dev *devs;

static struct vhost_dev *dev_of(int vid) {
    char path[sizeof(((struct vhost_dev *)0)->path)];
    struct vhost_dev *d;

    if (rte_vhost_get_ifname(vid, path, sizeof(path)) != 0)
        return NULL;
    pthread_mutex_lock(&lock);
    for (d = devs; d != NULL && strcmp(d->path, path) != 0; d = d->next)
        ;
    pthread_mutex_unlock(&lock);
    return d;
}

/* ---- callbacks, in librte_vhost's threads ---- */

/*
 * The start of librte_vhost's message, which is the wire format of
 * vhost-user.rst, "Header": request, flags, size, payload.
 */
struct message {
    uint32_t request;
    uint32_t flags;
    uint32_t size;
    uint64_t u64;
} __attribute__((packed));

static enum rte_vhost_msg_result before_message(int vid, void *msg) {
    struct vhost_dev *d = dev_of(vid);
    struct message *m = msg;

    if (d == NULL || m->request != VHOST_USER_GET_QUEUE_NUM)
        return RTE_VHOST_MSG_RESULT_NOT_HANDLED;
    /* librte_vhost would offer 128 pairs, of which the port polls only its own */
    m->u64 = d->port->rx_queues;
    m->size = sizeof(m->u64);
    return RTE_VHOST_MSG_RESULT_REPLY;
}

static enum rte_vhost_msg_result after_message(int vid, void *msg) {
    struct vhost_dev *d = dev_of(vid);

    if (d != NULL && ((struct message *)msg)->request == VHOST_USER_SET_MEM_TABLE &&
        !ff_port_ready(d->port))
        ff_port_state(d->port, FF_PORT_MEMORY_MAPPED, "the peer shared its memory");
    return RTE_VHOST_MSG_RESULT_NOT_HANDLED;
}

static const struct rte_vhost_user_extern_ops message_ops = {
    .pre_msg_handle = before_message,
    .post_msg_handle = after_message,
};

static void tx_queues_update(struct vhost_dev *d) {
    /* those from 0 on without a gap: a gap would be a queue nobody reads */
    uint32_t n = (uint32_t)__builtin_ctz(~atomic_load(&d->rx_enabled));

    d->port->tx_queues = (uint16_t)RTE_MIN(n, (uint32_t)d->port->rx_queues);
}

static int new_connection(int vid) {
    struct vhost_dev *d = dev_of(vid);

    if (d == NULL)
        return -1;
    if (atomic_load(&d->vid) >= 0)
        return -1; /* a second peer on a server socket: one port, one peer */
    /* librte_vhost tells of no queue that a lost peer leaves enabled */
    atomic_store(&d->rx_enabled, 0);
    tx_queues_update(d);
    ff_port_state(d->port, FF_PORT_NEGOTIATING, "the peer connected");
    return rte_vhost_extern_callback_register(vid, &message_ops, d);
}

static void destroy_connection(int vid) {
    struct vhost_dev *d = dev_of(vid);

    if (d != NULL)
        ff_port_state(d->port, FF_PORT_LOST, "the peer closed the connection; %s",
                      d->server ? "listening for it" : "reconnecting");
}

static int vring_state_changed(int vid, uint16_t vring, int enable) {
    struct vhost_dev *d = dev_of(vid);

    /* virtio 1.1 section 5.1.2: even queues receive, odd ones transmit */
    if (d == NULL || vring % 2 != 0 || vring / 2 >= FF_MAX_QUEUES)
        return 0;
    if (enable)
        atomic_fetch_or(&d->rx_enabled, 1u << vring / 2);
    else
        atomic_fetch_and(&d->rx_enabled, ~(1u << vring / 2));
    tx_queues_update(d);
    return 0;
}

static int new_device(int vid) {
    struct vhost_dev *d = dev_of(vid);
    uint16_t vrings = rte_vhost_get_vring_num(vid);

    if (d == NULL)
        return -1;
    for (uint16_t v = 0; v < vrings; v++)
        rte_vhost_enable_guest_notification(vid, v, 0); /* we poll */
    atomic_store(&d->vid, vid);
    atomic_store_explicit(&d->port->ready, true, memory_order_release);
    ff_port_state(d->port, FF_PORT_READY, "%u queue pair%s", vrings / 2,
                  vrings / 2 == 1 ? "" : "s");
    return 0;
}

static void destroy_device(int vid) {
    struct vhost_dev *d = dev_of(vid);

    if (d == NULL)
        return;
    atomic_store(&d->port->ready, false);
    ff_synchronize(); /* from here on no worker uses the device */
    atomic_store(&d->vid, -1);
    ff_port_state(d->port, FF_PORT_NEGOTIATING, "the peer stopped the device");
}

static const struct rte_vhost_device_ops device_ops = {
    .new_device = new_device,
    .destroy_device = destroy_device,
    .vring_state_changed = vring_state_changed,
    .new_connection = new_connection,
    .destroy_connection = destroy_connection,
};

/* ---- workers ---- */

static unsigned int vhost_rx(struct ff_port *port, unsigned int queue, struct ff_frame *frames,
                             unsigned int n) {
    const struct vhost_dev *d = port->dev;
    struct rte_mbuf *mbufs[FF_BURST];
    int vid = atomic_load_explicit(&d->vid, memory_order_relaxed);
    unsigned int got;

    got = rte_vhost_dequeue_burst(vid, (uint16_t)(2 * queue + 1), ff.pool, mbufs, (uint16_t)n);
    for (unsigned int i = 0; i < got; i++)
        ff_frame_from_mbuf(&frames[i], mbufs[i]);
    return got;
}

static unsigned int vhost_tx(struct ff_port *port, unsigned int queue, struct ff_frame *frames,
                             unsigned int n) {
    const struct vhost_dev *d = port->dev;
    struct rte_mbuf *mbufs[FF_BURST];
    int vid = atomic_load_explicit(&d->vid, memory_order_relaxed);
    unsigned int sent;

    for (unsigned int i = 0; i < n; i++)
        mbufs[i] = frames[i].buf;
    sent = rte_vhost_enqueue_burst(vid, (uint16_t)(2 * queue), mbufs, (uint16_t)n);
    rte_pktmbuf_free_bulk(mbufs, n);
    return sent;
}

/* ---- control ---- */

static int driver_setup(const struct vhost_dev *d, char *err) {
    /* one frame, one packet: no segmentation or checksums are left to a peer yet */
    const uint64_t offloads = 1ull << VIRTIO_NET_F_CSUM | 1ull << VIRTIO_NET_F_GUEST_CSUM |
                              1ull << VIRTIO_NET_F_GUEST_TSO4 | 1ull << VIRTIO_NET_F_GUEST_TSO6 |
                              1ull << VIRTIO_NET_F_GUEST_ECN | 1ull << VIRTIO_NET_F_GUEST_UFO |
                              1ull << VIRTIO_NET_F_HOST_TSO4 | 1ull << VIRTIO_NET_F_HOST_TSO6 |
                              1ull << VIRTIO_NET_F_HOST_ECN | 1ull << VIRTIO_NET_F_HOST_UFO;
    uint64_t flags = RTE_VHOST_USER_NET_COMPLIANT_OL_FLAGS;

    if (!d->server)
        flags |= RTE_VHOST_USER_CLIENT;
    if (rte_vhost_driver_register(d->path, flags) != 0) {
        ff_error(err, "%s: cannot set up the socket %s", d->port->name, d->path);
        return -EIO;
    }
    if (rte_vhost_driver_disable_features(d->path, offloads) == 0 &&
        rte_vhost_driver_callback_register(d->path, &device_ops) == 0) {
        ff_port_state(d->port, FF_PORT_WAITING, "%s", d->server ? "listening" : "connecting");
        if (rte_vhost_driver_start(d->path) == 0)
            return 0;
    }
    ff_error(err, "%s: cannot %s %s", d->port->name, d->server ? "listen at" : "connect to",
             d->path);
    (void)rte_vhost_driver_unregister(d->path);
    return -EIO;
}

/*
 * Makes d known to the callbacks; -EADDRINUSE when another port has its socket.
 * librte_vhost takes the same path twice, and then undoes the first one.
 */
static int dev_link(struct vhost_dev *d, char *err) {
    struct vhost_dev *other;

    pthread_mutex_lock(&lock);
    for (other = devs; other != NULL && strcmp(other->path, d->path) != 0; other = other->next)
        ;
    if (other == NULL) {
        d->next = devs;
        devs = d;
    } else {
        snprintf(err, FF_ERR_LEN, "%s: the socket %s is in use by port %s", d->port->name, d->path,
                 other->port->name);
    }
    pthread_mutex_unlock(&lock);
    return other == NULL ? 0 : -EADDRINUSE;
}

static void dev_unlink(struct vhost_dev *d) {
    struct vhost_dev **at = &devs;

    pthread_mutex_lock(&lock);
    while (*at != d)
        at = &(*at)->next;
    *at = d->next;
    pthread_mutex_unlock(&lock);
}

static int vhost_open(struct ff_port *port, const struct ff_port_conf *conf, char *err) {
    struct vhost_dev *d = calloc(1, sizeof(*d));
    int rc;

    if (d == NULL)
        return -ENOMEM;
    if (snprintf(d->path, sizeof(d->path), "%s", conf->path) >= (int)sizeof(d->path)) {
        snprintf(err, FF_ERR_LEN, "%s: the socket path is longer than 107 bytes: %s", conf->name,
                 conf->path);
        free(d);
        return -ENAMETOOLONG;
    }
    d->port = port;
    d->server = conf->server;
    atomic_store(&d->vid, -1);
    port->dev = d;
    rc = dev_link(d, err);
    if (rc == 0) {
        rc = driver_setup(d, err);
        if (rc != 0)
            dev_unlink(d);
    }
    if (rc != 0)
        free(d);
    return rc;
}

static void vhost_close(struct ff_port *port) {
    struct vhost_dev *d = port->dev;

    /* ends the connection: destroy_device comes, and no callback after this */
    (void)rte_vhost_driver_unregister(d->path);
    dev_unlink(d);
    free(d);
}

static void vhost_info(struct ff_port *port, struct ff_port_info *info) {
    const struct vhost_dev *d = port->dev;
    int vid = atomic_load(&d->vid);

    if (vid >= 0)
        (void)rte_vhost_get_negotiated_features(vid, &info->features);
}

const struct ff_port_ops ff_port_vhost_ops = {
    .open = vhost_open,
    .close = vhost_close,
    .rx = vhost_rx,
    .tx = vhost_tx,
    .info = vhost_info,
};
