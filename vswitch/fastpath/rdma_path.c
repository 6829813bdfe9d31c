/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Planned changes of path between VXLAN and RDMA: ff_rdma.h. The sender holds
 * frames until it knows that nothing is before them on the old way. Frames that are held
 * count as parked. What is held is a queue pair's, and so one worker's.
 */
#include "rdma.h"
#include "tunnel.h"

#define PHASE(change) ((change) % FF_RDMA_CHANGES)
#define NEVER (-1)

/* ---- which frames belong together ---- */

/* The bit in `moved` of a frame's tunnel end and source port; NEVER: none is needed. */
static int32_t bit_of(struct ff_rdma_path *path, const struct ff_frame *f) {
    uint16_t remote = f->remote & (uint16_t)~FF_TUNNEL_RDMA;
    const struct ff_remote *r = ff_tunnel_remote(remote);

    if (r == NULL || !r->reachable)
        return NEVER;
    for (unsigned int i = 0; i < FF_RDMA_ENDS; i++) {
        if (path->end[i] == 0)
            path->end[i] = remote;
        if (path->end[i] == remote)
            return (int32_t)(i * FF_RDMA_PATHS + f->steer % FF_RDMA_PATHS);
    }
    return NEVER;
}

static bool has_moved(const struct ff_rdma_path *path, int32_t bit) {
    return bit == NEVER || (path->moved[bit / 64] >> (bit % 64) & 1) != 0;
}

static void set_moved(struct ff_rdma_path *path, int32_t bit) {
    path->moved[bit / 64] |= 1ull << (bit % 64);
}

/* ---- what is held ---- */

static void list(struct ff_worker *w, struct ff_rdma_qp *qp) {
    if (atomic_load_explicit(&qp->path.listed, memory_order_relaxed))
        return;
    atomic_store(&qp->path.listed, true);
    qp->path.next = w->holding;
    w->holding = qp;
}

static unsigned int bufs_of(const struct ff_frame *f) {
    return ff_frame_is_mbuf(f) ? f->buf->nb_segs : 1 + f->len / RTE_MBUF_DEFAULT_DATAROOM;
}

/* Takes the frame over; false: there is no room. */
static bool hold(struct ff_worker *w, struct ff_rdma_qp *qp, const struct ff_port *port,
                 uint16_t in_port, const struct ff_frame *frame, int32_t bit) {
    struct ff_rdma_path *path = &qp->path;
    struct ff_rdma_held *h = &path->held[path->n_held];

    if (path->n_held == FF_RDMA_HELD || path->n_bufs + bufs_of(frame) > FF_RDMA_HELD_BUFS)
        return false;
    *h = (struct ff_rdma_held){.frame = *frame, .port = port->id, .in_port = in_port, .bit = bit};
    if (ff_frame_keep(&h->frame, ff.pool) != 0)
        return false;
    h->frame.remote = frame->remote;
    path->n_held++;
    path->n_bufs += h->frame.buf->nb_segs;
    w->stats.parked++;
    qp->stats.held++;
    list(w, qp);
    return true;
}

/* One that is held no more goes its way. */
static void go(struct ff_worker *w, struct ff_rdma_qp *qp, const struct ff_rdma_held *h,
               bool by_peer) {
    struct ff_port *port = ff_port(h->port);
    struct ff_frame frame = h->frame;

    w->stats.parked--;
    qp->path.n_bufs -= frame.buf->nb_segs;
    if (unlikely(port == NULL || port->ops != &ff_port_vxlan_ops)) {
        ff_drop(w, FF_PORT_NONE, FF_DROP_PORT_GONE, &frame);
    } else if (by_peer) {
        ff_rdma_send(w, qp, port, &frame);
    } else {
        frame.remote &= (uint16_t)~FF_TUNNEL_RDMA;
        ff_vxlan_output(w, port, h->in_port, &frame);
    }
}

/* Where one that is held may go now. */
static enum ff_rdma_way way_of(const struct ff_rdma_qp *qp, const struct ff_rdma_held *h) {
    const struct ff_rdma_path *path = &qp->path;
    const struct ff_rdma_peer *peer = qp->peer;

