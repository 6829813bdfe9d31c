/* SPDX-License-Identifier: Apache-2.0 */
/* For test_checksums.py: what is taken from a card, frame by frame, of cards that are not here. */
#include "switch.h"

struct ff_switch ff; /* offload.c's */

unsigned int verdict(uint64_t flags, uint32_t packet_type, int inner);
unsigned int still_valid(uint8_t proto, uint8_t frag);

/* Of an mbuf with these flags and this packet type. */
unsigned int verdict(uint64_t flags, uint32_t packet_type, int inner) {
    struct rte_mbuf m = {.ol_flags = flags, .packet_type = packet_type};

    return ff_frame_verdict(&m, inner);
}

/* What is left of FF_OFF_VALID when the headers are known. */
unsigned int still_valid(uint8_t proto, uint8_t frag) {
    struct ff_frame f = {.len = 60, .offload = {.what = FF_OFF_VALID}};
    struct ff_key key = {.ip_proto = proto, .ip_frag = frag};

    return ff_offload_check(&f, &key, 34, 1500) == FF_DROP_NONE ? f.offload.what : ~0u;
}
