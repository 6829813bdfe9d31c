/* SPDX-License-Identifier: Apache-2.0 */
/* A worker: one poll loop on one lcore. */
#include <sys/prctl.h>
#include <time.h>

#include <rte_cycles.h>

#include "switch.h"

#define QUIET_LOOKS 64u /* empty looks after which a queue is looked at less often */
#define SKIP_MAX 15u    /* at most one look in sixteen loops */

static unsigned int poll_queue(struct ff_worker *w, struct ff_port *port, unsigned int queue) {
    struct ff_queue_stats *q = &w->port_stats[port->id].queue[queue];
    struct ff_frame frames[FF_BURST];
    uint64_t bytes = 0;
    uint64_t now;
    unsigned int n, got;

    if (unlikely(!ff_port_ready(port)))
        return 0;
    ff_sample_begin(&w->sample);
    n = port->ops->rx(w, port, queue, frames, FF_BURST);
    if (n == 0) {
        ff_sample_end(&w->sample, &w->stats, 0);
        return 0;
    }
    for (unsigned int i = 0; i < n; i++)
        bytes += frames[i].len;
    q->rx_packets += n;
    q->rx_bytes += bytes;
    w->stats.packets += n;
    w->stats.bursts++;
    if (unlikely(atomic_load_explicit(&port->tap, memory_order_relaxed) & FF_TAP_RX))
        for (unsigned int i = 0; i < n; i++)
            ff_tap_frame(w, port, FF_TAP_RX, &frames[i]);
    ff_sample_stage(&w->sample, &w->stats, FF_STAGE_RX);
    got = n;
    if (unlikely(atomic_load_explicit(&port->uplink, memory_order_acquire) != NULL))
        n = ff_vxlan_input(w, port, queue, frames, n);
    else if (unlikely(port->ops->input != NULL))
        n = port->ops->input(w, port, queue, frames, n);
    ff_pipeline(w, port, queue, frames, n);
    ff_output_flush(w);
    ff_sample_stage(&w->sample, &w->stats, FF_STAGE_TX);
    if (port->ops->rx_done != NULL)
        port->ops->rx_done(w, port, queue);
    ff_sample_stage(&w->sample, &w->stats, FF_STAGE_RX_DONE);
    ff_sample_end(&w->sample, &w->stats, got);
    now = rte_rdtsc();
    q->rx_cycles += now - w->mark;
    w->mark = now;
    return got;
}

/*
 * One look at each queue. A queue that has long been quiet is left out of some
 * loops as long as others keep the worker busy: with hundreds of idle ports
 * the busy ones keep their rate.
 */
static unsigned int poll_all(struct ff_worker *w, bool busy) {
    struct ff_poll_list *list = atomic_load_explicit(&w->poll, memory_order_acquire);
    unsigned int total = 0;

    for (uint32_t i = 0; i < list->n; i++) {
        struct ff_poll_entry *e = &list->entry[i];
        unsigned int n;

        if (e->skip > 0 && busy) {
            e->skip--;
            continue;
        }
        if (unlikely(e->gated)) {
            if (!ff_poll_open(e))
                continue;
            e->gated = false;
        }
        n = poll_queue(w, e->port, e->queue);
        total += n;
        if (n > 0) {
            e->quiet = 0;
        } else if (++e->quiet >= QUIET_LOOKS) {
            e->quiet = QUIET_LOOKS;
            e->skip = SKIP_MAX;
        }
    }
    return total;
}

static void clock_update(struct ff_worker *w) {
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    w->now_s = (uint64_t)t.tv_sec;
}

int ff_worker_main(void *arg) {
    struct ff_worker *w = arg;
    uint64_t next_clock = 0;
    bool busy = false;

    /* else every timed sleep takes 50 µs longer than asked */
    (void)prctl(PR_SET_TIMERSLACK, 1000UL);
    rte_rcu_qsbr_thread_register(ff.rcu, w->index);
    rte_rcu_qsbr_thread_online(ff.rcu, w->index);
    w->idle_since = w->now = rte_rdtsc();
    while (!atomic_load_explicit(&ff.stop, memory_order_relaxed)) {
        uint64_t top = w->now;
        unsigned int n;

        if (w->now >= next_clock) {
            clock_update(w);
            next_clock = w->now + ff.tsc_hz / 8;
        }
        n = ff_upcall_commands(w);
        w->mark = unlikely(n > 0) ? rte_rdtsc() : top;
        n += poll_all(w, busy);
        if (unlikely(w->holding != NULL || w->n_due > 0))
            ff_rdma_settle(w);
        if (likely(w->untold != NULL))
            ff_vhost_tell(w);
        if (unlikely(w->signal)) {
            w->signal = false;
            ff_signal(ff.upcall_fd, &ff.upcall_armed);
        }
        if (unlikely(w->tap_signal)) {
            w->tap_signal = false;
            ff_signal(ff.tap_fd, &ff.tap_armed);
        }
        rte_rcu_qsbr_quiescent(ff.rcu, w->index);
        w->stats.loops++;
        w->now = rte_rdtsc();
        busy = n > 0;
        if (busy) {
            w->stats.busy_loops++;
            w->stats.busy_cycles += w->now - top;
        }
        ff_idle(w, busy);
    }
    rte_rcu_qsbr_thread_offline(ff.rcu, w->index);
    rte_rcu_qsbr_thread_unregister(ff.rcu, w->index);
    return 0;
}
