/* SPDX-License-Identifier: Apache-2.0 */
/* Ports on any DPDK poll mode driver, probed at run time from devargs. */
#define ALLOW_EXPERIMENTAL_API /* rte_devargs_reset, the only way to free what parse allocates */

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <rte_dev.h>
#include <rte_ethdev.h>

#include "switch.h"

#define RX_DESC 1024u
#define TX_DESC 1024u

/*
 * net_af_xdp never gives back the buffers of its rings. So each such port has
 * a pool of its own, which goes with the port: its frames are only borrowed
 * for the burst, like those of a vring, and none of its buffers goes anywhere.
 */
#define XDP_DRIVER "net_af_xdp"
#define TAP_DRIVER "net_tap"
#define VHOST_DRIVER "net_vhost"
#define VIRTIO_DRIVERS "net_virtio" /* _pci, _user */
#define XDP_BUFFERS 8191u
#define XDP_SOCKETS 256u /* in the process */
#define XDP_TRIES 40u
#define XDP_PAUSE_US 5000u

struct pmd_dev {
    uint16_t ethdev;
    bool chains;              /* the driver sends chains of buffers */
    bool ip_csum;             /* the device makes the IPv4 header checksums of segments */
    struct rte_mempool *pool; /* of its own, or NULL */
    /* DPDK 22.11's net_af_xdp leaves its sockets open, and with them the interface in use */
    int sockets[FF_MAX_QUEUES];
    unsigned int n_sockets;
    struct {
        unsigned int n;
        struct rte_mbuf *mbufs[FF_BURST];
    } lent[FF_MAX_QUEUES]; /* out of that pool, until rx_done */
    struct ff_waker intr[FF_MAX_QUEUES];
};

static void lend(struct pmd_dev *d, unsigned int queue, struct ff_frame *f, struct rte_mbuf *m) {
    ff_frame_from_mbuf(f, m);
    f->seg = NULL;
    f->n_segs = 0;
    d->lent[queue].mbufs[d->lent[queue].n++] = m;
}

static void pmd_rx_done(struct ff_worker *w, struct ff_port *port, unsigned int queue) {
    struct pmd_dev *d = port->dev;

    (void)w;
    if (d->lent[queue].n > 0)
        rte_pktmbuf_free_bulk(d->lent[queue].mbufs, d->lent[queue].n);
    d->lent[queue].n = 0;
}

static unsigned int pmd_rx(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                           struct ff_frame *frames, unsigned int n) {
    struct pmd_dev *d = port->dev;
    struct rte_mbuf *mbufs[FF_BURST];
    unsigned int got = rte_eth_rx_burst(d->ethdev, (uint16_t)queue, mbufs, (uint16_t)n);

    (void)w;
    for (unsigned int i = 0; i < got; i++)
        if (unlikely(d->pool != NULL))
            lend(d, queue, &frames[i], mbufs[i]);
        else
            ff_frame_from_mbuf(&frames[i], mbufs[i]);
    for (unsigned int i = 0; i < got; i++)
        frames[i].offload.what = ff_frame_verdict(mbufs[i], false);
    return got;
}

/*
 * Leaves the frame's checksum and segmentation to the device. The driver may
 * change the headers (rte_eth_tx_prepare), so they must be this port's alone.
 */
static int request(struct ff_frame *f, bool ip_csum) {
    if (rte_mbuf_refcnt_read(f->buf) > 1) {
        struct rte_mbuf *own = ff_frame_copy(f, ff.pool, UINT32_MAX);

        if (own == NULL)
            return -1;
        ff_frame_free(f);
        f->buf = own;
        f->head = rte_pktmbuf_mtod(own, uint8_t *);
    }
    ff_offload_to_mbuf(f->buf, f, ip_csum);
    return 0;
}

/* Lets the driver adapt the frames to its device. Frees those that it refuses; how many are left.
 */
