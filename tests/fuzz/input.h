/* SPDX-License-Identifier: Apache-2.0 */
/* The fuzzer's bytes, taken one by one; zeros when there are no more. */
#ifndef FUZZ_INPUT_H
#define FUZZ_INPUT_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

struct input {
    const uint8_t *p, *end;
};

static inline uint8_t take8(struct input *in) {
    return in->p < in->end ? *in->p++ : 0;
}

static inline uint16_t take16(struct input *in) {
    uint16_t low = take8(in);

    return (uint16_t)(low | take8(in) << 8);
}

static inline uint32_t take32(struct input *in) {
    uint32_t low = take16(in);

    return low | (uint32_t)take16(in) << 16;
}

static inline uint64_t take64(struct input *in) {
    uint64_t low = take32(in);

    return low | (uint64_t)take32(in) << 32;
}

/* A broken invariant is a finding: it ends the process, as the sanitizers do. */
#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #condition);                \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#endif
