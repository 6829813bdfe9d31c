/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory ports, the part of ff.h that is about them: what a container shares, and its shortcuts to
 * others. What lies in the shared memory is in ff_shm.h.
 */
#ifndef FF_MEMORY_H
#define FF_MEMORY_H

#include <stdint.h>

/* A piece of a file that a container sent: its packet memory. */
struct ff_mem_file {
    int fd; /* of a memfd, or on tmpfs or hugetlbfs */
    uint64_t offset, size;
};

/* What a container and the switch share from FF_MSG_RINGS on. File descriptors stay the caller's.
 */
struct ff_mem_conf {
    const struct ff_mem_file *regions;
    uint16_t n_regions;            /* 1 .. FF_SHM_REGIONS */
    uint16_t first_region;         /* number of the first; the others follow */
    uint16_t rx_queues, tx_queues; /* the container's: post rings and lend rings */
    uint32_t ring_size;
    /*
     * Zeroed, and of a size that nobody can change. Queue pair q: a lend ring at
     * 2 * q * (FF_RING_HEAD + ring_size * FF_RING_ENTRY), the post ring behind it. Their heads are
     * filled in here.
     */
    int rings_fd;
    int table_fd; /* struct ff_shm_table, zeroed: mapped for writing here, to be sealed afterwards
                   */
    const int *kick_fds; /* an eventfd for each of the container's transmit queues */
};

/*
 * Maps all of it and polls: the port is READY. -EBUSY when it is attached already, -ENOENT,
 * -ENOMEM, -EINVAL for what does not fit. Waits for the workers (µs).
 */
int ff_mem_attach(uint16_t port_id, const struct ff_mem_conf *conf, char *err);

/*
 * The container is gone or has stopped: waits for the workers, unmaps; the port is WAITING. What
 * shortcuts it still has are closed; those with a container at the other end are to be freed.
 * -ENOENT.
 */
int ff_mem_detach(uint16_t port_id, char *err);

/* A shortcut of one direction. `out` and `in` are its numbers at the sender and at the receiver. */
struct ff_shortcut {
    uint16_t from, to; /* port ids */
    uint16_t out, in;  /* 0 .. FF_SHM_SHORTCUTS - 1 */
    uint32_t epoch;    /* never 0; grows with each shortcut of the switch */
    uint8_t mac[6];
    uint32_t max_len;
    uint16_t queues; /* rings: the sender's transmit queues */
};

/*
 * Step 2 of a change to a shortcut: in[] of the receiver becomes OPENING, then out[] of the sender
 * is published; a worker does step 4 when it comes to the sender's marker. -ENOTCONN when one of
 * them is not attached, -EBUSY when a number is in use, -EINVAL.
 */
int ff_shortcut_open(const struct ff_shortcut *s);

/* Step 1 of the way back: in[] becomes CLOSING, then out[] is taken away. */
int ff_shortcut_close(const struct ff_shortcut *s);

/*
 * Both sides have answered DROP with DONE, or are gone: in[] becomes FREE, the numbers may be used
 * again. Waits for the workers (µs). -EBUSY when it was not closed.
 */
int ff_shortcut_free(const struct ff_shortcut *s);

#endif
