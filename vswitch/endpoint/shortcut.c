/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rings of shortcuts: mapped, and taken apart once nothing lent in them is out any more.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "net_ff.h"

static void *map_rings(const struct ff_shm_msg *msg, int fd, size_t *size, char *why) {
    uint64_t each = ff_ring_bytes(msg->ring_size);
    struct stat st;
    uint8_t *map;

    *size = each * msg->tx_queues;
    if (!ff_ring_size_ok(msg->ring_size) || msg->tx_queues == 0 || msg->tx_queues > FF_SHM_QUEUES ||
        msg->epoch == 0 || fd < 0 || fstat(fd, &st) != 0 || (uint64_t)st.st_size < *size) {
        snprintf(why, FF_SHM_TEXT, "no %u rings of %u in the file", msg->tx_queues, msg->ring_size);
        return NULL;
    }
    map = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        snprintf(why, FF_SHM_TEXT, "rings cannot be mapped: %s", strerror(errno));
        return NULL;
    }
    for (uint16_t q = 0; q < msg->tx_queues; q++) {
        if (!ff_ring_is((struct ff_shm_ring *)(void *)(map + q * each), msg->ring_size,
                        msg->epoch)) {
            snprintf(why, FF_SHM_TEXT, "the head of ring %u is another's", q);
            munmap(map, *size);
            return NULL;
        }
    }
    return map;
}

/* ---- as receiver ---------------------------------------------------------------- */

static int in_ring_init(struct ff_in_ring *r, struct ff_shm_ring *shared, uint32_t size) {
    void *mem = malloc(FF_BORROWER_MEM(size));

    r->slot = mem == NULL ? NULL : aligned_alloc(RTE_CACHE_LINE_SIZE, size * sizeof(*r->slot));
    if (r->slot == NULL) {
        free(mem);
        return -ENOMEM;
    }
    ff_borrow_init(&r->b, shared, size, mem);
    for (uint32_t i = 0; i < size; i++) {
        r->slot[i] = (struct ff_slot){.lender = &r->b, .slot = (uint16_t)i};
        r->slot[i].shinfo.free_cb = ff_slot_free;
        r->slot[i].shinfo.fcb_opaque = &r->slot[i];
    }
    return 0;
}

/* Maps what SHORTCUT names, or returns NULL and says why (FF_SHM_TEXT bytes). */
struct ff_in *ff_in_new(const struct ff_shm_msg *msg, int fd, char *why) {
    size_t size;
    uint8_t *map = map_rings(msg, fd, &size, why);
    struct ff_in *in;
    bool good;

    if (map == NULL)
        return NULL;
    in = calloc(1, sizeof(*in) + msg->tx_queues * sizeof(in->ring[0]));
    good = in != NULL;
    for (uint16_t q = 0; good && q < msg->tx_queues; q++) {
        struct ff_in_ring *r = &in->ring[q];

        r->in = in;
        r->number = (uint8_t)q;
        in->n_rings = q + 1;
        good =
            in_ring_init(r, (void *)(map + q * ff_ring_bytes(msg->ring_size)), msg->ring_size) == 0;
    }
    if (!good) {
        snprintf(why, FF_SHM_TEXT, "no memory");
        munmap(map, size);
        for (uint16_t q = 0; in != NULL && q < in->n_rings; q++) {
            free(in->ring[q].b.slot);
            free(in->ring[q].slot);
        }
        free(in);
        return NULL;
    }
    in->number = msg->number;
    in->epoch = msg->epoch;
    in->map = map;
    in->map_size = size;
    memcpy(in->neighbour, msg->text, sizeof(in->neighbour));
    return in;
}

/* Whether an mbuf lies over a buffer of it: of this region, or of any when region is NULL. */
bool ff_in_held(const struct ff_in *in, const struct ff_region *region) {
    for (uint16_t q = 0; q < in->n_rings; q++) {
        const struct ff_in_ring *r = &in->ring[q];

        for (uint32_t i = 0; i <= r->b.mask; i++) {
            if (ff_borrow_holds(&r->b, (uint16_t)i) &&
                (region == NULL || r->slot[i].region == region))
                return true;
        }
    }
    return false;
}

