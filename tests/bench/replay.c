/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fast path on frames from memory: no peer, no socket, no clock. A worker
 * forwards between two vhost-user ports, both ways at once, bursts of FF_BURST.
 * This program is librte_vhost (its own definitions come before the library's)
 * and both drivers: they lay out the rings, offer frames and take what came.
 *
 *   replay BURSTS split|packed BYTES FLOWS
 *
 * Prints the number of packets in BURSTS bursts. Under callgrind, started with
 * --collect-atstart=no, the worker's instructions in these bursts are collected
 * and the drivers' are not.
 */
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <linux/virtio_config.h>
#include <rte_eal.h>
#include <rte_vhost.h>

#include "vring.h"

/* Without valgrind's header the replay runs all the same, and counts nothing. */
#if __has_include(<valgrind/callgrind.h>)
#include <valgrind/callgrind.h>
#else
#define CALLGRIND_TOGGLE_COLLECT
#endif

#define RING 256u
#define BUFFER 2048u
#define HDR_LEN 12u
#define GUEST 0x100000000ull
#define WARM_BURSTS 16u
#define AVAIL (1u << VRING_PACKED_DESC_F_AVAIL)
#define USED (1u << VRING_PACKED_DESC_F_USED)

struct ring {
    uint8_t desc[RING * sizeof(struct vring_desc)] __attribute__((aligned(64)));
    uint8_t avail[sizeof(struct vring_avail) + (RING + 1) * 2] __attribute__((aligned(64)));
    uint8_t used[sizeof(struct vring_used) + RING * 8 + 2] __attribute__((aligned(64)));
    uint8_t buffer[RING][BUFFER] __attribute__((aligned(64)));
    uint16_t next; /* packed: slot that is offered next */
    bool wrap;
};

struct device {
    struct ring ring[2]; /* receive, transmit */
    const struct rte_vhost_device_ops *ops;
    char path[32];
    uint32_t sent;
};

static struct device *devices; /* [2]: devices[vid] */
static unsigned int n_registered;
static bool packed;
static uint32_t frame_len, n_flows;

static uint32_t bursts;                 /* to be counted, after WARM_BURSTS others */
static _Atomic uint32_t bursts_offered; /* UINT32_MAX: not begun */
static sem_t finished;

/* ---- librte_vhost ---- */

int rte_vhost_driver_register(const char *path, uint64_t flags) {
    (void)flags;
    snprintf(devices[n_registered++].path, sizeof(devices->path), "%s", path);
    return 0;
}
int rte_vhost_driver_disable_features(const char *path, uint64_t features) {
    (void)path;
    (void)features;
    return 0;
}
int rte_vhost_driver_callback_register(const char *path, struct rte_vhost_device_ops const *ops) {
    for (unsigned int vid = 0; vid < n_registered; vid++)
        if (strcmp(devices[vid].path, path) == 0)
            devices[vid].ops = ops;
    return 0;
}
int rte_vhost_driver_start(const char *path) {
    (void)path;
    return 0;
}
int rte_vhost_driver_unregister(const char *path) {
    for (int vid = 0; vid < 2; vid++) {
        if (strcmp(devices[vid].path, path) == 0) {
            devices[vid].ops->destroy_device(vid);
            devices[vid].ops->destroy_connection(vid);
        }
    }
    return 0;
}
int rte_vhost_extern_callback_register(int vid, struct rte_vhost_user_extern_ops const *const ops,
                                       void *ctx) {
    (void)vid;
    (void)ops;
    (void)ctx;
    return 0;
}
int rte_vhost_get_ifname(int vid, char *buf, size_t len) {
    snprintf(buf, len, "%s", devices[vid].path);
    return 0;
}
int rte_vhost_get_negotiated_features(int vid, uint64_t *features) {
    (void)vid;
    *features = 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_NET_F_MRG_RXBUF |
                (packed ? 1ull << VIRTIO_F_RING_PACKED : 0);
    return 0;
}
uint16_t rte_vhost_get_vring_num(int vid) {
    (void)vid;
    return 2;
}
int rte_vhost_get_mem_table(int vid, struct rte_vhost_memory **mem) {
    *mem = calloc(1, sizeof(**mem) + sizeof((*mem)->regions[0]));
    (*mem)->nregions = 1;
    (*mem)->regions[0] = (struct rte_vhost_mem_region){
        .guest_phys_addr = GUEST,
        .host_user_addr = (uint64_t)(uintptr_t)&devices[vid],
        .size = sizeof(devices[vid]),
        .mmap_addr = &devices[vid],
        .mmap_size = sizeof(devices[vid]),
    };
    return 0;
}
int rte_vhost_get_vhost_vring(int vid, uint16_t v, struct rte_vhost_vring *vring) {
    struct ring *r = &devices[vid].ring[v];

    *vring = (struct rte_vhost_vring){
        .desc = (struct vring_desc *)(void *)r->desc,
        .avail = (struct vring_avail *)(void *)r->avail,
        .used = (struct vring_used *)(void *)r->used,
        .size = RING,
        .callfd = -1,
        .kickfd = -1,
    };
    return 0;
}
int rte_vhost_get_vring_base(int vid, uint16_t v, uint16_t *avail, uint16_t *used) {
    (void)vid;
    (void)v;
    *avail = *used = packed ? 1u << 15 : 0; /* the wrap counters begin at 1 */
    return 0;
}
int rte_vhost_set_vring_base(int vid, uint16_t v, uint16_t avail, uint16_t used) {
    (void)vid;
    (void)v;
    (void)avail;
    (void)used;
    return 0;
}

/* ---- the drivers ---- */

static uint64_t guest(const struct device *d, const void *p) {
    return GUEST + (uint64_t)((const uint8_t *)p - (const uint8_t *)d);
}

/* Offers n buffers of `len` bytes; each has been used since the last time. */
static void offer(struct device *d, unsigned int which, unsigned int n, uint32_t len) {
    struct ring *r = &d->ring[which];
    uint16_t flags = which == 0 ? VRING_DESC_F_WRITE : 0;

    if (!packed) {
        struct vring_avail *avail = (struct vring_avail *)(void *)r->avail;

        avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
        __atomic_store_n(&avail->idx, (uint16_t)(avail->idx + n), __ATOMIC_RELEASE);
        return;
    }
    ((struct vring_packed_desc_event *)(void *)r->avail)->flags = VRING_PACKED_EVENT_FLAG_DISABLE;
    for (unsigned int i = 0; i < n; i++) {
        struct vring_packed_desc *desc = &((struct vring_packed_desc *)(void *)r->desc)[r->next];

        desc->addr = guest(d, r->buffer[r->next]);
        desc->len = len;
        desc->id = r->next;
        __atomic_store_n(&desc->flags, (uint16_t)(flags | (r->wrap ? AVAIL : USED)),
                         __ATOMIC_RELEASE);
        if (++r->next == RING) {
            r->next = 0;
            r->wrap = !r->wrap;
        }
    }
}

static void write_frame(uint8_t *at, int vid) {
    static const uint8_t headers[] = {
        2,    1, 0,    0, 0, 0, 2, 0, 0,  0,  0, 0, 8,  0,                    /* Ethernet */
        0x45, 0, 0,    0, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, /* IPv4 */
        0x10, 0, 0x20, 0, 0, 0, 0, 0,                                         /* UDP */
    };
    uint16_t ip_len = (uint16_t)(frame_len - 14), udp_len = (uint16_t)(ip_len - 20);

    memset(at, 0, BUFFER);
    memcpy(at + HDR_LEN, headers, sizeof(headers));
    at[HDR_LEN + 5] = (uint8_t)vid;
    at[HDR_LEN + 16] = (uint8_t)(ip_len >> 8);
    at[HDR_LEN + 17] = (uint8_t)ip_len;
    at[HDR_LEN + 38] = (uint8_t)(udp_len >> 8);
    at[HDR_LEN + 39] = (uint8_t)udp_len;
}

static void rings_make(int vid) {
    struct device *d = &devices[vid];

    memset(d->ring, 0, sizeof(d->ring));
    d->sent = 0;
    for (unsigned int which = 0; which < 2; which++) {
        struct ring *r = &d->ring[which];

        r->wrap = true;
        for (uint16_t i = 0; i < RING; i++) {
            write_frame(r->buffer[i], vid);
            if (packed)
                continue;
            ((struct vring_desc *)(void *)r->desc)[i] = (struct vring_desc){
                .addr = guest(d, r->buffer[i]),
                .len = which == 0 ? BUFFER : HDR_LEN + frame_len,
                .flags = which == 0 ? VRING_DESC_F_WRITE : 0,
            };
            ((struct vring_avail *)(void *)r->avail)->ring[i] = i;
        }
    }
    offer(d, 0, RING, BUFFER);
}

/* Flows differ in the source address. */
static void flow_write(uint8_t *frame, uint32_t flow) {
    flow = rte_cpu_to_be_32(flow);
    memcpy(frame + 8, &flow, sizeof(flow));
}

/* One turn of a driver: FF_BURST receive buffers are there again, and FF_BURST frames. */
static void drive(struct device *d) {
    struct ring *tx = &d->ring[1];

    for (uint32_t i = 0; i < FF_BURST; i++, d->sent++)
        flow_write(tx->buffer[d->sent % RING] + HDR_LEN, d->sent % n_flows);
    if (d->sent > FF_BURST) /* the first time all of them are */
        offer(d, 0, FF_BURST, BUFFER);
    offer(d, 1, FF_BURST, HDR_LEN + frame_len);
}

/* ---- the worker's side ---- */

/* In front of the port's own rx: the driver's turn, which does not count. */
static unsigned int replay_rx(struct ff_worker *w, struct ff_port *port, unsigned int queue,
                              struct ff_frame *frames, unsigned int n) {
    uint32_t offered = atomic_load_explicit(&bursts_offered, memory_order_acquire);

    if (offered > WARM_BURSTS + bursts) /* not begun, or over */
        return 0;
    if (offered > WARM_BURSTS)
        CALLGRIND_TOGGLE_COLLECT; /* off */
    atomic_store_explicit(&bursts_offered, offered + 1, memory_order_relaxed);
    if (offered == WARM_BURSTS + bursts) {
        sem_post(&finished);
        return 0;
    }
    drive(&devices[port->id - 1]);
    if (offered >= WARM_BURSTS)
        CALLGRIND_TOGGLE_COLLECT; /* on */
    return ff_port_vhost_ops.rx(w, port, queue, frames, n);
}

/* ---- control ---- */

static void fail(const char *what) {
    fprintf(stderr, "replay: %s\n", what);
    exit(1);
}

static void port_start(int vid) {
    static struct ff_port_ops ops;
    struct device *d = &devices[vid];
    char path[sizeof(d->path)], err[FF_ERR_LEN];
    struct ff_port_conf conf = {
        .type = FF_PORT_VHOST_USER, .path = path, .name = path, .queues = 1, .mtu = 1500};
    uint16_t id;

    snprintf(path, sizeof(path), "replay-%d", vid);
    if (ff_port_add(&conf, &id, err) != 0)
        fail(err);
    ops = ff_port_vhost_ops;
    ops.rx = replay_rx;
    ff_port(id)->ops = &ops;
    rings_make(vid);
    d->ops->new_connection(vid);
    d->ops->vring_state_changed(vid, 0, 1);
    d->ops->vring_state_changed(vid, 1, 1);
    if (d->ops->new_device(vid) != 0)
        fail("the device does not start");
}

/* As a learning switch makes them: one for each pair of addresses, from each port to the other. */
static void flows_add(uint16_t port) {
    struct ff_key mask = {.eth_type = 0xffff, .in_port = 0xffff};
    struct ff_action out = {.type = FF_ACT_OUTPUT, .arg = 3 - port};
    struct ff_flow_spec spec = {.actions = &out, .n_actions = 1};
    uint8_t *frame = devices[port - 1].ring[1].buffer[0] + HDR_LEN;
    char err[FF_ERR_LEN];
    uint64_t id;

    mask.vlan_tpid[0] = 0xffff;
    mask.vlan_tci[0] = 0xfff;
    memset(mask.eth_dst, 0xff, 2 * sizeof(mask.eth_dst)); /* and eth_src */
    spec.mask = mask;
    for (uint32_t i = 0; i < n_flows; i++) {
        flow_write(frame, i);
        if (ff_parse(frame, frame_len, port, &spec.key) != FF_DROP_NONE)
            fail("a frame of ours is malformed");
        for (size_t b = 0; b < sizeof(mask); b++)
            ((uint8_t *)&spec.key)[b] &= ((const uint8_t *)&mask)[b];
        if (ff_flow_add_many(&spec, 1, &id, err) != 1)
            fail(err);
    }
}

static void replay(void) {
    const struct ff_worker_stats *w = ff_worker_stats(0);
    uint64_t packets = 0;

    atomic_store(&bursts_offered, UINT32_MAX);
    for (int vid = 0; vid < 2; vid++) {
        port_start(vid);
        flows_add((uint16_t)(vid + 1));
    }
    atomic_store_explicit(&bursts_offered, 0, memory_order_release);
    while (sem_wait(&finished) != 0)
        ;
    ff_synchronize(); /* the worker's last burst is out */
    for (uint16_t port = 1; port <= 2; port++)
        packets += ff_port_stats(0)[port].queue[0].tx_packets;
    if (packets != (uint64_t)(WARM_BURSTS + bursts) * FF_BURST || w->misses != 0)
        fail("frames were lost");
    printf("%u\n", bursts * FF_BURST);
}

static bool arguments(int argc, char **argv) {
    if (argc != 5)
        return false;
    bursts = (uint32_t)atoi(argv[1]);
    packed = strcmp(argv[2], "packed") == 0;
    frame_len = (uint32_t)atoi(argv[3]);
    n_flows = (uint32_t)atoi(argv[4]);
    return bursts > 0 && (packed || strcmp(argv[2], "split") == 0) && frame_len >= 60 &&
           frame_len <= 1514 && n_flows > 0;
}

int main(int argc, char **argv) {
    char prefix[64], directory[256], err[FF_ERR_LEN];
    const char *eal[] = {"replay",      "--no-huge",      "-m",       "64",      "--no-pci",
                         "--no-shconf", "--no-telemetry", "--lcores", "0@0,1@0", prefix};
    struct ff_conf conf = {
        .eal_argv = eal, .eal_argc = RTE_DIM(eal), .mbufs = 4096, .parked_max = 64};

    if (!arguments(argc, argv)) {
        fprintf(stderr, "usage: replay BURSTS split|packed BYTES FLOWS\n");
        return 2;
    }
    snprintf(prefix, sizeof(prefix), "--file-prefix=ffswitch-replay-%d", (int)getpid());
    devices = aligned_alloc(4096, RTE_ALIGN(2 * sizeof(*devices), 4096));
    if (devices == NULL || sem_init(&finished, 0, 0) != 0)
        fail("no memory");
    if (ff_init(&conf, err) != 0)
        fail(err);
    ff_idle_set(1, 100);
    replay();
    snprintf(directory, sizeof(directory), "%s", rte_eal_get_runtime_dir());
    ff_stop();
    return rmdir(directory) == 0 ? 0 : 1; /* EAL leaves it behind */
}
