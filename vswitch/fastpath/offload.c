/* SPDX-License-Identifier: Apache-2.0 */
/* Offload requests: read from virtio-net headers, checked, and written again. */
#include "offload.h"

#include <linux/virtio_net.h>
#include <netinet/in.h>

#include "switch.h"

#define TCP_HLEN 20u
#define UDP_HLEN 8u
#define TCP_OFFSET_AT 12u

/* As Linux's TCP_MIN_SND_MSS: a short frame must not become thousands. */
#define GSO_SIZE_MIN 48u
/* Section 5.1.6.3: no frame of segmentation offload is longer, tags apart. */
#define GSO_FRAME_MAX (65550u + 2 * FF_VLAN_HLEN)

static_assert(sizeof(struct virtio_net_hdr) == 10, "read as 8 bytes and 2");
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "virtio's byte order");

static uint8_t masks(uint64_t features, unsigned int csum, unsigned int tso4, unsigned int tso6,
                     unsigned int ecn) {
    uint8_t m = 0;

    if (!(features & 1ull << csum)) /* section 5.1.3.1: the others require it */
        return 0;
    m |= FF_OFF_CSUM;
    if (features & 1ull << tso4)
        m |= FF_OFF_TSO4;
    if (features & 1ull << tso6)
        m |= FF_OFF_TSO6;
    if (features & 1ull << ecn)
        m |= FF_OFF_ECN;
    return m;
}

uint8_t ff_offload_host(uint64_t features) {
    return masks(features, VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
                 VIRTIO_NET_F_HOST_ECN);
}

uint8_t ff_offload_guest(uint64_t features) {
    return masks(features, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4,
                 VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_ECN);
}

struct ff_offload ff_offload_parse(const uint8_t *header, uint64_t first, uint8_t allowed) {
    static const uint8_t tso[] = {
        [VIRTIO_NET_HDR_GSO_TCPV4] = FF_OFF_TSO4, [VIRTIO_NET_HDR_GSO_TCPV6] = FF_OFF_TSO6};
    const volatile uint8_t *at = header + offsetof(struct virtio_net_hdr, csum_offset);
    unsigned int csum_offset = at[0] | (unsigned int)at[1] << 8;
    unsigned int flags = first & 0xff, type = first >> 8 & 0xff;
    struct ff_offload o = {.gso_size = (uint16_t)(first >> 32),
                           .csum_start = (uint16_t)(first >> 48)};

