/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A virtqueue from the device's side (virtio 1.1, sections 2.6 and 2.7), and
 * the memory of the guest that owns it. Nothing here trusts the guest: every
 * address goes through ff_mem_at with its length, every descriptor is read
 * once, every index is checked. What breaks the rules is a fault: it stops
 * this queue and no other.
 */
#ifndef FF_VRING_H
#define FF_VRING_H

#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>
#include <stdatomic.h>
#include <stdbool.h>

#include <rte_prefetch.h>

#include "ff.h"
#include "frame.h"
#include "mem.h"
#include "switch.h"

struct ff_vring {
    _Atomic bool active; /* workers may use it */
    bool packed;
    bool mergeable;
    bool event_idx;
    bool in_order;    /* packed: the driver uses buffers in the ring's order */
    uint8_t hdr_len;  /* of the virtio-net header: 10 or 12 */
    uint8_t offloads; /* union of FF_OFF_* that its headers may ask for */
    uint16_t size;    /* entries */
    /* split: indices that only ever grow; packed: positions, with wrap counters */
    uint16_t last_avail, last_used;
    bool avail_wrap, used_wrap;
    uint16_t signalled; /* last_used when the driver was last told, split with event_idx */
    uint16_t taken;     /* chains in hand, not yet given back */
    uint16_t held;      /* packed: slot of the first of them, */
    uint64_t held_used; /* and what will stand there when all of them are given back */
    uint8_t fault;      /* enum ff_fault */
    bool untold;        /* in a worker's list of those whose drivers are to be told */
    struct ff_vring *next_untold;
    int call_fd;
    struct ff_waker kick; /* of transmit queues; the descriptor is our own */
    const struct ff_mem *mem;
    union {
        struct vring_desc *desc;
        struct vring_packed_desc *packed_desc;
    };
    union {
        struct vring_avail *avail;
        struct vring_packed_desc_event *driver_event;
    };
    union {
        struct vring_used *used;
        struct vring_packed_desc_event *device_event;
    };
} __rte_cache_aligned;

/*
 * The fault of a ring that does not lie in its guest's memory, or whose
 * position is not in the ring. librte_vhost translates a ring by the size
 * of that time, takes any other later, and never looks at positions.
 */
unsigned int ff_vring_check(const struct ff_vring *vq);

/* Tells the driver "I poll: do not notify me", sections 2.6.10 and 2.7.10. */
void ff_vring_quiet(struct ff_vring *vq);
/* Tells it to notify of the next buffer. A full barrier, then a look, must follow. */
void ff_vring_listen(struct ff_vring *vq);

/* The host address of `len` bytes at guest address `gpa`, or NULL. */
static inline uint8_t *ff_mem_at(const struct ff_mem *mem, uint64_t gpa, uint32_t len) {
    for (unsigned int i = 0; i < mem->n; i++) {
        const struct ff_region *r = &mem->region[i];
        uint64_t off = gpa - r->gpa;

        if (likely(off < r->size))
            return likely(len <= r->size - off) ? r->host + off : NULL;
    }
    return NULL;
}

/* The region that an address was in last; size 0: none. For one burst. */
struct ff_near {
    uint64_t gpa, size;
    uint8_t *host;
};
uint8_t *ff_mem_look(const struct ff_mem *mem, struct ff_near *near, uint64_t gpa, uint32_t len);

/* As ff_mem_at: buffers of a ring mostly lie in one region. */
static inline uint8_t *ff_mem_near(const struct ff_mem *mem, struct ff_near *near, uint64_t gpa,
                                   uint32_t len) {
    uint64_t off = gpa - near->gpa;

    if (likely(off < near->size && len <= near->size - off))
        return near->host + off;
    return ff_mem_look(mem, near, gpa, len);
}

/*
 * Takes up to n frames that the driver sends (its transmit queue). The frames
 * refer to the driver's buffers until ff_vring_rx_done gives these back.
 */
unsigned int ff_vring_rx(struct ff_vring *vq, struct ff_arena *arena, struct ff_frame *frames,
                         unsigned int n);
/* False: there was nothing to give back. Else the driver is to be told, as after ff_vring_tx. */
bool ff_vring_rx_done(struct ff_vring *vq);

