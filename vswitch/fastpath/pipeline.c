/* SPDX-License-Identifier: Apache-2.0 */
/* The pipeline: a burst from one queue is parsed, looked up and acted on. */
#include <rte_prefetch.h>

#include "parse.h"
#include "switch.h"

/* A frame whose headers may go on beyond the private head is parsed again with all of it. */
static unsigned int parse(struct ff_frame *f, const struct ff_port *port, struct ff_key *key) {
    uint32_t l4 = FF_PLAIN_L4;
    uint16_t in_port = port->id;
    int drop = FF_DROP_NONE;

    /* one to be segmented is judged by its segments, once its headers are known */
    if (unlikely(f->len > port->max_frame) && !(f->offload.what & (FF_OFF_TSO | FF_OFF_BAD)))
        return FF_DROP_OVERSIZE;
    if (unlikely(!ff_parse_plain(f->head, f->head_len, f->len, in_port, key)))
        drop = ff_parse_head(f->head, f->head_len, f->len, in_port, key, &l4);
    if (unlikely(drop != FF_DROP_NONE && f->head_len < f->len && !ff_frame_is_mbuf(f))) {
        if (ff_frame_keep(f, ff.pool) != 0)
            return FF_DROP_NO_COPY;
        drop = ff_parse_head(f->head, f->head_len, f->len, in_port, key, &l4);
    }
    if (unlikely(f->offload.what != 0) && drop == FF_DROP_NONE)
        return ff_offload_check(f, key, l4, port->max_frame);
    return (unsigned int)drop;
}

/*
 * Parses each frame; drops the bad ones and closes the gaps that they leave.
 * Returns how many are left.
 */
static unsigned int parse_burst(struct ff_worker *w, struct ff_port *port, bool trace,
                                struct ff_frame *frames, struct ff_key *keys, unsigned int n) {
    unsigned int good = 0;

    for (unsigned int i = 0; i < n; i++) {
        unsigned int drop = parse(&frames[i], port, &keys[good]);

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

/* Packets of one flow in a row, counted together. */
struct run {
    const struct ff_flow *flow;
    uint32_t packets;
    uint64_t bytes;
};

static inline void run_end(struct ff_worker *w, const struct run *r) {
    if (likely(r->flow != NULL))
        ff_flow_counted(w, r->flow, r->packets, r->bytes);
}

static inline void run_count(struct ff_worker *w, struct run *r, const struct ff_flow *flow,
                             uint32_t bytes) {
    if (flow != r->flow) {
        run_end(w, r);
        *r = (struct run){.flow = flow};
    }
    r->packets++;
    r->bytes += bytes;
}

void ff_pipeline(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                 struct ff_frame *frames, unsigned int n) {
    bool trace = atomic_load_explicit(&port->tap, memory_order_relaxed) & FF_TAP_TRACE;
    struct ff_key keys[FF_BURST] __rte_cache_aligned;
    struct ff_flow *flows[FF_BURST];
    struct run run = {0};

    n = parse_burst(w, port, trace, frames, keys, n);
    ff_sample_stage(&w->sample, &w->stats, FF_STAGE_PARSE);
    if (unlikely(n == 0))
        return;
    ff_flow_lookup_burst(w, keys, n, flows);
    ff_sample_stage(&w->sample, &w->stats, FF_STAGE_LOOKUP);
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
            ff_sample_stage(&w->sample, &w->stats, FF_STAGE_ACTIONS);
            w->stats.misses++;
            if (trace)
                ff_tap_trace(w, port, &frames[i], 0, 0, NULL);
            ff_upcall_raise(w, &frames[i], &keys[i], queue);
            ff_sample_stage(&w->sample, &w->stats, FF_STAGE_UPCALL);
            continue;
        }
        w->stats.hits++;
        run_count(w, &run, flow, frames[i].len);
        if (likely(!trace) &&
            likely(ff_output_only(w, atomic_load_explicit(&flow->only, memory_order_relaxed),
                                  &frames[i])))
            continue;
        actions = atomic_load_explicit(&flow->actions, memory_order_acquire);
        if (trace)
            ff_tap_trace(w, port, &frames[i], 0, ff_flow_id(flow), actions);
        ff_execute(w, &frames[i], &keys[i], queue, actions);
    }
    run_end(w, &run);
    ff_sample_stage(&w->sample, &w->stats, FF_STAGE_ACTIONS);
}
