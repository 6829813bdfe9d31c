/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An application on net_ff for the tests: EAL's arguments, then a command a line on standard
 * input, each answered by one line. Frames carry a number, and bytes that follow from it.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>

#define HEADER 18 /* addresses, type, number */
#define BURST 32u
#define HELD 8192
#define DEADLINE 60 /* seconds that a command waits for frames at most */

static uint16_t port;
static struct rte_mempool *pool;
static struct rte_mbuf *held[HELD];
static unsigned int n_held;

static double now(void) {
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint8_t byte_at(uint32_t number, uint32_t i) {
    return (uint8_t)(number * 7 + i * 13 + i / 251);
}

/* ---- sending -------------------------------------------------------------------- */

static void nothing(void *addr, void *opaque) {
    (void)opaque;
    free(addr);
}

/* An mbuf over memory that is not EAL's. */
static struct rte_mbuf *outside(uint16_t room) {
    struct rte_mbuf *m = rte_pktmbuf_alloc(pool);
    uint16_t size = room + 256;
    uint8_t *buf = malloc(size);

    if (m != NULL) {
        struct rte_mbuf_ext_shared_info *info =
            rte_pktmbuf_ext_shinfo_init_helper(buf, &size, nothing, NULL);

        rte_pktmbuf_attach_extbuf(m, buf, 0, size, info);
        rte_pktmbuf_reset_headroom(m);
    }
    return m;
}

static struct rte_mbuf *make_frame(const struct rte_ether_addr *dst, uint32_t number, uint32_t len,
                                   uint32_t segs, const char *kind) {
    struct rte_mbuf *head = NULL, *m;
    uint8_t frame[65536];
    uint32_t done = 0;

    memcpy(frame, dst, 6);
    rte_eth_macaddr_get(port, (struct rte_ether_addr *)(frame + 6));
    frame[12] = 0x88;
    frame[13] = strcmp(kind, "vlan") == 0 ? 0xa8 : 0xb5;
    memcpy(frame + 14, &number, 4);
    for (uint32_t i = HEADER; i < len; i++)
        frame[i] = byte_at(number, i);
    for (uint32_t s = 0; s < segs; s++) {
        uint32_t part = s + 1 == segs ? len - done : RTE_MAX(len / segs, 14u);

        m = strcmp(kind, "outside") == 0 ? outside((uint16_t)part) : rte_pktmbuf_alloc(pool);
        if (m == NULL || part > rte_pktmbuf_tailroom(m)) {
            rte_pktmbuf_free(m);
            rte_pktmbuf_free(head);
            return NULL;
        }
        memcpy(rte_pktmbuf_append(m, (uint16_t)part), frame + done, part);
        done += part;
        if (head == NULL)
            head = m;
        else if (rte_pktmbuf_chain(head, m) != 0)
            return NULL;
    }
    if (strcmp(kind, "clone") == 0) {
        m = rte_pktmbuf_clone(head, pool);
        rte_pktmbuf_free(head);
        return m;
    }
    return head;
}

static void cmd_tx(const char *line) {
    unsigned int number, count, len, segs = 1, sent = 0;
    char mac[32], kind[16] = "plain";
    struct rte_ether_addr dst;
    double end = now() + DEADLINE;

    if (sscanf(line, "%31s %u %u %u %u %15s", mac, &number, &count, &len, &segs, kind) < 4 ||
        rte_ether_unformat_addr(mac, &dst) != 0) {
        printf("error: tx MAC NUMBER COUNT LEN [SEGS [KIND]]\n");
        return;
    }
    while (sent < count && now() < end) {
        struct rte_mbuf *m = make_frame(&dst, number + sent, len, segs, kind);

        if (m == NULL)
            break;
        if (strcmp(kind, "shared") == 0) {
            rte_mbuf_refcnt_update(m, 1);
            held[n_held++] = m;
        }
        if (rte_eth_tx_burst(port, 0, &m, 1) == 0) {
            if (strcmp(kind, "shared") == 0)
                n_held--;
            rte_pktmbuf_free(m);
            break;
        }
        sent++;
    }
    printf("sent %u\n", sent);
}

/* Numbered frames at full speed, until all are sent. */
static void cmd_flow(const char *line) {
    unsigned int count, len, done = 0;
    char mac[32];
    struct rte_ether_addr dst;
    struct rte_mbuf *pkts[BURST];
    double end = now() + DEADLINE;

    if (sscanf(line, "%31s %u %u", mac, &count, &len) != 3 ||
        rte_ether_unformat_addr(mac, &dst) != 0) {
        printf("error: flow MAC COUNT LEN\n");
        return;
    }
    while (done < count) {
        uint16_t n = 0, sent = 0;

        while (n < BURST && done + n < count &&
               (pkts[n] = make_frame(&dst, done + n, len, 1, "plain")) != NULL)
            n++;
        while (sent < n && now() < end)
            sent += rte_eth_tx_burst(port, 0, pkts + sent, n - sent);
        if (n == 0) /* what is lent has to come back */
            rte_eth_tx_burst(port, 0, pkts, 0);
        done += sent;
        if (now() >= end)
            break;
    }
    printf("sent %u\n", done);
}

/* ---- receiving ---------------------------------------------------------------------- */

static uint32_t number_of(const struct rte_mbuf *m) {
    uint32_t number, buf;

    memcpy(&number, rte_pktmbuf_read(m, 14, 4, &buf), 4);
    return number;
}

static bool is_good(const struct rte_mbuf *m) {
    uint32_t number = number_of(m), at = 0;

    for (const struct rte_mbuf *s = m; s != NULL; s = s->next) {
        const uint8_t *p = rte_pktmbuf_mtod(s, const uint8_t *);

        for (uint32_t i = 0; i < s->data_len; i++, at++)
            if (at >= HEADER && p[i] != byte_at(number, at))
                return false;
    }
    return at == m->pkt_len;
}

static unsigned int poll_queues(struct rte_mbuf **pkts, unsigned int most) {
    struct rte_eth_dev_info info;
    unsigned int n = 0;

    rte_eth_dev_info_get(port, &info);
    for (uint16_t q = 0; q < info.nb_rx_queues && n == 0; q++)
        n = rte_eth_rx_burst(port, q, pkts, (uint16_t)RTE_MIN(most, BURST));
    return n;
}

/* number:length:segments:external:good of each frame; they are freed, or held */
static void cmd_rx(const char *line, bool hold) {
    struct rte_mbuf *pkts[BURST];
    unsigned int count = (unsigned int)atoi(line), got = 0;
    double end = now() + DEADLINE;

    printf("got");
    while (got < count && now() < end) {
        unsigned int n = poll_queues(pkts, count - got);

        for (unsigned int i = 0; i < n; i++) {
            printf(" %u:%u:%u:%d:%d", number_of(pkts[i]), pkts[i]->pkt_len, pkts[i]->nb_segs,
                   RTE_MBUF_HAS_EXTBUF(pkts[i]) != 0, is_good(pkts[i]));
            if (hold && n_held < HELD)
                held[n_held++] = pkts[i];
            else
                rte_pktmbuf_free(pkts[i]);
        }
        got += n;
    }
    printf("\n");
}

/* Looks for COUNT bursts and says how many frames came; "poll" also gives transmit its turns. */
static void cmd_poll(const char *line, bool transmit) {
    struct rte_mbuf *pkts[BURST];
    unsigned int got = 0;

    for (int i = atoi(line); i > 0; i--) {
        unsigned int n = poll_queues(pkts, BURST);

        rte_pktmbuf_free_bulk(pkts, n);
        got += n;
        if (transmit)
            rte_eth_tx_burst(port, 0, pkts, 0);
    }
    printf("%s %u\n", transmit ? "poll" : "listen", got);
}

/* Receives a flow: says what of it is missing, repeated or late. */
static void cmd_sink(const char *line) {
    struct rte_mbuf *pkts[BURST];
    unsigned int count = (unsigned int)atoi(line), got = 0, next = 0, lost = 0, late = 0, bad = 0;
    double end = now() + DEADLINE;

    while (next < count && now() < end) {
        unsigned int n = poll_queues(pkts, BURST);

        for (unsigned int i = 0; i < n; i++) {
            uint32_t number = number_of(pkts[i]);

            if (next == count) /* all is over; the last one may be sent until it comes */
                continue;
            if (number < next) {
                late++;
            } else {
                lost += number - next;
                next = number + 1;
            }
            bad += !is_good(pkts[i]);
        }
        rte_pktmbuf_free_bulk(pkts, n);
        got += n;
    }
    printf("sink %u lost %u late %u bad %u\n", got, lost + (count - next), late, bad);
}

/* ---- frames that are held ----------------------------------------------------------------- */

static void *free_held(void *arg) {
    (void)arg;
    rte_pktmbuf_free_bulk(held, n_held);
    n_held = 0;
    return NULL;
}

static void cmd_free(const char *line) {
    pthread_t thread;

    if (strcmp(line, "elsewhere") == 0 && pthread_create(&thread, NULL, free_held, NULL) == 0)
        pthread_join(thread, NULL);
    else
        free_held(NULL);
    printf("freed\n");
}

/* Sends what is held on, to another address. */
static void cmd_forward(const char *line) {
    struct rte_ether_addr dst;
    unsigned int sent = 0;

    if (rte_ether_unformat_addr(line, &dst) != 0) {
        printf("error: forward MAC\n");
        return;
    }
    for (; sent < n_held; sent++) {
        memcpy(rte_pktmbuf_mtod(held[sent], void *), &dst, 6);
        if (rte_eth_tx_burst(port, 0, &held[sent], 1) == 0)
            break;
    }
    n_held -= sent;
    memmove(held, held + sent, n_held * sizeof(held[0]));
    printf("sent %u\n", sent);
}

/* Whether what is held can grow in front and behind, as an encapsulation needs it. */
static void cmd_grow(void) {
    unsigned int good = 0;

    for (unsigned int i = 0; i < n_held; i++) {
        char *front = rte_pktmbuf_prepend(held[i], 64);
        char *back = rte_pktmbuf_append(held[i], 32);

        if (front != NULL && back != NULL) {
            memset(front, 0xee, 64);
            memset(back, 0xee, 32);
            rte_pktmbuf_adj(held[i], 64);
            rte_pktmbuf_trim(held[i], 32);
            good += is_good(held[i]);
        }
    }
    printf("grown %u\n", good);
}

/* ---- the device -------------------------------------------------------------------------------
 */

static void cmd_setup(const char *line) {
    struct rte_eth_conf conf = {0};
    unsigned int rx = 1, tx = 1, desc = 64;
    int rc;

    sscanf(line, "%u %u %u", &rx, &tx, &desc);
    rc = rte_eth_dev_configure(port, (uint16_t)rx, (uint16_t)tx, &conf);
    for (uint16_t q = 0; rc == 0 && q < rx; q++)
        rc = rte_eth_rx_queue_setup(port, q, (uint16_t)desc, 0, NULL, pool);
    for (uint16_t q = 0; rc == 0 && q < tx; q++)
        rc = rte_eth_tx_queue_setup(port, q, (uint16_t)desc, 0, NULL);
    printf("setup %d\n", rc);
}

static void cmd_stats(void) {
    struct rte_eth_xstat_name names[128];
    struct rte_eth_xstat values[128];
    int n = rte_eth_xstats_get_names(port, names, RTE_DIM(names));

    n = RTE_MIN(n, rte_eth_xstats_get(port, values, RTE_DIM(values)));
    printf("stats");
    for (int i = 0; i < n; i++)
        printf(" %s=%" PRIu64, names[i].name, values[i].value);
    printf("\n");
}

static void cmd_link(const char *line) {
    struct rte_eth_link link = {0};
    double end = now() + DEADLINE;

    do {
        rte_eth_link_get_nowait(port, &link);
    } while (link.link_status != atoi(line) && now() < end);
    printf("link %d\n", link.link_status);
}

static bool run(const char *line) {
    const char *rest = strchr(line, ' ');
    size_t n = rest != NULL ? (size_t)(rest - line) : strlen(line);

    rest = rest != NULL ? rest + 1 : "";
#define IS(name) (n == strlen(name) && memcmp(line, name, n) == 0)
    if (IS("port"))
        printf("port %d\n", port = (uint16_t)atoi(rest));
    else if (IS("setup"))
        cmd_setup(rest);
    else if (IS("start"))
        printf("start %d\n", rte_eth_dev_start(port));
    else if (IS("stop"))
        printf("stop %d\n", rte_eth_dev_stop(port));
    else if (IS("close"))
        printf("close %d\n", rte_eth_dev_close(port));
    else if (IS("tx"))
        cmd_tx(rest);
    else if (IS("flow"))
        cmd_flow(rest);
    else if (IS("rx"))
        cmd_rx(rest, false);
    else if (IS("hold"))
        cmd_rx(rest, true);
    else if (IS("poll"))
        cmd_poll(rest, true);
    else if (IS("listen"))
        cmd_poll(rest, false);
    else if (IS("sink"))
        cmd_sink(rest);
    else if (IS("free"))
        cmd_free(rest);
    else if (IS("forward"))
        cmd_forward(rest);
    else if (IS("grow"))
        cmd_grow();
    else if (IS("stats"))
        cmd_stats();
    else if (IS("link"))
        cmd_link(rest);
    else if (IS("avail"))
        printf("avail %u\n", rte_mempool_avail_count(pool));
    else if (IS("quit"))
        return false;
    else
        printf("error: unknown command %s\n", line);
    return true;
}

int main(int argc, char **argv) {
    char line[256];

    setlinebuf(stdout);
    if (rte_eal_init(argc, argv) < 0)
        return 1;
    pool = rte_pktmbuf_pool_create("app", 4095, 128, 0, RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
    if (pool == NULL)
        return 1;
    printf("ready %u\n", rte_eth_dev_count_avail());
    while (fgets(line, sizeof(line), stdin) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        if (!run(line))
            break;
    }
    rte_eal_cleanup();
    return 0;
}
