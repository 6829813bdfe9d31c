/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

#include <sanitizer/asan_interface.h>

#define WRAP_BIT 0x8000u

/* PART_DATA begins where PART_TABLES ends, PART_TOP is the end of all addresses. */
const uint64_t guest_gpa[PARTS] = {0x100000, 0x200000, 0x300000, 0x10000, 0x1a000, 0ull - 4096};
/* Odd, so that nothing behind the last byte is there by alignment. */
static const uint32_t room[PARTS] = {
    RING_MAX * sizeof(struct vring_desc), 6 + 2 * RING_MAX, 6 + 8 * RING_MAX, 0xa000, 0x6003, 4096,
};

static uint8_t *noise; /* what data is full of */

static void fill(struct guest *g) {
    memcpy(g->at[PART_DATA], noise, g->size[PART_DATA]);
    memset(g->at[PART_TABLES], 0, g->size[PART_TABLES]);
    memset(g->at[PART_TOP], 0, g->size[PART_TOP]);
    g->dirty = false;
}

static void make_noise(uint32_t size) {
    uint32_t x = 0x9e3779b9u;

    noise = malloc(size);
    CHECK(noise != NULL);
    for (uint32_t i = 0; i < size; i++) {
        x = x * 1664525u + 1013904223u;
        noise[i] = (uint8_t)(x >> 24);
    }
}

void guest_init(struct guest *g, bool writable) {
    g->writable = writable;
    if (noise == NULL)
        make_noise(room[PART_DATA]);
    for (unsigned int i = 0; i < PARTS; i++) {
        CHECK(posix_memalign((void **)&g->at[i], 64, room[i]) == 0);
        g->size[i] = room[i];
    }
    fill(g);
}

/* A ring part of `size` bytes: what lies behind must not be touched. */
static void ring_part(struct guest *g, enum part part, uint32_t size) {
    ASAN_UNPOISON_MEMORY_REGION(g->at[part], room[part]);
    memset(g->at[part], 0, size);
    ASAN_POISON_MEMORY_REGION(g->at[part] + size, room[part] - size);
    g->size[part] = size;
}

static void regions(struct guest *g) {
    /* what most addresses are in comes first: each look at a region counts for the fuzzer, and
     * costs */
    static const enum part order[PARTS] = {PART_DATA,  PART_TABLES, PART_DESC,
                                           PART_AVAIL, PART_USED,   PART_TOP};

    g->mem.n = PARTS;
    atomic_store(&g->mem.lost, false);
    for (unsigned int k = 0; k < PARTS; k++) {
        enum part i = order[k];

        g->mem.region[k] = (struct ff_region){
            .gpa = guest_gpa[i],
            .size = g->size[i],
            .host = g->at[i],
            .map = g->at[i],
            .map_size = g->size[i],
        };
    }
}

void guest_reset(struct guest *g, struct input *in) {
    uint8_t flags = take8(in), size = take8(in);
    uint16_t position = take16(in);
    struct ff_vring *vq = &g->vq;
    int call_fd = vq->call_fd;

    *vq = (struct ff_vring){
        .packed = flags & 1,
        .mergeable = flags & 2,
        .event_idx = flags & 4,
        .in_order = flags & 128,
        .hdr_len = flags & 8 ? 12 : 10,
        .offloads = flags & 64 ? FF_OFF_CSUM | FF_OFF_TSO | FF_OFF_ECN : 0,
        .call_fd = call_fd,
        .mem = &g->mem,
    };
    if (vq->mergeable)
        vq->hdr_len = 12; /* num_buffers */
    vq->size = (uint16_t)(vq->packed ? 1u + size : 1u << size % 9);
    ring_part(g, PART_DESC, vq->size * (uint32_t)sizeof(struct vring_desc));
    ring_part(g, PART_AVAIL, vq->packed ? 4u : 6u + 2u * vq->size);
    ring_part(g, PART_USED, vq->packed ? 4u : 6u + 8u * vq->size);
    regions(g);
    if (g->dirty)
        fill(g);
    vq->desc = (void *)g->at[PART_DESC];
    vq->avail = (void *)g->at[PART_AVAIL];
    vq->used = (void *)g->at[PART_USED];
    g->next_wrap = g->used_wrap = flags & 16;
    if (vq->packed) {
        position %= vq->size;
        for (uint16_t i = 0; i < vq->size; i++) /* those before were used in this lap */
            vq->packed_desc[i].flags = (i < position) == g->used_wrap ? AVAIL_BIT | USED_BIT : 0;
    } else {
        vq->avail->idx = vq->used->idx = position;
    }
    vq->last_avail = vq->last_used = vq->signalled = g->next = g->used = position;
    vq->avail_wrap = vq->used_wrap = g->used_wrap;
    CHECK(ff_vring_check(vq) == FF_FAULT_NONE);
    g->twist = flags & 32 ? 0x55 : 0;
    g->honest = true;
    g->stopped = false;
    g->slots_out = 0;
    g->n_chains = g->first_chain = 0;
    g->tables_used = g->data_used = g->pool_used = 0;
    if (!g->writable)
        ff_vring_quiet(vq);
}

