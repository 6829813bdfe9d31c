/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Traffic generator of the benchmarks: polling cores that both send and sink on
 * pairs of ports, each way as fast as the switch between them accepts.
 *
 *   generator EAL-OPTIONS [-- --offload]
 *
 * Ports 0 and 1 are a pair, and so are 2 and 3: what is sent on one is expected
 * on the other. Each worker lcore serves one pair, or the only one serves all.
 * --offload: the ports negotiate checksum and segmentation offloads. It takes
 * commands on stdin and answers each with one JSON object a line on stdout (the
 * first line, {"ready": true}, comes when the ports run):
 *
 *   run SIZE A B [PAIR]
 *                   frames of SIZE bytes (no FCS) between A stations behind the
 *                   first port of each pair, or of that one, and B behind the
 *                   second: A * B flows each way, drawn at random
 *   learn SIZE A B [PAIR]
 *                   one frame of each of these flows, in order, no faster than
 *                   they come back; then nothing more
 *   stream SIZE     one TCP stream from the first port of each pair to the
 *                   second, with STREAM_WINDOW bytes on their way; frames above
 *                   1514 bytes are to be segmented later
 *   stop            send nothing more; what arrives is thrown away
 *   stats           counters since the start
 *   ramp            frames of the first worker lcore by the end of each RAMP_US of
 *                   the last run
 *   quit
 *
 * A frame that arrives is sent again, after its addresses were rewritten to
 * those of another flow. So a packet costs the generator the same whatever the
 * number of flows, and its buffers are as warm in the cache with a million
 * flows as with one: what then differs between runs is the switch's own doing.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_launch.h>
#include <rte_lcore.h>
#include <rte_pause.h>

#include "frames.h"

#define BURST 32
#define SPARE (2 * BURST) /* frames kept from one turn to the next */
#define RING 256          /* virtio-user's own default */
#define POOL 8191
#define POOL_CACHE 256
#define PORTS_MAX 4
#define STATIONS_MAX 65536u  /* 16 bits of the address */
#define FLOWS_MAX (1u << 24) /* each way */
#define WINDOW 256u          /* frames of a way that `learn` leaves with the switch */
#define STALL_MS 10000u      /* without a frame for so long, they are lost */
#define STREAM_WINDOW (256u << 10)
#define STREAM_STALL_MS 10u
#define RAMP_BINS 128u
#define RAMP_US 250u
#define ALL_PAIRS UINT32_MAX

enum mode { STOPPED, RUN, LEARN, STREAM };

struct order {
    enum mode mode;
    uint32_t size;
    uint32_t stations[2]; /* behind the first and the second port of each pair */
    uint32_t pair;        /* that sends, or ALL_PAIRS */
};

/* One way through the switch: sent on port `tx`, received on its partner. */
struct way {
    struct rte_mbuf *spare[SPARE];
    unsigned int n_spare;
    uint16_t tx, rx;
    bool sends;
    uint32_t here, there; /* stations on the sender's side and the receiver's */
    uint32_t random;
    struct template template;
    uint32_t learned; /* learn: flows sent */
    /* learn and stream: frames that may be away, and are; when one came back last, and how long
     * that may take */
    uint32_t window, away;
    uint64_t heard, stall;
    /* The worker writes these, `stats` reads them. */
    uint64_t sent, received, stray, lost;
    uint64_t left;              /* learn: flows not known to be learned yet */
    uint64_t turns, turns_full; /* turns in which the ring took fewer frames than offered */
} __rte_cache_aligned;

static struct way ways[PORTS_MAX];
static unsigned int n_ports;
static bool offload;
static struct rte_mempool *pool;

/* A worker lcore and the ports that it serves. */
struct server {
    unsigned int first, end;
    uint32_t doing; /* number of the order that it has taken over */
    uint32_t n_ramp;
    uint64_t start, before;   /* when the order was taken over; frames received until then */
    uint64_t ramp[RAMP_BINS]; /* frames received since */
} __rte_cache_aligned;

static struct server servers[PORTS_MAX / 2];
static unsigned int n_servers;

/* What the servers should do, and its number. */
static struct order next_order;
static uint32_t wanted;
static bool quit;

