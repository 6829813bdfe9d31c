/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Traffic generator of the benchmarks: one polling core that both sends and
 * sinks on two ports, each way as fast as the switch between them accepts.
 *
 *   generator EAL-OPTIONS
 *
 * Ports 0 and 1 carry the traffic: what is sent on one is expected on the
 * other. It takes commands on stdin and answers each with one JSON object a
 * line on stdout (the first line, {"ready": true}, comes when the ports run):
 *
 *   run SIZE FLOWS   frames of SIZE bytes (no FCS), FLOWS UDP 5-tuples each way
 *   stop             send nothing more; what arrives is thrown away
 *   stats            counters since the start
 *   quit
 *
 * A frame that arrives is sent again, after its 5-tuple was rewritten to that
 * of a flow drawn at random. So a packet costs the generator the same whatever
 * the number of flows, and its buffers are as warm in the cache with a million
 * flows as with one: what then differs between runs is the switch's own doing.
 */
#include <assert.h>
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
#include <rte_ether.h>
#include <rte_ip.h>
#include <rte_launch.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>
#include <rte_pause.h>
#include <rte_udp.h>

#define BURST 32
#define SPARE (2 * BURST) /* frames kept from one turn to the next */
#define RING 256          /* virtio-user's own default */
#define POOL 8191
#define POOL_CACHE 256
#define PORTS 2
#define FRAME_MIN 60
#define FRAME_MAX 1514
#define FLOWS_MAX (1u << 24) /* 16 bits in the UDP port, 8 in the address */

struct headers {
    struct rte_ether_hdr eth;
    struct rte_ipv4_hdr ip;
    struct rte_udp_hdr udp;
};
static_assert(sizeof(struct headers) == 42, "no padding");

/* One way through the switch: sent on port `tx`, received on the other. */
struct way {
    struct rte_mbuf *spare[SPARE];
    unsigned int n_spare;
    uint16_t tx, rx;
    uint32_t random;
    struct headers headers; /* of flow 0 */
    uint32_t ip_sum;        /* of flow 0's IPv4 header, not folded */
    /* The worker writes these, `stats` reads them. */
    uint64_t sent, received, stray;
    uint64_t turns, turns_full; /* turns in which the ring took fewer frames than offered */
} __rte_cache_aligned;

static struct way ways[PORTS];
static struct rte_mempool *pool;

/* What the worker should do, and what it does: frame size << 32 | flows; 0: send nothing. */
static uint64_t wanted, doing;
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

/* The flow's low 16 bits are its UDP source port, the rest the last byte of its source address. */
static inline void set_flow(const struct way *way, struct headers *h, uint32_t flow) {
    uint32_t sum = way->ip_sum + (flow >> 16);

    h->udp.src_port = rte_cpu_to_be_16(flow & 0xffff);
    h->ip.src_addr = way->headers.ip.src_addr + rte_cpu_to_be_32(flow >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    h->ip.hdr_checksum = (rte_be16_t)~rte_cpu_to_be_16((uint16_t)sum);
}

static void make_headers(struct way *way, uint32_t size) {
    struct headers *h = &way->headers;
    uint16_t words[sizeof(h->ip) / sizeof(uint16_t)];
    uint8_t here = (uint8_t)way->tx, there = (uint8_t)way->rx;

    memset(h, 0, sizeof(*h));
    h->eth.src_addr = (struct rte_ether_addr){{0x02, 0, 0, 0, 0, (uint8_t)(here + 1)}};
    h->eth.dst_addr = (struct rte_ether_addr){{0x02, 0, 0, 0, 0, (uint8_t)(there + 1)}};
    h->eth.ether_type = rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV4);
    h->ip.version_ihl = RTE_IPV4_VHL_DEF;
    h->ip.total_length = rte_cpu_to_be_16((uint16_t)(size - sizeof(h->eth)));
    h->ip.time_to_live = 64;
    h->ip.next_proto_id = IPPROTO_UDP;
    h->ip.src_addr = rte_cpu_to_be_32(RTE_IPV4(10, here, 0, 0));
    h->ip.dst_addr = rte_cpu_to_be_32(RTE_IPV4(10, there, 0, 0));
    h->udp.dst_port = rte_cpu_to_be_16(4789 + 1); /* any port that no tunnel owns */
    h->udp.dgram_len = rte_cpu_to_be_16((uint16_t)(size - sizeof(h->eth) - sizeof(h->ip)));

    way->ip_sum = 0;
    memcpy(words, &h->ip, sizeof(words));
    for (size_t i = 0; i < RTE_DIM(words); i++)
        way->ip_sum += rte_be_to_cpu_16(words[i]);
}

