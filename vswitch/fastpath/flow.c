/* SPDX-License-Identifier: Apache-2.0 */
/* Flow table: the masks, the flows' storage and counters, and the burst lookup. */
#include "flow.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include <rte_branch_prediction.h>
#include <rte_prefetch.h>

#include "subtable.h"
#include "switch.h"

static_assert(sizeof(struct ff_key) == FF_KEY_WORDS * sizeof(uint64_t), "a key is one cache line");
static_assert(sizeof(struct ff_flow) == 128, "a flow is two cache lines");
static_assert(offsetof(struct ff_flow, key[6]) == RTE_CACHE_LINE_SIZE, "six words in the first");

/* The masks in the order in which they are tried. Immutable once published. */
struct mask_list {
    unsigned int n;
    struct ff_subtable *t[FF_MAX_MASKS];
};

static struct mask_list *_Atomic masks;
static struct ff_flow *table; /* [FF_MAX_FLOWS] */
static uint32_t n_table;      /* of them ever used */
static struct ff_flow *free_flows;
/* Deleted, still seen by workers until token; oldest first. */
static struct ff_flow *limbo, **limbo_tail = &limbo;
static uint64_t limbo_token;
static uint32_t slots_used; /* bitmap of mask_hits slots */

int ff_flow_table_init(void) {
    struct mask_list *m = calloc(1, sizeof(*m));

    if (m == NULL)
        return -ENOMEM;
    for (unsigned int i = 0; i <= FF_KEY_WORDS; i++) {
        if (getrandom(&ff_hash_secret[i], sizeof(ff_hash_secret[i]), 0) < 0)
            return -errno;
        ff_hash_secret[i] |= 1;
    }
    atomic_store(&masks, m);
    table = ff_huge_map(FF_MAX_FLOWS * sizeof(*table));
    if (table == NULL)
        return -ENOMEM;
    for (unsigned int w = 0; w < ff.n_workers; w++) {
        ff.workers[w]->flow_counts = ff_huge_map(FF_MAX_FLOWS * sizeof(struct ff_flow_count));
        if (ff.workers[w]->flow_counts == NULL)
            return -ENOMEM;
    }
    return 0;
}

void ff_flow_table_fini(void) {
    struct mask_list *m = atomic_exchange(&masks, NULL);

    for (unsigned int i = 0; m != NULL && i < m->n; i++)
        ff_subtable_free(m->t[i]);
    free(m);
    for (uint32_t i = 0; i < n_table; i++)
        free(atomic_load(&table[i].actions));
    if (table != NULL)
        (void)munmap(table, FF_MAX_FLOWS * sizeof(*table));
    for (unsigned int w = 0; w < ff.n_workers; w++)
        if (ff.workers[w]->flow_counts != NULL)
            (void)munmap(ff.workers[w]->flow_counts, FF_MAX_FLOWS * sizeof(struct ff_flow_count));
    table = NULL;
    n_table = 0;
    free_flows = limbo = NULL;
    limbo_tail = &limbo;
    slots_used = 0;
}

/* ---- storage ---- */

void *ff_huge_map(size_t size) {
    const size_t huge = 2u << 20, all = size + huge;
    uint8_t *p =
        mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    size_t before;

    if (p == MAP_FAILED)
        return NULL;
    before = -(uintptr_t)p % huge;
    if (before > 0)
        (void)munmap(p, before);
    (void)munmap(p + before + size, huge - before);
    (void)madvise(p + before, size, MADV_HUGEPAGE); /* only advice */
    return p + before;
}

/* Zeroes its counters; workers find the memory there and need not wait for it. */
static void counts_clear(const struct ff_flow *f) {
    for (unsigned int w = 0; w < ff.n_workers; w++)
        ff.workers[w]->flow_counts[f->index] = (struct ff_flow_count){0};
}

