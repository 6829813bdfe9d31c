/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The hash table of one mask. A bucket is one cache line: six 16-bit
 * signatures, the number of an overflow bucket, six flow pointers. Readers
 * load the view once and then see a consistent table: the writer fills a slot
 * before it publishes the signature, and grows by publishing a new view.
 */
#ifndef FF_SUBTABLE_H
#define FF_SUBTABLE_H

#include <emmintrin.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "flow.h"

#define FF_BUCKET_SLOTS 6u

struct ff_bucket {
    _Atomic uint16_t sig[FF_BUCKET_SLOTS]; /* 0: empty */
    _Atomic uint32_t overflow;             /* index of the next bucket, 0: none */
    struct ff_flow *flow[FF_BUCKET_SLOTS];
} __rte_cache_aligned;

struct ff_view {
    uint32_t mask;  /* number of main buckets - 1; a quarter more follow for overflow */
    uint32_t spare; /* next unused overflow bucket */
    uint32_t end;
    struct ff_bucket *bucket;
};

struct ff_subtable {
    uint64_t mask[FF_KEY_WORDS];
    uint8_t word[FF_KEY_WORDS]; /* the words whose mask is not 0 */
    unsigned int n_words;
    unsigned int slot; /* in mask_hits */
    uint32_t count;
    uint64_t hits, hits_before; /* control thread */
    struct ff_view *_Atomic view;
};

/* Keyed, so that nobody outside can aim at one bucket. Set before the first use. */
extern uint64_t ff_hash_secret[FF_KEY_WORDS + 1];

static inline uint64_t ff_hash_mix(uint64_t a, uint64_t b) {
    unsigned __int128 r = (unsigned __int128)a * b;

    return (uint64_t)r ^ (uint64_t)(r >> 64);
}

static inline uint32_t ff_subtable_hash(const struct ff_subtable *t, const uint64_t *key) {
    uint64_t h = ff_hash_secret[FF_KEY_WORDS];

    for (unsigned int i = 0; i < t->n_words; i++) {
        unsigned int w = t->word[i];

        h = ff_hash_mix(h ^ (key[w] & t->mask[w]), ff_hash_secret[i]);
    }
    return (uint32_t)h;
}

static inline uint16_t ff_bucket_sig(uint32_t hash) {
    uint16_t sig = (uint16_t)(hash >> 16);

    return sig ? sig : 1;
}

static inline bool ff_flow_matches(const struct ff_flow *f, const struct ff_subtable *t,
                                   const uint64_t *key) {
    uint64_t diff = 0;

    for (unsigned int i = 0; i < t->n_words; i++) {
        unsigned int w = t->word[i];

        diff |= f->key[i] ^ (key[w] & t->mask[w]);
    }
    return diff == 0;
}

/* Two bits for each slot whose signature matches. */
static inline uint32_t ff_bucket_match(const struct ff_bucket *b, uint16_t sig) {
    __m128i sigs = _mm_load_si128((const __m128i *)(const void *)b);
    __m128i eq = _mm_cmpeq_epi16(sigs, _mm_set1_epi16((short)sig));

    return (uint32_t)_mm_movemask_epi8(eq) & 0xfffu;
}

struct ff_subtable *ff_subtable_new(const uint64_t mask[FF_KEY_WORDS], unsigned int slot);
void ff_subtable_free(struct ff_subtable *t);
/* Hands the view to RCU and the table with it. */
void ff_subtable_retire(struct ff_subtable *t);
struct ff_flow *ff_subtable_find(const struct ff_subtable *t, uint32_t hash, const uint64_t *key);
int ff_subtable_insert(struct ff_subtable *t, struct ff_flow *flow);
void ff_subtable_remove(struct ff_subtable *t, const struct ff_flow *flow);

#endif
