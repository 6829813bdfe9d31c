/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Parser. Each layer checks its own lengths, so that no later layer reads what
 * the frame does not have. vswitch/slowpath/pipeline.py is the same in Python;
 * property tests hold the two together.
 */
#include "parse.h"

#include <netinet/in.h>
#include <string.h>

#include <rte_branch_prediction.h>
#include <rte_byteorder.h>

#define ETH_HLEN 14u
#define ETH_TYPE_MIN 0x600u /* IEEE 802.3 clause 3.2.6: below, it is a length */
#define TPID_8021Q 0x8100u
#define TPID_8021AD 0x88a8u
#define TPID_9100 0x9100u
#define ETH_ARP 0x0806u
#define ETH_IPV4 0x0800u
#define ETH_IPV6 0x86ddu

#define IPV6_EXT_MAX 8u
#define IPV6_OPT_PAD1 0u
#define IPV6_OPT_JUMBO 0xc2u /* RFC 2675 section 2 */

/* What is left of the frame: `p` .. `p + here` can be read, `len` is there. */
struct cursor {
    const uint8_t *p;
    uint32_t here;
    uint32_t len;
    const uint8_t *l4; /* the upper layer's header, once it is found */
};

static inline uint16_t be16(const uint8_t *p) {
    uint16_t v;

    memcpy(&v, p, sizeof(v));
    return rte_be_to_cpu_16(v);
}

static inline void advance(struct cursor *c, uint32_t n) {
    c->p += n;
    c->here -= n;
    c->len -= n;
}

/* Forgets what lies beyond the layer's own length: Ethernet padding. */
static inline void trim(struct cursor *c, uint32_t len) {
    c->len = len;
    if (c->here > len)
        c->here = len;
}

static int parse_tcp(struct cursor *c, struct ff_key *key) {
    uint32_t off;

    if (c->here < 20)
        return FF_DROP_MALFORMED_TCP;
    off = (uint32_t)(c->p[12] >> 4) * 4;
    /* a first fragment need not hold all options */
    if (off < 20 || (off > c->len && !key->ip_frag))
        return FF_DROP_MALFORMED_TCP;
    memcpy(&key->l4_src, c->p, 4);
    key->tcp_flags = c->p[13];
    return FF_DROP_NONE;
}

static int parse_udp(struct cursor *c, struct ff_key *key, int super) {
    uint16_t len;

    if (c->here < 8)
        return FF_DROP_MALFORMED_UDP;
    len = be16(c->p + 4);
    if (len < 8 ? !(len == 0 && super) : (len > c->len && !key->ip_frag))
        return FF_DROP_MALFORMED_UDP;
    memcpy(&key->l4_src, c->p, 4);
    return FF_DROP_NONE;
}

static int parse_icmp(struct cursor *c, struct ff_key *key) {
    if (c->here < 8)
        return FF_DROP_MALFORMED_ICMP;
    key->l4_src = rte_cpu_to_be_16(c->p[0]);
    key->l4_dst = rte_cpu_to_be_16(c->p[1]);
    return FF_DROP_NONE;
}

/* RFC 9260 section 3.1; one without a whole common header has no ports. */
static int parse_sctp(struct cursor *c, struct ff_key *key) {
    if (c->len < 12)
        return FF_DROP_NONE;
    if (c->here < 12) /* beyond the head: only IPv6 extension headers reach that far */
        return FF_DROP_MALFORMED_IPV6;
    memcpy(&key->l4_src, c->p, 4);
    return FF_DROP_NONE;
}

/* super: the IP length was 0, the frame is one of segmentation offload. */
static inline int parse_l4(struct cursor *c, struct ff_key *key, int super) {
    if (key->ip_frag & FF_FRAG_LATER)
        return FF_DROP_NONE;
    c->l4 = c->p;
    switch (key->ip_proto) {
    case IPPROTO_TCP:
        return parse_tcp(c, key);
    case IPPROTO_UDP:
        return parse_udp(c, key, super);
    case IPPROTO_ICMP:
    case IPPROTO_ICMPV6:
        return parse_icmp(c, key);
    case IPPROTO_SCTP:
        return parse_sctp(c, key);
    default:
        return FF_DROP_NONE;
    }
}

