/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzes what the net_ff driver does with memory that others write to (rx.c, order.c, tx.c): the
 * rings of an incoming and an outgoing shortcut, those to the switch, and the table.
 *
 * The input is a list of operations, of which some keep to the rules, and others write anything
 * anywhere. What must hold is: nothing outside the mapped memory is touched (it ends where
 * AddressSanitizer's begins), each frame is wholly readable, a broken ring stays broken, and every
 * buffer of the application is there at the end, once.
 */
#include "desc.h"
#include "eal.h"
#include "net_ff.h"

#define SIZE 64u
#define REGION 0x6000u
#define FIRST 9u /* the neighbour's regions; this process's are before them */
#define OPS_MAX 200u
#define EPOCH 5u
#define MBUFS 511u
#define HELD 128u

int ff_log_type;
static struct ff_dev dev;
static struct ff_rxq *rxq;
static struct ff_txq *txq;
static struct ff_in *in;
static struct ff_out *out;
static struct ff_slot *slots;
static struct ff_shm_table *table;
static struct ff_shm_ring *rings[4]; /* from the neighbour, to it, from the switch, to it */
static uint8_t *borrowed;
static struct ff_region theirs[2];
static struct rte_mbuf *held[HELD];
static unsigned int n_held;
static uint32_t tail, filled;

const char *__asan_default_options(void) {
    return "detect_leaks=0:handle_sigbus=0"; /* EAL's own */
}

void ff_control_wake(struct ff_dev *d) {
    CHECK(d == &dev);
}

/* ---- set-up ---- */

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    char why[FF_SHM_TEXT];

    (void)argc;
    (void)argv;
    dev.copies = packet_pool(MBUFS, RTE_MBUF_DEFAULT_DATAROOM); /* tx.c counts on it */
    dev.region = calloc(FF_NUMBERS, sizeof(*dev.region));
    CHECK(ff_memory_own(&dev, why, sizeof(why)) == 0 && dev.n_own < FIRST);
    for (uint16_t i = 0; i < dev.n_own; i++) {
        dev.own[i].number = i;
        dev.region[i] = &dev.own[i];
    }
    for (uint16_t i = 0; i < 2; i++) { /* the second one is not to be written to */
        size_t size = i == 0 ? REGION : 64;

        theirs[i] = (struct ff_region){
            .base = exactly(size), .size = size, .number = FIRST + i, .read_only = i == 1};
        dev.region[FIRST + i] = &theirs[i];
    }
    for (unsigned int i = 0; i < RTE_DIM(rings); i++)
        rings[i] = exactly(ff_ring_bytes(SIZE));
    dev.table = table = exactly(RTE_ALIGN(sizeof(*table), 64));
    dev.rxq[0] = rxq = exactly(RTE_ALIGN(sizeof(*rxq), 64));
    dev.txq[0] = txq = exactly(RTE_ALIGN(sizeof(*txq), 64));
    dev.n_rx = dev.n_tx = 1;
    in = calloc(1, sizeof(*in) + sizeof(in->ring[0]));
    out = calloc(1, sizeof(*out) + sizeof(out->ring[0]));
    out->grant = calloc(1, FF_NUMBERS / 8);
    slots = exactly(SIZE * sizeof(*slots));
    borrowed = malloc(FF_BORROWER_MEM(SIZE));
    return 0;
}

static void start_shortcuts(void) {
    struct ff_in_ring *r = &in->ring[0];

    *in = (struct ff_in){.number = 3, .n_rings = 1, .epoch = EPOCH};
    *r = (struct ff_in_ring){.in = in, .slot = slots};
    ff_borrow_init(&r->b, rings[0], SIZE, borrowed);
    for (uint32_t i = 0; i < SIZE; i++) {
        slots[i] = (struct ff_slot){.lender = &r->b, .slot = (uint16_t)i};
        slots[i].shinfo.free_cb = ff_slot_free;
        slots[i].shinfo.fcb_opaque = &slots[i];
    }
    dev.ins = in;
    table->in[3].state = FF_IN_OPENING;
    table->in[3].epoch = EPOCH;
    out->number = 2;
    out->n_rings = 1;
    out->epoch = EPOCH;
    out->ring[0].out = out;
    CHECK(ff_out_ring_init(&out->ring[0], rings[1], SIZE) == 0);
    memset(out->grant, 0xff, FF_NUMBERS / 8);
    dev.outs[2] = out;
    table->out[2] = (struct ff_shm_out){
        .mac = {2, 0, 0, 0, 0, 1}, .number = 2, .epoch = EPOCH, .max_len = 1514};
}

