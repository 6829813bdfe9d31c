/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Receive: a burst takes from the switch's ring and from those of incoming shortcuts in turn.
 */
#include <stdlib.h>
#include <string.h>

#include <rte_prefetch.h>

#include "net_ff.h"
#include "rx.h"

#define CHUNK 32 /* descriptors that are copied before they are looked at */
#define LOOK 16  /* bursts without a frame, before what was sent on is looked for */

/* Gives a lent buffer back; called by DPDK on whatever thread frees the last mbuf over it. */
void ff_slot_free(void *addr, void *opaque) {
    const struct ff_slot *s = opaque;

    (void)addr;
    ff_borrow_give(s->lender, s->slot);
}

static void break_ring(struct ff_rxq *q, struct ff_in_ring *r, unsigned int fault) {
    q->stats.invalid++;
    r->phase = FF_RING_BROKEN;
    __atomic_store_n(&r->fault, (uint8_t)fault, __ATOMIC_RELEASE);
    ff_control_wake(q->dev);
}

/* ---- mbufs ------------------------------------------------------------------------ */

static inline void fill_mbuf(struct rte_mbuf *m, uint16_t port, uint16_t data_off, uint16_t len) {
    const uint64_t rearm = data_off | 1ull << 16 | 1ull << 32 | (uint64_t)port << 48;

    memcpy(&m->rearm_data, &rearm, sizeof(rearm)); /* data_off, refcnt, nb_segs, port */
    m->packet_type = 0;
    m->pkt_len = len;
    m->data_len = len;
    m->vlan_tci = 0;
    m->hash.rss = 0;
}
static_assert(offsetof(struct rte_mbuf, refcnt) == offsetof(struct rte_mbuf, rearm_data) + 2 &&
                  offsetof(struct rte_mbuf, nb_segs) == offsetof(struct rte_mbuf, rearm_data) + 4 &&
                  offsetof(struct rte_mbuf, port) == offsetof(struct rte_mbuf, rearm_data) + 6,
              "fill_mbuf");

/* The region of a copied descriptor; NULL when it names what is not mapped here. */
static inline const struct ff_region *region_of(const struct ff_rxq *q,
                                                const struct ff_shm_desc *d) {
    const struct ff_region *r = __atomic_load_n(&q->dev->region[d->region], __ATOMIC_ACQUIRE);

    if (likely(r != NULL && d->len > 0 && d->offset >= d->before &&
               (uint64_t)d->offset + d->len + d->behind <= r->size &&
               (uint32_t)d->before + d->len + d->behind <= UINT16_MAX))
        return r;
    return NULL;
}

/* Makes m an external-buffer mbuf over the lent buffer. */
static inline void attach(struct ff_in_ring *r, struct rte_mbuf *m, uint16_t port,
                          const struct ff_region *region, const struct ff_shm_desc *d) {
    struct ff_slot *s = &r->slot[d->slot];
    uint8_t *buf = region->base + d->offset - d->before;

    s->shinfo.refcnt = 1;
    s->region = region;
    s->hops = d->flags / FF_DESC_HOP;
    fill_mbuf(m, port, d->before, d->len);
    m->buf_addr = buf;
    rte_mbuf_iova_set(m, (rte_iova_t)(uintptr_t)buf);
    m->buf_len = (uint16_t)(d->before + d->len + d->behind);
    m->ol_flags = RTE_MBUF_F_EXTERNAL;
    m->shinfo = &s->shinfo;
}

/* ---- lent frames ------------------------------------------------------------------- */

static void give_all(struct ff_in_ring *r, const struct ff_shm_desc *d, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        ff_borrow_give(&r->b, d[i].slot);
}

static void append(struct rte_mbuf *head, struct rte_mbuf *last, struct rte_mbuf *m) {
    if (head == m)
        return;
    last->next = m;
    head->nb_segs++;
    head->pkt_len += m->data_len;
}

/* Copies a frame out of memory that may not be kept; NULL without mbufs. */
static struct rte_mbuf *copy_out(struct ff_rxq *q, struct rte_mempool *mp, const uint8_t **data,
                                 const uint16_t *len, uint32_t n) {
    struct rte_mbuf *head = NULL, *m = NULL;

    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *from = data[i];
        uint16_t left = len[i];

        while (left > 0) {
            uint16_t part;

            if (m == NULL || rte_pktmbuf_tailroom(m) == 0) {
                struct rte_mbuf *more = rte_pktmbuf_alloc(mp);

                if (more == NULL || rte_pktmbuf_tailroom(more) == 0) {
                    rte_pktmbuf_free(more);
                    rte_pktmbuf_free(head);
                    return NULL;
                }
                more->port = q->port_id;
                if (head == NULL)
                    head = more;
                append(head, m, more);
                m = more;
            }
            part = RTE_MIN(left, rte_pktmbuf_tailroom(m));
            memcpy(rte_pktmbuf_mtod_offset(m, uint8_t *, m->data_len), from, part);
            m->data_len += part;
            head->pkt_len += part;
            from += part;
            left -= part;
        }
    }
    q->stats.copies++;
    return head;
}

