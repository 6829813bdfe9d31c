/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Upcalls. A packet that misses the flow table is parked in its worker, and
 * its key and first bytes go to the slow path. What follows with the same
 * port, tags and MAC addresses parks behind it: frames of one conversation
 * never overtake each other (IEEE 802.1Q clause 6.5.3), whatever the slow
 * path takes. The verdict deals with the first packet; the others go through
 * the table again, in order.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include <rte_malloc.h>

#include "switch.h"

#define NOT_ETH_TYPE 0xffff0000ffffffffull /* of the key's second word, little endian */

static_assert(offsetof(struct ff_key, eth_type) == 12 && offsetof(struct ff_key, vlan_tci) == 20,
              "the key's first three words are MACs, type, port and tags");
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "NOT_ETH_TYPE");

static void ident_of(const struct ff_key *key, uint64_t ident[3]) {
    memcpy(ident, key, 3 * sizeof(ident[0]));
    ident[1] &= NOT_ETH_TYPE;
}

static unsigned int ident_hash(const uint64_t ident[3]) {
    uint64_t h = (ident[0] ^ ident[1] ^ (ident[1] << 17) ^ ident[2]) * 0x9e3779b97f4a7c15ull;

    return (unsigned int)(h >> 32) % FF_PARKED_FLOWS;
}

int ff_upcall_init(struct ff_worker *w) {
    char name[RTE_RING_NAMESIZE];

    w->parked_flows = calloc(FF_PARKED_FLOWS, sizeof(*w->parked_flows));
    w->parked_pkts = calloc(FF_PARKED_PKTS, sizeof(*w->parked_pkts));
    if (w->parked_flows == NULL || w->parked_pkts == NULL)
        return -ENOMEM;
    for (unsigned int i = FF_PARKED_FLOWS; i-- > 0;) {
        w->parked_flows[i].slot = (uint16_t)i;
        w->parked_flows[i].next = w->free_flows;
        w->free_flows = &w->parked_flows[i];
    }
    for (unsigned int i = FF_PARKED_PKTS; i-- > 0;) {
        w->parked_pkts[i].next = w->free_pkts;
        w->free_pkts = &w->parked_pkts[i];
    }
    snprintf(name, sizeof(name), "ff_raised_%u", w->index);
    w->raised =
        rte_ring_create(name, 2 * FF_PARKED_FLOWS, SOCKET_ID_ANY, RING_F_SP_ENQ | RING_F_SC_DEQ);
    snprintf(name, sizeof(name), "ff_commands_%u", w->index);
    w->commands =
        rte_ring_create(name, 4 * FF_PARKED_FLOWS, SOCKET_ID_ANY, RING_F_SP_ENQ | RING_F_SC_DEQ);
    w->issued_tail = &w->issued;
    return w->raised == NULL || w->commands == NULL ? -ENOMEM : 0;
}

void ff_signal(int fd, _Atomic bool *armed) {
    uint64_t one = 1;

    if (atomic_exchange(armed, false) && write(fd, &one, sizeof(one)) < 0) {
        /* the counter is full: it is readable already */
    }
}

/* ---- worker ---- */

struct ff_parked_flow *ff_upcall_find(struct ff_worker *w, const struct ff_key *key) {
    uint64_t ident[3];
    struct ff_parked_flow *f;

    ident_of(key, ident);
    f = w->parked_hash[ident_hash(ident)];
    while (f != NULL && memcmp(f->ident, ident, sizeof(ident)) != 0)
        f = f->next;
    return f;
}

/* Room for one more packet of this port, or the reason why there is none. */
static struct ff_parked_pkt *pkt_alloc(struct ff_worker *w, uint16_t in_port,
                                       unsigned int *reason) {
    const struct ff_port *port = ff_port(in_port);
    struct ff_parked_pkt *p = w->free_pkts;

    *reason = port == NULL                                ? FF_DROP_PORT_GONE
              : w->parked_of[in_port] >= port->parked_max ? FF_DROP_UPCALL_BUDGET
                                                          : FF_DROP_UPCALL_FULL;
    if (p == NULL || *reason != FF_DROP_UPCALL_FULL)
        return NULL;
    w->free_pkts = p->next;
    w->parked_of[in_port]++;
    w->stats.parked++;
    return p;
}

