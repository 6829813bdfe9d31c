/* SPDX-License-Identifier: Apache-2.0 */
/* Peers as the control thread sets them: queue pairs made, joined, used, and taken away. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "rdma.h"

static struct ff_rdma_peer *peers[FF_RDMA_MAX_PEERS + 1];
static struct ff_rdma_peer *_Atomic by_remote[FF_MAX_REMOTES];
static struct ff_rdma_peer *_Atomic joined[FF_RDMA_MAX_PEERS + 1]; /* for workers */

/* ---- any thread ---- */

struct ff_rdma_peer *ff_rdma_active(uint16_t remote) {
    struct ff_rdma_peer *p = atomic_load_explicit(&by_remote[remote], memory_order_acquire);

    return p != NULL && atomic_load_explicit(&p->state, memory_order_relaxed) == FF_RDMA_ACTIVE
               ? p
               : NULL;
}

struct ff_rdma_peer *ff_rdma_joined(uint32_t epoch) {
    for (unsigned int i = 1; i <= FF_RDMA_MAX_PEERS; i++) {
        struct ff_rdma_peer *p = atomic_load_explicit(&joined[i], memory_order_acquire);

        if (p != NULL && p->epoch == epoch)
            return p;
    }
    return NULL;
}

void ff_rdma_fail(struct ff_rdma_peer *peer, const char *why) {
    const char *none = NULL;

    if (!atomic_compare_exchange_strong(&peer->why, &none, why))
        return;
    atomic_store(&peer->state, FF_RDMA_FAILED);
    ff_event_signal();
}

/* ---- control thread ---- */

static struct ff_rdma_peer *peer_of(uint16_t number) {
    return number <= FF_RDMA_MAX_PEERS ? peers[number] : NULL;
}

void ff_rdma_fail_all(const struct ff_rdma_device *dev, const char *why) {
    for (uint16_t i = 1; i <= FF_RDMA_MAX_PEERS; i++)
        if (peers[i] != NULL && peers[i]->dev == dev)
            ff_rdma_fail(peers[i], why);
}

void ff_rdma_fail_qp(const struct ibv_qp *qp, const char *why) {
    for (uint16_t i = 1; i <= FF_RDMA_MAX_PEERS; i++)
        for (unsigned int k = 0; peers[i] != NULL && k < peers[i]->n_qps; k++)
            if (peers[i]->qp[k]->qp == qp)
                ff_rdma_fail(peers[i], why);
}

/* ---- ending ---- */

/* Waits until the workers have seen all that was there for them on the peer's queues. */
static void wait_for_queues(const struct ff_rdma_peer *peer) {
    unsigned int n = RTE_MIN((unsigned int)peer->n_qps, ff.n_workers);

    for (unsigned int i = 0; i < n; i++) {
        struct ff_rdma_queue *q = peer->dev->queue[i];
        uint32_t start = atomic_load(&q->looks);

        /* one look may have begun before */
        while (atomic_load(&q->looks) - start <= FF_RDMA_LOOKS) {
            ff_wake(ff.workers[i]);
            usleep(20);
        }
    }
}

static void qps_stop(const struct ff_rdma_peer *peer) {
    struct ibv_qp_attr error = {.qp_state = IBV_QPS_ERR};

    for (unsigned int i = 0; i < peer->n_qps; i++)
        (void)ibv_modify_qp(peer->qp[i]->qp, &error, IBV_QP_STATE);
}

static void peer_free(struct ff_rdma_peer *peer) {
    for (unsigned int i = 0; i < peer->n_qps && peer->qp[i] != NULL; i++) {
        peer->qp[i]->queue->n_used--;
        ff_rdma_qp_free(peer->qp[i]);
    }
    peers[peer->number] = NULL;
    free(peer);
}