/*
 * Copies frames into the buffers of the driver's receive queue; frees none.
 * too_long counts frames that its buffers can never hold.
 */
struct ff_sent ff_vring_tx(struct ff_vring *vq, const struct ff_frame *frames, unsigned int n,
                           uint32_t *too_long);
/*
 * Interrupts the driver, if it wants that for what was used since the last call. After a full
 * barrier: used descriptors are written before what the driver asks for is read.
 */
void ff_vring_notify(struct ff_vring *vq);

/* ---- between vring.c, vring_split.c and vring_packed.c ---- */

/* Notes the first fault; the caller stops where it is. */
static inline void ff_vring_fault(struct ff_vring *vq, unsigned int fault) {
    if (vq->fault == FF_FAULT_NONE)
        vq->fault = (uint8_t)fault;
}

/* Interrupts the driver, when it has given a descriptor for that. */
void ff_vring_call(const struct ff_vring *vq);

/*
 * Fetches what a frame is going to be written to. A header alone in its cache line is mostly
 * not written: see ff_put_header. NULL does not hurt.
 */
static inline void ff_prefetch_write(const uint8_t *buf, uint32_t hdr_len) {
    uintptr_t p = (uintptr_t)buf;

    if (likely((p + hdr_len) % RTE_CACHE_LINE_SIZE == 0))
        __builtin_prefetch((const void *)p, 0);
    else
        __builtin_prefetch((const void *)p, 1);
    __builtin_prefetch((const void *)(p + RTE_CACHE_LINE_SIZE), 1);
}

/* Fetches the headers of a frame from a buffer of `len` bytes. */
static inline void ff_prefetch_read(const uint8_t *buf, uint32_t len, uint32_t hdr_len,
                                    uint8_t offloads) {
    uintptr_t p = (uintptr_t)buf;

    if (unlikely(offloads != 0)) /* else what is before the frame is not looked at */
        rte_prefetch0((const void *)p);
    rte_prefetch0((const void *)(p + hdr_len));
    rte_prefetch0((const void *)(p + RTE_MIN(len, hdr_len + FF_HEAD_COPY) - 1));
}

/* The buffers of one chain, or of several for one frame, each checked to be mapped. */
struct ff_chain {
    unsigned int n;
    uint32_t len; /* bytes, of all buffers */
    struct ff_seg seg[FF_CHAIN_MAX];
};
/* Adds a descriptor's buffer; false after a fault. Section 2.6.4.2: directions do not mix here. */
static inline bool ff_chain_add(struct ff_vring *vq, struct ff_chain *c, uint64_t addr,
                                uint32_t len, bool writable, bool write) {
    const uint8_t *p;

    if (unlikely(writable != write)) {
        ff_vring_fault(vq, FF_FAULT_DIRECTION);
        return false;
    }
    if (len == 0)
        return true;
    p = ff_mem_at(vq->mem, addr, len);
    if (unlikely(p == NULL)) {
        ff_vring_fault(vq, FF_FAULT_ADDRESS);
        return false;
    }
    if (unlikely(c->n == FF_CHAIN_MAX || len > UINT32_MAX - c->len)) {
        ff_vring_fault(vq, FF_FAULT_CHAIN);
        return false;
    }
    c->seg[c->n++] = (struct ff_seg){p, len};
    c->len += len;
    return true;
}

/*
 * Of several chains for one frame: whether it was only too many buffers in all,
 * no fault of any of them. The frame is then too long for this driver.
 */
static inline bool ff_chain_overflow(struct ff_vring *vq, const struct ff_chain *c,
                                     unsigned int chains_before) {
    if (chains_before == 0 || vq->fault != FF_FAULT_CHAIN || c->n < FF_CHAIN_MAX)
        return false;
    vq->fault = FF_FAULT_NONE;
    return true;
}

/* Whether a chain may join the burst: the others, should they be single buffers, need a piece each.
 */
static inline bool ff_arena_takes_chain(const struct ff_arena *arena) {
    return arena->n_segs + FF_CHAIN_MAX + FF_BURST <= FF_ARENA_SEGS;
}