static void pkt_free(struct ff_worker *w, struct ff_parked_pkt *p) {
    w->parked_of[p->key.in_port]--;
    w->parked_in[p->key.in_port][p->queue]--;
    w->stats.parked--;
    p->next = w->free_pkts;
    w->free_pkts = p;
}

void ff_upcall_park(struct ff_worker *w, struct ff_parked_flow *flow, struct ff_frame *frame,
                    const struct ff_key *key, unsigned int queue) {
    unsigned int reason;
    struct ff_parked_pkt *p = pkt_alloc(w, key->in_port, &reason);

    if (p == NULL) {
        ff_drop(w, key->in_port, reason, frame);
        return;
    }
    p->key = *key;
    p->queue = (uint16_t)queue;
    w->parked_in[key->in_port][queue]++;
    if (ff_frame_keep(frame, ff.pool) != 0) {
        pkt_free(w, p);
        ff_drop(w, key->in_port, FF_DROP_NO_COPY, frame);
        return;
    }
    p->frame = *frame;
    p->next = NULL;
    if (flow->head == NULL)
        flow->head = p;
    else
        flow->tail->next = p;
    flow->tail = p;
}

void ff_upcall_raise(struct ff_worker *w, struct ff_frame *frame, const struct ff_key *key,
                     unsigned int queue) {
    struct ff_parked_flow *f = w->free_flows;
    uint64_t id;
    unsigned int h;

    if (f == NULL || rte_ring_full(w->raised)) {
        ff_drop(w, key->in_port, FF_DROP_UPCALL_FULL, frame);
        return;
    }
    f->head = NULL;
    ff_upcall_park(w, f, frame, key, queue);
    if (f->head == NULL)
        return;
    w->free_flows = f->next;
    id = ((uint64_t)++f->generation << 32) | (uint64_t)w->index << 16 | f->slot;
    f->raised_at = w->now;
    f->in_port = key->in_port;
    ident_of(key, f->ident);
    h = ident_hash(f->ident);
    f->next = w->parked_hash[h];
    w->parked_hash[h] = f;
    w->n_parked_flows++;
    f->id = id;
    rte_ring_sp_enqueue(w->raised, (void *)(uintptr_t)id);
    w->port_stats[key->in_port].upcalls++;
    w->signal = true;
}

/* Takes a flow out of the table; its packets stay with the caller. */
static struct ff_parked_pkt *flow_release(struct ff_worker *w, struct ff_parked_flow *f) {
    struct ff_parked_flow **at = &w->parked_hash[ident_hash(f->ident)];
    struct ff_parked_pkt *pkts = f->head;

    while (*at != f)
        at = &(*at)->next;
    *at = f->next;
    w->n_parked_flows--;
    f->id = 0;
    f->head = NULL;
    f->next = w->free_flows;
    w->free_flows = f;
    return pkts;
}

static void again(struct ff_worker *w, struct ff_parked_pkt *p) {
    struct ff_parked_flow *ahead = ff_upcall_find(w, &p->key);
    struct ff_frame frame = p->frame;
    struct ff_key key = p->key;
    unsigned int queue = p->queue;
    struct ff_flow *flow;

    pkt_free(w, p);
    if (ahead != NULL) {
        ff_upcall_park(w, ahead, &frame, &key, queue);
        return;
    }
    ff_flow_lookup_burst(w, &key, 1, &flow);
    if (flow == NULL) {
        w->stats.misses++;
        ff_upcall_raise(w, &frame, &key, queue);
        return;
    }
    w->stats.hits++;
    ff_flow_counted(w, flow, 1, frame.len);
    ff_execute(w, &frame, &key, queue, atomic_load_explicit(&flow->actions, memory_order_acquire));
}

