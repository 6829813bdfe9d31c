/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzes the virtqueue layer (vring*.c, frame.[ch]): two guests, a sender and a
 * receiver, whose memory and doings come from the input, and a worker that
 * moves frames between them as worker.c and port_vhost.c do.
 *
 * As long as a driver keeps to the rules, what comes out is compared with what
 * went in. Once it does not, what must hold is: nothing outside the guest's
 * memory is touched, never more frames than asked for, each of them wholly in
 * the guest's memory, each taken chain given back once, and an end.
 */
#include <sys/eventfd.h>
#include <unistd.h>

#include "call.h"
#include "eal.h"
#include "guest.h"

#define OPS_MAX 64u
#define FRAME_MAX 0x3000u
#define POOL_MBUFS 255u
#define POOL_ROOM 1024u

static struct guest sender, receiver;
static struct ff_arena arena;
static struct rte_mempool *pool;
static uint8_t *source; /* what frames that no guest sent are made of */

/* A burst in the worker's hands, and what each frame has to hold. */
struct ff_switch ff; /* offload.c's */
static struct ff_frame frames[FF_BURST];
static uint8_t bytes[FF_BURST][FRAME_MAX + FF_VLAN_HLEN];
static uint8_t scratch[FRAME_MAX * 2 + 64];
static unsigned int n_frames;

const char *__asan_default_options(void) {
    return "detect_leaks=0:handle_sigbus=0"; /* EAL's own leaks; each round counts its mbufs */
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    pool = packet_pool(POOL_MBUFS, POOL_ROOM);
    CHECK(ff_call_init(0) == 0);
    guest_init(&sender, false);
    guest_init(&receiver, true);
    source = malloc(FRAME_MAX);
    CHECK(source != NULL);
    for (uint32_t i = 0; i < FRAME_MAX; i++)
        source[i] = (uint8_t)(i * 167u >> 3);
    return 0;
}

/* ---- frames ---- */

/* The frame's bytes; also shows that each of them can be read. */
static void flatten(const struct ff_frame *f, uint8_t *to) {
    uint32_t len = f->head_len;

    memcpy(to, f->head, f->head_len);
    if (ff_frame_is_mbuf(f)) {
        CHECK(f->head == rte_pktmbuf_mtod(f->buf, uint8_t *));
        CHECK(f->head_len == f->buf->data_len && f->len == f->buf->pkt_len);
        CHECK(rte_mbuf_check(f->buf, 1, &(const char *){NULL}) == 0);
        for (const struct rte_mbuf *m = f->buf->next; m != NULL; m = m->next) {
            memcpy(to + len, rte_pktmbuf_mtod(m, const uint8_t *), m->data_len);
            len += m->data_len;
        }
    } else {
        for (unsigned int i = 0; i < f->n_segs; i++) {
            memcpy(to + len, f->seg[i].p, f->seg[i].len);
            len += f->seg[i].len;
        }
    }
    CHECK(len == f->len);
}

static void check_same(const struct ff_frame *f, const uint8_t *want) {
    flatten(f, scratch);
    CHECK(memcmp(scratch, want, f->len) == 0);
}

/* What holds for every frame from a guest, whatever the guest did. */
static void check_taken(const struct guest *g, const struct ff_frame *f) {
    uint64_t len = f->head_len;

    CHECK(!ff_frame_is_mbuf(f));
    CHECK(f->offload.what == 0 || g->vq.offloads != 0);
    CHECK(f->head >= arena.head[0] && f->head + f->head_len <= (uint8_t *)arena.seg);
    CHECK(f->head_len == RTE_MIN(f->len, FF_HEAD_COPY));
    CHECK(f->seg >= arena.seg && f->seg + f->n_segs <= arena.seg + FF_ARENA_SEGS);
    for (unsigned int i = 0; i < f->n_segs; i++) {
        CHECK(guest_owns(g, f->seg[i].p, f->seg[i].len));
        len += f->seg[i].len;
    }
    CHECK(len == f->len);
}

/* What the pipeline may do to a frame on its way; `want` is what it holds then. */
static void handle(struct ff_frame *f, uint8_t *want, uint8_t how) {
    struct ff_frame twin;
    struct rte_mbuf *m;

    if (how & 1)
        (void)ff_frame_keep(f, pool); /* without memory it stays as it is */
    if (how & 2) {
        uint32_t max = 1u + how * 5u;

        m = ff_frame_copy(f, pool, max);
        if (m != NULL) {
            CHECK(m->pkt_len == RTE_MIN(max, f->len));
            CHECK(memcmp(rte_pktmbuf_read(m, 0, m->pkt_len, scratch), want, m->pkt_len) == 0);
            rte_pktmbuf_free(m);
        }
    }
    if (how & 4) {
        ff_frame_share(f);
        twin = *f;
        if (ff_frame_unshare(f, &arena, pool) == 0) {
            CHECK(f->head != twin.head);
            f->head[0] ^= 0xff; /* not the twin's */
            check_same(&twin, want);
            f->head[0] ^= 0xff;
            ff_frame_free(&twin);
        } else {
            ff_frame_free(f);
            *f = twin;
        }
        check_same(f, want);
    }
    if (how & 8 && ff_frame_vlan_push(f, 0x88a8, how) == 0) {
        memmove(want + 16, want + 12, f->len - 16);
        memcpy(want + 12, (uint8_t[]){0x88, 0xa8, 0, how}, 4);
        check_same(f, want);
        if (how & 16) {
            ff_frame_vlan_pop(f);
            memmove(want + 12, want + 16, f->len - 12);
        }
    }
    check_same(f, want);
}

