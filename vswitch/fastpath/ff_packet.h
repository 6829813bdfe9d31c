/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the fast path makes of one packet: its key, and its fate. Part of ff.h,
 * whose rules hold here too.
 */
#ifndef FF_PACKET_H
#define FF_PACKET_H

#include <stdint.h>

/* ---- the flow key ------------------------------------------------------ */

/* ip_frag */
#define FF_FRAG_ANY 1   /* a fragment: first, middle or last */
#define FF_FRAG_LATER 2 /* not the first: there is no L4 header */

/*
 * What the parser found in a frame, 64 bytes. A field that the frame does not
 * have is zero. in_port is part of the key.
 *
 *  ARP (RFC 826):  ip_proto = low byte of ar$op, ip_src = ar$spa, ip_dst = ar$tpa.
 *  ICMP, ICMPv6:   l4_src = type, l4_dst = code (in network order, as a port).
 *  IPv4 addresses: the first four bytes of ip_src and ip_dst, the rest zero.
 *  ip_proto (IPv6): the header after the extension headers.
 */
struct ff_key {
    uint8_t eth_dst[6];
    uint8_t eth_src[6];
    uint16_t eth_type; /* after all VLAN tags; 0 for an IEEE 802.3 length */
    uint16_t in_port;
    uint16_t vlan_tpid[2]; /* [0] is the outer tag; 0: no such tag */
    uint16_t vlan_tci[2];  /* host order: PCP, DEI, VID */
    uint8_t ip_proto;
    uint8_t ip_tos;
    uint8_t ip_frag;
    uint8_t tcp_flags;
    uint16_t l4_src;
    uint16_t l4_dst;
    uint8_t ip_src[16];
    uint8_t ip_dst[16];
};

/* ---- fates ------------------------------------------------------------- */

/*
 * Why a packet, or a copy of one, went no further. For every port and worker,
 * and for the switch as a whole when no packet is on its way:
 *
 *   sum(rx_packets) + sum(replicated) + sum(injected) + sum(encapsulated) ==
 *       sum(tx_packets) + sum(drop[]) + sum(decapsulated) + parked
 *
 * Keep ff_drop_names in names.c in the same order.
 */
enum ff_drop {
    FF_DROP_NONE = 0,
    /* the parser's, counted on the port that received the packet */
    FF_DROP_TOO_SHORT,      /* less than an Ethernet header */
    FF_DROP_OVERSIZE,       /* more than the receiving port's MTU allows */
    FF_DROP_SRC_MULTICAST,  /* IEEE 802.3 clause 3.2.3: a source is never a group */
    FF_DROP_MALFORMED_VLAN, /* truncated tag */
    FF_DROP_MALFORMED_ARP,
    FF_DROP_MALFORMED_IPV4,
    FF_DROP_MALFORMED_IPV6,
    FF_DROP_MALFORMED_TCP,
    FF_DROP_MALFORMED_UDP,
    FF_DROP_MALFORMED_ICMP,
    FF_DROP_BAD_OFFLOAD, /* it asks for what its headers, or the output port's device, do not allow
                          */
    /* a flow's or a verdict's decision, counted on the receiving port */
    FF_DROP_POLICY,       /* a drop action with no better reason */
    FF_DROP_VLAN,         /* the receiving port is no member of the VLAN */
    FF_DROP_RESERVED_MAC, /* IEEE 802.1Q table 8-1: never relayed by a bridge */
    FF_DROP_SAME_PORT,    /* the destination is where it came from */
    FF_DROP_NO_DEST,      /* no other port is in the VLAN */
    FF_DROP_MOVE_HOLD,    /* its source address moves between ports too often */
    FF_DROP_MAC_QUOTA,    /* its port has learned as many addresses as it may */
    FF_DROP_SPOOFED,      /* its source is not an address of the endpoint on the receiving port */
    FF_DROP_DENIED,       /* a policy denies it */
    FF_DROP_ANSWERED,     /* address resolution that the switch answered itself */
    FF_DROP_NO_ENDPOINT,  /* its network has no endpoint with the destination address */
    FF_DROP_NOT_TUNNEL,   /* an uplink received what is no tunnelled frame */
    FF_DROP_TUNNEL_MTU,   /* too long for the tunnel; its sender was told */
    /* the tunnel's, counted on the uplink that received the packet */
    FF_DROP_TUNNEL_MALFORMED, /* RFC 7348 section 5: headers, lengths, flags */
    FF_DROP_TUNNEL_VNI,       /* of a network that this host does not have */
    FF_DROP_TUNNEL_PEER,      /* from an address that is no known tunnel end */
    FF_DROP_TUNNEL_ECN,       /* RFC 6040 section 4.2: congestion experienced, and nobody to tell */
    /* and on the RDMA port */
    FF_DROP_RDMA_MALFORMED, /* it breaks the rules of ff_rdma.h */
    FF_DROP_RDMA_EPOCH,     /* of another connection than this one */
    FF_DROP_RDMA_OVERSIZE,  /* more than a frame can be */
    /* the upcall's, counted on the receiving port */
    FF_DROP_UPCALL_BUDGET, /* its port has as many packets parked as it may */
    FF_DROP_UPCALL_FULL,   /* the worker has no room for one more parked flow */
    FF_DROP_NO_COPY,       /* no buffer for a further copy */
    /* the output's, counted on the sending (output) port */
    FF_DROP_PORT_GONE,   /* the action's output port does not exist (on the receiving port) */
    FF_DROP_PORT_DOWN,   /* the output port's peer is not there */
    FF_DROP_RING_FULL,   /* the output port's peer does not read fast enough */
    FF_DROP_TX_OVERSIZE, /* longer than the output port's MTU allows */
    FF_DROP_TUNNEL_DOWN, /* no such tunnel end, or no way to it */
    FF_DROP_MAX
};

/* The reason's name as people see it, "malformed-ipv4"; never NULL. Any thread. */
const char *ff_drop_name(unsigned int reason);

/* ---- parser ------------------------------------------------------------ */

/*
 * Parses one frame of `len` bytes. Fills *key (in_port included) and returns
 * FF_DROP_NONE, or returns the reason to drop it. Pure; any thread; needs no EAL.
 */
int ff_parse(const uint8_t *frame, uint32_t len, uint16_t in_port, struct ff_key *key);

#endif