static void drop_spare(struct way *way) {
    rte_pktmbuf_free_bulk(way->spare, way->n_spare);
    way->n_spare = 0;
}

/* Frames of this run, of the right way, are kept to be sent again; the rest goes. */
static void receive(struct way *way, uint32_t size, bool keep) {
    struct rte_mbuf *burst[BURST];
    uint16_t n = rte_eth_rx_burst(way->rx, 0, burst, BURST);
    uint64_t ours = 0;

    for (uint16_t i = 0; i < n; i++) {
        struct rte_mbuf *m = burst[i];
        const struct headers *h = rte_pktmbuf_mtod(m, const struct headers *);
        bool good = m->pkt_len == size && m->nb_segs == 1 &&
                    rte_is_same_ether_addr(&h->eth.dst_addr, &way->headers.eth.dst_addr);

        ours += good;
        if (good && keep && way->n_spare < SPARE)
            way->spare[way->n_spare++] = m;
        else
            rte_pktmbuf_free(m);
    }
    count(&way->received, ours);
    count(&way->stray, n - ours);
}

/* Tops the spare frames up to one burst with new ones. */
static void top_up(struct way *way, uint32_t size) {
    while (way->n_spare < BURST) {
        struct rte_mbuf *m = rte_pktmbuf_alloc(pool);

        if (m == NULL)
            return;
        m->pkt_len = m->data_len = (uint16_t)size;
        memset(rte_pktmbuf_mtod(m, void *), 0, size);
        memcpy(rte_pktmbuf_mtod(m, void *), &way->headers, sizeof(way->headers));
        way->spare[way->n_spare++] = m;
    }
}

static void transmit(struct way *way, uint32_t flows) {
    unsigned int n = RTE_MIN(way->n_spare, (unsigned int)BURST);
    struct rte_mbuf **burst = &way->spare[way->n_spare - n];
    uint16_t sent;

    for (unsigned int i = 0; i < n; i++) {
        burst[i]->ol_flags = 0;
        set_flow(way, rte_pktmbuf_mtod(burst[i], struct headers *), random_below(way, flows));
    }
    sent = rte_eth_tx_burst(way->tx, 0, burst, (uint16_t)n);
    memmove(burst, burst + sent, (n - sent) * sizeof(*burst));
    way->n_spare -= sent;
    count(&way->sent, sent);
    count(&way->turns, 1);
    count(&way->turns_full, sent < n);
}

static int work(void *arg __rte_unused) {
    while (!__atomic_load_n(&quit, __ATOMIC_RELAXED)) {
        uint64_t order = __atomic_load_n(&wanted, __ATOMIC_RELAXED);
        uint32_t size = (uint32_t)(order >> 32), flows = (uint32_t)order;

        if (order != doing) {
            for (int i = 0; i < PORTS; i++) {
                drop_spare(&ways[i]);
                if (order != 0)
                    make_headers(&ways[i], size);
            }
            __atomic_store_n(&doing, order, __ATOMIC_RELAXED);
        }
        for (int i = 0; i < PORTS; i++) {
            struct way *way = &ways[i];

            receive(way, size, flows != 0);
            if (flows == 0)
                continue;
            top_up(way, size);
            transmit(way, flows);
        }
    }
    return 0;
}

/* Returns when the worker has taken the change over. */
static void set_work(uint32_t size, uint32_t flows) {
    uint64_t order = (uint64_t)size << 32 | flows;

    __atomic_store_n(&wanted, order, __ATOMIC_RELAXED);
    while (__atomic_load_n(&doing, __ATOMIC_RELAXED) != order)
        rte_delay_us_sleep(100); /* main and worker may share a core */
}