static inline void count(uint64_t *counter, uint64_t n) {
    __atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

/* xorshift32 (Marsaglia 2003), scaled to 0 .. n - 1. */
static inline uint32_t random_below(struct way *way, uint32_t n) {
    uint32_t x = way->random;

    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    way->random = x;
    return (uint32_t)(((uint64_t)x * n) >> 32);
}

static void drop_spare(struct way *way) {
    for (unsigned int i = 0; i < way->n_spare; i++)
        rte_pktmbuf_free(way->spare[i]);
    way->n_spare = 0;
}

/* Takes a new order over. */
static void begin(struct way *way, const struct order *order) {
    bool first = way->tx < way->rx;

    drop_spare(way);
    way->sends = order->mode != STOPPED && (first || order->mode != STREAM) &&
                 (order->pair == ALL_PAIRS || order->pair == way->tx / 2u);
    way->here = order->stations[!first];
    way->there = order->stations[first];
    way->learned = way->away = 0;
    way->window = order->mode == LEARN ? WINDOW : STREAM_WINDOW / RTE_MAX(order->size, 1u);
    way->heard = rte_rdtsc();
    way->stall = rte_get_tsc_hz() / 1000 * (order->mode == LEARN ? STALL_MS : STREAM_STALL_MS);
    way->left = order->mode == LEARN && way->sends ? way->here * way->there : 0;
    if (order->mode != STOPPED)
        template_make(&way->template, (uint8_t)way->tx, (uint8_t)way->rx, order->size,
                      order->mode == STREAM);
}

/* Frames of this order, of the right way, are kept to be sent again; the rest goes. Returns how
 * many came. */
static unsigned int receive(struct way *way, const struct order *order) {
    struct rte_mbuf *burst[BURST];
    uint16_t got, n = 0;
    unsigned int ours = 0;

    /* virtio's burst is one of buffers: of frames that need many there are few in each */
    do {
        got = rte_eth_rx_burst(way->rx, 0, &burst[n], (uint16_t)(BURST - n));
        n += got;
    } while (order->size > FRAME_MAX && got > 0 && n < BURST);
    for (uint16_t i = 0; i < n; i++) {
        struct rte_mbuf *m = burst[i];
        bool good = m->pkt_len == order->size && template_owns(&way->template, m);

        ours += good;
        if (good && way->sends && way->n_spare < SPARE)
            way->spare[way->n_spare++] = m;
        else
            rte_pktmbuf_free(m);
    }
    count(&way->received, ours);
    count(&way->stray, n - ours);
    return ours;
}

/* Tops the spare frames up to one burst with new ones. */
static void top_up(struct way *way, uint32_t size) {
    while (way->n_spare < BURST) {
        struct rte_mbuf *m = frame_make(pool, &way->template, size);

        if (m == NULL)
            return;
        way->spare[way->n_spare++] = m;
    }
}

static uint16_t send_burst(struct way *way, struct rte_mbuf **burst, uint16_t n) {
    if (offload) /* virtio wants more in the checksum field than the other drivers */
        n = rte_eth_tx_prepare(way->tx, 0, burst, n);
    return rte_eth_tx_burst(way->tx, 0, burst, n);
}

static void transmit(struct way *way, const struct order *order) {
    unsigned int n = RTE_MIN(way->n_spare, (unsigned int)BURST);
    struct rte_mbuf **burst = &way->spare[way->n_spare - n];
    uint16_t sent;

    if (order->mode != RUN)
        n = RTE_MIN(n, way->window - way->away);
    if (order->mode == LEARN)
        n = RTE_MIN(n, way->here * way->there - way->learned);
    for (unsigned int i = 0; i < n; i++) {
        uint32_t flow = way->learned + i;

        burst[i]->ol_flags = 0;
        if (order->mode == LEARN)
            frame_address(&way->template, burst[i], flow % way->here, flow / way->here);
        else if (order->mode == RUN)
            frame_address(&way->template, burst[i], random_below(way, way->here),
                          random_below(way, way->there));
        else if (order->size > FRAME_MAX)
            frame_segmented(burst[i]);
    }
    sent = send_burst(way, burst, (uint16_t)n);
    memmove(burst, burst + sent,
            (size_t)(&way->spare[way->n_spare] - (burst + sent)) * sizeof(*burst));
    way->n_spare -= sent;
    way->learned += sent;
    way->away += sent;
    count(&way->sent, sent);
    count(&way->turns, 1);
    count(&way->turns_full, sent < n);
}

/* Books what came back; when nothing has been heard for long, the frames on their way are lost. */
static void window_step(struct way *way, unsigned int came, bool learn) {
    uint64_t now = rte_rdtsc();

    way->away -= RTE_MIN(came, way->away);
    if (came > 0) {
        way->heard = now;
    } else if (now - way->heard > way->stall) {
        count(&way->lost, way->away);
        way->away = 0;
        way->heard = now;
    }
    if (learn)
        __atomic_store_n(&way->left, way->here * way->there - way->learned + way->away,
                         __ATOMIC_RELAXED);
}

static uint64_t received_by(const struct server *s) {
    uint64_t all = 0;

    for (unsigned int i = s->first; i < s->end; i++)
        all += ways[i].received;
    return all;
}

static void ramp_step(struct server *s) {
    uint64_t now = rte_rdtsc(), bin = rte_get_tsc_hz() / 1000000 * RAMP_US, all;

    if (now - s->start < bin * (s->n_ramp + 1))
        return;
    all = received_by(s) - s->before;
    /* this thread may have been away for longer than a bin */
    while (s->n_ramp < RAMP_BINS && now - s->start >= bin * (s->n_ramp + 1))
        s->ramp[s->n_ramp++] = all;
}

/* One look at each of the server's ports. Returns how many frames came. */
static unsigned int turn(const struct server *s, const struct order *order) {
    unsigned int came = 0;

    for (unsigned int i = s->first; i < s->end; i++) {
        struct way *way = &ways[i];
        unsigned int n = receive(way, order);

        came += n;
        if (!way->sends)
            continue;
        if (order->mode != RUN)
            window_step(way, n, order->mode == LEARN);
        top_up(way, order->size);
        transmit(way, order);
    }
    return came;
}

static int work(void *arg) {
    struct server *s = arg;
    struct order order = {STOPPED, 0, {0, 0}, ALL_PAIRS};

    s->n_ramp = RAMP_BINS;
    while (!__atomic_load_n(&quit, __ATOMIC_RELAXED)) {
        uint32_t number = __atomic_load_n(&wanted, __ATOMIC_ACQUIRE);

        if (number != s->doing) {
            order = next_order;
            for (unsigned int i = s->first; i < s->end; i++)
                begin(&ways[i], &order);
            s->n_ramp = order.mode == STOPPED ? RAMP_BINS : 0;
            s->before = received_by(s);
            s->start = rte_rdtsc();
            __atomic_store_n(&s->doing, number, __ATOMIC_RELEASE);
        }
        if (turn(s, &order) == 0 && order.mode == LEARN)
            rte_delay_us_sleep(20); /* the slow path may need this core */
        if (unlikely(s->n_ramp < RAMP_BINS))
            ramp_step(s);
    }
    return 0;
}

/* Returns when all servers have taken the change over. */
static void give(struct order order) {
    next_order = order;
    __atomic_store_n(&wanted, wanted + 1, __ATOMIC_RELEASE);
    for (unsigned int i = 0; i < n_servers; i++)
        while (__atomic_load_n(&servers[i].doing, __ATOMIC_ACQUIRE) != wanted)
            rte_delay_us_sleep(100); /* main and worker may share a core */
}

static uint64_t sum(size_t offset) {
    uint64_t all = 0;

    for (unsigned int i = 0; i < n_ports; i++)
        all += __atomic_load_n((const uint64_t *)(const void *)((const char *)&ways[i] + offset),
                               __ATOMIC_RELAXED);
    return all;
}

static void print_stats(void) {
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    printf("{\"ns\": %" PRIu64 ", \"tsc_hz\": %" PRIu64 ", \"sent\": %" PRIu64
           ", \"received\": %" PRIu64 ", \"stray\": %" PRIu64 ", \"lost\": %" PRIu64
           ", \"left\": %" PRIu64 ", \"turns\": %" PRIu64 ", \"turns_full\": %" PRIu64
           ", \"received_each\": [",
           (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec, rte_get_tsc_hz(),
           sum(offsetof(struct way, sent)), sum(offsetof(struct way, received)),
           sum(offsetof(struct way, stray)), sum(offsetof(struct way, lost)),
           sum(offsetof(struct way, left)), sum(offsetof(struct way, turns)),
           sum(offsetof(struct way, turns_full)));
    for (unsigned int i = 0; i < n_ports; i++)
        printf("%s%" PRIu64, i ? ", " : "", __atomic_load_n(&ways[i].received, __ATOMIC_RELAXED));
    printf("]}\n");
}

static void print_ramp(void) {
    const struct server *s = &servers[0];
    uint32_t n = __atomic_load_n(&s->n_ramp, __ATOMIC_RELAXED);

    printf("{\"us\": %u, \"received\": [", RAMP_US);
    for (uint32_t i = 0; i < n; i++)
        printf("%s%" PRIu64, i ? ", " : "", s->ramp[i]);
    printf("]}\n");
}

#define FLOWS_FORMAT "%" SCNu32 " %" SCNu32 " %" SCNu32 " %" SCNu32

/* Whether `line` is an order; fills it in. */
static bool read_order(const char *line, struct order *order) {
    uint32_t size = 0, a = 1, b = 1;

    order->mode = STOPPED;
    if (strcmp(line, "stop\n") == 0)
        return true;
    order->pair = ALL_PAIRS;
    if (sscanf(line, "run " FLOWS_FORMAT, &size, &a, &b, &order->pair) >= 3)
        order->mode = RUN;
    else if (sscanf(line, "learn " FLOWS_FORMAT, &size, &a, &b, &order->pair) >= 3)
        order->mode = LEARN;
    else if (sscanf(line, "stream %" SCNu32, &size) == 1)
        order->mode = STREAM;
    order->size = size;
    order->stations[0] = a;
    order->stations[1] = b;
    return order->mode != STOPPED && size >= FRAME_MIN &&
           size <= (order->mode == STREAM && offload ? SEGMENTED_MAX : FRAME_MAX) && a >= 1 &&
           a <= STATIONS_MAX && b >= 1 && b <= STATIONS_MAX && (uint64_t)a * b <= FLOWS_MAX;
}

static void command(const char *line) {
    struct order order = {STOPPED, 0, {0, 0}, ALL_PAIRS};

    if (strcmp(line, "stats\n") == 0) {
        print_stats();
    } else if (strcmp(line, "ramp\n") == 0) {
        print_ramp();
    } else if (read_order(line, &order)) {
        give(order);
        printf("{\"ok\": true}\n");
    } else {
        printf("{\"error\": \"bad command\"}\n");
    }
}

static int start_port(uint16_t port) {
    struct rte_eth_conf conf = {0};
    int ret;

    if (offload) {
        conf.rxmode.offloads =
            RTE_ETH_RX_OFFLOAD_TCP_LRO | RTE_ETH_RX_OFFLOAD_TCP_CKSUM | RTE_ETH_RX_OFFLOAD_SCATTER;
        conf.txmode.offloads = RTE_ETH_TX_OFFLOAD_TCP_TSO | RTE_ETH_TX_OFFLOAD_TCP_CKSUM |
                               RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
    }
    ret = rte_eth_dev_configure(port, 1, 1, &conf);
    if (ret == 0)
        ret = rte_eth_rx_queue_setup(port, 0, RING, SOCKET_ID_ANY, NULL, pool);
    if (ret == 0)
        ret = rte_eth_tx_queue_setup(port, 0, RING, SOCKET_ID_ANY, NULL);
    if (ret == 0)
        ret = rte_eth_dev_start(port);
    return ret;
}

/* Gives each worker lcore its ports. */
static void launch(void) {
    unsigned int lcore, i = 0, each;

    n_servers = rte_lcore_count() - 1;
    each = n_ports / n_servers;
    RTE_LCORE_FOREACH_WORKER(lcore) {
        servers[i].first = i * each;
        servers[i].end = (i + 1) * each;
        rte_eal_remote_launch(work, &servers[i], lcore);
        i++;
    }
}

static void start_ports(void) {
    n_ports = rte_eth_dev_count_avail();
    if ((n_ports != 2 && n_ports != PORTS_MAX) || rte_lcore_count() < 2 ||
        rte_lcore_count() - 1 > n_ports / 2)
        rte_exit(EXIT_FAILURE, "generator: give it one or two pairs of ports, a main lcore, and "
                               "one worker or one for each pair\n");
    pool = rte_pktmbuf_pool_create("frames", POOL, POOL_CACHE, 0, RTE_MBUF_DEFAULT_BUF_SIZE,
                                   SOCKET_ID_ANY);
    if (pool == NULL)
        rte_exit(EXIT_FAILURE, "generator: no memory for %d frames\n", POOL);
    for (uint16_t port = 0; port < n_ports; port++) {
        int ret = start_port(port);

        if (ret < 0)
            rte_exit(EXIT_FAILURE, "generator: port %u does not start: %s\n", port, strerror(-ret));
        ways[port].tx = port;
        ways[port].rx = port ^ 1;
        /* Marsaglia's seed: every run draws the same flows */
        ways[port].random = 2463534242u + port;
    }
}

int main(int argc, char **argv) {
    char line[64];
    int used = rte_eal_init(argc, argv);

    if (used < 0)
        rte_exit(EXIT_FAILURE, "generator: EAL did not start\n");
    offload = argc - used == 2 && strcmp(argv[used + 1], "--offload") == 0;
    if (argc - used > 1 && !offload)
        rte_exit(EXIT_FAILURE, "generator: no such option: %s\n", argv[used + 1]);
    start_ports();

    setvbuf(stdout, NULL, _IOLBF, 0);
    launch();
    printf("{\"ready\": true}\n");
    while (fgets(line, sizeof(line), stdin) != NULL && strcmp(line, "quit\n") != 0)
        command(line);

    __atomic_store_n(&quit, true, __ATOMIC_RELAXED);
    rte_eal_mp_wait_lcore();
    for (uint16_t port = 0; port < n_ports; port++) {
        drop_spare(&ways[port]);
        rte_eth_dev_stop(port);
        rte_eth_dev_close(port);
    }
    rte_eal_cleanup();
    return 0;
}
