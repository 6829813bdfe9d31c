/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ends of links, or members of a chain, on any DPDK devices. A port's role is a MAC, to which it
 * sends frames of one size as fast as it can, while it takes what comes; what is sent is written
 * once, when the pools are made, so that the cost is the devices'. In a chain, source=MAC writes
 * the Ethernet header each time, since the next one has written over it; forward=MAC writes
 * another header and sends on what comes, and sink only takes. Each line on standard input, a
 * number of milliseconds, is answered by the frames that were taken and those that were sent in
 * that time.
 */
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>

#define BURST 32
#define DESCRIPTORS 1024
#define MBUFS 4095
#define PORTS_MAX 4
#define ETHER_TYPE 0x88b5 /* IEEE 802: for experiments */

struct end {
    uint16_t port;
    bool sends, writes, forwards;
    struct rte_mbuf *on[BURST];
    uint16_t n_on; /* that the next one had no room for */
    struct rte_ether_hdr header;
    struct rte_mempool *tx_pool;
    struct rte_mempool *rx_pool; /* its buffers are written by others, and would not fit to send */
};

static uint16_t size;
static uint64_t received, sent;

static void fill(struct rte_mempool *pool, void *opaque, void *object, unsigned int index) {
    const struct end *e = opaque;
    struct rte_mbuf *m = object;

    (void)pool;
    (void)index;
    memcpy((char *)m->buf_addr + RTE_PKTMBUF_HEADROOM, &e->header, sizeof(e->header));
}

static struct rte_mempool *make_pool(const char *name, uint16_t port) {
    uint16_t room = (uint16_t)(RTE_PKTMBUF_HEADROOM + RTE_MAX(size, 2048));
    char unique[RTE_MEMPOOL_NAMESIZE];

    snprintf(unique, sizeof(unique), "%s%u", name, port);
    return rte_pktmbuf_pool_create(unique, MBUFS, 256, 0, room, SOCKET_ID_ANY);
}

static int start(struct end *e, const char *role) {
    const char *mac = strchr(role, '=');
    struct rte_eth_conf conf = {0};

    e->forwards = strncmp(role, "forward=", 8) == 0;
    e->writes = mac != NULL && !e->forwards;
    e->sends = !e->forwards && strcmp(role, "sink") != 0;
    conf.rxmode.mtu = RTE_MAX(size - RTE_ETHER_HDR_LEN, RTE_ETHER_MTU);
    e->tx_pool = make_pool("tx", e->port);
    e->rx_pool = make_pool("rx", e->port);
    if ((e->sends || e->forwards) &&
        rte_ether_unformat_addr(mac != NULL ? mac + 1 : role, &e->header.dst_addr) != 0)
        return -1;
    if (e->tx_pool == NULL || e->rx_pool == NULL ||
        rte_eth_dev_configure(e->port, 1, 1, &conf) != 0 ||
        rte_eth_rx_queue_setup(e->port, 0, DESCRIPTORS, 0, NULL, e->rx_pool) != 0 ||
        rte_eth_tx_queue_setup(e->port, 0, DESCRIPTORS, 0, NULL) != 0 ||
        rte_eth_dev_start(e->port) != 0)
        return -1;
    rte_eth_macaddr_get(e->port, &e->header.src_addr);
    e->header.ether_type = rte_cpu_to_be_16(ETHER_TYPE);
    rte_mempool_obj_iter(e->tx_pool, fill, e);
    return 0;
}

static void write_header(const struct end *e, struct rte_mbuf *m) {
    memcpy(rte_pktmbuf_mtod(m, void *), &e->header, sizeof(e->header));
}

static void send_some(const struct end *e) {
    struct rte_mbuf *pkts[BURST];
    uint16_t n;

    if (rte_pktmbuf_alloc_bulk(e->tx_pool, pkts, BURST) != 0) {
        rte_eth_tx_burst(e->port, 0, pkts, 0); /* what was lent has to come back */
        return;
    }
    for (int i = 0; i < BURST; i++)
        pkts[i]->data_len = pkts[i]->pkt_len = size;
    for (int i = 0; e->writes && i < BURST; i++)
        write_header(e, pkts[i]);
    n = rte_eth_tx_burst(e->port, 0, pkts, BURST);
    sent += n;
    if (n < BURST)
        rte_pktmbuf_free_bulk(pkts + n, BURST - n);
}

static void receive_some(const struct end *e) {
    struct rte_mbuf *pkts[BURST];
    uint16_t n = rte_eth_rx_burst(e->port, 0, pkts, BURST);

    rte_pktmbuf_free_bulk(pkts, n);
    received += n;
}

static void forward_some(struct end *e) {
    uint16_t n;

    if (e->n_on == 0) {
        e->n_on = rte_eth_rx_burst(e->port, 0, e->on, BURST);
        for (uint16_t i = 0; i < e->n_on; i++)
            write_header(e, e->on[i]);
    }
    n = rte_eth_tx_burst(e->port, 0, e->on, e->n_on);
    e->n_on -= n;
    memmove(e->on, e->on + n, e->n_on * sizeof(e->on[0]));
}

static void turn(struct end *e) {
    if (e->forwards)
        forward_some(e);
    else
        receive_some(e);
    if (e->sends)
        send_some(e);
}

int main(int argc, char **argv) {
    struct end ends[PORTS_MAX] = {0};
    uint64_t end = 0;
    struct pollfd in = {.fd = 0, .events = POLLIN};
    char line[32];
    int parsed = rte_eal_init(argc, argv), n = argc - parsed - 2;

    setlinebuf(stdout);
    if (parsed < 0 || n < 1 || n > PORTS_MAX) {
        fprintf(stderr, "usage: duplex EAL-ARGUMENTS -- LENGTH ROLE...\n");
        return 2;
    }
    size = (uint16_t)atoi(argv[parsed + 1]);
    for (int i = 0; i < n; i++) {
        ends[i].port = (uint16_t)i;
        if (start(&ends[i], argv[parsed + 2 + i]) != 0)
            return 1;
    }
    printf("started\n");
    for (int i = 0; i < n; i++) {
        struct rte_eth_link link = {0};

        while (link.link_status == RTE_ETH_LINK_DOWN)
            rte_eth_link_get_nowait((uint16_t)i, &link);
    }
    printf("linked\n");
    for (unsigned int round = 0;; round++) {
        for (int i = 0; i < n; i++)
            turn(&ends[i]);
        if (end != 0 && rte_rdtsc() >= end) {
            printf("%lu %lu\n", received, sent);
            end = 0;
        }
        if (round % 1024 == 0 && poll(&in, 1, 0) == 1) {
            if (fgets(line, sizeof(line), stdin) == NULL)
                break;
            received = sent = 0;
            end = rte_rdtsc() + rte_get_tsc_hz() / 1000 * strtoul(line, NULL, 10);
        }
    }
    return 0;
}
