/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Transmit. A frame is lent as it is, by the ring of the shortcut that its destination has or by
 * the one to the switch; only what others cannot see, or what somebody else here still
 * refers to, is copied first.
 */
#include <string.h>
#include <sys/eventfd.h>

#include <rte_prefetch.h>

#include "net_ff.h"

#define MAC_MASK 0xffffffffffffull
#define NO_MAC (~0ull)
#define LOOKS 4  /* for returned slots, when there is no room */
#define AHEAD 4  /* frames whose headers are fetched before they are looked at */
#define SWEEP 16 /* bursts between two looks at a ring that may not be sent to */

/* ---- routes: the table as this queue saw it last --------------------------------------- */

static uint32_t hash_of(uint64_t mac) {
    return (uint32_t)((mac * 0x9e3779b97f4a7c15ull) >> 54);
}
static_assert(FF_HASH == 1u << (64 - 54), "hash_of");

static void add_route(struct ff_txq *q, uint64_t mac, uint32_t max_len, struct ff_out_ring *ring) {
    uint32_t i = hash_of(mac);

    while (q->route[i].mac != NO_MAC && q->route[i].mac != mac)
        i = (i + 1) % FF_HASH;
    q->route[i] = (struct ff_route){.mac = mac, .max_len = max_len, .ring = ring};
}

static bool put_marker(struct ff_txq *q, const struct ff_out *out) {
    struct ff_shm_desc d = {.offset = out->epoch, .region = out->number, .flags = FF_DESC_MARKER};

    if (ff_lend_room(&q->ring.l) == 0)
        return false;
    q->ring.mbuf[ff_lend_put(&q->ring.l, d)] = NULL;
    ff_lend_publish(&q->ring.l, 0, 0);
    q->marked[out->number] = out->epoch;
    return true;
}

/* Reads the table again. An entry counts only once its marker is in the switch's ring. */
static void read_table(struct ff_txq *q) {
    const struct ff_shm_table *t = q->dev->table;

    q->version = __atomic_load_n(&q->dev->version, __ATOMIC_ACQUIRE);
    q->generation = __atomic_load_n(&t->generation, __ATOMIC_ACQUIRE);
    q->marking = false;
    q->n_routes = 0;
    for (uint32_t i = 0; i < FF_HASH; i++)
        q->route[i].mac = NO_MAC;
    for (uint32_t i = 0; i < FF_SHM_SHORTCUTS; i++) {
        uint32_t epoch = __atomic_load_n(&t->out[i].epoch, __ATOMIC_ACQUIRE);
        struct ff_shm_out entry = t->out[i];
        struct ff_out *out;
        uint64_t mac = 0;

        if (epoch == 0 || entry.number >= FF_SHM_SHORTCUTS)
            continue;
        out = __atomic_load_n(&q->dev->outs[entry.number], __ATOMIC_ACQUIRE);
        if (out == NULL || out->epoch != epoch || q->id >= out->n_rings)
            continue;
        if (q->marked[out->number] != epoch && !put_marker(q, out)) {
            q->marking = true;
            continue;
        }
        memcpy(&mac, entry.mac, sizeof(entry.mac));
        add_route(q, mac, entry.max_len, &out->ring[q->id]);
        if (q->n_routes < FF_SHM_SHORTCUTS)
            q->used[q->n_routes++] = &out->ring[q->id];
    }
}

/* ---- what comes back -------------------------------------------------------------------- */

/* An mbuf that was lent directly is as it came from its pool: nothing of it is to be reset. */
static void free_slots(struct ff_out_ring *r, const uint16_t *slots, uint32_t back) {
    struct rte_mbuf *bulk[FF_LEND_BATCH], *others[FF_LEND_BATCH];
    struct rte_mempool *pool = NULL;
    uint32_t n = 0, n_others = 0;

    for (uint32_t i = 0; i < back; i++) {
        struct rte_mbuf *m = r->mbuf[slots[i]];

        r->mbuf[slots[i]] = NULL;
        if (m == NULL) /* a marker */
            continue;
        if (unlikely(!RTE_MBUF_DIRECT(m))) {
            others[n_others++] = m;
            continue;
        }
        if (unlikely(m->pool != pool)) {
            if (n > 0)
                rte_mempool_put_bulk(pool, (void **)bulk, n);
            pool = m->pool;
            n = 0;
        }
        bulk[n++] = m;
    }
    if (n > 0)
        rte_mempool_put_bulk(pool, (void **)bulk, n);
    if (unlikely(n_others > 0)) {
        r->passing -= n_others;
        rte_pktmbuf_free_bulk(others, n_others);
    }
}

