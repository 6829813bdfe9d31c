/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rings of ff_shm.h, each side of them: inline, as it is the hot path of the
 * switch and of the net_ff driver, and without DPDK, so that it can be tested
 * alone.
 *
 *   lend ring: ff_lender  --frames-->  ff_borrower  --marks-->  ff_lender
 *   post ring: ff_poster  --empty buffers-->  ff_filler  --frames-->  ff_poster
 *
 * Each struct here is private to its side, and belongs to one thread at a time,
 * but for ff_borrow_give. Its memory is the caller's, who also guarantees that the
 * ring lies in a mapping of ff_ring_bytes. A fault says that the other side
 * broke a rule: the ring is not to be used any more.
 */
#ifndef FF_SHM_RING_H
#define FF_SHM_RING_H

#include <stdbool.h>
#include <string.h>

#include "ff_shm.h"

#define FF_RING_LIKELY(x) __builtin_expect(!!(x), 1)
#define FF_RING_PER_LINE 4u
#define FF_LEND_BATCH 64u /* slots that are reclaimed at a time: a cache line of marks */

enum ff_ring_fault {
    FF_RING_GOOD = 0,
    FF_RING_JUMP,    /* the other's index says that there is more than the ring holds */
    FF_RING_SLOT,    /* a slot beyond the ring */
    FF_RING_LAP,     /* a slot that is still in use, or not in its turn */
    FF_RING_CHAIN,   /* a frame that does not end, or in too many buffers */
    FF_RING_ADDRESS, /* a buffer outside the regions */
    FF_RING_LENGTH,  /* more bytes than a buffer takes, or none */
    FF_RING_MARKER   /* a marker that its reader knows nothing of */
};

/* ---- what all of them use ------------------------------------------------ */

static inline uint64_t ff_ring_bytes(uint32_t size) {
    return FF_RING_HEAD + (uint64_t)size * FF_RING_ENTRY;
}

static inline bool ff_ring_size_ok(uint32_t size) {
    return size >= FF_SHM_RING_MIN && size <= FF_SHM_RING_MAX && (size & (size - 1)) == 0;
}

/* Fills in the head of a ring in zeroed memory. */
static inline void ff_ring_make(struct ff_shm_ring *ring, uint32_t size, uint32_t epoch) {
    ring->magic = FF_SHM_MAGIC;
    ring->version = FF_SHM_VERSION;
    ring->size = size;
    ring->epoch = epoch;
}

/* Whether the head is as announced. Later on only the announced size counts. */
static inline bool ff_ring_is(const struct ff_shm_ring *ring, uint32_t size, uint32_t epoch) {
    return ring->magic == FF_SHM_MAGIC && ring->version == FF_SHM_VERSION && ring->size == size &&
           ring->epoch == epoch && ff_ring_size_ok(size);
}

static inline struct ff_shm_desc *ff_ring_desc(struct ff_shm_ring *ring) {
    return (struct ff_shm_desc *)(void *)((uint8_t *)ring + FF_RING_HEAD);
}

/* Behind the descriptors: marks of a lend ring, used entries of a post ring. */
static inline void *ff_ring_behind(struct ff_shm_ring *ring, uint32_t size) {
    return (uint8_t *)ring + FF_RING_HEAD + (size_t)size * sizeof(struct ff_shm_desc);
}

typedef uint64_t __attribute__((may_alias)) ff_ring_word;

/* Each byte is read once; the halves may be of different times, and are good all the same. */
static inline struct ff_shm_desc ff_desc_copy(const struct ff_shm_desc *shared) {
    const ff_ring_word *from = (const ff_ring_word *)(const void *)shared;
    uint64_t w[2] = {__atomic_load_n(&from[0], __ATOMIC_RELAXED),
                     __atomic_load_n(&from[1], __ATOMIC_RELAXED)};
    struct ff_shm_desc d;

    memcpy(&d, w, sizeof(d));
    return d;
}

static inline void ff_desc_put(struct ff_shm_desc *shared, const struct ff_shm_desc *d) {
    ff_ring_word *to = (ff_ring_word *)(void *)shared;
    uint64_t w[2];

    memcpy(w, d, sizeof(w));
    __atomic_store_n(&to[0], w[0], __ATOMIC_RELAXED);
    __atomic_store_n(&to[1], w[1], __ATOMIC_RELAXED);
}

/* Regions first .. first + n - 1 as they are mapped here; size 0: not mapped. */
struct ff_shm_map {
    uint8_t *base;
    uint64_t size;
};
struct ff_shm_maps {
    const struct ff_shm_map *map;
    uint32_t n;
    uint16_t first;
};

