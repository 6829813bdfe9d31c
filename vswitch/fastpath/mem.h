/* SPDX-License-Identifier: Apache-2.0 */
/* The memory of a port's peer, as it is mapped here: for whoever looks an address up in it. */
#ifndef FF_MEM_H
#define FF_MEM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ff_shm.h"

/* A memory port's regions, its rings and its table; a vhost-user front-end has less. */
#define FF_MEM_REGIONS (FF_SHM_REGIONS + 2u)

struct ff_region {
    uint64_t gpa; /* vhost-user: where the guest has it */
    uint64_t size;
    uint8_t *host;
    uint8_t *map; /* the whole mapping, of which host is a part */
    size_t map_size;
};
struct ff_mem {
    _Atomic bool lost; /* its file was truncated: see sigbus.c */
    unsigned int n;
    struct ff_region region[FF_MEM_REGIONS];
};

#endif
