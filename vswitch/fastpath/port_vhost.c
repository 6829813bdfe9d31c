/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vhost-user ports: a worker's turns at the rings, which vring.c walks, and
 * what the control thread does. Their control channel is in vhost_device.c.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include <rte_atomic.h>

#include "vhost.h"

#define UNTOLD_MAX 16u /* rings whose drivers wait to be told */

static inline bool usable(struct ff_vring *vq) {
    return atomic_load_explicit(&vq->active, memory_order_acquire);
}

static inline bool broken(const struct ff_vhost *d, struct ff_vring *vq) {
    if (unlikely(atomic_load_explicit(&d->mem.lost, memory_order_relaxed)))
        vq->fault = FF_FAULT_MEMORY; /* whatever the zeros looked like */
    return unlikely(vq->fault != FF_FAULT_NONE);
}

static unsigned int vhost_rx(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                             struct ff_frame *frames, unsigned int n) {
    struct ff_vhost *d = port->dev;
    struct ff_vring *vq = &d->vring[2 * queue + 1];

    if (unlikely(!usable(vq)))
        return 0;
    n = ff_vring_rx(vq, &w->arena, frames, n);
    if (unlikely(broken(d, vq)))
        ff_vhost_faulty(w, port, vq, 2 * queue + 1);
    return n;
}

/*
 * The barrier that has to come before a look at what the driver wants waits for all that was
 * written, lines of the receiver's that are on their way included. So it is one for all rings.
 */
static inline void tell_later(struct ff_worker *w, struct ff_vring *vq) {
    if (vq->untold)
        return;
    vq->untold = true;
    vq->next_untold = w->untold;
    w->untold = vq;
    if (unlikely(++w->n_untold == UNTOLD_MAX))
        ff_vhost_tell(w);
}

void ff_vhost_tell(struct ff_worker *w) {
    struct ff_vring *vq;

    rte_smp_mb();
    while ((vq = w->untold) != NULL) {
        w->untold = vq->next_untold;
        vq->untold = false;
        ff_vring_notify(vq);
    }
    w->n_untold = 0;
}

static void vhost_rx_done(struct ff_worker *w, struct ff_port *port, unsigned int queue) {
    struct ff_vhost *d = port->dev;
    struct ff_vring *vq = &d->vring[2 * queue + 1];

    if (likely(ff_vring_rx_done(vq)))
        tell_later(w, vq);
}

static bool vhost_arm(struct ff_worker *w, struct ff_port *port, unsigned int queue) {
    struct ff_vhost *d = port->dev;
    struct ff_vring *vq = &d->vring[2 * queue + 1];

    if (!usable(vq)) /* whoever makes it so wakes the workers */
        return true;
    if (!ff_waker_watch(w, &vq->kick))
        return false;
    ff_vring_listen(vq);
    return true;
}

static void vhost_disarm(struct ff_port *port, unsigned int queue) {
    struct ff_vhost *d = port->dev;
    struct ff_vring *vq = &d->vring[2 * queue + 1];

    if (usable(vq))
        ff_vring_quiet(vq);
}

static void vhost_leave(struct ff_port *port, unsigned int queue) {
    struct ff_vhost *d = port->dev;
    struct ff_vring *vq = &d->vring[2 * queue + 1];

    if (!usable(vq)) /* librte_vhost's thread takes care of it */
        return;
    ff_waker_unwatch(&vq->kick);
    ff_vring_quiet(vq);
}

static struct ff_sent vhost_tx(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                               struct ff_frame *frames, unsigned int n) {
    struct ff_vhost *d = port->dev;
    struct ff_vring *vq = &d->vring[2 * queue];
    struct ff_sent sent = {0};
    uint32_t too_long = 0;

    if (likely(usable(vq))) {
        sent = ff_vring_tx(vq, frames, n, &too_long);
        if (unlikely(port->tx_shared)) { /* the ring is this worker's only until it returns */
            rte_smp_mb();
            ff_vring_notify(vq);
        } else if (likely(sent.packets > 0)) {
            tell_later(w, vq);
        }
        if (unlikely(too_long > 0)) {
            w->port_stats[port->id].drop[FF_DROP_TX_OVERSIZE] += too_long;
            sent.accounted = too_long;
        }
        if (unlikely(broken(d, vq)))
            ff_vhost_faulty(w, port, vq, 2 * queue);
    } else {
        w->port_stats[port->id].drop[FF_DROP_PORT_DOWN] += n;
        sent.accounted = n;
    }
    for (unsigned int i = 0; i < n; i++)
        ff_frame_free(&frames[i]);
    return sent;
}

/* ---- control ---- */

static int vhost_open(struct ff_port *port, const struct ff_port_conf *conf, char *err) {
    struct ff_vhost *d = aligned_alloc(RTE_CACHE_LINE_SIZE, sizeof(*d));
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
    for (unsigned int v = 0; v < FF_VHOST_VRINGS; v++)
        d->vring[v].kick = FF_NO_WAKER;
    port->dev = d;
    rc = ff_vhost_register(d, err);
    if (rc != 0)
        free(d);
    return rc;
}

static void vhost_close(struct ff_port *port) {
    struct ff_vhost *d = port->dev;

    ff_vhost_unregister(d);
    free(d);
}

static void vhost_info(struct ff_port *port, struct ff_port_info *info) {
    const struct ff_vhost *d = port->dev;

    if (ff_port_ready(port))
        info->features = d->features;
}

static uint32_t vhost_unstarted(struct ff_port *port) {
    const struct ff_vhost *d = port->dev;
    uint32_t vrings = 0;

    for (unsigned int v = 0; v < 2u * port->rx_queues; v++)
        if (d->asked & 1u << v && !atomic_load(&d->vring[v].active) &&
            d->vring[v].fault == FF_FAULT_NONE)
            vrings |= 1u << v;
    return vrings;
}

static struct ff_mem *vhost_mem(struct ff_port *port) {
    struct ff_vhost *d = port->dev;

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
