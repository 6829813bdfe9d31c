/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ports on a kernel interface that the kernel goes on using, through packet
 * sockets (packet(7)). Frames are received in place, in a ring that the kernel
 * writes; they are sent from where they are, a burst in one call. net_af_packet
 * copies on both ways, and asks for a fanout and a transmit ring, which cost
 * the kernel more on a software interface than a copy does.
 */
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <rte_common.h>

#include "switch.h"

/* A worker that is not scheduled for some milliseconds loses nothing: 8192 frames of 1500 bytes. */
#define RING_BYTES (16u << 20)
#define RING_BLOCK (64u << 10)
#define IN_FRONT (TPACKET2_HDRLEN + 32u + FF_HEAD_ROOM) /* of a frame, alignment included */
#define PIECES 32u                                      /* of a frame, in one call */

struct packet_dev {
    int rx_fd, tx_fd;
    uint8_t *ring;
    uint32_t frame_size, n_frames;
    uint32_t next, lent; /* lent: slots before `next` that are the burst's, until rx_done */
    struct ff_waker wake;
    uint8_t mac[6];
};

static inline struct tpacket2_hdr *slot(const struct packet_dev *d, uint32_t i) {
    return (struct tpacket2_hdr *)(void *)(d->ring +
                                           (size_t)(i & (d->n_frames - 1)) * d->frame_size);
}

static void packet_rx_done(struct ff_worker *w, struct ff_port *port, unsigned int queue) {
    struct packet_dev *d = port->dev;

    (void)w;
    (void)queue;
    for (; d->lent > 0; d->lent--)
        __atomic_store_n(&slot(d, d->next - d->lent)->tp_status, TP_STATUS_KERNEL,
                         __ATOMIC_RELEASE);
}

static unsigned int packet_rx(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                              struct ff_frame *frames, unsigned int n) {
    struct packet_dev *d = port->dev;
    unsigned int got = 0;

    while (d->lent < n) {
        struct tpacket2_hdr *h = slot(d, d->next);
        uint32_t status = __atomic_load_n(&h->tp_status, __ATOMIC_ACQUIRE);
        struct ff_frame *f = &frames[got];

        if (!(status & TP_STATUS_USER))
            break;
        rte_prefetch0(slot(d, d->next + 2));
        d->next++;
        d->lent++;
        if (unlikely(h->tp_snaplen < h->tp_len)) {
            w->port_stats[port->id].queue[queue].rx_packets++;
            w->port_stats[port->id].queue[queue].rx_bytes += h->tp_len;
            w->port_stats[port->id].drop[FF_DROP_OVERSIZE]++;
            continue;
        }
        *f = (struct ff_frame){
            .head = (uint8_t *)h + h->tp_mac,
            .len = h->tp_snaplen,
            .head_len = (uint16_t)h->tp_snaplen,
        };
        /* the kernel takes the outer tag off; there is room for it in front */
        if (unlikely(status & TP_STATUS_VLAN_VALID))
            (void)ff_frame_vlan_push(f, h->tp_vlan_tpid, h->tp_vlan_tci);
        got++;
    }
    if (got == 0) /* then nobody calls it */
        packet_rx_done(w, port, queue);
    return got;
}

/* The pieces of a frame; 0: there are too many. */
static unsigned int pieces(const struct ff_frame *f, struct iovec *v) {
    unsigned int n = 0;
    struct ff_reader r;
    uint32_t left = f->len;

    ff_reader_start(&r, f);
    while (left > 0) {
        struct ff_seg s = ff_reader_take(&r, left);

        if (n == PIECES)
            return 0;
        v[n++] = (struct iovec){(void *)(uintptr_t)s.p, s.len};
        left -= s.len;
    }
    return n;
}

