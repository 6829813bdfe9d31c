/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Neighbours' memory that vanishes. A neighbour may truncate the file behind its packet memory at
 * any time; the next touch raises SIGBUS. The handler puts zeroed private memory in its place, and
 * the thread goes on as if the neighbour had written zeros. Any other SIGBUS is left to the
 * handler that was there before.
 */
#include <errno.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "net_ff.h"

#define WATCHED 4096u

static struct ff_region *watched[WATCHED]; /* a region is in it from before to after its use */
static struct sigaction former;

static bool replace(uint8_t *at) {
    for (unsigned int i = 0; i < WATCHED; i++) {
        struct ff_region *r = __atomic_load_n(&watched[i], __ATOMIC_ACQUIRE);

        if (r != NULL && at >= r->base && at < r->base + r->size) {
            __atomic_store_n(&r->lost, true, __ATOMIC_RELEASE);
            eventfd_write(r->fd, 1);
            return mmap(r->base, r->size, PROT_READ | PROT_WRITE,
                        MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) == r->base;
        }
    }
    return false;
}

/* Only async-signal-safe calls: loads, write, mmap, sigaction. */
static void on_sigbus(int sig, siginfo_t *info, void *context) {
    int saved = errno;

    if (!replace(info->si_addr)) {
        if (former.sa_flags & SA_SIGINFO)
            former.sa_sigaction(sig, info, context);
        else if (former.sa_handler != SIG_DFL && former.sa_handler != SIG_IGN)
            former.sa_handler(sig);
        else
            sigaction(sig, &former, NULL); /* the instruction faults again */
    }
    errno = saved;
}

/* Installs the handler, once in a process. */
int ff_sigbus_init(void) {
    struct sigaction sa = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    struct sigaction now;

    if (sigaction(SIGBUS, NULL, &now) != 0)
        return -errno;
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_sigbus)
        return 0;
    former = now;
    return sigaction(SIGBUS, &sa, NULL) == 0 ? 0 : -errno;
}

/* False when there is no place for it: then the region must not be used. */
bool ff_sigbus_watch(struct ff_region *region) {
    for (unsigned int i = 0; i < WATCHED; i++) {
        struct ff_region *none = NULL;

        if (__atomic_compare_exchange_n(&watched[i], &none, region, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED))
            return true;
    }
    return false;
}

void ff_sigbus_forget(struct ff_region *region) {
    for (unsigned int i = 0; i < WATCHED; i++)
        if (watched[i] == region)
            __atomic_store_n(&watched[i], NULL, __ATOMIC_RELEASE);
}
