/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ff_shm.h: what a memory port (type `ff`) shares with the switch and with its
 * neighbours: rings, a table of shortcuts, and the messages on its socket.
 *
 * Read by the switch's C, by the net_ff driver inside containers, and by cffi
 * as a cdef: so it holds only declarations, enums, integer #defines and static
 * asserts. Byte order is the host's. Fields that two sides touch at once are
 * plain integers here; each side uses the __atomic built-ins on them.
 *
 * Nobody trusts what another writes: an index or a descriptor is copied once,
 * checked against one's own tables, and only then used.
 *
 * MEMORY
 *
 * A region is a piece of a container's packet memory: a part of a file that it sent to the switch,
 * which numbers it. Numbers are unique on a host while they are in use, so a descriptor means the
 * same to everyone who has the region mapped.
 *
 * RINGS
 *
 * Each ring has one producer and one consumer, `size` descriptors (a power of two), and as many
 * slots. A ring's file holds one or more rings behind each other; the switch makes it and seals
 * its size.
 *
 * lend: the producer lends buffers with data. It puts a buffer into a free slot, writes a
 * descriptor that names slot and lap, and moves `tail`. The consumer reads up to `tail`, and when
 * it needs a buffer no more it writes the lap to mark[slot], in any order, from any thread: the
 * slot is free again once its mark equals its lap. So no descriptor is overwritten before it was
 * read. Laps count the uses of a slot, beginning with 1, modulo 256.
 *
 * post: the producer posts empty buffers, the consumer fills them in this order: what it did with
 * the descriptor at index i is in used[i], up to `used_tail`.
 *
 * A queue pair of a port with the switch is a lend ring (container to switch) and a post ring
 * (switch to container). A shortcut is a file of lend rings, one for each transmit queue of its
 * sender. A frame may lie in several buffers, with FF_DESC_MORE in all descriptors but the last;
 * tail and used_tail move by whole frames.
 *
 * TABLE
 *
 * Each port has a table that only the switch can write (F_SEAL_FUTURE_WRITE): which destination
 * MAC address goes to which of its outgoing shortcuts, and the state of its incoming ones.
 * `generation` grows with each change; who sees a new one reads the table again.
 *
 * CHANGE OF PATH, without loss, repetition or reordering. Sender A, receiver B.
 *
 * To a shortcut:
 *
 * 1. Both have the ring mapped and say so (FF_MSG_DONE).
 * 2. The switch sets in[] of B to FF_IN_OPENING, then out[] of A.
 * 3. A, at its next burst on a transmit queue, writes a marker (FF_DESC_MARKER) to the switch's
 *    ring behind all that it sent there, and goes on in the shortcut.
 * 4. The worker comes to the marker, has nothing of that queue parked, sends out what it holds,
 *    sets open_at[] of B's queues to their used_tail, and then the bit of A's queue in `opened`.
 * 5. B takes from the shortcut's ring once it has taken all before open_at.
 *
 * And back:
 *
 * 1. The switch sets in[] of B to FF_IN_CLOSING, then takes A's out[] away.
 * 2. A, at its next burst, goes on in the switch's ring.
 * 3. B reads used_tail, then the generation, then the ring, and takes nothing from before that
 *    used_tail until the ring is empty. What A sent to the ring was visible before what it then
 *    sent through the switch, so this is enough.
 *
 * An incoming ring that nothing was taken from yet waits in the same way for closing rings: a
 * sender may go from one shortcut to the next without a frame in between.
 */
#ifndef FF_SHM_H
#define FF_SHM_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define FF_SHM_MAGIC 0x46465348 /* "FFSH" */
#define FF_SHM_VERSION 1
#define FF_SHM_QUEUES 16      /* queue pairs of a port */
#define FF_SHM_SHORTCUTS 256  /* of a port, each way */
#define FF_SHM_REGIONS 64     /* of one container */
#define FF_SHM_RING_MIN 64    /* descriptors of a ring: a power of two from here */
#define FF_SHM_RING_MAX 16384 /* to here */
#define FF_SHM_CHAIN_MAX 64   /* buffers of a frame */
#define FF_SHM_TEXT 128       /* bytes of a text, NUL included */

/* ---- rings -------------------------------------------------------------- */

enum ff_shm_desc_flag {
    FF_DESC_MORE = 1,   /* the frame goes on in the next descriptor */
    FF_DESC_MARKER = 2, /* not a frame: see CHANGE OF PATH. offset: epoch, region: shortcut */
    FF_DESC_HOP = 16    /* times how often the frame was passed on: the upper four bits */
};
/* A frame that was passed on so often is copied, so that loops do not bind all buffers. */
#define FF_SHM_HOPS 7