static void reclaim(struct ff_out_ring *r) {
    uint16_t slots[FF_LEND_BATCH];

    free_slots(r, slots, ff_lend_reclaim(&r->l, slots));
}

/*
 * The receiver writes a line of marks while it frees; each look at it meanwhile takes the line away
 * from there, and has to wait for it. So with room enough there is one look for each line sent.
 */
static inline void reclaim_some(struct ff_out_ring *r) {
    const struct ff_lender *l = &r->l;

    if (ff_lend_lent(l) < FF_LEND_BATCH)
        return;
    if (likely(ff_lend_room(l) >= 2 * FF_LEND_BATCH)) {
        if ((int32_t)(l->lent_tail - r->look_at) < 0)
            return;
        if (!ff_lend_is_back(l, l->lent_head + FF_LEND_BATCH - 1)) {
            r->look_at = l->lent_tail + FF_LEND_BATCH;
            return;
        }
        r->look_at = l->lent_tail;
    }
    reclaim(r);
}

/* What is held long comes first, some times: the next burst looks further. */
static bool room_for(struct ff_out_ring *r, uint32_t n) {
    for (unsigned int looks = 0; ff_lend_room(&r->l) < n; looks++) {
        if (looks == LOOKS)
            return false;
        reclaim(r);
    }
    return true;
}

/* ---- one frame -------------------------------------------------------------------------- */

/* The own region that the buffer lies in, or NULL. */
static inline const struct ff_region *own_region(struct ff_txq *q, const struct rte_mbuf *m) {
    uint64_t offset = (uint64_t)((uint8_t *)m->buf_addr - q->last->base);
    const struct ff_region *found;

    if (likely(offset < q->last->size && m->buf_len <= q->last->size - offset))
        return q->last;
    found = ff_memory_find(q->dev, m);
    if (found != NULL)
        q->last = found;
    return found;
}

/* The slot of a neighbour's buffer, or NULL when the mbuf is not over one. */
static const struct ff_slot *foreign_slot(const struct rte_mbuf *m) {
    if (!RTE_MBUF_HAS_EXTBUF(m) || m->shinfo->free_cb != ff_slot_free)
        return NULL;
    return m->shinfo->fcb_opaque;
}

/* Writes the descriptor of a segment that may be lent by r; false when it has to be copied. */
static inline bool describe(struct ff_txq *q, const struct ff_out_ring *r, const struct rte_mbuf *m,
                            struct ff_shm_desc *d) {
    const struct ff_region *region = own_region(q, m);
    const struct ff_slot *slot;
    uint8_t hops = 0;

    if (unlikely(rte_mbuf_refcnt_read(m) != 1 || m->data_len == 0))
        return false;
    if (unlikely(!RTE_MBUF_DIRECT(m))) {
        if (RTE_MBUF_CLONED(m) || rte_mbuf_ext_refcnt_read(m->shinfo) != 1)
            return false;
        slot = foreign_slot(m);
        if (slot != NULL) {
            hops = slot->hops + 1;
            if (hops > FF_SHM_HOPS)
                return false;
            if (region == NULL && r->out != NULL &&
                (__atomic_load_n(&r->out->grant[slot->region->number / 8], __ATOMIC_RELAXED) &
                 (1u << slot->region->number % 8)))
                region = slot->region;
        }
    }
    if (unlikely(region == NULL))
        return false;
    *d = (struct ff_shm_desc){
        .offset = (uint32_t)((uint8_t *)m->buf_addr + m->data_off - region->base),
        .region = region->number,
        .len = m->data_len,
        .before = m->data_off,
        .behind = (uint16_t)(m->buf_len - m->data_off - m->data_len),
        .flags = (uint8_t)(hops * FF_DESC_HOP),
    };
    return true;
}

/* A copy in buffers of the driver's own, or NULL when it has none left. */
static struct rte_mbuf *copy_frame(struct ff_txq *q, const struct rte_mbuf *m) {
    struct rte_mbuf *copy = rte_pktmbuf_copy(m, q->dev->copies, 0, UINT32_MAX);