const struct chain *guest_chain(const struct guest *g, unsigned int i) {
    return &g->chain[(g->first_chain + i) % RING_MAX];
}

/* ---- posting ---- */

enum { SHAPE_INDIRECT = 1, SHAPE_MANY = 2, SHAPE_BIG = 4, SHAPE_UNALIGNED = 8, SHAPE_NOTHING = 16 };

/* Chooses the chain's buffers; false when memory, or the pool, is used up. */
static bool choose_buffers(struct guest *g, struct input *in, uint8_t shape, struct chain *c) {
    uint32_t n = shape & SHAPE_MANY ? 1u + take16(in) % CHAIN_SEGS_MAX : 1u + take8(in) % 8;
    uint32_t lens[8], least = g->vq.hdr_len + 14u;

    if (g->pool_used + n > POOL_SEGS)
        return false;
    for (unsigned int i = 0; i < RTE_MIN(n, RTE_DIM(lens)); i++)
        lens[i] = shape & SHAPE_BIG ? take16(in) : take8(in);
    *c = (struct chain){.first = g->pool_used, .n = n};
    for (uint32_t i = 0; i < n; i++) {
        uint32_t len = lens[i % RTE_DIM(lens)], at;

        if (len == 0 && !(shape & SHAPE_NOTHING))
            len = 1;
        if (g->writable && i == 0)
            len = RTE_MAX(len, g->vq.hdr_len); /* tx wants the header in one piece */
        if (i + 1 == n && c->len + len < least)
            len = least - c->len;
        if (g->writable) {
            at = g->data_used;
            if (len > g->size[PART_DATA] - at)
                return false;
            g->data_used += len;
        } else { /* what is only read may be read twice */
            at = (i * 331u + c->first * 7u) % (g->size[PART_DATA] / 4);
            if (len > g->size[PART_DATA] - at)
                return false;
        }
        g->pool[c->first + i] = (struct ff_seg){g->at[PART_DATA] + at, len};
        c->len += len;
    }
    g->pool_used += n;
    return true;
}

static uint64_t address(const struct guest *g, const uint8_t *p) {
    return guest_gpa[PART_DATA] + (uint64_t)(p - g->at[PART_DATA]);
}

uint16_t guest_number(const struct guest *g, uint16_t i) {
    return (uint16_t)((i ^ g->twist) & (g->vq.size - 1u));
}

static uint16_t direction(const struct guest *g) {
    return g->writable ? VRING_DESC_F_WRITE : 0;
}

/* Sections 2.6.5.3 and 2.7.7: the address of a table of the chain's buffers, or 0. */
static uint64_t write_table(struct guest *g, const struct chain *c, bool unaligned) {
    uint32_t at = g->tables_used + unaligned, len = c->n * (uint32_t)sizeof(struct vring_desc);

    if (at + len > g->size[PART_TABLES])
        return 0;
    for (uint32_t i = 0; i < c->n; i++) {
        const struct ff_seg *s = &g->pool[c->first + i];
        bool last = i + 1 == c->n;
        struct vring_desc d = {address(g, s->p), s->len, direction(g), 0};
        struct vring_packed_desc p = {d.addr, d.len, 0, direction(g)};

        if (!last) {
            d.flags |= VRING_DESC_F_NEXT;
            d.next = (uint16_t)(i + 1);
        }
        memcpy(g->at[PART_TABLES] + at + i * sizeof(d), g->vq.packed ? (void *)&p : (void *)&d,
               sizeof(d));
    }
    g->tables_used = (at + len + 15) & ~15u;
    return guest_gpa[PART_TABLES] + at;
}