static void do_verdict(struct ff_worker *w, const struct ff_command *cmd) {
    struct ff_parked_flow *f = &w->parked_flows[cmd->upcall & 0xffff];
    struct ff_parked_pkt *p, *next;
    struct ff_frame frame;
    struct ff_flow *flow;
    struct ff_key key;
    unsigned int queue;

    if (f->id != cmd->upcall)
        return; /* purged since */
    w->stats.verdicts++;
    w->stats.verdict_cycles += w->now - f->raised_at;
    p = flow_release(w, f);
    next = p->next;
    frame = p->frame;
    key = p->key;
    queue = p->queue;
    pkt_free(w, p);
    ff_flow_lookup_burst(w, &key, 1, &flow);
    if (flow != NULL) /* the packet that made the flow is counted in it */
        ff_flow_counted(w, flow, 1, frame.len);
    ff_execute(w, &frame, &key, queue, cmd->actions);
    for (p = next; p != NULL; p = next) {
        next = p->next;
        again(w, p);
    }
    ff_output_flush(w);
}

static void do_purge(struct ff_worker *w, uint16_t port_id) {
    for (unsigned int i = 0; i < FF_PARKED_FLOWS; i++) {
        struct ff_parked_flow *f = &w->parked_flows[i];
        struct ff_parked_pkt *p, *next;

        if (f->id == 0 || f->in_port != port_id)
            continue;
        for (p = flow_release(w, f); p != NULL; p = next) {
            next = p->next;
            ff_drop(w, port_id, FF_DROP_PORT_GONE, &p->frame);
            pkt_free(w, p);
        }
    }
}

static void do_packet(struct ff_worker *w, const struct ff_command *cmd) {
    struct ff_frame frame;

    ff_frame_from_mbuf(&frame, cmd->packet);
    frame.remote = cmd->remote;
    w->port_stats[cmd->port].injected++;
    ff_output(w, cmd->port, cmd->port, &frame);
    ff_output_flush(w);
}

unsigned int ff_upcall_commands(struct ff_worker *w) {
    struct ff_command *cmd;
    unsigned int n = 0;

    while (unlikely(rte_ring_sc_dequeue(w->commands, (void **)&cmd) == 0)) {
        n++;
        if (cmd->type == FF_CMD_LEAVE) { /* done when the last of the queue's packets is */
            ff_poll_leave(w, cmd);
            continue;
        }
        if (cmd->type == FF_CMD_VERDICT)
            do_verdict(w, cmd);
        else if (cmd->type == FF_CMD_PACKET)
            do_packet(w, cmd);
        else
            do_purge(w, cmd->port);
        atomic_store_explicit(&cmd->done, true, memory_order_release);
    }
    if (unlikely(w->leaving != NULL))
        ff_poll_release(w);
    return n;
}

/* ---- control thread ---- */

static void issued_reclaim(struct ff_worker *w) {
    struct ff_command *cmd;

    while ((cmd = w->issued) != NULL && atomic_load_explicit(&cmd->done, memory_order_acquire)) {
        w->issued = cmd->next;
        if (w->issued == NULL)
            w->issued_tail = &w->issued;
        free(cmd->actions);
        free(cmd);
    }
}

void ff_command_issue(struct ff_worker *w, struct ff_command *cmd) {
    issued_reclaim(w);
    *w->issued_tail = cmd;
    w->issued_tail = &cmd->next;
    /* one verdict for each parked flow at most: the ring has room, or soon will */
    while (rte_ring_sp_enqueue(w->commands, cmd) != 0)
        usleep(50);
    ff_wake(w);
}

