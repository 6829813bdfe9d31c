/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory ports: a worker's turns at the rings of ff_shm.h. What is mapped, and
 * when, is memport_map.c's; shortcuts are shortcut.c's.
 */
#include <errno.h>
#include <stdlib.h>

#include <rte_prefetch.h>

#include "memport.h"

static const uint8_t fault_of[] = {
    [FF_RING_GOOD] = FF_FAULT_NONE,     [FF_RING_JUMP] = FF_FAULT_AVAIL_JUMP,
    [FF_RING_SLOT] = FF_FAULT_INDEX,    [FF_RING_LAP] = FF_FAULT_LAP,
    [FF_RING_CHAIN] = FF_FAULT_CHAIN,   [FF_RING_ADDRESS] = FF_FAULT_ADDRESS,
    [FF_RING_MARKER] = FF_FAULT_MARKER,
};

static inline bool usable(_Atomic bool *active) {
    return atomic_load_explicit(active, memory_order_acquire);
}

/* The container broke a rule: the queue stops, is counted and named. */
static void stop(struct ff_worker *w, const struct ff_memport *m, _Atomic bool *active,
                 const char *what, unsigned int queue, unsigned int ring_fault) {
    bool lost = atomic_load_explicit(&m->mem.lost, memory_order_relaxed);
    unsigned int fault = lost ? FF_FAULT_MEMORY : fault_of[ring_fault];

    atomic_store(active, false);
    __atomic_fetch_add(&w->port_stats[m->port->id].fault[fault], 1, __ATOMIC_RELAXED);
    ff_port_state(m->port, FF_PORT_LOST, "%s queue %u stopped: %s; reconnect", what, queue,
                  ff_fault_name(fault));
}

static inline bool broken(const struct ff_memport *m, unsigned int fault) {
    return unlikely(fault != FF_RING_GOOD ||
                    atomic_load_explicit(&m->mem.lost, memory_order_relaxed));
}

/* ---- from the container ---- */

/* Notes that a buffer is in hand, and where its data is; NULL when that is nowhere. */
static inline const uint8_t *take(const struct ff_memport *m, struct ff_memport_in *in,
                                  const struct ff_shm_desc *d) {
    ff_borrow_take(&in->ring, d);
    in->taken[in->n_taken++] = d->slot;
    return ff_shm_at(&m->maps, d);
}

/*
 * Takes the markers at the front of *n descriptors, up to one for each shortcut that there can be;
 * *n are left. false: a marker has to wait, and what is behind it too.
 */
static bool take_markers(struct ff_worker *w, struct ff_memport *m, unsigned int queue, uint32_t *n,
                         unsigned int *fault) {
    struct ff_memport_in *in = &m->in[queue];
    struct ff_shm_desc d;

    for (unsigned int i = 0; i<FF_BURST && * n> 0; i++, --*n) {
        enum ff_marker met;

        *fault = ff_borrow_read(&in->ring, 0, &d);
        if (likely(*fault != FF_RING_GOOD || !(d.flags & FF_DESC_MARKER)))
            return true; /* whoever takes it reads it again */
        met = ff_marker_meet(w, m, queue, &d);
        if (met == FF_MARKER_WAIT)
            return false;
        if (met == FF_MARKER_FORGED) {
            *fault = FF_RING_MARKER;
            return false;
        }
        ff_borrow_take(&in->ring, &d);
        ff_borrow_give(&in->ring, d.slot);
        ff_borrow_advance(&in->ring, 1);
    }
    return true;
}

/* A frame in several buffers: descriptor i of n, and those behind it; how many, 0 with the fault.
 */
static uint32_t take_chain(const struct ff_memport *m, struct ff_memport_in *in, uint32_t i,
                           uint32_t n, struct ff_seg *seg, unsigned int *fault) {
    struct ff_shm_desc d[FF_SHM_CHAIN_MAX];
    uint32_t k = ff_borrow_frame(&in->ring, i, n, d, fault);

    for (uint32_t j = 0; j < k; j++) {
        in->taken[in->n_taken++] = d[j].slot;
        seg[j] = (struct ff_seg){ff_shm_at(&m->maps, &d[j]), d[j].len};
        if (seg[j].p == NULL) {
            *fault = FF_RING_ADDRESS;
            return 0;
        }
    }
    return k;
}

/* Fills in a frame whose n pieces are in seg: the first bytes go to a head, seg keeps the others.
 */
static inline void frame_from(struct ff_frame *f, struct ff_arena *arena, struct ff_seg *seg,
                              uint32_t n) {
    uint8_t *head = arena->head[arena->n_heads++] + FF_HEAD_ROOM;
    uint32_t head_len = 0, left = 0;

    f->head = head;
    f->seg = seg;
    f->steer = 0;
    f->offload = (struct ff_offload){0};
    if (likely(n == 1)) {
        head_len = RTE_MIN(seg->len, FF_HEAD_COPY);
        ff_copy_short(head, seg->p, head_len);
        f->len = seg->len;
        f->head_len = (uint16_t)head_len;
        f->n_segs = seg->len > head_len;
        *seg = (struct ff_seg){seg->p + head_len, seg->len - head_len};
        return;
    }
    f->len = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct ff_seg s = seg[i];
        uint32_t part = RTE_MIN(s.len, FF_HEAD_COPY - head_len);

        f->len += s.len;
        memcpy(head + head_len, s.p, part);
        head_len += part;
        if (s.len > part)
            seg[left++] = (struct ff_seg){s.p + part, s.len - part};
    }
    f->head_len = (uint16_t)head_len;
    f->n_segs = (uint16_t)left;
}

