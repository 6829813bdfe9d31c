/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzes the switch's side of memory ports (port_ff.c, shm_ring.h): containers
 * whose rings come from the input, and a worker that takes frames from one and
 * gives them to the other.
 *
 * The input is a list of operations; some keep to the rules, others write
 * anything anywhere. What must hold is: nothing outside the mapped memory is touched (it
 * ends where AddressSanitizer's begins), never more frames than asked for, each of them
 * wholly readable, a stopped queue stays stopped, and an end.
 */
#include "desc.h"
#include "eal.h"
#include "memport.h"

#define SIZE 64u
#define REGION 0x6000u
#define FIRST 9u
#define OPS_MAX 200u
#define EPOCH 5u

struct ff_switch ff;
static struct ff_worker *worker;
static struct ff_port port, port_to;
static struct ff_memport m, to,
    other; /* a sender, a receiver with memory of its own, a neighbour */
static struct ff_shm_table *table;
static struct ff_shm_ring *lend, *post;
static struct ff_link shortcut;
static uint32_t tail, posted;
static unsigned int stops;

const char *__asan_default_options(void) {
    return "detect_leaks=0:handle_sigbus=0"; /* EAL's own */
}

/* ---- what the port uses of the switch ---- */

void ff_port_state(struct ff_port *p, int state, const char *fmt, ...) {
    (void)fmt;
    CHECK((p == &port || p == &port_to) && state == FF_PORT_LOST);
    stops++;
}
const char *ff_fault_name(unsigned int fault) {
    CHECK(fault > FF_FAULT_NONE && fault < FF_FAULT_MAX);
    return "";
}
bool ff_waker_watch(struct ff_worker *w, struct ff_waker *k) {
    (void)w;
    (void)k;
    return true;
}
void ff_waker_unwatch(struct ff_waker *k) {
    (void)k;
}
void ff_error(char *err, const char *fmt, ...) {
    (void)err;
    (void)fmt;
}
void ff_synchronize(void) {}
void ff_retire(void *p) {
    (void)p;
}
void ff_memport_unmap(struct ff_memport *gone) {
    (void)gone;
}

/* ---- set-up ---- */

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    ff.pool = packet_pool(63, 1024);
    worker = exactly(RTE_ALIGN(sizeof(*worker), 64));
    memset(worker, 0, sizeof(*worker));
    worker->port_stats = calloc(FF_MAX_PORTS, sizeof(*worker->port_stats));
    ff.workers[0] = worker;
    ff.n_workers = 1;
    lend = exactly(ff_ring_bytes(SIZE));
    post = exactly(ff_ring_bytes(SIZE));
    table = exactly(RTE_ALIGN(sizeof(*table), 64));
    m.map[0] = (struct ff_shm_map){exactly(REGION), REGION};
    m.map[1] = (struct ff_shm_map){exactly(64), 64};
    to.map[0] = (struct ff_shm_map){exactly(REGION), REGION};
    to.map[1] = (struct ff_shm_map){exactly(64), 64};
    m.in[0].slots = malloc(FF_BORROWER_MEM(SIZE));
    return 0;
}

static void start(void) {
    memset(lend, 0, ff_ring_bytes(SIZE));
    memset(post, 0, ff_ring_bytes(SIZE));
    memset(table, 0, sizeof(*table));
    port = (struct ff_port){.id = 1, .ops = &ff_port_ff_ops, .dev = &m};
    m.port = &port;
    m.maps = (struct ff_shm_maps){m.map, 2, FIRST};
    port_to = (struct ff_port){.id = 2, .ops = &ff_port_ff_ops, .dev = &to};
    to.port = &port_to;
    to.maps = (struct ff_shm_maps){to.map, 2, FIRST};
    ff_borrow_init(&m.in[0].ring, lend, SIZE, m.in[0].slots);
    ff_fill_init(&to.out[0].ring, post, SIZE);
    m.in[0].n_taken = 0;
    atomic_store(&m.in[0].active, true);
    atomic_store(&to.out[0].active, true);
    other.table = table;
    other.rx_queues = FF_MAX_QUEUES;
    shortcut = (struct ff_link){.to = &other, .in = 3, .queues = 1, .epoch = EPOCH, .from = &m};
    atomic_store(&m.links[2], &shortcut);
    atomic_store(&m.newest[2], EPOCH);
    atomic_store(&m.newest[4], EPOCH);
    tail = posted = stops = 0;
}

/* ---- the container ---- */

