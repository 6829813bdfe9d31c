/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One end of a conversation at full speed: frames with sequence numbers to a MAC address, and
 * the same from there, with a window in both directions, so that no ring overflows. Commands, a
 * line each: `go` begins; `stop` sends no more, and answers once all are acknowledged; `report`
 * says what came; `quit`.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>

#define BURST 32
#define WINDOW 128        /* frames on their way: less than any ring has */
#define PATIENCE 3.0      /* seconds without an acknowledgement before frames count as lost */
#define ETHER_TYPE 0x88b5 /* IEEE 802: for experiments */
#define ACK_ONLY UINT32_MAX

struct frame {
    struct rte_ether_hdr ether;
    uint16_t pad;
    uint32_t number; /* or ACK_ONLY */
    uint32_t ack;    /* how many came the other way */
};

struct conversation {
    struct rte_mempool *pool;
    struct rte_ether_addr self, peer;
    uint32_t len;
    uint32_t sent, acked; /* towards the peer */
    uint32_t got, told;   /* from it, and how many of them it knows about */
    uint64_t lost, late;
    bool stopping;
    double moved; /* when the window moved last */
};

static double now(void) {
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static struct rte_mbuf *make(const struct conversation *c, uint32_t number) {
    struct rte_mbuf *m = rte_pktmbuf_alloc(c->pool);
    struct frame *f;

    if (m == NULL)
        return NULL;
    f = (struct frame *)rte_pktmbuf_append(m, (uint16_t)c->len);
    f->ether.dst_addr = c->peer;
    f->ether.src_addr = c->self;
    f->ether.ether_type = rte_cpu_to_be_16(ETHER_TYPE);
    f->number = number;
    f->ack = c->got;
    return m;
}

/* Sends what the window lets; an acknowledgement alone when there is nothing else to send. */
static void send_some(struct conversation *c) {
    struct rte_mbuf *pkts[BURST];
    uint16_t n = 0, sent;

    while (!c->stopping && n < BURST && c->sent + n - c->acked < WINDOW &&
           (pkts[n] = make(c, c->sent + n)) != NULL)
        n++;
    if (n == 0 && c->got != c->told && (pkts[0] = make(c, ACK_ONLY)) != NULL) {
        if (rte_eth_tx_burst(0, 0, pkts, 1) == 1)
            c->told = c->got;
        else
            rte_pktmbuf_free(pkts[0]);
        return;
    }
    sent = rte_eth_tx_burst(0, 0, pkts, n); /* with none, too: buffers come back */
    if (sent > 0)
        c->told = c->got;
    c->sent += sent;
    rte_pktmbuf_free_bulk(pkts + sent, n - sent);
}

static void take(struct conversation *c, const struct rte_mbuf *m) {
    const struct frame *f = rte_pktmbuf_mtod(m, const struct frame *);

    if (m->data_len < sizeof(*f) || f->ether.ether_type != rte_cpu_to_be_16(ETHER_TYPE))
        return;
    if (f->ack - c->acked <= WINDOW && f->ack != c->acked) {
        c->acked = f->ack;
        c->moved = now();
    }
    if (f->number == ACK_ONLY)
        return;
    if (f->number < c->got) {
        c->late++;
    } else {
        c->lost += f->number - c->got;
        c->got = f->number + 1;
    }
}

static void receive_some(struct conversation *c) {
    struct rte_mbuf *pkts[BURST];
    uint16_t n = rte_eth_rx_burst(0, 0, pkts, BURST);

    for (uint16_t i = 0; i < n; i++)
        take(c, pkts[i]);
    rte_pktmbuf_free_bulk(pkts, n);
}

/* false: the end */
static bool obey(struct conversation *c, bool *says_stopped) {
    struct pollfd in = {.fd = 0, .events = POLLIN};
    char line[64];

    if (poll(&in, 1, 0) == 1) {
        if (fgets(line, sizeof(line), stdin) == NULL || strcmp(line, "quit\n") == 0)
            return false;
        if (strcmp(line, "go\n") == 0)
            c->stopping = false;
        else if (strcmp(line, "stop\n") == 0)
            *says_stopped = c->stopping = true;
        else if (strcmp(line, "report\n") == 0)
            printf("report got=%u lost=%lu late=%lu sent=%u\n", c->got, c->lost, c->late, c->sent);
    }
    if (c->acked != c->sent && now() - c->moved > PATIENCE) { /* the receiver says what is lost */
        c->acked = c->sent;
        c->moved = now();
    }
    if (*says_stopped && c->acked == c->sent) {
        printf("stopped %u\n", c->sent);
        *says_stopped = false;
    }
    return true;
}

int main(int argc, char **argv) {
    struct conversation c = {.stopping = true};
    struct rte_eth_conf conf = {0};
    bool says_stopped = false;
    int parsed = rte_eal_init(argc, argv);

    setlinebuf(stdout);
    if (parsed < 0 || argc - parsed != 3 ||
        rte_ether_unformat_addr(argv[parsed + 1], &c.peer) != 0) {
        fprintf(stderr, "usage: flow EAL-ARGUMENTS -- MAC LENGTH\n");
        return 2;
    }
    c.len = RTE_MAX((uint32_t)atoi(argv[parsed + 2]), (uint32_t)RTE_ETHER_MIN_LEN);
    c.pool =
        rte_pktmbuf_pool_create("flow", 4095, 128, 0, RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
    if (c.pool == NULL || rte_eth_dev_configure(0, 1, 1, &conf) != 0 ||
        rte_eth_rx_queue_setup(0, 0, 1024, 0, NULL, c.pool) != 0 ||
        rte_eth_tx_queue_setup(0, 0, 1024, 0, NULL) != 0 || rte_eth_dev_start(0) != 0)
        return 1;
    rte_eth_macaddr_get(0, &c.self);
    printf("started\n");
    for (unsigned int round = 0; round % 256 != 0 || obey(&c, &says_stopped); round++) {
        receive_some(&c);
        send_some(&c);
    }
    rte_eth_dev_stop(0);
    rte_eal_cleanup();
    return 0;
}
