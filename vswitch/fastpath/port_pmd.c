/* SPDX-License-Identifier: Apache-2.0 */
/* Ports on any DPDK poll mode driver, probed at run time from devargs. */
#define ALLOW_EXPERIMENTAL_API /* rte_devargs_reset, the only way to free what parse allocates */

#include <errno.h>
#include <stdlib.h>

#include <rte_dev.h>
#include <rte_ethdev.h>

#include "switch.h"

#define RX_DESC 1024u
#define TX_DESC 1024u

struct pmd_dev {
    uint16_t ethdev;
};

static unsigned int pmd_rx(struct ff_port *port, unsigned int queue, struct ff_frame *frames,
                           unsigned int n) {
    const struct pmd_dev *d = port->dev;
    struct rte_mbuf *mbufs[FF_BURST];
    unsigned int got = rte_eth_rx_burst(d->ethdev, (uint16_t)queue, mbufs, (uint16_t)n);

    for (unsigned int i = 0; i < got; i++)
        ff_frame_from_mbuf(&frames[i], mbufs[i]);
    return got;
}

static unsigned int pmd_tx(struct ff_port *port, unsigned int queue, struct ff_frame *frames,
                           unsigned int n) {
    const struct pmd_dev *d = port->dev;
    struct rte_mbuf *mbufs[FF_BURST];
    unsigned int sent;

    for (unsigned int i = 0; i < n; i++)
        mbufs[i] = frames[i].buf;
    sent = rte_eth_tx_burst(d->ethdev, (uint16_t)queue, mbufs, (uint16_t)n);
    rte_pktmbuf_free_bulk(mbufs + sent, n - sent);
    return sent;
}

static int queues_setup(struct ff_port *port, const struct pmd_dev *d, char *err) {
    struct rte_eth_dev_info info;
    struct rte_eth_conf conf = {0};
    uint16_t rx_desc = RX_DESC, tx_desc = TX_DESC;
    int rc;

    rc = rte_eth_dev_info_get(d->ethdev, &info);
    if (rc != 0) {
        ff_error(err, "%s: the driver does not describe its device", port->name);
        return rc;
    }
    port->rx_queues = RTE_MIN(port->rx_queues, info.max_rx_queues);
    port->tx_queues = (uint16_t)RTE_MIN(RTE_MIN(ff.n_workers, (unsigned int)info.max_tx_queues),
                                        (unsigned int)FF_MAX_QUEUES);
    port->tx_shared = port->tx_queues < ff.n_workers;
    /* frames of any length are chains of buffers, where the driver can */
    conf.rxmode.offloads = info.rx_offload_capa & RTE_ETH_RX_OFFLOAD_SCATTER;
    conf.txmode.offloads = info.tx_offload_capa & RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
    rc = rte_eth_dev_configure(d->ethdev, port->rx_queues, port->tx_queues, &conf);
    if (rc == 0)
        rc = rte_eth_dev_adjust_nb_rx_tx_desc(d->ethdev, &rx_desc, &tx_desc);
    for (uint16_t q = 0; q < port->rx_queues && rc == 0; q++)
        rc = rte_eth_rx_queue_setup(d->ethdev, q, rx_desc, SOCKET_ID_ANY, NULL, ff.pool);
    for (uint16_t q = 0; q < port->tx_queues && rc == 0; q++)
        rc = rte_eth_tx_queue_setup(d->ethdev, q, tx_desc, SOCKET_ID_ANY, NULL);
    if (rc != 0)
        ff_error(err, "%s: cannot set up %u receive and %u transmit queues: %s", port->name,
                 port->rx_queues, port->tx_queues, strerror(-rc));
    return rc;
}

static int device_start(struct ff_port *port, const struct pmd_dev *d, uint32_t mtu, char *err) {
    int rc = queues_setup(port, d, err);

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
    return 0;
}

static void device_remove(const struct pmd_dev *d) {
    struct rte_eth_dev_info info;

    (void)rte_eth_dev_stop(d->ethdev);
    if (rte_eth_dev_info_get(d->ethdev, &info) != 0)
        return;
    (void)rte_eth_dev_close(d->ethdev);
    (void)rte_dev_remove(info.device);
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

static int pmd_open(struct ff_port *port, const struct ff_port_conf *conf, char *err) {
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
    if (rc != 0) {
        device_remove(d);
        free(d);
        return rc;
    }
    atomic_store_explicit(&port->ready, true, memory_order_release);
    ff_port_state(port, FF_PORT_READY, "%u receive queue%s", port->rx_queues,
                  port->rx_queues == 1 ? "" : "s");
    return 0;
}

static void pmd_close(struct ff_port *port) {
    struct pmd_dev *d = port->dev;

    atomic_store(&port->ready, false);
    ff_synchronize();
    device_remove(d);
    free(d);
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
    .tx = pmd_tx,
    .info = pmd_info,
};