static unsigned int prepare(const struct pmd_dev *d, unsigned int queue, struct rte_mbuf **mbufs,
                            uint32_t *len, unsigned int n) {
    unsigned int k = 0;

    while (k < n) {
        k += rte_eth_tx_prepare(d->ethdev, (uint16_t)queue, mbufs + k, (uint16_t)(n - k));
        if (k == n)
            break;
        rte_pktmbuf_free(mbufs[k]);
        n--;
        memmove(&mbufs[k], &mbufs[k + 1], (n - k) * sizeof(mbufs[0]));
        memmove(&len[k], &len[k + 1], (n - k) * sizeof(len[0]));
    }
    return n;
}

static struct ff_sent pmd_tx(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                             struct ff_frame *frames, unsigned int n) {
    const struct pmd_dev *d = port->dev;
    struct rte_mbuf *mbufs[FF_BURST];
    struct ff_sent sent = {0};
    uint32_t len[FF_BURST];
    bool requests = false;
    unsigned int k = 0;

    for (unsigned int i = 0; i < n; i++) {
        bool asks = frames[i].offload.what & FF_OFF_CSUM;

        if (unlikely(ff_frame_keep(&frames[i], ff.pool) != 0 ||
                     (asks && request(&frames[i], d->ip_csum) != 0))) {
            ff_drop(w, port->id, FF_DROP_NO_COPY, &frames[i]);
            sent.accounted++;
            continue;
        }
        requests |= asks;
        if (unlikely(frames[i].buf->nb_segs > 1 && !d->chains)) {
            ff_drop(w, port->id, FF_DROP_TX_OVERSIZE, &frames[i]);
            sent.accounted++;
            continue;
        }
        len[k] = frames[i].len;
        mbufs[k++] = frames[i].buf;
    }
    if (unlikely(requests)) {
        n = prepare(d, queue, mbufs, len, k);
        w->port_stats[port->id].drop[FF_DROP_BAD_OFFLOAD] += k - n;
        sent.accounted += k - n;
        k = n;
    }
    sent.packets = rte_eth_tx_burst(d->ethdev, (uint16_t)queue, mbufs, (uint16_t)k);
    for (unsigned int i = 0; i < sent.packets; i++)
        sent.bytes += len[i];
    rte_pktmbuf_free_bulk(mbufs + sent.packets, k - sent.packets);
    return sent;
}

static bool pmd_arm(struct ff_worker *w, struct ff_port *port, unsigned int queue) {
    struct pmd_dev *d = port->dev;

    return ff_waker_watch(w, &d->intr[queue]) &&
           rte_eth_dev_rx_intr_enable(d->ethdev, (uint16_t)queue) == 0;
}

static void pmd_disarm(struct ff_port *port, unsigned int queue) {
    struct pmd_dev *d = port->dev;

    if (d->intr[queue].epoll >= 0)
        (void)rte_eth_dev_rx_intr_disable(d->ethdev, (uint16_t)queue);
}

static void pmd_leave(struct ff_port *port, unsigned int queue) {
    struct pmd_dev *d = port->dev;

    pmd_disarm(port, queue);
    ff_waker_unwatch(&d->intr[queue]);
}

static bool is_xdp_socket(int fd) {
    int domain = 0;
    socklen_t len = sizeof(domain);

    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == AF_XDP;
}

/* The process's XDP sockets; how many. */
static unsigned int xdp_sockets(int *fds, unsigned int max) {
    DIR *dir = opendir("/proc/self/fd");
    unsigned int n = 0;

    if (dir == NULL)
        return 0;
    for (const struct dirent *e = readdir(dir); e != NULL && n < max; e = readdir(dir)) {
        int fd = atoi(e->d_name);

        if (is_xdp_socket(fd))
            fds[n++] = fd;
    }
    closedir(dir);
    return n;
}

/* Notes which sockets came with this device; `before` are those that were there. */
static void xdp_sockets_note(struct pmd_dev *d, const int *before, unsigned int n_before) {
    int now[XDP_SOCKETS];
    unsigned int n = xdp_sockets(now, XDP_SOCKETS);

    d->n_sockets = 0;
    for (unsigned int i = 0; i < n && d->n_sockets < FF_MAX_QUEUES; i++) {
        unsigned int k = 0;

        while (k < n_before && before[k] != now[i])
            k++;
        if (k == n_before)
            d->sockets[d->n_sockets++] = now[i];
    }
}

