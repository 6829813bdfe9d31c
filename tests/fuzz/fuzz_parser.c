/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzes the parser (parse.c). The input is a frame behind four bytes: how
 * much of it is the head, and how much stands behind it in the longer copy.
 * Each parse gets a heap block of exactly its length.
 */
#include <string.h>

#include "input.h"
#include "parse.h"

#define IN_PORT 0x0102

static int parse_exact(const uint8_t *frame, uint32_t head_len, uint32_t len, struct ff_key *key) {
    uint8_t *copy = malloc(head_len > 0 ? head_len : 1);
    uint32_t l4 = 0;
    int rc;

    CHECK(copy != NULL);
    memcpy(copy, frame, head_len);
    memset(key, 0xa5, sizeof(*key));
    rc = ff_parse_head(head_len > 0 ? copy : copy + 1, head_len, len, IN_PORT, key, &l4);
    CHECK(rc != FF_DROP_NONE || l4 <= head_len);
    CHECK(rc >= FF_DROP_NONE && rc < FF_DROP_MAX);
    free(copy);
    return rc;
}

static int is_zero(const void *p, size_t n) {
    const uint8_t *b = p;

    while (n > 0 && *b == 0) {
        b++;
        n--;
    }
    return n == 0;
}

/* ff.h: a field that the frame does not have is zero. */
static void check_absent(const struct ff_key *k) {
    static const uint8_t ipv4[2] = {0x08, 0x00}, ipv6[2] = {0x86, 0xdd}, arp[2] = {0x08, 0x06};
    int is4 = memcmp(&k->eth_type, ipv4, 2) == 0, is6 = memcmp(&k->eth_type, ipv6, 2) == 0;
    int is_arp = memcmp(&k->eth_type, arp, 2) == 0;

    CHECK(k->in_port == IN_PORT);
    CHECK(!(k->eth_src[0] & 1));
    for (unsigned int i = 0; i < 2; i++)
        CHECK(k->vlan_tpid[i] != 0 || k->vlan_tci[i] == 0);
    CHECK(k->vlan_tpid[0] != 0 || k->vlan_tpid[1] == 0);
    if (!is4 && !is6)
        CHECK(is_zero(&k->ip_tos, 3) && is_zero(&k->l4_src, 4));
    if (!is4 && !is6 && !is_arp)
        CHECK(k->ip_proto == 0 && is_zero(k->ip_src, 32));
    if (is4 || is_arp)
        CHECK(is_zero(k->ip_src + 4, 12) && is_zero(k->ip_dst + 4, 12));
    CHECK(!(k->ip_frag & FF_FRAG_LATER) || k->ip_frag == (FF_FRAG_ANY | FF_FRAG_LATER));
    if (k->ip_frag & FF_FRAG_LATER)
        CHECK(is_zero(&k->l4_src, 4) && k->tcp_flags == 0);
    CHECK(k->tcp_flags == 0 || k->ip_proto == 6);
}

/* IP whose length field says nothing (0, a super-frame): then the frame's length counts. */
static int is_super(const uint8_t *frame, const struct ff_key *k) {
    uint32_t at = 14u + 4u * ((k->vlan_tpid[0] != 0) + (k->vlan_tpid[1] != 0));

    if (frame[at - 2] == 0x08 && frame[at - 1] == 0)
        return frame[at + 2] == 0 && frame[at + 3] == 0;
    return frame[at - 2] == 0x86 && frame[at - 1] == 0xdd && frame[at + 4] == 0 &&
           frame[at + 5] == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input in = {data, data + size};
    struct ff_key key, again, part;
    uint32_t head_len = take16(&in), tail = take16(&in);
    uint32_t len = (uint32_t)(in.end - in.p);
    int rc;

    rc = parse_exact(in.p, len, len, &key);
    CHECK(ff_parse(in.p, len, IN_PORT, &again) == rc);
    CHECK(memcmp(&key, &again, sizeof(key)) == 0);
    if (rc == FF_DROP_NONE)
        check_absent(&key);

    /* A head that is enough says the same as the whole; one that is not is malformed. */
    head_len = len > 0 ? head_len % (len + 1) : 0;
    if (parse_exact(in.p, head_len, len, &part) == FF_DROP_NONE)
        CHECK(rc == FF_DROP_NONE && memcmp(&key, &part, sizeof(key)) == 0);

    /* What stands behind a packet, padding, does not change it. */
    tail %= len + 1;
    if (parse_exact(in.p, len - tail, len - tail, &part) == FF_DROP_NONE && !is_super(in.p, &part))
        CHECK(rc == FF_DROP_NONE && memcmp(&key, &part, sizeof(key)) == 0);
    return 0;
}
