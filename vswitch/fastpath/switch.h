/* SPDX-License-Identifier: Apache-2.0 */
/* The switch as its own parts see it: ports, workers and what they share. */
#ifndef FF_SWITCH_H
#define FF_SWITCH_H

#include <stdatomic.h>
#include <stdbool.h>

#include <rte_branch_prediction.h>
#include <rte_mempool.h>
#include <rte_rcu_qsbr.h>
#include <rte_ring.h>
#include <rte_spinlock.h>

#include "ff.h"
#include "flow.h"
#include "frame.h"
#include "sample.h"

#define FF_OUT_SLOTS 64u
#define FF_PARKED_FLOWS 1024u
#define FF_PARKED_PKTS 8192u

struct ff_worker;
struct ff_port;
struct ff_mem;
struct ff_rdma_qp;
struct ff_vring;

/* What a port's tx did with the frames that it was given. */
struct ff_sent {
    uint32_t packets;
    uint32_t accounted; /* dropped and counted by the port itself */
    uint64_t bytes;
};

/*
 * A descriptor that wakes a sleeping worker: a queue's kick eventfd, or its
 * receive interrupt. Belongs to the worker that polls the queue.
 */
struct ff_waker {
    int fd;    /* -1: there is none */
    int epoll; /* the set that it is in, -1: none */
};
#define FF_NO_WAKER ((struct ff_waker){.fd = -1, .epoll = -1})

/*
 * A port type. rx fills at most n frames, which are good until rx_done (may be
 * NULL) is called for the same queue. tx takes over all n frames, sends what
 * it can of them in order, and releases each. All are called by workers while
 * the port is ready.
 *
 * arm makes what comes on a queue wake the worker; false: it cannot, the
 * worker has to look. What was there before arm wakes nobody. disarm ends
 * that; leave does too, and takes the queue out of the worker's epoll set.
 */
struct ff_port_ops {
    int (*open)(struct ff_port *port, const struct ff_port_conf *conf, char *err);
    void (*close)(struct ff_port *port); /* waits until no callback can come */
    unsigned int (*rx)(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                       struct ff_frame *frames, unsigned int n);
    void (*rx_done)(struct ff_worker *w, struct ff_port *port, unsigned int queue);
    /* NULL, or passes on what rx got as received by other ports; returns how many frames, at the
     * front, are left as this one's. */
    unsigned int (*input)(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                          struct ff_frame *frames, unsigned int n);
    struct ff_sent (*tx)(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                         struct ff_frame *frames, unsigned int n);
    bool (*arm)(struct ff_worker *w, struct ff_port *port, unsigned int queue);
    void (*disarm)(struct ff_port *port, unsigned int queue);
    void (*leave)(struct ff_port *port, unsigned int queue);
    void (*info)(struct ff_port *port, struct ff_port_info *info); /* or NULL */
    struct ff_mem *(*mem)(struct ff_port *port); /* a peer's memory; NULL: has none */
    /* vrings that are enabled, but do not run: bit 2q receive, 2q + 1 transmit queue q; or NULL */
    uint32_t (*unstarted)(struct ff_port *port);
};
extern const struct ff_port_ops ff_port_vhost_ops;
extern const struct ff_port_ops ff_port_pmd_ops;
extern const struct ff_port_ops ff_port_packet_ops;
extern const struct ff_port_ops ff_port_vxlan_ops;
extern const struct ff_port_ops ff_port_ff_ops;
extern const struct ff_port_ops ff_port_rdma_ops;

