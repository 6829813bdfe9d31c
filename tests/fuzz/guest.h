/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest for the fuzzer of the virtqueue layer: its memory, and a driver that
 * keeps to the rules of one virtqueue until a hostile write makes it one whose
 * state says nothing any more. Written from the specification, not from the
 * code under test.
 */
#ifndef FUZZ_GUEST_H
#define FUZZ_GUEST_H

#include "input.h"
#include "vring.h"

#define RING_MAX 256u
#define CHAIN_SEGS_MAX 1024u
#define POOL_SEGS 4096u

#define AVAIL_BIT (1u << VRING_PACKED_DESC_F_AVAIL)
#define USED_BIT (1u << VRING_PACKED_DESC_F_USED)

/* Each part is a region of its own, and ends where memory ends. */
enum part { PART_DESC, PART_AVAIL, PART_USED, PART_TABLES, PART_DATA, PART_TOP, PARTS };

extern const uint64_t guest_gpa[PARTS]; /* where each begins, for the device */

struct chain {
    uint16_t id;    /* what the used entry has to say */
    uint16_t slots; /* ring descriptors */
    uint32_t first; /* of its buffers in guest.pool */
    uint32_t n;
    uint32_t len; /* bytes */
};

struct guest {
    bool writable; /* the driver's receive queue */
    uint8_t *at[PARTS];
    uint32_t size[PARTS];
    bool dirty; /* tables or data were written by someone else than the driver */
    struct ff_mem mem;
    struct ff_vring vq;

    /* the driver */
    bool honest;
    bool stopped;        /* after a fault, as vhost_vring.c does */
    uint16_t next, used; /* split: free running; packed: slots */
    bool next_wrap, used_wrap;
    uint16_t twist; /* split: how descriptors are numbered */
    uint16_t slots_out;
    uint32_t tables_used, data_used, pool_used;
    struct ff_seg pool[POOL_SEGS];
    struct chain chain[RING_MAX]; /* a queue, oldest first */
    unsigned int first_chain, n_chains;
};

/* Allocates the memory, once. */
void guest_init(struct guest *g, bool writable);
/* A fresh device: features, ring size and position from the input. */
void guest_reset(struct guest *g, struct input *in);
/* Split: the ring descriptor that the driver uses i-th. */
uint16_t guest_number(const struct guest *g, uint16_t i);
/* The driver adds a chain and makes it available, when there is room for one. */
void guest_post(struct guest *g, struct input *in);
/* The chain that the device has to take i-th. */
const struct chain *guest_chain(const struct guest *g, unsigned int i);
/* The oldest chain must be used next, with `len` bytes written; its slots are free again. */
void guest_take_used(struct guest *g, uint32_t len);
/* The same for the n oldest chains, given back together, which were only read. */
void guest_take_read(struct guest *g, unsigned int n);
/* Nothing else must be used. */
void guest_check_idle(const struct guest *g);
/* Copies `len` bytes of a chain, from byte `skip` on. */
void guest_read(const struct guest *g, const struct chain *c, uint32_t skip, uint8_t *to,
                uint32_t len);
/* Says when the driver wants to be notified. */
void guest_ask(struct guest *g, struct input *in);
/* Whether a device whose used position moved from (slot, wrap) to where it is now has to notify. */
bool guest_wants_call(const struct guest *g, uint16_t slot, bool wrap);
/* Breaks the rules: writes what no driver would (guest_harm.c). */
void guest_harm(struct guest *g, struct input *in);
/* Whether all of these bytes are the guest's own. */
bool guest_owns(const struct guest *g, const uint8_t *p, uint32_t len);

#endif