    if (atomic_load(&peer->state) != FF_RDMA_ACTIVE || qp->stopped)
        return FF_RDMA_BY_VXLAN;
    switch (PHASE(path->change)) {
    case FF_RDMA_JOINING:
        return has_moved(path, h->bit) ? FF_RDMA_BY_PEER : FF_RDMA_HOLDS;
    case FF_RDMA_LEAVING:
        if (path->again)
            return FF_RDMA_BY_PEER;
        return atomic_load(&qp->marked) == peer->leave_mark ? FF_RDMA_BY_VXLAN : FF_RDMA_HOLDS;
    default:
        return FF_RDMA_BY_PEER;
    }
}

/* Whether nobody has told that what went the old way has come. */
static bool in_vain(const struct ff_rdma_qp *qp, const struct ff_rdma_held *h) {
    const struct ff_rdma_peer *peer = qp->peer;

    if (PHASE(qp->path.change) == FF_RDMA_LEAVING)
        return !qp->path.again && atomic_load(&qp->marked) != peer->leave_mark;
    return atomic_load(&peer->state) == FF_RDMA_ACTIVE && !has_moved(&qp->path, h->bit);
}

static void release(struct ff_worker *w, struct ff_rdma_qp *qp) {
    struct ff_rdma_path *path = &qp->path;
    unsigned int n = path->n_held, left = 0;

    path->dirty = false;
    path->n_ready = 0;
    path->n_held = 0; /* what comes back here by ff_vxlan_output finds nothing held */
    for (unsigned int i = 0; i < n; i++) {
        struct ff_rdma_held *h = &path->held[i];
        enum ff_rdma_way way = way_of(qp, h);

        if (way == FF_RDMA_BY_PEER && (path->n_ready > 0 || !ff_rdma_room(qp, h->frame.len)))
            path->n_ready++;
        else if (way != FF_RDMA_HOLDS) {
            qp->stats.unplanned += PHASE(path->change) == FF_RDMA_LEAVING && in_vain(qp, h);
            go(w, qp, h, way == FF_RDMA_BY_PEER);
            continue;
        }
        path->held[left++] = *h;
    }
    path->n_held = left;
}

/* ---- JOINING ---- */

/* Sends a barrier for each source port of what is held. */
static void ask(struct ff_worker *w, struct ff_rdma_qp *qp) {
    struct ff_rdma_path *path = &qp->path;
    struct ff_rdma_barrier barrier = {.magic = FF_RDMA_MAGIC,
                                      .epoch = qp->peer->epoch,
                                      .round = ++path->round,
                                      .qp = (uint16_t)w->index};

    path->n_asked = 0;
    for (unsigned int i = 0; i < path->n_held; i++) {
        int32_t bit = path->held[i].bit;
        unsigned int k = 0;

        if (has_moved(path, bit))
            continue;
        while (k < path->n_asked && path->asked[k] != bit)
            k++;
        if (k == path->n_asked)
            path->asked[path->n_asked++] = bit;
    }
    path->waiting = path->n_asked > 0;
    barrier.n = (uint16_t)path->n_asked;
    for (unsigned int k = 0; k < path->n_asked; k++)
        ff_vxlan_barrier(w, path->end[(uint32_t)path->asked[k] / FF_RDMA_PATHS],
                         (uint16_t)((uint32_t)path->asked[k] % FF_RDMA_PATHS), &barrier);
}

void ff_rdma_came(struct ff_rdma_qp *qp, uint32_t round) {
    struct ff_rdma_path *path = &qp->path;

    if (!path->waiting || round != path->round)
        return;
    for (unsigned int k = 0; k < path->n_asked; k++)
        set_moved(path, path->asked[k]);
    path->waiting = false;
    path->dirty = true;
}

/* All that waits for a barrier goes by VXLAN, behind what it would have waited for. */
static void go_on_by_vxlan(struct ff_worker *w, struct ff_rdma_qp *qp) {
    struct ff_rdma_path *path = &qp->path;
    unsigned int n = path->n_held, left = 0;

    path->waiting = false;
    path->n_held = 0;
    for (unsigned int i = 0; i < n; i++) {
        struct ff_rdma_held h = path->held[i];

        if (has_moved(path, h.bit))
            path->held[left++] = h;
        else
            go(w, qp, &h, false);
    }
    path->n_held = left;
}

