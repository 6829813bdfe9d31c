/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The packet descriptor: what the pipeline handles instead of a packet. `head`
 * are the frame's first bytes in memory that only this worker writes; what
 * follows them lies either in the rest of an mbuf (chain), or is borrowed for as
 * long as the burst lasts, from the sender's vring buffers for example.
 *
 * A frame has one owner at a time. Ports fill frames in rx; the pipeline hands
 * each on by output, parking or ff_frame_free. Whoever keeps a frame beyond
 * the burst calls ff_frame_keep first.
 */
#ifndef FF_FRAME_H
#define FF_FRAME_H

#include <assert.h>
#include <string.h>

#include <rte_byteorder.h>
#include <rte_mbuf.h>
#include <rte_mbuf_ptype.h>

#include "ff.h"
#include "offload.h"

#define FF_ETH_HLEN 14u
#define FF_VLAN_HLEN 4u
/* The largest frame of an MTU: Ethernet header and two tags, as for a QinQ provider. */
#define FF_FRAME_OVERHEAD (FF_ETH_HLEN + 2 * FF_VLAN_HLEN)

#define FF_HEAD_ROOM 64u  /* in front of a private head: for tags, and keeps it aligned */
#define FF_HEAD_COPY 128u /* bytes of a frame that become its private head */
#define FF_SPARE_HEADS 64u
#define FF_ARENA_SEGS 2048u
#define FF_CHAIN_MAX 1024u  /* buffers for a frame: 64 KB are 33 of 2 KB */
#define FF_GSO_HEADERS 256u /* bytes, of a frame that is to be segmented or completed */

/* A piece of a frame in a sender's memory, checked to be mapped. */
struct ff_seg {
    const uint8_t *p;
    uint32_t len;
};

struct ff_frame {
    uint8_t *head;
    union {
        struct rte_mbuf *buf;     /* n_segs == FF_FRAME_MBUF: head is its data */
        const struct ff_seg *seg; /* else: what follows the head */
    };
    uint32_t len;      /* of the whole frame */
    uint16_t head_len; /* readable at head */
    uint16_t n_segs;
    uint16_t steer;  /* hash of the flow's addresses, for choosing a transmit queue */
    uint16_t remote; /* tunnel end, for an output to a vxlan port; as in FF_ACT_SET_TUNNEL */
    struct ff_offload offload;
};
#define FF_FRAME_MBUF UINT16_MAX
static_assert(sizeof(struct ff_frame) <= 40, "a burst of them stays in the first-level cache");

/* A worker's memory for the heads and pieces of one burst from a vring. */
struct ff_arena {
    uint8_t head[FF_BURST + FF_SPARE_HEADS][FF_HEAD_ROOM + FF_HEAD_COPY];
    struct ff_seg seg[FF_ARENA_SEGS];
    unsigned int n_heads, n_segs;
} __rte_cache_aligned;

/* A worker's memory for what gso.c sends at a time. */
struct ff_gso {
    uint8_t head[FF_BURST][FF_GSO_HEADERS];
    struct ff_seg seg[FF_ARENA_SEGS];
    struct ff_frame frames[FF_BURST];
    struct rte_mbuf *done[FF_BURST]; /* of frames that have been cut, freed after that */
    unsigned int n, n_segs, n_done;
} __rte_cache_aligned;

static inline bool ff_frame_is_mbuf(const struct ff_frame *f) {
    return f->n_segs == FF_FRAME_MBUF;
}

static inline void ff_frame_from_mbuf(struct ff_frame *f, struct rte_mbuf *m) {
    f->head = rte_pktmbuf_mtod(m, uint8_t *);
    f->buf = m;
    f->len = m->pkt_len;
    f->head_len = m->data_len;
    f->n_segs = FF_FRAME_MBUF;
    f->steer = 0;
    f->offload = (struct ff_offload){0};
}

/*
 * What the device that received it says of a frame: FF_OFF_VALID, its TCP or UDP checksum is
 * right, or nothing. Of a packet in a tunnel that the device knows it speaks of the inner one
 * (RTE_MBUF_F_RX_OUTER_L4_CKSUM_GOOD is about the outer), and some drivers do not name the
 * tunnel. `inner`: asks about what is in a VXLAN packet.
 */
static inline uint8_t ff_frame_verdict(const struct rte_mbuf *m, bool inner) {
    uint32_t plain = RTE_PTYPE_L2_MASK | RTE_PTYPE_L3_MASK | RTE_PTYPE_L4_MASK;
    uint32_t tunnel = m->packet_type & RTE_PTYPE_TUNNEL_MASK;
    uint32_t l4 = m->packet_type & RTE_PTYPE_INNER_L4_MASK;

    if ((m->ol_flags & RTE_MBUF_F_RX_L4_CKSUM_MASK) != RTE_MBUF_F_RX_L4_CKSUM_GOOD)
        return 0;
    if (!inner)
        return m->packet_type & ~plain ? 0 : FF_OFF_VALID;
    if (tunnel != 0 && tunnel != RTE_PTYPE_TUNNEL_VXLAN)
        return 0;
    return l4 == RTE_PTYPE_INNER_L4_TCP || l4 == RTE_PTYPE_INNER_L4_UDP ? FF_OFF_VALID : 0;
}

