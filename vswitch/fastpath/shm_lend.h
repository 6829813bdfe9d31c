/* SPDX-License-Identifier: Apache-2.0 */
/* A lend ring's producer: see shm_ring.h. */
#ifndef FF_SHM_LEND_H
#define FF_SHM_LEND_H

#include "shm_ring.h"

#define FF_LEND_BATCH 64u /* slots that are reclaimed at a time: a cache line of marks */

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

/* Fetches the lines of the next n descriptors for writing, all at once; but not those that the
 * consumer may still read. */
static inline void ff_lend_fetch(const struct ff_lender *l, uint32_t n) {
    n = n < ff_lend_room(l) ? n : ff_lend_room(l);
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

#endif
