/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ff_rdma.h: frames between hosts over RDMA. The messages as they are on the
 * wire, for whoever speaks them, and the control thread's calls. Part of ff.h,
 * whose rules hold here too.
 *
 * THE WIRE
 *
 * A peer is another host. Between two peers there are n reliable-connected
 * queue pairs (InfiniBand Architecture Specification, volume 1, section 9.7),
 * each joined to one of the other's. All messages are sends without immediate
 * data. A message is a header of 32 bytes, and behind that, in one of type
 * data, a whole Ethernet frame as an endpoint sent it, without FCS, of up to
 * FF_RDMA_FRAME_MAX bytes: a frame that is to be segmented, or that lacks its
 * checksum, says so in the virtio-net header and travels as it is. All numbers
 * are little-endian, as virtio's.
 *
 * Credits. A receiver has posted a buffer for each data message that the sender
 * may send, and tells their number: ff_rdma_end.credits at first, then
 * header.limit in every message. It counts all data messages on the queue pair
 * since it was connected, modulo 2^32. Who sends beyond it loses the queue pair. A
 * message of type credit tells a limit when no data goes that way; it and marks need
 * no credit, and FF_RDMA_SPARE buffers are there for them. Hence there is at most one
 * mark on its way, and a credit message only once the limit has grown by half of the
 * credits of the beginning.
 *
 * Marks. Who receives a mark answers with `marked` and the same number, on the same
 * queue pair, once it has passed on all that it received before.
 *
 * Barriers. Frames between the same hosts may have gone by VXLAN before, and must not be
 * overtaken. A barrier goes the same way behind them: in the place of a VXLAN header's 8
 * bytes there are zeros, so that it is in no network and nobody else takes it for a frame,
 * and struct ff_rdma_barrier follows. It has the UDP source port of the frames that it
 * follows. The sender's queue pair i asks in rounds, one at a time, of a barrier for each
 * source port. Who has received all of a round, and has passed on what came before
 * them, answers with `came` and the round, on that queue pair. A barrier may be
 * lost, and then there is no answer.
 */
#ifndef FF_RDMA_H
#define FF_RDMA_H

#include <assert.h>
#include <stdint.h>

#define FF_RDMA_MAGIC 0x44524646 /* "FFRD" */
#define FF_RDMA_VERSION 1
#define FF_RDMA_HEADER_LEN 32
/* virtio 1.1, section 5.1.6.3, and two VLAN tags */
#define FF_RDMA_FRAME_MAX 65558
#define FF_RDMA_CREDITS_MAX 32768
#define FF_RDMA_SPARE 8

enum ff_rdma_type {
    FF_RDMA_DATA = 1,
    FF_RDMA_CREDIT,
    FF_RDMA_MARK,   /* mark: any number */
    FF_RDMA_MARKED, /* mark: the number that was received */
    FF_RDMA_CAME    /* mark: the round of barriers that came */
};

struct ff_rdma_barrier {
    uint32_t magic;
    uint32_t epoch;
    uint32_t round; /* grows with each */
    uint16_t qp;    /* the sender's, from 0 */
    uint16_t n;     /* barriers of this round */
};

/* virtio 1.1, section 5.1.6, without num_buffers. */
struct ff_rdma_offload {
    uint8_t flags; /* VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_F_DATA_VALID */
    uint8_t gso_type;
    uint16_t hdr_len;
    uint16_t gso_size;
    uint16_t csum_start;
    uint16_t csum_offset;
};

struct ff_rdma_header {
    uint32_t magic;
    uint8_t version;
    uint8_t type; /* enum ff_rdma_type */
    struct ff_rdma_offload offload;
    union {
        uint32_t vni;  /* data: the frame's network */
        uint32_t mark; /* mark, marked, came */
    };
    uint32_t epoch; /* of the connection; others' messages are dropped */
    uint32_t len;   /* of the frame; 0: there is none */
    uint32_t limit; /* data messages that the receiver of this may have sent so far */
};

