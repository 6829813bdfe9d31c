/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RDMA as its own files see it: a device's port with a queue for each worker,
 * and peers with queue pairs. A queue, and all queue pairs on it, are one worker's alone; the
 * control thread makes them, and takes them away when the worker has let go.
 */
#ifndef FF_RDMA_INTERNAL_H
#define FF_RDMA_INTERNAL_H

#include <infiniband/verbs.h>

#include "switch.h"

#define FF_RDMA_CREDITS 128u /* buffers for data of each queue pair */
#define FF_RDMA_BUFFERS (FF_RDMA_CREDITS + FF_RDMA_SPARE)
/* Room for tags in front of a frame, header and frame, in whole cache lines. */
#define FF_RDMA_BUFFER_LEN RTE_ALIGN(FF_HEAD_ROOM + FF_RDMA_HEADER_LEN + FF_RDMA_FRAME_MAX, 64u)
#define FF_RDMA_SQ 256u     /* messages posted and not completed */
#define FF_RDMA_CONTROLS 8u /* of them at most others than data */
#define FF_RDMA_SENDS (FF_RDMA_SQ - FF_RDMA_CONTROLS)
#define FF_RDMA_RING (2u << 20) /* bytes of messages posted and not completed: 31 of 64 KB */
#define FF_RDMA_QUEUE_QPS 256u  /* at most, on one queue */
/* So many looks find all that was there before the first. */
#define FF_RDMA_LOOKS (FF_RDMA_QUEUE_QPS * FF_RDMA_SQ / FF_BURST)

static_assert(UINT32_MAX % FF_RDMA_SQ == FF_RDMA_SQ - 1, "counts of requests wrap");
static_assert(FF_RDMA_MAX_QPS == FF_MAX_WORKERS, "each worker may have one");

struct ff_rdma_qp;
struct ff_rdma_peer;

/* One worker's queue of a device's port. */
struct ff_rdma_queue {
    struct ff_rdma_device *dev;
    struct ibv_comp_channel *channel;
    struct ibv_cq *recv_cq, *send_cq;
    struct ibv_srq *srq;
    struct ff_waker waker;

    /* buffers: written by the control thread before they are posted */
    uint8_t *chunk[FF_RDMA_QUEUE_QPS];
    struct ibv_mr *chunk_mr[FF_RDMA_QUEUE_QPS];
    unsigned int n_chunks, n_used; /* each of FF_RDMA_BUFFERS, for one queue pair, */
    unsigned int max_chunks;       /* as many as the device's queues hold */

    /* which queue pair a completion is of; written by the control thread */
    struct ff_rdma_qp *_Atomic qps[FF_RDMA_QUEUE_QPS];
    _Atomic unsigned int n_qps; /* highest used + 1 */
    _Atomic bool asked;         /* a peer wants marks sent */
    _Atomic uint32_t looks; /* grows with each look, and by FF_RDMA_LOOKS when nothing is left */

    /* the worker's */
    struct ff_rdma_qp *owing; /* have something to tell, but no data that would carry it */
    unsigned int hint;        /* where in qps the last one was */
    unsigned int n_taken;     /* of this burst, to be posted again: */
    struct ff_rdma_taken {
        uint64_t buffer;
        struct ff_rdma_qp *qp; /* that has used a credit for it, or NULL */
    } taken[FF_BURST];
    struct ff_port *to[FF_BURST]; /* the networks of a burst's frames, */
    struct ff_seg rest[FF_BURST]; /* and what follows their heads */
} __rte_cache_aligned;

struct ff_rdma_device {
    struct ff_port *port;
    struct ibv_context *context;
    struct ibv_pd *pd;
    uint8_t number; /* of its port */
    uint8_t gid_index;
    union ibv_gid gid;
    struct ibv_port_attr attr;
    struct ff_rdma_queue *queue[FF_MAX_WORKERS];
};

