/* SPDX-License-Identifier: Apache-2.0 */
/* What a memory port maps of its container: regions, rings, table. Control thread. */
#include <errno.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "memport.h"

#define OFFSETS (1ull << 32) /* that a descriptor can name */

/*
 * Maps `size` bytes of a file from `offset` on. Only of a file whose pages the kernel
 * itself provides: with any other, its owner could let a worker wait. NULL, with err.
 */
static uint8_t *map(struct ff_memport *m, int fd, uint64_t offset, uint64_t size, const char *what,
                    char *err) {
    const char *name = m->port->name;
    struct statfs fs;
    struct stat st;
    uint64_t page;
    void *p;

    if (fstat(fd, &st) != 0 || fstatfs(fd, &fs) != 0) {
        snprintf(err, FF_ERR_LEN, "%s: %s: %s", name, what, strerror(errno));
        return NULL;
    }
    if (!S_ISREG(st.st_mode) || (fs.f_type != TMPFS_MAGIC && fs.f_type != HUGETLBFS_MAGIC)) {
        snprintf(err, FF_ERR_LEN, "%s: %s is no memfd, and on no tmpfs or hugetlbfs", name, what);
        return NULL;
    }
    page = fs.f_type == HUGETLBFS_MAGIC ? (uint64_t)fs.f_bsize : (uint64_t)getpagesize();
    if (size == 0 || offset % page != 0 || size > (uint64_t)st.st_size ||
        offset > (uint64_t)st.st_size - size) {
        snprintf(err, FF_ERR_LEN,
                 "%s: %s: %lu bytes from %lu on do not lie in a file of %lu, in whole pages", name,
                 what, size, offset, (uint64_t)st.st_size);
        return NULL;
    }
    size = RTE_ALIGN_CEIL(size, page);
    p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
    if (p == MAP_FAILED) {
        snprintf(err, FF_ERR_LEN, "%s: %s cannot be mapped: %s", name, what, strerror(errno));
        return NULL;
    }
    m->mem.region[m->mem.n++] =
        (struct ff_region){.size = size, .host = p, .map = p, .map_size = size};
    return p;
}

static int map_regions(struct ff_memport *m, const struct ff_mem_conf *conf, char *err) {
    for (uint16_t i = 0; i < conf->n_regions; i++) {
        const struct ff_mem_file *f = &conf->regions[i];
        char what[32];

        snprintf(what, sizeof(what), "region %u", i);
        if (f->size > OFFSETS) {
            snprintf(err, FF_ERR_LEN, "%s: %s is larger than 4 GiB: split it", m->port->name, what);
            return -EINVAL;
        }
        m->map[i].base = map(m, f->fd, f->offset, f->size, what, err);
        if (m->map[i].base == NULL)
            return -EINVAL;
        m->map[i].size = f->size;
    }
    m->maps =
        (struct ff_shm_maps){.map = m->map, .n = conf->n_regions, .first = conf->first_region};
    return 0;
}

static int map_rings(struct ff_memport *m, const struct ff_mem_conf *conf, char *err) {
    uint64_t bytes = ff_ring_bytes(conf->ring_size);
    uint16_t pairs = RTE_MAX(conf->rx_queues, conf->tx_queues);
    uint8_t *rings = map(m, conf->rings_fd, 0, 2 * pairs * bytes, "its rings", err);

    if (rings == NULL)
        return -EINVAL;
    for (uint16_t q = 0; q < pairs; q++) {
        struct ff_shm_ring *lend = (struct ff_shm_ring *)(void *)(rings + 2 * q * bytes);
        struct ff_shm_ring *post = (struct ff_shm_ring *)(void *)((uint8_t *)lend + bytes);
        struct ff_memport_in *in = &m->in[q];

        ff_ring_make(lend, conf->ring_size, 0);
        ff_ring_make(post, conf->ring_size, 0);
        ff_fill_init(&m->out[q].ring, post, conf->ring_size);
        if (q >= conf->tx_queues)
            continue;
        in->slots = malloc(FF_BORROWER_MEM(conf->ring_size));
        if (in->slots == NULL) {
            snprintf(err, FF_ERR_LEN, "%s: no memory", m->port->name);
            return -ENOMEM;
        }
        in->kick = ff_waker_open(conf->kick_fds[q]);
        if (in->kick.fd < 0) {
            snprintf(err, FF_ERR_LEN, "%s: kick descriptor %u is no eventfd", m->port->name, q);
            return -EINVAL;
        }
        ff_borrow_init(&in->ring, lend, conf->ring_size, in->slots);
    }
    return 0;
}

