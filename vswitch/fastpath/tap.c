/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Taps: copies of frames, and what became of them, for capture and live trace.
 * A worker that finds no buffer or a full ring counts the loss and goes on.
 */
#include <errno.h>
#include <time.h>
#include <unistd.h>

#include <rte_cycles.h>

#include "switch.h"

#define TAP_BUFFERS 8191u
#define TAP_RING 4096u

struct tap_meta {
    uint64_t tsc;
    struct ff_tap_rec rec;
};

static struct rte_mbuf *held; /* taken from a ring, did not fit into the last drain */

int ff_tap_init(void) {
    char name[RTE_RING_NAMESIZE];
    uint16_t priv = RTE_ALIGN(sizeof(struct tap_meta), RTE_MBUF_PRIV_ALIGN);

    ff.tap_pool = rte_pktmbuf_pool_create("ff_taps", TAP_BUFFERS, 64, priv,
                                          RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
    if (ff.tap_pool == NULL)
        return -ENOMEM;
    for (unsigned int i = 0; i < ff.n_workers; i++) {
        snprintf(name, sizeof(name), "ff_taps_%u", i);
        ff.workers[i]->taps =
            rte_ring_create(name, TAP_RING, SOCKET_ID_ANY, RING_F_SP_ENQ | RING_F_SC_DEQ);
        if (ff.workers[i]->taps == NULL)
            return -ENOMEM;
    }
    return 0;
}

/* Copies the frame; returns the record to fill in, NULL when it was lost. */
static struct tap_meta *tap_copy(struct ff_worker *w, const struct ff_port *port, uint8_t kind,
                                 const struct ff_frame *frame, struct rte_mbuf **copy) {
    struct tap_meta *meta;

    *copy = rte_ring_full(w->taps) ? NULL : ff_frame_copy(frame, ff.tap_pool, port->snaplen);
    if (*copy == NULL) {
        w->taps_lost++;
        return NULL;
    }
    meta = rte_mbuf_to_priv(*copy);
    *meta = (struct tap_meta){
        .tsc = w->now,
        .rec = {.port_id = port->id,
                .kind = kind,
                .frame_len = frame->len,
                .cap_len = (*copy)->pkt_len},
    };
    return meta;
}

static void tap_send(struct ff_worker *w, struct rte_mbuf *copy) {
    rte_ring_sp_enqueue(w->taps, copy);
    w->tap_signal = true;
}

void ff_tap_frame(struct ff_worker *w, const struct ff_port *port, uint8_t kind,
                  const struct ff_frame *frame) {
    struct rte_mbuf *copy;

    if (tap_copy(w, port, kind, frame, &copy) != NULL)
        tap_send(w, copy);
}

void ff_tap_trace(struct ff_worker *w, const struct ff_port *port, const struct ff_frame *frame,
                  unsigned int drop, uint64_t flow_id, const struct ff_actions *actions) {
    struct rte_mbuf *copy;
    struct tap_meta *meta = tap_copy(w, port, FF_TAP_TRACE, frame, &copy);

    if (meta == NULL)
        return;
    meta->rec.dropped = (uint8_t)drop;
    meta->rec.flow_id = flow_id;
    meta->rec.n_actions = actions != NULL ? actions->n : 0;
    for (uint32_t i = 0; i < RTE_MIN(meta->rec.n_actions, (uint32_t)FF_TRACE_ACTIONS); i++)
        meta->rec.actions[i] = actions->list[i];
    tap_send(w, copy);
}

int ff_tap_set(uint16_t port_id, uint8_t kinds, uint32_t snaplen) {
    struct ff_port *port = ff_port(port_id);

    if (port == NULL)
        return -ENOENT;
    port->snaplen = snaplen;
    atomic_store(&port->tap, kinds);
    return 0;
}

static struct rte_mbuf *tap_next(bool *more) {
    struct rte_mbuf *m = held;

    *more = true;
    held = NULL;
    for (unsigned int i = 0; m == NULL && i < ff.n_workers; i++)
        if (rte_ring_sc_dequeue(ff.workers[i]->taps, (void **)&m) != 0)
            m = NULL;
    *more = m != NULL;
    return m;
}

int ff_tap_drain(struct ff_tap_rec *recs, int n, uint8_t *buf, size_t buf_len, uint64_t *lost) {
    struct timespec t;
    uint64_t count, now_ns, now_tsc;
    size_t used = 0;
    bool more = true;
    int got = 0;

    if (read(ff.tap_fd, &count, sizeof(count)) < 0) {
        /* not signalled: look all the same */
    }
    atomic_store(&ff.tap_armed, true);
    clock_gettime(CLOCK_REALTIME, &t);
    now_ns = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
    now_tsc = rte_rdtsc();
    while (got < n) {
        struct rte_mbuf *m = tap_next(&more);
        const struct tap_meta *meta;
        const void *data;
        uint32_t len;

        if (m == NULL)
            break;
        if (m->pkt_len > buf_len - used && got > 0) {
            held = m;
            break;
        }
        meta = rte_mbuf_to_priv(m);
        len = (uint32_t)RTE_MIN((size_t)m->pkt_len, buf_len - used);
        recs[got] = meta->rec;
        recs[got].time_ns =
            now_ns - (uint64_t)((double)(now_tsc - meta->tsc) * 1e9 / (double)ff.tsc_hz);
        recs[got].cap_len = len;
        recs[got].offset = used;
        data = rte_pktmbuf_read(m, 0, len, buf + used);
        if (data != buf + used)
            memcpy(buf + used, data, len);
        rte_pktmbuf_free(m);
        used += len;
        got++;
    }
    if (more)
        ff_signal(ff.tap_fd, &ff.tap_armed);
    *lost = 0;
    for (unsigned int i = 0; i < ff.n_workers; i++)
        *lost += ff.workers[i]->taps_lost;
    return got;
}
