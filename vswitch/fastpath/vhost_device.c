/* SPDX-License-Identifier: Apache-2.0 */
/*
 * librte_vhost's side of a vhost-user port: it does the control channel in its
 * own threads and calls back here. Before a message changes what a worker
 * uses, the queues concerned are stopped and their positions given to
 * librte_vhost; afterwards they are loaded from there.
 */
#include <errno.h>
#include <linux/vhost.h>
#include <pthread.h>
#include <stdio.h>

#include <rte_vhost.h>

#include "vhost.h"

/* vhost-user.rst, "Front-end message types" */
#define VHOST_USER_SET_MEM_TABLE 5u
#define VHOST_USER_SET_VRING_NUM 8u
#define VHOST_USER_SET_VRING_ADDR 9u
#define VHOST_USER_SET_VRING_BASE 10u
#define VHOST_USER_SET_VRING_KICK 12u
#define VHOST_USER_SET_VRING_CALL 13u
#define VHOST_USER_GET_QUEUE_NUM 17u
#define VHOST_USER_SET_VRING_ENABLE 18u

/* What librte_vhost's callbacks, which know only a path, look ports up in. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct ff_vhost *devs;

static struct ff_vhost *dev_of(int vid) {
    char path[sizeof(((struct ff_vhost *)0)->path)];
    struct ff_vhost *d;

    if (rte_vhost_get_ifname(vid, path, sizeof(path)) != 0)
        return NULL;
    pthread_mutex_lock(&lock);
    for (d = devs; d != NULL && strcmp(d->path, path) != 0; d = d->next)
        ;
    pthread_mutex_unlock(&lock);
    return d;
}

/* Transmit queues are those that the front-end receives on, from 0 without a gap. */
static void tx_queues_update(struct ff_vhost *d) {
    struct ff_port *port = d->port;
    uint16_t n = 0;

    while (n < port->rx_queues && d->enabled & 1u << 2 * n)
        n++;
    ff_port_set_tx_queues(port, n);
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
    uint64_t u64; /* about one vring: the low byte is its index, the high half a number */
} __attribute__((packed));

/* The vring that a message changes under a running device; FF_VHOST_VRINGS: none of them. */
static unsigned int vring_of(const struct message *m) {
    switch (m->request) {
    case VHOST_USER_SET_VRING_NUM:
    case VHOST_USER_SET_VRING_ADDR:
    case VHOST_USER_SET_VRING_BASE:
    case VHOST_USER_SET_VRING_KICK:
    case VHOST_USER_SET_VRING_CALL:
        return RTE_MIN((unsigned int)(m->u64 & 0xff), FF_VHOST_VRINGS);
    default:
        return FF_VHOST_VRINGS;
    }
}

static enum rte_vhost_msg_result before_message(int vid, void *msg) {
    struct ff_vhost *d = dev_of(vid);
    struct message *m = msg;

    ff_sigbus_expected();
    if (d == NULL)
        return RTE_VHOST_MSG_RESULT_NOT_HANDLED;
    if (m->request == VHOST_USER_GET_QUEUE_NUM) {
        /* librte_vhost would offer 128 pairs, of which the port polls only its own */
        m->u64 = d->port->rx_queues;
        m->size = sizeof(m->u64);
        return RTE_VHOST_MSG_RESULT_REPLY;
    }
    if (m->request == VHOST_USER_SET_MEM_TABLE)
        ff_vhost_stop_all(d);
    else if (vring_of(m) < FF_VHOST_VRINGS)
        ff_vhost_stop(d, vring_of(m));
    return RTE_VHOST_MSG_RESULT_NOT_HANDLED;
}

static enum rte_vhost_msg_result after_message(int vid, void *msg) {
    struct ff_vhost *d = dev_of(vid);
    const struct message *m = msg;

    if (d == NULL)
        return RTE_VHOST_MSG_RESULT_NOT_HANDLED;
    if (m->request == VHOST_USER_SET_MEM_TABLE) {
        ff_vhost_mem_load(d);
        if (d->running)
            (void)ff_vhost_start_all(d);
        else
            ff_port_state(d->port, FF_PORT_MEMORY_MAPPED, "the peer shared its memory");
    } else if (vring_of(m) < FF_VHOST_VRINGS) {
        (void)ff_vhost_start(d, vring_of(m));
    } else if (m->request == VHOST_USER_SET_VRING_ENABLE && (uint32_t)m->u64 < FF_VHOST_VRINGS) {
        uint32_t bit = 1u << (uint32_t)m->u64;

        d->asked = m->u64 >> 32 != 0 ? d->asked | bit : d->asked & ~bit;
    }
    return RTE_VHOST_MSG_RESULT_NOT_HANDLED;
}