/*
 * The data that a copied descriptor names; NULL when it, or what the descriptor
 * allows to be written in front of it and behind, is not mapped, or when it is empty.
 */
static inline uint8_t *ff_shm_at(const struct ff_shm_maps *maps, const struct ff_shm_desc *d) {
    uint32_t i = (uint16_t)(d->region - maps->first);

    if (FF_RING_LIKELY(i < maps->n && d->len > 0 && d->offset >= d->before &&
                       (uint64_t)d->offset + d->len + d->behind <= maps->map[i].size))
        return maps->map[i].base + d->offset;
    return NULL;
}

/*
 * How many entries lie between `pos` and the other side's index, which is only read when it is
 * known of fewer than `want`. More than `most` is a fault, and there are none then.
 */
static inline uint32_t ff_ring_ready(const uint32_t *shared, uint32_t *seen, uint32_t pos,
                                     uint32_t want, uint32_t most, unsigned int *fault) {
    uint32_t n = *seen - pos;

    if (n < want) {
        uint32_t now = __atomic_load_n(shared, __ATOMIC_ACQUIRE);

        n = now - pos;
        if (FF_RING_LIKELY(n <= most)) {
            *seen = now;
            return n;
        }
        *fault = FF_RING_JUMP;
        *seen = pos;
        return 0;
    }
    return n;
}

/* ---- lend ring, producer --------------------------------------------------- */

/*
 * Slots wait in two queues: the lent ones in the order of sending, the free ones
 * in the order of their return. `lap` and the queues have `size` entries each.
 */
struct ff_lender {
    struct ff_shm_ring *ring;
    struct ff_shm_desc *desc;
    const uint8_t *mark;
    uint32_t mask;
    uint32_t tail; /* of the next descriptor; ring->tail once it is published */
    uint32_t lent_head, lent_tail, free_head, free_tail;
    uint16_t *lent, *free;
    uint8_t *lap;   /* with which the slot was lent last */
    uint32_t probe; /* see ff_lend_reclaim */
    uint64_t packets, bytes;
};
#define FF_LENDER_MEM(size) ((size_t)(size)*5u) /* bytes, aligned as uint16_t */

/* Begins with an empty ring. mem: FF_LENDER_MEM(size) bytes that outlive l. */
static inline void ff_lend_init(struct ff_lender *l, struct ff_shm_ring *ring, uint32_t size,
                                void *mem) {
    memset(mem, 0, FF_LENDER_MEM(size));
    *l = (struct ff_lender){
        .ring = ring,
        .desc = ff_ring_desc(ring),
        .mark = (const uint8_t *)ff_ring_behind(ring, size),
        .mask = size - 1,
        .free_tail = size,
        .lent = (uint16_t *)mem,
        .free = (uint16_t *)mem + size,
        .lap = (uint8_t *)mem + 4 * (size_t)size,
    };
    for (uint32_t i = 0; i < size; i++)
        l->free[i] = (uint16_t)i;
}

/* How many descriptors can be put now, */
static inline uint32_t ff_lend_room(const struct ff_lender *l) {
    return l->free_tail - l->free_head;
}

/* and how many slots are lent. */
static inline uint32_t ff_lend_lent(const struct ff_lender *l) {
    return l->lent_tail - l->lent_head;
}

/* Fetches the lines of the next n descriptors for writing, all at once. */
static inline void ff_lend_fetch(const struct ff_lender *l, uint32_t n) {
    for (uint32_t i = 0; i < n; i += FF_RING_PER_LINE)
        __builtin_prefetch(&l->desc[(l->tail + i) & l->mask], 1);
}

/*
 * Lends a buffer, or puts a marker: *d without slot and lap. The caller knows that there is room,
 * for all of a frame. Returns the slot, by which ff_lend_reclaim will name the buffer.
 */
static inline uint16_t ff_lend_put(struct ff_lender *l, struct ff_shm_desc d) {
    d.slot = l->free[l->free_head++ & l->mask];
    d.lap = ++l->lap[d.slot];
    l->lent[l->lent_tail++ & l->mask] = d.slot;
    ff_desc_put(&l->desc[l->tail++ & l->mask], &d);
    return d.slot;
}

/* Shows the consumer what was put, which ends with a whole frame. */
static inline void ff_lend_publish(struct ff_lender *l, uint32_t packets, uint64_t bytes) {
    l->packets += packets;
    l->bytes += bytes;
    __atomic_store_n(&l->ring->packets, l->packets, __ATOMIC_RELAXED);
    __atomic_store_n(&l->ring->bytes, l->bytes, __ATOMIC_RELAXED);
    __atomic_store_n(&l->ring->tail, l->tail, __ATOMIC_RELEASE);
}