    if (copy != NULL) {
        q->stats.copies++;
        q->stats.copied_bytes += m->pkt_len;
    }
    return copy;
}

static bool describe_all(struct ff_txq *q, const struct ff_out_ring *r, const struct rte_mbuf *m,
                         struct ff_shm_desc *d) {
    if (m->nb_segs > FF_SHM_CHAIN_MAX)
        return false;
    for (; m != NULL; m = m->next, d++) {
        if (!describe(q, r, m, d))
            return false;
        if (m->next != NULL)
            d->flags |= FF_DESC_MORE;
    }
    return true;
}

enum sent { SENT, FULL, DROPPED };

/* A frame of several segments, or one that may have to be copied. */
static enum sent send_any(struct ff_txq *q, struct ff_out_ring *r, struct rte_mbuf *m) {
    struct ff_shm_desc d[FF_SHM_CHAIN_MAX];
    struct rte_mbuf *copy = NULL, *next;
    uint32_t n = m->nb_segs;

    if (unlikely(m->pkt_len == 0 ||
                 m->pkt_len > FF_SHM_CHAIN_MAX * (uint32_t)RTE_MBUF_DEFAULT_DATAROOM))
        return DROPPED;
    if (!describe_all(q, r, m, d)) {
        n = m->pkt_len / RTE_MBUF_DEFAULT_DATAROOM + 1; /* or one less */
        copy = room_for(r, n) ? copy_frame(q, m) : NULL;
        if (copy == NULL)
            return FULL;
        if (unlikely(!describe_all(q, r, copy, d))) {
            rte_pktmbuf_free(copy);
            return DROPPED;
        }
        n = copy->nb_segs;
    } else if (!room_for(r, n)) {
        return FULL;
    }
    r->publish++;
    r->publish_bytes += m->pkt_len;
    if (copy != NULL) {
        rte_pktmbuf_free(m);
        m = copy;
    }
    for (uint32_t i = 0; i < n; i++, m = next) {
        next = m->next;
        m->next = NULL;
        m->nb_segs = 1;
        r->passing += !RTE_MBUF_DIRECT(m);
        r->mbuf[ff_lend_put(&r->l, d[i])] = m;
    }
    return SENT;
}

static inline enum sent send_frame(struct ff_txq *q, struct ff_out_ring *r, struct rte_mbuf *m) {
    struct ff_shm_desc d;

    if (unlikely(m->nb_segs != 1 || !describe(q, r, m, &d)))
        return send_any(q, r, m);
    if (unlikely(ff_lend_room(&r->l) == 0) && !room_for(r, 1))
        return FULL;
    r->passing += !RTE_MBUF_DIRECT(m);
    r->mbuf[ff_lend_put(&r->l, d)] = m;
    r->publish++;
    r->publish_bytes += m->data_len;
    return SENT;
}

/* ---- a burst ----------------------------------------------------------------------------- */

static void flush(struct ff_txq *q, struct ff_out_ring *r) {
    if (r->out != NULL) {
        q->stats.lent += r->publish;
        q->stats.lent_bytes += r->publish_bytes;
    } else {
        q->stats.switched += r->publish;
        q->stats.switched_bytes += r->publish_bytes;
    }
    ff_lend_publish(&r->l, r->publish, r->publish_bytes);
    q->passed |= r->passing > 0;
    ff_lend_fetch(&r->l, r->publish); /* for the next burst */
    r->publish = 0;
    r->publish_bytes = 0;
}

static inline struct ff_route find_route(struct ff_txq *q, uint64_t mac) {
    for (uint32_t i = hash_of(mac);; i = (i + 1) % FF_HASH) {
        if (q->route[i].mac == mac)
            return q->route[i];
        if (q->route[i].mac == NO_MAC)
            return (struct ff_route){.mac = mac, .max_len = 0, .ring = &q->ring};
    }
}

/* The ring for a frame; *run is the route of the one before. */
static inline struct ff_out_ring *ring_for(struct ff_txq *q, const struct rte_mbuf *m,
                                           struct ff_route *run) {
    const uint8_t *frame = rte_pktmbuf_mtod(m, const uint8_t *);
    uint8_t split[RTE_ETHER_HDR_LEN];
    uint16_t type;
    uint64_t mac;

    if (unlikely(m->data_len < RTE_ETHER_HDR_LEN)) {
        frame = rte_pktmbuf_read(m, 0, sizeof(split), split);
        if (frame == NULL)
            return &q->ring;
    }
    memcpy(&mac, frame, sizeof(mac));
    memcpy(&type, frame + 12, sizeof(type));
    mac &= MAC_MASK;
    if (unlikely(mac != run->mac))
        *run = find_route(q, mac);
    if (unlikely(m->pkt_len > run->max_len || type == RTE_BE16(RTE_ETHER_TYPE_VLAN) ||
                 type == RTE_BE16(RTE_ETHER_TYPE_QINQ)))
        return &q->ring;
    return run->ring;
}