static void start(void) {
    for (unsigned int i = 0; i < RTE_DIM(rings); i++)
        memset(rings[i], 0, ff_ring_bytes(SIZE));
    memset(table->out, 0, 4 * sizeof(table->out[0])); /* all that turn_table writes to */
    memset(&table->in[3], 0, sizeof(table->in[3]));
    memset(rxq, 0, sizeof(*rxq));
    memset(txq, 0, sizeof(*txq));
    memset(&out->ring[0], 0, sizeof(out->ring[0]));
    start_shortcuts();
    rxq->dev = txq->dev = &dev;
    rxq->mp = dev.copies;
    txq->last = &dev.own[0];
    txq->kick_fd = -1;
    CHECK(ff_out_ring_init(&txq->ring, rings[3], SIZE) == 0);
    CHECK(ff_rx_open(rxq, rings[2], SIZE) == 0);
    rxq->view = ff_rx_view_new(&dev, 0);
    CHECK(rxq->view != NULL);
    dev.version++;
    rxq->up = txq->up = true;
    tail = filled = n_held = 0;
}

static void end(void) {
    rte_pktmbuf_free_bulk(held, n_held);
    ff_out_seize(&out->ring[0]);
    ff_out_seize(&txq->ring);
    CHECK(!ff_in_held(in, NULL));
    ff_out_ring_free(&out->ring[0]);
    ff_out_ring_free(&txq->ring);
    ff_rx_close(rxq);
    free(rxq->view);
    CHECK(rte_mempool_avail_count(dev.copies) == MBUFS);
}

/* ---- the others ---- */

static struct ff_shm_desc random_desc(struct input *from) {
    return (struct ff_shm_desc){.offset = take32(from),
                                .region = take16(from),
                                .len = take16(from),
                                .before = take16(from),
                                .behind = take16(from),
                                .slot = take8(from),
                                .lap = take8(from),
                                .flags = take8(from)};
}

/* One that the driver takes, if its slot is not held and it comes in its turn. */
static void lend_one(struct input *from, bool wild) {
    struct ff_shm_desc d = {
        .region = FIRST, .slot = tail % SIZE, .lap = (uint8_t)(tail / SIZE + 1)};
    uint8_t how = take8(from);

    d.before = take8(from);
    d.offset = d.before + take16(from) % (REGION - 0x600);
    d.len = (uint16_t)(1 + take16(from) % 600);
    d.behind = take8(from);
    if (how & 1)
        d.flags = FF_DESC_MORE;
    if (how & 2)
        d = (struct ff_shm_desc){
            .region = FIRST + 1, .len = 1 + how / 4, .slot = d.slot, .lap = d.lap};
    if (wild)
        d = desc_mix(from, d, random_desc(from));
    ff_desc_put(&ff_ring_desc(rings[0])[tail++ % SIZE], &d);
    rings[0]->tail = tail;
}

static void fill_one(struct input *from) {
    struct ff_shm_used *used = ff_ring_behind(rings[2], SIZE);
    uint8_t how = take8(from);

    used[filled++ % SIZE] =
        (struct ff_shm_used){.len = how & 2 ? take16(from) : (uint16_t)(1 + take16(from) % 1024),
                             .flags = how & 1 ? FF_DESC_MORE : 0};
    rings[2]->used_tail = filled;
}

/* A byte of a ring: of its indices, its descriptors, or what is behind them. */
static void scribble(struct input *from) {
    uint8_t *ring = (uint8_t *)rings[take8(from) % RTE_DIM(rings)];

    ring[take16(from) % ff_ring_bytes(SIZE)] = take8(from);
}

