/* SPDX-License-Identifier: Apache-2.0 */
/*
 * VXLAN (RFC 7348): frames between this host's networks and tunnel ends on
 * other hosts. A vxlan port is never polled: what it receives are the
 * frames that uplinks find packed, what it sends it hands to an uplink.
 */
#include <netinet/in.h>

#include "tunnel.h"

#define VXLAN_I 0x08000000u /* of the first word: the VNI is valid */
#define ECN_MASK 0x03u
#define ECN_NOT_ECT 0x00u
#define ECN_ECT1 0x01u
#define ECN_ECT0 0x02u
#define ECN_CE 0x03u
#define SOURCE_PORT_FIRST 49152u /* RFC 7348 section 5: the dynamic range */
#define IP_OFFSET_MASK 0x3fffu   /* fragment offset and "more fragments" */

/* A received frame that is packed for this host. */
struct packed {
    struct ff_outer_ip source;
    uint32_t vni;
    uint32_t header_len; /* to the inner frame */
    uint8_t ecn;         /* of the outer header */
};

enum found { NOT_FOR_US, FOR_US, MALFORMED, BARRIER };

/* ---- the inner frame's IP header ---- */

/* The traffic class byte of an IPv4 header, or the two that hold it in IPv6; NULL: no IP. */
static uint8_t *inner_ip(const struct ff_frame *f) {
    uint32_t at = 2 * RTE_ETHER_ADDR_LEN;
    uint16_t type;

    for (;; at += FF_VLAN_HLEN) {
        if (at + 2 + sizeof(struct rte_ipv4_hdr) > f->head_len)
            return NULL;
        memcpy(&type, f->head + at, sizeof(type));
        if (type != rte_cpu_to_be_16(RTE_ETHER_TYPE_VLAN) &&
            type != rte_cpu_to_be_16(RTE_ETHER_TYPE_QINQ))
            break;
    }
    if (type != rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV4) &&
        type != rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV6))
        return NULL;
    return f->head + at + 2;
}

static uint8_t ip_tos(const uint8_t *ip) {
    return ip[0] >> 4 == 4 ? ip[1] : (uint8_t)(ip[0] << 4 | ip[1] >> 4);
}

static void ip_set_ecn(uint8_t *ip, uint8_t ecn) {
    struct rte_ipv4_hdr *ip4 = (struct rte_ipv4_hdr *)(void *)ip;
    uint32_t sum;

    if (ip[0] >> 4 != 4) {
        ip[1] = (uint8_t)((ip[1] & ~(ECN_MASK << 4)) | ecn << 4);
        return;
    }
    /* RFC 1624 equation 3: HC' = ~(~HC + ~m + m') */
    sum = (uint16_t)~rte_be_to_cpu_16(ip4->hdr_checksum);
    sum += (uint16_t) ~(ip[0] << 8 | ip[1]);
    ip[1] = (uint8_t)((ip[1] & ~ECN_MASK) | ecn);
    sum += (uint32_t)(ip[0] << 8 | ip[1]);
    sum = (sum >> 16) + (sum & 0xffff);
    sum += sum >> 16;
    ip4->hdr_checksum = rte_cpu_to_be_16((uint16_t)~sum);
}

/* RFC 6040 section 4.2, figure 4; false: the frame must be dropped. */
static bool ecn_decapsulate(const struct ff_frame *f, uint8_t outer) {
    uint8_t *ip, inner;

    if (likely(outer == ECN_NOT_ECT))
        return true;
    ip = inner_ip(f);
    if (ip == NULL)
        return true;
    inner = ip_tos(ip) & ECN_MASK;
    if (inner == ECN_NOT_ECT)
        return outer != ECN_CE;
    if (outer == ECN_CE || (outer == ECN_ECT1 && inner == ECN_ECT0))
        ip_set_ecn(ip, outer);
    return true;
}

/* ---- receiving ---- */

