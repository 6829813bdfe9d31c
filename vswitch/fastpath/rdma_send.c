/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sending over RDMA. A frame is copied once, from where its sender left it to
 * the queue pair's registered memory, and its request is chained to those of the
 * same burst: one doorbell for all of them. Every so many requests one asks for a completion,
 * which stands for all before it (InfiniBand Architecture Specification, volume 1, section
 * 10.8.6: a send queue completes in order), so memory is a ring.
 */
#include <errno.h>

#include "rdma.h"

#define SIGNAL_EVERY 16u
#define SIGNAL_BYTES (FF_RDMA_RING / 8)
#define CACHE_LINE 64u
#define ALL_OFFLOADS (FF_OFF_CSUM | FF_OFF_TSO | FF_OFF_ECN)
#define COMPLETIONS 32

static_assert(sizeof(struct ff_rdma_offload) == 10, "what ff_offload_write writes");

/* A request's name: its queue pair, and its place in the send queue. */
static uint64_t request_id(const struct ff_rdma_qp *qp, uint32_t number) {
    return (uint64_t)(uintptr_t)qp << 16 | number % FF_RDMA_SQ;
}

static struct ff_rdma_qp *request_qp(uint64_t id) {
    return (struct ff_rdma_qp *)(uintptr_t)(id >> 16);
}

/* ---- completions ---- */

/* Nothing is sent any more; what is not known to be done never will be. */
static void stop(struct ff_rdma_qp *qp) {
    qp->stopped = true;
    for (; qp->done != qp->built; qp->done++)
        qp->stats.uncertain += !qp->sent[qp->done % FF_RDMA_SQ].control;
}

/* All requests before `number` (modulo FF_RDMA_SQ) are done, and their memory is free. */
static void done_before(struct ff_rdma_qp *qp, uint32_t number) {
    while (qp->done % FF_RDMA_SQ != number % FF_RDMA_SQ) {
        qp->controls -= qp->sent[qp->done % FF_RDMA_SQ].control;
        qp->tail = qp->sent[qp->done % FF_RDMA_SQ].next;
        qp->done++;
    }
    if (qp->done == qp->built)
        qp->head = qp->tail = 0;
}

static void complete(const struct ibv_wc *wc) {
    struct ff_rdma_qp *qp = request_qp(wc->wr_id);
    uint32_t number = wc->wr_id & 0xffff;

    if (qp->stopped)
        return;
    if (wc->status == IBV_WC_SUCCESS) {
        /* the last of a full queue is its own successor: at least one is done */
        done_before(qp, number);
        done_before(qp, number + 1);
        return;
    }
    done_before(qp, number);
    stop(qp);
    ff_rdma_fail(qp->peer, ibv_wc_status_str(wc->status));
}

unsigned int ff_rdma_reap(struct ff_rdma_queue *q) {
    struct ibv_wc wc[COMPLETIONS];
    int n = ibv_poll_cq(q->send_cq, COMPLETIONS, wc);

    for (int i = 0; i < n; i++)
        complete(&wc[i]);
    return n > 0 ? (unsigned int)n : 0;
}

/* ---- requests ---- */

/* `len` bytes of the ring that lie together; NULL: there is no room. */
static uint8_t *reserve(struct ff_rdma_qp *qp, uint32_t len) {
    len = RTE_ALIGN(len, CACHE_LINE);
    /* head == tail: all of it is free, as what is reserved never fills the ring */
    if (qp->head >= qp->tail && FF_RDMA_RING - qp->head < len) {
        if (qp->tail <= len)
            return NULL;
        qp->head = 0;
    } else if (qp->head < qp->tail && qp->tail - qp->head <= len) {
        return NULL;
    }
    qp->head += len;
    return qp->ring + qp->head - len;
}