    if (flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
        o.what = csum_offset == FF_TCP_CSUM_AT   ? FF_OFF_CSUM | FF_OFF_TCP
                 : csum_offset == FF_UDP_CSUM_AT ? FF_OFF_CSUM
                                                 : FF_OFF_BAD;
    if (type != VIRTIO_NET_HDR_GSO_NONE) {
        unsigned int base = type & ~(unsigned int)VIRTIO_NET_HDR_GSO_ECN;

        /* section 5.1.6.2.1: a segmentation request implies one for checksums */
        if (base >= RTE_DIM(tso) || tso[base] == 0 || !(o.what & FF_OFF_TCP))
            o.what = FF_OFF_BAD;
        else
            o.what |= tso[base] | (type != base ? FF_OFF_ECN : 0);
    }
    if (o.what & ~(allowed | FF_OFF_TCP))
        o.what = FF_OFF_BAD;
    return o;
}

void ff_offload_write(uint8_t *header, const struct ff_frame *f, uint8_t allowed) {
    const struct ff_offload *o = &f->offload;
    struct virtio_net_hdr h = {0};

    if (!(allowed & FF_OFF_CSUM)) /* the driver does not look at the header */
        return;
    if (o->what & FF_OFF_VALID)
        h.flags = VIRTIO_NET_HDR_F_DATA_VALID;
    if (o->what & FF_OFF_CSUM) {
        h.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        h.csum_start = o->csum_start;
        h.csum_offset = o->what & FF_OFF_TCP ? FF_TCP_CSUM_AT : FF_UDP_CSUM_AT;
    }
    if (o->what & FF_OFF_TSO) {
        h.gso_type = o->what & FF_OFF_TSO4 ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_TCPV6;
        h.gso_type |= o->what & FF_OFF_ECN ? VIRTIO_NET_HDR_GSO_ECN : 0;
        h.gso_size = o->gso_size;
        h.hdr_len = (uint16_t)ff_offload_headers(f);
    }
    memcpy(header, &h, sizeof(h));
}

void ff_offload_to_mbuf(struct rte_mbuf *m, const struct ff_frame *f, bool ip_csum) {
    const struct ff_offload *o = &f->offload;
    uint32_t l3_len = o->l3_words * 4u, l2_len = o->csum_start - l3_len;
    bool v4 = f->head[l2_len] >> 4 == 4;

    m->l2_len = l2_len;
    m->l3_len = l3_len;
    m->l4_len = ff_offload_headers(f) - o->csum_start;
    m->ol_flags |= v4 ? RTE_MBUF_F_TX_IPV4 : RTE_MBUF_F_TX_IPV6;
    m->ol_flags |= o->what & FF_OFF_TCP ? RTE_MBUF_F_TX_TCP_CKSUM : RTE_MBUF_F_TX_UDP_CKSUM;
    if (!(o->what & FF_OFF_TSO))
        return;
    m->tso_segsz = o->gso_size;
    m->ol_flags |= RTE_MBUF_F_TX_TCP_SEG | (v4 && ip_csum ? RTE_MBUF_F_TX_IP_CKSUM : 0);
}

uint32_t ff_offload_headers(const struct ff_frame *f) {
    const uint8_t *l4 = f->head + f->offload.csum_start;

    if (f->offload.what & FF_OFF_TSO)
        return f->offload.csum_start + (uint32_t)(l4[TCP_OFFSET_AT] >> 4) * 4;
    return f->offload.csum_start + (f->offload.what & FF_OFF_TCP ? TCP_HLEN : UDP_HLEN);
}

/* A length of 0 stands for the rest of the frame: see parse.c. */
uint32_t ff_offload_end(const struct ff_frame *f) {
    uint32_t l3 = f->offload.csum_start - f->offload.l3_words * 4u;
    const uint8_t *ip = f->head + l3;
    bool v4 = ip[0] >> 4 == 4;
    uint32_t len = v4 ? (uint32_t)ip[2] << 8 | ip[3] : (uint32_t)ip[4] << 8 | ip[5];

    return len == 0 ? f->len : l3 + len + (v4 ? 0 : 40u);
}

uint32_t ff_offload_unit(const struct ff_frame *f) {
    return f->offload.what & FF_OFF_TSO ? ff_offload_headers(f) + f->offload.gso_size : f->len;
}

/* Of a frame to be segmented. */
static unsigned int check_tso(struct ff_frame *f, const struct ff_key *key) {
    struct ff_offload *o = &f->offload;
    uint16_t type = o->what & FF_OFF_TSO4 ? RTE_BE16(0x0800) : RTE_BE16(0x86dd);
    uint32_t headers = ff_offload_headers(f);

    if (key->eth_type != type || o->gso_size < GSO_SIZE_MIN || headers > FF_GSO_HEADERS ||
        headers > ff_offload_end(f))
        return FF_DROP_BAD_OFFLOAD;
    if (f->len > GSO_FRAME_MAX)
        return FF_DROP_OVERSIZE;
    if (headers > f->head_len && ff_frame_keep(f, ff.pool) != 0)
        return FF_DROP_NO_COPY;
    if (headers > f->head_len)
        return FF_DROP_BAD_OFFLOAD;
    /* as Linux takes it: a frame of one segment has nothing to be cut */
    if (ff_offload_end(f) - headers <= o->gso_size)
        o->what &= (uint8_t) ~(FF_OFF_TSO | FF_OFF_ECN);
    return FF_DROP_NONE;
}

unsigned int ff_offload_check(struct ff_frame *f, const struct ff_key *key, uint32_t l4,
                              uint32_t max_frame) {
    struct ff_offload *o = &f->offload;
    unsigned int tags = (key->vlan_tpid[0] != 0) + (key->vlan_tpid[1] != 0), drop = FF_DROP_NONE;
    uint32_t l3_len = l4 - FF_ETH_HLEN - tags * FF_VLAN_HLEN;
    uint8_t proto = o->what & FF_OFF_TCP ? IPPROTO_TCP : IPPROTO_UDP;

    if (o->what == FF_OFF_VALID) {
        /* a device may say it of whatever it finds no fault in, and a receiver skips other
         * checksums then */
        if ((key->ip_proto != IPPROTO_TCP && key->ip_proto != IPPROTO_UDP) || key->ip_frag != 0)
            o->what = 0;
    } else {
        /*
         * Nothing but the checksum that belongs there may be written: this frame's
         * addresses and ports have been decided on.
         */
        if (o->what & FF_OFF_BAD || key->ip_proto != proto || key->ip_frag != 0 ||
            o->csum_start != l4 || l4 + TCP_HLEN > FF_GSO_HEADERS)
            return FF_DROP_BAD_OFFLOAD;
        o->l3_words = (uint8_t)(l3_len / 4);
        if (o->what & FF_OFF_TSO)
            drop = check_tso(f, key);
    }
    if (drop == FF_DROP_NONE && ff_offload_unit(f) > max_frame)
        drop = FF_DROP_OVERSIZE;
    return drop;
}