/* The frames of n descriptors, up to a marker; sets how many descriptors they took. */
static unsigned int take_frames(const struct ff_memport *m, struct ff_memport_in *in,
                                struct ff_arena *arena, uint32_t *n, struct ff_frame *frames,
                                unsigned int max, unsigned int *fault) {
    uint16_t pieces[FF_BURST];
    struct ff_seg *seg = arena->seg;
    unsigned int k = 0;
    uint32_t i = 0;

    while (k < max && i < *n) {
        struct ff_shm_desc d;

        *fault = ff_borrow_read(&in->ring, i, &d);
        if (unlikely(*fault != FF_RING_GOOD || d.flags & FF_DESC_MARKER))
            break;
        if (likely(!(d.flags & FF_DESC_MORE))) {
            *seg = (struct ff_seg){take(m, in, &d), d.len};
            if (unlikely(seg->p == NULL)) {
                *fault = FF_RING_ADDRESS;
                break;
            }
            pieces[k] = 1;
        } else {
            pieces[k] = (uint16_t)take_chain(m, in, i, *n, seg, fault);
            if (pieces[k] == 0)
                break;
        }
        rte_prefetch0(seg->p);
        rte_prefetch0(seg->p + RTE_CACHE_LINE_SIZE);
        i += pieces[k];
        seg += pieces[k++];
    }
    *n = i;
    arena->n_heads = 0;
    arena->n_segs = (unsigned int)(seg - arena->seg);
    seg = arena->seg;
    for (unsigned int j = 0; j < k; seg += pieces[j++])
        frame_from(&frames[j], arena, seg, pieces[j]);
    return k;
}
static_assert(FF_BURST * FF_SHM_CHAIN_MAX <= FF_ARENA_SEGS, "a burst of the longest chains fits");

static unsigned int memport_rx(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                               struct ff_frame *frames, unsigned int n) {
    struct ff_memport *m = port->dev;
    struct ff_memport_in *in = &m->in[queue];
    unsigned int fault = FF_RING_GOOD, got = 0;
    uint32_t ready;

    if (unlikely(!usable(&in->active)))
        return 0;
    ready = ff_borrow_ready(&in->ring, n, &fault);
    if (ready > 0 && take_markers(w, m, queue, &ready, &fault) && fault == FF_RING_GOOD) {
        got = take_frames(m, in, &w->arena, &ready, frames, n, &fault);
        ff_borrow_advance(&in->ring, ready);
    }
    if (broken(m, fault))
        stop(w, m, &in->active, "transmit", queue, fault);
    return got;
}

static void memport_rx_done(struct ff_worker *w, struct ff_port *port, unsigned int queue) {
    struct ff_memport *m = port->dev;
    struct ff_memport_in *in = &m->in[queue];

    (void)w;
    for (unsigned int i = 0; i < in->n_taken; i++)
        ff_borrow_give(&in->ring, in->taken[i]);
    in->n_taken = 0;
}

static bool memport_arm(struct ff_worker *w, struct ff_port *port, unsigned int queue) {
    struct ff_memport *m = port->dev;
    struct ff_memport_in *in = &m->in[queue];

    if (!usable(&in->active)) /* whoever makes it so wakes the workers */
        return true;
    if (!ff_waker_watch(w, &in->kick))
        return false;
    ff_borrow_listen(&in->ring, true);
    return true;
}

static void memport_disarm(struct ff_port *port, unsigned int queue) {
    struct ff_memport *m = port->dev;
    struct ff_memport_in *in = &m->in[queue];

    if (usable(&in->active))
        ff_borrow_listen(&in->ring, false);
}

static void memport_leave(struct ff_port *port, unsigned int queue) {
    struct ff_memport *m = port->dev;
    struct ff_memport_in *in = &m->in[queue];

    if (!usable(&in->active)) /* the control thread takes care of it */
        return;
    ff_waker_unwatch(&in->kick);
    ff_borrow_listen(&in->ring, false);
}

/* ---- to the container ---- */

/*
 * Writes a frame to as many buffers as it takes, from buffer i of n on; how many. 0: there are too
 * few, with *too_long: too few for whatever is posted, or with the fault.
 */
