/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packed virtqueues, virtio 1.1 section 2.7, from the device's side. Chains
 * are given back in the order in which they came, so a used descriptor stands
 * where its chain began. The flags of the first one are written last: until
 * then the driver, which looks in order, sees none of the others.
 */
#include <emmintrin.h>

#include <rte_atomic.h>
#include <rte_prefetch.h>

#include "vring.h"

#define AVAIL (1u << VRING_PACKED_DESC_F_AVAIL)
#define USED (1u << VRING_PACKED_DESC_F_USED)
#define WRAP_BIT 0x8000u /* of an event's off_wrap, section 2.7.14 */
#define HEADS_MAX 256u   /* chains for one frame */

static inline struct vring_packed_desc desc_read(const struct vring_packed_desc *table,
                                                 uint32_t i) {
    const volatile __m128i_u *at = (const volatile __m128i_u *)(const void *)&table[i];
    __m128i v = *at;
    struct vring_packed_desc d;

    memcpy(&d, &v, sizeof(d));
    return d;
}

/* A position in the ring. */
struct spot {
    uint16_t slot;
    bool wrap;
};

static inline void spot_move(struct spot *s, uint16_t n, uint16_t size) {
    s->slot = (uint16_t)(s->slot + n);
    if (s->slot >= size) {
        s->slot = (uint16_t)(s->slot - size);
        s->wrap = !s->wrap;
    }
}

/* Section 2.7.1: available when the driver's wrap counter is there and the device's is not. */
static inline bool is_available(const struct ff_vring *vq, struct spot at) {
    uint16_t flags = __atomic_load_n(&vq->packed_desc[at.slot].flags, __ATOMIC_ACQUIRE);

    return !!(flags & AVAIL) == at.wrap && !!(flags & USED) != at.wrap;
}

/* Section 2.7.10 */
static void notify(struct ff_vring *vq) {
    uint16_t old = vq->signalled, new = vq->last_used, flags, off_wrap, off;
    bool wanted;

    rte_smp_mb(); /* used flags are written before what the driver asks for is read */
    vq->signalled = new;
    flags = __atomic_load_n(&vq->driver_event->flags, __ATOMIC_RELAXED);
    wanted = flags != VRING_PACKED_EVENT_FLAG_DISABLE;
    if (vq->event_idx && flags == VRING_PACKED_EVENT_FLAG_DESC) {
        off_wrap = __atomic_load_n(&vq->driver_event->off_wrap, __ATOMIC_RELAXED);
        off = off_wrap & (uint16_t)~WRAP_BIT;
        if (new <= old)
            old = (uint16_t)(old - vq->size);
        if (vq->used_wrap != !!(off_wrap & WRAP_BIT))
            off = (uint16_t)(off - vq->size);
        wanted = vring_need_event(off, new, old);
    }
    if (unlikely(wanted))
        ff_vring_call(vq);
}

/* Writes the used descriptor of a chain of `count`; the first one's flags wait. */
static inline void used_put(struct ff_vring *vq, uint16_t id, uint32_t len, uint16_t count) {
    struct spot at = {vq->last_used, vq->used_wrap};
    struct vring_packed_desc *d = &vq->packed_desc[at.slot];
    uint16_t flags = at.wrap ? AVAIL | USED : 0;

    if (len > 0)
        flags |= VRING_DESC_F_WRITE;
    d->id = id;
    d->len = len;
    if (vq->taken++ == 0) {
        vq->held = at.slot;
        vq->held_flags = flags;
    } else {
        __atomic_store_n(&d->flags, flags, __ATOMIC_RELEASE);
    }
    spot_move(&at, count, vq->size);
    vq->last_used = at.slot;
    vq->used_wrap = at.wrap;
}

void ff_packed_rx_done(struct ff_vring *vq) {
    __atomic_store_n(&vq->packed_desc[vq->held].flags, vq->held_flags, __ATOMIC_RELEASE);
    notify(vq);
}