static const struct rte_vhost_user_extern_ops message_ops = {
    .pre_msg_handle = before_message,
    .post_msg_handle = after_message,
};

static int new_connection(int vid) {
    struct ff_vhost *d = dev_of(vid);

    if (d == NULL || d->vid >= 0)
        return -1; /* a second peer on a server socket: one port, one peer */
    d->vid = vid;
    d->enabled = 0; /* librte_vhost tells of no queue that a lost peer leaves enabled */
    d->asked = 0;
    tx_queues_update(d);
    ff_port_state(d->port, FF_PORT_NEGOTIATING, "the peer connected");
    return rte_vhost_extern_callback_register(vid, &message_ops, d);
}

static void destroy_connection(int vid) {
    struct ff_vhost *d = dev_of(vid);

    if (d == NULL || d->vid != vid)
        return;
    d->vid = -1;
    d->mem.n = 0;
    ff_port_state(d->port, FF_PORT_LOST, "the peer closed the connection; %s",
                  d->server ? "listening for it" : "reconnecting");
}

static int vring_state_changed(int vid, uint16_t vring, int enable) {
    struct ff_vhost *d = dev_of(vid);

    if (d == NULL || vring >= FF_VHOST_VRINGS)
        return 0;
    if (enable) {
        d->enabled |= 1u << vring;
        (void)ff_vhost_start(d, vring);
    } else {
        d->enabled &= ~(1u << vring);
        ff_vhost_stop(d, vring);
    }
    tx_queues_update(d);
    return 0;
}

static int new_device(int vid) {
    struct ff_vhost *d = dev_of(vid);
    unsigned int pairs = (unsigned int)rte_vhost_get_vring_num(vid) / 2;
    bool good;

    if (d == NULL || rte_vhost_get_negotiated_features(vid, &d->features) != 0)
        return -1;
    d->port->offloads = FF_OFF_FREE | ff_offload_guest(d->features);
    d->running = true;
    good = ff_vhost_start_all(d);
    tx_queues_update(d);
    atomic_store_explicit(&d->port->ready, true, memory_order_release);
    ff_wake_all();
    if (good)
        ff_port_state(d->port, FF_PORT_READY, "%u queue pair%s", pairs, pairs == 1 ? "" : "s");
    return 0;
}

static void destroy_device(int vid) {
    struct ff_vhost *d = dev_of(vid);

    if (d == NULL)
        return;
    atomic_store(&d->port->ready, false);
    d->running = false;
    ff_vhost_stop_all(d); /* from here on no worker uses the rings or the memory */
    ff_port_state(d->port, FF_PORT_NEGOTIATING, "the peer stopped the device");
}

static const struct rte_vhost_device_ops device_ops = {
    .new_device = new_device,
    .destroy_device = destroy_device,
    .vring_state_changed = vring_state_changed,
    .new_connection = new_connection,
    .destroy_connection = destroy_connection,
};

/* ---- control ---- */

static int driver_setup(const struct ff_vhost *d, char *err) {
    const uint64_t never =
        1ull << VIRTIO_NET_F_GUEST_UFO | 1ull << VIRTIO_NET_F_HOST_UFO | /* Linux 4.14 ended it */
        1ull << VIRTIO_NET_F_GSO | /* stands for all kinds, UFO too: section 5.1.3.2 */
        1ull << VHOST_F_LOG_ALL;   /* no dirty-page log: containers do not migrate live */
    uint64_t flags = d->server ? 0 : RTE_VHOST_USER_CLIENT;

    if (rte_vhost_driver_register(d->path, flags) != 0) {
        ff_error(err, "%s: cannot set up the socket %s", d->port->name, d->path);
        return -EIO;
    }
    if (rte_vhost_driver_disable_features(d->path, never) == 0 &&
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
static int dev_link(struct ff_vhost *d, char *err) {
    struct ff_vhost *other;

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

static void dev_unlink(struct ff_vhost *d) {
    struct ff_vhost **at = &devs;

    pthread_mutex_lock(&lock);
    while (*at != d)
        at = &(*at)->next;
    *at = d->next;
    pthread_mutex_unlock(&lock);
}

int ff_vhost_register(struct ff_vhost *d, char *err) {
    int rc = dev_link(d, err);

    if (rc == 0) {
        rc = driver_setup(d, err);
        if (rc != 0)
            dev_unlink(d);
    }
    return rc;
}

void ff_vhost_unregister(struct ff_vhost *d) {
    /* ends the connection: destroy_device comes, and no callback after this */
    (void)rte_vhost_driver_unregister(d->path);
    dev_unlink(d);
}