static_assert(sizeof(struct ff_rdma_barrier) == 16, "no padding");
static_assert(sizeof(struct ff_rdma_offload) == 10, "virtio_net_hdr without num_buffers");
static_assert(sizeof(struct ff_rdma_header) == FF_RDMA_HEADER_LEN, "no padding");
static_assert(offsetof(struct ff_rdma_header, type) == 5, "wire");
static_assert(offsetof(struct ff_rdma_header, offload) == 6, "wire");
static_assert(offsetof(struct ff_rdma_header, vni) == 16, "wire");
static_assert(offsetof(struct ff_rdma_header, epoch) == 20, "wire");
static_assert(offsetof(struct ff_rdma_header, len) == 24, "wire");
static_assert(offsetof(struct ff_rdma_header, limit) == 28, "wire");

/*
 * Whether a message of `len` bytes is one of this epoch: FF_DROP_NONE, or the
 * enum ff_drop for which it is dropped. Pure; any thread; needs no EAL.
 */
int ff_rdma_check(const uint8_t *message, uint32_t len, uint32_t epoch);

/*
 * The credits of one queue pair in both directions. Counts are of data messages since
 * the beginning, modulo 2^32. The functions are pure; any thread; need no EAL.
 */
struct ff_rdma_window {
    uint32_t posted;  /* we sent */
    uint32_t limit;   /* we may have sent */
    uint32_t arrived; /* we received */
    uint32_t granted; /* we have, or had, buffers for */
    uint32_t told;    /* the other knows to have buffers for */
    uint32_t credits; /* our buffers */
};

/* `credits` of our own buffers, `peer_credits` of the other's. */
void ff_rdma_window_open(struct ff_rdma_window *w, uint32_t credits, uint32_t peer_credits);
/* How many data messages may be sent now. */
uint32_t ff_rdma_window_left(const struct ff_rdma_window *w);
/* Takes the limit of a header; -EPROTO when it cannot be one. */
int ff_rdma_window_limit(struct ff_rdma_window *w, uint32_t limit);
/* A data message came; -EPROTO: there was no credit for it. */
int ff_rdma_window_arrive(struct ff_rdma_window *w);
/* Whether a credit message is due, when no data goes that way. */
int ff_rdma_window_owes(const struct ff_rdma_window *w);

/* ---- peers --------------------------------------------------------------- */

/*
 * A port of type FF_PORT_RDMA is one port of an RDMA device: ff_port_conf.devargs
 * is the device's name, rdma_port and gid_index choose the rest. Its receive queue
 * n is worker n's for good. It is ready as long as the device's port is active, else lost, and
 * says why. What it receives goes on as received by the vxlan port of its
 * VNI, like what an uplink unpacks, and is counted in the same way.
 */

#define FF_RDMA_MAX_PEERS 64
#define FF_RDMA_MAX_QPS 16

enum ff_rdma_state {
    FF_RDMA_NEW = 0,   /* it has queue pairs, and waits for the other's */
    FF_RDMA_CONNECTED, /* receives */
    FF_RDMA_ACTIVE,    /* and sends: a remote's frames go over it */
    FF_RDMA_FAILED     /* stays so: delete it and make a new one */
};

/* The state's name as people see it, "connected"; never NULL. Any thread. */
const char *ff_rdma_state_name(unsigned int state);

/* What one end has to tell the other. */
struct ff_rdma_end {
    uint8_t gid[16];
    uint16_t lid;     /* InfiniBand; 0 on Ethernet */
    uint16_t mtu;     /* payload bytes of a packet: 256 .. 4096 */
    uint16_t n_qps;   /* 1 .. FF_RDMA_MAX_QPS, the same at both ends */
    uint16_t credits; /* of each queue pair */
    uint32_t qpn[FF_RDMA_MAX_QPS];
    uint32_t psn[FF_RDMA_MAX_QPS];
};

/*
 * Makes a peer with n_qps queue pairs, which has to be at least the number of
 * workers of either end: queue pair i is worker i % n_workers's. Fills *peer (1 ..
 * FF_RDMA_MAX_PEERS) and *local. -ENOENT: no such port; -EINVAL; -ENOSPC: too many
 * peers; -errno of the device.
 */
int ff_rdma_peer_add(uint16_t port_id, uint16_t n_qps, uint16_t *peer, struct ff_rdma_end *local,
                     char *err);

/*
 * Joins the peer's queue pairs to those of the other end. `epoch` is the same at
 * both ends, and another one for each connection. A message that is not acknowledged within
 * 4.096 us * 2^timeout (1 .. 31) is repeated `retries` (0 .. 7) times before the peer fails.
 */
