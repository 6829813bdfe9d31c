/* SPDX-License-Identifier: Apache-2.0 */
/* Parser: from a frame's first bytes to its flow key. */
#ifndef FF_PARSE_H
#define FF_PARSE_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include <rte_branch_prediction.h>
#include <rte_byteorder.h>

#include "ff.h"

/*
 * ff_parse for a frame of which only the first head_len of frame_len bytes lie
 * at `head`. Headers must lie within them: a frame whose headers reach beyond
 * is malformed at the layer that does. *l4 is where the upper layer's header
 * begins, 0 when there is none.
 */
int ff_parse_head(const uint8_t *head, uint32_t head_len, uint32_t frame_len, uint16_t in_port,
                  struct ff_key *key, uint32_t *l4);

#define FF_PLAIN_L4 34u   /* where the upper layer's header begins, */
#define FF_PLAIN_HEAD 54u /* and where that ends, if it is TCP's without options */

static inline uint16_t ff_load16(const uint8_t *p) {
    uint16_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

static inline uint32_t ff_load32(const uint8_t *p) {
    uint32_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

static inline uint64_t ff_load64(const uint8_t *p) {
    uint64_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

/*
 * What ff_parse_head finds in by far the most frames: good ones of TCP or UDP over IPv4 without a
 * tag, IP options or fragments. False for all others, and *key is then not to be used. In straight
 * lines, since nothing costs a packet as much as looking at its headers field by field.
 */
static inline bool ff_parse_plain(const uint8_t *head, uint32_t head_len, uint32_t frame_len,
                                  uint16_t in_port, struct ff_key *key) {
    uint64_t macs, words[sizeof(*key) / sizeof(uint64_t)];
    uint32_t type, total, need, flags = 0;
    const uint8_t *l4 = head + FF_PLAIN_L4;

    if (unlikely(head_len < FF_PLAIN_HEAD))
        return false;
    macs = ff_load64(head);
    type = ff_load32(head + 12); /* EtherType, version and IHL, TOS */
    total = rte_be_to_cpu_16(ff_load16(head + 16));
    if ((type & rte_cpu_to_be_32(0xffffff00)) != RTE_BE32(0x08004500) ||
        macs & RTE_BE64(1ull << 8) || total > frame_len - 14 ||
        ff_load16(head + 20) & RTE_BE16(0x3fff))
        return false;
    if (head[23] == IPPROTO_UDP) {
        need = rte_be_to_cpu_16(ff_load16(l4 + 4));
        if (need < 8)
            return false;
    } else if (head[23] == IPPROTO_TCP) {
        need = (uint32_t)(l4[12] >> 4) * 4;
        flags = l4[13];
        if (need < 20)
            return false;
    } else {
        return false;
    }
    if (need + 20 > total)
        return false;
    words[0] = macs;
    words[1] = ff_load32(head + 8) | (uint64_t)RTE_BE16(0x0800) << 32 | (uint64_t)in_port << 48;
    words[2] = 0;
    words[3] = head[23] | (uint64_t)(uint8_t)(type >> 24) << 8 | (uint64_t)flags << 24 |
               (uint64_t)ff_load32(l4) << 32;
    words[4] = ff_load32(head + 26);
    words[5] = 0;
    words[6] = ff_load32(head + 30);
    words[7] = 0;
    memcpy(key, words, sizeof(words));
    return true;
}
static_assert(RTE_BYTE_ORDER == RTE_LITTLE_ENDIAN, "ff_parse_plain puts fields into words");
static_assert(offsetof(struct ff_key, eth_type) == 12 && offsetof(struct ff_key, in_port) == 14 &&
                  offsetof(struct ff_key, vlan_tpid) == 16 &&
                  offsetof(struct ff_key, ip_proto) == 24 &&
                  offsetof(struct ff_key, ip_tos) == 25 && offsetof(struct ff_key, ip_frag) == 26 &&
                  offsetof(struct ff_key, tcp_flags) == 27 &&
                  offsetof(struct ff_key, l4_src) == 28 && offsetof(struct ff_key, ip_src) == 32 &&
                  offsetof(struct ff_key, ip_dst) == 48,
              "ff_parse_plain");

#endif