static struct rte_mbuf *attach_all(struct ff_rxq *q, struct ff_in_ring *r,
                                   const struct ff_region **region, const struct ff_shm_desc *d,
                                   uint32_t n) {
    struct rte_mbuf *m[FF_SHM_CHAIN_MAX];

    if (rte_mempool_get_bulk(q->mp, (void **)m, n) != 0)
        return NULL;
    for (uint32_t i = 0; i < n; i++) {
        attach(r, m[i], q->port_id, region[i], &d[i]);
        append(m[0], i > 0 ? m[i - 1] : NULL, m[i]);
    }
    return m[0];
}

/*
 * Takes one frame of any shape from the n ready descriptors. Returns how many descriptors it
 * had, 0 when the ring is broken; *frame is NULL when the frame is dropped for want of mbufs.
 */
static uint32_t take_frame(struct ff_rxq *q, struct ff_in_ring *r, uint32_t n,
                           struct rte_mbuf **frame) {
    const struct ff_region *region[FF_SHM_CHAIN_MAX];
    const uint8_t *data[FF_SHM_CHAIN_MAX];
    struct ff_shm_desc d[FF_SHM_CHAIN_MAX];
    uint16_t len[FF_SHM_CHAIN_MAX];
    unsigned int fault = FF_RING_GOOD;
    uint32_t k = ff_borrow_frame(&r->b, 0, n, d, &fault);
    bool copy = false;

    *frame = NULL;
    for (uint32_t i = 0; i < k; i++) {
        region[i] = region_of(q, &d[i]);
        if (region[i] == NULL) {
            give_all(r, d, k);
            fault = FF_RING_ADDRESS;
            break;
        }
        data[i] = region[i]->base + d[i].offset;
        len[i] = d[i].len;
        copy |= region[i]->read_only;
    }
    if (fault != FF_RING_GOOD) {
        break_ring(q, r, fault);
        return 0;
    }
    ff_borrow_advance(&r->b, k);
    *frame = copy ? copy_out(q, q->mp, data, len, k) : attach_all(q, r, region, d, k);
    if (copy || *frame == NULL)
        give_all(r, d, k);
    if (*frame == NULL)
        q->stats.no_mbuf++;
    return k;
}

/* Copies n descriptors from i on, and fetches what taking and freeing them will write. */
static inline void copy_chunk(const struct ff_in_ring *r, uint32_t i, uint32_t n,
                              struct ff_shm_desc *d) {
    for (uint32_t k = 0; k < n; k++) {
        d[k] = ff_borrow_copy(&r->b, i + k);
        rte_prefetch0(&r->slot[d[k].slot & r->b.mask]);
    }
    ff_borrow_fetch_mark(&r->b, &d[0]);
    ff_borrow_fetch_mark(&r->b, &d[n - 1]);
}

/* Up to n frames in one buffer each, in mbufs that are in pkts; stops at any other frame, and puts
 * the mbufs that are left back. */
static uint16_t take_simple(struct ff_rxq *q, struct ff_in_ring *r, uint16_t n,
                            struct rte_mbuf **pkts, uint64_t *bytes) {
    struct ff_shm_desc copies[CHUNK];
    uint16_t got;

    for (got = 0; got < n; got++) {
        const struct ff_shm_desc *d = &copies[got % CHUNK];
        const struct ff_region *region;

        if (got % CHUNK == 0)
            copy_chunk(r, got, RTE_MIN(n - got, CHUNK), copies);
        if (unlikely(ff_borrow_check(&r->b, d) != FF_RING_GOOD ||
                     (d->flags & (FF_DESC_MORE | FF_DESC_MARKER))))
            break;
        region = region_of(q, d);
        if (unlikely(region == NULL || region->read_only))
            break;
        ff_borrow_take(&r->b, d);
        attach(r, pkts[got], q->port_id, region, d);
        *bytes += d->len;
    }
    if (unlikely(got < n))
        rte_mempool_put_bulk(q->mp, (void **)&pkts[got], n - got);
    if (got > 0)
        ff_borrow_advance(&r->b, got);
    return got;
}

