/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_ff: a DPDK driver for memory ports of ffswitch. ff_shm.h has the protocol,
 * shm_ring.h the rings.
 *
 * Threads. The application's threads poll queues; a control thread for each
 * device has the socket, and makes and takes away all that the queues use:
 * it changes a pointer, then waits in ff_quiesce until every burst that may have
 * seen the old one is over. Any thread may free mbufs.
 */
#ifndef NET_FF_H
#define NET_FF_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include <rte_ethdev.h>
#include <rte_mbuf.h>
#include <rte_spinlock.h>

#include <ethdev_driver.h>

#include "shm_borrow.h"
#include "shm_lend.h"
#include "shm_post.h"

#define FF_RING_SIZE 1024 /* descriptors, when the application does not say */
#define FF_NUMBERS 65536u /* of regions */
#define FF_HASH 1024u     /* of MAC addresses: four times FF_SHM_SHORTCUTS */

extern int ff_log_type;
#define FF_LOG(level, dev, ...)                                                                    \
    rte_log(RTE_LOG_##level, ff_log_type,                                                          \
            RTE_FMT("%s: " RTE_FMT_HEAD(__VA_ARGS__, ) "\n", (dev)->name,                          \
                    RTE_FMT_TAIL(__VA_ARGS__, )))

struct ff_dev;

/* ---- memory ---------------------------------------------------------------- */

/* Packet memory: this process's own, or a neighbour's that is mapped here. */
struct ff_region {
    uint8_t *base;
    uint64_t size;
    uint16_t number;
    bool own, read_only;
    bool lost;       /* its owner took it away; zeros are in its place */
    bool told;       /* the switch knows of that */
    bool going;      /* UNMAP came, which is answered when nothing is held in it */
    uint32_t serial; /* of UNMAP; 0: no answer */
    int fd;          /* own: EAL's; a neighbour's: wakes the control thread */
    uint64_t offset; /* in the file */
    struct ff_region *next;
};

/* ---- a shortcut, as receiver ------------------------------------------------ */

/* What an external-buffer mbuf over a lent buffer refers to. */
struct ff_slot {
    struct rte_mbuf_ext_shared_info shinfo;
    const struct ff_borrower *lender;
    const struct ff_region *region;
    uint16_t slot;
    uint8_t hops; /* before it came here */
} __rte_cache_aligned;

enum ff_in_phase {
    FF_RING_SHUT, /* nothing may be taken yet */
    FF_RING_OPEN, /* or closing */
    FF_RING_BROKEN
};

/* One ring of an incoming shortcut; belongs to one receive queue. */
struct ff_in_ring {
    struct ff_borrower b;
    uint32_t taken; /* b.pos, for other queues to read */
    uint8_t phase;  /* enum ff_in_phase */
    uint8_t fault;  /* enum ff_ring_fault */
    uint8_t number; /* of the ring in its shortcut: the sender's transmit queue */
    uint64_t packets, bytes;
    struct ff_slot *slot;
    struct ff_in *in;
};

struct ff_in {
    uint16_t number, n_rings;
    uint32_t epoch;
    bool told;        /* of a fault */
    bool going;       /* DROP came, which is answered when nothing of it is held */
    uint32_t serial;  /* of DROP; 0: no answer */
    uint64_t give_up; /* ms: until then the queues may take what it holds, or more may come */
    void *map;
    size_t map_size;
    char neighbour[FF_SHM_TEXT];
    struct ff_in *next;
    struct ff_in_ring ring[];
};

/* ---- a shortcut, as sender; and the ring to the switch --------------------------- */

struct ff_out_ring {
    struct ff_lender l;
    struct rte_mbuf **mbuf; /* by slot */
    struct ff_out *out;     /* NULL: to the switch */
    uint32_t publish;       /* packets put and not published */
    uint64_t publish_bytes;
    uint32_t passing; /* buffers lent that are not from the application's pools */
    uint32_t look_at; /* l.lent_tail from which on it is looked again for what has come back */
};

struct ff_out {
    uint16_t number, n_rings;
    uint32_t epoch, ring_size;
    void *map;
    size_t map_size;
    uint8_t *grant; /* bit set of regions that the receiver has mapped, beside this device's */
    char neighbour[FF_SHM_TEXT];
    struct ff_out *next;
    struct ff_out_ring ring[];
};