/* Section 2.7.7: an indirect table has no chains, its length says how many. */
static bool indirect_read(struct ff_vring *vq, const struct vring_packed_desc *d, bool write,
                          struct ff_chain *c) {
    const struct vring_packed_desc *table;
    uint32_t n = d->len / sizeof(*table);

    if (d->flags & VRING_DESC_F_NEXT || n == 0 || d->len % sizeof(*table) != 0 ||
        n > FF_CHAIN_MAX) {
        ff_vring_fault(vq, FF_FAULT_INDIRECT);
        return false;
    }
    table = (const struct vring_packed_desc *)(const void *)ff_mem_at(vq->mem, d->addr, d->len);
    if (table == NULL) {
        ff_vring_fault(vq, FF_FAULT_ADDRESS);
        return false;
    }
    for (uint32_t i = 0; i < n; i++) {
        struct vring_packed_desc e = desc_read(table, i);

        /* DPDK's driver marks every entry writable, those to be read too: harmless */
        bool writable = write && e.flags & VRING_DESC_F_WRITE;

        if (!ff_chain_add(vq, c, e.addr, e.len, writable, write))
            return false;
    }
    return true;
}

/* Adds the buffers of the chain at `at`; its id, and its number of slots. False after a fault. */
static bool chain_read(struct ff_vring *vq, struct spot at, bool write, struct ff_chain *c,
                       uint16_t *id, uint16_t *count) {
    for (*count = 1;; ++*count) {
        struct vring_packed_desc d = desc_read(vq->packed_desc, at.slot);

        *id = d.id;
        if (d.flags & VRING_DESC_F_INDIRECT)
            return indirect_read(vq, &d, write, c);
        if (!ff_chain_add(vq, c, d.addr, d.len, d.flags & VRING_DESC_F_WRITE, write))
            return false;
        if (!(d.flags & VRING_DESC_F_NEXT))
            return true;
        if (*count == vq->size) {
            ff_vring_fault(vq, FF_FAULT_CHAIN);
            return false;
        }
        spot_move(&at, 1, vq->size);
    }
}

static inline bool is_single(const struct vring_packed_desc *d, uint16_t flags, uint32_t min_len) {
    return (d->flags & (VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT | VRING_DESC_F_WRITE)) == flags &&
           d->len >= min_len;
}

static inline void taken_from(struct ff_vring *vq, struct spot at) {
    vq->last_avail = at.slot;
    vq->avail_wrap = at.wrap;
}

/* 0: taken, 1: no room left in the arena, -1: fault. */
static int rx_chain(struct ff_vring *vq, struct ff_arena *arena, struct spot at, struct ff_frame *f,
                    uint16_t *id, uint16_t *count) {
    struct ff_chain c;

    if (!ff_arena_takes_chain(arena))
        return 1;
    c.n = c.len = 0;
    if (!chain_read(vq, at, false, &c, id, count))
        return -1;
    if (!ff_frame_from_chain(vq, f, arena, &c)) {
        ff_vring_fault(vq, FF_FAULT_SHORT);
        return -1;
    }
    return 0;
}

unsigned int ff_packed_rx(struct ff_vring *vq, struct ff_arena *arena, struct ff_frame *frames,
                          unsigned int n) {
    struct spot at = {vq->last_avail, vq->avail_wrap}, ahead = at;
    struct vring_packed_desc desc[FF_BURST];
    uint8_t *buf[FF_BURST];
    unsigned int single = 0, i;

    /* chains of one descriptor first: their buffers are on the way while we look further */
    while (single < n && is_available(vq, ahead)) {
        struct vring_packed_desc *d = &desc[single];

        *d = desc_read(vq->packed_desc, ahead.slot);
        if (!is_single(d, 0, vq->hdr_len))
            break;
        buf[single] = ff_mem_at(vq->mem, d->addr, d->len);
        if (buf[single] == NULL) {
            ff_vring_fault(vq, FF_FAULT_ADDRESS);
            n = single;
            break;
        }
        ff_prefetch_read(vq, buf[single], d->len);
        single++;
        spot_move(&ahead, 1, vq->size);
    }
    for (i = 0; i < single; i++) {
        ff_frame_from_buffer(vq, &frames[i], arena, buf[i], desc[i].len);
        used_put(vq, desc[i].id, 0, 1);
    }
    at = ahead;
    for (; i < n && is_available(vq, at); i++) {
        uint16_t id, count;

        if (rx_chain(vq, arena, at, &frames[i], &id, &count) != 0)
            break;
        used_put(vq, id, 0, count);
        spot_move(&at, count, vq->size);
    }
    taken_from(vq, at);
    return i;
}

