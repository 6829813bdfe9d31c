/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Idle workers. One that has found nothing for a while asks its queues to
 * notify it (virtio 1.1, sections 2.6.10 and 2.7.10), looks at each once more,
 * and then waits in its epoll set: for kicks, for receive interrupts, and for
 * the control side, which has an eventfd of its own there.
 *
 * No wake-up is lost: the worker says that it waits, and only then looks; who
 * has something for it makes that visible, and only then looks whether it
 * waits. Each side has a full barrier between the two.
 *
 * The set is edge-triggered and nobody reads the eventfds. So each write wakes
 * a worker once at most, and no worker makes a system call on a descriptor
 * that a front-end chose, which could block for ever.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <rte_pause.h>

#include "switch.h"

#define SLEEP_FIRST_NS 2000u
#define EVENTS 64 /* taken at a time; what is left over costs one more look */

int ff_idle_init(struct ff_worker *w) {
    struct epoll_event ev = {.events = EPOLLIN | EPOLLET};

    w->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    w->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (w->wake_fd < 0 || w->epoll_fd < 0 ||
        epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, w->wake_fd, &ev) != 0)
        return -errno;
    return 0;
}

void ff_idle_fini(struct ff_worker *w) {
    close(w->epoll_fd);
    close(w->wake_fd);
}

void ff_idle_set(uint32_t spin_us, uint32_t sleep_us) {
    atomic_store(&ff.spin_us, spin_us);
    atomic_store(&ff.sleep_us, sleep_us);
    ff_wake_all();
}

/* ---- any thread ---- */

void ff_wake(struct ff_worker *w) {
    uint64_t one = 1;

    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&w->waiting, memory_order_relaxed) &&
        write(w->wake_fd, &one, sizeof(one)) < 0) {
        /* the counter is full: it is readable already */
    }
}

void ff_wake_all(void) {
    for (unsigned int i = 0; i < ff.n_workers; i++)
        ff_wake(ff.workers[i]);
}

struct ff_waker ff_waker_open(int fd) {
    char path[32], what[32];
    ssize_t n;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    n = fd < 0 ? -1 : readlink(path, what, sizeof(what) - 1);
    if (n < 0)
        return FF_NO_WAKER;
    what[n] = '\0';
    if (strcmp(what, "anon_inode:[eventfd]") != 0)
        return FF_NO_WAKER;
    return (struct ff_waker){.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0), .epoll = -1};
}

void ff_waker_close(struct ff_waker *k) {
    ff_waker_unwatch(k);
    if (k->fd >= 0)
        close(k->fd);
    *k = FF_NO_WAKER;
}

void ff_waker_unwatch(struct ff_waker *k) {
    if (k->epoll >= 0)
        (void)epoll_ctl(k->epoll, EPOLL_CTL_DEL, k->fd, NULL);
    k->epoll = -1;
}

/* ---- worker ---- */

bool ff_waker_watch(struct ff_worker *w, struct ff_waker *k) {
    struct epoll_event ev = {.events = EPOLLIN | EPOLLET};

    if (k->fd < 0)
        return false;
    if (likely(k->epoll == w->epoll_fd))
        return true;
    if (epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, k->fd, &ev) != 0)
        return false;
    k->epoll = w->epoll_fd;
    return true;
}

/* From here on whatever comes wakes the worker, and the next loop looks for what came before. */
static void arm(struct ff_worker *w) {
    const struct ff_poll_list *list;

    atomic_store_explicit(&w->waiting, true, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
    list = atomic_load_explicit(&w->poll, memory_order_acquire);
    w->timed = false;
    w->sleep_ns = SLEEP_FIRST_NS;
    for (uint32_t i = 0; i < list->n; i++) {
        const struct ff_poll_entry *e = &list->entry[i];

        if (ff_poll_open(e) && ff_port_ready(e->port) && !e->port->ops->arm(w, e->port, e->queue))
            w->timed = true;
    }
    atomic_thread_fence(memory_order_seq_cst);
}

static void disarm(struct ff_worker *w) {
    const struct ff_poll_list *list = atomic_load_explicit(&w->poll, memory_order_acquire);

    atomic_store_explicit(&w->waiting, false, memory_order_relaxed);
    for (uint32_t i = 0; i < list->n; i++) {
        const struct ff_poll_entry *e = &list->entry[i];

        if (ff_poll_open(e) && ff_port_ready(e->port))
            e->port->ops->disarm(e->port, e->queue);
    }
}

/*
 * Waits until something wakes the worker, or, when one of its queues has no
 * means to, for growing times up to sleep_us. Whether something did.
 */
static bool wait(struct ff_worker *w) {
    uint32_t max_ns = atomic_load_explicit(&ff.sleep_us, memory_order_relaxed) * 1000;
    struct timespec t = {.tv_nsec = RTE_MIN(w->sleep_ns, max_ns)};
    struct epoll_event ev[EVENTS];
    int n;

    w->stats.sleeps++;
    rte_rcu_qsbr_thread_offline(ff.rcu, w->index);
    n = epoll_pwait2(w->epoll_fd, ev, EVENTS, w->timed ? &t : NULL, NULL);
    rte_rcu_qsbr_thread_online(ff.rcu, w->index);
    w->sleep_ns = RTE_MIN(w->sleep_ns * 2, max_ns);
    return n != 0;
}

void ff_idle(struct ff_worker *w, bool busy) {
    uint32_t spin_us, sleep_us;

    if (busy) {
        w->idle_since = w->now;
        if (unlikely(atomic_load_explicit(&w->waiting, memory_order_relaxed)))
            disarm(w);
        return;
    }
    if (atomic_load_explicit(&w->waiting, memory_order_relaxed)) {
        bool woken = wait(w);

        w->now = rte_rdtsc();
        if (woken) {
            disarm(w);
            w->idle_since = w->now;
        }
        return;
    }
    spin_us = atomic_load_explicit(&ff.spin_us, memory_order_relaxed);
    sleep_us = atomic_load_explicit(&ff.sleep_us, memory_order_relaxed);
    if (sleep_us == 0 || w->now - w->idle_since < (uint64_t)spin_us * ff.tsc_hz / 1000000)
        rte_pause();
    else
        arm(w);
    w->now = rte_rdtsc();
}
