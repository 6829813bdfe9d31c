/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Grace periods, and memory that waits for them.
 *
 * Tokens start and are checked under one lock. A check remembers the lowest
 * counter of the workers that are online as passed by all. One that slept when
 * the check came to it does not count, though it may be awake again by the end,
 * and hold what is taken away under a token that started in between, which the
 * others have passed already: that token would seem to be over.
 */
#include <pthread.h>
#include <stdlib.h>

#include "switch.h"

struct retired {
    void *p;
    uint64_t token;
    struct retired *next;
};

static struct retired *first, **last = &first;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

uint64_t ff_grace_start(void) {
    uint64_t token;

    pthread_mutex_lock(&lock);
    token = rte_rcu_qsbr_start(ff.rcu);
    pthread_mutex_unlock(&lock);
    return token;
}

bool ff_grace_over(uint64_t token) {
    bool over;

    pthread_mutex_lock(&lock);
    over = rte_rcu_qsbr_check(ff.rcu, token, false) == 1;
    pthread_mutex_unlock(&lock);
    return over;
}

void ff_synchronize(void) {
    pthread_mutex_lock(&lock);
    rte_rcu_qsbr_synchronize(ff.rcu, RTE_QSBR_THRID_INVALID);
    pthread_mutex_unlock(&lock);
}

void ff_retire(void *p) {
    struct retired *r;

    if (p == NULL)
        return;
    r = malloc(sizeof(*r));
    if (r == NULL) { /* no memory to remember it: wait instead */
        ff_synchronize();
        free(p);
        return;
    }
    *r = (struct retired){.p = p, .token = ff_grace_start()};
    *last = r;
    last = &r->next;
}

void ff_reclaim(void) {
    struct retired *r;

    while ((r = first) != NULL && ff_grace_over(r->token)) {
        first = r->next;
        if (first == NULL)
            last = &first;
        free(r->p);
        free(r);
    }
}
