/* SPDX-License-Identifier: Apache-2.0 */
/* What may be wedged, for the slow path to judge. */
#include "switch.h"

int ff_worker_asleep(unsigned int worker) {
    /* a sleeping worker reads nothing that RCU protects, and says so */
    return worker < ff.n_workers && __atomic_load_n(&ff.rcu->qsbr_cnt[worker].cnt,
                                                    __ATOMIC_RELAXED) == __RTE_QSBR_CNT_THR_OFFLINE;
}

static bool look(struct ff_port *port, uint16_t queue, uint32_t unstarted, struct ff_suspect *s) {
    *s = (struct ff_suspect){
        .port_id = port->id,
        .queue = queue,
        .receive_unstarted = unstarted >> 2 * queue & 1,
        .transmit_unstarted = unstarted >> (2 * queue + 1) & 1,
    };
    for (unsigned int w = 0; w < ff.n_workers; w++) {
        const struct ff_queue_stats *q = &ff.workers[w]->port_stats[port->id].queue[queue];

        s->accepted += q->tx_packets;
        s->refused += q->tx_full;
    }
    return s->refused > 0 || s->receive_unstarted || s->transmit_unstarted;
}

int ff_suspects(struct ff_suspect *suspects, int n) {
    int found = 0;

    for (uint16_t id = 1; id < FF_MAX_PORTS; id++) {
        struct ff_port *port = ff_port(id);
        uint32_t unstarted;

        if (port == NULL || !ff_port_ready(port))
            continue;
        unstarted = port->ops->unstarted != NULL ? port->ops->unstarted(port) : 0;
        for (uint16_t queue = 0; queue < port->rx_queues && found < n; queue++)
            found += look(port, queue, unstarted, &suspects[found]);
    }
    return found;
}
