/* SPDX-License-Identifier: Apache-2.0 */
/* A vhost-user port as its own parts see it. */
#ifndef FF_VHOST_H
#define FF_VHOST_H

#include "switch.h"
#include "vring.h"

#define FF_VHOST_VRINGS (2u * FF_MAX_QUEUES)

struct ff_vhost {
    /* virtio 1.1 section 5.1.2: even receive, odd transmit */
    struct ff_vring vring[FF_VHOST_VRINGS];
    struct ff_mem mem; /* what the vrings use; changes while all are stopped */
    struct ff_port *port;
    char path[108]; /* sizeof sun_path */
    bool server;
    bool running; /* between new_device and destroy_device; librte_vhost's threads only */
    int vid;
    uint64_t features;
    uint32_t enabled;      /* bit v: the front-end enabled vring v, and has set it up */
    uint32_t asked;        /* bit v: the front-end enabled vring v */
    struct ff_vhost *next; /* vhost_device.c */
};

/* ---- vhost_device.c, control thread ---- */

/*
 * Sets up the socket of d, whose port, path and server are set; callbacks may
 * come from here on. d stays the caller's. -EADDRINUSE when another port has
 * its socket, -EIO; the reason is in err.
 */
int ff_vhost_register(struct ff_vhost *d, char *err);

/* Ends the connection: no callback comes after this, and no worker uses d. */
void ff_vhost_unregister(struct ff_vhost *d);

/* ---- vhost_vring.c, librte_vhost's threads ---- */

/* Takes the memory table from librte_vhost, while all vrings are stopped. */
void ff_vhost_mem_load(struct ff_vhost *d);

/* Starts vring v if it may run. false: it is not to be used, and the port's state says so. */
bool ff_vhost_start(struct ff_vhost *d, unsigned int v);

/* Loads the memory table and starts all vrings; false when one is not to be used. */
bool ff_vhost_start_all(struct ff_vhost *d);

/* Stops a vring, or all: no worker uses them any more, librte_vhost has their positions. */
void ff_vhost_stop(struct ff_vhost *d, unsigned int v);
void ff_vhost_stop_all(struct ff_vhost *d);

/* The front-end broke a rule: vring v stops, is counted and named. Any thread. */
void ff_vhost_faulty(struct ff_worker *w, struct ff_port *port, struct ff_vring *vq,
                     unsigned int v);

#endif
