/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vhost-user ports. librte_vhost does the control channel in its own threads
 * and calls back here; the rings are walked by vring.c. Before a message
 * changes what a worker uses, the queues concerned are stopped and their
 * positions given to librte_vhost; afterwards they are loaded from there.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/vhost.h>
#include <linux/virtio_config.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include <rte_vhost.h>

#include "switch.h"
#include "vring.h"

/* vhost-user.rst, "Front-end message types" */
#define VHOST_USER_SET_MEM_TABLE 5u
#define VHOST_USER_SET_VRING_NUM 8u
#define VHOST_USER_SET_VRING_ADDR 9u
#define VHOST_USER_SET_VRING_BASE 10u
#define VHOST_USER_SET_VRING_KICK 12u
#define VHOST_USER_SET_VRING_CALL 13u
#define VHOST_USER_GET_QUEUE_NUM 17u
#define VHOST_USER_SET_VRING_ENABLE 18u

#define VRINGS (2u * FF_MAX_QUEUES)
#define PACKED_WRAP 0x8000u /* vhost-user.rst, "A vring state description" */

struct vhost_dev {
    struct ff_vring vring[VRINGS]; /* virtio 1.1 section 5.1.2: even receive, odd transmit */
    struct ff_mem mem;             /* what the vrings use; changes while all are stopped */
    struct ff_port *port;
    char path[108]; /* sizeof sun_path */
    bool server;
    bool running; /* between new_device and destroy_device; librte_vhost's threads only */
    int vid;
    uint64_t features;
    uint32_t enabled; /* bit v: the front-end enabled vring v, and has set it up */
    uint32_t asked;   /* bit v: the front-end enabled vring v */
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

/* ---- vrings, in librte_vhost's threads ---- */

static bool is_transmit(unsigned int v) {
    return v % 2 != 0;
}

/* Tells librte_vhost how far the workers came. */
static void vring_save(const struct vhost_dev *d, unsigned int v) {
    const struct ff_vring *vq = &d->vring[v];
    uint16_t avail = vq->last_avail, used = vq->last_used;

    if (vq->packed) {
        avail |= vq->avail_wrap ? PACKED_WRAP : 0;
        used |= vq->used_wrap ? PACKED_WRAP : 0;
    }
    (void)rte_vhost_set_vring_base(d->vid, (uint16_t)v, avail, used);
}

/*
 * A descriptor of our own for the eventfd that the front-end kicks, which
 * shares it: closing librte_vhost's alone would leave it in the worker's epoll
 * set for ever. What is no eventfd is left alone, as a poll of it may block.
 */
static int kick_open(int fd) {
    char path[32], what[32];
    ssize_t n;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    n = fd < 0 ? -1 : readlink(path, what, sizeof(what) - 1);
    if (n < 0)
        return -1;
    what[n] = '\0';
    return strcmp(what, "anon_inode:[eventfd]") == 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;
}

static void kick_close(struct ff_vring *vq) {
    ff_waker_unwatch(&vq->kick);
    if (vq->kick.fd >= 0)
        close(vq->kick.fd);
    vq->kick = FF_NO_WAKER;
}

/* Stops workers at the vrings from `first` up to `end`: none of them uses these any more. */
static void vrings_stop(struct vhost_dev *d, unsigned int first, unsigned int end) {
    bool was_active[VRINGS];

    for (unsigned int v = first; v < end; v++)
        was_active[v] = atomic_exchange(&d->vring[v].active, false);
    /* also for a vring that its worker stopped itself, and may not have left yet */
    ff_synchronize();
    for (unsigned int v = first; v < end; v++) {
        kick_close(&d->vring[v]);
        if (was_active[v])
            vring_save(d, v);
    }
}

static void vring_stop(struct vhost_dev *d, unsigned int v) {
    vrings_stop(d, v, v + 1);
}

/* The front-end broke a rule: this queue stops, is counted and named. Any thread. */
static void stop_faulty(struct ff_worker *w, struct ff_port *port, struct ff_vring *vq,
                        unsigned int v) {
    atomic_store(&vq->active, false);
    /* atomic: workers and librte_vhost's threads count */
    __atomic_fetch_add(&w->port_stats[port->id].fault[vq->fault], 1, __ATOMIC_RELAXED);
    ff_port_state(port, FF_PORT_LOST, "%s queue %u stopped: %s; reconnect",
                  is_transmit(v) ? "transmit" : "receive", v / 2, ff_fault_name(vq->fault));
}

/* false: the ring is not to be used, which the port's state says. */
static bool vring_start(struct vhost_dev *d, unsigned int v) {
    struct ff_vring *vq = &d->vring[v];
    struct rte_vhost_vring ring;
    uint16_t avail, used;

    if (!d->running || !(d->enabled & 1u << v) || atomic_load(&vq->active))
        return true;
    if (rte_vhost_get_vhost_vring(d->vid, (uint16_t)v, &ring) != 0 || ring.desc == NULL ||
        ring.avail == NULL || ring.used == NULL || ring.size == 0 ||
        rte_vhost_get_vring_base(d->vid, (uint16_t)v, &avail, &used) != 0)
        return true;
    kick_close(vq);
    *vq = (struct ff_vring){
        .packed = d->features & 1ull << VIRTIO_F_RING_PACKED,
        .mergeable = d->features & 1ull << VIRTIO_NET_F_MRG_RXBUF,
        .event_idx = d->features & 1ull << VIRTIO_RING_F_EVENT_IDX,
        .hdr_len =
            d->features & (1ull << VIRTIO_NET_F_MRG_RXBUF | 1ull << VIRTIO_F_VERSION_1) ? 12 : 10,
        .offloads = is_transmit(v) ? ff_offload_host(d->features) : ff_offload_guest(d->features),
        .size = ring.size,
        .last_avail = avail,
        .last_used = used,
        .call_fd = ring.callfd,
        .kick = {.fd = is_transmit(v) ? kick_open(ring.kickfd) : -1, .epoll = -1},
        .mem = &d->mem,
        .desc = ring.desc,
        .avail = ring.avail,
        .used = ring.used,
    };
    if (vq->packed) {
        vq->last_avail &= (uint16_t)~PACKED_WRAP;
        vq->last_used &= (uint16_t)~PACKED_WRAP;
        vq->avail_wrap = avail & PACKED_WRAP;
        vq->used_wrap = used & PACKED_WRAP;
    }
    vq->signalled = vq->last_used;
    ff_vring_fault(vq, ff_vring_check(vq));
    if (vq->fault != FF_FAULT_NONE) {
        stop_faulty(ff.workers[0], d->port, vq, v);
        return false;
    }
    ff_vring_quiet(vq);
    atomic_store_explicit(&vq->active, true, memory_order_release);
    ff_wake_all();
    return true;
}

static void all_stop(struct vhost_dev *d) {
    vrings_stop(d, 0, VRINGS);
}

static void mem_load(struct vhost_dev *d) {
    struct rte_vhost_memory *mem;

    d->mem.n = 0;
    atomic_store(&d->mem.lost, false);
    if (rte_vhost_get_mem_table(d->vid, &mem) != 0)
        return;
    for (uint32_t i = 0; i < mem->nregions && i < FF_MEM_REGIONS; i++)
        d->mem.region[d->mem.n++] = (struct ff_region){
            .gpa = mem->regions[i].guest_phys_addr,
            .size = mem->regions[i].size,
            .host = (uint8_t *)(uintptr_t)mem->regions[i].host_user_addr,
            .map = mem->regions[i].mmap_addr,
            .map_size = mem->regions[i].mmap_size,
        };
    free(mem);
}

static bool all_start(struct vhost_dev *d) {
    bool good = true;

    mem_load(d);
    for (unsigned int v = 0; v < VRINGS; v++)
        good &= vring_start(d, v);
    return good;
}

/* Transmit queues are those that the front-end receives on, from 0 without a gap. */
static void tx_queues_update(struct vhost_dev *d) {
    struct ff_port *port = d->port;
    uint16_t n = 0;

    while (n < port->rx_queues && d->enabled & 1u << 2 * n)
        n++;
    if (n == port->tx_queues)
        return;
    port->tx_shared = true; /* while workers may differ about the number */
    ff_synchronize();
    port->tx_queues = n;
    ff_synchronize();
    port->tx_shared = n < ff.n_workers;
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

/* The vring that a message changes under a running device; VRINGS: none of them. */
static unsigned int vring_of(const struct message *m) {
    switch (m->request) {
    case VHOST_USER_SET_VRING_NUM:
    case VHOST_USER_SET_VRING_ADDR:
    case VHOST_USER_SET_VRING_BASE:
    case VHOST_USER_SET_VRING_KICK:
    case VHOST_USER_SET_VRING_CALL:
        return RTE_MIN((unsigned int)(m->u64 & 0xff), VRINGS);
    default:
        return VRINGS;
    }
}

static enum rte_vhost_msg_result before_message(int vid, void *msg) {
    struct vhost_dev *d = dev_of(vid);
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
        all_stop(d);
    else if (vring_of(m) < VRINGS)
        vring_stop(d, vring_of(m));
    return RTE_VHOST_MSG_RESULT_NOT_HANDLED;
}

static enum rte_vhost_msg_result after_message(int vid, void *msg) {
    struct vhost_dev *d = dev_of(vid);
    const struct message *m = msg;

    if (d == NULL)
        return RTE_VHOST_MSG_RESULT_NOT_HANDLED;
    if (m->request == VHOST_USER_SET_MEM_TABLE) {
        mem_load(d);
        if (d->running)
            (void)all_start(d);
        else
            ff_port_state(d->port, FF_PORT_MEMORY_MAPPED, "the peer shared its memory");
    } else if (vring_of(m) < VRINGS) {
        (void)vring_start(d, vring_of(m));
    } else if (m->request == VHOST_USER_SET_VRING_ENABLE && (uint32_t)m->u64 < VRINGS) {
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
    struct vhost_dev *d = dev_of(vid);

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
    struct vhost_dev *d = dev_of(vid);

    if (d == NULL || d->vid != vid)
        return;
    d->vid = -1;
    d->mem.n = 0;
    ff_port_state(d->port, FF_PORT_LOST, "the peer closed the connection; %s",
                  d->server ? "listening for it" : "reconnecting");
}

static int vring_state_changed(int vid, uint16_t vring, int enable) {
    struct vhost_dev *d = dev_of(vid);

    if (d == NULL || vring >= VRINGS)
        return 0;
    if (enable) {
        d->enabled |= 1u << vring;
        (void)vring_start(d, vring);
    } else {
        d->enabled &= ~(1u << vring);
        vring_stop(d, vring);
    }
    tx_queues_update(d);
    return 0;
}

static int new_device(int vid) {
    struct vhost_dev *d = dev_of(vid);
    unsigned int pairs = (unsigned int)rte_vhost_get_vring_num(vid) / 2;
    bool good;

    if (d == NULL || rte_vhost_get_negotiated_features(vid, &d->features) != 0)
        return -1;
    d->port->offloads = FF_OFF_FREE | ff_offload_guest(d->features);
    d->running = true;
    good = all_start(d);
    tx_queues_update(d);
    atomic_store_explicit(&d->port->ready, true, memory_order_release);
    ff_wake_all();
    if (good)
        ff_port_state(d->port, FF_PORT_READY, "%u queue pair%s", pairs, pairs == 1 ? "" : "s");
    return 0;
}

static void destroy_device(int vid) {
    struct vhost_dev *d = dev_of(vid);

    if (d == NULL)
        return;
    atomic_store(&d->port->ready, false);
    d->running = false;
    all_stop(d); /* from here on no worker uses the rings or the memory */
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

static inline bool usable(struct ff_vring *vq) {
    return atomic_load_explicit(&vq->active, memory_order_acquire);
}

static inline bool broken(const struct vhost_dev *d, struct ff_vring *vq) {
    if (unlikely(atomic_load_explicit(&d->mem.lost, memory_order_relaxed)))
        vq->fault = FF_FAULT_MEMORY; /* whatever the zeros looked like */
    return unlikely(vq->fault != FF_FAULT_NONE);
}

static unsigned int vhost_rx(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                             struct ff_frame *frames, unsigned int n) {
    struct vhost_dev *d = port->dev;
    struct ff_vring *vq = &d->vring[2 * queue + 1];

    if (unlikely(!usable(vq)))
        return 0;
    n = ff_vring_rx(vq, &w->arena, frames, n);
    if (unlikely(broken(d, vq)))
        stop_faulty(w, port, vq, 2 * queue + 1);
    return n;
}

static void vhost_rx_done(struct ff_port *port, unsigned int queue) {
    struct vhost_dev *d = port->dev;

    ff_vring_rx_done(&d->vring[2 * queue + 1]);
}

static bool vhost_arm(struct ff_worker *w, struct ff_port *port, unsigned int queue) {
    struct vhost_dev *d = port->dev;
    struct ff_vring *vq = &d->vring[2 * queue + 1];

    if (!usable(vq)) /* whoever makes it so wakes the workers */
        return true;
    if (!ff_waker_watch(w, &vq->kick))
        return false;
    ff_vring_listen(vq);
    return true;
}

static void vhost_disarm(struct ff_port *port, unsigned int queue) {
    struct vhost_dev *d = port->dev;
    struct ff_vring *vq = &d->vring[2 * queue + 1];

    if (usable(vq))
        ff_vring_quiet(vq);
}

static void vhost_leave(struct ff_port *port, unsigned int queue) {
    struct vhost_dev *d = port->dev;
    struct ff_vring *vq = &d->vring[2 * queue + 1];

    if (!usable(vq)) /* librte_vhost's thread takes care of it */
        return;
    ff_waker_unwatch(&vq->kick);
    ff_vring_quiet(vq);
}

static struct ff_sent vhost_tx(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                               struct ff_frame *frames, unsigned int n) {
    struct vhost_dev *d = port->dev;
    struct ff_vring *vq = &d->vring[2 * queue];
    struct ff_sent sent = {0};
    uint32_t too_long = 0;

    if (likely(usable(vq))) {
        sent = ff_vring_tx(vq, frames, n, &too_long);
        if (unlikely(too_long > 0)) {
            w->port_stats[port->id].drop[FF_DROP_TX_OVERSIZE] += too_long;
            sent.accounted = too_long;
        }
        if (unlikely(broken(d, vq)))
            stop_faulty(w, port, vq, 2 * queue);
    } else {
        w->port_stats[port->id].drop[FF_DROP_PORT_DOWN] += n;
        sent.accounted = n;
    }
    for (unsigned int i = 0; i < n; i++)
        ff_frame_free(&frames[i]);
    return sent;
}

/* ---- control ---- */

static int driver_setup(const struct vhost_dev *d, char *err) {
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
    struct vhost_dev *d = aligned_alloc(RTE_CACHE_LINE_SIZE, sizeof(*d));
    int rc;

    if (d == NULL)
        return -ENOMEM;
    memset(d, 0, sizeof(*d));
    if (snprintf(d->path, sizeof(d->path), "%s", conf->path) >= (int)sizeof(d->path)) {
        snprintf(err, FF_ERR_LEN, "%s: the socket path is longer than 107 bytes: %s", conf->name,
                 conf->path);
        free(d);
        return -ENAMETOOLONG;
    }
    d->port = port;
    d->server = conf->server;
    d->vid = -1;
    for (unsigned int v = 0; v < VRINGS; v++)
        d->vring[v].kick = FF_NO_WAKER;
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

    if (ff_port_ready(port))
        info->features = d->features;
}

static uint32_t vhost_unstarted(struct ff_port *port) {
    const struct vhost_dev *d = port->dev;
    uint32_t vrings = 0;

    for (unsigned int v = 0; v < 2u * port->rx_queues; v++)
        if (d->asked & 1u << v && !atomic_load(&d->vring[v].active) &&
            d->vring[v].fault == FF_FAULT_NONE)
            vrings |= 1u << v;
    return vrings;
}

static struct ff_mem *vhost_mem(struct ff_port *port) {
    struct vhost_dev *d = port->dev;

    return d != NULL ? &d->mem : NULL; /* NULL while it opens */
}

const struct ff_port_ops ff_port_vhost_ops = {
    .open = vhost_open,
    .close = vhost_close,
    .rx = vhost_rx,
    .rx_done = vhost_rx_done,
    .tx = vhost_tx,
    .arm = vhost_arm,
    .disarm = vhost_disarm,
    .leave = vhost_leave,
    .info = vhost_info,
    .mem = vhost_mem,
    .unstarted = vhost_unstarted,
};