static int fill_upcall(struct ff_upcall *up, uint64_t id) {
    struct ff_worker *w = ff.workers[(id >> 16) & 0xffff];
    const struct ff_parked_flow *f = &w->parked_flows[id & 0xffff];
    const struct ff_parked_pkt *p;
    const uint8_t *head;

    if (f->id != id)
        return 0; /* purged since */
    p = f->head;
    up->id = id;
    up->key = p->key;
    up->frame_len = p->frame.len;
    up->head_len = (uint16_t)RTE_MIN(p->frame.len, (uint32_t)FF_HEAD_LEN);
    up->queue = p->queue;
    head = rte_pktmbuf_read(p->frame.buf, 0, up->head_len, up->head);
    if (head != up->head)
        memcpy(up->head, head, up->head_len);
    return 1;
}

int ff_upcall_drain(struct ff_upcall *upcalls, int n) {
    uint64_t count;
    int got = 0;
    bool more = false;

    if (read(ff.upcall_fd, &count, sizeof(count)) < 0) {
        /* not signalled: look all the same */
    }
    atomic_store(&ff.upcall_armed, true);
    for (unsigned int i = 0; i < ff.n_workers; i++) {
        void *id;

        while (got < n && rte_ring_sc_dequeue(ff.workers[i]->raised, &id) == 0)
            got += fill_upcall(&upcalls[got], (uintptr_t)id);
        more |= !rte_ring_empty(ff.workers[i]->raised);
    }
    if (more)
        ff_signal(ff.upcall_fd, &ff.upcall_armed);
    return got;
}

int ff_upcall_finish(const struct ff_verdict *verdicts, int n) {
    int known = 0;

    for (int i = 0; i < n; i++) {
        const struct ff_verdict *v = &verdicts[i];
        unsigned int index = (v->id >> 16) & 0xffff;
        struct ff_actions *actions;
        struct ff_command *cmd;
        int rc;

        if (index >= ff.n_workers || (v->id & 0xffff) >= FF_PARKED_FLOWS ||
            ff.workers[index]->parked_flows[v->id & 0xffff].id != v->id)
            continue;
        actions = ff_actions_compile(v->actions, v->n_actions, &rc);
        if (actions == NULL) /* a bad list or no memory: the packet must not stay parked */
            actions = ff_actions_compile(NULL, 0, &rc);
        cmd = calloc(1, sizeof(*cmd));
        if (cmd == NULL || actions == NULL) {
            free(cmd);
            free(actions);
            return known;
        }
        *cmd = (struct ff_command){.type = FF_CMD_VERDICT, .upcall = v->id, .actions = actions};
        ff_command_issue(ff.workers[index], cmd);
        known++;
    }
    return known;
}

int ff_packet_out(uint16_t port_id, uint16_t remote, const uint8_t *frame, uint32_t len) {
    struct ff_command *cmd;
    struct ff_frame f;

    if (ff_port(port_id) == NULL)
        return -ENOENT;
    if (len < FF_ETH_HLEN || len > UINT16_MAX || remote >= FF_MAX_REMOTES)
        return -EINVAL;
    /* a frame in borrowed memory: keeping it makes the copy */
    f = (struct ff_frame){
        .head = (uint8_t *)(uintptr_t)frame, .len = len, .head_len = (uint16_t)len};
    cmd = calloc(1, sizeof(*cmd));
    if (cmd == NULL || ff_frame_keep(&f, ff.pool) != 0) {
        free(cmd);
        return -ENOMEM;
    }
    *cmd = (struct ff_command){
        .type = FF_CMD_PACKET, .packet = f.buf, .port = port_id, .remote = remote};
    ff_command_issue(ff.workers[0], cmd);
    return 0;
}

void ff_upcall_purge(uint16_t port_id) {
    for (unsigned int i = 0; i < ff.n_workers; i++) {
        struct ff_command *cmd = calloc(1, sizeof(*cmd));

        if (cmd == NULL)
            continue; /* its packets leave with their verdicts */
        *cmd = (struct ff_command){.type = FF_CMD_PURGE, .port = port_id};
        ff_command_issue(ff.workers[i], cmd);
        while (!atomic_load_explicit(&cmd->done, memory_order_acquire))
            usleep(20);
    }
}
