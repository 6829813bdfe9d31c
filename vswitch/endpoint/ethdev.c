/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an application may ask of the device.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "control.h"

static int configure(struct rte_eth_dev *eth) {
    struct ff_dev *dev = eth->data->dev_private;

    dev->n_rx = eth->data->nb_rx_queues;
    dev->n_tx = eth->data->nb_tx_queues;
    return 0;
}

static int info(struct rte_eth_dev *eth, struct rte_eth_dev_info *info) {
    const struct ff_dev *dev = eth->data->dev_private;
    const struct rte_eth_desc_lim limits = {
        .nb_max = FF_SHM_RING_MAX, .nb_min = FF_SHM_RING_MIN, .nb_align = 1};
    const struct rte_eth_dev_portconf usual = {
        .burst_size = 32, .ring_size = FF_RING_SIZE, .nb_queues = 1};

    info->max_rx_queues = dev->max_queues;
    info->max_tx_queues = dev->max_queues;
    info->max_mac_addrs = 1;
    info->min_mtu = RTE_ETHER_MIN_MTU;
    info->max_mtu = dev->max_mtu;
    info->min_rx_bufsize = 64;
    info->max_rx_pktlen = dev->max_mtu + RTE_ETHER_HDR_LEN + RTE_ETHER_CRC_LEN;
    info->rx_offload_capa = RTE_ETH_RX_OFFLOAD_SCATTER;
    info->tx_offload_capa = RTE_ETH_TX_OFFLOAD_MULTI_SEGS | RTE_ETH_TX_OFFLOAD_MBUF_FAST_FREE;
    info->rx_desc_lim = limits;
    info->tx_desc_lim = limits;
    info->default_rxportconf = usual;
    info->default_txportconf = usual;
    return 0;
}

/* ---- queues --------------------------------------------------------------------------- */

/* Not in packet memory, which neighbours may write to. */
static void *alloc_queue(size_t size) {
    void *q = aligned_alloc(RTE_CACHE_LINE_SIZE, RTE_ALIGN_CEIL(size, RTE_CACHE_LINE_SIZE));

    if (q != NULL)
        memset(q, 0, size);
    return q;
}

static void release_rxq(struct rte_eth_dev *eth, uint16_t id) {
    struct ff_dev *dev = eth->data->dev_private;

    free(dev->rxq[id]);
    dev->rxq[id] = NULL;
    eth->data->rx_queues[id] = NULL;
}

static void release_txq(struct rte_eth_dev *eth, uint16_t id) {
    struct ff_dev *dev = eth->data->dev_private;

    free(dev->txq[id]);
    dev->txq[id] = NULL;
    eth->data->tx_queues[id] = NULL;
}

static int setup_rxq(struct rte_eth_dev *eth, uint16_t id, uint16_t n_desc, unsigned int socket,
                     const struct rte_eth_rxconf *conf, struct rte_mempool *mp) {
    struct ff_dev *dev = eth->data->dev_private;
    struct ff_rxq *q = alloc_queue(sizeof(*q));

    (void)socket;
    (void)conf;
    if (q == NULL)
        return -ENOMEM;
    q->id = id;
    q->port_id = eth->data->port_id;
    q->n_desc = n_desc;
    q->mp = mp;
    q->dev = dev;
    dev->rxq[id] = q;
    eth->data->rx_queues[id] = q;
    return 0;
}

static int setup_txq(struct rte_eth_dev *eth, uint16_t id, uint16_t n_desc, unsigned int socket,
                     const struct rte_eth_txconf *conf) {
    struct ff_dev *dev = eth->data->dev_private;
    struct ff_txq *q = alloc_queue(sizeof(*q));

    (void)socket;
    (void)conf;
    if (q == NULL)
        return -ENOMEM;
    q->id = id;
    q->n_desc = n_desc;
    q->kick_fd = -1;
    q->dev = dev;
    dev->txq[id] = q;
    eth->data->tx_queues[id] = q;
    return 0;
}

/* ---- start, stop, close ------------------------------------------------------------------ */

/* Buffers of the driver's own: in them goes what cannot be lent, and they are posted for pools
 * that others cannot see. */