#define FF_RDMA_HELD 256u        /* frames that wait in a change of path, at most, */
#define FF_RDMA_HELD_BUFS 1024u  /* and mbufs that hold them */
#define FF_RDMA_PATHS (1u << 14) /* source ports of VXLAN */
#define FF_RDMA_ENDS 2u          /* tunnel ends of a peer that VXLAN leads to */

/* Planned changes of a queue pair's path, as its worker sees them: rdma_path.c. */
struct ff_rdma_path {
    uint32_t change; /* the peer's that this is about */
    bool dirty;      /* something of what is held may go */
    _Atomic bool listed;
    struct ff_rdma_qp *next; /* in ff_worker.holding */
    unsigned int n_held, n_bufs,
        n_ready; /* frames, their mbufs; frames that wait for credit only */
    struct ff_rdma_held {
        struct ff_frame frame;
        uint16_t port, in_port;
        int32_t bit; /* in moved; -1: never went by VXLAN */
    } held[FF_RDMA_HELD];

    /* JOINING */
    uint32_t round;
    bool waiting; /* for the answer to it */
    unsigned int n_asked;
    int32_t asked[FF_RDMA_HELD]; /* bits that it is about */
    uint16_t end[FF_RDMA_ENDS];
    uint64_t
        moved[FF_RDMA_ENDS * FF_RDMA_PATHS / 64]; /* a bit for each tunnel end and source port */

    /* LEAVING: more came than there is room for; the mark is answered, and another one needed */
    bool again, answered;
};

/* Per-worker counts of a queue pair, in struct ff_rdma_stats. */
struct ff_rdma_qp {
    struct ibv_qp *qp;
    struct ff_rdma_peer *peer;
    struct ff_rdma_queue *queue;
    uint32_t number;     /* as the device knows it */
    uint32_t inline_max; /* bytes that a request may carry itself */
    uint32_t psn;
    struct ff_rdma_window window;
    bool stopped; /* an error, or a broken rule: nothing is sent any more */

    /* sending: memory is used in order, and given back in order */
    uint8_t *ring; /* FF_RDMA_RING bytes, then FF_RDMA_CONTROLS headers */
    struct ibv_mr *mr;
    uint32_t head, tail;          /* offsets in ring: next free, oldest used */
    uint32_t built, posted, done; /* counts of requests, modulo 2^32 */
    uint32_t unsignalled, unsignalled_bytes;
    uint32_t controls; /* built and not done */
    struct {
        uint32_t next; /* head behind it */
        bool control;
    } sent[FF_RDMA_SQ];
    struct ibv_send_wr wr[FF_RDMA_SQ]; /* built..posted of them are a chain */
    struct ibv_sge sge[FF_RDMA_SQ];
    bool unposted_listed;
    struct ff_rdma_qp *unposted_next; /* in ff_worker.unposted */

    /* what it owes to the other end */
    bool owing_listed;
    struct ff_rdma_qp *owing_next;
    bool mark_due;
    uint32_t mark;           /* to be answered */
    uint32_t mark_sent;      /* the last of the peer's that went out here */
    _Atomic uint32_t marked; /* and that was answered */
    _Atomic uint64_t
        came; /* barriers of the other end: round, and how many in the low half; any worker */
    _Atomic uint32_t came_due; /* the round to be answered; any worker */
    uint32_t came_told;

    struct ff_rdma_path path;

    struct ff_rdma_stats stats;
};

struct ff_rdma_peer {
    uint16_t number;
    uint16_t remote; /* the last that began to use it, 0: none does */
    uint16_t n_qps;
    struct ff_rdma_device *dev; /* NULL: it is gone */
    uint32_t epoch;
    _Atomic int state;       /* enum ff_rdma_state */
    const char *_Atomic why; /* it failed */
    _Atomic uint32_t mark;   /* wanted on each queue pair */
    uint32_t leave_mark;     /* that answers it when LEAVING; written before change */
    _Atomic uint32_t change; /* enum ff_rdma_change, and how many before, times FF_RDMA_CHANGES */
    bool failure_told, draining;
    struct ff_rdma_qp *qp[FF_RDMA_MAX_QPS];
};

/* ---- rdma_peer.c ---- */