static void unuse(struct ff_rdma_peer *peer) {
    int active = FF_RDMA_ACTIVE;

    for (unsigned int i = 0; peer->remote != 0 && i < FF_MAX_REMOTES; i++)
        if (atomic_load(&by_remote[i]) == peer)
            atomic_store(&by_remote[i], NULL);
    peer->remote = 0;
    (void)atomic_compare_exchange_strong(&peer->state, &active, FF_RDMA_CONNECTED);
}

/* polled: its queues are, and completions may name it. */
static void peer_end(struct ff_rdma_peer *peer, bool polled) {
    unuse(peer);
    atomic_store(&peer->state, FF_RDMA_FAILED);
    atomic_store(&joined[peer->number], NULL);
    ff_synchronize();
    while (ff_rdma_holds(peer)) {
        ff_wake_all();
        usleep(20);
    }
    qps_stop(peer);
    if (polled)
        wait_for_queues(peer);
    for (unsigned int i = 0; i < peer->n_qps; i++) {
        (void)ibv_destroy_qp(peer->qp[i]->qp);
        peer->qp[i]->qp = NULL;
    }
    if (polled) {
        wait_for_queues(peer); /* no completion comes any more */
        for (unsigned int i = 0; i < peer->n_qps; i++)
            ff_rdma_qp_conceal(peer->qp[i]);
        wait_for_queues(peer);
    }
    peer_free(peer);
}

void ff_rdma_peers_end(const struct ff_rdma_device *dev) {
    for (uint16_t i = 1; i <= FF_RDMA_MAX_PEERS; i++)
        if (peers[i] != NULL && peers[i]->dev == dev)
            peer_end(peers[i], false);
}

int ff_rdma_peer_del(uint16_t number) {
    struct ff_rdma_peer *peer = peer_of(number);

    if (peer == NULL)
        return -ENOENT;
    peer_end(peer, true);
    return 0;
}

/* ---- making ---- */

static void local_end(const struct ff_rdma_peer *peer, struct ff_rdma_end *end) {
    const struct ff_rdma_device *dev = peer->dev;

    *end = (struct ff_rdma_end){
        .lid = dev->attr.lid,
        .mtu = (uint16_t)(128u << dev->attr.active_mtu),
        .n_qps = peer->n_qps,
        .credits = FF_RDMA_CREDITS,
    };
    memcpy(end->gid, dev->gid.raw, sizeof(end->gid));
    for (unsigned int i = 0; i < peer->n_qps; i++) {
        end->qpn[i] = peer->qp[i]->number;
        end->psn[i] = peer->qp[i]->psn;
    }
}

static int qps_make(struct ff_rdma_peer *peer, uint16_t n, char *err) {
    const struct ff_port *port = peer->dev->port;
    int rc = 0;

    for (; peer->n_qps < n; peer->n_qps++) {
        unsigned int i = peer->n_qps;

        peer->qp[i] = ff_rdma_qp_make(peer, peer->dev->queue[i % ff.n_workers], &rc);
        if (peer->qp[i] == NULL)
            break;
    }
    if (rc != 0)
        snprintf(err, FF_ERR_LEN, "%s: cannot make a queue pair: %s%s", port->name, strerror(-rc),
                 rc == -ENOMEM ? "; is the limit of locked memory (ulimit -l) too low?" : "");
    return rc;
}

