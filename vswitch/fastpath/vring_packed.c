/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packed virtqueues, virtio 1.1 section 2.7, from the device's side. Chains
 * are given back in the order in which they came, so a used descriptor stands
 * where its chain began. The flags of the first one are written last: until
 * then the driver, which looks in order, sees none of the others.
 */
#include <emmintrin.h>

#include "vring.h"

#define AVAIL (1u << VRING_PACKED_DESC_F_AVAIL)
#define USED (1u << VRING_PACKED_DESC_F_USED)
#define WRAP_BIT 0x8000u /* of an event's off_wrap, section 2.7.14 */
#define HEADS_MAX 256u   /* chains for one frame */
#define DESC_PER_LINE (RTE_CACHE_LINE_SIZE / sizeof(struct vring_packed_desc))

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
void ff_packed_notify(struct ff_vring *vq) {
    uint16_t old = vq->signalled, new = vq->last_used, flags, off_wrap, off;
    bool wanted;

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

/*
 * What a used descriptor says, as the eight bytes that it takes: len, id and flags. Its
 * address is nobody's any more (section 2.7.4).
 */
static inline uint64_t used_word(uint16_t id, uint32_t len, bool wrap) {
    uint64_t flags = wrap ? AVAIL | USED : 0;

    if (len > 0)
        flags |= VRING_DESC_F_WRITE;
    return len | (uint64_t)id << 32 | flags << 48;
}

static inline void used_store(struct ff_vring *vq, uint16_t slot, uint64_t used) {
    typedef uint64_t __attribute__((may_alias)) word;

    __atomic_store_n((word *)(void *)&vq->packed_desc[slot].len, used, __ATOMIC_RELEASE);
}

static inline void used_move(struct ff_vring *vq, uint16_t count) {
    struct spot at = {vq->last_used, vq->used_wrap};

    spot_move(&at, count, vq->size);
    vq->last_used = at.slot;
    vq->used_wrap = at.wrap;
}

/* Writes the used descriptor of a chain of `count`; the first one waits. */
static inline void used_put(struct ff_vring *vq, uint16_t id, uint32_t len, uint16_t count) {
    uint64_t used = used_word(id, len, vq->used_wrap);

    if (vq->taken++ == 0) {
        vq->held = vq->last_used;
        vq->held_used = used;
    } else {
        used_store(vq, vq->last_used, used);
    }
    used_move(vq, count);
}

/* A buffer that is the only one of its chain, and its descriptor's len, id and flags. */
struct buffer {
    uint8_t *p;
    uint64_t said;
};
#define LEN(said) ((uint32_t)(said))
#define ID(said) ((uint16_t)((said) >> 32))
#define ID_MASK (0xffffull << 32)

/*
 * The same for n single buffers that were read only. To a driver that uses its buffers in
 * order one used descriptor says enough, with the id of the last and where the first one
 * stood (section 2.7.8): the lines of the others do not go back and forth.
 */
static inline void read_put(struct ff_vring *vq, const struct buffer *b, unsigned int n) {
    if (likely(vq->in_order && n > 0)) {
        if (vq->taken == 0) {
            vq->held = vq->last_used;
            vq->held_used = used_word(0, 0, vq->used_wrap);
        }
        vq->taken = (uint16_t)(vq->taken + n);
        vq->held_used = (vq->held_used & ~ID_MASK) | (b[n - 1].said & ID_MASK);
        used_move(vq, (uint16_t)n);
        return;
    }
    for (unsigned int i = 0; i < n; i++)
        used_put(vq, ID(b[i].said), 0, 1);
}

/* The same for one chain more, of `count` descriptors. */
static void chain_put(struct ff_vring *vq, uint16_t id, uint16_t count) {
    if (!vq->in_order || vq->taken == 0) {
        used_put(vq, id, 0, count);
        return;
    }
    vq->taken++;
    vq->held_used = (vq->held_used & ~ID_MASK) | (uint64_t)id << 32;
    used_move(vq, count);
}

/* Used descriptors of n single buffers into which frames were written, in slots in a row. From the
 * last to the first, for which a driver that waits is looking, so that it meets each line once. */
static inline void run_put(struct ff_vring *vq, const struct buffer *b,
                           const struct ff_frame *frames, unsigned int n, struct spot at) {
    const uint64_t flags = used_word(0, 1, at.wrap) & 0xffffull << 48;
    const uint32_t hdr_len = vq->hdr_len;

    for (unsigned int i = n; i-- > 0;)
        used_store(vq, (uint16_t)(at.slot + i),
                   flags | (b[i].said & ID_MASK) | (hdr_len + frames[i].len));
}

/* The same, around the ring's end, and moves on. */
static inline void written_put(struct ff_vring *vq, const struct buffer *b,
                               const struct ff_frame *frames, unsigned int n) {
    unsigned int first = RTE_MIN(n, (unsigned int)vq->size - vq->last_used);

    if (unlikely(first < n))
        run_put(vq, b + first, frames + first, n - first, (struct spot){0, !vq->used_wrap});
    run_put(vq, b, frames, first, (struct spot){vq->last_used, vq->used_wrap});
    used_move(vq, (uint16_t)n);
}

static void held_release(struct ff_vring *vq) {
    used_store(vq, vq->held, vq->held_used);
}

void ff_packed_rx_done(struct ff_vring *vq) {
    held_release(vq);
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

static inline void taken_from(struct ff_vring *vq, struct spot at) {
    vq->last_avail = at.slot;
    vq->avail_wrap = at.wrap;
}

/*
 * Takes up to n single buffers from slots in a row, as long as they are available and hold a
 * virtio-net header. What a descriptor says beside its address is read at one moment, and before
 * that. *other: the next one was available, but no such buffer.
 */
static inline unsigned int run_take(const struct ff_vring *vq, struct ff_near *near,
                                    struct buffer *b, unsigned int n, struct spot at, bool write,
                                    bool *other) {
    typedef uint64_t __attribute__((may_alias)) word;
    const uint64_t turn = (uint64_t)(AVAIL | USED) << 48;
    const uint64_t kind = (uint64_t)(VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT | VRING_DESC_F_WRITE)
                          << 48;
    const uint64_t available = (uint64_t)(at.wrap ? AVAIL : USED) << 48;
    const uint64_t want = available | (uint64_t)(write ? VRING_DESC_F_WRITE : 0) << 48;
    const struct vring_packed_desc *d = &vq->packed_desc[at.slot];
    const struct ff_mem *mem = vq->mem;
    const uint32_t hdr_len = vq->hdr_len;
    const uint8_t offloads = vq->offloads;

    for (unsigned int i = 0; i < n; i++, d++) {
        uint64_t said = __atomic_load_n((const word *)(const void *)&d->len, __ATOMIC_ACQUIRE);

        b[i].p = NULL;
        if (likely((said & (turn | kind)) == want && LEN(said) >= hdr_len))
            b[i].p = ff_mem_near(mem, near, __atomic_load_n(&d->addr, __ATOMIC_RELAXED), LEN(said));
        if (unlikely(b[i].p ==
                     NULL)) { /* one out of memory is a fault, once it is read as a chain */
            *other = (said & turn) == available;
            return i;
        }
        b[i].said = said;
        if (write)
            ff_prefetch_write(b[i].p, hdr_len);
        else
            ff_prefetch_read(b[i].p, LEN(said), hdr_len, offloads);
    }
    *other = false;
    return n;
}

/* The same from `at` on, around the ring's end. */
static inline unsigned int buffers_take(const struct ff_vring *vq, struct spot at, struct buffer *b,
                                        unsigned int n, bool write, bool *other) {
    unsigned int first = RTE_MIN(n, (unsigned int)vq->size - at.slot);
    struct ff_near near = {0};
    unsigned int taken = run_take(vq, &near, b, first, at, write, other);

    if (taken < first || first == n)
        return taken;
    at = (struct spot){0, !at.wrap};
    return taken + run_take(vq, &near, b + first, n - first, at, write, other);
}

static inline struct spot spot_behind(const struct ff_vring *vq, unsigned int n) {
    struct spot at = {vq->last_avail, vq->avail_wrap};

    spot_move(&at, (uint16_t)n, vq->size);
    return at;
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

/* Frames from single buffers, up to n; returns how many. *other as in run_take. */
static unsigned int rx_single(struct ff_vring *vq, struct ff_arena *arena, struct spot *at,
                              struct ff_frame *frames, unsigned int n, bool *other) {
    struct buffer b[FF_BURST];
    unsigned int single = buffers_take(vq, *at, b, n, false, other);
    struct ff_taker taker = ff_taker(vq, arena);

    for (unsigned int i = 0; i < single; i++)
        ff_frame_from_buffer(&taker, &frames[i], b[i].p, LEN(b[i].said));
    ff_taken(arena, &taker, single);
    read_put(vq, b, single);
    spot_move(at, (uint16_t)single, vq->size);
    return single;
}

/* What becomes available meanwhile is for the next burst: looking for it again and again takes the
 * line away that the driver is writing. */
unsigned int ff_packed_rx(struct ff_vring *vq, struct ff_arena *arena, struct ff_frame *frames,
                          unsigned int n) {
    struct spot at = {vq->last_avail, vq->avail_wrap};
    bool other;
    unsigned int i = rx_single(vq, arena, &at, frames, n, &other);

    while (unlikely(other)) {
        uint16_t id, count;

        if (rx_chain(vq, arena, at, &frames[i], &id, &count) != 0)
            break;
        chain_put(vq, id, count);
        spot_move(&at, count, vq->size);
        i++;
        i += rx_single(vq, arena, &at, &frames[i], n - i, &other);
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
    ff_put_header((uint8_t *)(uintptr_t)c.seg[0].p, vq->hdr_len, (uint16_t)g->heads, f,
                  vq->offloads);
    *at = from;
}

/* Frames that fit into single buffers; stops at the first that does not, *other then says whether
 * there is another one. */
static unsigned int tx_single(struct ff_vring *vq, const struct ff_frame *frames, unsigned int n,
                              struct ff_sent *sent, bool *other) {
    const uint32_t hdr_len = vq->hdr_len;
    const uint8_t offloads = vq->offloads;
    struct buffer b[FF_BURST];
    unsigned int i, single;
    uint64_t bytes = 0;

    for (i = 0; i < n; i += DESC_PER_LINE)
        __builtin_prefetch(&vq->packed_desc[spot_behind(vq, i).slot], 1);
    single = buffers_take(vq, spot_behind(vq, 0), b, n, true, other);
    for (i = 0; i < single && LEN(b[i].said) >= hdr_len + frames[i].len; i++) {
        ff_put_header(b[i].p, hdr_len, 1, &frames[i], offloads);
        ff_put_frame(b[i].p + hdr_len, &frames[i]);
        bytes += frames[i].len;
    }
    written_put(vq, b, frames, i);
    sent->bytes += bytes;
    sent->packets += i;
    *other |= i < single;
    return i;
}

struct ff_sent ff_packed_tx(struct ff_vring *vq, const struct ff_frame *frames, unsigned int n,
                            uint32_t *too_long) {
    struct ff_sent sent = {0};
    bool other;
    unsigned int i = tx_single(vq, frames, n, &sent, &other);
    struct spot at = spot_behind(vq, i);
    struct gather g;

    vq->taken = 0;
    for (; unlikely(other) && i < n; i++) {
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
        held_release(vq);
    vq->taken = 0;
    return sent;
}
