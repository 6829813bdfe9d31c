/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What queues run on, from RINGS to the end: set up, taken down, and looked after, until no mbuf of
 * this process lies in a neighbour's memory, and no neighbour has one of ours.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "control.h"

#define SWEEP_MS 1000 /* senders may not have seen yet that the switch is gone */

static const char *const faults[] = {
    [FF_RING_JUMP] = "an index beyond the ring",
    [FF_RING_SLOT] = "a slot beyond the ring",
    [FF_RING_LAP] = "a slot out of its turn",
    [FF_RING_CHAIN] = "a frame without an end",
    [FF_RING_ADDRESS] = "a buffer outside of the memory that is mapped",
    [FF_RING_LENGTH] = "more bytes than a buffer takes",
};

/* ---- up --------------------------------------------------------------------------- */

static void *map_file(int fd, size_t size, int protection) {
    struct stat st;
    void *map = MAP_FAILED;

    if (fstat(fd, &st) == 0 && (uint64_t)st.st_size >= size)
        map = mmap(NULL, size, protection, MAP_SHARED, fd, 0);
    return map == MAP_FAILED ? NULL : map;
}

static int map_all(struct ff_dev *dev, const int *fds, int n, char *why) {
    uint16_t pairs = RTE_MAX(dev->n_rx, dev->n_tx);
    const struct ff_shm_table *table;

    if (n != 2 + dev->n_tx) {
        snprintf(why, FF_SHM_TEXT, "RINGS came with %d files, not %u", n, 2u + dev->n_tx);
        return -EPROTO;
    }
    dev->rings_size = 2ull * pairs * ff_ring_bytes(dev->ring_size);
    dev->rings = map_file(fds[0], dev->rings_size, PROT_READ | PROT_WRITE);
    dev->table_map = map_file(fds[1], sizeof(struct ff_shm_table), PROT_READ);
    table = dev->table_map;
    if (dev->rings == NULL || table == NULL || table->magic != FF_SHM_MAGIC ||
        table->version != FF_SHM_VERSION) {
        snprintf(why, FF_SHM_TEXT, "the files of RINGS are no rings of %u and no table",
                 dev->ring_size);
        return -EPROTO;
    }
    return 0;
}

static struct ff_shm_ring *ring_at(const struct ff_dev *dev, uint16_t n) {
    return (void *)((uint8_t *)dev->rings + n * ff_ring_bytes(dev->ring_size));
}

static int open_queues(struct ff_dev *dev, const int *fds, char *why) {
    for (uint16_t i = 0; i < 2 * RTE_MAX(dev->n_rx, dev->n_tx); i++) {
        if (!ff_ring_is(ring_at(dev, i), dev->ring_size, 0)) {
            snprintf(why, FF_SHM_TEXT, "the head of ring %u is another's", i);
            return -EPROTO;
        }
    }
    snprintf(why, FF_SHM_TEXT, "no memory");
    for (uint16_t i = 0; i < dev->n_tx; i++) {
        struct ff_txq *q = dev->txq[i];

        if (ff_out_ring_init(&q->ring, ring_at(dev, 2 * i), dev->ring_size) != 0)
            return -ENOMEM;
        q->kick_fd = fcntl(fds[2 + i], F_DUPFD_CLOEXEC, 0);
        q->passing = false;
        q->last = &dev->own[0];
        memset(q->marked, 0, sizeof(q->marked));
    }
    for (uint16_t i = 0; i < dev->n_rx; i++)
        if (ff_rx_open(dev->rxq[i], ring_at(dev, 2 * i + 1), dev->ring_size) != 0)
            return -ENOMEM;
    return 0;
}

