/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Flow table: tuple space search. Each mask has a hash table of its own; a
 * bucket is one cache line with six signatures and six pointers. One writer
 * (the control thread); readers take no lock and are protected by RCU.
 */
#ifndef FF_FLOW_H
#define FF_FLOW_H

#include <stdatomic.h>
#include <stdbool.h>

#include <rte_common.h>

#include "ff.h"

#define FF_KEY_WORDS 8u
#define FF_MAX_FLOWS (2u << 20)

/* Actions as workers execute them: mirrors first, outputs counted. Immutable. */
struct ff_actions {
    uint32_t n;
    uint32_t n_outputs; /* outputs and mirrors */
    bool ends;          /* with a drop or an upcall, which want a frame of their own */
    int32_t only;       /* the port of the only action, when it is an output; else -1 */
    struct ff_action list[];
};

struct ff_subtable;

/*
 * A packet of a flow whose mask covers up to six words reads the first cache line of the
 * flow and writes one of the worker's counters, and that is all.
 */
struct ff_flow {
    _Atomic int32_t only; /* actions->only: what most flows do, without looking there */
    uint32_t index;       /* of the counters */
    struct ff_actions *_Atomic actions;
    uint64_t key[FF_KEY_WORDS]; /* the words of the key that the mask covers, masked, in order */
    uint32_t generation;
    uint32_t hash;
    struct ff_subtable *table;
    struct ff_flow *next_free;
} __rte_cache_aligned;

/* A worker's counters of one flow. */
struct ff_flow_count {
    uint64_t packets, bytes, last_s;
} __rte_aligned(32);

/* Checks and compiles an action list; NULL with -errno in *rc. Free with free(). */
struct ff_actions *ff_actions_compile(const struct ff_action *list, uint32_t n, int *rc);

int ff_flow_table_init(void);
void ff_flow_table_fini(void);

struct ff_worker;

/*
 * flows[i] for keys[i], NULL when missed; n <= FF_BURST. Counts in w->mask_hits where packets
 * are found, so that the masks that find most are tried first.
 */
void ff_flow_lookup_burst(struct ff_worker *w, const struct ff_key *keys, unsigned int n,
                          struct ff_flow **flows);

/*
 * `size` bytes of zeros at a border of 2 MB, in pages of 2 MB where the kernel gives them, else
 * NULL. Takes memory as it is written to. Free with munmap.
 */
void *ff_huge_map(size_t size);

#endif