struct ff_rdma_connect {
    struct ff_rdma_end remote;
    uint32_t epoch;
    uint8_t timeout;
    uint8_t retries;
};
int ff_rdma_peer_connect(uint16_t peer, const struct ff_rdma_connect *conf, char *err);

/*
 * From now on frames for tunnel end `remote`, too, of flows whose FF_ACT_SET_TUNNEL
 * allows it, go over the connected peer, as long as it does not fail; what is for
 * the same end otherwise goes by VXLAN. remote 0: the peer sends no more, for any.
 * -ENOENT, -EINVAL: not connected, or no such tunnel end; -EBUSY: the end has another peer.
 */
int ff_rdma_peer_use(uint16_t peer, uint16_t remote);

/*
 * Sends a mark on each queue pair. When the other end has passed on all that was sent
 * before, an event FF_RDMA_DRAINED tells. -ENOENT, -EINVAL: not connected; -EBUSY: one is on its
 * way.
 */
int ff_rdma_peer_drain(uint16_t peer);

/*
 * A planned change of path, without loss, and in order for each flow.
 *
 * JOINING, before ff_rdma_peer_use: a flow's frames wait until a barrier says that what went
 * by VXLAN has come, and go over the peer then. When more wait than there is room for, they
 * go by VXLAN, behind the others, and a new barrier follows.
 * LEAVING sends a mark on each queue pair; frames wait for its answer, and go by
 * VXLAN then. FF_RDMA_DRAINED tells when that is so on all of them; ff_rdma_peer_use(peer, 0)
 * comes after it. When more wait than there is room for, they go over the peer, and
 * a new mark follows.
 * SETTLED, the beginning: there is no change, or there is none any more: what waits goes the new
 * way at once (counted as `unplanned`). To be called after the time for which VXLAN may at most
 * hold a frame: only then a source port's first frame needs no barrier any more. -ENOENT; -EINVAL:
 * JOINING in use, LEAVING not in use; -EBUSY: one after the other without SETTLED, or a mark is on
 * its way.
 */
enum ff_rdma_change { FF_RDMA_SETTLED = 0, FF_RDMA_JOINING, FF_RDMA_LEAVING };
int ff_rdma_peer_change(uint16_t peer, int change);

/* Ends a peer: its queue pairs are gone. Waits for quiescent states of the workers. -ENOENT. */
int ff_rdma_peer_del(uint16_t peer);

struct ff_rdma_stats {
    uint64_t tx_messages, tx_bytes; /* frames, with their bytes */
    uint64_t rx_messages, rx_bytes;
    uint64_t no_credit; /* frames dropped: the other end gives no credit */
    uint64_t no_room;   /* frames dropped: too much is unacknowledged */
    uint64_t uncertain; /* messages of which nobody knows whether they came, of one that failed */
    uint64_t doorbells; /* posts to the device, of any number of messages */
    uint64_t controls;  /* credit messages, marks and answers sent */
    uint64_t held;      /* frames that waited in a planned change of path, */
    uint64_t
        unplanned; /* and those that did so in vain: nobody knows whether they overtook others */
};
struct ff_rdma_peer_info {
    int state; /* enum ff_rdma_state */
    uint16_t port_id, n_qps;
    uint16_t remote; /* one of the tunnel ends that use it, 0: none does */
    uint32_t epoch;
    char reason[64]; /* why it failed */
    struct ff_rdma_stats stats;
};
int ff_rdma_peer_info(uint16_t peer, struct ff_rdma_peer_info *info);

enum ff_rdma_what { FF_RDMA_EVENT_FAILED = 1, FF_RDMA_EVENT_DRAINED };
struct ff_rdma_event {
    uint16_t peer;
    uint16_t what; /* enum ff_rdma_what */
};
/* Takes up to n events of peers; ff_event_fd is readable when there are some. Returns how many. */
int ff_rdma_event_drain(struct ff_rdma_event *events, int n);

/* A descriptor that is readable when the device of a port has something to say; -1: no such port.
 */
int ff_rdma_device_fd(uint16_t port_id);
/* Hears what it says: its port and peers change their states. Does not wait. */
void ff_rdma_device_drain(uint16_t port_id);

#endif