int ff_rdma_peer_add(uint16_t port_id, uint16_t n_qps, uint16_t *number, struct ff_rdma_end *local,
                     char *err) {
    const struct ff_port *port = ff_port(port_id);
    struct ff_rdma_peer *peer;
    uint16_t at = 1;
    int rc;

    if (port == NULL || port->ops != &ff_port_rdma_ops) {
        snprintf(err, FF_ERR_LEN, "port %u is no RDMA port", port_id);
        return -ENOENT;
    }
    while (at <= FF_RDMA_MAX_PEERS && peers[at] != NULL)
        at++;
    if (at > FF_RDMA_MAX_PEERS) {
        snprintf(err, FF_ERR_LEN, "%s: there are %u peers already", port->name, FF_RDMA_MAX_PEERS);
        return -ENOSPC;
    }
    if (n_qps < ff.n_workers || n_qps > FF_RDMA_MAX_QPS) {
        snprintf(err, FF_ERR_LEN, "%s: %u queue pairs: a peer takes %u to %u", port->name, n_qps,
                 ff.n_workers, FF_RDMA_MAX_QPS);
        return -EINVAL;
    }
    peer = calloc(1, sizeof(*peer));
    if (peer == NULL)
        return -ENOMEM;
    peer->number = at;
    peer->dev = port->dev;
    peers[at] = peer;
    rc = qps_make(peer, n_qps, err);
    if (rc != 0) {
        peer_free(peer);
        return rc;
    }
    for (unsigned int i = 0; i < n_qps; i++)
        ff_rdma_qp_publish(peer->qp[i]);
    local_end(peer, local);
    *number = at;
    return 0;
}

/* ---- joining ---- */

static const char *wrong(const struct ff_rdma_peer *peer, const struct ff_rdma_connect *conf) {
    if (atomic_load(&peer->state) != FF_RDMA_NEW)
        return "it is connected, or was";
    if (conf->remote.n_qps != peer->n_qps)
        return "the other end has another number of queue pairs";
    if (conf->remote.credits == 0 || conf->remote.credits > FF_RDMA_CREDITS_MAX)
        return "the other end gives no credits that can be";
    if (conf->timeout == 0 || conf->timeout > 31 || conf->retries > 7)
        return "no such timeout or number of retries";
    return NULL;
}

int ff_rdma_peer_connect(uint16_t number, const struct ff_rdma_connect *conf, char *err) {
    struct ff_rdma_peer *peer = peer_of(number);
    const char *why;
    int expected = FF_RDMA_NEW;

    if (peer == NULL) {
        snprintf(err, FF_ERR_LEN, "no peer has number %u", number);
        return -ENOENT;
    }
    why = wrong(peer, conf);
    if (why != NULL) {
        snprintf(err, FF_ERR_LEN, "peer %u: %s", number, why);
        return -EINVAL;
    }
    peer->epoch = conf->epoch;
    for (unsigned int i = 0; i < peer->n_qps; i++) {
        int rc = ff_rdma_qp_join(peer->qp[i], i, conf);

        if (rc != 0) {
            ff_rdma_fail(peer, "its queue pairs cannot be joined");
            snprintf(err, FF_ERR_LEN, "peer %u: queue pair %u cannot be joined: %s", number, i,
                     strerror(-rc));
            return rc;
        }
    }
    (void)atomic_compare_exchange_strong(&peer->state, &expected, FF_RDMA_CONNECTED);
    atomic_store_explicit(&joined[number], peer, memory_order_release);
    return 0;
}

/* ---- in use ---- */

int ff_rdma_peer_use(uint16_t number, uint16_t remote) {
    struct ff_rdma_peer *peer = peer_of(number);
    const struct ff_rdma_peer *other;
    int connected = FF_RDMA_CONNECTED;

    if (peer == NULL)
        return -ENOENT;
    if (remote == 0) {
        unuse(peer);
        return 0;
    }
    if (remote >= FF_MAX_REMOTES)
        return -EINVAL;
    other = atomic_load(&by_remote[remote]);
    if (other != NULL)
        return other == peer ? 0 : -EBUSY;
    if (!atomic_compare_exchange_strong(&peer->state, &connected, FF_RDMA_ACTIVE) &&
        connected != FF_RDMA_ACTIVE)
        return -EINVAL;
    peer->remote = remote;
    atomic_store_explicit(&by_remote[remote], peer, memory_order_release);
    return 0;
}

