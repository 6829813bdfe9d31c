/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Offloads: what a sender leaves to those after it, checksums and TCP
 * segmentation. A request comes in the virtio-net header (virtio 1.1, section
 * 5.1.6), travels with the frame, and leaves in the receiver's header or in
 * an mbuf's flags; gso.c does it in software for a port that cannot.
 */
#ifndef FF_OFFLOAD_H
#define FF_OFFLOAD_H

#include <stdbool.h>
#include <stdint.h>

#define FF_OFF_CSUM 0x01u  /* the checksum is but the sum of the pseudo-header */
#define FF_OFF_TSO4 0x02u  /* TCP over IPv4, to be cut into segments of gso_size */
#define FF_OFF_TSO6 0x04u  /* and over IPv6 */
#define FF_OFF_ECN 0x08u   /* with TSO: the first segment alone carries CWR (RFC 3168) */
#define FF_OFF_TCP 0x10u   /* with CSUM: it is TCP's, else UDP's */
#define FF_OFF_VALID 0x20u /* the checksum is known to be right */
#define FF_OFF_BAD 0x40u   /* the sender's request makes no sense */

#define FF_OFF_TSO (FF_OFF_TSO4 | FF_OFF_TSO6)
/* What no port has to be able to do. */
#define FF_OFF_FREE (FF_OFF_TCP | FF_OFF_VALID)

/* RFC 9293 section 3.1, RFC 768: where the checksum lies in its header. */
#define FF_TCP_CSUM_AT 16u
#define FF_UDP_CSUM_AT 6u

/*
 * The request of one frame. Until ff_offload_check has seen it, it is what the
 * sender says; l3_words is known only afterwards. `what` is 0 for most frames, and
 * the rest then means nothing.
 */
struct ff_offload {
    uint8_t what;        /* union of FF_OFF_* */
    uint8_t l3_words;    /* the IP header with its extensions, in units of 4 bytes */
    uint16_t csum_start; /* where the TCP or UDP header begins */
    uint16_t gso_size;   /* TCP payload bytes of a segment */
};

struct ff_frame;
struct ff_key;
struct rte_mbuf;

/* What a front-end with these features may ask for, and what may be asked of it. */
uint8_t ff_offload_host(uint64_t features);
uint8_t ff_offload_guest(uint64_t features);

/* The request in a virtio-net header, not all of whose first two bytes are zero. */
struct ff_offload ff_offload_parse(const uint8_t *header, uint64_t first, uint8_t allowed);

/*
 * Reads the request from a virtio-net header, each byte of it once. Only what
 * the driver has negotiated may be asked for.
 */
static inline struct ff_offload ff_offload_read(const uint8_t *header, uint8_t allowed) {
    typedef uint64_t __attribute__((aligned(1), may_alias)) word;
    uint64_t first;

    if (allowed != 0) { /* else the cache line that it lies in is not even touched */
        first = *(const volatile word *)header;
        if (__builtin_expect((uint16_t)first != 0, 0))
            return ff_offload_parse(header, first, allowed);
    }
    return (struct ff_offload){0};
}

/* Writes the request into a virtio-net header that is zero so far. */
void ff_offload_write(uint8_t *header, const struct ff_frame *f, uint8_t allowed);

/*
 * Holds the request against the headers that the parser found, l4 being where
 * the upper layer's begins; FF_DROP_NONE, or why the frame is dropped. May keep
 * the frame (see ff_frame_keep).
 */
unsigned int ff_offload_check(struct ff_frame *f, const struct ff_key *key, uint32_t l4,
                              uint32_t max_frame);

/*
 * Writes the request of a frame, which is that mbuf, into the mbuf's flags and lengths.
 * ip_csum: the device makes the IPv4 header checksum of each segment.
 */
void ff_offload_to_mbuf(struct rte_mbuf *m, const struct ff_frame *f, bool ip_csum);

/* Of a frame whose request was checked: bytes up to the TCP or UDP payload, */
uint32_t ff_offload_headers(const struct ff_frame *f);
/* up to the end of the IP packet, without padding, */
uint32_t ff_offload_end(const struct ff_frame *f);
/* and of the longest frame that is to come of it. */
uint32_t ff_offload_unit(const struct ff_frame *f);

#endif