/* Workers have let go of the flows in limbo: take them back. */
static void limbo_empty(void) {
    if (limbo == NULL || !ff_grace_over(limbo_token))
        return;
    for (struct ff_flow *f = limbo; f != NULL; f = f->next_free) {
        free(atomic_exchange(&f->actions, NULL));
        counts_clear(f);
    }
    *limbo_tail = free_flows;
    free_flows = limbo;
    limbo = NULL;
    limbo_tail = &limbo;
}

/* NULL: the table is full. */
static struct ff_flow *flow_alloc(void) {
    struct ff_flow *f;

    if (free_flows == NULL)
        limbo_empty();
    f = free_flows;
    if (f != NULL) {
        free_flows = f->next_free;
        return f;
    }
    if (n_table == FF_MAX_FLOWS)
        return NULL;
    f = &table[n_table];
    f->index = n_table++;
    f->generation = 1;
    counts_clear(f);
    return f;
}

static struct ff_flow *flow_by_id(uint64_t id) {
    uint32_t index = (uint32_t)id;
    struct ff_flow *f;

    if (index >= n_table)
        return NULL;
    f = &table[index];
    return f->generation == id >> 32 && f->table != NULL ? f : NULL;
}

/* ---- masks ---- */

static int by_hits(const void *a, const void *b) {
    const struct ff_subtable *x = *(struct ff_subtable *const *)a;
    const struct ff_subtable *y = *(struct ff_subtable *const *)b;

    return (x->hits < y->hits) - (x->hits > y->hits);
}

/* Publishes the masks, without `gone` and with `more` (either may be NULL), best first. */
static int masks_publish(const struct ff_subtable *gone, struct ff_subtable *more) {
    struct mask_list *old = atomic_load(&masks), *m = calloc(1, sizeof(*m));

    if (m == NULL)
        return -ENOMEM;
    for (unsigned int i = 0; i < old->n; i++)
        if (old->t[i] != gone)
            m->t[m->n++] = old->t[i];
    if (more != NULL)
        m->t[m->n++] = more;
    qsort(m->t, m->n, sizeof(m->t[0]), by_hits);
    atomic_store_explicit(&masks, m, memory_order_release);
    ff_retire(old);
    return 0;
}

/* Sorts the masks by the hits since the last call. */
static void masks_sort(void) {
    struct mask_list *m = atomic_load(&masks);
    bool sorted = true;

    for (unsigned int i = 0; i < m->n; i++) {
        uint64_t all = 0;

        for (unsigned int w = 0; w < ff.n_workers; w++)
            all += ff.workers[w]->mask_hits[m->t[i]->slot];
        m->t[i]->hits = all - m->t[i]->hits_before;
        m->t[i]->hits_before = all;
        if (i > 0 && m->t[i]->hits > m->t[i - 1]->hits)
            sorted = false;
    }
    if (!sorted)
        (void)masks_publish(NULL, NULL);
}

static struct ff_subtable *mask_get(const uint64_t mask[FF_KEY_WORDS], int *rc) {
    struct mask_list *m = atomic_load(&masks);
    struct ff_subtable *t;
    unsigned int slot;

    for (unsigned int i = 0; i < m->n; i++)
        if (memcmp(m->t[i]->mask, mask, sizeof(m->t[i]->mask)) == 0)
            return m->t[i];
    if (m->n == FF_MAX_MASKS) {
        *rc = -ENOSPC;
        return NULL;
    }
    slot = (unsigned int)__builtin_ctz(~slots_used);
    t = ff_subtable_new(mask, slot);
    *rc = -ENOMEM;
    if (t == NULL)
        return NULL;
    for (unsigned int w = 0; w < ff.n_workers; w++)
        t->hits_before += ff.workers[w]->mask_hits[slot];
    if (masks_publish(NULL, t) != 0) {
        ff_subtable_free(t);
        return NULL;
    }
    slots_used |= 1u << slot;
    return t;
}

static void mask_put(struct ff_subtable *t) {
    if (t->count != 0 || masks_publish(t, NULL) != 0)
        return; /* without memory for a new list the empty table stays: harmless */
    slots_used &= ~(1u << t->slot);
    ff_subtable_retire(t);
}