static int map_table(struct ff_memport *m, const struct ff_mem_conf *conf, char *err) {
    m->table = (struct ff_shm_table *)(void *)map(m, conf->table_fd, 0, sizeof(*m->table),
                                                  "its table", err);
    if (m->table == NULL)
        return -EINVAL;
    m->table->magic = FF_SHM_MAGIC;
    m->table->version = FF_SHM_VERSION;
    return 0;
}

void ff_memport_unmap(struct ff_memport *m) {
    unsigned int n = m->mem.n;

    m->mem.n = 0; /* nobody's memory any more: sigbus.c */
    for (unsigned int i = 0; i < n; i++)
        (void)munmap(m->mem.region[i].map, m->mem.region[i].map_size);
    for (unsigned int q = 0; q < FF_MAX_QUEUES; q++) {
        ff_waker_close(&m->in[q].kick);
        free(m->in[q].slots);
        m->in[q].slots = NULL;
        m->in[q].n_taken = 0;
    }
    atomic_store(&m->mem.lost, false);
    m->maps.n = 0;
    m->table = NULL;
    for (unsigned int i = 0; i < FF_SHM_SHORTCUTS; i++)
        atomic_store(&m->newest[i], 0);
    m->attached = false;
}

static int check(const struct ff_memport *m, const struct ff_mem_conf *conf, char *err) {
    uint16_t most = m->port->rx_queues;

    if (m->attached) {
        snprintf(err, FF_ERR_LEN, "%s: a container has it already", m->port->name);
        return -EBUSY;
    }
    if (conf->rx_queues == 0 || conf->rx_queues > most || conf->tx_queues == 0 ||
        conf->tx_queues > most) {
        snprintf(err, FF_ERR_LEN, "%s: %u receive and %u transmit queues: 1 to %u are possible",
                 m->port->name, conf->rx_queues, conf->tx_queues, most);
        return -EINVAL;
    }
    if (!ff_ring_size_ok(conf->ring_size)) {
        snprintf(err, FF_ERR_LEN, "%s: rings of %u: a power of two from %u to %u is possible",
                 m->port->name, conf->ring_size, FF_SHM_RING_MIN, FF_SHM_RING_MAX);
        return -EINVAL;
    }
    if (conf->n_regions == 0 || conf->n_regions > FF_SHM_REGIONS ||
        conf->first_region > UINT16_MAX - conf->n_regions) {
        snprintf(err, FF_ERR_LEN, "%s: %u regions from number %u on: 1 to %u are possible",
                 m->port->name, conf->n_regions, conf->first_region, FF_SHM_REGIONS);
        return -EINVAL;
    }
    return 0;
}

int ff_mem_attach(uint16_t port_id, const struct ff_mem_conf *conf, char *err) {
    struct ff_memport *m = ff_memport(port_id);
    int rc;

    if (m == NULL) {
        snprintf(err, FF_ERR_LEN, "no memory port has number %u", port_id);
        return -ENOENT;
    }
    rc = check(m, conf, err);
    if (rc != 0)
        return rc;
    rc = map_regions(m, conf, err);
    if (rc == 0)
        rc = map_rings(m, conf, err);
    if (rc == 0)
        rc = map_table(m, conf, err);
    if (rc != 0) {
        ff_memport_unmap(m);
        return rc;
    }
    m->attached = true;
    m->rx_queues = conf->rx_queues;
    m->tx_queues = conf->tx_queues;
    for (uint16_t q = 0; q < conf->rx_queues; q++)
        atomic_store_explicit(&m->out[q].active, true, memory_order_release);
    for (uint16_t q = 0; q < conf->tx_queues; q++)
        atomic_store_explicit(&m->in[q].active, true, memory_order_release);
    ff_port_set_tx_queues(m->port, conf->rx_queues);
    atomic_store_explicit(&m->port->ready, true, memory_order_release);
    ff_wake_all();
    ff_port_state(m->port, FF_PORT_READY, "%u transmit and %u receive queue%s", conf->tx_queues,
                  conf->rx_queues, conf->rx_queues == 1 ? "" : "s");
    return 0;
}

int ff_mem_detach(uint16_t port_id, char *err) {
    struct ff_memport *m = ff_memport(port_id);

    if (m == NULL) {
        snprintf(err, FF_ERR_LEN, "no memory port has number %u", port_id);
        return -ENOENT;
    }
    if (!m->attached)
        return 0;
    atomic_store(&m->port->ready, false);
    for (unsigned int q = 0; q < FF_MAX_QUEUES; q++) {
        atomic_store(&m->in[q].active, false);
        atomic_store(&m->out[q].active, false);
    }
    ff_links_drop(m);
    ff_synchronize();
    ff_memport_unmap(m);
    ff_port_set_tx_queues(m->port, 0);
    ff_port_state(m->port, FF_PORT_WAITING, "no container is connected");
    ff_reclaim();
    return 0;
}
