/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stage timing. One burst in FF_SAMPLE_EVERY is timed: the clock is read at the
 * borders of its stages. The others cost one branch a border, which is nearly
 * always predicted. FF_SAMPLE_EVERY is odd, so that two queues that are busy in
 * turn are both sampled.
 */
#ifndef FF_SAMPLE_H
#define FF_SAMPLE_H

#include <stdbool.h>

#include <rte_branch_prediction.h>
#include <rte_cycles.h>

#include "ff.h"

struct ff_sample {
    bool on;        /* this burst is timed */
    uint32_t wait;  /* bursts before the next that is */
    uint64_t start; /* TSC at the last border */
};

/* In front of a look at a queue. */
static inline void ff_sample_begin(struct ff_sample *s) {
    if (unlikely(s->wait == 0)) {
        s->on = true;
        s->start = rte_rdtsc();
    }
}

/* The border behind `stage`. */
static inline void ff_sample_stage(struct ff_sample *s, struct ff_worker_stats *stats,
                                   enum ff_stage stage) {
    if (unlikely(s->on)) {
        uint64_t now = rte_rdtsc();

        stats->stage_cycles[stage] += now - s->start;
        s->start = now;
    }
}

/* Behind a burst of n packets; 0: a look that found nothing, which is not sampled. */
static inline void ff_sample_end(struct ff_sample *s, struct ff_worker_stats *stats,
                                 unsigned int n) {
    if (n > 0) {
        s->wait = s->on ? FF_SAMPLE_EVERY - 1 : s->wait - 1;
        if (unlikely(s->on))
            stats->sampled_packets += n;
    }
    s->on = false;
}

#endif