struct ff_shm_desc {
    uint32_t offset; /* of the data in its region */
    uint16_t region; /* its number */
    uint16_t len;    /* bytes of data; of a posted buffer: bytes that fit; never 0 but in markers */
    uint16_t before; /* bytes in front of the data that the consumer may write */
    uint16_t behind; /* and behind it */
    uint16_t slot;
    uint8_t lap;
    uint8_t flags; /* union of enum ff_shm_desc_flag */
};
static_assert(sizeof(struct ff_shm_desc) == 16, "four a cache line");
static_assert(offsetof(struct ff_shm_desc, region) == 4, "layout");
static_assert(offsetof(struct ff_shm_desc, len) == 6, "layout");
static_assert(offsetof(struct ff_shm_desc, before) == 8, "layout");
static_assert(offsetof(struct ff_shm_desc, behind) == 10, "layout");
static_assert(offsetof(struct ff_shm_desc, slot) == 12, "layout");
static_assert(offsetof(struct ff_shm_desc, lap) == 14, "layout");
static_assert(offsetof(struct ff_shm_desc, flags) == 15, "layout");

/* Post rings: what became of the posted buffer of the same index. */
struct ff_shm_used {
    uint16_t len;   /* bytes written */
    uint16_t flags; /* FF_DESC_MORE */
};
static_assert(sizeof(struct ff_shm_used) == 4, "layout");
static_assert(offsetof(struct ff_shm_used, flags) == 2, "layout");

/* The head of a ring; a line for each writer, and one for what hardly ever changes. */
struct ff_shm_ring {
    /* written once, before anybody else sees it */
    uint32_t magic;
    uint32_t version;
    uint32_t size;  /* descriptors, slots and used entries */
    uint32_t epoch; /* of the shortcut; 0: a ring with the switch */
    /* the consumer's, here since the producer reads it after each burst */
    uint32_t listen; /* 1: the consumer sleeps; whoever moves tail then writes to its eventfd */
    uint8_t pad0[44];

    /* the producer's */
    uint32_t tail; /* free-running index of the next descriptor */
    uint32_t pad1;
    uint64_t packets, bytes; /* sent, for statistics: what the producer says */
    uint8_t pad2[40];

    /* the consumer's */
    uint32_t used_tail; /* post rings: free-running; lend rings: index up to which it has read */
    uint8_t pad3[60];
    /* then: struct ff_shm_desc desc[size]; lend: uint8_t mark[size], post: struct ff_shm_used
     * used[size] */
};
static_assert(sizeof(struct ff_shm_ring) == 192, "three cache lines");
static_assert(offsetof(struct ff_shm_ring, version) == 4, "layout");
static_assert(offsetof(struct ff_shm_ring, size) == 8, "layout");
static_assert(offsetof(struct ff_shm_ring, epoch) == 12, "layout");
static_assert(offsetof(struct ff_shm_ring, listen) == 16, "layout");
static_assert(offsetof(struct ff_shm_ring, tail) == 64, "layout");
static_assert(offsetof(struct ff_shm_ring, packets) == 72, "layout");
static_assert(offsetof(struct ff_shm_ring, bytes) == 80, "layout");
static_assert(offsetof(struct ff_shm_ring, used_tail) == 128, "layout");

/*
 * A ring of either kind takes FF_RING_HEAD + size * FF_RING_ENTRY bytes, which is a multiple of
 * 64: the descriptors, then marks (size bytes) or used entries (4 * size).
 */
#define FF_RING_HEAD 192
#define FF_RING_ENTRY 20

/* ---- the port's table ----------------------------------------------------- */

enum ff_shm_in_state {
    FF_IN_FREE = 0, /* leave its ring alone */
    FF_IN_OPENING,  /* take from a ring once `opened` says so, and all before open_at was taken */
    FF_IN_CLOSING   /* empty its rings before anything that came by the switch later */
};

/* Frames to mac, without a VLAN tag and of at most max_len bytes, go to shortcut `number`. */
struct ff_shm_out {
    uint8_t mac[6];
    uint16_t number; /* 0 .. FF_SHM_SHORTCUTS - 1: that of this entry */
    uint32_t epoch;  /* 0: the entry is free; else as in the head of the shortcut's rings */
    uint32_t max_len;
};
static_assert(sizeof(struct ff_shm_out) == 16, "layout");
static_assert(offsetof(struct ff_shm_out, number) == 6, "layout");
static_assert(offsetof(struct ff_shm_out, epoch) == 8, "layout");
static_assert(offsetof(struct ff_shm_out, max_len) == 12, "layout");

struct ff_shm_in {
    uint32_t state; /* enum ff_shm_in_state */
    uint32_t epoch;
    uint32_t opened; /* bit q: ring q, of the sender's transmit queue q, may be taken from */
    uint32_t pad;
    /* open_at[16 * q + k]: used_tail of the receiver's queue k when ring q was opened */
    uint32_t open_at[256];
};
static_assert(sizeof(struct ff_shm_in) == 16 + 4 * 256, "layout");
static_assert(offsetof(struct ff_shm_in, epoch) == 4, "layout");
static_assert(offsetof(struct ff_shm_in, opened) == 8, "layout");
static_assert(offsetof(struct ff_shm_in, open_at) == 16, "layout");