/* After ff_lend_publish: whether the consumer sleeps, and wants a write to its eventfd. */
static inline bool ff_lend_kick(const struct ff_lender *l) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* tail is visible before listen is read */
    return __atomic_load_n(&l->ring->listen, __ATOMIC_RELAXED) == 1;
}

/* Whether the slot at this place among the lent ones has come back. */
static inline bool ff_lend_is_back(const struct ff_lender *l, uint32_t place) {
    uint16_t slot = l->lent[place & l->mask];

    return __atomic_load_n(&l->mark[slot], __ATOMIC_ACQUIRE) == l->lap[slot];
}

/*
 * Looks at the n oldest lent slots, n at most FF_LEND_BATCH: takes back those that came back, which
 * are free then, and so is what the caller lent in them. The others go behind all that are lent.
 */
static inline uint32_t ff_lend_sweep(struct ff_lender *l, uint32_t n, uint16_t *slots) {
    uint32_t back = 0;

    for (uint32_t i = 0; i < n; i++) {
        bool is_back = ff_lend_is_back(l, l->lent_head);
        uint16_t slot = l->lent[l->lent_head++ & l->mask];

        if (FF_RING_LIKELY(is_back)) {
            l->free[l->free_tail++ & l->mask] = slot;
            slots[back++] = slot;
        } else {
            l->lent[l->lent_tail++ & l->mask] = slot;
        }
    }
    return back;
}

/*
 * Takes back up to FF_LEND_BATCH slots, from the oldest on, as ff_lend_sweep does. One that is held
 * long goes behind the others once a later one has come
 * back, so that it is in nobody's way, and not before: slots that stay in order have their marks in
 * one line. Best called when at least FF_LEND_BATCH are lent.
 */
static inline uint32_t ff_lend_reclaim(struct ff_lender *l, uint16_t *slots) {
    uint32_t lent = ff_lend_lent(l);
    uint32_t n = lent < FF_LEND_BATCH ? lent : FF_LEND_BATCH;

    /* what was sent last and is not back is not late */
    while (n > 0 && !ff_lend_is_back(l, l->lent_head + n - 1))
        n--;
    if (n == 0 && lent > FF_LEND_BATCH && ff_lend_room(l) < FF_LEND_BATCH) {
        uint32_t others = lent - FF_LEND_BATCH;

        /* one of the others each time, a line further than the last time */
        l->probe = l->probe + FF_LEND_BATCH < others ? l->probe + FF_LEND_BATCH : 0;
        if (ff_lend_is_back(l, l->lent_head + FF_LEND_BATCH + l->probe))
            n = FF_LEND_BATCH;
    }
    return ff_lend_sweep(l, n, slots);
}

/* The consumer is gone: takes back the oldest slot, whatever its mark. False: none is lent. */
static inline bool ff_lend_seize(struct ff_lender *l, uint16_t *slot) {
    if (ff_lend_lent(l) == 0)
        return false;
    *slot = l->lent[l->lent_head++ & l->mask];
    l->free[l->free_tail++ & l->mask] = *slot;
    return true;
}

/* ---- lend ring, consumer --------------------------------------------------- */

struct ff_borrowed {
    uint8_t taken; /* lap with which the slot was taken last, */
    uint8_t given; /* and given back; differs while the buffer is held */
};
struct ff_borrower {
    struct ff_shm_ring *ring;
    const struct ff_shm_desc *desc;
    uint8_t *mark;
    struct ff_borrowed *slot;
    uint32_t mask;
    uint32_t pos;  /* of the next descriptor */
    uint32_t seen; /* the producer's tail */
};
#define FF_BORROWER_MEM(size) ((size_t)(size) * sizeof(struct ff_borrowed)) /* bytes */

/* Begins with an empty ring. mem: FF_BORROWER_MEM(size) bytes that outlive b. */
static inline void ff_borrow_init(struct ff_borrower *b, struct ff_shm_ring *ring, uint32_t size,
                                  void *mem) {
    memset(mem, 0, FF_BORROWER_MEM(size));
    *b = (struct ff_borrower){
        .ring = ring,
        .desc = ff_ring_desc(ring),
        .mark = (uint8_t *)ff_ring_behind(ring, size),
        .slot = (struct ff_borrowed *)mem,
        .mask = size - 1,
    };
}

/* How many descriptors can be taken; may be less than there are, but not less than `want` then. */
static inline uint32_t ff_borrow_ready(struct ff_borrower *b, uint32_t want, unsigned int *fault) {
    return ff_ring_ready(&b->ring->tail, &b->seen, b->pos, want, b->mask + 1, fault);
}

