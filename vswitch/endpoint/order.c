/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The order in which a receive queue takes while shortcuts open and close: ff_shm.h, CHANGE OF
 * PATH. A queue looks at all indices once, in the order that is said there, and takes up to those
 * before it looks again: so a sender that goes on in a closing ring keeps nobody else out.
 */
#include <stdlib.h>

#include "rx.h"

static const struct ff_shm_in *entry_of(const struct ff_rxq *q, const struct ff_in *in) {
    return &q->dev->table->in[in->number];
}

static uint32_t state_of(const struct ff_rxq *q, const struct ff_in *in) {
    const struct ff_shm_in *e = entry_of(q, in);

    if (__atomic_load_n(&e->epoch, __ATOMIC_ACQUIRE) != in->epoch)
        return FF_IN_FREE;
    return __atomic_load_n(&e->state, __ATOMIC_ACQUIRE);
}

static bool is_opened(const struct ff_rxq *q, const struct ff_in_ring *r) {
    return __atomic_load_n(&entry_of(q, r->in)->opened, __ATOMIC_ACQUIRE) >> r->number & 1;
}

static uint32_t open_at(const struct ff_rxq *q, const struct ff_in_ring *r, uint16_t queue) {
    return __atomic_load_n(&entry_of(q, r->in)->open_at[FF_SHM_QUEUES * r->number + queue],
                           __ATOMIC_RELAXED);
}

/* Whether the ring is opened, and every queue has taken what came before that by the switch. */
static bool may_take(const struct ff_rxq *q, const struct ff_in_ring *r) {
    if (!is_opened(q, r))
        return false;
    for (uint16_t k = 0; k < q->dev->n_rx; k++) {
        uint32_t taken = __atomic_load_n(&q->dev->rxq[k]->post.taken, __ATOMIC_ACQUIRE);

        if ((int32_t)(taken - open_at(q, r, k)) < 0)
            return false;
    }
    return true;
}

/* The view to go on with after a change. */
struct ff_rx_view *ff_rx_reread(struct ff_rxq *q) {
    struct ff_rx_view *v;

    q->version = __atomic_load_n(&q->dev->version, __ATOMIC_ACQUIRE);
    q->generation = __atomic_load_n(&q->dev->table->generation, __ATOMIC_ACQUIRE);
    v = __atomic_load_n(&q->view, __ATOMIC_ACQUIRE);
    v->draining = false;
    q->ordered = true;
    return v;
}

/* Whether a ring that was shut may have been opened since; looks at one ring at a time. */
bool ff_rx_opened(struct ff_rxq *q, struct ff_rx_view *v) {
    const struct ff_in_ring *r;

    if (v->n_shut == 0)
        return false;
    r = v->ring[v->wait];
    if (++v->wait == v->n_rings)
        v->wait = 0;
    if (r->phase != FF_RING_SHUT || state_of(q, r->in) != FF_IN_OPENING || !is_opened(q, r))
        return false;
    v->draining = false;
    q->ordered = true;
    return true;
}

/* The switch's ring, then rings that nothing was taken from, then the table, then rings that close:
 * whatever was sent earlier than what one look finds is found by the next. */
static void look(struct ff_rxq *q, struct ff_rx_view *v) {
    v->post_until = __atomic_load_n(&q->post.ring->used_tail, __ATOMIC_ACQUIRE);
    for (uint32_t i = 0; i < v->n_rings; i++)
        v->until[i] = __atomic_load_n(&v->ring[i]->b.ring->tail, __ATOMIC_ACQUIRE);
    q->version = __atomic_load_n(&q->dev->version, __ATOMIC_ACQUIRE);
    q->generation = __atomic_load_n(&q->dev->table->generation, __ATOMIC_ACQUIRE);
    v->n_closing = 0;
    for (uint32_t i = 0; i < v->n_ins; i++) {
        for (uint16_t k = 0; state_of(q, v->in[i]) == FF_IN_CLOSING && k < v->in[i]->n_rings; k++) {
            const struct ff_in_ring *r = &v->in[i]->ring[k];

            v->closing[v->n_closing++] = (struct ff_rx_closing){
                .ring = r, .until = __atomic_load_n(&r->b.ring->tail, __ATOMIC_ACQUIRE)};
        }
    }
    v->draining = true;
}

/* Whether rings that close still hold what a queue has to take first; *posted is lowered to what
 * came by the switch before that, and *behind says that there is some. */
