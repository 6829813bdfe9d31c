/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which worker polls which queue.
 *
 * A queue moves in three steps. The control thread takes it off the old
 * worker's list and puts it on the new one's, where a gate keeps it from being
 * polled. A command tells the old worker, which sees the new list before it
 * sees the command, and so has passed on all that it ever took from the queue,
 * save what is parked. When nothing of the queue is parked there any more, it
 * opens the gate. The gate counts, as a queue may move again before that.
 */
#include <errno.h>
#include <stdlib.h>

#include "switch.h"

/* A copy of a worker's list without `gone` (queue ANY: all of it), with room for one more. */
#define ANY FF_MAX_QUEUES
static struct ff_poll_list *list_copy(const struct ff_worker *w, const struct ff_port *gone,
                                      unsigned int queue) {
    const struct ff_poll_list *old = atomic_load(&w->poll);
    struct ff_poll_list *list;

    list = calloc(1, sizeof(*list) + (old->n + 1) * sizeof(list->entry[0]));
    for (uint32_t i = 0; list != NULL && i < old->n; i++) {
        const struct ff_poll_entry *e = &old->entry[i];

        if (e->port == gone && (queue == ANY || queue == e->queue))
            continue;
        list->entry[list->n++] =
            (struct ff_poll_entry){.port = e->port, .queue = e->queue, .gated = true};
    }
    return list;
}

static void list_publish(struct ff_worker *w, struct ff_poll_list *list) {
    struct ff_poll_list *old = atomic_load(&w->poll);

    atomic_store_explicit(&w->poll, list, memory_order_release);
    ff_wake(w);
    ff_retire(old);
}

static void list_append(struct ff_poll_list *list, struct ff_port *port, unsigned int queue,
                        const struct ff_worker *w) {
    list->entry[list->n++] =
        (struct ff_poll_entry){.port = port, .queue = (uint16_t)queue, .gated = true};
    atomic_store(&port->polled_by[queue], (uint8_t)w->index);
}

static struct ff_worker *fewest_queues(void) {
    struct ff_worker *best = ff.workers[0];

    for (unsigned int i = 1; i < ff.n_workers; i++)
        if (atomic_load(&ff.workers[i]->poll)->n < atomic_load(&best->poll)->n)
            best = ff.workers[i];
    return best;
}

int ff_poll_add(struct ff_port *port) {
    for (unsigned int q = 0; q < port->rx_queues; q++) {
        struct ff_worker *w = port->bound ? ff.workers[q] : fewest_queues();
        struct ff_poll_list *list = list_copy(w, NULL, ANY);

        if (list == NULL)
            return -ENOMEM;
        list_append(list, port, q, w);
        list_publish(w, list);
    }
    return 0;
}

static bool polls(const struct ff_worker *w, const struct ff_port *port) {
    const struct ff_poll_list *list = atomic_load(&w->poll);

    for (uint32_t i = 0; i < list->n; i++)
        if (list->entry[i].port == port)
            return true;
    return false;
}

void ff_poll_remove(const struct ff_port *port) {
    for (unsigned int i = 0; i < ff.n_workers; i++) {
        struct ff_worker *w = ff.workers[i];
        struct ff_poll_list *list;

        if (!polls(w, port))
            continue;
        /* a worker must not keep a port that is about to go */
        while ((list = list_copy(w, port, ANY)) == NULL)
            ff_synchronize();
        list_publish(w, list);
    }
}

int ff_rxq_move(uint16_t port_id, uint16_t queue, uint16_t worker) {
    struct ff_port *port = ff_port(port_id);
    struct ff_poll_list *without, *with;
    struct ff_worker *from, *to;
    struct ff_command *cmd;

    if (port == NULL || queue >= port->rx_queues)
        return -ENOENT;
    if (worker >= ff.n_workers)
        return -EINVAL;
    if (port->bound)
        return -EPERM;
    from = ff.workers[atomic_load(&port->polled_by[queue])];
    to = ff.workers[worker];
    if (from == to)
        return 0;
    without = list_copy(from, port, queue);
    with = list_copy(to, NULL, ANY);
    cmd = calloc(1, sizeof(*cmd));
    if (without == NULL || with == NULL || cmd == NULL) {
        free(without);
        free(with);
        free(cmd);
        return -ENOMEM;
    }
    atomic_fetch_add(&port->held[queue], 1);
    list_append(with, port, queue, to);
    list_publish(from, without);
    list_publish(to, with);
    *cmd = (struct ff_command){.type = FF_CMD_LEAVE, .port = port_id, .queue = queue};
    ff_command_issue(from, cmd);
    ff_reclaim();
    return 0;
}

int ff_rxq_list(struct ff_rxq *rxqs, int n) {
    int found = 0;

    for (uint16_t id = 1; id < FF_MAX_PORTS; id++) {
        const struct ff_port *port = ff_port(id);

        for (uint16_t q = 0; port != NULL && q < port->rx_queues; q++, found++) {
            if (found >= n)
                continue;
            rxqs[found] = (struct ff_rxq){.port_id = id,
                                          .queue = q,
                                          .worker = atomic_load(&port->polled_by[q]),
                                          .bound = port->bound};
            for (unsigned int i = 0; i < ff.n_workers; i++) {
                const struct ff_queue_stats *s = &ff.workers[i]->port_stats[id].queue[q];

                rxqs[found].packets += s->rx_packets;
                rxqs[found].cycles += s->rx_cycles;
            }
        }
    }
    return found;
}

/* ---- worker ---- */

void ff_poll_leave(struct ff_worker *w, struct ff_command *cmd) {
    struct ff_port *port = ff_port(cmd->port);

    if (port != NULL)
        port->ops->leave(port, cmd->queue);
    cmd->leaving = w->leaving;
    w->leaving = cmd;
}

bool ff_poll_holds(const struct ff_worker *w, struct ff_port *port, unsigned int queue) {
    if (w->parked_in[port->id][queue] > 0)
        return true;
    if (atomic_load(&port->uplink) == NULL && port->ops->input == NULL)
        return false;
    for (uint16_t id = 1; id < FF_MAX_PORTS; id++) {
        const struct ff_port *other = ff_port(id);

        if (other != NULL && other->ops == &ff_port_vxlan_ops && w->parked_in[id][queue] > 0)
            return true;
    }
    return false;
}

void ff_poll_release(struct ff_worker *w) {
    struct ff_command **at = &w->leaving, *cmd;

    while ((cmd = *at) != NULL) {
        struct ff_port *port = ff_port(cmd->port);

        if (port != NULL && (w->holding != NULL || ff_poll_holds(w, port, cmd->queue))) {
            at = &cmd->leaving;
            continue;
        }
        *at = cmd->leaving;
        if (port != NULL && atomic_fetch_sub(&port->held[cmd->queue], 1) == 1)
            ff_wake(ff.workers[atomic_load(&port->polled_by[cmd->queue])]);
        atomic_store_explicit(&cmd->done, true, memory_order_release);
    }
}