static enum ff_rdma_way join(struct ff_worker *w, struct ff_rdma_qp *qp, const struct ff_port *port,
                             uint16_t in_port, struct ff_frame *frame) {
    struct ff_rdma_path *path = &qp->path;
    int32_t bit = bit_of(path, frame);

    if (has_moved(path, bit)) {
        if (path->n_ready == 0 || !hold(w, qp, port, in_port, frame, bit))
            return FF_RDMA_BY_PEER;
        path->n_ready++;
        return FF_RDMA_HOLDS;
    }
    if (!hold(w, qp, port, in_port, frame, bit)) {
        go_on_by_vxlan(w, qp);
        return FF_RDMA_BY_VXLAN;
    }
    if (!path->waiting)
        ask(w, qp);
    return FF_RDMA_HOLDS;
}

/* ---- LEAVING ---- */

void ff_rdma_marked(struct ff_rdma_qp *qp, uint32_t mark) {
    qp->path.dirty = true;
    if (qp->path.again) {
        qp->path.answered = true;
        return;
    }
    atomic_store(&qp->marked, mark);
    ff_event_signal();
}

/* What was held has gone over the peer, and the mark is answered: another one goes behind it. */
static void mark_again(struct ff_rdma_qp *qp) {
    qp->path.again = qp->path.answered = false;
    qp->mark_sent--;
    atomic_store(&qp->queue->asked, true);
}

static enum ff_rdma_way leave(struct ff_worker *w, struct ff_rdma_qp *qp,
                              const struct ff_port *port, uint16_t in_port,
                              struct ff_frame *frame) {
    struct ff_rdma_path *path = &qp->path;
    uint32_t wanted = qp->peer->leave_mark;
    bool marks = qp->mark_sent == wanted;

    if (marks && !path->again && atomic_load(&qp->marked) == wanted)
        return FF_RDMA_BY_VXLAN;
    if ((!marks || path->again) && path->n_ready == 0)
        return FF_RDMA_BY_PEER;
    if (hold(w, qp, port, in_port, frame, NEVER)) {
        path->n_ready += path->again;
        return FF_RDMA_HOLDS;
    }
    if (!path->again) {
        path->again = true;
        list(w, qp);
        release(w, qp);
        if (path->n_ready > 0 && hold(w, qp, port, in_port, frame, NEVER)) {
            path->n_ready++;
            return FF_RDMA_HOLDS;
        }
    }
    return FF_RDMA_BY_PEER;
}

/* ---- all phases ---- */

/* Takes note of a new change. */
static void look(struct ff_worker *w, struct ff_rdma_qp *qp) {
    struct ff_rdma_path *path = &qp->path;
    uint32_t change = atomic_load_explicit(&qp->peer->change, memory_order_acquire);

    if (change == path->change)
        return;
    for (unsigned int i = 0; PHASE(path->change) != FF_RDMA_SETTLED && i < path->n_held; i++)
        qp->stats.unplanned += in_vain(qp, &path->held[i]);
    path->change = change;
    path->dirty = true;
    path->waiting = path->again = path->answered = false;
    if (PHASE(change) != FF_RDMA_JOINING)
        return;
    release(w, qp);
    memset(path->moved, 0, sizeof(path->moved));
    memset(path->end, 0, sizeof(path->end));
}

enum ff_rdma_way ff_rdma_way(struct ff_worker *w, struct ff_rdma_qp *qp, const struct ff_port *port,
                             uint16_t in_port, struct ff_frame *frame) {
    struct ff_rdma_path *path = &qp->path;

    look(w, qp);
    if (path->dirty && path->n_held > 0)
        release(w, qp);
    switch (PHASE(path->change)) {
    case FF_RDMA_JOINING:
        return join(w, qp, port, in_port, frame);
    case FF_RDMA_LEAVING:
        return leave(w, qp, port, in_port, frame);
    default:
        if (path->n_ready == 0 || !hold(w, qp, port, in_port, frame, NEVER))
            return FF_RDMA_BY_PEER;
        path->n_ready++;
        return FF_RDMA_HOLDS;
    }
}

