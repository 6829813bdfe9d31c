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

static void send_on(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                    struct ff_frame *frames, unsigned int n) {
    bool tap = atomic_load_explicit(&port->tap, memory_order_relaxed) & FF_TAP_TX;
    struct ff_queue_stats *q = &w->port_stats[port->id].queue[queue];
    struct ff_sent sent;

    if (unlikely(port->tx_shared))
        rte_spinlock_lock(&port->tx_lock[queue]);
    sent = unlikely(tap) ? send_tapped(w, port, queue, frames, n)
                         : port->ops->tx(w, port, queue, frames, n);
    if (unlikely(port->tx_shared))
        rte_spinlock_unlock(&port->tx_lock[queue]);
    q->tx_packets += sent.packets;
    q->tx_bytes += sent.bytes;
    if (unlikely(sent.packets < n))
        count_drops(w, port->id, FF_DROP_RING_FULL, n - sent.packets - sent.accounted);
}

/* Spreads the frames over the port's queues, in order within each. */
static void send_spread(struct ff_worker *w, struct ff_port *port, unsigned int queues,
                        struct ff_frame *frames, unsigned int n) {
    struct ff_frame one[FF_BURST];
    uint8_t queue[FF_BURST];
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
        send_on(w, port, q, one, k);
    }
}

static unsigned int drop_oversize(struct ff_worker *w, const struct ff_port *port,
                                  struct ff_frame *frames, unsigned int n) {
    unsigned int k = 0;

    for (unsigned int i = 0; i < n; i++) {
        if (unlikely(frames[i].len > port->max_frame))
            ff_drop(w, port->id, FF_DROP_TX_OVERSIZE, &frames[i]);
        else if (k++ != i)
            frames[k - 1] = frames[i];
    }
    return k;
}

static void flush_one(struct ff_worker *w, struct ff_out *out) {
    struct ff_port *port = out->port;
    unsigned int n = out->n, queues;

    w->out_slot[port->id] = 0;
    queues = port->tx_queues;
    if (unlikely(!ff_port_ready(port) || queues == 0)) {
        count_drops(w, port->id, FF_DROP_PORT_DOWN, n);
        for (unsigned int i = 0; i < n; i++)
            ff_frame_free(&out->frames[i]);
        return;
    }
    n = drop_oversize(w, port, out->frames, n);
    if (n == 0)
        return;
    if (queues == 1)
        send_on(w, port, 0, out->frames, n);
    else
        send_spread(w, port, queues, out->frames, n);
}

void ff_output_flush(struct ff_worker *w) {
    for (unsigned int i = 0; i < w->n_out; i++)
        flush_one(w, &w->out[i]);
    w->n_out = 0;
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
    }
    out = &w->out[slot - 1];
    if (unlikely(out->n == FF_BURST)) { /* copies and verdicts can exceed a burst */
        ff_output_flush(w);
        ff_output(w, port_id, in_port, frame);
        return;
    }
    out->frames[out->n++] = *frame;
}