/* Chains a request for `len` bytes at p. */
static void request(struct ff_rdma_qp *qp, const uint8_t *p, uint32_t len, bool control) {
    uint32_t at = qp->built % FF_RDMA_SQ;
    struct ibv_send_wr *wr = &qp->wr[at];

    qp->sge[at] = (struct ibv_sge){.addr = (uintptr_t)p, .length = len, .lkey = qp->mr->lkey};
    *wr = (struct ibv_send_wr){
        .wr_id = request_id(qp, qp->built),
        .sg_list = &qp->sge[at],
        .num_sge = 1,
        .opcode = IBV_WR_SEND,
        .send_flags = len <= qp->inline_max ? IBV_SEND_INLINE : 0,
    };
    qp->unsignalled++;
    qp->unsignalled_bytes += len;
    if (control || qp->unsignalled >= SIGNAL_EVERY || qp->unsignalled_bytes >= SIGNAL_BYTES) {
        wr->send_flags |= IBV_SEND_SIGNALED;
        qp->unsignalled = qp->unsignalled_bytes = 0;
    }
    if (qp->built != qp->posted)
        qp->wr[(qp->built - 1) % FF_RDMA_SQ].next = wr;
    qp->sent[at].next = qp->head;
    qp->sent[at].control = control;
    qp->controls += control;
    qp->built++;
}

/* Rings the doorbell for what is chained. */
static void post(struct ff_rdma_qp *qp) {
    struct ibv_send_wr *bad;

    if (qp->built == qp->posted || qp->stopped)
        return;
    qp->stats.doorbells++;
    if (ibv_post_send(qp->qp, &qp->wr[qp->posted % FF_RDMA_SQ], &bad) != 0) {
        stop(qp);
        ff_rdma_fail(qp->peer, "the device takes no request");
    }
    qp->posted = qp->built;
}

void ff_rdma_post(struct ff_worker *w) {
    struct ff_rdma_qp *qp;

    while ((qp = w->unposted) != NULL) {
        w->unposted = qp->unposted_next;
        qp->unposted_listed = false;
        post(qp);
    }
}

/* The header of the next message, which tells the newest limit. */
static struct ff_rdma_header header(struct ff_rdma_qp *qp, uint8_t type) {
    qp->window.told = qp->window.granted;
    return (struct ff_rdma_header){
        .magic = FF_RDMA_MAGIC,
        .version = FF_RDMA_VERSION,
        .type = type,
        .epoch = qp->peer->epoch,
        .limit = qp->window.told,
    };
}

bool ff_rdma_control(struct ff_rdma_qp *qp, uint8_t type, uint32_t mark) {
    struct ff_rdma_header h;
    uint8_t *p =
        qp->ring + FF_RDMA_RING + (size_t)(qp->built % FF_RDMA_SQ) * sizeof(struct ff_rdma_header);

    if (qp->stopped || atomic_load(&qp->peer->state) == FF_RDMA_FAILED)
        return true; /* it matters no more */
    if (qp->controls == FF_RDMA_CONTROLS || qp->built - qp->done == FF_RDMA_SQ)
        return false;
    h = header(qp, type);
    h.mark = mark;
    memcpy(p, &h, sizeof(h));
    request(qp, p, sizeof(h), true);
    qp->stats.controls++;
    post(qp);
    return true;
}

/* ---- frames ---- */

static bool can_send(struct ff_rdma_qp *qp) {
    return qp->built - qp->done - qp->controls < FF_RDMA_SENDS;
}

static uint8_t *room_for(struct ff_rdma_qp *qp, uint32_t len) {
    uint8_t *p = can_send(qp) ? reserve(qp, len) : NULL;

    if (likely(p != NULL) || ff_rdma_reap(qp->queue) == 0 || qp->stopped || !can_send(qp))
        return p;
    return reserve(qp, len);
}

/* Copies frame and header to p. */
static void fill(struct ff_rdma_qp *qp, const struct ff_frame *f, uint32_t vni, uint8_t *p) {
    struct ff_rdma_header h = header(qp, FF_RDMA_DATA);
    struct ff_reader r;

    if (unlikely(f->offload.what != 0))
        ff_offload_write((uint8_t *)&h.offload, f, ALL_OFFLOADS);
    h.vni = vni;
    h.len = f->len;
    memcpy(p, &h, sizeof(h));
    ff_reader_start(&r, f);
    ff_reader_copy(&r, p + sizeof(h), f->len);
}