struct ff_port {
    uint16_t id;
    uint16_t rx_queues;
    uint16_t tx_queues;  /* changes as a front-end enables queues */
    bool bound;          /* queue n is worker n's for good */
    bool tx_shared;      /* fewer transmit queues than workers: take tx_lock */
    _Atomic bool ready;  /* rx and tx may be called */
    uint8_t offloads;    /* union of FF_OFF_* that tx can be given; changes while not ready */
    _Atomic uint8_t tap; /* union of FF_TAP_* */
    uint32_t max_frame;  /* bytes */
    uint32_t parked_max; /* packets, per worker */
    uint32_t snaplen;    /* of taps */
    const struct ff_port_ops *ops;
    void *dev;                             /* the port type's own */
    struct ff_uplink_conf *_Atomic uplink; /* the tunnel ends that it receives for, or NULL */
    rte_spinlock_t tx_lock[FF_MAX_QUEUES];
    _Atomic uint8_t polled_by[FF_MAX_QUEUES]; /* worker; see poll.c */
    _Atomic uint8_t held[FF_MAX_QUEUES];      /* workers it left with packets of it parked */
    /* control and vhost threads only, under ff.event_lock */
    int state;
    char reason[FF_NAME_LEN];
    char name[FF_NAME_LEN];
};

/* One queue that a worker polls. Once published, only the worker writes to it. */
struct ff_poll_entry {
    struct ff_port *port;
    uint16_t queue;
    uint16_t quiet; /* looks in a row that found nothing */
    uint16_t skip;  /* loops to leave it out */
    bool gated;     /* not before ff_poll_open says so */
};
struct ff_poll_list {
    uint32_t n;
    struct ff_poll_entry entry[];
};

/*
 * Frames on their way to one port, gathered over a burst. The port may leave
 * ff.ports meanwhile, but not its memory: no quiescent state comes before the
 * flush.
 */
struct ff_out {
    struct ff_port *port;
    uint16_t n;
    bool steered; /* the worker has several of the port's queues to choose from, by frame->steer */
    struct ff_frame frames[FF_BURST];
};

/* A request from the control thread to a worker. The worker sets done last. */
struct ff_command {
    enum { FF_CMD_VERDICT, FF_CMD_PURGE, FF_CMD_PACKET, FF_CMD_LEAVE } type;
    uint64_t upcall;            /* verdict */
    struct ff_actions *actions; /* verdict; owned by the command */
    struct rte_mbuf *packet;    /* packet; the worker's from then on */
    uint16_t port;              /* purge, packet, leave */
    uint16_t remote;            /* packet: tunnel end */
    uint16_t queue;             /* leave */
    _Atomic bool done;
    struct ff_command *next;
    struct ff_command *leaving; /* leave: the worker's next */
};

struct ff_parked_pkt {
    struct ff_frame frame;
    struct ff_key key;
    uint16_t queue;
    struct ff_parked_pkt *next;
};

/* A flow that waits for its verdict, with its packets in order. See upcall.c. */
struct ff_parked_flow {
    _Atomic uint64_t id; /* 0: free */
    uint64_t ident[3];
    uint64_t raised_at; /* TSC */
    uint32_t generation;
    uint16_t in_port;
    uint16_t slot;
    struct ff_parked_pkt *head, *tail;
    struct ff_parked_flow *next; /* in its hash chain, or free list */
};

struct ff_worker {
    unsigned int index;
    unsigned int lcore;
    struct ff_poll_list *_Atomic poll;
    uint64_t now;                     /* TSC at the top of the loop */
    uint64_t mark;                    /* TSC up to which time is charged to queues */
    uint64_t now_s;                   /* seconds of CLOCK_MONOTONIC */
    struct ff_port_stats *port_stats; /* [FF_MAX_PORTS] */
    struct ff_worker_stats stats;
    struct ff_sample sample;
    struct ff_flow_count *flow_counts; /* [FF_MAX_FLOWS] */
    uint64_t mask_hits[FF_MAX_MASKS];

    struct ff_arena arena;
    struct ff_gso gso;

    /* idle.c */
    int epoll_fd, wake_fd;
    _Atomic bool waiting; /* in its epoll set, or about to: wake it for news */
    bool timed;           /* has a queue that cannot wake it */
    uint32_t sleep_ns;    /* for how long, then */
    uint64_t idle_since;  /* TSC */

    /* output.c */
    uint8_t out_slot[FF_MAX_PORTS]; /* slot + 1, 0: none */
    unsigned int n_out;
    struct ff_out out[FF_OUT_SLOTS];