/* The outer IP header at f->head + 14: whose it is and where it ends; 0: not for us. */
static uint32_t outer_ipv4(const struct ff_frame *f, const struct ff_uplink_conf *up,
                           struct packed *p, uint32_t *ip_len) {
    const struct rte_ipv4_hdr *ip = (const void *)(f->head + RTE_ETHER_HDR_LEN);

    if (f->head_len < RTE_ETHER_HDR_LEN + sizeof(*ip) || ip->next_proto_id != IPPROTO_UDP ||
        memcmp(&ip->dst_addr, up->ip4, sizeof(up->ip4)) != 0 || ip->version_ihl >> 4 != 4 ||
        (ip->fragment_offset & rte_cpu_to_be_16(IP_OFFSET_MASK)) != 0)
        return 0;
    p->source = ff_outer_ipv4(&ip->src_addr);
    p->ecn = ip->type_of_service & ECN_MASK;
    *ip_len = rte_be_to_cpu_16(ip->total_length);
    return rte_ipv4_hdr_len(ip);
}

static uint32_t outer_ipv6(const struct ff_frame *f, const struct ff_uplink_conf *up,
                           struct packed *p, uint32_t *ip_len) {
    const struct rte_ipv6_hdr *ip = (const void *)(f->head + RTE_ETHER_HDR_LEN);

    if (f->head_len < RTE_ETHER_HDR_LEN + sizeof(*ip) || ip->proto != IPPROTO_UDP ||
        memcmp(ip->dst_addr, up->ip6, sizeof(up->ip6)) != 0)
        return 0;
    memcpy(p->source.ip, ip->src_addr, sizeof(p->source.ip));
    p->ecn = (uint8_t)(rte_be_to_cpu_32(ip->vtc_flow) >> 20) & ECN_MASK;
    *ip_len = rte_be_to_cpu_16(ip->payload_len) + (uint32_t)sizeof(*ip);
    return sizeof(*ip);
}

/* Reads the outer headers. What is no UDP to our port and address is left to the bridge. */
static enum found unpack(const struct ff_frame *f, const struct ff_uplink_conf *up,
                         struct packed *p) {
    const struct rte_ether_hdr *eth = (const void *)f->head;
    const struct rte_vxlan_hdr *vxlan;
    const struct rte_udp_hdr *udp;
    uint32_t len, ip_len, at, udp_len;

    if (f->head_len < sizeof(*eth))
        return NOT_FOR_US;
    if (eth->ether_type == rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV4))
        len = outer_ipv4(f, up, p, &ip_len);
    else if (eth->ether_type == rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV6))
        len = outer_ipv6(f, up, p, &ip_len);
    else
        return NOT_FOR_US;
    at = RTE_ETHER_HDR_LEN + len;
    if (len == 0 || f->head_len < at + sizeof(*udp))
        return NOT_FOR_US;
    udp = (const void *)(f->head + at);
    if (udp->dst_port != rte_cpu_to_be_16(up->udp_port))
        return NOT_FOR_US;
    udp_len = rte_be_to_cpu_16(udp->dgram_len);
    p->header_len = at + (uint32_t)(sizeof(*udp) + sizeof(*vxlan));
    if (len < sizeof(struct rte_ipv4_hdr) || ip_len < len + udp_len || f->len < at + udp_len ||
        udp_len < sizeof(*udp) + sizeof(*vxlan) + RTE_ETHER_HDR_LEN ||
        f->head_len < p->header_len + RTE_ETHER_HDR_LEN)
        return MALFORMED;
    vxlan = (const void *)(udp + 1);
    if (unlikely(!(vxlan->vx_flags & rte_cpu_to_be_32(VXLAN_I))))
        return vxlan->vx_flags == 0 && vxlan->vx_vni == 0 ? BARRIER : MALFORMED;
    p->vni = rte_be_to_cpu_32(vxlan->vx_vni) >> 8;
    return FOR_US;
}

