/* SPDX-License-Identifier: Apache-2.0 */
/* Both sides of a post ring: see shm_ring.h. */
#ifndef FF_SHM_POST_H
#define FF_SHM_POST_H

#include "shm_ring.h"

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
