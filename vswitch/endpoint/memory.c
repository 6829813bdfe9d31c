/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packet memory: which files EAL keeps this process's in, and neighbours' mapped here.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <rte_memory.h>

#include "net_ff.h"

#define REGION_MAX (1ull << 32) /* offsets in descriptors have 32 bits */

struct walk {
    struct ff_dev *dev;
    bool too_many;
};

/* Called for each page, or for all pages at once without huge pages, in the order of addresses. */
static int add_segment(const struct rte_memseg_list *list, const struct rte_memseg *seg,
                       void *arg) {
    struct walk *w = arg;
    struct ff_dev *dev = w->dev;
    struct ff_region *last = dev->n_own > 0 ? &dev->own[dev->n_own - 1] : NULL;
    int fd = rte_memseg_get_fd_thread_unsafe(seg);
    size_t offset = 0;
    uint64_t left = seg->len;
    uint8_t *at = seg->addr;

    (void)list;
    if (fd < 0 || rte_memseg_get_fd_offset_thread_unsafe(seg, &offset) < 0)
        return 0; /* others cannot map it: what lies there is copied */
    if (last != NULL && last->fd == fd && last->base + last->size == at &&
        last->offset + last->size == offset && last->size + left <= REGION_MAX) {
        last->size += left;
        return 0;
    }
    while (left > 0) {
        uint64_t size = RTE_MIN(left, REGION_MAX);

        if (dev->n_own == FF_SHM_REGIONS) {
            w->too_many = true;
            return 1;
        }
        dev->own[dev->n_own++] =
            (struct ff_region){.base = at, .size = size, .own = true, .fd = fd, .offset = offset};
        at += size;
        offset += size;
        left -= size;
    }
    return 0;
}

/* Finds dev->own anew: memory that EAL has now. why: FF_SHM_TEXT bytes. */
int ff_memory_own(struct ff_dev *dev, char *why, size_t why_size) {
    struct walk w = {.dev = dev};

    dev->n_own = 0;
    /* not from inside a memory event, so it takes EAL's lock */
    rte_memseg_walk((rte_memseg_walk_t)add_segment, &w);
    if (w.too_many)
        snprintf(why, why_size,
                 "packet memory lies in more than %d files: start the application with "
                 "--in-memory --single-file-segments, or with --no-huge",
                 FF_SHM_REGIONS);
    else if (dev->n_own == 0)
        snprintf(why, why_size,
                 "packet memory lies in no file: start the application with "
                 "--in-memory --single-file-segments, or with --no-huge");
    else
        return 0;
    return -ENOTSUP;
}

/* Maps what NEIGHBOUR names, or returns NULL and says why (FF_SHM_TEXT bytes). */
struct ff_region *ff_memory_map(struct ff_dev *dev, const struct ff_shm_msg *msg, int fd,
                                char *why) {
    bool read_only = msg->flags & FF_MSG_READ_ONLY;
    struct ff_region *r = NULL;
    struct stat st;
    void *at;

    if (dev->region[msg->region] != NULL)
        snprintf(why, FF_SHM_TEXT, "region %u is mapped already", msg->region);
    else if (msg->size > REGION_MAX)
        snprintf(why, FF_SHM_TEXT, "region %u has %" PRIu64 " bytes: 32-bit offsets reach 4 GB",
                 msg->region, msg->size);
    else if (fd < 0 || fstat(fd, &st) != 0 || msg->size == 0 ||
             msg->offset > (uint64_t)st.st_size || msg->size > (uint64_t)st.st_size - msg->offset)
        snprintf(why, FF_SHM_TEXT, "region %u is not in its file", msg->region);
    else if ((r = calloc(1, sizeof(*r))) == NULL)
        snprintf(why, FF_SHM_TEXT, "no memory");
    if (r == NULL)
        return NULL;
    at = mmap(NULL, msg->size, read_only ? PROT_READ : PROT_READ | PROT_WRITE,
              MAP_SHARED | MAP_NORESERVE, fd, (off_t)msg->offset);
    if (at == MAP_FAILED) {
        snprintf(why, FF_SHM_TEXT, "region %u cannot be mapped: %s", msg->region, strerror(errno));
        free(r);
        return NULL;
    }
    *r = (struct ff_region){.base = at,
                            .size = msg->size,
                            .number = msg->region,
                            .read_only = read_only,
                            .fd = dev->wake_fd};
    if (!ff_sigbus_watch(r)) {
        snprintf(why, FF_SHM_TEXT, "too many regions");
        munmap(at, msg->size);
        free(r);
        return NULL;
    }
    return r;
}

/* The own region that an mbuf's buffer lies in, or NULL. */
const struct ff_region *ff_memory_find(const struct ff_dev *dev, const struct rte_mbuf *m) {
    for (uint16_t i = 0; i < dev->n_own; i++) {
        uint64_t offset = (uint64_t)((uint8_t *)m->buf_addr - dev->own[i].base);

        if (offset < dev->own[i].size && m->buf_len <= dev->own[i].size - offset)
            return &dev->own[i];
    }
    return NULL;
}

void ff_memory_free(struct ff_region *r) {
    ff_sigbus_forget(r);
    munmap(r->base, r->size);
    free(r);
}