/* Maps what RINGS brought, and lets the queues run. fds stay the caller's. */
int ff_data_up(struct ff_dev *dev, const struct ff_shm_msg *msg, const int *fds, int n, char *why) {
    int rc = map_all(dev, fds, n, why);

    if (rc != 0)
        return rc;
    for (uint16_t i = 0; i < dev->n_own; i++) {
        dev->own[i].number = msg->region + i;
        dev->region[dev->own[i].number] = &dev->own[i];
    }
    rc = open_queues(dev, fds, why);
    if (rc != 0)
        return rc;
    dev->table = dev->table_map;
    ff_publish(dev);
    for (uint16_t i = 0; i < dev->n_rx; i++)
        __atomic_store_n(&dev->rxq[i]->up, dev->rxq[i]->view != NULL, __ATOMIC_RELEASE);
    for (uint16_t i = 0; i < dev->n_tx; i++)
        __atomic_store_n(&dev->txq[i]->up, true, __ATOMIC_RELEASE);
    return 0;
}

/* Whether the switch broke the rules of its own rings. */
bool ff_data_broken(const struct ff_dev *dev) {
    for (uint16_t i = 0; i < dev->n_rx; i++)
        if (__atomic_load_n(&dev->rxq[i]->fault, __ATOMIC_ACQUIRE) != FF_RING_GOOD)
            return true;
    return false;
}

/* ---- down -------------------------------------------------------------------------- */

/* Keeps bursts out. */
void ff_data_quiet(struct ff_dev *dev) {
    for (uint16_t i = 0; i < dev->n_rx; i++)
        __atomic_store_n(&dev->rxq[i]->up, false, __ATOMIC_RELEASE);
    for (uint16_t i = 0; i < dev->n_tx; i++)
        __atomic_store_n(&dev->txq[i]->up, false, __ATOMIC_RELEASE);
    ff_quiesce(dev);
}

static void close_queues(struct ff_dev *dev) {
    for (uint16_t i = 0; i < dev->n_tx; i++) {
        struct ff_txq *q = dev->txq[i];

        if (q->ring.mbuf == NULL)
            continue;
        ff_out_seize(&q->ring);
        ff_out_ring_free(&q->ring);
        memset(&q->ring, 0, sizeof(q->ring));
        if (q->kick_fd >= 0)
            close(q->kick_fd);
        q->kick_fd = -1;
    }
    for (uint16_t i = 0; i < dev->n_rx; i++) {
        ff_rx_close(dev->rxq[i]);
        free(dev->rxq[i]->view);
        dev->rxq[i]->view = NULL;
    }
}

/* Takes everything away from the queues. The switch has left its rings. What is lent to neighbours,
 * and by them, stays as long as it is. */
void ff_data_down(struct ff_dev *dev) {
    ff_data_quiet(dev);
    while (dev->ins != NULL) {
        struct ff_in *in = dev->ins;

        ff_drop_in(dev, in);
        in->serial = 0;
        in->give_up = ff_now_ms() + SWEEP_MS;
    }
    while (dev->outs_list != NULL)
        ff_drop_out(dev, dev->outs_list);
    for (struct ff_region *r = dev->regions; r != NULL; r = r->next) {
        if (!r->going)
            r->serial = 0;
        r->going = true;
    }
    memset(dev->region, 0, FF_NUMBERS * sizeof(*dev->region));
    close_queues(dev);
    dev->table = NULL;
    if (dev->rings != NULL)
        munmap(dev->rings, dev->rings_size);
    if (dev->table_map != NULL)
        munmap(dev->table_map, sizeof(struct ff_shm_table));
    dev->rings = dev->table_map = NULL;
}

/* The application's pools may go: whatever neighbours still have of them is freed. */
void ff_data_take_back(struct ff_dev *dev) {
    while (dev->old_outs != NULL) {
        struct ff_out *out = dev->old_outs;

        dev->old_outs = out->next;
        ff_out_free(out);
    }
}

/* ---- looked after ------------------------------------------------------------------- */