/* ---- queues -------------------------------------------------------------------- */

struct ff_rx_view; /* rx.h */

struct ff_rx_stats {
    uint64_t switched, switched_bytes, lent, lent_bytes, copies, invalid, no_mbuf;
};

struct ff_rxq {
    uint32_t seq; /* odd inside a burst */
    bool up;
    uint8_t empty; /* bursts in a row that had nothing to take */
    uint16_t id, port_id, n_desc;
    uint32_t generation, version; /* of what the view was made from */
    uint32_t turn;                /* source to begin with: a ring, or the switch behind them */
    uint8_t fault;                /* enum ff_ring_fault, of the switch's ring */
    bool ordered;                 /* a ring opens or closes */
    bool bounce;                  /* mp is in no region: posted buffers are the driver's */
    struct ff_poster post;
    struct rte_mbuf **posted; /* by index */
    struct rte_mempool *mp;
    struct ff_dev *dev;
    struct ff_rx_view *view;
    struct ff_rx_stats stats;
} __rte_cache_aligned;

/* Where frames to an address go. */
struct ff_route {
    uint64_t mac; /* 48 bits; ~0: free */
    uint32_t max_len;
    struct ff_out_ring *ring;
};

struct ff_tx_stats {
    uint64_t switched, switched_bytes, lent, lent_bytes, copies, copied_bytes, full, dropped;
};

/*
 * Others' buffers must not wait in a queue for the next frame that it sends, which may never come
 * before they are back with their owner. So the receive queues collect them too. Which thread has
 * the queue is settled by `owner`, but only while `passing` is set: a queue that passes nothing
 * on pays nothing for it.
 */
struct ff_txq {
    uint32_t seq;
    bool up;
    bool passed;          /* such a buffer was lent in this burst */
    bool passing;         /* set at the end of a burst; reset by who has `owner` */
    rte_spinlock_t owner; /* to be had for all below while `passing` is set */
    bool marking;         /* markers wait for room in the switch's ring */
    uint16_t id, n_desc;
    uint32_t generation, version;
    uint32_t bursts;
    uint32_t sweep; /* route whose marks are looked at next, whether it is sent to or not */
    uint32_t n_routes;
    struct ff_out_ring ring; /* to the switch */
    int kick_fd;
    struct ff_dev *dev;
    const struct ff_region *last; /* own region that was hit last */
    struct ff_tx_stats stats;
    struct ff_out_ring *used[FF_SHM_SHORTCUTS];
    uint32_t marked[FF_SHM_SHORTCUTS]; /* epoch for which a marker was written */
    struct ff_route route[FF_HASH];
} __rte_cache_aligned;

/* ---- the device -------------------------------------------------------------------- */

enum ff_link {
    FF_DOWN,     /* no connection */
    FF_GREETING, /* HELLO was sent */
    FF_IDLE,     /* WELCOME came */
    FF_STARTING, /* START was sent */
    FF_RUNNING,  /* RINGS came */
    FF_STOPPING  /* STOP was sent */
};

/* How the device ends. */
enum ff_life {
    FF_LIVES,
    FF_ENDED,    /* the thread has let go of the queues, */
    FF_RELEASED, /* which are freed, */
    FF_LINGERS,  /* and waits for mbufs that the application still has, */
    FF_OVER      /* or for nothing */
};

struct ff_dev {
    char name[RTE_ETH_NAME_MAX_LEN];
    struct rte_eth_dev *eth;
    char path[108];
    char port[FF_SHM_TEXT]; /* the switch's name for it */
    struct rte_ether_addr mac;
    uint16_t max_mtu, max_queues;

    /* read by queues, changed by the control thread */
    const struct ff_shm_table *table;
    uint32_t version;          /* grows with each change here; like table->generation */
    struct ff_region **region; /* [FF_NUMBERS] */
    struct ff_region own[FF_SHM_REGIONS];
    uint16_t n_own;
    struct ff_out *outs[FF_SHM_SHORTCUTS];
    struct ff_rxq *rxq[FF_SHM_QUEUES];
    struct ff_txq *txq[FF_SHM_QUEUES];
    uint16_t n_rx, n_tx;
    uint32_t ring_size;
    struct rte_mempool *copies; /* for data that cannot be lent, and for posting */

