/* SPDX-License-Identifier: Apache-2.0 */
/* The hash table of one mask: the writer's side, and the reader's slow walk. */
#include "subtable.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "switch.h"

#define FIRST_BUCKETS 64u
#define HUGE_SIZE (2u << 20)

uint64_t ff_hash_secret[FF_KEY_WORDS + 1];

static_assert(sizeof(struct ff_bucket) == 64, "a bucket is one cache line");

static struct ff_view *view_new(uint32_t buckets) {
    uint32_t all = buckets + buckets / 4;
    size_t size = (size_t)all * sizeof(struct ff_bucket);
    struct ff_view *v = malloc(sizeof(*v));
    void *mem = NULL;

    if (v == NULL || posix_memalign(&mem, size >= HUGE_SIZE ? HUGE_SIZE : 64, size) != 0) {
        free(v);
        return NULL;
    }
    if (size >= HUGE_SIZE) /* one TLB entry for 32 768 buckets; only advice */
        (void)madvise(mem, size, MADV_HUGEPAGE);
    memset(mem, 0, size);
    *v = (struct ff_view){.mask = buckets - 1, .spare = buckets, .end = all, .bucket = mem};
    return v;
}

static void slot_set(struct ff_bucket *b, unsigned int i, struct ff_flow *flow) {
    b->flow[i] = flow;
    atomic_store_explicit(&b->sig[i], ff_bucket_sig(flow->hash), memory_order_release);
}

/* Puts a flow where there is room; -ENOSPC when neither bucket nor overflow has any. */
static int view_insert(struct ff_view *v, struct ff_flow *flow) {
    struct ff_bucket *b = &v->bucket[flow->hash & v->mask];
    uint32_t next;

    for (;;) {
        for (unsigned int i = 0; i < FF_BUCKET_SLOTS; i++) {
            if (atomic_load_explicit(&b->sig[i], memory_order_relaxed) == 0) {
                slot_set(b, i, flow);
                return 0;
            }
        }
        next = atomic_load_explicit(&b->overflow, memory_order_relaxed);
        if (next == 0)
            break;
        b = &v->bucket[next];
    }
    if (v->spare == v->end)
        return -ENOSPC;
    slot_set(&v->bucket[v->spare], 0, flow);
    atomic_store_explicit(&b->overflow, v->spare++, memory_order_release);
    return 0;
}

/* A view with twice the buckets and the same flows. */
static struct ff_view *view_grown(const struct ff_view *old) {
    for (uint32_t n = (old->mask + 1) * 2;; n *= 2) {
        struct ff_view *v = view_new(n);
        int rc = 0;

        if (v == NULL)
            return NULL;
        for (uint32_t b = 0; b < old->spare && rc == 0; b++)
            for (unsigned int i = 0; i < FF_BUCKET_SLOTS && rc == 0; i++)
                if (atomic_load_explicit(&old->bucket[b].sig[i], memory_order_relaxed) != 0)
                    rc = view_insert(v, old->bucket[b].flow[i]);
        if (rc == 0)
            return v;
        free(v->bucket);
        free(v);
    }
}

struct ff_subtable *ff_subtable_new(const uint64_t mask[FF_KEY_WORDS], unsigned int slot) {
    struct ff_subtable *t = calloc(1, sizeof(*t));
    struct ff_view *v = view_new(FIRST_BUCKETS);

    if (t == NULL || v == NULL) {
        free(t);
        if (v != NULL)
            free(v->bucket);
        free(v);
        return NULL;
    }
    memcpy(t->mask, mask, sizeof(t->mask));
    for (unsigned int w = 0; w < FF_KEY_WORDS; w++)
        if (mask[w] != 0)
            t->word[t->n_words++] = (uint8_t)w;
    t->slot = slot;
    atomic_store(&t->view, v);
    return t;
}

void ff_subtable_free(struct ff_subtable *t) {
    struct ff_view *v = atomic_load(&t->view);

    free(v->bucket);
    free(v);
    free(t);
}

void ff_subtable_retire(struct ff_subtable *t) {
    struct ff_view *v = atomic_load(&t->view);

    ff_retire(v->bucket);
    ff_retire(v);
    ff_retire(t);
}

struct ff_flow *ff_subtable_find(const struct ff_subtable *t, uint32_t hash, const uint64_t *key) {
    const struct ff_view *v = atomic_load_explicit(&t->view, memory_order_acquire);
    const struct ff_bucket *b = &v->bucket[hash & v->mask];
    uint16_t sig = ff_bucket_sig(hash);

    for (;;) {
        uint32_t next;

        for (uint32_t m = ff_bucket_match(b, sig); m != 0; m &= m - 1, m &= m - 1) {
            struct ff_flow *f = b->flow[(unsigned int)__builtin_ctz(m) / 2];

            if (ff_flow_matches(f, t, key))
                return f;
        }
        next = atomic_load_explicit(&b->overflow, memory_order_acquire);
        if (next == 0)
            return NULL;
        b = &v->bucket[next];
    }
}

int ff_subtable_insert(struct ff_subtable *t, struct ff_flow *flow) {
    struct ff_view *v = atomic_load(&t->view), *grown;

    /* half full: an overflow is rare, and a miss costs one line */
    if (t->count < (v->mask + 1) * (FF_BUCKET_SLOTS / 2) && view_insert(v, flow) == 0) {
        t->count++;
        return 0;
    }
    grown = view_grown(v);
    if (grown == NULL)
        return -ENOMEM;
    atomic_store_explicit(&t->view, grown, memory_order_release);
    ff_retire(v->bucket);
    ff_retire(v);
    return ff_subtable_insert(t, flow);
}

void ff_subtable_remove(struct ff_subtable *t, const struct ff_flow *flow) {
    struct ff_view *v = atomic_load(&t->view);
    struct ff_bucket *b = &v->bucket[flow->hash & v->mask];

    for (;; b = &v->bucket[atomic_load_explicit(&b->overflow, memory_order_relaxed)]) {
        for (unsigned int i = 0; i < FF_BUCKET_SLOTS; i++) {
            if (b->flow[i] == flow && atomic_load_explicit(&b->sig[i], memory_order_relaxed)) {
                atomic_store_explicit(&b->sig[i], 0, memory_order_release);
                t->count--;
                return;
            }
        }
    }
}
