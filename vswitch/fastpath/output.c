/* SPDX-License-Identifier: Apache-2.0 */
/* Output: frames are gathered by port over a burst and sent in one call. */
#include "switch.h"

static void count_drops(struct ff_worker *w, uint16_t port_id, unsigned int reason, uint32_t n) {
    w->port_stats[port_id].drop[reason] += n;
}

/* Which of the port's queues this worker may use for the frame. */
static inline unsigned int tx_queue(const struct ff_worker *w, unsigned int queues,
                                    uint16_t steer) {
    unsigned int own;

    if (queues <= ff.n_workers)
        return w->index % queues;
    /* queues index, index + n_workers, ... are this worker's alone */
    own = (queues - w->index + ff.n_workers - 1) / ff.n_workers;
    return w->index + (steer % own) * ff.n_workers;
}

/* As port->ops->tx, and taps what was sent. */
static struct ff_sent send_tapped(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                                  struct ff_frame *frames, unsigned int n) {
    struct ff_frame kept[FF_BURST];
    struct ff_sent sent;

    for (unsigned int i = 0; i < n; i++) {
        kept[i] = frames[i];
        ff_frame_share(&kept[i]);
    }
    sent = port->ops->tx(w, port, queue, frames, n);
    for (unsigned int i = 0; i < n; i++) {
        if (i < sent.packets)
            ff_tap_frame(w, port, FF_TAP_TX, &kept[i]);
        ff_frame_free(&kept[i]);
    }
    return sent;
}

static unsigned int send_on(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                            struct ff_frame *frames, unsigned int n) {
    bool tap = atomic_load_explicit(&port->tap, memory_order_relaxed) & FF_TAP_TX;
    bool shared = port->tx_shared;
    struct ff_queue_stats *q = &w->port_stats[port->id].queue[queue];
    struct ff_sent sent;

    if (unlikely(shared))
        rte_spinlock_lock(&port->tx_lock[queue]);
    sent = unlikely(tap) ? send_tapped(w, port, queue, frames, n)
                         : port->ops->tx(w, port, queue, frames, n);
    if (unlikely(shared))
        rte_spinlock_unlock(&port->tx_lock[queue]);
    q->tx_packets += sent.packets;
    q->tx_bytes += sent.bytes;
    if (unlikely(sent.packets < n)) {
        uint32_t full = n - sent.packets - sent.accounted;

        q->tx_full += full;
        count_drops(w, port->id, FF_DROP_RING_FULL, full);
    }
    return sent.packets;
}

/* Spreads the frames over the port's queues, in order within each. */
static unsigned int send_spread(struct ff_worker *w, struct ff_port *port, unsigned int queues,
                                struct ff_frame *frames, unsigned int n) {
    struct ff_frame one[FF_BURST];
    uint8_t queue[FF_BURST];
    unsigned int sent = 0;
    uint32_t used = 0;

    for (unsigned int i = 0; i < n; i++) {
        queue[i] = (uint8_t)tx_queue(w, queues, frames[i].steer);
        used |= 1u << queue[i];
    }
    for (; used != 0; used &= used - 1) {
        unsigned int q = (unsigned int)__builtin_ctz(used), k = 0;

        for (unsigned int i = 0; i < n; i++)
            if (queue[i] == q)
                one[k++] = frames[i];
        sent += send_on(w, port, q, one, k);
    }
    return sent;
}

unsigned int ff_output_send(struct ff_worker *w, struct ff_port *port, struct ff_frame *frames,
                            unsigned int n) {
    unsigned int queues = port->tx_queues;

    if (likely(queues == 1))
        return send_on(w, port, 0, frames, n);
    return send_spread(w, port, queues, frames, n);
}

/* What comes out of a frame of segmentation offload is no longer than its segments. */
static inline bool is_oversize(const struct ff_port *port, const struct ff_frame *f) {
    return unlikely(f->len > port->max_frame) && ff_offload_unit(f) > port->max_frame;
}

/* *requests: the union of what the frames ask for. */
static unsigned int drop_oversize(struct ff_worker *w, const struct ff_port *port,
                                  struct ff_frame *frames, unsigned int n, uint8_t *requests) {
    unsigned int k = 0;

    *requests = 0;
    for (unsigned int i = 0; i < n; i++) {
        if (unlikely(is_oversize(port, &frames[i]))) {
            ff_drop(w, port->id, FF_DROP_TX_OVERSIZE, &frames[i]);
            continue;
        }
        *requests |= frames[i].offload.what;
        if (k++ != i)
            frames[k - 1] = frames[i];
    }
    return k;
}

static void flush_one(struct ff_worker *w, struct ff_out *out) {
    struct ff_port *port = out->port;
    unsigned int n = out->n;
    uint8_t requests;

    w->out_slot[port->id] = 0;
    if (unlikely(!ff_port_ready(port) || port->tx_queues == 0)) {
        count_drops(w, port->id, FF_DROP_PORT_DOWN, n);
        for (unsigned int i = 0; i < n; i++)
            ff_frame_free(&out->frames[i]);
        return;
    }
    n = drop_oversize(w, port, out->frames, n, &requests);
    if (n == 0)
        return;
    if (unlikely(requests & ~port->offloads))
        ff_gso_send(w, port, out->frames, n, ff_output_send);
    else
        (void)ff_output_send(w, port, out->frames, n);
}

void ff_output_flush(struct ff_worker *w) {
    for (unsigned int i = 0; i < w->n_out; i++)
        flush_one(w, &w->out[i]);
    w->n_out = 0;
    if (unlikely(w->unposted != NULL))
        ff_rdma_post(w);
}

void ff_output(struct ff_worker *w, uint16_t port_id, uint16_t in_port, struct ff_frame *frame) {
    unsigned int slot = w->out_slot[port_id];
    struct ff_out *out;

    if (unlikely(slot == 0)) {
        struct ff_port *port = ff_port(port_id);

        if (unlikely(port == NULL)) {
            ff_drop(w, in_port, FF_DROP_PORT_GONE, frame);
            return;
        }
        if (port->ops == &ff_port_vxlan_ops) {
            ff_vxlan_output(w, port, in_port, frame);
            return;
        }
        if (unlikely(w->n_out == FF_OUT_SLOTS))
            ff_output_flush(w);
        slot = ++w->n_out;
        w->out_slot[port_id] = (uint8_t)slot;
        w->out[slot - 1].port = port;
        w->out[slot - 1].n = 0;
        w->out[slot - 1].steered = port->tx_queues > ff.n_workers;
    }
    out = &w->out[slot - 1];
    if (unlikely(out->n == FF_BURST)) { /* copies and verdicts can exceed a burst */
        ff_output_flush(w);
        ff_output(w, port_id, in_port, frame);
        return;
    }
    out->frames[out->n++] = *frame;
}