/* Takes the outer headers, and padding behind the datagram, off. */
static void strip(struct ff_frame *f, const struct packed *p) {
    const struct rte_udp_hdr *udp =
        (const void *)(f->head + p->header_len - sizeof(*udp) - sizeof(struct rte_vxlan_hdr));
    uint32_t inner =
        rte_be_to_cpu_16(udp->dgram_len) - (uint32_t)(sizeof(*udp) + sizeof(struct rte_vxlan_hdr));
    uint32_t padding = f->len - p->header_len - inner;

    if (ff_frame_is_mbuf(f)) {
        (void)rte_pktmbuf_adj(f->buf, (uint16_t)p->header_len);
        if (unlikely(padding > 0))
            (void)rte_pktmbuf_trim(f->buf, (uint16_t)padding);
        ff_frame_from_mbuf(f, f->buf);
        f->offload.what = ff_frame_verdict(f->buf, true);
        return;
    }
    f->head += p->header_len;
    f->offload = (struct ff_offload){0}; /* it was about the outer headers */
    f->len = inner;
    f->head_len = (uint16_t)RTE_MIN(f->head_len - p->header_len, inner);
}

/* The vxlan port of a packed frame, stripped; NULL: dropped. */
static struct ff_port *receive(struct ff_worker *w, const struct ff_port *uplink,
                               struct ff_frame *f, const struct packed *p) {
    struct ff_port *port = NULL;
    unsigned int reason;

    if (!ff_tunnel_peer(&p->source)) {
        reason = FF_DROP_TUNNEL_PEER;
    } else if ((port = ff_tunnel_port(p->vni)) == NULL) {
        reason = FF_DROP_TUNNEL_VNI;
    } else {
        strip(f, p);
        if (likely(ecn_decapsulate(f, p->ecn)))
            return port;
        reason = FF_DROP_TUNNEL_ECN;
    }
    ff_drop(w, uplink->id, reason, f);
    return NULL;
}

/* What is in no network: ff_rdma.h. */
static void receive_barrier(struct ff_worker *w, const struct ff_port *uplink, unsigned int queue,
                            struct ff_frame *f, const struct packed *p) {
    unsigned int reason = FF_DROP_TUNNEL_PEER;

    if (ff_tunnel_peer(&p->source))
        reason =
            ff_rdma_barrier(w, uplink, queue, f->head + p->header_len, f->head_len - p->header_len);
    if (reason != FF_DROP_NONE) {
        ff_drop(w, uplink->id, reason, f);
        return;
    }
    w->port_stats[uplink->id].decapsulated++;
    ff_frame_free(f);
}

/* Frames of one network. */
static void pass_on(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                    struct ff_frame *frames, unsigned int n) {
    struct ff_queue_stats *q = &w->port_stats[port->id].queue[0];
    bool tap = atomic_load_explicit(&port->tap, memory_order_relaxed) & FF_TAP_RX;

    q->rx_packets += n;
    for (unsigned int i = 0; i < n; i++) {
        q->rx_bytes += frames[i].len;
        if (unlikely(tap))
            ff_tap_frame(w, port, FF_TAP_RX, &frames[i]);
    }
    ff_pipeline(w, port, queue, frames, n);
}

void ff_tunnel_deliver(struct ff_worker *w, struct ff_port **ports, unsigned int queue,
                       const struct ff_frame *frames, unsigned int n) {
    struct ff_frame group[FF_BURST];

    for (unsigned int i = 0; i < n; i++) {
        struct ff_port *port = ports[i];
        unsigned int k = 0;

        if (port == NULL)
            continue;
        for (unsigned int j = i; j < n; j++)
            if (ports[j] == port) {
                group[k++] = frames[j];
                ports[j] = NULL;
            }
        pass_on(w, port, queue, group, k);
    }
}

unsigned int ff_vxlan_input(struct ff_worker *w, struct ff_port *uplink, unsigned int queue,
                            struct ff_frame *frames, unsigned int n) {
    const struct ff_uplink_conf *up = atomic_load_explicit(&uplink->uplink, memory_order_acquire);
    struct ff_frame inner[FF_BURST];
    struct ff_port *ports[FF_BURST];
    unsigned int left = 0, got = 0;

    for (unsigned int i = 0; i < n; i++) {
        struct packed p;
        enum found found = unpack(&frames[i], up, &p);

        if (found == FOR_US) {
            inner[got] = frames[i];
            ports[got] = receive(w, uplink, &inner[got], &p);
            got += ports[got] != NULL;
        } else if (unlikely(found == BARRIER)) {
            receive_barrier(w, uplink, queue, &frames[i], &p);
        } else if (found == MALFORMED) {
            ff_drop(w, uplink->id, FF_DROP_TUNNEL_MALFORMED, &frames[i]);
        } else {
            frames[left++] = frames[i];
        }
    }
    w->port_stats[uplink->id].decapsulated += got;
    ff_tunnel_deliver(w, ports, queue, inner, got);
    return left;
}

