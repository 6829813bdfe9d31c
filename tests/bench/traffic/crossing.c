/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One end of a stream between hosts, on one virtio-user port. One end sends frames with TCP/IPv4
 * headers, as many as its window allows, the other takes them and says how far it has come: the
 * sequence numbers are TCP's, the rest of TCP is left out. Frames above 1514 bytes are to be
 * segmented by whoever cannot pass them on whole.
 *
 *   crossing EAL-OPTIONS
 *
 * Commands on stdin, each answered by a line of JSON; the first line, {"ready": true}, comes
 * when the port runs.
 *
 *   send SIZE WINDOW   frames of SIZE bytes without FCS, at most WINDOW payload bytes on their way
 *   stop
 *   stats              payload bytes and frames received, bytes sent and given up, since the start
 *
 * It sleeps when there is nothing to do: the rest of the host may need the CPU.
 */
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_ethdev.h>

#include "frames.h"

#define BURST 32
#define RING 1024
#define TX_BUFFERS 511
#define TX_ROOM (RTE_PKTMBUF_HEADROOM + SEGMENTED_MAX / 2 + 1) /* a buffer's length has 16 bits */
#define RX_BUFFERS 4095
#define SEGMENT_INSIDE 1410 /* TCP payload of what VXLAN leaves of an MTU of 1500 */
#define ACK_SIZE 60
#define ACK_FRAMES 16u
#define IDLE_US 50
#define STALL_MS 500u /* without an answer for so long, what is on its way is lost */
#define TURNS_PER_LOOK 64

struct sender {
    uint32_t size, window;   /* 0: it does not send */
    uint32_t next, acked;    /* sequence numbers */
    uint64_t heard, stall;   /* TSC */
    uint64_t sent, given_up; /* payload bytes */
    struct template template;
};

struct sink {
    uint32_t highest, unacked; /* sequence number, frames */
    uint64_t bytes, frames;
    struct template template;
};

static struct rte_mempool *tx_pool, *rx_pool;
static struct sender sender;
static struct sink sink;

static uint32_t payload(uint32_t size) {
    return size - (uint32_t)sizeof(struct headers);
}

static bool later(uint32_t a, uint32_t b) {
    return (int32_t)(a - b) > 0;
}

/* A frame whose payload is whatever its buffers hold; NULL: there are none. */
static struct rte_mbuf *make(const struct template *t, uint32_t size, uint32_t seq, uint32_t ack) {
    struct rte_mbuf *head = NULL;

    for (uint32_t done = 0; done < size;) {
        struct rte_mbuf *m = rte_pktmbuf_alloc(tx_pool);

        if (m == NULL || (head != NULL && rte_pktmbuf_chain(head, m) != 0)) {
            rte_pktmbuf_free(m);
            rte_pktmbuf_free(head);
            return NULL;
        }
        if (head == NULL)
            head = m;
        m->data_len = (uint16_t)RTE_MIN(size - done, (uint32_t)rte_pktmbuf_tailroom(m));
        done += m->data_len;
    }
    head->pkt_len = size;
    memcpy(rte_pktmbuf_mtod(head, void *), &t->headers, sizeof(t->headers));
    rte_pktmbuf_mtod(head, struct headers *)->tcp.sent_seq = rte_cpu_to_be_32(seq);
    rte_pktmbuf_mtod(head, struct headers *)->tcp.recv_ack = rte_cpu_to_be_32(ack);
    frame_segmented(head);
    head->tso_segsz = SEGMENT_INSIDE;
    if (size <= FRAME_MAX)
        head->ol_flags = RTE_MBUF_F_TX_IPV4 | RTE_MBUF_F_TX_IP_CKSUM | RTE_MBUF_F_TX_TCP_CKSUM;
    return head;
}

static uint16_t transmit(struct rte_mbuf **burst, uint16_t n) {
    uint16_t sent = rte_eth_tx_burst(0, 0, burst, rte_eth_tx_prepare(0, 0, burst, n));

    rte_pktmbuf_free_bulk(&burst[sent], n - sent);
    return sent;
}

static uint16_t send_some(void) {
    uint32_t each = payload(sender.size), room;
    struct rte_mbuf *burst[BURST];
    uint64_t now = rte_rdtsc();
    uint16_t n = 0, sent;

    if (sender.next != sender.acked && now - sender.heard > sender.stall) {
        sender.given_up += sender.next - sender.acked;
        sender.acked = sender.next;
        sender.heard = now;
    }
    room = sender.window - RTE_MIN(sender.next - sender.acked, sender.window);
    while (n < BURST && room >= (n + 1) * each &&
           (burst[n] = make(&sender.template, sender.size, sender.next + n * each, 0)) != NULL)
        n++;
    if (n == 0)
        return 0;
    sent = transmit(burst, n);
    sender.next += sent * each;
    sender.sent += (uint64_t)sent * each;
    return sent;
}

