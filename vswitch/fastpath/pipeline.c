/* SPDX-License-Identifier: Apache-2.0 */
/* The pipeline: a burst from one queue is parsed, looked up and acted on. */
#include <rte_prefetch.h>

#include "parse.h"
#include "switch.h"

/*
 * Parses each frame; drops the bad ones and closes the gaps that they leave.
 * Returns how many are left.
 */
static unsigned int parse_burst(struct ff_worker *w, struct ff_port *port, bool trace,
                                struct ff_frame *frames, struct ff_key *keys, unsigned int n) {
    unsigned int good = 0;

    for (unsigned int i = 0; i < n; i++) {
        unsigned int drop;

        drop = unlikely(frames[i].len > port->max_frame)
                   ? (unsigned int)FF_DROP_OVERSIZE
                   : (unsigned int)ff_parse_head(frames[i].head, frames[i].head_len, frames[i].len,
                                                 port->id, &keys[good]);
        if (unlikely(drop != FF_DROP_NONE)) {
            if (trace)
                ff_tap_trace(w, port, &frames[i], drop, 0, NULL);
            ff_drop(w, port->id, drop, &frames[i]);
            continue;
        }
        if (unlikely(good != i))
            frames[good] = frames[i];
        good++;
    }
    return good;
}

void ff_pipeline(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                 struct ff_frame *frames, unsigned int n) {
    bool trace = atomic_load_explicit(&port->tap, memory_order_relaxed) & FF_TAP_TRACE;
    struct ff_key keys[FF_BURST] __rte_cache_aligned;
    struct ff_flow *flows[FF_BURST];

    n = parse_burst(w, port, trace, frames, keys, n);
    if (unlikely(n == 0))
        return;
    ff_flow_lookup_burst(keys, n, flows, w->mask_hits);
    for (unsigned int i = 0; i < n; i++) {
        struct ff_flow *flow = flows[i];
        struct ff_actions *actions;

        if (unlikely(w->n_parked_flows > 0)) {
            struct ff_parked_flow *ahead = ff_upcall_find(w, &keys[i]);

            if (ahead != NULL) {
                if (trace)
                    ff_tap_trace(w, port, &frames[i], 0, 0, NULL);
                ff_upcall_park(w, ahead, &frames[i], &keys[i], queue);
                continue;
            }
        }
        if (unlikely(flow == NULL)) {
            w->stats.misses++;
            if (trace)
                ff_tap_trace(w, port, &frames[i], 0, 0, NULL);
            ff_upcall_raise(w, &frames[i], &keys[i], queue);
            continue;
        }
        w->stats.hits++;
        ff_flow_counted(w, flow, frames[i].len);
        actions = atomic_load_explicit(&flow->actions, memory_order_acquire);
        if (unlikely(trace))
            ff_tap_trace(w, port, &frames[i], 0, ff_flow_id(flow), actions);
        ff_execute(w, &frames[i], &keys[i], queue, actions);
    }
}
