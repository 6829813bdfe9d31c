/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ff.h: the whole contract between the C fast path and the Python slow path,
 * with ff_packet.h, the part of it that is about one packet, ff_memory.h, the
 * part about memory ports, ff_shm.h, what these share with containers, and
 * ff_rdma.h, what goes over RDMA.
 *
 * Both sides read these files: the C compiler as headers, cffi as its cdef. So
 * they hold only declarations, enums and integer #defines, and no DPDK type.
 *
 * Threads: every function is for the one control thread (asyncio's), unless it
 * says otherwise. No function waits for a packet; functions that wait for the
 * workers to pass a quiescent state (ff_port_del, ff_stop) say so.
 *
 * Errors: functions that return int give 0 (or a count) on success and a
 * negative errno on failure; where there is an `err` argument it points to
 * FF_ERR_LEN bytes and receives one line for people.
 *
 * Byte order: MAC and IP addresses, eth_type and L4 ports are in network
 * order, everything else in host order.
 */
#ifndef FF_H
#define FF_H

#include <stddef.h>
#include <stdint.h>

#include "ff_memory.h"
#include "ff_packet.h"
#include "ff_rdma.h"
#include "ff_shm.h"

#define FF_BURST 32
#define FF_MAX_PORTS 1024
#define FF_MAX_QUEUES 16
#define FF_MAX_WORKERS 16
#define FF_MAX_MASKS 32
#define FF_MAX_REMOTES 4096
#define FF_MAX_ACTIONS 2048
#define FF_MAX_PUSHED 16 /* VLAN tags that a list of actions may add to a frame at a time */
#define FF_NAME_LEN 64
#define FF_ERR_LEN 512
#define FF_HEAD_LEN 256
#define FF_TRACE_ACTIONS 8
#define FF_PORT_NONE 0

/* ---- faults ------------------------------------------------------------ */

/*
 * What a front-end, or a container with a memory port, did that stops a queue:
 * it recovers when that reconnects. Keep ff_fault_names in names.c in the same order.
 */
enum ff_fault {
    FF_FAULT_NONE = 0,
    FF_FAULT_AVAIL_JUMP, /* more made available than the ring holds */
    FF_FAULT_INDEX,      /* a descriptor index, or a position, beyond the table */
    FF_FAULT_CHAIN,      /* a chain that loops, or is too long */
    FF_FAULT_ADDRESS,    /* a buffer or ring outside the shared memory */
    FF_FAULT_DIRECTION,  /* a buffer of the wrong direction */
    FF_FAULT_INDIRECT,   /* a bad indirect table */
    FF_FAULT_SHORT,      /* a chain without room for the virtio-net header */
    FF_FAULT_MEMORY,     /* shared memory that was truncated */
    FF_FAULT_LAP,        /* memory port: a slot that is not free, or not in its turn */
    FF_FAULT_MARKER,     /* memory port: a marker of a shortcut that is none */
    FF_FAULT_MAX
};

/* The fault's name as people see it, "descriptor-index"; never NULL. Any thread. */
const char *ff_fault_name(unsigned int fault);

/* ---- start and stop ---------------------------------------------------- */

/*
 * Starts EAL with eal_argv (argv[0] included) and one idle worker for each
 * worker lcore. mbufs: size of the packet pool. Once per process.
 */
struct ff_conf {
    const char *const *eal_argv;
    int eal_argc;
    uint32_t mbufs;
    uint32_t parked_max; /* packets that one port may have parked at a time */
};
int ff_init(const struct ff_conf *conf, char *err);

/* Number of workers, 1 .. FF_MAX_WORKERS. */
int ff_n_workers(void);

/* Removes all ports, waits for the workers to end, and leaves EAL. */
void ff_stop(void);

/* DPDK's version string, "DPDK 22.11.11". Any thread; needs no EAL. */
const char *ff_dpdk_version(void);

/* Calls rte_log_set_level_pattern-style: 1 (emergency) .. 8 (debug). */
void ff_log_level(int level);

/*
 * Takes DPDK's log lines (newline-separated, oldest first) that came since the
 * last call, at most len - 1 bytes, NUL-terminated; returns the bytes taken.
 * Each line begins with a digit, its level: 1 (emergency) .. 8 (debug).
 */
int ff_log_drain(char *buf, size_t len);

/* eventfds for asyncio to wait on; each is readable when its drain has work. */
int ff_event_fd(void);
int ff_upcall_fd(void);
int ff_tap_fd(void);

/* ---- ports ------------------------------------------------------------- */

enum ff_port_type {
    FF_PORT_VHOST_USER = 1,
    FF_PORT_PMD,
    FF_PORT_VXLAN,
    FF_PORT_FF,
    FF_PORT_RDMA,
    FF_PORT_PACKET
};

/* DESIGN 12: configured → waiting-for-peer → negotiating → memory-mapped → ready → lost */
enum ff_port_state {
    FF_PORT_CONFIGURED = 0,
    FF_PORT_WAITING,
    FF_PORT_NEGOTIATING,
    FF_PORT_MEMORY_MAPPED,
    FF_PORT_READY,
    FF_PORT_LOST
};

struct ff_port_conf {
    const char *name;
    int type;         /* enum ff_port_type */
    const char *path; /* vhost-user: the socket */
    int server;       /* vhost-user: 1 when the switch listens, 0 when it connects */
    const char
        *devargs; /* pmd: "net_pcap0,iface=eth0", a PCI address; packet: "eth0"; rdma: "rxe0" */
    uint8_t rdma_port; /* rdma: of the device, 1 .. */
    uint8_t gid_index; /* rdma: the GID by which others reach it */
    uint16_t queues; /* pmd: receive queues to set up; vhost-user, ff: upper bound told to people */
    uint32_t mtu;    /* payload bytes of the largest frame */
    uint32_t
        vni; /* vxlan: the network, 0 .. 2^24 - 1, in which the port stands for all other hosts */
};

/* Adds a port and starts polling it. *port_id: 1 .. FF_MAX_PORTS - 1. */
int ff_port_add(const struct ff_port_conf *conf, uint16_t *port_id, char *err);

/*
 * Removes a port: packets parked for it or from it are dropped and counted,
 * the device is closed. Waits for a quiescent state of every worker (µs).
 */
int ff_port_del(uint16_t port_id, char *err);

int ff_port_set_mtu(uint16_t port_id, uint32_t mtu);

/* How many packets of this port may be parked at a time (the upcall budget). */
int ff_port_set_parked_max(uint16_t port_id, uint32_t n);

struct ff_port_info {
    int state;                /* enum ff_port_state */
    uint16_t rx_queues;       /* queues now polled */
    uint16_t tx_queues;       /* queues now served */
    uint64_t features;        /* vhost-user: negotiated virtio feature bits */
    uint8_t mac[6];           /* pmd, packet: the device's */
    char driver[FF_NAME_LEN]; /* pmd: the PMD's name */
    char reason[FF_NAME_LEN]; /* why it is in this state, for people */
};
int ff_port_info(uint16_t port_id, struct ff_port_info *info);

/* A port changed state: told once for each change, in order. */
struct ff_event {
    uint16_t port_id;
    uint16_t state;
    char reason[FF_NAME_LEN];
};
/* Takes up to n events; returns how many. */
int ff_event_drain(struct ff_event *events, int n);

/* ---- statistics -------------------------------------------------------- */

struct ff_queue_stats {
    uint64_t rx_packets, rx_bytes;
    uint64_t tx_packets, tx_bytes;
    uint64_t tx_full;   /* frames dropped as FF_DROP_RING_FULL */
    uint64_t rx_cycles; /* TSC cycles spent on what was received here */
};
/* One writer, the worker; read with plain 64-bit loads at any time. */
struct ff_port_stats {
    struct ff_queue_stats queue[FF_MAX_QUEUES];
    /* copies beyond the first, of packets received here; and segments beyond the first, of
     * frames that had to be cut for this port */
    uint64_t replicated;
    uint64_t injected;     /* frames of ff_packet_out */
    uint64_t encapsulated; /* uplink: frames of vxlan ports, packed to be sent here */
    uint64_t
        decapsulated; /* uplink: frames received here that went on as received by a vxlan port */
    uint64_t upcalls; /* upcalls raised */
    uint64_t drop[FF_DROP_MAX];
    uint64_t fault[FF_FAULT_MAX]; /* queues stopped, by what their front-end did */
};
/*
 * Where a worker's cycles go, in the order of a packet's way. Measured on one
 * burst in FF_SAMPLE_EVERY, so that it costs less than 1 %. What a loop does
 * besides (looks at empty queues, verdicts) is busy_cycles less all of these.
 * Keep ff_stage_names in names.c in the same order.
 */
#define FF_SAMPLE_EVERY 127
enum ff_stage {
    FF_STAGE_RX = 0,  /* descriptors read, headers copied */
    FF_STAGE_PARSE,   /* checked, the key made */
    FF_STAGE_LOOKUP,  /* in the flow table */
    FF_STAGE_ACTIONS, /* done; frames gathered by output port */
    FF_STAGE_UPCALL,  /* misses parked */
    FF_STAGE_TX,      /* payloads copied, descriptors given to the receivers */
    FF_STAGE_RX_DONE, /* descriptors given back to the sender */
    FF_STAGE_MAX
};

/* The stage's name as people see it, "rx-done"; never NULL. Any thread. */
const char *ff_stage_name(unsigned int stage);

struct ff_worker_stats {
    uint64_t loops, busy_loops;
    uint64_t sleeps;      /* counted before each */
    uint64_t busy_cycles; /* TSC cycles of loops that moved packets */
    uint64_t packets;     /* received */
    uint64_t hits, misses;
    uint64_t parked; /* packets waiting for a verdict now */
    uint64_t bursts; /* looks at a queue that found packets */
    uint64_t sampled_packets;
    uint64_t stage_cycles[FF_STAGE_MAX]; /* TSC cycles of the sampled bursts */
    uint64_t verdicts, verdict_cycles;   /* TSC cycles from each upcall to its verdict */
    int cpu;                             /* the CPU that it is pinned to, -1 when several */
};
/* Array of FF_MAX_PORTS, indexed by port id; lives until ff_stop. */
const struct ff_port_stats *ff_port_stats(unsigned int worker);
const struct ff_worker_stats *ff_worker_stats(unsigned int worker);
uint64_t ff_tsc_hz(void);

/* 1 while the worker sleeps, and makes no loops; else 0. */
int ff_worker_asleep(unsigned int worker);

/*
 * A queue of a ready port that may be wedged. Whose receive and transmit: the
 * front-end's. What is said is what was seen; it takes a second look some time
 * later to tell whether anything moves.
 */
struct ff_suspect {
    uint16_t port_id;
    uint16_t queue;
    uint8_t receive_unstarted;  /* the front-end enabled the vring, but has not set it up */
    uint8_t transmit_unstarted; /* the same of its transmit queue */
    uint64_t accepted;          /* frames that its receive queue took */
    uint64_t refused;           /* and those it had no room for */
};
/*
 * Queues of which refused or an unstarted is not 0, ordered by port and queue;
 * at most n. Returns how many.
 */
int ff_suspects(struct ff_suspect *suspects, int n);

/* ---- workers ------------------------------------------------------------ */

/*
 * One receive queue. A new port's queues go to the workers that have the
 * fewest; ff_rxq_move changes that.
 */
struct ff_rxq {
    uint16_t port_id;
    uint16_t queue;
    uint16_t worker;
    uint8_t bound; /* 1: it stays where it is */
    uint64_t packets;
    uint64_t cycles; /* as in struct ff_queue_stats, of all workers that ever polled it */
};
/* The first n receive queues of all ports, by port and queue; returns how many there are. */
int ff_rxq_list(struct ff_rxq *rxqs, int n);

/*
 * Gives a receive queue to another worker. Returns at once: the new worker
 * begins when the old one has let go of the queue and has no packet of it
 * parked any more, so packets of one queue never overtake each other. Until
 * then what arrives waits in the queue. -ENOENT: no such queue; -EINVAL: no
 * such worker; -EPERM: the queue is bound to its worker.
 */
int ff_rxq_move(uint16_t port_id, uint16_t queue, uint16_t worker);

/* ---- flows ------------------------------------------------------------- */

/*
 * Actions are done in order, as in OpenFlow: VLAN actions change the packet
 * for the outputs after them. An empty list drops the packet (policy).
 */
enum ff_action_type {
    FF_ACT_OUTPUT = 1, /* arg: port id */
    FF_ACT_MIRROR,     /* arg: port id; the packet as received, whatever the actions before */
    FF_ACT_VLAN_PUSH,  /* arg: TCI, tpid: TPID (host order) */
    FF_ACT_VLAN_POP,   /* the outer tag */
    FF_ACT_DROP,       /* arg: enum ff_drop; ends the list */
    FF_ACT_UPCALL,     /* to the slow path, whatever the table says; ends the list */
    FF_ACT_SET_TUNNEL, /* arg: the remote to which later outputs to vxlan ports go, and perhaps
                          FF_TUNNEL_RDMA */
    FF_ACT_CHECK_LEN   /* arg: bytes; a longer frame goes to the slow path instead, mirrors included
                        */
};
/* The flow may take the remote's RDMA peer, as long as that is active; else it takes VXLAN. */
#define FF_TUNNEL_RDMA 0x8000
struct ff_action {
    uint16_t type;
    uint16_t arg;
    uint16_t tpid;
    uint16_t pad;
};

/*
 * A flow matches packets whose key & mask == key. The caller keeps flows
 * disjoint: which of two overlapping flows wins is not defined.
 */
struct ff_flow_spec {
    struct ff_key key;
    struct ff_key mask; /* bits that matter are 1 */
    const struct ff_action *actions;
    uint32_t n_actions;
};

/*
 * Adds n flows, or replaces the actions of one with the same key and mask (it
 * keeps its id and counters). ids[i] receives the flow's id (never 0). Stops
 * at the first that cannot be added (-ENOSPC: too many masks; -ENOMEM) and
 * returns how many were; 0 with the reason in err when none was.
 */
int ff_flow_add_many(const struct ff_flow_spec *specs, int n, uint64_t *ids, char *err);

/* Deletes flows; unknown ids are passed over; returns how many were deleted. */
int ff_flow_del_many(const uint64_t *ids, int n);

struct ff_flow_stats {
    uint64_t packets, bytes;
    uint64_t last_used_s; /* seconds of CLOCK_MONOTONIC; 0: never. Exact to a second. */
};
/* stats[i] for ids[i]; zeros for an unknown id. Returns how many are known. */
int ff_flow_stats_many(const uint64_t *ids, int n, struct ff_flow_stats *stats);

/* The id of the flow that a packet with this key would hit now, or 0. */
uint64_t ff_flow_lookup(const struct ff_key *key);

/* ---- upcalls ----------------------------------------------------------- */

/*
 * A packet without a flow is parked in its worker, and one upcall is raised.
 * Packets of the same in_port, VLAN tags, source and destination MAC that
 * come before the verdict park behind it, so that none overtakes another.
 * Each upcall gets exactly one verdict.
 */
struct ff_upcall {
    uint64_t id;
    struct ff_key key;
    uint32_t frame_len;
    uint16_t head_len; /* min(frame_len, FF_HEAD_LEN) */
    uint16_t queue;
    uint8_t head[FF_HEAD_LEN];
};
int ff_upcall_drain(struct ff_upcall *upcalls, int n);

/*
 * Does `actions` to the parked packet; those behind it then go through the
 * flow table (so: add flows first). Returns how many ids were known.
 */
struct ff_verdict {
    uint64_t id;
    const struct ff_action *actions;
    uint32_t n_actions;
};
int ff_upcall_finish(const struct ff_verdict *verdicts, int n);

/*
 * Sends a frame that the slow path made to a port, of type vxlan: for tunnel
 * end `remote`. -ENOENT: no such port; -ENOMEM; -EINVAL for a number or length
 * that is none.
 */
int ff_packet_out(uint16_t port_id, uint16_t remote, const uint8_t *frame, uint32_t len);

/* ---- tunnels: VXLAN, RFC 7348 -------------------------------------------- */

/*
 * Makes a port an uplink: VXLAN frames to one of these addresses that it
 * receives go on as received by the vxlan port of their VNI. A zero address is
 * none; both zero: the port is no uplink any more.
 */
struct ff_uplink_conf {
    uint8_t ip4[4];
    uint8_t ip6[16];
    uint16_t udp_port; /* host order */
};
int ff_uplink_set(uint16_t port_id, const struct ff_uplink_conf *conf);

/* A tunnel end on another host, and the way to it. */
struct ff_remote_conf {
    uint16_t uplink;   /* port id */
    uint16_t udp_port; /* host order */
    uint8_t family;    /* 4 or 6; an IPv4 address is the first four bytes */
    uint8_t local_ip[16], remote_ip[16];
    uint8_t local_mac[6];
    uint8_t next_hop_mac[6]; /* zero: not known yet, what is for it is dropped */
    uint8_t ttl;
    uint8_t checksum; /* fill in the UDP checksum: RFC 6936, where zero is not wanted over IPv6 */
};
/* Sets remote 1 .. FF_MAX_REMOTES - 1; conf NULL: deletes it. -EINVAL, -ENOMEM. */
int ff_remote_set(uint16_t remote, const struct ff_remote_conf *conf);

/* ---- taps: capture and live trace --------------------------------------- */

#define FF_TAP_RX 1    /* frames the switch received from the port */
#define FF_TAP_TX 2    /* frames the switch sent to the port */
#define FF_TAP_TRACE 4 /* what became of each packet received from the port */

/* Sets what is tapped on a port: a union of FF_TAP_*; 0: nothing. */
int ff_tap_set(uint16_t port_id, uint8_t kinds, uint32_t snaplen);

struct ff_tap_rec {
    uint64_t time_ns; /* CLOCK_REALTIME; one clock read per burst */
    uint16_t port_id;
    uint8_t kind;    /* one FF_TAP_* */
    uint8_t dropped; /* FF_TAP_TRACE: enum ff_drop, when it was dropped */
    uint32_t frame_len;
    uint32_t cap_len;
    uint64_t offset;    /* of the frame's bytes in buf */
    uint64_t flow_id;   /* FF_TAP_TRACE: 0: missed, parked and sent up */
    uint32_t n_actions; /* all; the first FF_TRACE_ACTIONS follow */
    struct ff_action actions[FF_TRACE_ACTIONS];
};
/*
 * Takes up to n records, their bytes into buf. Records that workers could not
 * store are counted in *lost (total since start). Returns how many.
 */
int ff_tap_drain(struct ff_tap_rec *recs, int n, uint8_t *buf, size_t buf_len, uint64_t *lost);

/* ---- idle --------------------------------------------------------------- */

/*
 * A worker that found nothing for spin_us sleeps until a queue of its own or a
 * call of the control thread wakes it. While it polls a queue that cannot wake
 * it (of a driver without receive interrupts), it sleeps for growing times up
 * to sleep_us between looks. sleep_us 0: never sleeps.
 */
void ff_idle_set(uint32_t spin_us, uint32_t sleep_us);

#endif