/* ---- the control thread's calls ---- */

static int flow_add(const struct ff_flow_spec *spec, uint64_t *id) {
    uint64_t key[FF_KEY_WORDS], mask[FF_KEY_WORDS];
    struct ff_actions *actions;
    struct ff_subtable *t;
    struct ff_flow *f;
    uint32_t hash;
    int rc;

    memcpy(key, &spec->key, sizeof(key));
    memcpy(mask, &spec->mask, sizeof(mask));
    for (unsigned int w = 0; w < FF_KEY_WORDS; w++)
        key[w] &= mask[w];
    actions = ff_actions_compile(spec->actions, spec->n_actions, &rc);
    if (actions == NULL)
        return rc;
    t = mask_get(mask, &rc);
    if (t == NULL) {
        free(actions);
        return rc;
    }
    hash = ff_subtable_hash(t, key);
    f = ff_subtable_find(t, hash, key);
    if (f != NULL) { /* between the two a worker does the old or the new, whichever it looks at */
        atomic_store_explicit(&f->only, actions->only, memory_order_relaxed);
        ff_retire(atomic_exchange_explicit(&f->actions, actions, memory_order_acq_rel));
        *id = ff_flow_id(f);
        return 0;
    }
    f = flow_alloc();
    rc = -ENOSPC;
    if (f != NULL) {
        for (unsigned int i = 0; i < t->n_words; i++)
            f->key[i] = key[t->word[i]];
        f->hash = hash;
        f->table = t;
        atomic_store_explicit(&f->only, actions->only, memory_order_relaxed);
        atomic_store_explicit(&f->actions, actions, memory_order_relaxed);
        rc = ff_subtable_insert(t, f);
        if (rc == 0) {
            *id = ff_flow_id(f);
            return 0;
        }
        atomic_store(&f->actions, NULL);
        f->table = NULL;
        f->next_free = free_flows;
        free_flows = f;
    }
    free(actions);
    mask_put(t);
    return rc;
}

int ff_flow_add_many(const struct ff_flow_spec *specs, int n, uint64_t *ids, char *err) {
    int i, rc;

    ff_reclaim();
    for (i = 0; i < n; i++) {
        rc = flow_add(&specs[i], &ids[i]);
        if (rc == 0)
            continue;
        snprintf(err, FF_ERR_LEN, "cannot add flow %d of %d: %s", i + 1, n,
                 rc == -ENOSPC ? "the table is full" : strerror(-rc));
        break;
    }
    return i;
}

int ff_flow_del_many(const uint64_t *ids, int n) {
    int deleted = 0;

    limbo_empty();
    for (int i = 0; i < n; i++) {
        struct ff_flow *f = flow_by_id(ids[i]);
        struct ff_subtable *t;

        if (f == NULL)
            continue;
        t = f->table;
        ff_subtable_remove(t, f);
        f->table = NULL;
        f->generation++; /* its id is no longer known; a worker may still hold it */
        f->next_free = NULL;
        *limbo_tail = f;
        limbo_tail = &f->next_free;
        mask_put(t);
        deleted++;
    }
    if (deleted)
        limbo_token = ff_grace_start();
    ff_reclaim();
    return deleted;
}

int ff_flow_stats_many(const uint64_t *ids, int n, struct ff_flow_stats *stats) {
    int known = 0;

    for (int i = 0; i < n; i++) {
        const struct ff_flow *f = flow_by_id(ids[i]);

        stats[i] = (struct ff_flow_stats){0};
        if (f == NULL)
            continue;
        known++;
        for (unsigned int w = 0; w < ff.n_workers; w++) {
            const volatile struct ff_flow_count *c = &ff.workers[w]->flow_counts[f->index];

            stats[i].packets += c->packets;
            stats[i].bytes += c->bytes;
            stats[i].last_used_s = RTE_MAX(stats[i].last_used_s, c->last_s);
        }
    }
    masks_sort();
    ff_reclaim();
    return known;
}

