/* SPDX-License-Identifier: Apache-2.0 */
/* shm_ring.h for test_shm_ring.py: one side of a ring each, behind a pointer. */
#include <stdlib.h>

#include "shm_borrow.h"
#include "shm_lend.h"
#include "shm_post.h"

struct lender {
    struct ff_lender l;
    uint16_t mem[];
};
struct lender *lender_new(struct ff_shm_ring *ring, uint32_t size) {
    struct lender *l = malloc(sizeof(*l) + FF_LENDER_MEM(size));

    ff_lend_init(&l->l, ring, size, l->mem);
    return l;
}
uint32_t lender_room(struct lender *l) {
    return ff_lend_room(&l->l);
}
/* Lends a frame of n buffers: offsets from `offset` on; their slots to `slots`. */
void lender_put(struct lender *l, uint32_t offset, uint32_t n, uint16_t *slots) {
    for (uint32_t i = 0; i < n; i++)
        slots[i] = ff_lend_put(&l->l, (struct ff_shm_desc){.offset = offset + i,
                                                           .len = 1,
                                                           .flags = i + 1 < n ? FF_DESC_MORE : 0});
    ff_lend_publish(&l->l, 1, n);
}
uint32_t lender_reclaim(struct lender *l, uint16_t *slots) {
    return ff_lend_reclaim(&l->l, slots);
}

/* Takes everything back, the receiver being gone: the slots, and how many. */
uint32_t lender_seize(struct lender *l, uint16_t *slots) {
    uint32_t n = 0;

    while (ff_lend_seize(&l->l, &slots[n]))
        n++;
    return n;
}

struct borrower {
    struct ff_borrower b;
    uint8_t mem[];
};
struct borrower *borrower_new(struct ff_shm_ring *ring, uint32_t size) {
    struct borrower *b = malloc(sizeof(*b) + FF_BORROWER_MEM(size));

    ff_borrow_init(&b->b, ring, size, b->mem);
    return b;
}
/* Takes a frame: offsets and slots of its buffers; how many, 0: none, or -fault. */
int borrower_take(struct borrower *b, uint32_t *offsets, uint16_t *slots) {
    struct ff_shm_desc d[FF_SHM_CHAIN_MAX];
    unsigned int fault = FF_RING_GOOD;
    uint32_t n = ff_borrow_ready(&b->b, 1, &fault), k = 0;

    if (n > 0)
        k = ff_borrow_frame(&b->b, 0, n, d, &fault);
    if (fault != FF_RING_GOOD)
        return -(int)fault;
    for (uint32_t i = 0; i < k; i++) {
        offsets[i] = d[i].offset;
        slots[i] = d[i].slot;
    }
    ff_borrow_advance(&b->b, k);
    return (int)k;
}
void borrower_give(struct borrower *b, uint16_t slot) {
    ff_borrow_give(&b->b, slot);
}
/* How many of its slots are held. */
uint32_t borrower_holds(struct borrower *b) {
    uint32_t n = 0;

    for (uint32_t slot = 0; slot <= b->b.mask; slot++)
        n += ff_borrow_holds(&b->b, (uint16_t)slot);
    return n;
}