static void post_split(struct guest *g, struct chain *c, uint64_t table) {
    struct ff_vring *vq = &g->vq;

    c->id = guest_number(g, g->next);
    for (uint16_t i = 0; i < c->slots; i++) {
        struct vring_desc *d = &vq->desc[guest_number(g, (uint16_t)(g->next + i))];
        bool last = i + 1 == c->slots;

        if (table != 0)
            *d = (struct vring_desc){table, c->n * (uint32_t)sizeof(*d), VRING_DESC_F_INDIRECT, 0};
        else
            *d = (struct vring_desc){address(g, g->pool[c->first + i].p), g->pool[c->first + i].len,
                                     (uint16_t)(direction(g) | (last ? 0 : VRING_DESC_F_NEXT)),
                                     last ? 0 : guest_number(g, (uint16_t)(g->next + i + 1))};
    }
    g->next = (uint16_t)(g->next + c->slots);
    vq->avail->ring[vq->avail->idx & (vq->size - 1u)] = c->id;
    vq->avail->idx++;
}

static void post_packed(struct guest *g, struct chain *c, uint64_t table) {
    struct ff_vring *vq = &g->vq;

    c->id = (uint16_t)(g->next * 37u + 11u);
    for (uint16_t i = 0; i < c->slots; i++) {
        bool last = i + 1 == c->slots;
        uint16_t flags = g->next_wrap ? AVAIL_BIT : USED_BIT;
        struct vring_packed_desc *d = &vq->packed_desc[g->next];

        if (table != 0)
            *d = (struct vring_packed_desc){table, c->n * (uint32_t)sizeof(*d), c->id,
                                            flags | VRING_DESC_F_INDIRECT};
        else /* section 2.7.6: the last one's id counts */
            *d = (struct vring_packed_desc){
                address(g, g->pool[c->first + i].p), g->pool[c->first + i].len,
                last ? c->id : 0xdead,
                (uint16_t)(flags | direction(g) | (last ? 0 : VRING_DESC_F_NEXT))};
        if (++g->next == vq->size) {
            g->next = 0;
            g->next_wrap = !g->next_wrap;
        }
    }
}

void guest_post(struct guest *g, struct input *in) {
    uint8_t shape = take8(in);
    uint64_t table = 0;
    struct chain c;

    if (!g->honest || g->slots_out == g->vq.size)
        return;
    if (g->n_chains == 0)
        g->tables_used = g->data_used = g->pool_used = 0;
    if (!choose_buffers(g, in, shape, &c))
        return;
    c.slots = shape & SHAPE_INDIRECT ? 1 : (uint16_t)c.n;
    if (c.slots > g->vq.size - g->slots_out)
        return;
    if (shape & SHAPE_INDIRECT) {
        table = write_table(g, &c, shape & SHAPE_UNALIGNED);
        if (table == 0)
            return;
    }
    if (g->vq.packed)
        post_packed(g, &c, table);
    else
        post_split(g, &c, table);
    g->slots_out = (uint16_t)(g->slots_out + c.slots);
    g->chain[(g->first_chain + g->n_chains++) % RING_MAX] = c;
}

/* ---- taking back ---- */

/* The used descriptor that stands next is of the chain with that id. */
static void check_used(const struct guest *g, uint16_t id, uint32_t len) {
    const struct vring_packed_desc *d = &g->vq.packed_desc[g->used];
    uint16_t both = g->used_wrap ? AVAIL_BIT | USED_BIT : 0;

    CHECK((d->flags & (AVAIL_BIT | USED_BIT)) == both);
    CHECK(d->id == id);
    CHECK(len == 0 || d->len == len);
    CHECK(!!(d->flags & VRING_DESC_F_WRITE) == (len > 0));
}

static void chain_gone(struct guest *g) {
    uint16_t slots = guest_chain(g, 0)->slots;

    if (g->vq.packed) {
        g->used = (uint16_t)(g->used + slots);
        if (g->used >= g->vq.size) {
            g->used = (uint16_t)(g->used - g->vq.size);
            g->used_wrap = !g->used_wrap;
        }
    } else {
        g->used++;
    }
    g->slots_out = (uint16_t)(g->slots_out - slots);
    g->first_chain = (g->first_chain + 1) % RING_MAX;
    g->n_chains--;
}