uint64_t ff_flow_lookup(const struct ff_key *key) {
    const struct mask_list *m = atomic_load(&masks);
    uint64_t words[FF_KEY_WORDS];

    memcpy(words, key, sizeof(words));
    for (unsigned int i = 0; i < m->n; i++) {
        const struct ff_flow *f =
            ff_subtable_find(m->t[i], ff_subtable_hash(m->t[i], words), words);

        if (f != NULL)
            return ff_flow_id(f);
    }
    return 0;
}

/* ---- the workers' lookup ---- */

/*
 * One mask over the keys named in todo[]: hash all, then look at all buckets,
 * then at all flows, so that the cache misses of a burst overlap; the counters are
 * on their way afterwards. Keeps in todo[] what was not found and returns how many
 * these are.
 */
static unsigned int subtable_burst(const struct ff_worker *w, const struct ff_subtable *t,
                                   const struct ff_key *keys, uint8_t *todo, unsigned int n,
                                   struct ff_flow **flows) {
    const struct ff_view *v = atomic_load_explicit(&t->view, memory_order_acquire);
    uint32_t hash[FF_BURST];
    unsigned int left = 0;

    for (unsigned int i = 0; i < n; i++) {
        hash[i] = ff_subtable_hash(t, (const uint64_t *)(const void *)&keys[todo[i]]);
        rte_prefetch0(&v->bucket[hash[i] & v->mask]);
    }
    for (unsigned int i = 0; i < n; i++) {
        const struct ff_bucket *b = &v->bucket[hash[i] & v->mask];
        uint32_t m = ff_bucket_match(b, ff_bucket_sig(hash[i]));

        flows[todo[i]] = m ? b->flow[(unsigned int)__builtin_ctz(m) / 2] : NULL;
        rte_prefetch0(flows[todo[i]]);
    }
    for (unsigned int i = 0; i < n; i++) {
        const uint64_t *key = (const uint64_t *)(const void *)&keys[todo[i]];
        struct ff_flow *f = flows[todo[i]];

        if (unlikely(f == NULL || !ff_flow_matches(f, t, key))) {
            f = ff_subtable_find(t, hash[i], key);
            flows[todo[i]] = f;
            if (f == NULL) {
                todo[left++] = todo[i];
                continue;
            }
        }
        __builtin_prefetch(&w->flow_counts[f->index], 1);
    }
    return left;
}

static inline bool same_key(const struct ff_key *a, const struct ff_key *b) {
    typedef uint64_t __attribute__((vector_size(32), aligned(8), may_alias)) half;
    const half *x = (const half *)(const void *)a, *y = (const half *)(const void *)b;
    half diff = (x[0] ^ y[0]) | (x[1] ^ y[1]);

    return (diff[0] | diff[1] | diff[2] | diff[3]) == 0;
}
static_assert(sizeof(struct ff_key) == 64, "same_key");

void ff_flow_lookup_burst(struct ff_worker *w, const struct ff_key *keys, unsigned int n,
                          struct ff_flow **flows) {
    const struct mask_list *m = atomic_load_explicit(&masks, memory_order_acquire);
    uint8_t todo[FF_BURST];
    unsigned int different = 0;
    uint32_t again = 0; /* bit i: packet i has the key of the one before */

    /* what a sender sends in one go is often of one flow: only the first of a run is looked up */
    for (unsigned int i = 0; i < n; i++) {
        flows[i] = NULL;
        if (i > 0 && same_key(&keys[i], &keys[i - 1]))
            again |= 1u << i;
        else
            todo[different++] = (uint8_t)i;
    }
    for (unsigned int i = 0, left = different; i < m->n && left > 0; i++) {
        unsigned int missed = subtable_burst(w, m->t[i], keys, todo, left, flows);

        w->mask_hits[m->t[i]->slot] += left - missed;
        left = missed;
    }
    for (; again != 0; again &= again - 1) {
        unsigned int i = (unsigned int)__builtin_ctz(again);

        flows[i] = flows[i - 1];
    }
}