static inline void ff_frame_free(struct ff_frame *f) {
    if (ff_frame_is_mbuf(f))
        rte_pktmbuf_free(f->buf);
}

/* One more owner of the same bytes, which nobody may change from now on. */
static inline void ff_frame_share(struct ff_frame *f) {
    if (!ff_frame_is_mbuf(f))
        return;
    for (struct rte_mbuf *m = f->buf; m != NULL; m = m->next)
        rte_mbuf_refcnt_update(m, 1);
}

/*
 * Copies the frame's first `max` bytes into mbufs of `pool`; NULL without
 * memory. The frame stays as it is.
 */
struct rte_mbuf *ff_frame_copy(const struct ff_frame *f, struct rte_mempool *pool, uint32_t max);

/* Makes a frame outlive the burst: the one copy from vring to mbuf. -1: no memory. */
int ff_frame_keep(struct ff_frame *f, struct rte_mempool *pool);

/* Gives a shared frame a head of its own; -1 (and *f as it was) without memory. */
int ff_frame_unshare(struct ff_frame *f, struct ff_arena *arena, struct rte_mempool *pool);

/* Reads a frame from its beginning, piece by piece. */
struct ff_reader {
    const struct ff_frame *f;
    const struct rte_mbuf *m;
    const uint8_t *p;
    uint32_t here;     /* bytes left at p */
    unsigned int next; /* piece */
};
void ff_reader_start(struct ff_reader *r, const struct ff_frame *f);
/* The next bytes that lie together, 1 .. max of them; the frame must have max more. */
struct ff_seg ff_reader_take(struct ff_reader *r, uint32_t max);
void ff_reader_copy(struct ff_reader *r, uint8_t *dst, uint32_t len);
static inline void ff_reader_skip(struct ff_reader *r, uint32_t len) {
    while (len > 0)
        len -= ff_reader_take(r, len).len;
}

/*
 * memcpy for the lengths that headers have, without a call or a loop: the last
 * bytes are copied twice where they overlap the first ones.
 */
static inline void ff_copy_short(uint8_t *dst, const uint8_t *src, uint32_t len) {
    if (likely(len > 64 && len <= 128)) {
        memcpy(dst, src, 64);
        memcpy(dst + len - 64, src + len - 64, 64);
    } else if (likely(len >= 32 && len <= 64)) {
        memcpy(dst, src, 32);
        memcpy(dst + len - 32, src + len - 32, 32);
    } else {
        memcpy(dst, src, len);
    }
}

/* Writes a whole frame to one buffer that holds it. */
static inline void ff_put_frame(uint8_t *dst, const struct ff_frame *f) {
    if (likely(f->n_segs == 1)) {
        ff_copy_short(dst, f->head, f->head_len);
        memcpy(dst + f->head_len, f->seg->p, f->seg->len);
    } else if (likely(f->head_len == f->len)) {
        ff_copy_short(dst, f->head, f->head_len);
    } else {
        struct ff_reader r;

        ff_reader_start(&r, f);
        ff_reader_copy(&r, dst, f->len);
    }
}

/* Puts an outer tag behind the MAC addresses; -1 without headroom. */
static inline int ff_frame_vlan_push(struct ff_frame *f, uint16_t tpid, uint16_t tci) {
    uint16_t tag[2] = {rte_cpu_to_be_16(tpid), rte_cpu_to_be_16(tci)};

    if (ff_frame_is_mbuf(f) && rte_pktmbuf_prepend(f->buf, FF_VLAN_HLEN) == NULL)
        return -1;
    f->head -= FF_VLAN_HLEN;
    memmove(f->head, f->head + FF_VLAN_HLEN, 12);
    memcpy(f->head + 12, tag, sizeof(tag));
    f->len += FF_VLAN_HLEN;
    f->head_len += FF_VLAN_HLEN;
    f->offload.csum_start += FF_VLAN_HLEN;
    return 0;
}

/* Takes the outer tag off; the caller knows that there is one. */
static inline void ff_frame_vlan_pop(struct ff_frame *f) {
    memmove(f->head + FF_VLAN_HLEN, f->head, 12);
    if (ff_frame_is_mbuf(f))
        rte_pktmbuf_adj(f->buf, FF_VLAN_HLEN);
    f->head += FF_VLAN_HLEN;
    f->len -= FF_VLAN_HLEN;
    f->head_len -= FF_VLAN_HLEN;
    f->offload.csum_start -= FF_VLAN_HLEN;
}

#endif
