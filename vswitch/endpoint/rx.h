/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The receive side's own: what a queue takes from, and in which order.
 */
#ifndef FF_RX_H
#define FF_RX_H

#include "net_ff.h"

/* What a ring that closes held when the queue looked. */
struct ff_rx_closing {
    const struct ff_in_ring *ring;
    uint32_t until;
};

/* The incoming shortcuts as one queue sees them. Made by the control thread, then the queue's. */
struct ff_rx_view {
    uint32_t n_ins, n_rings, n_closing;
    uint32_t n_shut;          /* rings of this queue that nothing may be taken from yet */
    struct ff_in **in;        /* all */
    struct ff_in_ring **ring; /* those that this queue takes from */
    uint32_t *until;          /* for each of them: what it held when the queue looked */
    struct ff_rx_closing *closing;
    bool draining;       /* the looked-at state still counts */
    uint32_t post_until; /* of it: used_tail */
    bool blocked;        /* a ring is opened and has to wait */
    uint32_t wait;       /* ring whose opening is looked for next */
    uint32_t turn;       /* ring to begin with */
};

/* Whether the switch or the control thread has changed something since the queue looked. An index
 * that another side wrote may be used only when it was read before a false answer. */
static inline bool ff_rx_changed(const struct ff_rxq *q) {
    return __atomic_load_n(&q->dev->table->generation, __ATOMIC_ACQUIRE) != q->generation ||
           __atomic_load_n(&q->dev->version, __ATOMIC_ACQUIRE) != q->version;
}

/* rx.c */
uint16_t ff_rx_lent(struct ff_rxq *q, struct ff_in_ring *r, uint32_t most, struct rte_mbuf **pkts,
                    uint16_t n);
uint16_t ff_rx_posted(struct ff_rxq *q, uint32_t most, struct rte_mbuf **pkts, uint16_t n);

/* order.c */
struct ff_rx_view *ff_rx_reread(struct ff_rxq *q);
bool ff_rx_opened(struct ff_rxq *q, struct ff_rx_view *v);
uint16_t ff_rx_ordered(struct ff_rxq *q, struct ff_rx_view *v, struct rte_mbuf **pkts, uint16_t n);

#endif