/* Takes up to n frames, from at most `most` descriptors. */
uint16_t ff_rx_lent(struct ff_rxq *q, struct ff_in_ring *r, uint32_t most, struct rte_mbuf **pkts,
                    uint16_t n) {
    unsigned int fault = FF_RING_GOOD;
    uint32_t ready = ff_borrow_ready(&r->b, n, &fault);
    uint64_t bytes = 0;
    uint16_t got;

    if (unlikely(fault != FF_RING_GOOD))
        break_ring(q, r, fault);
    ready = RTE_MIN(ready, most);
    n = (uint16_t)RTE_MIN(ready, n);
    if (n == 0 || ff_rx_changed(q))
        return 0;
    ff_borrow_fetch(&r->b, n);
    if (unlikely(rte_mempool_get_bulk(q->mp, (void **)pkts, n) != 0)) {
        q->stats.no_mbuf++; /* the frames stay where they are */
        return 0;
    }
    got = take_simple(q, r, n, pkts, &bytes);
    ready -= got;
    while (unlikely(got < n && ready > 0)) {
        uint32_t k = take_frame(q, r, ready, &pkts[got]);

        if (k == 0)
            break;
        ready -= k;
        if (pkts[got] != NULL)
            bytes += pkts[got++]->pkt_len;
    }
    ff_borrow_fetch(&r->b, RTE_MIN(r->b.seen - r->b.pos, CHUNK)); /* of the next burst */
    __atomic_store_n(&r->taken, r->b.pos, __ATOMIC_RELEASE);
    q->stats.lent += got;
    q->stats.lent_bytes += bytes;
    return got;
}

/* ---- frames from the switch ----------------------------------------------------------- */

static void post_buffers(struct ff_rxq *q) {
    struct rte_mempool *mp = q->bounce ? q->dev->copies : q->mp;
    struct rte_mbuf *m[FF_LEND_BATCH];
    uint32_t n = RTE_MIN(ff_post_room(&q->post), FF_LEND_BATCH);

    if (rte_mempool_get_bulk(mp, (void **)m, n) != 0) {
        q->stats.no_mbuf++;
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        const struct ff_region *region = ff_memory_find(q->dev, m[i]);
        uint32_t room = m[i]->buf_len - RTE_PKTMBUF_HEADROOM;
        uint64_t offset;

        if (unlikely(region == NULL)) { /* this part of the pool is newer than the last start */
            rte_mempool_put_bulk(mp, (void **)&m[i], n - i);
            q->bounce = true;
            break;
        }
        offset = (uint64_t)((uint8_t *)m[i]->buf_addr + RTE_PKTMBUF_HEADROOM - region->base);
        q->posted[ff_post_put(&q->post, region->number, (uint32_t)offset, (uint16_t)room)] = m[i];
    }
    ff_post_publish(&q->post);
}

/* One frame from posted buffer i on, of those that are back; NULL when the ring is broken. */
static struct rte_mbuf *posted_frame(struct ff_rxq *q, uint32_t *i, uint32_t ready) {
    struct rte_mbuf *head = NULL, *last = NULL;

    while (*i < ready) {
        struct rte_mbuf *m = q->posted[(q->post.taken + *i) & q->post.mask];
        struct ff_shm_used u;

        if (unlikely(ff_post_read(&q->post, *i, &u) != FF_RING_GOOD))
            return NULL;
        fill_mbuf(m, q->port_id, RTE_PKTMBUF_HEADROOM, u.len);
        m->ol_flags = 0;
        ++*i;
        if (head == NULL)
            head = m;
        append(head, last, m);
        last = m;
        if (likely(!(u.flags & FF_DESC_MORE)))
            return head;
    }
    return NULL;
}

static struct rte_mbuf *bounce(struct ff_rxq *q, struct rte_mbuf *frame) {
    const uint8_t *data[FF_SHM_CHAIN_MAX];
    uint16_t len[FF_SHM_CHAIN_MAX];
    struct rte_mbuf *copy = NULL;
    uint32_t n = 0;

    for (struct rte_mbuf *m = frame; m != NULL && n < FF_SHM_CHAIN_MAX; m = m->next) {
        data[n] = rte_pktmbuf_mtod(m, const uint8_t *);
        len[n++] = m->data_len;
    }
    if (frame->nb_segs == n)
        copy = copy_out(q, q->mp, data, len, n);
    rte_pktmbuf_free(frame);
    if (copy == NULL)
        q->stats.no_mbuf++;
    return copy;
}