/* Fetches the lines of the next n descriptors, all at once: each comes from the other core. */
static inline void ff_borrow_fetch(const struct ff_borrower *b, uint32_t n) {
    for (uint32_t i = 0; i < n; i += FF_RING_PER_LINE)
        __builtin_prefetch(&b->desc[(b->pos + i) & b->mask], 0);
}

/* Copies descriptor i of those ready, and checks its slot and lap: FF_RING_GOOD, or what is wrong.
 */
static inline unsigned int ff_borrow_read(const struct ff_borrower *b, uint32_t i,
                                          struct ff_shm_desc *d) {
    const struct ff_borrowed *s;

    *d = ff_desc_copy(&b->desc[(b->pos + i) & b->mask]);
    if (!FF_RING_LIKELY(d->slot <= b->mask))
        return FF_RING_SLOT;
    s = &b->slot[d->slot];
    if (!FF_RING_LIKELY(__atomic_load_n(&s->given, __ATOMIC_RELAXED) == s->taken &&
                        d->lap == (uint8_t)(s->taken + 1)))
        return FF_RING_LAP;
    return FF_RING_GOOD;
}

/* The slot of a descriptor that was read is held from here on; each is read after those before
 * it are taken. */
static inline void ff_borrow_take(struct ff_borrower *b, const struct ff_shm_desc *d) {
    b->slot[d->slot].taken = d->lap;
}

/* Gives a taken slot back: its buffer is the producer's again. Once each time; any thread. */
static inline void ff_borrow_give(const struct ff_borrower *b, uint16_t slot) {
    struct ff_borrowed *s = &b->slot[slot];

    /* before the mark: when the producer uses the slot again, the taker knows that it may */
    __atomic_store_n(&s->given, s->taken, __ATOMIC_RELAXED);
    __atomic_store_n(&b->mark[slot], s->taken, __ATOMIC_RELEASE);
}

/* Whether its buffer was taken and is not back; any thread. As long as one is, the ring stays. */
static inline bool ff_borrow_holds(const struct ff_borrower *b, uint16_t slot) {
    return __atomic_load_n(&b->slot[slot].given, __ATOMIC_ACQUIRE) != b->slot[slot].taken;
}

/*
 * Reads and takes all buffers of the frame at descriptor i of n ready, d[FF_SHM_CHAIN_MAX].
 * Returns how many they are, or 0 with the fault, and holds none of them then.
 */
static inline uint32_t ff_borrow_frame(struct ff_borrower *b, uint32_t i, uint32_t n,
                                       struct ff_shm_desc *d, unsigned int *fault) {
    uint32_t k;

    *fault = FF_RING_CHAIN;
    for (k = 0; k < FF_SHM_CHAIN_MAX && i + k < n; k++) {
        unsigned int found = ff_borrow_read(b, i + k, &d[k]);

        if (found != FF_RING_GOOD)
            *fault = found;
        if (found != FF_RING_GOOD || (d[k].flags & FF_DESC_MARKER))
            break;
        ff_borrow_take(b, &d[k]);
        if (!(d[k].flags & FF_DESC_MORE)) {
            *fault = FF_RING_GOOD;
            return k + 1;
        }
    }
    while (k > 0)
        ff_borrow_give(b, d[--k].slot);
    return 0;
}

/* Goes on behind the first n of those ready. */
static inline void ff_borrow_advance(struct ff_borrower *b, uint32_t n) {
    b->pos += n;
    __atomic_store_n(&b->ring->used_tail, b->pos, __ATOMIC_RELAXED);
}

/* Whether the producer shall write to the eventfd. A full barrier, then a look, must follow. */
static inline void ff_borrow_listen(struct ff_borrower *b, bool on) {
    __atomic_store_n(&b->ring->listen, on ? 1 : 0, __ATOMIC_RELAXED);
}

/* ---- post ring, producer --------------------------------------------------- */

struct ff_poster {
    struct ff_shm_ring *ring;
    struct ff_shm_desc *desc;
    const struct ff_shm_used *used;
    uint16_t *len; /* of each posted buffer */
    uint32_t mask;
    uint32_t tail;  /* of the next buffer to post */
    uint32_t taken; /* of the oldest that is not back; counts as open_at does */
    uint32_t seen;  /* the consumer's used_tail */
};
#define FF_POSTER_MEM(size) ((size_t)(size) * sizeof(uint16_t)) /* bytes */

