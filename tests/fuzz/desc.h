/* SPDX-License-Identifier: Apache-2.0 */
/* Descriptors of shared rings that a fuzzer makes, and memory whose ends the sanitizer knows. */
#ifndef FUZZ_DESC_H
#define FUZZ_DESC_H

#include <stdlib.h>

#include "ff_shm.h"
#include "input.h"

static inline void *exactly(size_t size) {
    void *p = aligned_alloc(64, size);

    CHECK(p != NULL);
    return p;
}

/* A good descriptor, some fields of which are the wild one's. */
static inline struct ff_shm_desc desc_mix(struct input *in, struct ff_shm_desc d,
                                          struct ff_shm_desc wild) {
    uint8_t which = take8(in);

    d.offset = which & 1 ? wild.offset : d.offset;
    d.region = which & 2 ? wild.region : d.region;
    d.len = which & 4 ? wild.len : d.len;
    d.before = which & 8 ? wild.before : d.before;
    d.behind = which & 16 ? wild.behind : d.behind;
    d.slot = which & 32 ? wild.slot : d.slot;
    d.lap = which & 64 ? wild.lap : d.lap;
    d.flags = which & 128 ? wild.flags : d.flags;
    return d;
}

#endif