/* The active peer of a tunnel end, or NULL. For workers. */
struct ff_rdma_peer *ff_rdma_active(uint16_t remote);
/* A peer goes no further; the first reason counts. Any thread. */
void ff_rdma_fail(struct ff_rdma_peer *peer, const char *why);
/* All peers of a device (NULL: of all) fail. Control thread. */
void ff_rdma_fail_all(const struct ff_rdma_device *dev, const char *why);
/* The peer that has this queue pair fails. Control thread. */
void ff_rdma_fail_qp(const struct ibv_qp *qp, const char *why);
/* Ends the peers of a device that no worker polls any more. Control thread. */
void ff_rdma_peers_end(const struct ff_rdma_device *dev);

/* ---- rdma_qp.c, for the control thread ---- */

/* A queue pair on a queue, in state INIT; NULL, and *rc is -errno. */
struct ff_rdma_qp *ff_rdma_qp_make(struct ff_rdma_peer *peer, struct ff_rdma_queue *q, int *rc);
/* Joins it to the other end's queue pair i; -errno. */
int ff_rdma_qp_join(struct ff_rdma_qp *qp, unsigned int i, const struct ff_rdma_connect *conf);
/* Lets the queue's worker find it, or not any more. */
void ff_rdma_qp_publish(struct ff_rdma_qp *qp);
void ff_rdma_qp_conceal(const struct ff_rdma_qp *qp);
void ff_rdma_qp_free(struct ff_rdma_qp *qp);

/* ---- rdma_send.c ---- */

/* Sends one header, of no data; false: not now. */
bool ff_rdma_control(struct ff_rdma_qp *qp, uint8_t type, uint32_t mark);
/* Looks at what the device has done; how many completions it found. */
unsigned int ff_rdma_reap(struct ff_rdma_queue *q);

/* Whether a frame of `len` bytes could be sent now. */
bool ff_rdma_room(struct ff_rdma_qp *qp, uint32_t len);
/* Sends a frame over an active peer's queue pair, or drops it: there is no room. */
void ff_rdma_send(struct ff_worker *w, struct ff_rdma_qp *qp, struct ff_port *port,
                  struct ff_frame *frame);

/* ---- rdma_path.c ---- */

#define FF_RDMA_CHANGES 4u

enum ff_rdma_way { FF_RDMA_BY_PEER, FF_RDMA_BY_VXLAN, FF_RDMA_HOLDS };
/* Which way a frame goes, for a peer in use; FF_RDMA_HOLDS: it was taken over, and waits. */
enum ff_rdma_way ff_rdma_way(struct ff_worker *w, struct ff_rdma_qp *qp, const struct ff_port *port,
                             uint16_t in_port, struct ff_frame *frame);
/* Answers to marks and barriers came. */
void ff_rdma_marked(struct ff_rdma_qp *qp, uint32_t mark);
void ff_rdma_came(struct ff_rdma_qp *qp, uint32_t round);
/* Whether something waits that only the worker can let go. Any thread. */
bool ff_rdma_holds(const struct ff_rdma_peer *peer);
/* The joined peer of this epoch that has so many queue pairs, or NULL. For workers. */
struct ff_rdma_peer *ff_rdma_joined(uint32_t epoch);

static inline bool ff_rdma_changing(const struct ff_rdma_qp *qp) {
    return atomic_load_explicit(&qp->peer->change, memory_order_acquire) % FF_RDMA_CHANGES !=
               FF_RDMA_SETTLED ||
           qp->path.n_held > 0;
}

/* ---- rdma_recv.c ---- */

unsigned int ff_rdma_rx(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                        struct ff_frame *frames, unsigned int n);
unsigned int ff_rdma_input(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                           struct ff_frame *frames, unsigned int n);
void ff_rdma_rx_done(struct ff_worker *w, struct ff_port *port, unsigned int queue);
/* Buffer memory for one more queue pair, posted; -errno. Control thread. */
int ff_rdma_buffers_add(struct ff_rdma_queue *q);
void ff_rdma_buffers_free(struct ff_rdma_queue *q);

#endif