/* Begins with an empty ring. mem: FF_POSTER_MEM(size) bytes that outlive p. */
static inline void ff_post_init(struct ff_poster *p, struct ff_shm_ring *ring, uint32_t size,
                                void *mem) {
    memset(mem, 0, FF_POSTER_MEM(size));
    *p = (struct ff_poster){
        .ring = ring,
        .desc = ff_ring_desc(ring),
        .used = (const struct ff_shm_used *)ff_ring_behind(ring, size),
        .len = (uint16_t *)mem,
        .mask = size - 1,
    };
}

/* How many buffers can be posted now. */
static inline uint32_t ff_post_room(const struct ff_poster *p) {
    return p->mask + 1 - (p->tail - p->taken);
}

/* Posts an empty buffer; returns its index. The caller knows that there is room. */
static inline uint32_t ff_post_put(struct ff_poster *p, uint16_t region, uint32_t offset,
                                   uint16_t len) {
    struct ff_shm_desc d = {.offset = offset, .region = region, .len = len};

    p->len[p->tail & p->mask] = len;
    ff_desc_put(&p->desc[p->tail & p->mask], &d);
    return p->tail++ & p->mask;
}

static inline void ff_post_publish(struct ff_poster *p) {
    __atomic_store_n(&p->ring->tail, p->tail, __ATOMIC_RELEASE);
}

/* How many buffers have come back; see ff_borrow_ready for `want`. */
static inline uint32_t ff_post_ready(struct ff_poster *p, uint32_t want, unsigned int *fault) {
    return ff_ring_ready(&p->ring->used_tail, &p->seen, p->taken, want, p->tail - p->taken, fault);
}

/* Copies what became of buffer i of those that came back. */
static inline unsigned int ff_post_read(const struct ff_poster *p, uint32_t i,
                                        struct ff_shm_used *u) {
    uint32_t at = (p->taken + i) & p->mask, w;

    w = __atomic_load_n((const uint32_t __attribute__((may_alias)) *)(const void *)&p->used[at],
                        __ATOMIC_RELAXED);
    memcpy(u, &w, sizeof(*u));
    return FF_RING_LIKELY(u->len > 0 && u->len <= p->len[at]) ? FF_RING_GOOD : FF_RING_LENGTH;
}

/* The first n buffers that came back are the caller's again. */
static inline void ff_post_take(struct ff_poster *p, uint32_t n) {
    p->taken += n;
}

/* ---- post ring, consumer --------------------------------------------------- */

struct ff_filler {
    struct ff_shm_ring *ring;
    const struct ff_shm_desc *desc;
    struct ff_shm_used *used;
    uint32_t mask;
    uint32_t pos;  /* of the next buffer to fill */
    uint32_t seen; /* the producer's tail */
};

/* Begins with an empty ring. */
static inline void ff_fill_init(struct ff_filler *f, struct ff_shm_ring *ring, uint32_t size) {
    *f = (struct ff_filler){
        .ring = ring,
        .desc = ff_ring_desc(ring),
        .used = (struct ff_shm_used *)ff_ring_behind(ring, size),
        .mask = size - 1,
    };
}

/* How many empty buffers there are; see ff_borrow_ready for `want`. */
static inline uint32_t ff_fill_ready(struct ff_filler *f, uint32_t want, unsigned int *fault) {
    return ff_ring_ready(&f->ring->tail, &f->seen, f->pos, want, f->mask + 1, fault);
}

/* Copies the descriptor of buffer i of those ready. */
static inline struct ff_shm_desc ff_fill_read(const struct ff_filler *f, uint32_t i) {
    return ff_desc_copy(&f->desc[(f->pos + i) & f->mask]);
}

/* Notes that buffer i has `len` bytes of a frame, which goes on in the next or does not. */
static inline void ff_fill_put(struct ff_filler *f, uint32_t i, uint16_t len, bool more) {
    struct ff_shm_used u = {.len = len, .flags = more ? FF_DESC_MORE : 0};
    uint32_t w;

    memcpy(&w, &u, sizeof(w));
    __atomic_store_n(
        (uint32_t __attribute__((may_alias)) *)(void *)&f->used[(f->pos + i) & f->mask], w,
        __ATOMIC_RELAXED);
}

/* Gives the first n buffers back, which end with a whole frame. */
static inline void ff_fill_publish(struct ff_filler *f, uint32_t n) {
    /* a worker reads where another is, to open a shortcut */
    __atomic_store_n(&f->pos, f->pos + n, __ATOMIC_RELEASE);
    __atomic_store_n(&f->ring->used_tail, f->pos, __ATOMIC_RELEASE);
}

#endif