static void give_back(struct input *from) {
    struct ff_shm_ring *ring = rings[take8(from) & 1 ? 1 : 3];
    uint32_t i = take8(from) % SIZE;

    ((uint8_t *)ff_ring_behind(ring, SIZE))[ff_ring_desc(ring)[i].slot % SIZE] =
        ff_ring_desc(ring)[i].lap;
}

static void turn_table(struct input *from) {
    uint8_t how = take8(from);

    table->in[3].opened = how & 1;
    table->in[3].state = how & 2 ? take8(from) % 4 : FF_IN_OPENING;
    table->in[3].open_at[0] = how & 4 ? take32(from) : rxq->post.taken;
    table->in[3].epoch = EPOCH - (how >> 3 & 1);
    table->out[2].epoch = EPOCH - (how >> 4 & 1);
    table->out[2].max_len = how & 32 ? take16(from) : 1514;
    table->out[how >> 6].number = how & 32 ? take16(from) : 2;
    table->generation++;
}

/* ---- the application ---- */

static volatile uint32_t keep; /* so that the bytes are read */

static void receive(unsigned int n, bool hold) {
    struct rte_mbuf *pkts[32];
    bool broken = in->ring[0].phase == FF_RING_BROKEN, up = rxq->up;
    unsigned int got = ff_rx_burst(rxq, pkts, (uint16_t)n);

    CHECK(got <= n && (up || got == 0));
    for (unsigned int i = 0; i < got; i++) {
        uint32_t total = 0, length = 0;

        for (const struct rte_mbuf *m = pkts[i]; m != NULL; m = m->next) {
            CHECK(!broken || !RTE_MBUF_HAS_EXTBUF(m));
            for (uint32_t k = 0; k < m->data_len; k++)
                total += rte_pktmbuf_mtod(m, const uint8_t *)[k];
            length += m->data_len;
        }
        CHECK(length == pkts[i]->pkt_len && length > 0);
        keep = total;
        if (hold && n_held < HELD)
            held[n_held++] = pkts[i];
        else
            rte_pktmbuf_free(pkts[i]);
    }
}

static void let_go(unsigned int n) {
    while (n-- > 0 && n_held > 0)
        rte_pktmbuf_free(held[--n_held]);
}

/* Sends own frames, or on what is held, to the neighbour or to nobody known. */
static void transmit(struct input *from, uint8_t how) {
    for (unsigned int i = how % 32; i > 0; i--) {
        struct rte_mbuf *m =
            how & 32 && n_held > 0 ? held[--n_held] : rte_pktmbuf_alloc(dev.copies);
        static const uint8_t mac[6] = {2, 0, 0, 0, 0, 1};

        if (m == NULL)
            break;
        if (RTE_MBUF_DIRECT(m) && m->pkt_len == 0)
            m->data_len = m->pkt_len = (uint16_t)(14 + take8(from));
        if (m->data_len >= 14 && how & 64)
            memcpy(rte_pktmbuf_mtod(m, void *), mac, sizeof(mac));
        if (ff_tx_burst(txq, &m, 1) == 0)
            rte_pktmbuf_free(m);
    }
    ff_tx_burst(txq, NULL, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input from = {data, data + size};

    start();
    for (unsigned int i = 0; i < OPS_MAX && from.p < from.end; i++) {
        uint8_t op = take8(&from);

        switch (op % 12) {
        case 0:
        case 1:
            lend_one(&from, false);
            break;
        case 2:
            lend_one(&from, true);
            break;
        case 3:
            fill_one(&from);
            break;
        case 4:
            scribble(&from);
            break;
        case 5:
            give_back(&from);
            break;
        case 6:
            turn_table(&from);
            break;
        case 7:
            rings[take8(&from) % RTE_DIM(rings)]->tail = take32(&from);
            break;
        case 8:
            let_go(op / 12);
            break;
        case 9:
            transmit(&from, take8(&from));
            break;
        default:
            receive(1 + op / 8, op & 1);
        }
    }
    end();
    return 0;
}
