/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A vhost-user port's vrings and memory table: from what librte_vhost was told
 * of them to what vring.c walks, and back.
 */
#include <linux/vhost.h>
#include <linux/virtio_config.h>
#include <stdio.h>
#include <stdlib.h>

#include <rte_vhost.h>

#include "vhost.h"

#define PACKED_WRAP 0x8000u /* vhost-user.rst, "A vring state description" */

static bool is_transmit(unsigned int v) {
    return v % 2 != 0;
}

/* Tells librte_vhost how far the workers came. */
static void vring_save(const struct ff_vhost *d, unsigned int v) {
    const struct ff_vring *vq = &d->vring[v];
    uint16_t avail = vq->last_avail, used = vq->last_used;

    if (vq->packed) {
        avail |= vq->avail_wrap ? PACKED_WRAP : 0;
        used |= vq->used_wrap ? PACKED_WRAP : 0;
    }
    (void)rte_vhost_set_vring_base(d->vid, (uint16_t)v, avail, used);
}

/* Stops workers at the vrings from `first` up to `end`: none of them uses these any more. */
static void vrings_stop(struct ff_vhost *d, unsigned int first, unsigned int end) {
    bool was_active[FF_VHOST_VRINGS];

    for (unsigned int v = first; v < end; v++)
        was_active[v] = atomic_exchange(&d->vring[v].active, false);
    /* also for a vring that its worker stopped itself, and may not have left yet */
    ff_synchronize();
    for (unsigned int v = first; v < end; v++) {
        ff_waker_close(&d->vring[v].kick);
        if (was_active[v])
            vring_save(d, v);
    }
}

void ff_vhost_stop(struct ff_vhost *d, unsigned int v) {
    vrings_stop(d, v, v + 1);
}

void ff_vhost_faulty(struct ff_worker *w, struct ff_port *port, struct ff_vring *vq,
                     unsigned int v) {
    atomic_store(&vq->active, false);
    /* atomic: workers and librte_vhost's threads count */
    __atomic_fetch_add(&w->port_stats[port->id].fault[vq->fault], 1, __ATOMIC_RELAXED);
    ff_port_state(port, FF_PORT_LOST, "%s queue %u stopped: %s; reconnect",
                  is_transmit(v) ? "transmit" : "receive", v / 2, ff_fault_name(vq->fault));
}

bool ff_vhost_start(struct ff_vhost *d, unsigned int v) {
    struct ff_vring *vq = &d->vring[v];
    struct rte_vhost_vring ring;
    uint16_t avail, used;

    if (!d->running || !(d->enabled & 1u << v) || atomic_load(&vq->active))
        return true;
    if (rte_vhost_get_vhost_vring(d->vid, (uint16_t)v, &ring) != 0 || ring.desc == NULL ||
        ring.avail == NULL || ring.used == NULL || ring.size == 0 ||
        rte_vhost_get_vring_base(d->vid, (uint16_t)v, &avail, &used) != 0)
        return true;
    ff_waker_close(&vq->kick);
    *vq = (struct ff_vring){
        .packed = d->features & 1ull << VIRTIO_F_RING_PACKED,
        .mergeable = d->features & 1ull << VIRTIO_NET_F_MRG_RXBUF,
        .event_idx = d->features & 1ull << VIRTIO_RING_F_EVENT_IDX,
        .in_order = d->features & 1ull << VIRTIO_F_IN_ORDER,
        .hdr_len =
            d->features & (1ull << VIRTIO_NET_F_MRG_RXBUF | 1ull << VIRTIO_F_VERSION_1) ? 12 : 10,
        .offloads = is_transmit(v) ? ff_offload_host(d->features) : ff_offload_guest(d->features),
        .size = ring.size,
        .last_avail = avail,
        .last_used = used,
        .call_fd = ring.callfd,
        .kick = is_transmit(v) ? ff_waker_open(ring.kickfd) : FF_NO_WAKER,
        .mem = &d->mem,
        .desc = ring.desc,
        .avail = ring.avail,
        .used = ring.used,
    };
    if (vq->packed) {
        vq->last_avail &= (uint16_t)~PACKED_WRAP;
        vq->last_used &= (uint16_t)~PACKED_WRAP;
        vq->avail_wrap = avail & PACKED_WRAP;
        vq->used_wrap = used & PACKED_WRAP;
    }
    vq->signalled = vq->last_used;
    ff_vring_fault(vq, ff_vring_check(vq));
    if (vq->fault != FF_FAULT_NONE) {
        ff_vhost_faulty(ff.workers[0], d->port, vq, v);
        return false;
    }
    ff_vring_quiet(vq);
    atomic_store_explicit(&vq->active, true, memory_order_release);
    ff_wake_all();
    return true;
}

void ff_vhost_stop_all(struct ff_vhost *d) {
    vrings_stop(d, 0, FF_VHOST_VRINGS);
}

void ff_vhost_mem_load(struct ff_vhost *d) {
    struct rte_vhost_memory *mem;

    d->mem.n = 0;
    atomic_store(&d->mem.lost, false);
    if (rte_vhost_get_mem_table(d->vid, &mem) != 0)
        return;
    for (uint32_t i = 0; i < mem->nregions && i < FF_MEM_REGIONS; i++)
        d->mem.region[d->mem.n++] = (struct ff_region){
            .gpa = mem->regions[i].guest_phys_addr,
            .size = mem->regions[i].size,
            .host = (uint8_t *)(uintptr_t)mem->regions[i].host_user_addr,
            .map = mem->regions[i].mmap_addr,
            .map_size = mem->regions[i].mmap_size,
        };
    free(mem);
}

bool ff_vhost_start_all(struct ff_vhost *d) {
    bool good = true;

    ff_vhost_mem_load(d);
    for (unsigned int v = 0; v < FF_VHOST_VRINGS; v++)
        good &= ff_vhost_start(d, v);
    return good;
}