/* Takes up to n frames, from at most `most` buffers. */
uint16_t ff_rx_posted(struct ff_rxq *q, uint32_t most, struct rte_mbuf **pkts, uint16_t n) {
    unsigned int fault = FF_RING_GOOD;
    uint32_t ready = ff_post_ready(&q->post, n, &fault), i = 0, taken = 0;
    uint64_t bytes = 0;
    uint16_t got = 0;

    ready = RTE_MIN(ready, most);
    if (ready > 0 && ff_rx_changed(q))
        return 0;
    while (got < n && i < ready) {
        struct rte_mbuf *m = posted_frame(q, &i, ready);

        if (unlikely(m == NULL)) {
            fault = FF_RING_LENGTH;
            break;
        }
        taken = i;
        if (unlikely(q->bounce))
            m = bounce(q, m);
        if (m == NULL)
            continue;
        bytes += m->pkt_len;
        pkts[got++] = m;
    }
    ff_post_take(&q->post, taken);
    q->stats.switched += got;
    q->stats.switched_bytes += bytes;
    if (unlikely(fault != FF_RING_GOOD)) {
        q->stats.invalid++;
        __atomic_store_n(&q->fault, (uint8_t)fault, __ATOMIC_RELEASE);
        __atomic_store_n(&q->up, false, __ATOMIC_RELEASE);
        ff_control_wake(q->dev);
    } else if (ff_post_room(&q->post) >= FF_LEND_BATCH / 2) {
        post_buffers(q);
    }
    return got;
}

/* ---- the queue -------------------------------------------------------------------------- */

/* Posts the first buffers in a ring of the switch's. */
int ff_rx_open(struct ff_rxq *q, struct ff_shm_ring *shared, uint32_t size) {
    void *mem = malloc(FF_POSTER_MEM(size));
    uint32_t before;

    q->posted = mem == NULL ? NULL : calloc(size, sizeof(*q->posted));
    if (q->posted == NULL) {
        free(mem);
        return -ENOMEM;
    }
    ff_post_init(&q->post, shared, size, mem);
    q->fault = FF_RING_GOOD;
    q->bounce = rte_pktmbuf_data_room_size(q->mp) <= RTE_PKTMBUF_HEADROOM;
    do {
        before = ff_post_room(&q->post);
        post_buffers(q);
    } while (ff_post_room(&q->post) != before && ff_post_room(&q->post) > 0);
    return 0;
}

/* Takes the posted buffers back. No burst may run, and the switch has left the ring. */
void ff_rx_close(struct ff_rxq *q) {
    for (uint32_t i = q->post.taken; q->posted != NULL && i != q->post.tail; i++) {
        struct rte_mbuf *m = q->posted[i & q->post.mask];

        m->next = NULL;
        rte_mempool_put(m->pool, m);
    }
    free(q->posted);
    free(q->post.len);
    q->posted = NULL;
    q->post = (struct ff_poster){0};
}

/* There is time to look at what this thread, most likely, has sent on. */
static void idle(struct ff_rxq *q) {
    if (++q->empty % LOOK != 0)
        return;
    for (uint16_t i = q->id; i < q->dev->n_tx; i += q->dev->n_rx)
        if (__atomic_load_n(&q->dev->txq[i]->passing, __ATOMIC_RELAXED))
            ff_tx_collect(q->dev->txq[i]);
}

uint16_t ff_rx_burst(void *queue, struct rte_mbuf **pkts, uint16_t n) {
    struct ff_rxq *q = queue;
    uint16_t got = 0;

    ff_enter(&q->seq);
    if (likely(__atomic_load_n(&q->up, __ATOMIC_ACQUIRE))) {
        struct ff_rx_view *v = q->view;

        if (unlikely(ff_rx_changed(q)))
            v = ff_rx_reread(q);
        if (unlikely(q->ordered || ff_rx_opened(q, v))) {
            got = ff_rx_ordered(q, v, pkts, n);
        } else {
            uint32_t at = q->turn < v->n_rings ? q->turn : v->n_rings;

            q->turn = at == v->n_rings ? 0 : at + 1;
            for (uint32_t i = 0; i <= v->n_rings && got < n; i++) {
                if (at == v->n_rings)
                    got += ff_rx_posted(q, UINT32_MAX, &pkts[got], n - got);
                else if (v->ring[at]->phase == FF_RING_OPEN)
                    got += ff_rx_lent(q, v->ring[at], UINT32_MAX, &pkts[got], n - got);
                at = at == v->n_rings ? 0 : at + 1;
            }
        }
        if (got == 0)
            idle(q);
    }
    ff_leave(&q->seq);
    return got;
}