static uint64_t read_counter(const uint64_t *counter) {
    return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

static void print_stats(void) {
    uint64_t sent = 0, received = 0, stray = 0, turns = 0, full = 0;
    struct timespec ts;

    for (int i = 0; i < PORTS; i++) {
        sent += read_counter(&ways[i].sent);
        received += read_counter(&ways[i].received);
        stray += read_counter(&ways[i].stray);
        turns += read_counter(&ways[i].turns);
        full += read_counter(&ways[i].turns_full);
    }
    clock_gettime(CLOCK_MONOTONIC, &ts);
    printf("{\"ns\": %" PRIu64 ", \"tsc_hz\": %" PRIu64 ", \"sent\": %" PRIu64
           ", \"received\": %" PRIu64 ", \"received_each\": [%" PRIu64 ", %" PRIu64
           "], \"stray\": %" PRIu64 ", \"turns\": %" PRIu64 ", \"turns_full\": %" PRIu64 "}\n",
           (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec, rte_get_tsc_hz(), sent, received,
           read_counter(&ways[0].received), read_counter(&ways[1].received), stray, turns, full);
}

static void command(const char *line) {
    uint32_t size, flows;

    if (strcmp(line, "stats\n") == 0) {
        print_stats();
        return;
    }
    if (strcmp(line, "stop\n") == 0) {
        set_work(0, 0);
    } else if (sscanf(line, "run %" SCNu32 " %" SCNu32, &size, &flows) == 2 && size >= FRAME_MIN &&
               size <= FRAME_MAX && flows >= 1 && flows <= FLOWS_MAX) {
        set_work(size, flows);
    } else {
        printf("{\"error\": \"bad command\"}\n");
        return;
    }
    printf("{\"ok\": true}\n");
}

static int start_port(uint16_t port) {
    const struct rte_eth_conf conf = {0};
    int ret = rte_eth_dev_configure(port, 1, 1, &conf);

    if (ret == 0)
        ret = rte_eth_rx_queue_setup(port, 0, RING, SOCKET_ID_ANY, NULL, pool);
    if (ret == 0)
        ret = rte_eth_tx_queue_setup(port, 0, RING, SOCKET_ID_ANY, NULL);
    if (ret == 0)
        ret = rte_eth_dev_start(port);
    return ret;
}

int main(int argc, char **argv) {
    char line[64];

    if (rte_eal_init(argc, argv) < 0)
        rte_exit(EXIT_FAILURE, "generator: EAL did not start\n");
    if (rte_eth_dev_count_avail() != PORTS || rte_lcore_count() != 2)
        rte_exit(EXIT_FAILURE, "generator: give it two ports, a main lcore and one worker\n");
    pool = rte_pktmbuf_pool_create("frames", POOL, POOL_CACHE, 0, RTE_MBUF_DEFAULT_BUF_SIZE,
                                   SOCKET_ID_ANY);
    if (pool == NULL)
        rte_exit(EXIT_FAILURE, "generator: no memory for %d frames\n", POOL);
    for (uint16_t port = 0; port < PORTS; port++) {
        int ret = start_port(port);

        if (ret < 0)
            rte_exit(EXIT_FAILURE, "generator: port %u does not start: %s\n", port, strerror(-ret));
        ways[port].tx = port;
        ways[port].rx = (uint16_t)(1 - port);
        ways[port].random =
            2463534242u + port; /* Marsaglia's seed: every run draws the same flows */
    }

    setvbuf(stdout, NULL, _IOLBF, 0);
    rte_eal_mp_remote_launch(work, NULL, SKIP_MAIN);
    printf("{\"ready\": true}\n");
    while (fgets(line, sizeof(line), stdin) != NULL && strcmp(line, "quit\n") != 0)
        command(line);

    __atomic_store_n(&quit, true, __ATOMIC_RELAXED);
    rte_eal_mp_wait_lcore();
    for (uint16_t port = 0; port < PORTS; port++) {
        drop_spare(&ways[port]);
        rte_eth_dev_stop(port);
        rte_eth_dev_close(port);
    }
    rte_eal_cleanup();
    return 0;
}