    /* with the lock: */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    enum ff_link link;
    bool want_run, want_end; /* what the application has asked for */
    enum ff_life life;
    bool lost;               /* the connection, while it was written to */
    bool link_up;            /* says the switch */
    bool tell_link;          /* to the application */
    char error[FF_SHM_TEXT]; /* why the last attempt failed */
    int sock, wake_fd;
    uint64_t deadline;                   /* ms: of an answer, or for the next attempt to connect */
    struct ff_in *ins, *old_ins;         /* in use; and dropped, but held */
    struct ff_out *outs_list, *old_outs; /* in use; and dropped, but lent */
    struct ff_region *regions;           /* neighbours' */
    void *rings, *table_map;
    size_t rings_size;
};

/* A burst of a queue begins, */
static inline void ff_enter(uint32_t *seq) {
    __atomic_store_n(seq, *seq + 1, __ATOMIC_RELAXED);
    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* ff_quiesce has the barrier that belongs here */
}

/* and ends. */
static inline void ff_leave(uint32_t *seq) {
    __atomic_store_n(seq, *seq + 1, __ATOMIC_RELEASE);
}

/* memory.c */
int ff_memory_own(struct ff_dev *dev, char *why, size_t why_size);
struct ff_region *ff_memory_map(struct ff_dev *dev, const struct ff_shm_msg *msg, int fd,
                                char *why);
const struct ff_region *ff_memory_find(const struct ff_dev *dev, const struct rte_mbuf *m);
void ff_memory_free(struct ff_region *region);

/* sigbus.c */
int ff_sigbus_init(void);
bool ff_sigbus_watch(struct ff_region *region);
void ff_sigbus_forget(struct ff_region *region);

/* shortcut.c */
struct ff_in *ff_in_new(const struct ff_shm_msg *msg, int fd, char *why);
bool ff_in_held(const struct ff_in *in, const struct ff_region *region);
void ff_in_discard(struct ff_in *in);
void ff_in_free(struct ff_in *in);
struct ff_out *ff_out_new(const struct ff_shm_msg *msg, int fd, char *why);
void ff_out_free(struct ff_out *out);
void ff_out_ring_free(struct ff_out_ring *r);
int ff_out_ring_init(struct ff_out_ring *r, struct ff_shm_ring *shared, uint32_t size);
uint32_t ff_out_collect(struct ff_out_ring *r);
void ff_out_seize(struct ff_out_ring *r);

/* quiesce.c */
int ff_quiesce_init(void);
void ff_quiesce(struct ff_dev *dev);

/* order.c */
struct ff_rx_view *ff_rx_view_new(struct ff_dev *dev, uint16_t id);

/* rx.c */
uint16_t ff_rx_burst(void *queue, struct rte_mbuf **pkts, uint16_t n);
int ff_rx_open(struct ff_rxq *q, struct ff_shm_ring *shared, uint32_t size);
void ff_rx_close(struct ff_rxq *q);
void ff_slot_free(void *addr, void *slot);

/* tx.c */
uint16_t ff_tx_burst(void *queue, struct rte_mbuf **pkts, uint16_t n);
void ff_tx_collect(struct ff_txq *q);

/* control.c */
int ff_control_start(struct ff_dev *dev);
int ff_control_run(struct ff_dev *dev);
void ff_control_stop(struct ff_dev *dev);
void ff_control_quit(struct ff_dev *dev);
void ff_control_end(struct ff_dev *dev);
void ff_control_wake(struct ff_dev *dev);

/* message.c */
int ff_msg_connect(const char *path);
int ff_msg_send(int sock, const struct ff_shm_msg *msg, int fd);
int ff_msg_receive(int sock, struct ff_shm_msg *msg, int *fds, int *n_fds);

/* ethdev.c, stats.c */
extern const struct eth_dev_ops ff_eth_ops;
int ff_stats_get(struct rte_eth_dev *eth, struct rte_eth_stats *stats);
int ff_stats_reset(struct rte_eth_dev *eth);
int ff_xstats_get(struct rte_eth_dev *eth, struct rte_eth_xstat *xstats, unsigned int n);
int ff_xstats_names(struct rte_eth_dev *eth, struct rte_eth_xstat_name *names, unsigned int n);

#endif