/* Receive buffers gathered for one frame. */
struct gather {
    unsigned int heads;
    bool short_of; /* the driver has offered too few */
    bool too_long; /* no chain of this driver can hold it */
    struct {
        uint32_t len;
        uint16_t id, count;
    } head[HEADS_MAX];
};

/* Written when all of them are known to be there, as with a split ring. */
static void tx_chains(struct ff_vring *vq, const struct ff_frame *f, struct spot *at,
                      struct gather *g) {
    uint32_t len = vq->hdr_len + f->len;
    struct spot from = *at;
    struct ff_reader r;
    struct ff_chain c;

    g->heads = 0;
    g->short_of = g->too_long = false;
    c.n = c.len = 0;
    do {
        uint32_t before = c.len;

        if (!is_available(vq, from)) {
            g->short_of = true;
            return;
        }
        if (!chain_read(vq, from, true, &c, &g->head[g->heads].id, &g->head[g->heads].count)) {
            g->too_long = ff_chain_overflow(vq, &c, g->heads);
            return;
        }
        if (c.len == before || c.seg[0].len < vq->hdr_len || c.len <= vq->hdr_len) {
            ff_vring_fault(vq, FF_FAULT_SHORT);
            return;
        }
        if (c.len < len && (!vq->mergeable || c.n == FF_CHAIN_MAX || g->heads + 1 == HEADS_MAX)) {
            g->too_long = true;
            return;
        }
        g->head[g->heads].len = RTE_MIN(c.len, len) - before;
        spot_move(&from, g->head[g->heads].count, vq->size);
        g->heads++;
    } while (c.len < len);
    ff_reader_start(&r, f);
    ff_chain_write(&c, vq->hdr_len, &r, f->len);
    ff_put_header(vq, (uint8_t *)(uintptr_t)c.seg[0].p, (uint16_t)g->heads, f);
    *at = from;
}

/* Frames that fit into chains of one descriptor; stops at the first that does not. */
static unsigned int tx_single(struct ff_vring *vq, const struct ff_frame *frames, unsigned int n,
                              struct spot *at, struct ff_sent *sent) {
    struct vring_packed_desc desc[FF_BURST];
    uint8_t *buf[FF_BURST];
    unsigned int single = 0;

    while (single < n && is_available(vq, *at)) {
        struct vring_packed_desc *d = &desc[single];

        *d = desc_read(vq->packed_desc, at->slot);
        if (!is_single(d, VRING_DESC_F_WRITE, vq->hdr_len + frames[single].len))
            break;
        buf[single] = ff_mem_at(vq->mem, d->addr, d->len);
        if (buf[single] == NULL)
            break;
        ff_prefetch_write(vq, buf[single]);
        single++;
        spot_move(at, 1, vq->size);
    }
    for (unsigned int i = 0; i < single; i++) {
        ff_put_header(vq, buf[i], 1, &frames[i]);
        ff_put_frame(buf[i] + vq->hdr_len, &frames[i]);
        used_put(vq, desc[i].id, vq->hdr_len + frames[i].len, 1);
        sent->packets++;
        sent->bytes += frames[i].len;
    }
    return single;
}

struct ff_sent ff_packed_tx(struct ff_vring *vq, const struct ff_frame *frames, unsigned int n,
                            uint32_t *too_long) {
    struct spot at = {vq->last_avail, vq->avail_wrap};
    struct ff_sent sent = {0};
    struct gather g;

    vq->taken = 0;
    for (unsigned int i = tx_single(vq, frames, n, &at, &sent); i < n; i++) {
        tx_chains(vq, &frames[i], &at, &g);
        if (g.too_long) {
            ++*too_long;
            continue;
        }
        if (g.short_of || vq->fault != FF_FAULT_NONE)
            break;
        for (unsigned int k = 0; k < g.heads; k++)
            used_put(vq, g.head[k].id, g.head[k].len, g.head[k].count);
        sent.packets++;
        sent.bytes += frames[i].len;
    }
    taken_from(vq, at);
    if (vq->taken > 0)
        ff_packed_rx_done(vq);
    vq->taken = 0;
    return sent;
}
