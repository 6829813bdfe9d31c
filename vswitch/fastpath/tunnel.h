/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What workers look up of tunnels: which vxlan port a VNI means, whether an
 * outer address is that of a known tunnel end, and how to reach a remote.
 */
#ifndef FF_TUNNEL_H
#define FF_TUNNEL_H

#include <stdbool.h>

#include <rte_ether.h>
#include <rte_ip.h>
#include <rte_udp.h>
#include <rte_vxlan.h>

#include "switch.h"

#define FF_ENCAP_IPV4                                                                              \
    (RTE_ETHER_HDR_LEN + sizeof(struct rte_ipv4_hdr) + sizeof(struct rte_udp_hdr) +                \
     sizeof(struct rte_vxlan_hdr))
#define FF_ENCAP_IPV6                                                                              \
    (RTE_ETHER_HDR_LEN + sizeof(struct rte_ipv6_hdr) + sizeof(struct rte_udp_hdr) +                \
     sizeof(struct rte_vxlan_hdr))

/* A tunnel end as workers use it; immutable. */
struct ff_remote {
    uint16_t uplink;
    uint16_t header_len;
    bool ipv6;
    bool reachable;
    bool checksum;
    uint8_t header[FF_ENCAP_IPV6]; /* lengths, traffic class, source port, VXLAN header and
                                      checksums missing */
};

/* An outer IP address: an IPv4 one is mapped into IPv6 (RFC 4291 section 2.5.5.2). */
struct ff_outer_ip {
    uint8_t ip[16];
};

static inline struct ff_outer_ip ff_outer_ipv4(const void *ip) {
    struct ff_outer_ip a = {.ip = {[10] = 0xff, [11] = 0xff}};

    memcpy(a.ip + 12, ip, 4);
    return a;
}

/* The vxlan port of a VNI, or NULL. For workers. */
struct ff_port *ff_tunnel_port(uint32_t vni);
/* Whether the address is that of some remote. For workers. */
bool ff_tunnel_peer(const struct ff_outer_ip *ip);
/* The remote, or NULL. For workers. */
const struct ff_remote *ff_tunnel_remote(uint16_t remote);

#endif