static void kick(const struct ff_txq *q) {
    if (ff_lend_kick(&q->ring.l))
        eventfd_write(q->kick_fd, 1);
}

static uint16_t transmit(struct ff_txq *q, struct rte_mbuf **pkts, uint16_t n) {
    struct ff_route run = {.mac = NO_MAC};
    struct ff_out_ring *now = &q->ring;
    uint32_t before = q->ring.l.tail;
    uint16_t i;

    if (q->n_routes > 0 && (n == 0 || ++q->bursts % SWEEP == 0))
        reclaim(q->used[q->sweep++ % q->n_routes]);
    for (i = 0; i < n && i < AHEAD; i++)
        rte_prefetch0(rte_pktmbuf_mtod(pkts[i], void *));
    for (i = 0; i < n; i++) {
        struct ff_out_ring *r;
        enum sent sent;

        if (i + AHEAD < n)
            rte_prefetch0(rte_pktmbuf_mtod(pkts[i + AHEAD], void *));
        r = ring_for(q, pkts[i], &run);
        if (unlikely(r != now)) {
            if (now->publish > 0)
                flush(q, now);
            now = r;
            ff_lend_fetch(&r->l, n - i);
            reclaim_some(r);
        }
        sent = send_frame(q, r, pkts[i]);
        if (unlikely(sent == FULL)) {
            q->stats.full++;
            break;
        }
        if (unlikely(sent == DROPPED)) {
            q->stats.dropped++;
            rte_pktmbuf_free(pkts[i]);
        }
    }
    if (now->publish > 0)
        flush(q, now);
    if (q->ring.l.tail != before)
        kick(q);
    return i;
}

static void follow(struct ff_txq *q) {
    if (likely(__atomic_load_n(&q->dev->table->generation, __ATOMIC_ACQUIRE) == q->generation &&
               __atomic_load_n(&q->dev->version, __ATOMIC_ACQUIRE) == q->version && !q->marking))
        return;
    read_table(q);
    kick(q);
}

uint16_t ff_tx_burst(void *queue, struct rte_mbuf **pkts, uint16_t n) {
    struct ff_txq *q = queue;
    uint16_t sent = 0;

    ff_enter(&q->seq);
    if (likely(__atomic_load_n(&q->up, __ATOMIC_ACQUIRE))) {
        bool passing = __atomic_load_n(&q->passing, __ATOMIC_ACQUIRE);

        if (unlikely(passing))
            rte_spinlock_lock(&q->owner);
        q->passed = false;
        follow(q);
        reclaim_some(&q->ring);
        sent = transmit(q, pkts, n);
        if (unlikely(q->passed))
            __atomic_store_n(&q->passing, true, __ATOMIC_RELEASE);
        if (unlikely(passing))
            rte_spinlock_unlock(&q->owner);
    }
    ff_leave(&q->seq);
    return sent;
}

/* Gives others' buffers back that the queue still has; called in a burst of a receive queue. */
void ff_tx_collect(struct ff_txq *q) {
    bool passing = false;

    if (!rte_spinlock_trylock(&q->owner))
        return;
    if (__atomic_load_n(&q->passing, __ATOMIC_ACQUIRE)) {
        follow(q);
        for (uint32_t i = 0; i < q->n_routes; i++) {
            struct ff_out_ring *r = q->used[i];
            uint16_t slots[FF_LEND_BATCH];
            uint32_t n;

            for (uint32_t left = ff_lend_lent(&r->l); r->passing > 0 && left > 0; left -= n) {
                n = RTE_MIN(left, FF_LEND_BATCH);
                free_slots(r, slots, ff_lend_sweep(&r->l, n, slots));
            }
            passing |= r->passing > 0;
        }
        __atomic_store_n(&q->passing, passing, __ATOMIC_RELEASE);
    }
    rte_spinlock_unlock(&q->owner);
}
