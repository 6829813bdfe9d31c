/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The packet descriptor: what the pipeline handles instead of a packet. It is
 * a view; `head` are the frame's first bytes, all its protocol headers among
 * them, and `buf` is what owns the memory: here always an mbuf (chain).
 *
 * A frame has one owner at a time. Ports fill frames in rx; the pipeline hands
 * each on by output, parking or ff_frame_free.
 */
#ifndef FF_FRAME_H
#define FF_FRAME_H

#include <string.h>

#include <rte_byteorder.h>
#include <rte_mbuf.h>

#include "ff.h"

#define FF_ETH_HLEN 14u
#define FF_VLAN_HLEN 4u
/* The largest frame of an MTU: Ethernet header and two tags, as for a QinQ provider. */
#define FF_FRAME_OVERHEAD (FF_ETH_HLEN + 2 * FF_VLAN_HLEN)

struct ff_frame {
    struct rte_mbuf *buf;
    uint8_t *head;
    uint32_t len;      /* of the whole frame */
    uint16_t head_len; /* readable at head */
    uint16_t steer;    /* hash of the flow's addresses, for choosing a transmit queue */
};

static inline void ff_frame_from_mbuf(struct ff_frame *f, struct rte_mbuf *m) {
    f->buf = m;
    f->head = rte_pktmbuf_mtod(m, uint8_t *);
    f->len = m->pkt_len;
    f->head_len = m->data_len;
    f->steer = 0;
}

static inline void ff_frame_free(struct ff_frame *f) {
    rte_pktmbuf_free(f->buf);
}

/* One more owner of the same bytes, which nobody may change from now on. */
static inline void ff_frame_share(struct ff_frame *f) {
    for (struct rte_mbuf *m = f->buf; m != NULL; m = m->next)
        rte_mbuf_refcnt_update(m, 1);
}

/* Replaces *f, which is released, by a private copy; -1 (and *f kept) without memory. */
static inline int ff_frame_unshare(struct ff_frame *f, struct rte_mempool *pool) {
    struct rte_mbuf *m = rte_pktmbuf_copy(f->buf, pool, 0, UINT32_MAX);
    uint16_t steer = f->steer;

    if (m == NULL)
        return -1;
    ff_frame_free(f);
    ff_frame_from_mbuf(f, m);
    f->steer = steer;
    return 0;
}

/* Puts an outer tag behind the MAC addresses; -1 without headroom. */
static inline int ff_frame_vlan_push(struct ff_frame *f, uint16_t tpid, uint16_t tci) {
    uint8_t *head = (uint8_t *)rte_pktmbuf_prepend(f->buf, FF_VLAN_HLEN);
    uint16_t tag[2] = {rte_cpu_to_be_16(tpid), rte_cpu_to_be_16(tci)};

    if (head == NULL)
        return -1;
    memmove(head, head + FF_VLAN_HLEN, 12);
    memcpy(head + 12, tag, sizeof(tag));
    f->head = head;
    f->len += FF_VLAN_HLEN;
    f->head_len += FF_VLAN_HLEN;
    return 0;
}

/* Takes the outer tag off; the caller knows that there is one. */
static inline void ff_frame_vlan_pop(struct ff_frame *f) {
    memmove(f->head + FF_VLAN_HLEN, f->head, 12);
    rte_pktmbuf_adj(f->buf, FF_VLAN_HLEN);
    f->head += FF_VLAN_HLEN;
    f->len -= FF_VLAN_HLEN;
    f->head_len -= FF_VLAN_HLEN;
}

#endif