static void answer(void) {
    struct rte_mbuf *m = make(&sink.template, ACK_SIZE, 0, sink.highest);

    if (m != NULL && transmit(&m, 1) == 1)
        sink.unacked = 0;
}

static void take(const struct rte_mbuf *m) {
    const struct headers *h = rte_pktmbuf_mtod(m, const struct headers *);
    uint32_t end, bytes;

    if (template_owns(&sink.template, m)) { /* an answer */
        uint32_t ack = rte_be_to_cpu_32(h->tcp.recv_ack);

        if (later(ack, sender.acked) && !later(ack, sender.next))
            sender.acked = ack;
        sender.heard = rte_rdtsc();
        return;
    }
    if (!template_owns(&sender.template, m))
        return;
    bytes = m->pkt_len - (uint32_t)sizeof(*h);
    end = rte_be_to_cpu_32(h->tcp.sent_seq) + bytes;
    if (later(end, sink.highest))
        sink.highest = end;
    sink.bytes += bytes;
    sink.frames++;
    sink.unacked++;
}

static uint16_t receive_some(void) {
    struct rte_mbuf *burst[BURST];
    uint16_t n = rte_eth_rx_burst(0, 0, burst, BURST);

    for (uint16_t i = 0; i < n; i++)
        take(burst[i]);
    rte_pktmbuf_free_bulk(burst, n);
    if (sink.unacked >= ACK_FRAMES || (n == 0 && sink.unacked > 0))
        answer();
    return n;
}

static void command(const char *line) {
    uint32_t size, window;
    struct timespec ts;

    if (strcmp(line, "stats\n") == 0) {
        clock_gettime(CLOCK_MONOTONIC, &ts);
        printf("{\"ns\": %" PRIu64 ", \"bytes\": %" PRIu64 ", \"frames\": %" PRIu64
               ", \"sent\": %" PRIu64 ", \"given_up\": %" PRIu64 "}\n",
               (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec, sink.bytes, sink.frames,
               sender.sent, sender.given_up);
        return;
    }
    if (strcmp(line, "stop\n") == 0) {
        sender.size = 0;
    } else if (sscanf(line, "send %" SCNu32 " %" SCNu32, &size, &window) == 2 &&
               size > sizeof(struct headers) && size <= SEGMENTED_MAX) {
        sender.size = size;
        sender.window = window;
        template_make(&sender.template, 1, 2, size, true);
        sender.heard = rte_rdtsc();
    } else {
        printf("{\"error\": \"bad command\"}\n");
        return;
    }
    printf("{\"ok\": true}\n");
}

static int start(void) {
    struct rte_eth_conf conf = {
        .rxmode = {.offloads = RTE_ETH_RX_OFFLOAD_TCP_LRO | RTE_ETH_RX_OFFLOAD_TCP_CKSUM |
                               RTE_ETH_RX_OFFLOAD_SCATTER},
        .txmode = {.offloads = RTE_ETH_TX_OFFLOAD_TCP_TSO | RTE_ETH_TX_OFFLOAD_TCP_CKSUM |
                               RTE_ETH_TX_OFFLOAD_MULTI_SEGS},
    };

    /* what was sent is free at once: there are fewer buffers than descriptors */
    const struct rte_eth_txconf tx = {.tx_free_thresh = RING - 4, .offloads = conf.txmode.offloads};

    tx_pool = rte_pktmbuf_pool_create("tx", TX_BUFFERS, 0, 0, TX_ROOM, SOCKET_ID_ANY);
    rx_pool =
        rte_pktmbuf_pool_create("rx", RX_BUFFERS, 0, 0, RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
    if (tx_pool == NULL || rx_pool == NULL || rte_eth_dev_configure(0, 1, 1, &conf) != 0 ||
        rte_eth_rx_queue_setup(0, 0, RING, SOCKET_ID_ANY, NULL, rx_pool) != 0 ||
        rte_eth_tx_queue_setup(0, 0, RING, SOCKET_ID_ANY, &tx) != 0)
        return -1;
    return rte_eth_dev_start(0);
}

int main(int argc, char **argv) {
    struct pollfd in = {.fd = STDIN_FILENO, .events = POLLIN};
    char line[64];

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (rte_eal_init(argc, argv) < 0 || start() != 0)
        rte_exit(EXIT_FAILURE, "crossing: the port does not start\n");
    template_make(&sender.template, 1, 2, FRAME_MAX, true);
    template_make(&sink.template, 2, 1, ACK_SIZE, true);
    sender.stall = rte_get_tsc_hz() / 1000 * STALL_MS;
    printf("{\"ready\": true}\n");
    for (unsigned int turn = 0;; turn++) {
        unsigned int done = receive_some();

        if (sender.size != 0)
            done += send_some();
        if (done > 0 && turn % TURNS_PER_LOOK != 0)
            continue;
        if (poll(&in, 1, 0) == 1) {
            if (fgets(line, sizeof(line), stdin) == NULL)
                return 0;
            command(line);
        } else if (done == 0) {
            rte_delay_us_sleep(IDLE_US);
        }
    }
}