/* Frames that come from elsewhere: a driver, or parked ones. */
static void make_frames(struct input *in) {
    n_frames = 1u + take8(in) % FF_BURST;
    arena.n_heads = n_frames;
    arena.n_segs = 0;
    for (unsigned int i = 0; i < n_frames; i++) {
        uint8_t shape = take8(in), pieces = 1 + shape / 16;
        struct ff_frame *f = &frames[i];
        uint32_t len =
            FF_ETH_HLEN + (shape & 1 ? take16(in) % (FRAME_MAX - FF_ETH_HLEN) : take8(in));
        uint32_t done = RTE_MIN(len, FF_HEAD_COPY);

        *f = (struct ff_frame){
            .head = arena.head[i] + FF_HEAD_ROOM,
            .seg = &arena.seg[arena.n_segs],
            .len = len,
            .head_len = (uint16_t)done,
        };
        memcpy(f->head, source, done);
        while (done < len) {
            uint32_t part = f->n_segs + 1 == pieces ? len - done : (len - done + 1) / 2;

            arena.seg[arena.n_segs++] = (struct ff_seg){source + done, part};
            f->n_segs++;
            done += part;
        }
        memcpy(bytes[i], source, len);
        handle(f, bytes[i], take8(in));
    }
}

/* ---- the device's work ---- */

/* Whether the driver was interrupted since the last look, as it wanted. */
static void check_called(const struct guest *g, bool want) {
    uint64_t count;

    if (g->vq.call_fd >= 0 && (read(g->vq.call_fd, &count, sizeof(count)) > 0) != want)
        CHECK(!g->honest);
}

static void check_sane(struct guest *g) {
    const struct ff_vring *vq = &g->vq;

    CHECK(vq->fault < FF_FAULT_MAX);
    CHECK(!vq->packed || (vq->last_avail < vq->size && vq->last_used < vq->size));
    if (g->honest)
        CHECK(vq->fault == FF_FAULT_NONE);
    if (vq->fault != FF_FAULT_NONE)
        g->stopped = true;
}

/* Takes a burst from the sender; leaves in `frames` what the pipeline would let pass. */
static unsigned int take_burst(struct guest *g, unsigned int n) {
    unsigned int got = ff_vring_rx(&g->vq, &arena, frames, n), segs = 0, kept = 0;

    CHECK(got <= n && g->vq.taken == got);
    CHECK(arena.n_heads <= RTE_DIM(arena.head) && arena.n_segs <= FF_ARENA_SEGS);
    check_sane(g);
    if (g->honest) {
        for (unsigned int i = 0; i < RTE_MIN(n, g->n_chains); i++)
            segs += guest_chain(g, i)->n;
        CHECK(got <= g->n_chains);
        /* fewer only when chains may have been too long for the arena */
        CHECK(got == RTE_MIN(n, g->n_chains) ||
              (got > 0 && segs + FF_CHAIN_MAX + FF_BURST > FF_ARENA_SEGS));
    }
    for (unsigned int i = 0; i < got; i++) {
        check_taken(g, &frames[i]);
        if (g->honest)
            CHECK(frames[i].len == guest_chain(g, i)->len - g->vq.hdr_len);
        if (frames[i].len < FF_ETH_HLEN || frames[i].len >= FRAME_MAX)
            continue;
        flatten(&frames[i], bytes[kept]);
        if (g->honest) {
            guest_read(g, guest_chain(g, i), g->vq.hdr_len, scratch, frames[i].len);
            CHECK(memcmp(scratch, bytes[kept], frames[i].len) == 0);
        }
        frames[i].offload.what = 0; /* its headers were not parsed, so it cannot be checked */
        frames[kept++] = frames[i];
    }
    n_frames = kept;
    return got;
}

static void give_back(struct guest *g, unsigned int taken) {
    uint16_t slot = g->used;
    bool wrap = g->used_wrap;

    if (ff_vring_rx_done(&g->vq))
        ff_vring_notify(&g->vq);
    CHECK(g->vq.taken == 0);
    if (!g->honest) {
        check_called(g, false);
        return;
    }
    guest_take_read(g, taken);
    guest_check_idle(g);
    check_called(g, taken > 0 && guest_wants_call(g, slot, wrap));
}

/* Section 5.1.6: what the device writes in front of a frame. Offloads will fill more of it. */
static void check_header(const struct guest *g, const uint8_t *header, unsigned int buffers) {
    static const uint8_t zeros[10];

    CHECK(memcmp(header, zeros, sizeof(zeros)) == 0);
    if (g->vq.hdr_len == 12)
        CHECK(header[10] == (buffers & 0xff) && header[11] == buffers >> 8);
}

