/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory that vanishes. A front-end, or a container, may truncate the file
 * behind its memory at any time; the next touch raises SIGBUS. The handler puts zeroed
 * private memory in its place and marks the device, whose queues then stop;
 * the interrupted thread goes on as if the guest had written zeros.
 */
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>

#include "mem.h"
#include "switch.h"

#define PAGE_SMALL 4096u
#define PAGE_HUGE (2u << 20)

static _Thread_local bool in_vhost;

void ff_sigbus_expected(void) {
    in_vhost = true;
}

static bool replace(uint8_t *at, size_t size) {
    return mmap(at, size, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
           at;
}

/* The page alone, for memory that librte_vhost has mapped and not yet told us of. */
static bool replace_page(const uint8_t *addr) {
    uintptr_t a = (uintptr_t)addr;

    return replace((uint8_t *)(a & ~(uintptr_t)(PAGE_SMALL - 1)), PAGE_SMALL) ||
           replace((uint8_t *)(a & ~(uintptr_t)(PAGE_HUGE - 1)), PAGE_HUGE);
}

static bool replace_guest_memory(uint8_t *addr) {
    for (unsigned int id = 1; id < FF_MAX_PORTS; id++) {
        struct ff_port *port = ff_port((uint16_t)id);
        struct ff_mem *mem = port != NULL && port->ops->mem != NULL ? port->ops->mem(port) : NULL;

        for (unsigned int i = 0; mem != NULL && i < mem->n; i++) {
            struct ff_region *r = &mem->region[i];

            if (addr < r->map || addr >= r->map + r->map_size)
                continue;
            atomic_store(&mem->lost, true);
            return replace(r->map, r->map_size);
        }
    }
    return in_vhost && replace_page(addr);
}

/* Only async-signal-safe calls: loads, mmap, sigaction. */
static void on_sigbus(int sig, siginfo_t *info, void *context) {
    int saved = errno;

    (void)context;
    if (!replace_guest_memory(info->si_addr)) {
        struct sigaction dfl = {.sa_handler = SIG_DFL};

        sigaction(sig, &dfl, NULL); /* not a guest's memory: the instruction faults again */
    }
    errno = saved;
}

int ff_sigbus_init(void) {
    struct sigaction sa = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO};

    return sigaction(SIGBUS, &sa, NULL) == 0 ? 0 : -errno;
}
