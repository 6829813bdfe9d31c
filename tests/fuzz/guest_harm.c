/* SPDX-License-Identifier: Apache-2.0 */
/* What no driver would write: descriptors, tables, indices and bytes of any sort. */
#include "guest.h"

static uint64_t some_address(const struct guest *g, struct input *in) {
    uint8_t how = take8(in);
    enum part part = how / 4 % PARTS;

    switch (how % 4) {
    case 0:
        return guest_gpa[part] + take16(in);
    case 1: /* about its end */
        return guest_gpa[part] + g->size[part] + 16 - take8(in);
    case 2:
        return guest_gpa[part] - take8(in);
    default:
        return take64(in);
    }
}

static uint32_t some_length(struct input *in) {
    uint8_t how = take8(in);

    switch (how % 4) {
    case 0:
        return how / 4 * 16u;
    case 1:
        return take16(in);
    case 2:
        return UINT32_MAX - take8(in);
    default:
        return take8(in);
    }
}

/* A descriptor of the ring or of a table, of any sort. */
static void harm_descriptor(struct guest *g, struct input *in) {
    uint16_t where = take16(in);
    uint64_t addr = some_address(g, in);
    uint32_t len = some_length(in);
    uint16_t flags = take8(in), next = take16(in);
    struct vring_desc d = {addr, len, flags & 7u, next};
    struct vring_packed_desc p = {addr, len, next, flags & 7u};
    bool table = flags & 8;
    uint8_t *at = g->at[table ? PART_TABLES : PART_DESC];
    uint32_t n = g->size[table ? PART_TABLES : PART_DESC] / (uint32_t)sizeof(d);

    if (flags & 16)
        p.flags |= AVAIL_BIT;
    if (flags & 32)
        p.flags |= USED_BIT;
    if (!(flags & 64))
        where = g->vq.packed ? g->vq.last_avail : guest_number(g, g->next);
    memcpy(at + where % n * sizeof(d), g->vq.packed ? (void *)&p : (void *)&d, sizeof(d));
}

/* A table of many descriptors of one sort. */
static void harm_table(struct guest *g, struct input *in) {
    uint16_t n = take16(in) % 2048u, flags = take8(in);
    uint64_t addr = some_address(g, in);
    uint32_t len = some_length(in);

    for (uint32_t i = 0; i < n && (i + 1) * sizeof(struct vring_desc) <= g->size[PART_TABLES];
         i++) {
        struct vring_desc d = {addr, len, flags & 7u, (uint16_t)(i + 1)};
        struct vring_packed_desc p = {addr, len, 0, flags & 7u};

        memcpy(g->at[PART_TABLES] + i * sizeof(d), g->vq.packed ? (void *)&p : (void *)&d,
               sizeof(d));
    }
}

void guest_harm(struct guest *g, struct input *in) {
    uint8_t how = take8(in);
    enum part part;
    uint32_t at;

    g->honest = false;
    switch (how % 5) {
    case 0:
        harm_descriptor(g, in);
        g->dirty = true;
        break;
    case 1:
        harm_table(g, in);
        g->dirty = true;
        break;
    case 2: /* makes something available */
        if (g->vq.packed)
            break;
        g->vq.avail->ring[g->vq.avail->idx & (g->vq.size - 1u)] =
            how & 32 ? take16(in) : guest_number(g, g->next);
        g->vq.avail->idx++;
        break;
    case 3: /* jumps */
        if (g->vq.packed)
            g->vq.driver_event->off_wrap = take16(in);
        else
            g->vq.avail->idx = (uint16_t)(g->vq.avail->idx + take16(in));
        break;
    default:
        g->dirty = true;
        part = take8(in) % PARTS;
        at = take16(in) % g->size[part];
        for (unsigned int n = 1 + how / 5 % 32; n > 0 && at < g->size[part]; n--)
            g->at[part][at++] = take8(in);
        break;
    }
}