/* How many chains a frame of `len` bytes takes; 0: it is too long for any, -1: too few are there.
 */
static int chains_for(const struct guest *g, uint32_t len) {
    unsigned int most = !g->vq.mergeable ? 1 : g->vq.packed ? 256 : UINT16_MAX, n = 0;
    uint32_t buffers = 0;

    while (len > 0) {
        uint32_t space;

        if (n == g->n_chains)
            return -1;
        for (uint32_t i = 0; i < guest_chain(g, n)->n; i++)
            buffers += g->pool[guest_chain(g, n)->first + i].len > 0;
        if (buffers > FF_CHAIN_MAX)
            return 0;
        space = guest_chain(g, n)->len - (n == 0 ? g->vq.hdr_len : 0);
        len -= RTE_MIN(len, space);
        if ((++n == most || buffers == FF_CHAIN_MAX) && len > 0)
            return 0;
    }
    return (int)n;
}

/* That the first frames, apart from those too long, are in the receiver's buffers; frees these. */
static void check_delivered(struct guest *g, struct ff_sent sent, uint32_t too_long) {
    uint32_t packets = 0, refused = 0;
    uint64_t total = 0;

    for (unsigned int i = 0; i < n_frames; i++) {
        int heads = chains_for(g, frames[i].len);
        uint32_t done = 0;

        if (heads < 0)
            break;
        if (heads == 0) {
            refused++;
            continue;
        }
        for (int k = 0; k < heads; k++) {
            const struct chain *c = guest_chain(g, 0);
            uint32_t skip = k == 0 ? g->vq.hdr_len : 0;
            uint32_t part = RTE_MIN(frames[i].len - done, c->len - skip);

            guest_read(g, c, 0, scratch, skip + part);
            if (k == 0)
                check_header(g, scratch, (unsigned int)heads);
            CHECK(memcmp(scratch + skip, bytes[i] + done, part) == 0);
            guest_take_used(g, skip + part);
            done += part;
        }
        packets++;
        total += frames[i].len;
    }
    CHECK(sent.packets == packets && sent.bytes == total && too_long == refused);
    guest_check_idle(g);
}

static void send_burst(struct guest *g) {
    uint16_t slot = g->used;
    bool wrap = g->used_wrap;
    uint32_t too_long = 0;
    struct ff_sent sent;

    if (n_frames > 0 && !g->stopped) {
        sent = ff_vring_tx(&g->vq, frames, n_frames, &too_long);
        if (sent.packets > 0)
            ff_vring_notify(&g->vq);
        CHECK(sent.packets + too_long <= n_frames);
        CHECK(!g->vq.packed || g->vq.taken == 0);
        check_sane(g);
        if (g->honest)
            check_delivered(g, sent, too_long);
        check_called(g, sent.packets > 0 && g->honest && guest_wants_call(g, slot, wrap));
    }
    for (unsigned int i = 0; i < n_frames; i++)
        ff_frame_free(&frames[i]);
    n_frames = 0;
}

static void forward(struct input *in) {
    uint8_t how = take8(in), n = 1 + take8(in) % FF_BURST;
    unsigned int taken;

    if (sender.stopped)
        return;
    taken = take_burst(&sender, n);
    if (how & 1) { /* the guest goes on writing what the worker looks at */
        guest_harm(&sender, in);
        for (unsigned int i = 0; i < n_frames; i++) {
            CHECK(memcmp(frames[i].head, bytes[i], frames[i].head_len) == 0);
            flatten(&frames[i], bytes[i]);
        }
    }
    if (how & 2)
        for (unsigned int i = 0; i < n_frames; i++)
            handle(&frames[i], bytes[i], take8(in));
    if (how & 4)
        guest_harm(&receiver, in);
    send_burst(&receiver);
    give_back(&sender, taken);
}

/* ---- one round ---- */

static void step(struct input *in, uint8_t op) {
    struct guest *g = op & 0x10 ? &receiver : &sender;

    switch (op % 16) {
    case 0:
    case 1:
    case 2:
        forward(in);
        break;
    case 3:
        make_frames(in);
        send_burst(&receiver);
        break;
    case 4:
        guest_ask(g, in);
        break;
    case 5:
    case 6:
        guest_harm(g, in);
        break;
    case 7: /* the front-end reconnects */
        guest_reset(g, in);
        break;
    default:
        for (unsigned int n = 1 + op / 64u; n > 0; n--)
            guest_post(g, in);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int fds[2] = {-1, -1};
    struct input in = {data, data + size};
    bool calls = take8(&in) & 1;

    if (fds[0] < 0)
        for (unsigned int i = 0; i < 2; i++)
            fds[i] = eventfd(0, EFD_NONBLOCK);
    sender.vq.call_fd = calls ? fds[0] : -1;
    receiver.vq.call_fd = calls ? fds[1] : -1;
    guest_reset(&sender, &in);
    guest_reset(&receiver, &in);
    for (unsigned int i = 0; i < OPS_MAX && in.p < in.end; i++)
        step(&in, take8(&in));
    CHECK(rte_mempool_avail_count(pool) == POOL_MBUFS);
    return 0;
}