    struct ff_vring
        *untold; /* port_vhost.c: rings whose drivers are to be told before the next loop */
    unsigned int n_untold;

    struct ff_rdma_qp *unposted; /* rdma_send.c: have requests for the next doorbell */
    struct ff_rdma_qp *holding;  /* rdma_path.c: have frames that wait for a change of path */
    unsigned int n_due; /* and barriers received, to be counted once what came before is sent */
    struct ff_rdma_due {
        struct ff_rdma_barrier barrier;
        uint16_t uplink, queue;
    } due[2 * FF_BURST];

    /* upcall.c */
    struct rte_ring *commands; /* control to worker */
    struct rte_ring *raised;   /* worker to control: parked flow slots */
    bool signal;               /* upcalls were raised in this loop */
    struct ff_parked_flow *parked_flows;
    struct ff_parked_pkt *parked_pkts;
    struct ff_parked_flow *free_flows;
    struct ff_parked_pkt *free_pkts;
    struct ff_parked_flow *parked_hash[FF_PARKED_FLOWS];
    unsigned int n_parked_flows;
    uint32_t parked_of[FF_MAX_PORTS];                /* packets parked, by receiving port */
    uint16_t parked_in[FF_MAX_PORTS][FF_MAX_QUEUES]; /* and queue */

    /* poll.c */
    struct ff_command *leaving; /* queues that left while packets of them are parked here */

    /* tap.c */
    struct rte_ring *taps;
    uint64_t taps_lost;
    bool tap_signal;

    /* control thread: commands handed over and not yet freed, oldest first */
    struct ff_command *issued, **issued_tail;
} __rte_cache_aligned;

struct ff_switch {
    struct ff_port *_Atomic ports[FF_MAX_PORTS];
    struct ff_worker *workers[FF_MAX_WORKERS];
    unsigned int n_workers;
    uint32_t parked_max;
    _Atomic bool stop;
    _Atomic uint32_t spin_us, sleep_us;
    struct rte_mempool *pool;     /* packets */
    struct rte_mempool *tap_pool; /* tapped frames */
    struct rte_rcu_qsbr *rcu;
    uint64_t tsc_hz;
    int upcall_fd, tap_fd, event_fd;
    _Atomic bool upcall_armed, tap_armed; /* the control thread wants to be told */
};
extern struct ff_switch ff;

/* ---- control side ---- */

/* A token for what workers may still read and nobody finds from now on. Any thread but a worker's.
 */
uint64_t ff_grace_start(void);
/* Whether every worker has passed a quiescent state since. Any thread but a worker's. */
bool ff_grace_over(uint64_t token);
/* Frees p with free() once every worker has passed a quiescent state. */
void ff_retire(void *p);
/* Frees what ff_retire has collected and may be freed now. */
void ff_reclaim(void);
/* Waits until every worker has passed a quiescent state. Any thread but a worker's. */
void ff_synchronize(void);