struct ff_shm_table {
    uint32_t magic;
    uint32_t version;
    uint32_t generation; /* grows with each change */
    uint32_t pad[13];
    struct ff_shm_out out[FF_SHM_SHORTCUTS];
    struct ff_shm_in in[FF_SHM_SHORTCUTS];
};
static_assert(offsetof(struct ff_shm_table, version) == 4, "layout");
static_assert(offsetof(struct ff_shm_table, generation) == 8, "layout");
static_assert(offsetof(struct ff_shm_table, out) == 64, "layout");
static_assert(offsetof(struct ff_shm_table, in) == 64 + 16 * 256, "layout");

/* ---- messages: SOCK_SEQPACKET, one struct ff_shm_msg each ------------------------ */

/*
 * The switch listens at ff.sock in the port's directory; one connection at a time has the
 * port. The container says HELLO and is answered WELCOME, or ERROR. It sends its REGIONs and START,
 * and is answered RINGS, or ERROR; from then on packets flow. STOP ends that and is answered DONE.
 * A container that finds the connection closed connects again and begins anew.
 *
 * What the switch asks of a running container carries a `serial`, and is answered DONE or ERROR
 * with the same one: NEIGHBOUR (map a region), SHORTCUT (map a file of rings), and their ends:
 * UNMAP is answered DONE when no mbuf of the application lies in the region any more, DROP when the
 * shortcut's rings are in no use: as receiver, no buffer of it is held; as sender, no transmit
 * queue uses it. RECLAIM tells a sender to take back what the receiver has not given back, because
 * it is gone.
 */
enum ff_shm_msg_type {
    FF_MSG_HELLO = 1, /* to the switch: version, mac (zero: give me one), text: who asks */
    FF_MSG_WELCOME,   /* from it: mac, mtu, queues: at most so many pairs, text: the port's name */
    FF_MSG_REGION,    /* to: number 0, 1, ..: size, offset; fd: the file */
    FF_MSG_START,     /* to: rx_queues, tx_queues, ring_size */
    FF_MSG_RINGS, /* from: region: number of the first; fds: rings (a lend and a post ring for each
                     queue pair), table, then an eventfd for each transmit queue */
    FF_MSG_STOP,  /* to */
    FF_MSG_NEIGHBOUR, /* from: region, size, offset, flags: FF_MSG_READ_ONLY; fd: the file */
    FF_MSG_UNMAP,     /* from: region */
    FF_MSG_SHORTCUT,  /* from: number, epoch, flags: FF_MSG_OUT, tx_queues: rings in the file,
                         ring_size; fd: the file;  text: the neighbour */
    FF_MSG_DROP,      /* from: number, flags: FF_MSG_OUT */
    FF_MSG_RECLAIM,   /* from: number, of an outgoing one */
    FF_MSG_GRANT, /* from: number, of an outgoing one; region: the receiver has mapped it too, so
                     frames in it need no copy. Ends with UNMAP or DROP */
    FF_MSG_LINK,  /* from: flags 1: up, 0: down; mtu */
    FF_MSG_DONE,  /* either way */
    FF_MSG_ERROR  /* either way: text: one line for people */
};
#define FF_MSG_OUT 1       /* the container is the sender */
#define FF_MSG_READ_ONLY 2 /* map it for reading, and copy what is received */
#define FF_MSG_FDS 18      /* file descriptors with one message, at most */

struct ff_shm_msg {
    uint16_t type; /* enum ff_shm_msg_type */
    uint16_t flags;
    uint32_t serial; /* 0: no answer wanted */
    uint32_t version;
    uint32_t epoch;
    uint16_t number;
    uint16_t region;
    uint16_t rx_queues, tx_queues;
    uint16_t queues;
    uint8_t mac[6];
    uint32_t ring_size;
    uint32_t mtu;
    uint64_t size, offset;
    char text[FF_SHM_TEXT];
};
static_assert(sizeof(struct ff_shm_msg) == 184, "layout");
static_assert(offsetof(struct ff_shm_msg, flags) == 2, "layout");
static_assert(offsetof(struct ff_shm_msg, serial) == 4, "layout");
static_assert(offsetof(struct ff_shm_msg, version) == 8, "layout");
static_assert(offsetof(struct ff_shm_msg, epoch) == 12, "layout");
static_assert(offsetof(struct ff_shm_msg, number) == 16, "layout");
static_assert(offsetof(struct ff_shm_msg, region) == 18, "layout");
static_assert(offsetof(struct ff_shm_msg, rx_queues) == 20, "layout");
static_assert(offsetof(struct ff_shm_msg, tx_queues) == 22, "layout");
static_assert(offsetof(struct ff_shm_msg, queues) == 24, "layout");
static_assert(offsetof(struct ff_shm_msg, mac) == 26, "layout");
static_assert(offsetof(struct ff_shm_msg, ring_size) == 32, "layout");
static_assert(offsetof(struct ff_shm_msg, mtu) == 36, "layout");
static_assert(offsetof(struct ff_shm_msg, size) == 40, "layout");
static_assert(offsetof(struct ff_shm_msg, offset) == 48, "layout");
static_assert(offsetof(struct ff_shm_msg, text) == 56, "layout");

#endif
