/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Receiving over RDMA. Messages of all peers come into buffers that a queue has
 * posted to one shared receive queue. A frame is borrowed from its buffer as
 * long as the burst lasts, like those of a vring; then the burst's buffers are
 * posted again in one call, and count as credits.
 */
#include <errno.h>
#include <stdlib.h>

#include "rdma.h"
#include "tunnel.h"

#define PAGE 4096u
#define FRAME_AT (FF_HEAD_ROOM + FF_RDMA_HEADER_LEN)
#define ALL_OFFLOADS (FF_OFF_CSUM | FF_OFF_TSO | FF_OFF_ECN)

static_assert(FF_RDMA_BUFFERS <= 256, "a buffer's number is its chunk's, and 8 bits");

/* ---- buffers ---- */

static uint8_t *buffer_at(const struct ff_rdma_queue *q, uint64_t id) {
    return q->chunk[id >> 8] + (id & 0xff) * FF_RDMA_BUFFER_LEN;
}

static int buffers_post(struct ff_rdma_queue *q, const uint64_t *ids, unsigned int n) {
    struct ibv_recv_wr wr[FF_BURST], *bad;
    struct ibv_sge sge[FF_BURST];

    for (unsigned int i = 0; i < n; i++) {
        sge[i] = (struct ibv_sge){
            .addr = (uintptr_t)buffer_at(q, ids[i]) + FF_HEAD_ROOM,
            .length = FF_RDMA_BUFFER_LEN - FF_HEAD_ROOM,
            .lkey = q->chunk_mr[ids[i] >> 8]->lkey,
        };
        wr[i] = (struct ibv_recv_wr){.wr_id = ids[i],
                                     .sg_list = &sge[i],
                                     .num_sge = 1,
                                     .next = i + 1 < n ? &wr[i + 1] : NULL};
    }
    return ibv_post_srq_recv(q->srq, wr, &bad);
}

int ff_rdma_buffers_add(struct ff_rdma_queue *q) {
    const size_t size = RTE_ALIGN(FF_RDMA_BUFFERS * FF_RDMA_BUFFER_LEN, PAGE);
    unsigned int c = q->n_chunks;
    int rc = 0;

    if (q->n_used == q->max_chunks)
        return -ENOSPC;
    if (q->n_used < q->n_chunks) { /* those of a queue pair that is gone are still posted */
        q->n_used++;
        return 0;
    }
    q->chunk[c] = aligned_alloc(PAGE, size);
    if (q->chunk[c] == NULL)
        return -ENOMEM;
    q->chunk_mr[c] = ibv_reg_mr(q->dev->pd, q->chunk[c], size, IBV_ACCESS_LOCAL_WRITE);
    if (q->chunk_mr[c] == NULL) {
        rc = -errno;
        free(q->chunk[c]);
        return rc;
    }
    q->n_chunks++;
    for (unsigned int i = 0; i < FF_RDMA_BUFFERS && rc == 0; i += FF_BURST) {
        unsigned int n = RTE_MIN(FF_RDMA_BUFFERS - i, (unsigned int)FF_BURST);
        uint64_t ids[FF_BURST];

        for (unsigned int k = 0; k < n; k++)
            ids[k] = (uint64_t)c << 8 | (i + k);
        rc = -buffers_post(q, ids, n);
    }
    q->n_used += rc == 0;
    return rc;
}

void ff_rdma_buffers_free(struct ff_rdma_queue *q) {
    for (unsigned int c = 0; c < q->n_chunks; c++) {
        (void)ibv_dereg_mr(q->chunk_mr[c]);
        free(q->chunk[c]);
    }
    q->n_chunks = 0;
}

/* ---- what a queue pair owes ---- */

static void owe(struct ff_rdma_queue *q, struct ff_rdma_qp *qp) {
    if (qp->owing_listed)
        return;
    qp->owing_listed = true;
    qp->owing_next = q->owing;
    q->owing = qp;
}

/* Whether nothing is owed any more. A mark is answered when nothing from here is parked. */
static bool settle_one(struct ff_worker *w, struct ff_rdma_queue *q, struct ff_rdma_qp *qp) {
    if (atomic_load(&qp->peer->state) == FF_RDMA_FAILED)
        return true;
    if (qp->mark_due) {
        if (ff_poll_holds(w, q->dev->port, w->index) ||
            !ff_rdma_control(qp, FF_RDMA_MARKED, qp->mark))
            return false;
        qp->mark_due = false;
    }
    return !ff_rdma_window_owes(&qp->window) || ff_rdma_control(qp, FF_RDMA_CREDIT, 0);
}