static uint32_t put_chain(const struct ff_memport *m, struct ff_filler *ring, uint32_t i,
                          uint32_t n, const struct ff_frame *f, bool *too_long,
                          unsigned int *fault) {
    struct ff_seg to[FF_SHM_CHAIN_MAX];
    uint32_t len = 0, k = 0, left = f->len;
    struct ff_reader r;

    for (; len < f->len; k++) {
        struct ff_shm_desc d;

        *too_long = k == FF_SHM_CHAIN_MAX;
        if (*too_long || i + k == n)
            return 0;
        d = ff_fill_read(ring, i + k);
        to[k] = (struct ff_seg){ff_shm_at(&m->maps, &d), d.len};
        if (to[k].p == NULL) {
            *fault = FF_RING_ADDRESS;
            return 0;
        }
        len += d.len;
    }
    ff_reader_start(&r, f);
    for (uint32_t j = 0; j < k; j++) {
        uint32_t part = RTE_MIN(left, to[j].len);

        ff_reader_copy(&r, (uint8_t *)(uintptr_t)to[j].p, part);
        left -= part;
        ff_fill_put(ring, i + j, (uint16_t)part, left > 0);
    }
    return k;
}

/* Writes the frames in order; returns how many buffers they took. */
static uint32_t put_frames(const struct ff_memport *m, struct ff_filler *ring,
                           const struct ff_frame *frames, unsigned int n, struct ff_sent *sent,
                           unsigned int *fault) {
    uint32_t ready = ff_fill_ready(ring, n, fault), at = 0;
    unsigned int plain = RTE_MIN(ready, n);
    uint8_t *to[FF_BURST];

    for (unsigned int i = 0; i < plain; i++) {
        struct ff_shm_desc d = ff_fill_read(ring, i);

        to[i] = likely(d.len >= frames[i].len) ? ff_shm_at(&m->maps, &d) : NULL;
        __builtin_prefetch(to[i], 1);
        __builtin_prefetch((const void *)((uintptr_t)to[i] + RTE_CACHE_LINE_SIZE), 1);
    }
    for (unsigned int i = 0; i < n; i++) {
        /* as long as each frame took one buffer, to[] is about the right one */
        if (likely(i < plain && at == i && to[i] != NULL)) {
            ff_put_frame(to[i], &frames[i]);
            ff_fill_put(ring, at++, (uint16_t)frames[i].len, false);
        } else {
            bool too_long = false;
            uint32_t k;

            ready = ff_fill_ready(ring, UINT32_MAX, fault);
            k = put_chain(m, ring, at, ready, &frames[i], &too_long, fault);
            if (too_long) {
                sent->accounted++;
                continue;
            }
            if (k == 0)
                break;
            at += k;
        }
        sent->packets++;
        sent->bytes += frames[i].len;
    }
    return at;
}

static struct ff_sent memport_tx(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                                 struct ff_frame *frames, unsigned int n) {
    struct ff_memport *m = port->dev;
    struct ff_memport_out *out = &m->out[queue];
    struct ff_sent sent = {0};
    unsigned int fault = FF_RING_GOOD;

    if (likely(usable(&out->active))) {
        uint32_t used = put_frames(m, &out->ring, frames, n, &sent, &fault);

        if (likely(used > 0))
            ff_fill_publish(&out->ring, used);
        w->port_stats[port->id].drop[FF_DROP_TX_OVERSIZE] += sent.accounted;
        if (broken(m, fault))
            stop(w, m, &out->active, "receive", queue, fault);
    } else {
        w->port_stats[port->id].drop[FF_DROP_PORT_DOWN] += n;
        sent.accounted = n;
    }
    for (unsigned int i = 0; i < n; i++)
        ff_frame_free(&frames[i]);
    return sent;
}

/* ---- control ---- */

static int memport_open(struct ff_port *port, const struct ff_port_conf *conf, char *err) {
    struct ff_memport *m = aligned_alloc(RTE_CACHE_LINE_SIZE, sizeof(*m));

    (void)conf;
    if (m == NULL) {
        ff_error(err, "%s: no memory", port->name);
        return -ENOMEM;
    }
    memset(m, 0, sizeof(*m));
    m->port = port;
    for (unsigned int q = 0; q < FF_MAX_QUEUES; q++)
        m->in[q].kick = FF_NO_WAKER;
    port->dev = m;
    ff_port_state(port, FF_PORT_WAITING, "no container is connected");
    return 0;
}

static void memport_close(struct ff_port *port) {
    struct ff_memport *m = port->dev;

    ff_links_drop(m);
    ff_synchronize();
    ff_memport_unmap(m);
    free(m);
}

static struct ff_mem *memport_mem(struct ff_port *port) {
    struct ff_memport *m = port->dev;

    return m != NULL ? &m->mem : NULL; /* NULL while it opens */
}

struct ff_memport *ff_memport(uint16_t port_id) {
    struct ff_port *port = ff_port(port_id);

    return port != NULL && port->ops == &ff_port_ff_ops ? port->dev : NULL;
}

const struct ff_port_ops ff_port_ff_ops = {
    .open = memport_open,
    .close = memport_close,
    .rx = memport_rx,
    .rx_done = memport_rx_done,
    .tx = memport_tx,
    .arm = memport_arm,
    .disarm = memport_disarm,
    .leave = memport_leave,
    .mem = memport_mem,
};