/* RFC 826, for Ethernet and IPv4. */
static int parse_arp(struct cursor *c, struct ff_key *key) {
    static const uint8_t fixed[6] = {0, 1, 8, 0, 6, 4}; /* ar$hrd, ar$pro, ar$hln, ar$pln */

    if (c->here < 28 || memcmp(c->p, fixed, sizeof(fixed)) != 0)
        return FF_DROP_MALFORMED_ARP;
    key->ip_proto = c->p[7];
    memcpy(key->ip_src, c->p + 14, 4);
    memcpy(key->ip_dst, c->p + 24, 4);
    return FF_DROP_NONE;
}

static inline int parse_ipv4(struct cursor *c, struct ff_key *key) {
    uint32_t ihl, total;
    uint16_t frag;
    int super;

    if (unlikely(c->here < 20 || c->p[0] >> 4 != 4))
        return FF_DROP_MALFORMED_IPV4;
    ihl = (uint32_t)(c->p[0] & 0xf) * 4;
    total = be16(c->p + 2);
    super = total == 0;
    if (super)
        total = c->len;
    if (unlikely(ihl < 20 || ihl > total || total > c->len || ihl > c->here))
        return FF_DROP_MALFORMED_IPV4;
    key->ip_tos = c->p[1];
    key->ip_proto = c->p[9];
    memcpy(key->ip_src, c->p + 12, 4);
    memcpy(key->ip_dst, c->p + 16, 4);
    frag = be16(c->p + 6);
    if (frag & 0x3fff) /* MF or an offset */
        key->ip_frag = frag & 0x1fff ? FF_FRAG_ANY | FF_FRAG_LATER : FF_FRAG_ANY;
    trim(c, total);
    advance(c, ihl);
    return parse_l4(c, key, super);
}

/* RFC 2675: a hop-by-hop header with a jumbo payload option. */
static int has_jumbo_option(const uint8_t *p, uint32_t len) {
    uint32_t i = 2;

    while (i + 1 < len) {
        if (p[i] == IPV6_OPT_PAD1) {
            i++;
            continue;
        }
        if (p[i] == IPV6_OPT_JUMBO)
            return 1;
        i += 2u + p[i + 1];
    }
    return 0;
}

/* RFC 8200 section 4. Leaves the cursor at the upper-layer header. */
static int parse_ipv6_ext(struct cursor *c, struct ff_key *key, uint8_t next) {
    unsigned int n = 0;
    uint32_t hlen;

    for (;;) {
        switch (next) {
        case IPPROTO_HOPOPTS:
        case IPPROTO_ROUTING:
        case IPPROTO_DSTOPTS:
        case IPPROTO_MH:
            if (c->here < 8)
                return FF_DROP_MALFORMED_IPV6;
            hlen = ((uint32_t)c->p[1] + 1) * 8;
            break;
        case IPPROTO_AH: /* RFC 4302 section 2.2: in words, less two */
            if (c->here < 8)
                return FF_DROP_MALFORMED_IPV6;
            hlen = ((uint32_t)c->p[1] + 2) * 4;
            break;
        case IPPROTO_FRAGMENT:
            if (c->here < 8)
                return FF_DROP_MALFORMED_IPV6;
            hlen = 8;
            if (be16(c->p + 2) & 0xfff9) /* not an atomic fragment, RFC 6946 */
                key->ip_frag |= be16(c->p + 2) & 0xfff8 ? FF_FRAG_ANY | FF_FRAG_LATER : FF_FRAG_ANY;
            break;
        default:
            key->ip_proto = next;
            return FF_DROP_NONE;
        }
        if (++n > IPV6_EXT_MAX || hlen > c->here)
            return FF_DROP_MALFORMED_IPV6;
        if (next == IPPROTO_HOPOPTS && has_jumbo_option(c->p, hlen))
            return FF_DROP_MALFORMED_IPV6;
        next = c->p[0];
        advance(c, hlen);
        if (key->ip_frag & FF_FRAG_LATER) { /* what follows is no header */
            key->ip_proto = next;
            return FF_DROP_NONE;
        }
    }
}