/*
 * Builds a frame from the buffers of a chain, whose first bytes are the
 * virtio-net header; false when there are fewer.
 */
bool ff_frame_from_chain(const struct ff_vring *vq, struct ff_frame *f, struct ff_arena *arena,
                         const struct ff_chain *chain);
/* Writes len bytes of a frame to a chain, from byte `skip` of the chain on. */
void ff_chain_write(const struct ff_chain *chain, uint32_t skip, struct ff_reader *r, uint32_t len);

/* What frames from single buffers take of the arena, beside how the ring's headers are read: what
 * is written meanwhile may be anything to the compiler, but not these. */
struct ff_taker {
    uint8_t *head; /* the next one */
    struct ff_seg *seg;
    uint32_t hdr_len;
    uint8_t offloads;
};
static inline struct ff_taker ff_taker(const struct ff_vring *vq, struct ff_arena *arena) {
    return (struct ff_taker){
        .head = arena->head[arena->n_heads] + FF_HEAD_ROOM,
        .seg = &arena->seg[arena->n_segs],
        .hdr_len = vq->hdr_len,
        .offloads = vq->offloads,
    };
}
static inline void ff_taken(struct ff_arena *arena, const struct ff_taker *t, unsigned int n) {
    arena->n_heads += n;
    arena->n_segs = (unsigned int)(t->seg - arena->seg);
}

/* The same from a chain of one buffer, of at least the header's length. */
static inline void ff_frame_from_buffer(struct ff_taker *t, struct ff_frame *f, const uint8_t *buf,
                                        uint32_t buf_len) {
    const uint8_t *p = buf + t->hdr_len;
    uint32_t len = buf_len - t->hdr_len;
    uint16_t head_len = (uint16_t)RTE_MIN(len, FF_HEAD_COPY);

    ff_copy_short(t->head, p, head_len);
    f->head = t->head;
    f->seg = t->seg;
    f->len = len;
    f->head_len = head_len;
    f->n_segs = 0;
    f->steer = 0;
    f->offload = ff_offload_read(buf, t->offloads);
    t->head += sizeof(((struct ff_arena *)0)->head[0]);
    if (len > head_len) {
        *t->seg++ = (struct ff_seg){p + head_len, len - head_len};
        f->n_segs = 1;
    }
}

/*
 * The virtio-net header, section 5.1.6. A buffer comes back with the header of last time,
 * mostly the same again: where it is, it is not written, so that its cache line, which need
 * not hold anything else, stays with both sides.
 */
static inline void ff_put_header(uint8_t *p, uint32_t hdr_len, uint16_t num_buffers,
                                 const struct ff_frame *f, uint8_t offloads) {
    typedef uint64_t __attribute__((aligned(1), may_alias)) word64;
    typedef uint32_t __attribute__((aligned(1), may_alias)) word32;
    typedef uint16_t __attribute__((aligned(1), may_alias)) word16;

    if (*(volatile word64 *)p != 0)
        *(word64 *)p = 0;
    if (likely(hdr_len == 12)) {
        uint32_t last = (uint32_t)num_buffers << 16;

        if (*(volatile word32 *)(p + 8) != last)
            *(word32 *)(p + 8) = last;
    } else {
        *(word16 *)(p + 8) = 0;
    }
    if (unlikely(f->offload.what != 0))
        ff_offload_write(p, f, offloads);
}

unsigned int ff_split_rx(struct ff_vring *vq, struct ff_arena *arena, struct ff_frame *frames,
                         unsigned int n);
void ff_split_rx_done(struct ff_vring *vq);
void ff_split_notify(struct ff_vring *vq);
struct ff_sent ff_split_tx(struct ff_vring *vq, const struct ff_frame *frames, unsigned int n,
                           uint32_t *too_long);
unsigned int ff_packed_rx(struct ff_vring *vq, struct ff_arena *arena, struct ff_frame *frames,
                          unsigned int n);
void ff_packed_rx_done(struct ff_vring *vq);
void ff_packed_notify(struct ff_vring *vq);
struct ff_sent ff_packed_tx(struct ff_vring *vq, const struct ff_frame *frames, unsigned int n,
                            uint32_t *too_long);

#endif