static void dev_free(struct pmd_dev *d) {
    rte_mempool_free(d->pool);
    free(d);
}

static int pool_make(struct pmd_dev *d, const char *driver) {
    static unsigned int made;
    char name[RTE_MEMPOOL_NAMESIZE];

    if (strcmp(driver, XDP_DRIVER) != 0 || d->pool != NULL)
        return 0;
    snprintf(name, sizeof(name), "ff_xdp_%u", made++);
    d->pool =
        rte_pktmbuf_pool_create(name, XDP_BUFFERS, 0, 0, RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
    return d->pool == NULL ? -ENOMEM : 0;
}

/* What the device is to do with what it receives. */
static uint64_t rx_offloads(const struct rte_eth_dev_info *info) {
    /* frames of any length are chains of buffers, where the driver can */
    uint64_t wanted = RTE_ETH_RX_OFFLOAD_SCATTER;

    /* asked to look at checksums, these hand on frames that have none yet, which need not be looked
     * at */
    if (strncmp(info->driver_name, VIRTIO_DRIVERS, strlen(VIRTIO_DRIVERS)) != 0 &&
        strcmp(info->driver_name, VHOST_DRIVER) != 0)
        wanted |= RTE_ETH_RX_OFFLOAD_TCP_CKSUM | RTE_ETH_RX_OFFLOAD_UDP_CKSUM;
    return info->rx_offload_capa & wanted;
}

/* What is left to the device, of what frames may ask for: its ethdev flags, and port->offloads. */
static uint64_t tx_offloads(struct ff_port *port, const struct rte_eth_dev_info *info) {
    const uint64_t csum = RTE_ETH_TX_OFFLOAD_TCP_CKSUM | RTE_ETH_TX_OFFLOAD_UDP_CKSUM;
    const uint64_t tso = RTE_ETH_TX_OFFLOAD_TCP_TSO | RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
    const uint64_t ip = info->tx_offload_capa & RTE_ETH_TX_OFFLOAD_IPV4_CKSUM;

    /* it does all of this in software itself, and no TCP over IPv6 */
    if (strcmp(info->driver_name, TAP_DRIVER) == 0)
        return 0;
    if ((info->tx_offload_capa & csum) != csum)
        return 0;
    port->offloads |= FF_OFF_CSUM;
    if ((info->tx_offload_capa & tso) != tso)
        return csum;
    port->offloads |= FF_OFF_TSO | FF_OFF_ECN;
    return csum | tso | ip; /* net_virtio has no such flag: whoever makes its segments sees to it */
}

static int queues_setup(struct ff_port *port, struct pmd_dev *d, bool interrupts, char *err) {
    struct rte_eth_dev_info info;
    struct rte_eth_conf conf = {.intr_conf.rxq = interrupts};
    uint16_t rx_desc = RX_DESC, tx_desc = TX_DESC;
    int before[XDP_SOCKETS], rc;
    unsigned int n_before = xdp_sockets(before, XDP_SOCKETS);

    rc = rte_eth_dev_info_get(d->ethdev, &info);
    if (rc != 0) {
        ff_error(err, "%s: the driver does not describe its device", port->name);
        return rc;
    }
    port->rx_queues = RTE_MIN(port->rx_queues, info.max_rx_queues);
    port->tx_queues = (uint16_t)RTE_MIN(RTE_MIN(ff.n_workers, (unsigned int)info.max_tx_queues),
                                        (unsigned int)FF_MAX_QUEUES);
    conf.rxmode.offloads = rx_offloads(&info);
    conf.txmode.offloads =
        (info.tx_offload_capa & RTE_ETH_TX_OFFLOAD_MULTI_SEGS) | tx_offloads(port, &info);
    d->chains = conf.txmode.offloads & RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
    d->ip_csum = conf.txmode.offloads & RTE_ETH_TX_OFFLOAD_IPV4_CKSUM;
    rc = pool_make(d, info.driver_name);
    if (rc == 0)
        rc = rte_eth_dev_configure(d->ethdev, port->rx_queues, port->tx_queues, &conf);
    if (rc != 0 && d->pool == NULL && port->tx_queues != port->rx_queues) {
        port->tx_queues = port->rx_queues; /* net_tap wants as many of each */
        rc = rte_eth_dev_configure(d->ethdev, port->rx_queues, port->tx_queues, &conf);
    }
    port->tx_shared = port->tx_queues < ff.n_workers;
    if (rc == 0)
        rc = rte_eth_dev_adjust_nb_rx_tx_desc(d->ethdev, &rx_desc, &tx_desc);
    for (uint16_t q = 0; q < port->rx_queues && rc == 0; q++)
        rc = rte_eth_rx_queue_setup(d->ethdev, q, rx_desc, SOCKET_ID_ANY, NULL,
                                    d->pool != NULL ? d->pool : ff.pool);
    if (d->pool != NULL)
        xdp_sockets_note(d, before, n_before);
    for (uint16_t q = 0; q < port->tx_queues && rc == 0; q++)
        rc = rte_eth_tx_queue_setup(d->ethdev, q, tx_desc, SOCKET_ID_ANY, NULL);
    if (rc != 0)
        ff_error(err, "%s: cannot set up %u receive and %u transmit queues: %s", port->name,
                 port->rx_queues, port->tx_queues, strerror(-rc));
    return rc;
}

/* Notes which queues have a receive interrupt; the others have to be looked at. */
static void interrupts_note(const struct ff_port *port, struct pmd_dev *d) {
    for (uint16_t q = 0; q < FF_MAX_QUEUES; q++)
        d->intr[q] = FF_NO_WAKER;
    for (uint16_t q = 0; q < port->rx_queues; q++) {
        /* first: without it, asking for the descriptor is an error to DPDK */
        if (rte_eth_dev_rx_intr_enable(d->ethdev, q) != 0)
            continue;
        d->intr[q].fd = rte_eth_dev_rx_intr_ctl_q_get_fd(d->ethdev, q);
        (void)rte_eth_dev_rx_intr_disable(d->ethdev, q);
    }
}

static int device_try(struct ff_port *port, struct pmd_dev *d, uint32_t mtu, bool interrupts,
                      char *err) {
    int rc = queues_setup(port, d, interrupts, err);

    if (rc != 0)
        return rc;
    rc = rte_eth_dev_set_mtu(d->ethdev, (uint16_t)RTE_MIN(mtu, (uint32_t)UINT16_MAX));
    if (rc != 0 && rc != -ENOTSUP && mtu > RTE_ETHER_MTU) {
        ff_error(err, "%s: the driver refuses an MTU of %u: %s", port->name, mtu, strerror(-rc));
        return rc;
    }
    rc = rte_eth_dev_start(d->ethdev);
    if (rc != 0) {
        ff_error(err, "%s: the device does not start: %s", port->name, strerror(-rc));
        return rc;
    }
    /* a bridge receives what is for others; drivers without filters refuse, and need not */
    (void)rte_eth_promiscuous_enable(d->ethdev);
    interrupts_note(port, d);
    return 0;
}

static int device_start(struct ff_port *port, struct pmd_dev *d, uint32_t mtu, char *err) {
    /* drivers without receive interrupts ignore the wish, or refuse to start with it */
    int rc = device_try(port, d, mtu, true, err);

    return rc == 0 || d->pool != NULL ? rc : device_try(port, d, mtu, false, err);
}

static void device_remove(const struct pmd_dev *d) {
    struct rte_eth_dev_info info;

    (void)rte_eth_dev_stop(d->ethdev);
    if (rte_eth_dev_info_get(d->ethdev, &info) != 0)
        return;
    (void)rte_eth_dev_close(d->ethdev);
    (void)rte_dev_remove(info.device);
    for (unsigned int i = 0; i < d->n_sockets; i++)
        if (is_xdp_socket(d->sockets[i])) /* the driver forgot it: see struct pmd_dev */
            close(d->sockets[i]);
}

/* Probes the device; its ethdev number, or a negative errno. */
static int device_probe(const struct ff_port *port, const char *devargs, char *err) {
    struct rte_devargs da = {0};
    uint16_t ethdev;
    int rc;

    if (rte_devargs_parse(&da, devargs) != 0) {
        ff_error(err, "%s: no driver takes \"%s\"", port->name, devargs);
        return -EINVAL;
    }
    if (rte_eth_dev_get_port_by_name(da.name, &ethdev) == 0) {
        snprintf(err, FF_ERR_LEN, "%s: the device %s is in use by another port", port->name,
                 da.name);
        rte_devargs_reset(&da);
        return -EBUSY;
    }
    rc = rte_dev_probe(devargs);
    if (rc == 0 && rte_eth_dev_get_port_by_name(da.name, &ethdev) != 0)
        rc = -ENODEV;
    if (rc != 0)
        ff_error(err, "%s: cannot start \"%s\"", port->name, devargs);
    rte_devargs_reset(&da);
    return rc != 0 ? (rc < 0 ? rc : -EIO) : ethdev;
}

/* Probes and starts the device; -errno with the device gone again. */
static int device_open(struct ff_port *port, const struct ff_port_conf *conf, char *err) {
    struct pmd_dev *d = calloc(1, sizeof(*d));
    int rc;

    if (d == NULL)
        return -ENOMEM;
    rc = device_probe(port, conf->devargs, err);
    if (rc < 0) {
        free(d);
        return rc;
    }
    d->ethdev = (uint16_t)rc;
    port->dev = d;
    rc = device_start(port, d, conf->mtu, err);
    if (rc == 0)
        return 0;
    if (d->pool != NULL)
        rc = -EAGAIN;
    device_remove(d);
    dev_free(d);
    port->dev = NULL;
    return rc;
}

static int pmd_open(struct ff_port *port, const struct ff_port_conf *conf, char *err) {
    int rc = device_open(port, conf, err);

    /*
     * The kernel lets go of an XDP socket's queue some time after its close, in
     * a work queue: an interface that was in use a moment ago needs patience.
     */
    for (unsigned int i = 0; rc == -EAGAIN && i < XDP_TRIES; i++) {
        usleep(XDP_PAUSE_US);
        rc = device_open(port, conf, err);
    }
    if (rc != 0)
        return rc;
    atomic_store_explicit(&port->ready, true, memory_order_release);
    ff_port_state(port, FF_PORT_READY, "%u receive queue%s", port->rx_queues,
                  port->rx_queues == 1 ? "" : "s");
    return 0;
}

static void pmd_close(struct ff_port *port) {
    struct pmd_dev *d = port->dev;

    atomic_store(&port->ready, false);
    ff_synchronize();
    for (uint16_t q = 0; q < FF_MAX_QUEUES; q++)
        ff_waker_unwatch(&d->intr[q]);
    device_remove(d);
    dev_free(d);
}

static void pmd_info(struct ff_port *port, struct ff_port_info *info) {
    const struct pmd_dev *d = port->dev;
    struct rte_eth_dev_info dev;
    struct rte_ether_addr mac;
    struct rte_eth_link link;

    if (rte_eth_dev_info_get(d->ethdev, &dev) == 0)
        snprintf(info->driver, sizeof(info->driver), "%s", dev.driver_name);
    if (rte_eth_macaddr_get(d->ethdev, &mac) == 0)
        memcpy(info->mac, mac.addr_bytes, sizeof(info->mac));
    if (rte_eth_link_get_nowait(d->ethdev, &link) == 0 && link.link_status == RTE_ETH_LINK_DOWN)
        snprintf(info->reason, sizeof(info->reason), "the link is down");
}

const struct ff_port_ops ff_port_pmd_ops = {
    .open = pmd_open,
    .close = pmd_close,
    .rx = pmd_rx,
    .rx_done = pmd_rx_done,
    .tx = pmd_tx,
    .arm = pmd_arm,
    .disarm = pmd_disarm,
    .leave = pmd_leave,
    .info = pmd_info,
};