static int parse_ipv6(struct cursor *c, struct ff_key *key) {
    uint32_t payload;
    uint8_t next;
    int rc, super;

    if (c->here < 40 || c->p[0] >> 4 != 6)
        return FF_DROP_MALFORMED_IPV6;
    payload = be16(c->p + 4);
    super = payload == 0;
    if (super)
        payload = c->len - 40;
    if (payload > c->len - 40)
        return FF_DROP_MALFORMED_IPV6;
    key->ip_tos = (uint8_t)((c->p[0] << 4) | (c->p[1] >> 4));
    memcpy(key->ip_src, c->p + 8, 16);
    memcpy(key->ip_dst, c->p + 24, 16);
    next = c->p[6];
    trim(c, 40 + payload);
    advance(c, 40);
    rc = parse_ipv6_ext(c, key, next);
    return rc ? rc : parse_l4(c, key, super);
}

static inline int is_tpid(uint16_t type) {
    return type == TPID_8021Q || type == TPID_8021AD || type == TPID_9100;
}

/* Takes up to two tags off; *type becomes the type behind them. */
static int parse_vlan(struct cursor *c, struct ff_key *key, uint16_t *type) {
    for (unsigned int i = 0; is_tpid(*type); i++) {
        if (c->here < 4)
            return FF_DROP_MALFORMED_VLAN;
        if (i == 2)
            break;
        key->vlan_tpid[i] = *type;
        key->vlan_tci[i] = be16(c->p);
        *type = be16(c->p + 2);
        advance(c, 4);
    }
    return FF_DROP_NONE;
}

static inline int parse_frame(struct cursor *c, uint16_t in_port, struct ff_key *key) {
    const uint8_t *head = c->p;
    uint16_t type;
    int rc;

    memset(key, 0, sizeof(*key));
    if (unlikely(c->here < ETH_HLEN))
        return FF_DROP_TOO_SHORT;
    if (unlikely(head[6] & 1))
        return FF_DROP_SRC_MULTICAST;
    memcpy(key->eth_dst, head, 12); /* eth_dst and eth_src */
    key->in_port = in_port;
    type = be16(head + 12);
    advance(c, ETH_HLEN);
    if (is_tpid(type)) {
        rc = parse_vlan(c, key, &type);
        if (rc)
            return rc;
    }
    if (type < ETH_TYPE_MIN)
        return FF_DROP_NONE;
    key->eth_type = rte_cpu_to_be_16(type);
    switch (type) {
    case ETH_IPV4:
        return parse_ipv4(c, key);
    case ETH_IPV6:
        return parse_ipv6(c, key);
    case ETH_ARP:
        return parse_arp(c, key);
    default:
        return FF_DROP_NONE;
    }
}

int ff_parse_head(const uint8_t *head, uint32_t head_len, uint32_t frame_len, uint16_t in_port,
                  struct ff_key *key, uint32_t *l4) {
    struct cursor c = {head, head_len, frame_len, head};
    int rc = parse_frame(&c, in_port, key);

    *l4 = (uint32_t)(c.l4 - head);
    return rc;
}

int ff_parse(const uint8_t *frame, uint32_t len, uint16_t in_port, struct ff_key *key) {
    uint32_t l4;

    if (ff_parse_plain(frame, len, len, in_port, key))
        return FF_DROP_NONE;
    return ff_parse_head(frame, len, len, in_port, key, &l4);
}
