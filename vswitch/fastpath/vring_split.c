/* SPDX-License-Identifier: Apache-2.0 */
/* Split virtqueues, virtio 1.1 section 2.6, from the device's side. */
#include <emmintrin.h>

#include <rte_prefetch.h>

#include "vring.h"

/* A descriptor as it was at one moment: one 16-byte load, whatever the driver does next.
 * Rings are aligned (section 2.6), indirect tables need not be. */
static inline struct vring_desc desc_read(const struct vring_desc *table, uint32_t i) {
    const volatile __m128i_u *at = (const volatile __m128i_u *)(const void *)&table[i];
    __m128i v = *at;
    struct vring_desc d;

    memcpy(&d, &v, sizeof(d));
    return d;
}

static inline uint16_t load_index(const __virtio16 *p) {
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

/* How many chains the driver has made available, section 2.6.13. */
static inline unsigned int available(struct ff_vring *vq) {
    uint16_t n = (uint16_t)(load_index(&vq->avail->idx) - vq->last_avail);

    if (unlikely(n > vq->size)) {
        ff_vring_fault(vq, FF_FAULT_AVAIL_JUMP);
        return 0;
    }
    return n;
}

/* Section 2.6.7: an interrupt, unless the driver said that it wants none yet. */
void ff_split_notify(struct ff_vring *vq) {
    uint16_t old = vq->signalled;
    bool wanted;

    vq->signalled = vq->last_used;
    if (vq->event_idx)
        wanted = vring_need_event(load_index(&vq->avail->ring[vq->size]), vq->last_used, old);
    else
        wanted = !(load_index(&vq->avail->flags) & VRING_AVAIL_F_NO_INTERRUPT);
    if (unlikely(wanted))
        ff_vring_call(vq);
}

static inline void used_put(struct ff_vring *vq, uint16_t offset, uint16_t head, uint32_t len) {
    struct vring_used_elem *e =
        &vq->used->ring[(uint16_t)(vq->last_used + offset) & (vq->size - 1u)];

    e->id = head;
    e->len = len;
}

static inline void used_publish(struct ff_vring *vq, uint16_t n) {
    vq->last_used = (uint16_t)(vq->last_used + n);
    __atomic_store_n(&vq->used->idx, vq->last_used, __ATOMIC_RELEASE);
}

/* Adds the buffers of the chain at `i`, section 2.6.5; false after a fault. */
static bool chain_read(struct ff_vring *vq, uint16_t i, bool write, struct ff_chain *c) {
    const struct vring_desc *table = vq->desc;
    uint32_t size = vq->size, steps = 0;
    bool indirect = false; /* the table's address does not tell: it may be the ring's */

    for (;;) {
        struct vring_desc d;

        if (unlikely(i >= size)) {
            ff_vring_fault(vq, FF_FAULT_INDEX);
            return false;
        }
        if (unlikely(++steps > size)) {
            ff_vring_fault(vq, FF_FAULT_CHAIN);
            return false;
        }
        d = desc_read(table, i);
        if (d.flags & VRING_DESC_F_INDIRECT) {
            /* 2.6.5.3.1: neither nested nor continued, and not empty */
            if (indirect || d.flags & VRING_DESC_F_NEXT || d.len == 0 || d.len % sizeof(d) != 0 ||
                d.len / sizeof(d) > FF_CHAIN_MAX) {
                ff_vring_fault(vq, FF_FAULT_INDIRECT);
                return false;
            }
            table = (const struct vring_desc *)(const void *)ff_mem_at(vq->mem, d.addr, d.len);
            if (table == NULL) {
                ff_vring_fault(vq, FF_FAULT_ADDRESS);
                return false;
            }
            size = d.len / sizeof(d);
            indirect = true;
            steps = 0;
            i = 0;
            continue;
        }
        if (!ff_chain_add(vq, c, d.addr, d.len, d.flags & VRING_DESC_F_WRITE, write))
            return false;
        if (!(d.flags & VRING_DESC_F_NEXT))
            return true;
        i = d.next;
    }
}

/*
 * The one buffer of the chain at `head`, when it is a plain one that holds at
 * least min_len bytes; else NULL, and the chain has to be walked.
 */
static inline uint8_t *single_buffer(struct ff_vring *vq, struct ff_near *near, uint16_t head,
                                     uint16_t flags, uint32_t min_len, uint32_t *len) {
    struct vring_desc d = desc_read(vq->desc, head);

    *len = d.len;
    if (unlikely((d.flags & (VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT | VRING_DESC_F_WRITE)) !=
                     flags ||
                 d.len < min_len))
        return NULL;
    return ff_mem_near(vq->mem, near, d.addr, d.len);
}

static inline uint16_t avail_head(const struct ff_vring *vq, uint16_t offset) {
    return __atomic_load_n(&vq->avail->ring[(uint16_t)(vq->last_avail + offset) & (vq->size - 1u)],
                           __ATOMIC_RELAXED);
}

/* A frame whose chain is not one buffer; 0: taken, 1: no room left in the arena, -1: fault. */
static int rx_chain(struct ff_vring *vq, struct ff_arena *arena, uint16_t head,
                    struct ff_frame *f) {
    struct ff_chain c;

    if (!ff_arena_takes_chain(arena))
        return 1;
    c.n = c.len = 0;
    if (!chain_read(vq, head, false, &c))
        return -1;
    if (!ff_frame_from_chain(vq, f, arena, &c)) {
        ff_vring_fault(vq, FF_FAULT_SHORT);
        return -1;
    }
    return 0;
}

unsigned int ff_split_rx(struct ff_vring *vq, struct ff_arena *arena, struct ff_frame *frames,
                         unsigned int n) {
    const uint32_t hdr_len = vq->hdr_len;
    const uint8_t offloads = vq->offloads;
    unsigned int ready = available(vq), i;
    struct ff_near near = {0};
    uint16_t head[FF_BURST];
    uint8_t *buf[FF_BURST];
    uint32_t len[FF_BURST];

    n = RTE_MIN(n, ready);
    if (n == 0)
        return 0;
    for (i = 0; i < n; i++) {
        head[i] = avail_head(vq, (uint16_t)i);
        if (unlikely(head[i] >= vq->size)) {
            ff_vring_fault(vq, FF_FAULT_INDEX);
            n = i;
            break;
        }
        rte_prefetch0(&vq->desc[head[i]]);
    }
    for (i = 0; i < n; i++) {
        buf[i] = single_buffer(vq, &near, head[i], 0, hdr_len, &len[i]);
        ff_prefetch_read(buf[i], len[i], hdr_len, offloads);
    }
    for (i = 0; i < n; i++) {
        unsigned int run = i;
        struct ff_taker taker = ff_taker(vq, arena);

        for (; i < n && likely(buf[i] != NULL); i++) {
            ff_frame_from_buffer(&taker, &frames[i], buf[i], len[i]);
            used_put(vq, (uint16_t)i, head[i], 0);
        }
        ff_taken(arena, &taker, i - run);
        if (likely(i == n) || rx_chain(vq, arena, head[i], &frames[i]) != 0)
            break;
        used_put(vq, (uint16_t)i, head[i], 0);
    }
    vq->last_avail = (uint16_t)(vq->last_avail + i);
    vq->taken = (uint16_t)i;
    return i;
}

void ff_split_rx_done(struct ff_vring *vq) {
    used_publish(vq, vq->taken);
}

/* Receive buffers gathered for one frame. */
struct gather {
    uint16_t heads; /* taken, from *at on */
    bool short_of;  /* the driver has offered too few */
    bool too_long;  /* no chain of this driver can hold it */
};

/*
 * A frame that needs several buffers, or several chains (section 5.1.6.4). It
 * is written when all of them are known to be there: a driver that cannot keep
 * up with 64 KB frames must not cost the copies of those that it loses.
 */
static struct gather tx_chains(struct ff_vring *vq, const struct ff_frame *f, uint16_t at,
                               unsigned int ready) {
    uint32_t len = vq->hdr_len + f->len;
    struct gather g = {0};
    struct ff_reader r;
    struct ff_chain c;

    c.n = c.len = 0;
    do {
        uint32_t before = c.len;
        uint16_t head;

        if (at + g.heads == ready) {
            g.short_of = true;
            return g;
        }
        head = avail_head(vq, (uint16_t)(at + g.heads));
        if (!chain_read(vq, head, true, &c)) {
            g.too_long = ff_chain_overflow(vq, &c, g.heads);
            return g;
        }
        if (c.len == before || c.seg[0].len < vq->hdr_len || c.len <= vq->hdr_len) {
            ff_vring_fault(vq, FF_FAULT_SHORT);
            return g;
        }
        if (c.len < len && (!vq->mergeable || c.n == FF_CHAIN_MAX)) {
            g.too_long = true;
            return g;
        }
        used_put(vq, (uint16_t)(at + g.heads), head, RTE_MIN(c.len, len) - before);
        g.heads++;
    } while (c.len < len);
    ff_reader_start(&r, f);
    ff_chain_write(&c, vq->hdr_len, &r, f->len);
    ff_put_header((uint8_t *)(uintptr_t)c.seg[0].p, vq->hdr_len, g.heads, f, vq->offloads);
    return g;
}

struct ff_sent ff_split_tx(struct ff_vring *vq, const struct ff_frame *frames, unsigned int n,
                           uint32_t *too_long) {
    unsigned int ready = available(vq), plain = RTE_MIN(ready, n);
    const uint32_t hdr_len = vq->hdr_len;
    const uint8_t offloads = vq->offloads;
    struct ff_sent sent = {0};
    struct ff_near near = {0};
    uint16_t head[FF_BURST];
    uint8_t *buf[FF_BURST];
    uint32_t len;
    uint16_t at = 0; /* chains used */

    for (unsigned int i = 0; i < plain; i++) {
        head[i] = avail_head(vq, (uint16_t)i);
        if (unlikely(head[i] >= vq->size)) {
            ff_vring_fault(vq, FF_FAULT_INDEX);
            plain = ready = i;
            break;
        }
        rte_prefetch0(&vq->desc[head[i]]);
    }
    for (unsigned int i = 0; i < plain; i++) {
        buf[i] =
            single_buffer(vq, &near, head[i], VRING_DESC_F_WRITE, hdr_len + frames[i].len, &len);
        ff_prefetch_write(buf[i], hdr_len);
    }
    for (unsigned int i = 0; i < n; i++) {
        /* as long as each frame took one chain, buf[] is about the right one */
        if (likely(i < plain && at == i && buf[i] != NULL)) {
            ff_put_header(buf[i], hdr_len, 1, &frames[i], offloads);
            ff_put_frame(buf[i] + hdr_len, &frames[i]);
            used_put(vq, at++, head[i], hdr_len + frames[i].len);
        } else {
            struct gather g = tx_chains(vq, &frames[i], at, ready);

            if (g.too_long) {
                ++*too_long;
                continue;
            }
            if (g.short_of || vq->fault != FF_FAULT_NONE)
                break;
            at = (uint16_t)(at + g.heads);
        }
        sent.packets++;
        sent.bytes += frames[i].len;
    }
    if (at > 0) {
        vq->last_avail = (uint16_t)(vq->last_avail + at);
        used_publish(vq, at);
    }
    return sent;
}
