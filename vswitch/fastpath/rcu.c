/* SPDX-License-Identifier: Apache-2.0 */
/* Deferred freeing: memory that workers may still read waits for them here. */
#include <stdlib.h>

#include "switch.h"

struct retired {
    void *p;
    uint64_t token;
    struct retired *next;
};

static struct retired *first, **last = &first;

void ff_synchronize(void) {
    rte_rcu_qsbr_synchronize(ff.rcu, RTE_QSBR_THRID_INVALID);
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
    *r = (struct retired){.p = p, .token = rte_rcu_qsbr_start(ff.rcu)};
    *last = r;
    last = &r->next;
}

void ff_reclaim(void) {
    struct retired *r;

    while ((r = first) != NULL && rte_rcu_qsbr_check(ff.rcu, r->token, false) == 1) {
        first = r->next;
        if (first == NULL)
            last = &first;
        free(r->p);
        free(r);
    }
}