/* ---- sending ---- */

/* An mbuf that holds the frame and nobody else has. */
static int own(struct ff_frame *f) {
    struct rte_mbuf *m;
    uint16_t steer = f->steer;

    f->offload = (struct ff_offload){0}; /* done, or a hint: not for the outer headers */
    if (ff_frame_keep(f, ff.pool) != 0)
        return -1;
    if (likely(rte_mbuf_refcnt_read(f->buf) == 1))
        return 0;
    m = rte_pktmbuf_copy(f->buf, ff.pool, 0, UINT32_MAX);
    if (m == NULL)
        return -1;
    ff_frame_free(f);
    ff_frame_from_mbuf(f, m);
    f->steer = steer;
    return 0;
}

static void finish_ipv4(uint8_t *p, uint32_t len, uint8_t tos) {
    struct rte_ipv4_hdr *ip = (void *)p;

    ip->type_of_service = tos & ECN_MASK;
    ip->total_length = rte_cpu_to_be_16((uint16_t)len);
    ip->hdr_checksum = rte_ipv4_cksum(ip);
}

static void finish_ipv6(uint8_t *p, uint32_t len, uint8_t tos) {
    struct rte_ipv6_hdr *ip = (void *)p;

    ip->vtc_flow |= rte_cpu_to_be_32((uint32_t)(tos & ECN_MASK) << 20);
    ip->payload_len = rte_cpu_to_be_16((uint16_t)(len - sizeof(*ip)));
}

/* RFC 768, RFC 8200 section 8.1; a sum of zero is sent as ones. */
static uint16_t udp_checksum(const struct rte_mbuf *m, bool ipv6) {
    uint32_t at = (uint32_t)(RTE_ETHER_HDR_LEN +
                             (ipv6 ? sizeof(struct rte_ipv6_hdr) : sizeof(struct rte_ipv4_hdr)));
    const void *ip = rte_pktmbuf_mtod_offset(m, const void *, RTE_ETHER_HDR_LEN);
    uint16_t sum = 0;
    uint32_t total;

    (void)rte_raw_cksum_mbuf(m, at, m->pkt_len - at, &sum);
    total = sum;
    total += ipv6 ? rte_ipv6_phdr_cksum(ip, 0) : rte_ipv4_phdr_cksum(ip, 0);
    total = (total >> 16) + (total & 0xffff);
    sum = (uint16_t)~total;
    return sum == 0 ? 0xffff : sum;
}

/* Puts the outer headers in front of a frame of its own mbuf. */
static void encapsulate(struct ff_frame *f, const struct ff_remote *r, uint32_t flags,
                        uint32_t vni) {
    const uint8_t *inner = inner_ip(f);
    uint8_t tos = inner != NULL ? ip_tos(inner) : 0;
    uint32_t len = f->len + r->header_len - RTE_ETHER_HDR_LEN; /* of the IP packet */
    uint8_t *p = (uint8_t *)rte_pktmbuf_prepend(f->buf, r->header_len);
    uint32_t udp_at =
        r->header_len - (uint32_t)(sizeof(struct rte_udp_hdr) + sizeof(struct rte_vxlan_hdr));
    struct rte_udp_hdr *udp = (void *)(p + udp_at);
    struct rte_vxlan_hdr *vxlan = (void *)(udp + 1);

    memcpy(p, r->header, r->header_len);
    if (r->ipv6)
        finish_ipv6(p + RTE_ETHER_HDR_LEN, len, tos);
    else
        finish_ipv4(p + RTE_ETHER_HDR_LEN, len, tos);
    udp->src_port = rte_cpu_to_be_16((uint16_t)(SOURCE_PORT_FIRST | (f->steer & 0x3fff)));
    udp->dgram_len = rte_cpu_to_be_16((uint16_t)(len + RTE_ETHER_HDR_LEN - udp_at));
    vxlan->vx_flags = rte_cpu_to_be_32(flags);
    vxlan->vx_vni = rte_cpu_to_be_32(vni << 8);
    if (r->checksum)
        udp->dgram_cksum = udp_checksum(f->buf, r->ipv6);
    f->head = p;
    f->len = f->buf->pkt_len;
    f->head_len = f->buf->data_len;
}

