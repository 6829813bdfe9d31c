/* SPDX-License-Identifier: Apache-2.0 */
/* What both kinds of packet memory need once per process: EAL without devices, and a small pool. */
#ifndef FUZZ_EAL_H
#define FUZZ_EAL_H

#include <unistd.h>

#include <rte_eal.h>
#include <rte_mbuf.h>

#include "input.h"

/* Small buffers: a frame of a few hundred bytes is a chain already. */
static struct rte_mempool *packet_pool(unsigned int n, uint16_t data_room) {
    static char *args[] = {
        "fuzz",        "--no-huge",      "-m", "64", "--no-pci",
        "--no-shconf", "--no-telemetry", "-l", "0",  "--file-prefix=ffswitch-fuzz"};
    struct rte_mempool *pool;

    if (rte_eal_init(RTE_DIM(args), args) < 0)
        abort();
    (void)rmdir(rte_eal_get_runtime_dir()); /* empty without shared configuration */
    pool = rte_pktmbuf_pool_create("packets", n, 32, 0, RTE_PKTMBUF_HEADROOM + data_room, 0);
    CHECK(pool != NULL);
    return pool;
}

#endif