void guest_take_used(struct guest *g, uint32_t len) {
    const struct chain *c = guest_chain(g, 0);
    struct ff_vring *vq = &g->vq;

    CHECK(g->n_chains > 0);
    if (vq->packed) {
        check_used(g, c->id, len);
    } else {
        const struct vring_used_elem *e = &vq->used->ring[g->used & (vq->size - 1u)];

        CHECK(vq->used->idx != g->used);
        CHECK(e->id == c->id);
        CHECK(e->len == len);
    }
    chain_gone(g);
}

void guest_take_read(struct guest *g, unsigned int n) {
    CHECK(g->n_chains >= n);
    if (g->vq.packed && g->vq.in_order && n > 0) {
        check_used(g, guest_chain(g, n - 1)->id, 0);
        for (; n > 0; n--)
            chain_gone(g);
    }
    for (; n > 0; n--)
        guest_take_used(g, 0);
}

void guest_check_idle(const struct guest *g) {
    const struct ff_vring *vq = &g->vq;

    CHECK(vq->last_used == g->used);
    if (!vq->packed) {
        CHECK(vq->used->idx == g->used);
        return;
    }
    CHECK(vq->used_wrap == g->used_wrap);
    if (g->n_chains > 0) { /* still as the driver made it */
        uint16_t flags = vq->packed_desc[g->used].flags;

        CHECK(!!(flags & AVAIL_BIT) == g->used_wrap && !!(flags & USED_BIT) != g->used_wrap);
    }
}

void guest_read(const struct guest *g, const struct chain *c, uint32_t skip, uint8_t *to,
                uint32_t len) {
    for (uint32_t i = 0; i < c->n && len > 0; i++) {
        struct ff_seg s = g->pool[c->first + i];
        uint32_t off = RTE_MIN(skip, s.len), n = RTE_MIN(len, s.len - off);

        memcpy(to, s.p + off, n);
        skip -= off;
        to += n;
        len -= n;
    }
    CHECK(len == 0);
}

/* ---- notifications ---- */

void guest_ask(struct guest *g, struct input *in) {
    uint8_t what = take8(in);
    uint16_t where = take16(in);
    struct ff_vring *vq = &g->vq;

    if (vq->packed) {
        vq->driver_event->flags = what % 3;
        vq->driver_event->off_wrap = (uint16_t)(where % vq->size | (what & 4 ? WRAP_BIT : 0));
        if (!vq->event_idx && what % 3 == VRING_PACKED_EVENT_FLAG_DESC)
            vq->driver_event->flags = VRING_PACKED_EVENT_FLAG_ENABLE;
    } else {
        vq->avail->flags = what & 1 ? VRING_AVAIL_F_NO_INTERRUPT : 0;
        /* near, else it is hardly ever met */
        vq->avail->ring[vq->size] = (uint16_t)(g->used + where % (2u * vq->size) - vq->size / 2);
    }
}

bool guest_wants_call(const struct guest *g, uint16_t slot, bool wrap) {
    const struct ff_vring *vq = &g->vq;
    uint16_t event;

    if (!vq->packed) {
        if (!vq->event_idx)
            return !(vq->avail->flags & VRING_AVAIL_F_NO_INTERRUPT);
        for (; slot != g->used; slot++)
            if (slot == vq->avail->ring[vq->size])
                return true;
        return false;
    }
    if (!vq->event_idx || vq->driver_event->flags != VRING_PACKED_EVENT_FLAG_DESC)
        return vq->driver_event->flags != VRING_PACKED_EVENT_FLAG_DISABLE;
    event = vq->driver_event->off_wrap;
    do {
        if (slot == (event & ~WRAP_BIT) && wrap == !!(event & WRAP_BIT))
            return true;
        if (++slot == vq->size) {
            slot = 0;
            wrap = !wrap;
        }
    } while (slot != g->used || wrap != g->used_wrap);
    return false;
}

bool guest_owns(const struct guest *g, const uint8_t *p, uint32_t len) {
    for (unsigned int i = 0; i < PARTS; i++)
        if (p >= g->at[i] && p < g->at[i] + g->size[i])
            return len <= (uint64_t)(g->at[i] + g->size[i] - p);
    return false;
}
