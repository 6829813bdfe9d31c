/* SPDX-License-Identifier: Apache-2.0 */
/* A memory port as its own parts see it. */
#ifndef FF_MEMPORT_H
#define FF_MEMPORT_H

#include "mem.h"
#include "shm_borrow.h"
#include "shm_lend.h"
#include "shm_post.h"
#include "switch.h"

/* A lend ring: a transmit queue of the container. One worker's at a time. */
struct ff_memport_in {
    struct ff_borrower ring;
    _Atomic bool active; /* workers may use it */
    struct ff_waker kick;
    void *slots; /* of ring */
    unsigned int n_taken;
    uint16_t taken[FF_ARENA_SEGS]; /* slots in hand, not yet given back */
} __rte_cache_aligned;

/* A post ring: a receive queue of the container. */
struct ff_memport_out {
    struct ff_filler ring;
    _Atomic bool active;
} __rte_cache_aligned;

struct ff_link;

struct ff_memport {
    struct ff_memport_in in[FF_MAX_QUEUES];
    struct ff_memport_out out[FF_MAX_QUEUES];
    struct ff_port *port;
    bool attached; /* control thread only */
    uint16_t rx_queues, tx_queues;
    /* what is mapped: changes while no worker uses the port */
    struct ff_mem mem;
    struct ff_shm_map map[FF_SHM_REGIONS];
    struct ff_shm_maps maps;
    struct ff_shm_table *table;
    /* its shortcuts as a sender, by number; workers may look at one until they are quiescent */
    struct ff_link *_Atomic links[FF_SHM_SHORTCUTS];
    _Atomic uint32_t newest[FF_SHM_SHORTCUTS]; /* epoch that a number ever had */
};

/* A shortcut of one direction. Workers of its sender use it to open the receiver's rings. */
struct ff_link {
    struct ff_memport *from, *to;
    uint16_t in;
    uint16_t queues;
    uint32_t epoch;
    _Atomic uint32_t opened; /* rings that their markers have opened */
    /* control thread only */
    uint16_t out;
    bool closed;
    bool from_gone, to_gone; /* detached since */
    struct ff_link *next;
};

/* The memory port with this number, attached or not; NULL when it is none. */
struct ff_memport *ff_memport(uint16_t port_id);

/* ---- memport_map.c, control thread ---- */

/* What is mapped goes, the port's queues with it. No worker uses them. */
void ff_memport_unmap(struct ff_memport *m);

/* ---- shortcut.c ---- */

/*
 * All shortcuts from and to this port are closed, and no worker sees those that it
 * is the end of after the next quiescent state. Control thread.
 */
void ff_links_drop(struct ff_memport *m);

enum ff_marker { FF_MARKER_DONE, FF_MARKER_WAIT, FF_MARKER_FORGED };
/* The worker of m's queue has come to this marker, all before it was handled. */
enum ff_marker ff_marker_meet(const struct ff_worker *w, struct ff_memport *m, unsigned int queue,
                              const struct ff_shm_desc *d);

#endif