static struct ff_shm_desc random_desc(struct input *in) {
    return (struct ff_shm_desc){.offset = take32(in),
                                .region = take16(in),
                                .len = take16(in),
                                .before = take8(in),
                                .behind = take8(in),
                                .slot = take8(in),
                                .lap = take8(in),
                                .flags = take8(in)};
}

/* One that the switch takes, as far as slot and lap go, if it comes in its turn. */
static void lend_one(struct input *in, bool wild) {
    struct ff_shm_desc d = {
        .region = FIRST, .slot = tail % SIZE, .lap = (uint8_t)(tail / SIZE + 1)};
    uint8_t how = take8(in);

    d.offset = take16(in) % (REGION - 64);
    d.len = (uint16_t)(1 + take16(in) % (REGION - d.offset));
    if (how & 1) {
        d.flags = FF_DESC_MORE;
        d.len = (uint16_t)(1 + d.len % 300);
    }
    if (how & 2) {
        d.region = FIRST + 1;
        d.offset = take8(in) % 64;
        d.len = (uint16_t)(64 - d.offset);
    }
    if (how & 4) {
        d.offset = take8(in) % (EPOCH + 2);
        d.region = take8(in) % 6;
        d.flags = FF_DESC_MARKER;
    }
    if (wild)
        d = desc_mix(in, d, random_desc(in));
    ff_desc_put(&ff_ring_desc(lend)[tail++ % SIZE], &d);
}

static void post_one(struct input *in, bool wild) {
    struct ff_shm_desc d = {.region = FIRST};

    d.offset = take16(in) % REGION;
    d.len = (uint16_t)(1 + take16(in) % (REGION - d.offset));
    if (wild)
        d = random_desc(in);
    ff_desc_put(&ff_ring_desc(post)[posted++ % SIZE], &d);
}

static void scribble(struct input *in) {
    struct ff_shm_ring *ring = take8(in) & 1 ? lend : post;

    ((uint8_t *)ring)[take16(in) % ff_ring_bytes(SIZE)] = take8(in);
}

/* ---- the worker ---- */

static uint32_t sum(const struct ff_frame *f) {
    uint32_t n = f->head_len, total = 0;

    for (unsigned int i = 0; i < f->head_len; i++)
        total += f->head[i];
    for (unsigned int i = 0; i < f->n_segs; i++) {
        for (uint32_t k = 0; k < f->seg[i].len; k++)
            total += f->seg[i].p[k];
        n += f->seg[i].len;
    }
    CHECK(n == f->len && f->len > 0 && f->head_len == RTE_MIN(f->len, FF_HEAD_COPY));
    return total;
}

static volatile uint32_t keep; /* so that the bytes are read */

static void turn(unsigned int n) {
    const struct ff_port_ops *ops = &ff_port_ff_ops;
    struct ff_frame frames[FF_BURST];
    bool in_ran = atomic_load(&m.in[0].active), out_ran = atomic_load(&to.out[0].active);
    unsigned int before = stops, got = ops->rx(worker, &port, 0, frames, n);
    struct ff_sent sent = {0};

    CHECK(got <= n && (in_ran || got == 0));
    for (unsigned int i = 0; i < got; i++)
        keep = sum(&frames[i]);
    if (got > 0)
        sent = ops->tx(worker, &port_to, 0, frames, got);
    CHECK(sent.packets + sent.accounted <= got && (out_ran || sent.packets == 0));
    ops->rx_done(worker, &port, 0);
    CHECK(m.in[0].n_taken == 0);
    CHECK(atomic_load(&m.in[0].active) <= in_ran && atomic_load(&to.out[0].active) <= out_ran);
    CHECK(stops - before == (unsigned int)(in_ran - atomic_load(&m.in[0].active)) +
                                (unsigned int)(out_ran - atomic_load(&to.out[0].active)));
    CHECK(table->in[3].opened <= 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input in = {data, data + size};

    start();
    for (unsigned int i = 0; i < OPS_MAX && in.p < in.end; i++) {
        uint8_t op = take8(&in);

        switch (op % 12) {
        case 0:
        case 1:
        case 2:
            lend_one(&in, false);
            break;
        case 3:
            lend_one(&in, true);
            break;
        case 4:
        case 5:
            post_one(&in, false);
            break;
        case 6:
            post_one(&in, op & 0x80);
            break;
        case 7:
            lend->tail = take8(&in) == 0 ? take32(&in) : tail;
            break;
        case 8:
            scribble(&in);
            break;
        case 9:
            worker->parked_in[1][0] = take8(&in) & 1;
            break;
        default:
            post->tail = posted;
            if (!(op & 0x80))
                lend->tail = tail;
            turn(op % FF_BURST + 1);
        }
    }
    return 0;
}