/* Sends what it can of k messages; counts what cannot go. */
static void send_all(struct ff_worker *w, struct ff_port *port, struct mmsghdr *msg,
                     const uint32_t *len, unsigned int k, struct ff_sent *sent) {
    const struct packet_dev *d = port->dev;
    uint64_t *drop = w->port_stats[port->id].drop;

    for (unsigned int i = 0; i < k;) {
        int rc = sendmmsg(d->tx_fd, msg + i, k - i, MSG_DONTWAIT);

        if (likely(rc > 0)) {
            for (int end = (int)i + rc; (int)i < end; i++)
                sent->bytes += len[i];
            sent->packets += (uint32_t)rc;
        } else if (errno == EMSGSIZE || errno == EFAULT) {
            /* longer than the interface's MTU; or the sender has truncated its memory */
            drop[errno == EFAULT ? FF_DROP_NO_COPY : FF_DROP_TX_OVERSIZE]++;
            sent->accounted++;
            i++;
        } else if (errno == ENOBUFS || errno == EAGAIN) {
            return; /* the caller counts the rest */
        } else if (errno != EINTR) {
            drop[FF_DROP_PORT_DOWN] += k - i;
            sent->accounted += k - i;
            return;
        }
    }
}

static struct ff_sent packet_tx(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                                struct ff_frame *frames, unsigned int n) {
    struct mmsghdr msg[FF_BURST];
    struct iovec v[FF_BURST][PIECES];
    struct ff_sent sent = {0};
    uint32_t len[FF_BURST];
    unsigned int k = 0;

    (void)queue;
    for (unsigned int i = 0; i < n; i++) {
        unsigned int p = pieces(&frames[i], v[k]);

        if (unlikely(p == 0)) {
            w->port_stats[port->id].drop[FF_DROP_NO_COPY]++;
            sent.accounted++;
            continue;
        }
        msg[k] = (struct mmsghdr){.msg_hdr = {.msg_iov = v[k], .msg_iovlen = p}};
        len[k++] = frames[i].len;
    }
    send_all(w, port, msg, len, k, &sent);
    for (unsigned int i = 0; i < n; i++)
        ff_frame_free(&frames[i]);
    return sent;
}

static bool packet_arm(struct ff_worker *w, struct ff_port *port, unsigned int queue) {
    struct packet_dev *d = port->dev;

    (void)queue;
    return ff_waker_watch(w, &d->wake);
}

/* A socket that is watched calls epoll for each frame, awake or not. */
static void packet_disarm(struct ff_port *port, unsigned int queue) {
    struct packet_dev *d = port->dev;

    (void)queue;
    ff_waker_unwatch(&d->wake);
}

/* ---- control ---- */

static int set(int fd, int option, const void *value, socklen_t len) {
    return setsockopt(fd, SOL_PACKET, option, value, len) == 0 ? 0 : -errno;
}

static int bind_to(int fd, int ifindex, uint16_t protocol) {
    struct sockaddr_ll to = {
        .sll_family = AF_PACKET,
        .sll_protocol = rte_cpu_to_be_16(protocol),
        .sll_ifindex = ifindex,
    };

    return bind(fd, (struct sockaddr *)&to, sizeof(to)) == 0 ? 0 : -errno;
}

static int ring_map(struct packet_dev *d) {
    struct tpacket_req req = {
        .tp_block_size = RTE_MAX(RING_BLOCK, d->frame_size),
        .tp_frame_size = d->frame_size,
        .tp_frame_nr = d->n_frames,
    };
    int rc;

    req.tp_block_nr = RING_BYTES / req.tp_block_size;
    rc = set(d->rx_fd, PACKET_RX_RING, &req, sizeof(req));
    if (rc != 0)
        return rc;
    d->ring =
        mmap(NULL, RING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, d->rx_fd, 0);
    if (d->ring == MAP_FAILED) {
        d->ring = NULL;
        return -errno;
    }
    return 0;
}