int ff_rdma_peer_drain(uint16_t number) {
    struct ff_rdma_peer *peer = peer_of(number);
    int state;

    if (peer == NULL)
        return -ENOENT;
    state = atomic_load(&peer->state);
    if (state != FF_RDMA_CONNECTED && state != FF_RDMA_ACTIVE)
        return -EINVAL;
    if (peer->draining)
        return -EBUSY;
    peer->draining = true;
    atomic_fetch_add(&peer->mark, 1);
    for (unsigned int i = 0; i < RTE_MIN((unsigned int)peer->n_qps, ff.n_workers); i++) {
        atomic_store(&peer->dev->queue[i]->asked, true);
        ff_wake(ff.workers[i]);
    }
    return 0;
}

int ff_rdma_peer_change(uint16_t number, int change) {
    struct ff_rdma_peer *peer = peer_of(number);
    uint32_t before;
    bool active;

    if (peer == NULL)
        return -ENOENT;
    before = atomic_load(&peer->change);
    active = atomic_load(&peer->state) == FF_RDMA_ACTIVE;
    if (change < FF_RDMA_SETTLED || change > FF_RDMA_LEAVING ||
        (change == FF_RDMA_JOINING && active) || (change == FF_RDMA_LEAVING && !active))
        return -EINVAL;
    if (change != FF_RDMA_SETTLED &&
        (before % FF_RDMA_CHANGES != FF_RDMA_SETTLED || peer->draining))
        return -EBUSY;
    before -= before % FF_RDMA_CHANGES;
    if (change == FF_RDMA_LEAVING)
        peer->leave_mark = atomic_load(&peer->mark) + 1;
    /* before the marks: a worker that has sent one knows what it is for */
    atomic_store_explicit(&peer->change, before + FF_RDMA_CHANGES + (uint32_t)change,
                          memory_order_release);
    ff_wake_all();
    return change == FF_RDMA_LEAVING ? ff_rdma_peer_drain(number) : 0;
}

int ff_rdma_peer_info(uint16_t number, struct ff_rdma_peer_info *info) {
    const struct ff_rdma_peer *peer = peer_of(number);
    const char *why;

    if (peer == NULL)
        return -ENOENT;
    why = atomic_load(&peer->why);
    *info = (struct ff_rdma_peer_info){
        .state = atomic_load(&peer->state),
        .port_id = peer->dev->port->id,
        .remote = peer->remote,
        .n_qps = peer->n_qps,
        .epoch = peer->epoch,
    };
    snprintf(info->reason, sizeof(info->reason), "%s", why != NULL ? why : "");
    for (unsigned int i = 0; i < peer->n_qps; i++) {
        const uint64_t *s = (const uint64_t *)(const void *)&peer->qp[i]->stats;
        uint64_t *sum = (uint64_t *)(void *)&info->stats;

        for (size_t k = 0; k < sizeof(info->stats) / sizeof(*s); k++)
            sum[k] += s[k];
    }
    return 0;
}

/* ---- events ---- */

static bool drained(const struct ff_rdma_peer *peer) {
    uint32_t wanted = atomic_load(&peer->mark);

    for (unsigned int i = 0; i < peer->n_qps; i++)
        if (atomic_load(&peer->qp[i]->marked) != wanted)
            return false;
    return true;
}

/* The peer's next event, or 0. */
static uint16_t next_event(struct ff_rdma_peer *peer) {
    if (atomic_load(&peer->state) == FF_RDMA_FAILED) {
        if (peer->failure_told)
            return 0;
        peer->failure_told = true;
        qps_stop(peer); /* what the others have not done they never will */
        return FF_RDMA_EVENT_FAILED;
    }
    if (!peer->draining || !drained(peer))
        return 0;
    peer->draining = false;
    return FF_RDMA_EVENT_DRAINED;
}

int ff_rdma_event_drain(struct ff_rdma_event *events, int n) {
    int got = 0;

    for (uint16_t i = 1; i <= FF_RDMA_MAX_PEERS; i++) {
        uint16_t what;

        if (peers[i] == NULL)
            continue;
        if (got == n) { /* there may be more */
            ff_event_signal();
            break;
        }
        what = next_event(peers[i]);
        if (what != 0)
            events[got++] = (struct ff_rdma_event){.peer = i, .what = what};
    }
    return got;
}