static bool is_empty(const struct ff_in *in) {
    for (uint16_t q = 0; q < in->n_rings; q++) {
        const struct ff_in_ring *r = &in->ring[q];

        if (r->phase != FF_RING_BROKEN && __atomic_load_n(&r->b.ring->tail, __ATOMIC_ACQUIRE) !=
                                              __atomic_load_n(&r->taken, __ATOMIC_ACQUIRE))
            return false;
    }
    return true;
}

static void tell_faults(struct ff_dev *dev, struct ff_in *in) {
    char text[FF_SHM_TEXT];

    for (uint16_t q = 0; q < in->n_rings && !in->told; q++) {
        uint8_t fault = __atomic_load_n(&in->ring[q].fault, __ATOMIC_ACQUIRE);

        if (fault == FF_RING_GOOD)
            continue;
        in->told = true;
        snprintf(text, sizeof(text), "shortcut %u from %.40s is not used any more: %s", in->number,
                 in->neighbour, faults[fault]);
        ff_control_complain(dev, (struct ff_shm_msg){.number = in->number, .epoch = in->epoch},
                            text);
    }
}

static bool tick_ins(struct ff_dev *dev) {
    uint64_t now = ff_now_ms();
    bool busy = false;

    for (struct ff_in *in = dev->ins, *next; in != NULL; in = next) {
        next = in->next;
        tell_faults(dev, in);
        if (in->going && (is_empty(in) || now >= in->give_up || dev->link != FF_RUNNING)) {
            in->give_up = now;
            ff_drop_in(dev, in);
        }
        busy |= in->going;
    }
    for (struct ff_in **at = &dev->old_ins; *at != NULL;) {
        struct ff_in *in = *at;

        if (now < in->give_up)
            ff_in_discard(in);
        if (now < in->give_up || ff_in_held(in, NULL)) {
            at = &in->next;
            busy = true;
            continue;
        }
        *at = in->next;
        ff_control_answer(dev, in->serial, NULL);
        ff_in_free(in);
    }
    return busy;
}

static bool tick_outs(struct ff_dev *dev) {
    bool busy = false;

    for (struct ff_out **at = &dev->old_outs; *at != NULL;) {
        struct ff_out *out = *at;
        uint32_t lent = 0;

        for (uint16_t q = 0; q < out->n_rings; q++)
            lent += ff_out_collect(&out->ring[q]);
        if (lent > 0) {
            at = &out->next;
            busy = true;
            continue;
        }
        *at = out->next;
        ff_out_free(out);
    }
    return busy;
}

static bool is_held(const struct ff_dev *dev, const struct ff_region *r) {
    for (const struct ff_in *in = dev->ins; in != NULL; in = in->next)
        if (ff_in_held(in, r))
            return true;
    for (const struct ff_in *in = dev->old_ins; in != NULL; in = in->next)
        if (ff_in_held(in, r))
            return true;
    return false;
}

static bool tick_regions(struct ff_dev *dev) {
    bool busy = false;

    for (struct ff_region **at = &dev->regions; *at != NULL;) {
        struct ff_region *r = *at;

        if (__atomic_load_n(&r->lost, __ATOMIC_ACQUIRE) && !r->told) {
            char text[FF_SHM_TEXT];

            r->told = true;
            snprintf(text, sizeof(text), "region %u was taken away by its owner", r->number);
            ff_control_complain(dev, (struct ff_shm_msg){.region = r->number}, text);
        }
        if (!r->going || is_held(dev, r)) {
            busy |= r->going;
            at = &r->next;
            continue;
        }
        *at = r->next;
        ff_control_answer(dev, r->serial, NULL);
        ff_memory_free(r);
    }
    return busy;
}

/* Tells the switch what it has to know, and frees what is not used any more; true when there is
 * something left to wait for. */
bool ff_data_tick(struct ff_dev *dev) {
    bool busy = tick_ins(dev);

    busy |= tick_outs(dev);
    busy |= tick_regions(dev);
    return busy;
}