static int sockets_open(struct packet_dev *d, int ifindex) {
    const int v2 = TPACKET_V2, room = FF_HEAD_ROOM, on = 1;
    const struct packet_mreq promisc = {.mr_ifindex = ifindex, .mr_type = PACKET_MR_PROMISC};
    int rc;

    d->rx_fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    d->tx_fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (d->rx_fd < 0 || d->tx_fd < 0)
        return -errno;
    rc = set(d->rx_fd, PACKET_VERSION, &v2, sizeof(v2));
    if (rc == 0)
        rc = set(d->rx_fd, PACKET_RESERVE, &room, sizeof(room));
    /* what the kernel sends is not for the switch */
    if (rc == 0)
        rc = set(d->rx_fd, PACKET_IGNORE_OUTGOING, &on, sizeof(on));
    if (rc == 0)
        rc = set(d->tx_fd, PACKET_QDISC_BYPASS, &on, sizeof(on));
    if (rc == 0)
        rc = ring_map(d);
    if (rc == 0)
        rc = set(d->rx_fd, PACKET_ADD_MEMBERSHIP, &promisc, sizeof(promisc));
    if (rc == 0)
        rc = bind_to(d->tx_fd, ifindex, 0); /* it receives nothing */
    return rc == 0 ? bind_to(d->rx_fd, ifindex, ETH_P_ALL) : rc;
}

static void dev_free(struct packet_dev *d) {
    if (d->ring != NULL)
        munmap(d->ring, RING_BYTES);
    if (d->rx_fd >= 0)
        close(d->rx_fd);
    if (d->tx_fd >= 0)
        close(d->tx_fd);
    free(d);
}

static int packet_open(struct ff_port *port, const struct ff_port_conf *conf, char *err) {
    int ifindex = (int)if_nametoindex(conf->devargs);
    struct packet_dev *d = calloc(1, sizeof(*d));
    struct ifreq ifr = {0};
    int rc;

    if (d == NULL)
        return -ENOMEM;
    d->rx_fd = d->tx_fd = -1;
    d->wake = FF_NO_WAKER;
    d->frame_size = rte_align32pow2(conf->mtu + FF_FRAME_OVERHEAD + IN_FRONT);
    d->n_frames = RING_BYTES / d->frame_size;
    rc = ifindex == 0 ? -ENODEV : sockets_open(d, ifindex);
    if (rc != 0) {
        snprintf(err, FF_ERR_LEN, "%s: kernel interface %s: %s", conf->name, conf->devargs,
                 strerror(-rc));
        dev_free(d);
        return rc;
    }
    snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", conf->devargs);
    if (ioctl(d->rx_fd, SIOCGIFHWADDR, &ifr) == 0)
        memcpy(d->mac, ifr.ifr_hwaddr.sa_data, sizeof(d->mac));
    d->wake.fd = d->rx_fd;
    port->dev = d;
    port->rx_queues = 1;
    port->tx_queues = (uint16_t)RTE_MIN(ff.n_workers, (unsigned int)FF_MAX_QUEUES);
    port->tx_shared = port->tx_queues < ff.n_workers;
    atomic_store_explicit(&port->ready, true, memory_order_release);
    ff_port_state(port, FF_PORT_READY, "1 receive queue");
    return 0;
}

static void packet_close(struct ff_port *port) {
    struct packet_dev *d = port->dev;

    atomic_store(&port->ready, false);
    ff_synchronize();
    ff_waker_unwatch(&d->wake);
    dev_free(d);
}

static void packet_info(struct ff_port *port, struct ff_port_info *info) {
    const struct packet_dev *d = port->dev;

    snprintf(info->driver, sizeof(info->driver), "packet");
    memcpy(info->mac, d->mac, sizeof(info->mac));
}

const struct ff_port_ops ff_port_packet_ops = {
    .open = packet_open,
    .close = packet_close,
    .rx = packet_rx,
    .rx_done = packet_rx_done,
    .tx = packet_tx,
    .arm = packet_arm,
    .disarm = packet_disarm,
    .leave = packet_disarm,
    .info = packet_info,
};
