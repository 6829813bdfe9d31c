/* SPDX-License-Identifier: Apache-2.0 */
/* What split and packed virtqueues share: frames from chains, and back into them. */
#include <unistd.h>

#include "vring.h"

void ff_vring_call(const struct ff_vring *vq) {
    uint64_t one = 1;

    if (vq->call_fd >= 0 && write(vq->call_fd, &one, sizeof(one)) < 0)
        return; /* the counter is full: the driver has been told */
}

bool ff_frame_from_chain(const struct ff_vring *vq, struct ff_frame *f, struct ff_arena *arena,
                         const struct ff_chain *chain) {
    uint8_t *head = arena->head[arena->n_heads] + FF_HEAD_ROOM;
    struct ff_seg *out = &arena->seg[arena->n_segs];
    unsigned int hdr_len = vq->hdr_len;
    uint32_t skip = hdr_len, head_len = 0;
    uint8_t header[12];
    unsigned int n = 0;

    if (chain->len < hdr_len)
        return false;
    for (unsigned int i = 0; i < chain->n; i++) {
        struct ff_seg s = chain->seg[i];
        uint32_t part = RTE_MIN(skip, s.len);

        memcpy(header + hdr_len - skip, s.p, part);
        skip -= part;
        s.p += part;
        s.len -= part;
        part = RTE_MIN(s.len, FF_HEAD_COPY - head_len);
        memcpy(head + head_len, s.p, part);
        head_len += part;
        if (s.len > part)
            out[n++] = (struct ff_seg){s.p + part, s.len - part};
    }
    *f = (struct ff_frame){
        .head = head,
        .seg = out,
        .len = chain->len - hdr_len,
        .head_len = (uint16_t)head_len,
        .n_segs = (uint16_t)n,
        .offload = ff_offload_read(header, vq->offloads),
    };
    arena->n_heads++;
    arena->n_segs += n;
    return true;
}

void ff_chain_write(const struct ff_chain *chain, uint32_t skip, struct ff_reader *r,
                    uint32_t len) {
    for (unsigned int i = 0; i < chain->n && len > 0; i++) {
        uint32_t part = RTE_MIN(skip, chain->seg[i].len), n;

        skip -= part;
        n = RTE_MIN(len, chain->seg[i].len - part);
        if (n > 0)
            ff_reader_copy(r, (uint8_t *)(uintptr_t)chain->seg[i].p + part, n);
        len -= n;
    }
}

void ff_vring_quiet(struct ff_vring *vq) {
    if (vq->packed)
        vq->device_event->flags = VRING_PACKED_EVENT_FLAG_DISABLE;
    else if (!vq->event_idx) /* else the event index stays behind, which says the same */
        vq->used->flags = VRING_USED_F_NO_NOTIFY;
}

unsigned int ff_vring_rx(struct ff_vring *vq, struct ff_arena *arena, struct ff_frame *frames,
                         unsigned int n) {
    arena->n_heads = 0;
    arena->n_segs = 0;
    return vq->packed ? ff_packed_rx(vq, arena, frames, n) : ff_split_rx(vq, arena, frames, n);
}

void ff_vring_rx_done(struct ff_vring *vq) {
    if (vq->taken == 0)
        return;
    if (vq->packed)
        ff_packed_rx_done(vq);
    else
        ff_split_rx_done(vq);
    vq->taken = 0;
}

struct ff_sent ff_vring_tx(struct ff_vring *vq, const struct ff_frame *frames, unsigned int n,
                           uint32_t *too_long) {
    return vq->packed ? ff_packed_tx(vq, frames, n, too_long)
                      : ff_split_tx(vq, frames, n, too_long);
}
