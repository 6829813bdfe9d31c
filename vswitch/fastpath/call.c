/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Interrupts for drivers. A write to an eventfd blocks while its counter is at
 * the maximum, where a front-end can put it; it can also take back O_NONBLOCK,
 * which belongs to all who share the eventfd, and there is no RWF_NOWAIT for
 * eventfds. What the kernel itself adds never waits. So a worker submits an
 * operation that is complete at once, a poll of a descriptor that is always
 * readable, and names the eventfd as the one to be told of that: io_submit(2),
 * IOCB_FLAG_RESFD. What is no eventfd is refused there.
 */
#include <errno.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <rte_lcore.h>

#include "call.h"

#define IN_FLIGHT 1

/* What io_setup(2) maps: the start of fs/aio.c's struct aio_ring, as libaio has it too. */
struct completions {
    unsigned int id, nr, head, tail, magic;
};
#define COMPLETIONS_MAGIC 0xa10a10a1u

static aio_context_t contexts[RTE_MAX_LCORE];
static int readable = -1;

int ff_call_init(unsigned int lcore) {
    const struct completions *c;

    if (readable < 0)
        readable = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
    if (readable < 0 || syscall(SYS_io_setup, IN_FLIGHT, &contexts[lcore]) != 0)
        return -errno;
    c = (const struct completions *)contexts[lcore];
    return c->magic == COMPLETIONS_MAGIC ? 0 : -ENOTSUP;
}

void ff_call_fini(unsigned int lcore) {
    if (contexts[lcore] != 0)
        (void)syscall(SYS_io_destroy, contexts[lcore]);
    contexts[lcore] = 0;
}

void ff_call(int fd) {
    aio_context_t context = contexts[rte_lcore_id()];
    struct completions *c = (struct completions *)context;
    struct iocb tell = {
        .aio_lio_opcode = IOCB_CMD_POLL,
        .aio_fildes = (uint32_t)readable,
        .aio_buf = POLLIN,
        .aio_flags = IOCB_FLAG_RESFD,
        .aio_resfd = (uint32_t)fd,
    };
    struct iocb *list = &tell;

    /* it fails for what is no eventfd: then this driver has asked for no interrupts */
    if (syscall(SYS_io_submit, context, 1, &list) == 1)
        __atomic_store_n(&c->head, __atomic_load_n(&c->tail, __ATOMIC_ACQUIRE), __ATOMIC_RELEASE);
}
