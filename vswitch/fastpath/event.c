/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Port states. librte_vhost's threads and the control thread set them; the
 * control thread is told of each change through a list and an eventfd.
 */
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "switch.h"

struct event {
    struct ff_event e;
    struct event *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct event *first, **last = &first;

int ff_event_init(void) {
    ff.event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    ff.upcall_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    ff.tap_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    atomic_store(&ff.upcall_armed, true);
    atomic_store(&ff.tap_armed, true);
    return ff.event_fd < 0 || ff.upcall_fd < 0 || ff.tap_fd < 0 ? -errno : 0;
}

void ff_event_signal(void) {
    uint64_t one = 1;

    if (write(ff.event_fd, &one, sizeof(one)) < 0) {
        /* the counter is full: it is readable already */
    }
}

void ff_port_state(struct ff_port *port, int state, const char *fmt, ...) {
    struct event *ev = calloc(1, sizeof(*ev));
    va_list ap;

    pthread_mutex_lock(&lock);
    port->state = state;
    va_start(ap, fmt);
    vsnprintf(port->reason, sizeof(port->reason), fmt, ap);
    va_end(ap);
    if (ev != NULL) {
        ev->e.port_id = port->id;
        ev->e.state = (uint16_t)state;
        memcpy(ev->e.reason, port->reason, sizeof(ev->e.reason));
        *last = ev;
        last = &ev->next;
    }
    pthread_mutex_unlock(&lock);
    ff_event_signal();
}

void ff_event_forget(uint16_t port_id) {
    struct event **at = &first, *ev;

    pthread_mutex_lock(&lock);
    last = &first;
    while ((ev = *at) != NULL) {
        if (ev->e.port_id == port_id) {
            *at = ev->next;
            free(ev);
        } else {
            at = &ev->next;
            last = at;
        }
    }
    pthread_mutex_unlock(&lock);
}

int ff_event_drain(struct ff_event *events, int n) {
    uint64_t count;
    struct event *ev;
    int got = 0;

    if (read(ff.event_fd, &count, sizeof(count)) < 0) {
        /* not signalled: look all the same */
    }
    pthread_mutex_lock(&lock);
    while (got < n && (ev = first) != NULL) {
        events[got++] = ev->e;
        first = ev->next;
        if (first == NULL)
            last = &first;
        free(ev);
    }
    if (first != NULL)
        ff_event_signal();
    pthread_mutex_unlock(&lock);
    return got;
}

int ff_port_info(uint16_t port_id, struct ff_port_info *info) {
    struct ff_port *port = ff_port(port_id);

    if (port == NULL)
        return -ENOENT;
    *info = (struct ff_port_info){.rx_queues = port->rx_queues, .tx_queues = port->tx_queues};
    pthread_mutex_lock(&lock);
    info->state = port->state;
    memcpy(info->reason, port->reason, sizeof(info->reason));
    pthread_mutex_unlock(&lock);
    if (port->ops->info != NULL)
        port->ops->info(port, info);
    return 0;
}
