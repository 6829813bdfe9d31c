/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Grace periods of two control threads, with workers that do what this program
 * says: one that was asleep wakes while the first thread waits for the other
 * worker, and the second thread takes something away that it holds.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "switch.h"

#define ROUNDS 200
#define SLEEPER 0u /* looked at first */
#define LATE 1u

struct ff_switch ff;

static void *synchronize(void *arg) {
    (void)arg;
    ff_synchronize();
    return NULL;
}

static void *start(void *token) {
    *(uint64_t *)token = ff_grace_start();
    return NULL;
}

static uint64_t tokens(void) {
    return __atomic_load_n(&ff.rcu->token, __ATOMIC_ACQUIRE);
}

static void check(bool ok, const char *what) {
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        exit(1);
    }
}

/* A thread that waits in there shows nowhere: it gets the time to come so far, else this round
 * shows nothing. */
static void let_others_run(void) {
    usleep(100);
}

static void run(void) {
    uint64_t token, before = tokens();
    pthread_t waits, takes;

    rte_rcu_qsbr_quiescent(ff.rcu, LATE);
    pthread_create(&waits, NULL, synchronize, NULL);
    while (tokens() == before)
        ;
    let_others_run();
    rte_rcu_qsbr_thread_online(ff.rcu, SLEEPER);
    pthread_create(&takes, NULL, start, &token);
    let_others_run();
    rte_rcu_qsbr_quiescent(ff.rcu, LATE);
    pthread_join(waits, NULL);
    pthread_join(takes, NULL);
    rte_rcu_qsbr_quiescent(ff.rcu, LATE);
    check(!ff_grace_over(token), "over while a worker may still read");
    rte_rcu_qsbr_thread_offline(ff.rcu, SLEEPER);
    check(ff_grace_over(token), "not over, and nobody reads");
}

int main(void) {
    ff.rcu = aligned_alloc(64, RTE_ALIGN(rte_rcu_qsbr_get_memsize(FF_MAX_WORKERS), 64));
    check(ff.rcu != NULL && rte_rcu_qsbr_init(ff.rcu, FF_MAX_WORKERS) == 0, "no memory");
    rte_rcu_qsbr_thread_register(ff.rcu, SLEEPER);
    rte_rcu_qsbr_thread_register(ff.rcu, LATE);
    rte_rcu_qsbr_thread_online(ff.rcu, LATE);
    for (unsigned int i = 0; i < ROUNDS; i++)
        run();
    free(ff.rcu);
    return 0;
}