/* Writes one line to err: the text, and DPDK's last complaint where there is one. */
void ff_error(char *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Forgets DPDK's last complaint, so that ff_error tells only of what comes now. */
void ff_error_clear(void);
int ff_log_open(void);

/* Sets how many transmit queues workers use; waits for them. Any thread but a worker's. */
void ff_port_set_tx_queues(struct ff_port *port, uint16_t n);

/* Notes a port's state, and tells the control thread when it is a new one. Any thread. */
void ff_port_state(struct ff_port *port, int state, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Wakes the control thread, for an event that it finds by looking. Any thread. */
void ff_event_signal(void);
int ff_event_init(void);
void ff_event_forget(uint16_t port_id);

int ff_tunnel_init(void);
void ff_tunnel_fini(void);
/* The port is no uplink any more; workers may look at what it was until ff_synchronize. */
void ff_uplink_clear(struct ff_port *port);

int ff_sigbus_init(void);
/* Says that this thread may touch guest memory before any port knows of it. */
void ff_sigbus_expected(void);

/* Spreads a port's queues over the workers; -ENOMEM: some may be there. */
int ff_poll_add(struct ff_port *port);
/* Takes a port's queues off all workers, who may poll them until they are quiescent. */
void ff_poll_remove(const struct ff_port *port);

/* Wakes a worker that sleeps, or is about to, after something was made visible to it. Any thread.
 */
void ff_wake(struct ff_worker *w);
void ff_wake_all(void);
/*
 * A waker with a descriptor of its own for an eventfd that a peer has too:
 * closing another one alone would leave that in the worker's epoll set for ever.
 * FF_NO_WAKER for what is no eventfd, as a poll of it may block.
 */
struct ff_waker ff_waker_open(int fd);
/* Takes k out of its set. Its worker must not use it meanwhile. */
void ff_waker_unwatch(struct ff_waker *k);
/* And closes its descriptor. */
void ff_waker_close(struct ff_waker *k);
int ff_idle_init(struct ff_worker *w);
void ff_idle_fini(struct ff_worker *w);

int ff_tap_init(void);
int ff_upcall_init(struct ff_worker *w);
/* Drops the packets parked of a port on every worker; waits for the workers. */
void ff_upcall_purge(uint16_t port_id);
void ff_signal(int fd, _Atomic bool *armed);
/* Hands cmd over to w; it is freed some time after the worker has done it. */
void ff_command_issue(struct ff_worker *w, struct ff_command *cmd);

/* ---- worker side ---- */

int ff_worker_main(void *arg);
/* Once a loop; may sleep. */
void ff_idle(struct ff_worker *w, bool busy);
/* Puts k into the worker's epoll set, once; false when that is impossible. */
bool ff_waker_watch(struct ff_worker *w, struct ff_waker *k);
void ff_poll_leave(struct ff_worker *w, struct ff_command *cmd);
/* Whether packets from the queue are parked; what came in tunnels counts for other ports. */
bool ff_poll_holds(const struct ff_worker *w, struct ff_port *port, unsigned int queue);
/* Lets others poll the queues that have left and have no packets here any more. */
void ff_poll_release(struct ff_worker *w);
void ff_pipeline(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                 struct ff_frame *frames, unsigned int n);
/* Does a list of actions to a frame, which it takes over. */
void ff_execute(struct ff_worker *w, struct ff_frame *frame, const struct ff_key *key,
                unsigned int queue, const struct ff_actions *actions);
void ff_output(struct ff_worker *w, uint16_t port_id, uint16_t in_port, struct ff_frame *frame);
void ff_output_flush(struct ff_worker *w);
/* Sends frames that the port can take as they are; returns how many it sent. */
unsigned int ff_output_send(struct ff_worker *w, struct ff_port *port, struct ff_frame *frames,
                            unsigned int n);
/*
 * Sends frames of which some ask for what the port cannot do, by `emit` (like
 * ff_output_send) in bursts. Takes them over. An emit that calls ff_output must
 * have made frames of its own before.
 */
typedef unsigned int ff_gso_emit(struct ff_worker *w, struct ff_port *port, struct ff_frame *frames,
                                 unsigned int n);
void ff_gso_send(struct ff_worker *w, struct ff_port *port, const struct ff_frame *frames,
                 unsigned int n, ff_gso_emit *emit);
void ff_upcall_raise(struct ff_worker *w, struct ff_frame *frame, const struct ff_key *key,
                     unsigned int queue);
/* The parked flow that this packet has to wait behind, or NULL. */
struct ff_parked_flow *ff_upcall_find(struct ff_worker *w, const struct ff_key *key);
void ff_upcall_park(struct ff_worker *w, struct ff_parked_flow *flow, struct ff_frame *frame,
                    const struct ff_key *key, unsigned int queue);
unsigned int ff_upcall_commands(struct ff_worker *w);
/*
 * Takes the tunnelled frames out of what an uplink received and does the
 * pipeline for them; returns how many are left, at the front of frames.
 */
unsigned int ff_vxlan_input(struct ff_worker *w, struct ff_port *uplink, unsigned int queue,
                            struct ff_frame *frames, unsigned int n);
/* Does the pipeline for frames that came in tunnels, in order for each of their vxlan ports, which
 * it sets to NULL. */
void ff_tunnel_deliver(struct ff_worker *w, struct ff_port **ports, unsigned int queue,
                       const struct ff_frame *frames, unsigned int n);
/* Packs a frame for frame->remote and outputs it on the way there. */
void ff_vxlan_output(struct ff_worker *w, struct ff_port *port, uint16_t in_port,
                     struct ff_frame *frame);
/*
 * Sends what a vxlan port outputs over the remote's RDMA peer, and takes it over; false, and
 * nothing is done: that way is not open to it. What it sends goes out with ff_rdma_post.
 */
bool ff_rdma_output(struct ff_worker *w, struct ff_port *port, uint16_t in_port,
                    struct ff_frame *frame);
/*
 * Takes a barrier that an uplink received, `len` bytes behind what would be a VXLAN header;
 * FF_DROP_NONE, or why not.
 */
unsigned int ff_rdma_barrier(struct ff_worker *w, const struct ff_port *uplink, unsigned int queue,
                             const uint8_t *p, uint32_t len);
/* Sends one behind the frames that went to a remote with the source port of `steer`. */
void ff_vxlan_barrier(struct ff_worker *w, uint16_t remote, uint16_t steer,
                      const struct ff_rdma_barrier *barrier);
/* Lets go what may go of the frames and barriers that wait for a change of path. */
void ff_rdma_settle(struct ff_worker *w);
void ff_rdma_post(struct ff_worker *w);

/* Interrupts the drivers of the rings in w->untold that want it. */
void ff_vhost_tell(struct ff_worker *w);
void ff_tap_frame(struct ff_worker *w, const struct ff_port *port, uint8_t kind,
                  const struct ff_frame *frame);
void ff_tap_trace(struct ff_worker *w, const struct ff_port *port, const struct ff_frame *frame,
                  unsigned int drop, uint64_t flow_id, const struct ff_actions *actions);

/*
 * ff_execute for a list whose only action is an output, when there is nothing
 * to it but to gather the frame; else false, and nothing is done.
 */
static inline bool ff_output_only(struct ff_worker *w, int32_t port_id,
                                  const struct ff_frame *frame) {
    unsigned int slot = likely(port_id >= 0) ? w->out_slot[port_id] : 0;
    struct ff_out *out;

    if (unlikely(slot == 0))
        return false;
    out = &w->out[slot - 1];
    if (unlikely(out->n == FF_BURST || out->steered))
        return false;
    out->frames[out->n++] = *frame;
    return true;
}

static inline struct ff_port *ff_port(uint16_t id) {
    return id < FF_MAX_PORTS ? atomic_load_explicit(&ff.ports[id], memory_order_acquire) : NULL;
}

static inline bool ff_port_ready(struct ff_port *port) {
    return atomic_load_explicit(&port->ready, memory_order_acquire);
}

static inline bool ff_poll_open(const struct ff_poll_entry *e) {
    return !e->gated || atomic_load_explicit(&e->port->held[e->queue], memory_order_acquire) == 0;
}

static inline void ff_drop(struct ff_worker *w, uint16_t port_id, unsigned int reason,
                           struct ff_frame *frame) {
    w->port_stats[port_id].drop[reason]++;
    ff_frame_free(frame);
}

static inline void ff_flow_counted(struct ff_worker *w, const struct ff_flow *flow,
                                   uint32_t packets, uint64_t bytes) {
    struct ff_flow_count *c = &w->flow_counts[flow->index];

    c->packets += packets;
    c->bytes += bytes;
    if (c->last_s != w->now_s)
        c->last_s = w->now_s;
}

static inline uint64_t ff_flow_id(const struct ff_flow *flow) {
    return ((uint64_t)flow->generation << 32) | flow->index;
}

#endif
