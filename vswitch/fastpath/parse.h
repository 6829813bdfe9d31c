/* SPDX-License-Identifier: Apache-2.0 */
/* Parser: from a frame's first bytes to its flow key. */
#ifndef FF_PARSE_H
#define FF_PARSE_H

#include "ff.h"

/*
 * ff_parse for a frame of which only the first head_len of frame_len bytes lie
 * at `head`. Headers must lie within them: a frame whose headers reach beyond
 * is malformed at the layer that does. *l4 is where the upper layer's header
 * begins, 0 when there is none.
 */
int ff_parse_head(const uint8_t *head, uint32_t head_len, uint32_t frame_len, uint16_t in_port,
                  struct ff_key *key, uint32_t *l4);

#endif
