/* SPDX-License-Identifier: Apache-2.0 */
/* Ports: added and removed at run time. */
#include <errno.h>
#include <stdlib.h>

#include "switch.h"

static const struct ff_port_ops *ops_of(int type) {
    switch (type) {
    case FF_PORT_VHOST_USER:
        return &ff_port_vhost_ops;
    case FF_PORT_PMD:
        return &ff_port_pmd_ops;
    case FF_PORT_PACKET:
        return &ff_port_packet_ops;
    case FF_PORT_VXLAN:
        return &ff_port_vxlan_ops;
    case FF_PORT_FF:
        return &ff_port_ff_ops;
    case FF_PORT_RDMA:
        return &ff_port_rdma_ops;
    default:
        return NULL;
    }
}

/* ---- statistics ---- */

/* The counts of a port that is gone move to index 0, so that the sums still balance. */
static void stats_retire(uint16_t id) {
    for (unsigned int w = 0; w < ff.n_workers; w++) {
        uint64_t *gone = (uint64_t *)(void *)&ff.workers[w]->port_stats[FF_PORT_NONE];
        uint64_t *s = (uint64_t *)(void *)&ff.workers[w]->port_stats[id];

        for (size_t i = 0; i < sizeof(struct ff_port_stats) / sizeof(*s); i++) {
            gone[i] += s[i];
            s[i] = 0;
        }
    }
}

/* ---- any thread but a worker's ---- */

void ff_port_set_tx_queues(struct ff_port *port, uint16_t n) {
    if (n == port->tx_queues)
        return;
    port->tx_shared = true; /* while workers may differ about the number */
    ff_synchronize();
    port->tx_queues = n;
    ff_synchronize();
    port->tx_shared = n < ff.n_workers;
}

/* ---- the control thread's calls ---- */

static void port_undo(struct ff_port *port) {
    ff_poll_remove(port);
    atomic_store(&ff.ports[port->id], NULL);
    ff_synchronize();
    ff_upcall_purge(port->id);
    ff_uplink_clear(port);
    port->ops->close(port);
    ff_synchronize();
    ff_event_forget(port->id);
    stats_retire(port->id);
    free(port);
    ff_reclaim();
}

int ff_port_add(const struct ff_port_conf *conf, uint16_t *port_id, char *err) {
    struct ff_port *port;
    uint16_t id = 1;
    int rc;

    err[0] = '\0';
    ff_error_clear();
    while (id < FF_MAX_PORTS && ff_port(id) != NULL)
        id++;
    if (id == FF_MAX_PORTS || ops_of(conf->type) == NULL || conf->queues == 0 ||
        conf->queues > FF_MAX_QUEUES) {
        ff_error(err, "%s: %s", conf->name,
                 id == FF_MAX_PORTS ? "the switch has as many ports as it can" : "bad port");
        return id == FF_MAX_PORTS ? -ENOSPC : -EINVAL;
    }
    port = aligned_alloc(64, RTE_ALIGN(sizeof(*port), 64));
    if (port == NULL)
        return -ENOMEM;
    *port = (struct ff_port){
        .id = id,
        .ops = ops_of(conf->type),
        .rx_queues = conf->queues,
        .max_frame = conf->mtu + FF_FRAME_OVERHEAD,
        .parked_max = ff.parked_max,
        .offloads = FF_OFF_FREE,
    };
    snprintf(port->name, sizeof(port->name), "%s", conf->name);
    /* before open: librte_vhost's threads may look it up as soon as it is open */
    atomic_store(&ff.ports[id], port);
    rc = port->ops->open(port, conf, err);
    if (rc != 0) {
        atomic_store(&ff.ports[id], NULL);
        ff_synchronize();
        ff_event_forget(id);
        free(port);
        return rc;
    }
    rc = ff_poll_add(port);
    if (rc != 0) {
        port_undo(port);
        return rc;
    }
    ff_reclaim();
    *port_id = id;
    return 0;
}

int ff_port_del(uint16_t port_id, char *err) {
    struct ff_port *port = ff_port(port_id);

    if (port == NULL) {
        snprintf(err, FF_ERR_LEN, "no port has number %u", port_id);
        return -ENOENT;
    }
    port_undo(port);
    return 0;
}

int ff_port_set_mtu(uint16_t port_id, uint32_t mtu) {
    struct ff_port *port = ff_port(port_id);

    if (port == NULL)
        return -ENOENT;
    port->max_frame = mtu + FF_FRAME_OVERHEAD;
    return 0;
}

int ff_port_set_parked_max(uint16_t port_id, uint32_t n) {
    struct ff_port *port = ff_port(port_id);

    if (port == NULL)
        return -ENOENT;
    port->parked_max = n;
    return 0;
}