/* Packs a frame, which has nothing left to be done; false: dropped. */
static bool pack(struct ff_worker *w, const struct ff_port *port, const struct ff_remote *r,
                 struct ff_frame *frame) {
    struct ff_port_stats *stats = &w->port_stats[port->id];

    if (unlikely(own(frame) != 0 || rte_pktmbuf_headroom(frame->buf) < r->header_len)) {
        ff_drop(w, port->id, FF_DROP_NO_COPY, frame);
        return false;
    }
    if (unlikely(atomic_load_explicit(&port->tap, memory_order_relaxed) & FF_TAP_TX))
        ff_tap_frame(w, port, FF_TAP_TX, frame);
    stats->queue[0].tx_packets++;
    stats->queue[0].tx_bytes += frame->len;
    encapsulate(frame, r, VXLAN_I, (uint32_t)(uintptr_t)port->dev);
    w->port_stats[r->uplink].encapsulated++;
    return true;
}

void ff_vxlan_barrier(struct ff_worker *w, uint16_t remote, uint16_t steer,
                      const struct ff_rdma_barrier *barrier) {
    const struct ff_remote *r = ff_tunnel_remote(remote);
    struct rte_mbuf *m = r != NULL ? rte_pktmbuf_alloc(ff.pool) : NULL;
    struct ff_frame f;

    if (m == NULL)
        return; /* as if it were lost on its way */
    memcpy(rte_pktmbuf_append(m, sizeof(*barrier)), barrier, sizeof(*barrier));
    ff_frame_from_mbuf(&f, m);
    f.steer = steer;
    f.remote = remote;
    encapsulate(&f, r, 0, 0);
    w->port_stats[r->uplink].encapsulated++;
    ff_output(w, r->uplink, FF_PORT_NONE, &f);
}

/* All of them belong to one frame, and so to one remote. */
static unsigned int send_segments(struct ff_worker *w, struct ff_port *port,
                                  struct ff_frame *frames, unsigned int n) {
    const struct ff_remote *r = ff_tunnel_remote(frames[0].remote);
    unsigned int k = 0;

    if (unlikely(r == NULL)) { /* gone since the frame came here */
        w->port_stats[port->id].drop[FF_DROP_TUNNEL_DOWN] += n;
        return n;
    }
    for (unsigned int i = 0; i < n; i++)
        if (pack(w, port, r, &frames[i]))
            frames[k++] = frames[i];
    for (unsigned int i = 0; i < k; i++)
        ff_output(w, r->uplink, port->id, &frames[i]);
    return n;
}

void ff_vxlan_output(struct ff_worker *w, struct ff_port *port, uint16_t in_port,
                     struct ff_frame *frame) {
    const struct ff_remote *r;

    if (frame->remote & FF_TUNNEL_RDMA) {
        if (ff_rdma_output(w, port, in_port, frame))
            return;
        frame->remote &= (uint16_t)~FF_TUNNEL_RDMA;
    }
    r = ff_tunnel_remote(frame->remote);
    if (unlikely(r == NULL || !r->reachable || ff_port(r->uplink) == NULL)) {
        ff_drop(w, port->id, FF_DROP_TUNNEL_DOWN, frame);
        return;
    }
    if (unlikely(frame->len > RTE_MIN(port->max_frame, UINT16_MAX - FF_ENCAP_IPV6) &&
                 ff_offload_unit(frame) > RTE_MIN(port->max_frame, UINT16_MAX - FF_ENCAP_IPV6))) {
        ff_drop(w, port->id, FF_DROP_TX_OVERSIZE, frame);
        return;
    }
    if (unlikely(frame->offload.what & ~port->offloads)) {
        ff_gso_send(w, port, frame, 1, send_segments);
        return;
    }
    if (likely(pack(w, port, r, frame)))
        ff_output(w, r->uplink, in_port, frame);
}
