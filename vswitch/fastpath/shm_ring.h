/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rings of ff_shm.h, each side of them: inline, as it is the hot path of the
 * switch and of the net_ff driver, and without DPDK, so that it can be tested
 * alone. Here is what all sides use.
 *
 *   lend ring: ff_lender  --frames-->  ff_borrower  --marks-->  ff_lender
 *   post ring: ff_poster  --empty buffers-->  ff_filler  --frames-->  ff_poster
 *
 * Their producers and consumers are in shm_lend.h, shm_borrow.h and shm_post.h.
 *
 * Each struct there is private to its side, and belongs to one thread at a time,
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

/* Put together in registers: words read back from a struct whose fields were just written wait
 * until those stores are done. */
static inline void ff_desc_put(struct ff_shm_desc *shared, const struct ff_shm_desc *d) {
    ff_ring_word *to = (ff_ring_word *)(void *)shared;

    __atomic_store_n(&to[0], d->offset | (uint64_t)d->region << 32 | (uint64_t)d->len << 48,
                     __ATOMIC_RELAXED);
    __atomic_store_n(&to[1],
                     d->before | (uint64_t)d->behind << 16 | (uint64_t)d->slot << 32 |
                         (uint64_t)d->lap << 48 | (uint64_t)d->flags << 56,
                     __ATOMIC_RELAXED);
}
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "ff_desc_put");

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

#endif