static void settle(struct ff_worker *w, struct ff_rdma_queue *q) {
    struct ff_rdma_qp **at = &q->owing, *qp;

    while ((qp = *at) != NULL) {
        if (!settle_one(w, q, qp)) {
            at = &qp->owing_next;
            continue;
        }
        *at = qp->owing_next;
        qp->owing_listed = false;
    }
}

/* Tells that all barriers of a round came. */
static void answer(struct ff_rdma_queue *q, struct ff_rdma_qp *qp) {
    uint32_t due = atomic_load(&qp->came_due);

    if (due == qp->came_told)
        return;
    if (ff_rdma_control(qp, FF_RDMA_CAME, due))
        qp->came_told = due;
    else
        atomic_store(&q->asked, true);
}

/* Sends the marks that the control thread wants, and what other workers found out. */
static void mark(struct ff_rdma_queue *q) {
    unsigned int n = atomic_load(&q->n_qps);

    atomic_store(&q->asked, false); /* before the looks: what is wanted later sets it again */
    for (unsigned int i = 0; i < n; i++) {
        struct ff_rdma_qp *qp = atomic_load_explicit(&q->qps[i], memory_order_acquire);
        uint32_t wanted;

        if (qp == NULL)
            continue;
        answer(q, qp);
        wanted = atomic_load(&qp->peer->mark);
        if (qp->mark_sent == wanted)
            continue;
        if (ff_rdma_control(qp, FF_RDMA_MARK, wanted))
            qp->mark_sent = wanted;
        else
            atomic_store(&q->asked, true);
    }
}

/* ---- messages ---- */

static struct ff_rdma_qp *find(struct ff_rdma_queue *q, uint32_t number) {
    unsigned int n = atomic_load_explicit(&q->n_qps, memory_order_acquire), i = q->hint;

    for (unsigned int looks = 0; looks < n; looks++, i = i + 1 < n ? i + 1 : 0) {
        struct ff_rdma_qp *qp = atomic_load_explicit(&q->qps[i], memory_order_acquire);

        if (qp != NULL && qp->number == number) {
            q->hint = i;
            return qp;
        }
    }
    return NULL;
}

/* Received, and no frame for the pipeline. */
static void refuse(struct ff_worker *w, const struct ff_rdma_queue *q, unsigned int reason,
                   uint32_t len) {
    struct ff_port_stats *stats = &w->port_stats[q->dev->port->id];

    stats->queue[w->index].rx_packets++;
    stats->queue[w->index].rx_bytes += len;
    stats->drop[reason]++;
}

static void on_control(struct ff_rdma_queue *q, struct ff_rdma_qp *qp,
                       const struct ff_rdma_header *h) {
    if (h->type == FF_RDMA_MARK) {
        qp->mark = h->mark;
        qp->mark_due = true;
        owe(q, qp);
    } else if (h->type == FF_RDMA_MARKED) {
        ff_rdma_marked(qp, h->mark);
    } else if (h->type == FF_RDMA_CAME) {
        ff_rdma_came(qp, h->mark);
    }
}

static void to_frame(struct ff_rdma_queue *q, unsigned int k, const struct ff_rdma_header *h,
                     uint8_t *p, struct ff_frame *f) {
    uint16_t head_len = (uint16_t)RTE_MIN(h->len, FF_HEAD_COPY);

    q->rest[k] = (struct ff_seg){p + head_len, h->len - head_len};
    *f = (struct ff_frame){
        .head = p,
        .seg = &q->rest[k],
        .len = h->len,
        .head_len = head_len,
        .n_segs = h->len > head_len,
        .offload = ff_offload_read((const uint8_t *)&h->offload, ALL_OFFLOADS),
    };
}