static int make_copies(struct ff_dev *dev) {
    uint32_t wanted = dev->ring_size * (dev->n_rx + dev->n_tx) - 1;
    char name[RTE_MEMPOOL_NAMESIZE];

    if (dev->copies != NULL && dev->copies->size >= wanted)
        return 0;
    rte_mempool_free(dev->copies);
    snprintf(name, sizeof(name), "net_ff_%u", dev->eth->data->port_id);
    dev->copies = rte_pktmbuf_pool_create(name, wanted, RTE_MIN(wanted / 2, 256u), 0,
                                          RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
    if (dev->copies == NULL) {
        FF_LOG(ERR, dev, "no memory for %u mbufs of the driver's own: give the application more",
               wanted);
        return -ENOMEM;
    }
    return 0;
}

/* Applications look there for which queues they may poll. */
static void show_state(struct rte_eth_dev *eth, uint8_t state) {
    memset(eth->data->rx_queue_state, state, eth->data->nb_rx_queues);
    memset(eth->data->tx_queue_state, state, eth->data->nb_tx_queues);
}

static int start(struct rte_eth_dev *eth) {
    struct ff_dev *dev = eth->data->dev_private;
    uint32_t size = FF_SHM_RING_MIN;
    int rc;

    for (uint16_t i = 0; i < dev->n_rx; i++)
        size = RTE_MAX(size, dev->rxq[i]->n_desc);
    for (uint16_t i = 0; i < dev->n_tx; i++)
        size = RTE_MAX(size, dev->txq[i]->n_desc);
    dev->ring_size = RTE_MIN(rte_align32pow2(size), (uint32_t)FF_SHM_RING_MAX);
    rc = make_copies(dev);
    if (rc != 0)
        return rc;
    rc = ff_control_run(dev);
    if (rc != 0)
        FF_LOG(ERR, dev, "the switch does not start port %s: %s", dev->port, dev->error);
    else
        show_state(eth, RTE_ETH_QUEUE_STATE_STARTED);
    return rc;
}

static int stop(struct rte_eth_dev *eth) {
    ff_control_stop(eth->data->dev_private);
    show_state(eth, RTE_ETH_QUEUE_STATE_STOPPED);
    return 0;
}

/* Frees what neither a queue nor an mbuf of the application needs any more. */
void ff_dev_free(struct ff_dev *dev) {
    close(dev->wake_fd);
    pthread_cond_destroy(&dev->changed);
    pthread_mutex_destroy(&dev->lock);
    free(dev->region);
    free(dev);
}

static int close_dev(struct rte_eth_dev *eth) {
    struct ff_dev *dev = eth->data->dev_private;

    if (rte_eal_process_type() != RTE_PROC_PRIMARY)
        return 0;
    ff_control_quit(dev);
    for (uint16_t i = 0; i < FF_SHM_QUEUES; i++) {
        if (dev->rxq[i] != NULL)
            release_rxq(eth, i);
        if (dev->txq[i] != NULL)
            release_txq(eth, i);
    }
    rte_mempool_free(dev->copies);
    dev->copies = NULL;
    /* neither is EAL's to free */
    eth->data->mac_addrs = NULL;
    eth->data->dev_private = NULL;
    ff_control_end(dev);
    return 0;
}

/* ---- settings ----------------------------------------------------------------------------- */

static int set_mac(struct rte_eth_dev *eth, struct rte_ether_addr *addr) {
    struct ff_dev *dev = eth->data->dev_private;

    rte_ether_addr_copy(addr, &dev->mac);
    return 0;
}

/* The switch sends what a container asked for, and everything that is flooded. */
static int accept_mode(struct rte_eth_dev *eth) {
    (void)eth;
    return 0;
}

/* Within dev_info's limits, which ethdev has checked; buffers are chained as needed. */
static int set_mtu(struct rte_eth_dev *eth, uint16_t mtu) {
    (void)eth;
    (void)mtu;
    return 0;
}

/* The control thread sets it. */
static int update_link(struct rte_eth_dev *eth, int wait) {
    (void)eth;
    (void)wait;
    return 0;
}

const struct eth_dev_ops ff_eth_ops = {
    .dev_configure = configure,
    .dev_infos_get = info,
    .dev_start = start,
    .dev_stop = stop,
    .dev_close = close_dev,
    .rx_queue_setup = setup_rxq,
    .tx_queue_setup = setup_txq,
    .rx_queue_release = release_rxq,
    .tx_queue_release = release_txq,
    .mac_addr_set = set_mac,
    .promiscuous_enable = accept_mode,
    .promiscuous_disable = accept_mode,
    .allmulticast_enable = accept_mode,
    .allmulticast_disable = accept_mode,
    .mtu_set = set_mtu,
    .link_update = update_link,
    .stats_get = ff_stats_get,
    .stats_reset = ff_stats_reset,
    .xstats_get = ff_xstats_get,
    .xstats_get_names = ff_xstats_names,
    .xstats_reset = ff_stats_reset,
};