bool ff_rdma_holds(const struct ff_rdma_peer *peer) {
    for (unsigned int i = 0; i < peer->n_qps; i++)
        if (atomic_load(&peer->qp[i]->path.listed))
            return true;
    return false;
}

/* ---- barriers received ---- */

unsigned int ff_rdma_barrier(struct ff_worker *w, const struct ff_port *uplink, unsigned int queue,
                             const uint8_t *p, uint32_t len) {
    struct ff_rdma_due *due = &w->due[w->n_due];
    const struct ff_rdma_peer *peer;

    if (len < sizeof(due->barrier))
        return FF_DROP_RDMA_MALFORMED;
    if (w->n_due == RTE_DIM(w->due))
        return FF_DROP_UPCALL_FULL;
    memcpy(&due->barrier, p, sizeof(due->barrier));
    peer = ff_rdma_joined(due->barrier.epoch);
    if (peer == NULL)
        return FF_DROP_RDMA_EPOCH;
    if (due->barrier.magic != FF_RDMA_MAGIC || due->barrier.qp >= peer->n_qps)
        return FF_DROP_RDMA_MALFORMED;
    due->uplink = uplink->id;
    due->queue = (uint16_t)queue;
    w->n_due++;
    return FF_DROP_NONE;
}

/* Counts one, and has the round answered when it was the last. */
static void arrived(const struct ff_rdma_barrier *b) {
    struct ff_rdma_peer *peer = ff_rdma_joined(b->epoch);
    struct ff_rdma_qp *qp;
    uint64_t before, now;

    if (peer == NULL)
        return;
    qp = peer->qp[b->qp];
    before = atomic_load(&qp->came);
    do {
        if ((int32_t)(b->round - (uint32_t)(before >> 32)) < 0)
            return; /* of a round that is over */
        now = before >> 32 == b->round ? before + 1 : (uint64_t)b->round << 32 | 1;
    } while (!atomic_compare_exchange_weak(&qp->came, &before, now));
    if ((uint32_t)now != b->n)
        return;
    atomic_store(&qp->came_due, b->round);
    atomic_store(&qp->queue->asked, true);
    ff_wake(ff.workers[b->qp % ff.n_workers]);
}

static void count_due(struct ff_worker *w) {
    unsigned int left = 0;

    for (unsigned int i = 0; i < w->n_due; i++) {
        const struct ff_rdma_due *due = &w->due[i];
        struct ff_port *uplink = ff_port(due->uplink);

        if (uplink != NULL && ff_poll_holds(w, uplink, due->queue))
            w->due[left++] = *due;
        else
            arrived(&due->barrier);
    }
    w->n_due = left;
}

/* ---- once a loop ---- */

/* Whether nothing is left to be done for it here. */
static bool settle_one(struct ff_worker *w, struct ff_rdma_qp *qp) {
    struct ff_rdma_path *path = &qp->path;
    bool active = atomic_load(&qp->peer->state) == FF_RDMA_ACTIVE && !qp->stopped;

    look(w, qp);
    if (path->n_held > 0)
        release(w, qp);
    if (!active)
        path->again = false;
    if (path->again && path->answered && path->n_held == 0)
        mark_again(qp);
    if (PHASE(path->change) == FF_RDMA_JOINING && active && !path->waiting && path->n_held > 0)
        ask(w, qp);
    return path->n_held == 0 && !path->again;
}

void ff_rdma_settle(struct ff_worker *w) {
    struct ff_rdma_qp *qp, *next, *still = NULL;

    for (qp = w->holding, w->holding = NULL; qp != NULL; qp = next) {
        next = qp->path.next;
        if (settle_one(w, qp)) {
            atomic_store(&qp->path.listed, false);
            continue;
        }
        qp->path.next = still;
        still = qp;
    }
    w->holding = still;
    if (w->n_due > 0)
        count_due(w);
    ff_output_flush(w);
}