static bool is_pending(const struct ff_rxq *q, const struct ff_rx_view *v, uint32_t *posted,
                       bool *behind) {
    bool pending = false;

    *behind = false;

    for (uint32_t i = 0; i < v->n_closing; i++) {
        const struct ff_in_ring *r = v->closing[i].ring;
        uint32_t left = v->closing[i].until - __atomic_load_n(&r->taken, __ATOMIC_ACQUIRE);
        int32_t before;

        /* more than the ring has: its queue finds the fault */
        if (left == 0 || left > r->b.mask + 1 || r->phase == FF_RING_BROKEN || !is_opened(q, r))
            continue;
        before = (int32_t)(open_at(q, r, q->id) - q->post.taken);
        *posted = before <= 0 ? 0 : RTE_MIN(*posted, (uint32_t)before);
        *behind |= before > 0;
        pending = true;
    }
    return pending;
}

static uint16_t take_rings(struct ff_rxq *q, struct ff_rx_view *v, bool pending,
                           struct rte_mbuf **pkts, uint16_t n) {
    uint16_t got = 0;

    v->n_shut = 0;
    for (uint32_t i = 0; i < v->n_rings; i++) {
        struct ff_in_ring *r = v->ring[(v->turn + i) % v->n_rings];
        uint32_t most = UINT32_MAX;

        if (r->phase == FF_RING_SHUT) {
            uint32_t state = state_of(q, r->in);

            if (state == FF_IN_FREE || !may_take(q, r) || (state == FF_IN_OPENING && pending)) {
                v->n_shut++;
                v->blocked |= state != FF_IN_FREE && is_opened(q, r);
                continue;
            }
            r->phase = FF_RING_OPEN;
            if (state == FF_IN_OPENING)
                most = v->until[(v->turn + i) % v->n_rings] - r->b.pos;
        }
        if (r->phase == FF_RING_OPEN && got < n)
            got += ff_rx_lent(q, r, most, &pkts[got], n - got);
    }
    if (v->n_rings > 0)
        v->turn = (v->turn + 1) % v->n_rings;
    return got;
}

/* A burst while rings open or close. */
uint16_t ff_rx_ordered(struct ff_rxq *q, struct ff_rx_view *v, struct rte_mbuf **pkts, uint16_t n) {
    uint32_t posted;
    uint16_t got = 0;
    bool pending, behind;

    if (!v->draining)
        look(q, v);
    posted = v->post_until - q->post.taken;
    pending = is_pending(q, v, &posted, &behind);
    v->blocked = false;
    if (!pending)
        got = ff_rx_posted(q, posted, pkts, n);
    got += take_rings(q, v, pending, &pkts[got], n - got);
    if (pending)
        got += ff_rx_posted(q, posted, &pkts[got], n - got);
    if (q->post.taken == v->post_until && (!pending || behind))
        v->draining = false;
    if (v->n_closing == 0 && !v->blocked && !ff_rx_changed(q))
        q->ordered = false;
    return got;
}

/* What queue `id` of the device takes from, or NULL without memory. */
struct ff_rx_view *ff_rx_view_new(struct ff_dev *dev, uint16_t id) {
    uint32_t n_ins = 0, n_rings = 0, n_all = 0;
    struct ff_rx_view *v;
    size_t size;

    for (struct ff_in *in = dev->ins; in != NULL; in = in->next) {
        n_ins++;
        n_all += in->n_rings;
        for (uint16_t k = 0; k < in->n_rings; k++)
            n_rings += k % dev->n_rx == id;
    }
    size = sizeof(*v) + n_all * sizeof(*v->closing) + n_ins * sizeof(v->in[0]) +
           n_rings * (sizeof(v->ring[0]) + sizeof(v->until[0]));
    v = calloc(1, size);
    if (v == NULL)
        return NULL;
    v->closing = (struct ff_rx_closing *)(v + 1);
    v->in = (struct ff_in **)(v->closing + n_all);
    v->ring = (struct ff_in_ring **)(v->in + n_ins);
    v->until = (uint32_t *)(v->ring + n_rings);
    for (struct ff_in *in = dev->ins; in != NULL; in = in->next) {
        v->in[v->n_ins++] = in;
        for (uint16_t k = 0; k < in->n_rings; k++)
            if (k % dev->n_rx == id)
                v->ring[v->n_rings++] = &in->ring[k];
    }
    return v;
}