/* A message of the queue pair; whether it is a frame for the pipeline: then f, and q->to[k]. */
static bool on_message(struct ff_worker *w, struct ff_rdma_queue *q, struct ff_rdma_qp *qp,
                       uint8_t *message, uint32_t len, unsigned int k, struct ff_frame *f) {
    int drop = ff_rdma_check(message, len, qp->peer->epoch);
    struct ff_rdma_header h = {0};

    memcpy(&h, message, RTE_MIN(len, sizeof(h)));
    if (drop != FF_DROP_NONE || h.type == FF_RDMA_DATA) {
        q->taken[q->n_taken - 1].qp = qp;
        if (unlikely(ff_rdma_window_arrive(&qp->window) != 0)) {
            ff_rdma_fail(qp->peer, "the other end sends without credit");
            drop = FF_DROP_RDMA_MALFORMED;
        }
    }
    if (drop == FF_DROP_NONE && unlikely(ff_rdma_window_limit(&qp->window, h.limit) != 0)) {
        ff_rdma_fail(qp->peer, "the other end gives credits that cannot be");
        drop = FF_DROP_RDMA_MALFORMED;
    }
    if (unlikely(drop != FF_DROP_NONE)) {
        refuse(w, q, (unsigned int)drop, len);
        return false;
    }
    if (h.type != FF_RDMA_DATA) {
        on_control(q, qp, &h);
        return false;
    }
    qp->stats.rx_messages++;
    qp->stats.rx_bytes += h.len;
    q->to[k] = ff_tunnel_port(h.vni);
    if (unlikely(q->to[k] == NULL)) {
        refuse(w, q, FF_DROP_TUNNEL_VNI, len);
        return false;
    }
    to_frame(q, k, &h, message + FF_RDMA_HEADER_LEN, f);
    return true;
}

static bool on_completion(struct ff_worker *w, struct ff_rdma_queue *q, const struct ibv_wc *wc,
                          unsigned int k, struct ff_frame *f) {
    struct ff_rdma_qp *qp = find(q, wc->qp_num);

    q->taken[q->n_taken++] = (struct ff_rdma_taken){.buffer = wc->wr_id};
    if (likely(wc->status == IBV_WC_SUCCESS && qp != NULL))
        return on_message(w, q, qp, buffer_at(q, wc->wr_id) + FF_HEAD_ROOM, wc->byte_len, k, f);
    if (wc->status == IBV_WC_SUCCESS)
        refuse(w, q, FF_DROP_RDMA_EPOCH, wc->byte_len);
    else if (wc->status != IBV_WC_WR_FLUSH_ERR) /* a message longer than any can be */
        refuse(w, q, FF_DROP_RDMA_OVERSIZE, 0);
    if (wc->status != IBV_WC_SUCCESS && qp != NULL)
        ff_rdma_fail(qp->peer, ibv_wc_status_str(wc->status));
    return false;
}

/* Posts the buffers of the burst again; from then on they are credits. */
static void give_back(struct ff_worker *w, struct ff_rdma_queue *q) {
    uint64_t ids[FF_BURST];

    for (unsigned int i = 0; i < q->n_taken; i++)
        ids[i] = q->taken[i].buffer;
    if (q->n_taken > 0 && unlikely(buffers_post(q, ids, q->n_taken) != 0)) {
        for (unsigned int i = 0; i < atomic_load(&q->n_qps); i++) {
            struct ff_rdma_qp *qp = atomic_load_explicit(&q->qps[i], memory_order_acquire);

            if (qp != NULL)
                ff_rdma_fail(qp->peer, "the device takes no buffer");
        }
    }
    for (unsigned int i = 0; i < q->n_taken; i++) {
        struct ff_rdma_qp *qp = q->taken[i].qp;

        if (qp == NULL)
            continue;
        qp->window.granted++;
        if (ff_rdma_window_owes(&qp->window))
            owe(q, qp);
    }
    q->n_taken = 0;
    settle(w, q);
}

unsigned int ff_rdma_rx(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                        struct ff_frame *frames, unsigned int n) {
    const struct ff_rdma_device *dev = port->dev;
    struct ff_rdma_queue *q = dev->queue[queue];
    struct ibv_wc wc[FF_BURST];
    unsigned int reaped = ff_rdma_reap(q), k = 0;
    int got;

    if (unlikely(atomic_load_explicit(&q->asked, memory_order_relaxed)))
        mark(q);
    if (unlikely(q->owing != NULL))
        settle(w, q);
    got = ibv_poll_cq(q->recv_cq, (int)n, wc);
    atomic_store_explicit(&q->looks, q->looks + (got <= 0 && reaped == 0 ? FF_RDMA_LOOKS : 1),
                          memory_order_release);
    if (got <= 0)
        return 0;
    for (int i = 0; i < got; i++)
        k += on_completion(w, q, &wc[i], k, &frames[k]);
    if (k == 0)
        give_back(w, q);
    return k;
}

unsigned int ff_rdma_input(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                           struct ff_frame *frames, unsigned int n) {
    const struct ff_rdma_device *dev = port->dev;

    w->port_stats[port->id].decapsulated += n;
    ff_tunnel_deliver(w, dev->queue[queue]->to, queue, frames, n);
    return 0;
}

void ff_rdma_rx_done(struct ff_worker *w, struct ff_port *port, unsigned int queue) {
    const struct ff_rdma_device *dev = port->dev;

    give_back(w, dev->queue[queue]);
}
