/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counters of a device: sums over its queues, which count each for itself.
 */
#include <stdio.h>
#include <string.h>

#include "net_ff.h"

/* in the order of the table below */
struct counter {
    const char *name;
    bool rx;
    size_t offset; /* in the queue's statistics */
};
#define RX(name, field)                                                                            \
    { name, true, offsetof(struct ff_rx_stats, field) }
#define TX(name, field)                                                                            \
    { name, false, offsetof(struct ff_tx_stats, field) }

static const struct counter counters[] = {
    RX("rx_switched_packets", switched),
    RX("rx_switched_bytes", switched_bytes),
    RX("rx_shortcut_packets", lent),
    RX("rx_shortcut_bytes", lent_bytes),
    RX("rx_copies", copies),
    RX("rx_invalid_descriptors", invalid),
    RX("rx_no_mbuf", no_mbuf),
    TX("tx_switched_packets", switched),
    TX("tx_switched_bytes", switched_bytes),
    TX("tx_shortcut_packets", lent),
    TX("tx_shortcut_bytes", lent_bytes),
    TX("tx_copies", copies),
    TX("tx_copied_bytes", copied_bytes),
    TX("tx_ring_full", full),
    TX("tx_dropped", dropped),
};

static uint64_t read_counter(const struct ff_dev *dev, const struct counter *c) {
    uint64_t sum = 0;

    for (unsigned int i = 0; i < FF_SHM_QUEUES; i++) {
        const uint8_t *stats = NULL;

        if (c->rx && dev->rxq[i] != NULL)
            stats = (const uint8_t *)&dev->rxq[i]->stats;
        if (!c->rx && dev->txq[i] != NULL)
            stats = (const uint8_t *)&dev->txq[i]->stats;
        if (stats != NULL)
            sum += *(const uint64_t *)(const void *)(stats + c->offset);
    }
    return sum;
}

int ff_xstats_names(struct rte_eth_dev *eth, struct rte_eth_xstat_name *names, unsigned int n) {
    (void)eth;
    for (unsigned int i = 0; names != NULL && i < RTE_DIM(counters) && i < n; i++)
        snprintf(names[i].name, sizeof(names[i].name), "%s", counters[i].name);
    return RTE_DIM(counters);
}

int ff_xstats_get(struct rte_eth_dev *eth, struct rte_eth_xstat *xstats, unsigned int n) {
    for (unsigned int i = 0; xstats != NULL && i < RTE_DIM(counters) && i < n; i++) {
        xstats[i].id = i;
        xstats[i].value = read_counter(eth->data->dev_private, &counters[i]);
    }
    return RTE_DIM(counters);
}

int ff_stats_get(struct rte_eth_dev *eth, struct rte_eth_stats *stats) {
    const struct ff_dev *dev = eth->data->dev_private;

    for (unsigned int i = 0; i < FF_SHM_QUEUES; i++) {
        if (dev->rxq[i] != NULL) {
            const struct ff_rx_stats *s = &dev->rxq[i]->stats;

            stats->q_ipackets[i] = s->switched + s->lent;
            stats->q_ibytes[i] = s->switched_bytes + s->lent_bytes;
            stats->ipackets += stats->q_ipackets[i];
            stats->ibytes += stats->q_ibytes[i];
            stats->ierrors += s->invalid;
            stats->rx_nombuf += s->no_mbuf;
        }
        if (dev->txq[i] != NULL) {
            const struct ff_tx_stats *s = &dev->txq[i]->stats;

            stats->q_opackets[i] = s->switched + s->lent;
            stats->q_obytes[i] = s->switched_bytes + s->lent_bytes;
            stats->opackets += stats->q_opackets[i];
            stats->obytes += stats->q_obytes[i];
            stats->oerrors += s->dropped;
        }
    }
    return 0;
}

int ff_stats_reset(struct rte_eth_dev *eth) {
    struct ff_dev *dev = eth->data->dev_private;

    for (unsigned int i = 0; i < FF_SHM_QUEUES; i++) {
        if (dev->rxq[i] != NULL)
            memset(&dev->rxq[i]->stats, 0, sizeof(dev->rxq[i]->stats));
        if (dev->txq[i] != NULL)
            memset(&dev->txq[i]->stats, 0, sizeof(dev->txq[i]->stats));
    }
    return 0;
}
static_assert(RTE_ETHDEV_QUEUE_STAT_CNTRS >= FF_SHM_QUEUES, "q_ipackets");