static void count(struct ff_worker *w, const struct ff_rdma_qp *qp, const struct ff_port *port,
                  uint32_t len) {
    uint16_t device = qp->queue->dev->port->id;
    struct ff_queue_stats *network = &w->port_stats[port->id].queue[0];

    network->tx_packets++;
    network->tx_bytes += len;
    w->port_stats[device].encapsulated++;
}

static void drop_full(struct ff_worker *w, struct ff_rdma_qp *qp, struct ff_frame *frame,
                      uint64_t *why) {
    uint16_t device = qp->queue->dev->port->id;

    (*why)++;
    w->port_stats[device].queue[w->index].tx_full++;
    ff_drop(w, device, FF_DROP_RING_FULL, frame);
}

static bool fits(const struct ff_port *port, const struct ff_frame *f) {
    return f->len <= FF_RDMA_FRAME_MAX &&
           (f->len <= port->max_frame || ff_offload_unit(f) <= port->max_frame);
}

bool ff_rdma_room(struct ff_rdma_qp *qp, uint32_t len) {
    uint32_t head = qp->head;
    uint8_t *p;

    if (ff_rdma_window_left(&qp->window) == 0)
        return false;
    p = room_for(qp, FF_RDMA_HEADER_LEN + len);
    if (p != NULL && qp->built == qp->done)
        qp->head = qp->tail = 0; /* as after done_before */
    else if (p != NULL)
        qp->head = head;
    return p != NULL;
}

void ff_rdma_send(struct ff_worker *w, struct ff_rdma_qp *qp, struct ff_port *port,
                  struct ff_frame *frame) {
    struct ff_queue_stats *queue;
    uint8_t *p;

    if (unlikely(atomic_load_explicit(&port->tap, memory_order_relaxed) & FF_TAP_TX))
        ff_tap_frame(w, port, FF_TAP_TX, frame);
    count(w, qp, port, frame->len);
    if (unlikely(ff_rdma_window_left(&qp->window) == 0)) {
        drop_full(w, qp, frame, &qp->stats.no_credit);
        return;
    }
    p = room_for(qp, FF_RDMA_HEADER_LEN + frame->len);
    if (unlikely(p == NULL)) {
        drop_full(w, qp, frame, &qp->stats.no_room);
        return;
    }
    fill(qp, frame, (uint32_t)(uintptr_t)port->dev, p);
    request(qp, p, FF_RDMA_HEADER_LEN + frame->len, false);
    qp->window.posted++;
    qp->stats.tx_messages++;
    qp->stats.tx_bytes += frame->len;
    queue = &w->port_stats[qp->queue->dev->port->id].queue[w->index];
    queue->tx_packets++;
    queue->tx_bytes += frame->len;
    ff_frame_free(frame);
    if (!qp->unposted_listed) {
        qp->unposted_listed = true;
        qp->unposted_next = w->unposted;
        w->unposted = qp;
    }
}

bool ff_rdma_output(struct ff_worker *w, struct ff_port *port, uint16_t in_port,
                    struct ff_frame *frame) {
    struct ff_rdma_peer *peer = ff_rdma_active(frame->remote & (uint16_t)~FF_TUNNEL_RDMA);
    struct ff_rdma_qp *qp;

    if (peer == NULL || unlikely(!fits(port, frame)))
        return false;
    qp = peer->qp[w->index];
    if (unlikely(qp->stopped))
        return false;
    if (unlikely(ff_rdma_changing(qp))) {
        enum ff_rdma_way way = ff_rdma_way(w, qp, port, in_port, frame);

        if (way != FF_RDMA_BY_PEER)
            return way == FF_RDMA_HOLDS;
    }
    ff_rdma_send(w, qp, port, frame);
    return true;
}
