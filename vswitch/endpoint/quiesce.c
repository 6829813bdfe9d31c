/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waits until no burst uses any more what was taken away from the queues. A burst makes its
 * queue's `seq` odd, then reads pointers, with no barrier between; membarrier(2) puts one into
 * every running thread instead, so that a burst pays nothing.
 */
#include <errno.h>
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "net_ff.h"

static int membarrier(int command) {
    return syscall(SYS_membarrier, command, 0, 0) == 0 ? 0 : -errno;
}

/* To be called once before ff_quiesce; -ENOSYS or -EPERM where membarrier is not to be had. */
int ff_quiesce_init(void) {
    return membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED);
}

static void wait_for(const uint32_t *seq) {
    const struct timespec pause = {.tv_nsec = 20000};
    uint32_t begun = __atomic_load_n(seq, __ATOMIC_ACQUIRE);

    while ((begun & 1) && __atomic_load_n(seq, __ATOMIC_ACQUIRE) == begun)
        nanosleep(&pause, NULL);
}

/* Returns once each burst that began before the call has ended. */
void ff_quiesce(struct ff_dev *dev) {
    membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED);
    for (unsigned int i = 0; i < FF_SHM_QUEUES; i++) {
        if (dev->rxq[i] != NULL)
            wait_for(&dev->rxq[i]->seq);
        if (dev->txq[i] != NULL)
            wait_for(&dev->txq[i]->seq);
    }
}