/* Gives back, unseen, what no queue takes any more. */
void ff_in_discard(struct ff_in *in) {
    for (uint16_t q = 0; q < in->n_rings; q++) {
        struct ff_in_ring *r = &in->ring[q];
        unsigned int fault = r->phase == FF_RING_BROKEN ? r->fault : FF_RING_GOOD;
        uint32_t n = fault ? 0 : ff_borrow_ready(&r->b, r->b.mask + 2, &fault);

        for (uint32_t i = 0; i < n && fault == FF_RING_GOOD; i++) {
            struct ff_shm_desc d;

            fault = ff_borrow_read(&r->b, 0, &d);
            if (fault == FF_RING_GOOD) {
                ff_borrow_take(&r->b, &d);
                ff_borrow_give(&r->b, d.slot);
                ff_borrow_advance(&r->b, 1);
            }
        }
        if (fault != FF_RING_GOOD)
            r->phase = FF_RING_BROKEN;
    }
}

/* Nothing of it may be held. */
void ff_in_free(struct ff_in *in) {
    munmap(in->map, in->map_size);
    for (uint16_t q = 0; q < in->n_rings; q++) {
        free(in->ring[q].b.slot);
        free(in->ring[q].slot);
    }
    free(in);
}

/* ---- as sender -------------------------------------------------------------------- */

/* The lend side of a ring in shared memory. */
int ff_out_ring_init(struct ff_out_ring *r, struct ff_shm_ring *shared, uint32_t size) {
    void *mem = malloc(FF_LENDER_MEM(size));

    r->mbuf = mem == NULL ? NULL : calloc(size, sizeof(*r->mbuf));
    if (r->mbuf == NULL) {
        free(mem);
        return -ENOMEM;
    }
    ff_lend_init(&r->l, shared, size, mem);
    return 0;
}

void ff_out_ring_free(struct ff_out_ring *r) {
    free(r->l.lent); /* FF_LENDER_MEM begins with it */
    free(r->mbuf);
}

static void free_slot(struct ff_out_ring *r, uint16_t slot) {
    if (r->mbuf[slot] != NULL) /* else a marker */
        rte_pktmbuf_free_seg(r->mbuf[slot]);
    r->mbuf[slot] = NULL;
}

/* Frees what has come back; returns how many are still lent. Not while a queue uses the ring. */
uint32_t ff_out_collect(struct ff_out_ring *r) {
    uint16_t slots[FF_LEND_BATCH];
    uint32_t n;

    for (uint32_t left = ff_lend_lent(&r->l); left > 0; left -= n) {
        uint32_t back;

        n = RTE_MIN(left, FF_LEND_BATCH);
        back = ff_lend_sweep(&r->l, n, slots);
        for (uint32_t i = 0; i < back; i++)
            free_slot(r, slots[i]);
    }
    return ff_lend_lent(&r->l);
}

/* Takes everything back: the receiver is gone. Not while a queue uses the ring. */
void ff_out_seize(struct ff_out_ring *r) {
    uint16_t slot;

    while (ff_lend_seize(&r->l, &slot))
        free_slot(r, slot);
}

/* Maps what SHORTCUT names, or returns NULL and says why (FF_SHM_TEXT bytes). */
struct ff_out *ff_out_new(const struct ff_shm_msg *msg, int fd, char *why) {
    size_t size;
    uint8_t *map = map_rings(msg, fd, &size, why);
    struct ff_out *out;
    bool good;

    if (map == NULL)
        return NULL;
    out = calloc(1, sizeof(*out) + msg->tx_queues * sizeof(out->ring[0]));
    good = out != NULL && (out->grant = calloc(1, FF_NUMBERS / 8)) != NULL;
    for (uint16_t q = 0; good && q < msg->tx_queues; q++) {
        out->ring[q].out = out;
        out->n_rings = q + 1;
        good = ff_out_ring_init(&out->ring[q], (void *)(map + q * ff_ring_bytes(msg->ring_size)),
                                msg->ring_size) == 0;
    }
    if (!good) {
        snprintf(why, FF_SHM_TEXT, "no memory");
        munmap(map, size);
        for (uint16_t q = 0; out != NULL && q < out->n_rings; q++)
            ff_out_ring_free(&out->ring[q]);
        if (out != NULL)
            free(out->grant);
        free(out);
        return NULL;
    }
    out->number = msg->number;
    out->epoch = msg->epoch;
    out->map = map;
    out->map_size = size;
    memcpy(out->neighbour, msg->text, sizeof(out->neighbour));
    return out;
}

/* What is still lent is freed all the same. */
void ff_out_free(struct ff_out *out) {
    for (uint16_t q = 0; q < out->n_rings; q++) {
        ff_out_seize(&out->ring[q]);
        ff_out_ring_free(&out->ring[q]);
    }
    munmap(out->map, out->map_size);
    free(out->grant);
    free(out);
}
