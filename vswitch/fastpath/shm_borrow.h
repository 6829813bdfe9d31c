/* SPDX-License-Identifier: Apache-2.0 */
/* A lend ring's consumer: see shm_ring.h. */
#ifndef FF_SHM_BORROW_H
#define FF_SHM_BORROW_H

#include "shm_ring.h"

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

/* Copies descriptor i of those ready, */
static inline struct ff_shm_desc ff_borrow_copy(const struct ff_borrower *b, uint32_t i) {
    return ff_desc_copy(&b->desc[(b->pos + i) & b->mask]);
}

/* and checks the slot and lap of the copy, after those before it are taken: FF_RING_GOOD, or what
 * is wrong. */
static inline unsigned int ff_borrow_check(const struct ff_borrower *b,
                                           const struct ff_shm_desc *d) {
    const struct ff_borrowed *s;

    if (!FF_RING_LIKELY(d->slot <= b->mask))
        return FF_RING_SLOT;
    s = &b->slot[d->slot];
    if (!FF_RING_LIKELY(__atomic_load_n(&s->given, __ATOMIC_RELAXED) == s->taken &&
                        d->lap == (uint8_t)(s->taken + 1)))
        return FF_RING_LAP;
    return FF_RING_GOOD;
}

static inline unsigned int ff_borrow_read(const struct ff_borrower *b, uint32_t i,
                                          struct ff_shm_desc *d) {
    *d = ff_borrow_copy(b, i);
    return ff_borrow_check(b, d);
}

/* Fetches the line of a copied descriptor's mark for writing. */
static inline void ff_borrow_fetch_mark(const struct ff_borrower *b, const struct ff_shm_desc *d) {
    __builtin_prefetch(&b->mark[d->slot & b->mask], 1);
}

/* The slot of a descriptor that was checked is held from here on. */
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

#endif
