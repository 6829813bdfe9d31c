/* SPDX-License-Identifier: Apache-2.0 */
/* The frames of the benchmarks: between which stations, and how they are made. */
#ifndef FRAMES_H
#define FRAMES_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <rte_byteorder.h>
#include <rte_ether.h>
#include <rte_ip.h>
#include <rte_mbuf.h>
#include <rte_tcp.h>
#include <rte_udp.h>

#define FRAME_MIN 60
#define FRAME_MAX 1514
#define SEGMENTED_MAX (sizeof(struct rte_ether_hdr) + 65535)
#define SEGMENT 1460 /* TCP payload of a full Ethernet frame */

struct headers {
    struct rte_ether_hdr eth;
    struct rte_ipv4_hdr ip;
    union {
        struct rte_udp_hdr udp;
        struct rte_tcp_hdr tcp;
    };
};
static_assert(offsetof(struct headers, tcp) == 34 && sizeof(struct headers) == 54, "no padding");

/* What the frames of one way are made from. */
struct template {
    struct headers headers; /* between station 0 of either side */
    uint32_t ip_sum;        /* of that IPv4 header with a checksum of 0, not folded */
};

/*
 * Frames of `size` bytes from side `here` to side `there`: UDP, or (stream) TCP
 * between the first stations of each.
 */
void template_make(struct template *t, uint8_t here, uint8_t there, uint32_t size, bool stream);

/* A frame of `size` bytes in as many buffers of `pool` as it takes; NULL when there are none. */
struct rte_mbuf *frame_make(struct rte_mempool *pool, const struct template *t, uint32_t size);

/* Has a TCP frame that is longer than a segment segmented by whoever cannot pass it on whole. */
void frame_segmented(struct rte_mbuf *m);

/* Whether the frame is one of this template's way. */
static inline bool template_owns(const struct template *t, const struct rte_mbuf *m) {
    const struct rte_ether_hdr *eth = rte_pktmbuf_mtod(m, const struct rte_ether_hdr *);

    return memcmp(&eth->dst_addr, &t->headers.eth.dst_addr, 4) == 0;
}

/*
 * Makes a frame of the template one from station `src` of its side to station
 * `dst` of the other (less than 65536). The number is the last 16 bits of a
 * station's MAC and IPv4 addresses; each pair has one UDP source port.
 */
static inline void frame_address(const struct template *t, struct rte_mbuf *m, uint32_t src,
                                 uint32_t dst) {
    struct headers *h = rte_pktmbuf_mtod(m, struct headers *);
    rte_be16_t from = rte_cpu_to_be_16((uint16_t)src), to = rte_cpu_to_be_16((uint16_t)dst);
    uint32_t sum = t->ip_sum + src + dst;

    memcpy(&h->eth.src_addr.addr_bytes[4], &from, sizeof(from));
    memcpy(&h->eth.dst_addr.addr_bytes[4], &to, sizeof(to));
    h->ip.src_addr = t->headers.ip.src_addr | rte_cpu_to_be_32(src);
    h->ip.dst_addr = t->headers.ip.dst_addr | rte_cpu_to_be_32(dst);
    h->udp.src_port = rte_cpu_to_be_16((uint16_t)(src ^ dst));
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    h->ip.hdr_checksum = (rte_be16_t)~rte_cpu_to_be_16((uint16_t)sum);
}

#endif
