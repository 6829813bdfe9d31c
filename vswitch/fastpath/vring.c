/* SPDX-License-Identifier: Apache-2.0 */
/* What split and packed virtqueues share: frames from chains, and back into them. */
#include "vring.h"
#include "call.h"

void ff_vring_call(const struct ff_vring *vq) {
    if (vq->call_fd >= 0)
        ff_call(vq->call_fd);
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

uint8_t *ff_mem_look(const struct ff_mem *mem, struct ff_near *near, uint64_t gpa, uint32_t len) {
    for (unsigned int i = 0; i < mem->n; i++) {
        const struct ff_region *r = &mem->region[i];
        uint64_t off = gpa - r->gpa;

        if (off < r->size) {
            *near = (struct ff_near){r->gpa, r->size, r->host};
            return len <= r->size - off ? r->host + off : NULL;
        }
    }
    return NULL;
}

static bool in_memory(const struct ff_mem *mem, const void *p, uint64_t len) {
    for (unsigned int i = 0; i < mem->n; i++) {
        const struct ff_region *r = &mem->region[i];
        uint64_t off = (uintptr_t)p - (uintptr_t)r->host;

        if (off < r->size)
            return len <= r->size - off;
    }
    return false;
}

unsigned int ff_vring_check(const struct ff_vring *vq) {
    uint32_t n = vq->size, event = vq->event_idx ? sizeof(uint16_t) : 0;
    uint64_t driver = sizeof(struct vring_packed_desc_event), device = driver;

    if (!vq->packed) {
        driver = sizeof(*vq->avail) + n * sizeof(vq->avail->ring[0]) + event;
        device = sizeof(*vq->used) + n * sizeof(vq->used->ring[0]) + event;
    }
    /* sections 2.6 and 2.7: alignment, without which reads and writes are not of one piece */
    if ((uintptr_t)vq->desc % 16 != 0 || (uintptr_t)vq->avail % (vq->packed ? 4 : 2) != 0 ||
        (uintptr_t)vq->used % 4 != 0)
        return FF_FAULT_ADDRESS;
    if (!in_memory(vq->mem, vq->desc, n * sizeof(*vq->desc)) ||
        !in_memory(vq->mem, vq->avail, driver) || !in_memory(vq->mem, vq->used, device))
        return FF_FAULT_ADDRESS;
    if (vq->packed && (vq->last_avail >= n || vq->last_used >= n))
        return FF_FAULT_INDEX;
    return FF_FAULT_NONE;
}

void ff_vring_quiet(struct ff_vring *vq) {
    if (vq->packed)
        vq->device_event->flags = VRING_PACKED_EVENT_FLAG_DISABLE;
    else if (!vq->event_idx) /* else the event index stays behind, which says the same */
        vq->used->flags = VRING_USED_F_NO_NOTIFY;
}

void ff_vring_listen(struct ff_vring *vq) {
    if (vq->packed) {
        vq->device_event->flags = VRING_PACKED_EVENT_FLAG_ENABLE;
    } else if (vq->event_idx) { /* section 2.6.8: the event index follows the used ring */
        struct vring_used *used = vq->used;

        *(__virtio16 *)(void *)&used->ring[vq->size] = vq->last_avail;
    } else {
        vq->used->flags = 0;
    }
}

unsigned int ff_vring_rx(struct ff_vring *vq, struct ff_arena *arena, struct ff_frame *frames,
                         unsigned int n) {
    arena->n_heads = 0;
    arena->n_segs = 0;
    return vq->packed ? ff_packed_rx(vq, arena, frames, n) : ff_split_rx(vq, arena, frames, n);
}

bool ff_vring_rx_done(struct ff_vring *vq) {
    if (vq->taken == 0)
        return false;
    if (vq->packed)
        ff_packed_rx_done(vq);
    else
        ff_split_rx_done(vq);
    vq->taken = 0;
    return true;
}

void ff_vring_notify(struct ff_vring *vq) {
    if (vq->packed)
        ff_packed_notify(vq);
    else
        ff_split_notify(vq);
}

struct ff_sent ff_vring_tx(struct ff_vring *vq, const struct ff_frame *frames, unsigned int n,
                           uint32_t *too_long) {
    return vq->packed ? ff_packed_tx(vq, frames, n, too_long)
                      : ff_split_tx(vq, frames, n, too_long);
}
