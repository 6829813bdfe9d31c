/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control thread: the connection to the switch, from the first attempt to the next one after
 * the switch was gone. What it is asked by the application's threads (run, end) it is told by flags
 * under dev->lock; it answers by dev->link and dev->changed.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <rte_lcore.h>

#include "control.h"

#define RETRY_MS 100   /* between attempts to connect */
#define ANSWER_MS 5000 /* for the switch to answer HELLO and START, */
#define STOP_MS 2000   /* and STOP */
#define TICK_MS 1      /* between looks at what is lent, */
#define LINGER_MS 50   /* and after the device's end */

uint64_t ff_now_ms(void) {
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

void ff_control_wake(struct ff_dev *dev) {
    eventfd_write(dev->wake_fd, 1);
}

static void set_link(struct ff_dev *dev, bool up) {
    struct rte_eth_link link = {.link_speed = RTE_ETH_SPEED_NUM_UNKNOWN,
                                .link_duplex = RTE_ETH_LINK_FULL_DUPLEX,
                                .link_autoneg = RTE_ETH_LINK_FIXED,
                                .link_status = up ? RTE_ETH_LINK_UP : RTE_ETH_LINK_DOWN};

    /* after close there is no such port any more */
    if (!dev->want_end && rte_eth_linkstatus_set(dev->eth, &link) == 0)
        dev->tell_link = true;
}

static void enter(struct ff_dev *dev, enum ff_link link, uint32_t wait_ms) {
    dev->link = link;
    dev->deadline = ff_now_ms() + wait_ms;
    set_link(dev, link == FF_RUNNING && dev->link_up);
    pthread_cond_broadcast(&dev->changed);
}

/* Ends the connection: all that came by it is taken away from the queues. */
static void hang_up(struct ff_dev *dev, const char *why) {
    if (dev->link >= FF_IDLE && why[0] != '\0' && !dev->want_end)
        FF_LOG(WARNING, dev, "no connection to the switch any more: %s", why);
    if (why[0] != '\0')
        snprintf(dev->error, sizeof(dev->error), "%s", why);
    ff_data_down(dev);
    if (dev->sock >= 0)
        close(dev->sock);
    dev->sock = -1;
    enter(dev, FF_DOWN, RETRY_MS);
}

void ff_control_send(struct ff_dev *dev, const struct ff_shm_msg *msg, int fd) {
    int rc = ff_msg_send(dev->sock, msg, fd);

    if (rc != 0 && !dev->lost) { /* the loop hangs up */
        dev->lost = true;
        snprintf(dev->error, sizeof(dev->error), "%s", strerror(-rc));
    }
}

void ff_control_answer(struct ff_dev *dev, uint32_t serial, const char *why) {
    struct ff_shm_msg done = {.type = FF_MSG_DONE, .serial = serial};

    if (why != NULL)
        ff_control_complain(dev, (struct ff_shm_msg){.serial = serial}, why);
    else if (dev->sock >= 0 && serial != 0)
        ff_control_send(dev, &done, -1);
}

void ff_control_complain(struct ff_dev *dev, struct ff_shm_msg about, const char *why) {
    FF_LOG(WARNING, dev, "%s", why);
    about.type = FF_MSG_ERROR;
    snprintf(about.text, sizeof(about.text), "%s", why);
    if (dev->sock >= 0)
        ff_control_send(dev, &about, -1);
}

static void try_connect(struct ff_dev *dev) {
    struct ff_shm_msg hello = {.type = FF_MSG_HELLO, .version = FF_SHM_VERSION};

    dev->sock = ff_msg_connect(dev->path);
    if (dev->sock < 0) {
        snprintf(dev->error, sizeof(dev->error), "%s", strerror(-dev->sock));
        dev->sock = -1;
        enter(dev, FF_DOWN, RETRY_MS);
        return;
    }
    memcpy(hello.mac, &dev->mac, sizeof(hello.mac));
    snprintf(hello.text, sizeof(hello.text), "%s", dev->name);
    dev->lost = false;
    enter(dev, FF_GREETING, ANSWER_MS);
    ff_control_send(dev, &hello, -1);
}

static void start(struct ff_dev *dev) {
    struct ff_shm_msg msg = {.type = FF_MSG_START,
                             .rx_queues = dev->n_rx,
                             .tx_queues = dev->n_tx,
                             .ring_size = dev->ring_size};
    char why[FF_SHM_TEXT];

    if (ff_memory_own(dev, why, sizeof(why)) != 0) {
        FF_LOG(ERR, dev, "%s", why);
        snprintf(dev->error, sizeof(dev->error), "%s", why);
        dev->want_run = false;
        pthread_cond_broadcast(&dev->changed);
        return;
    }
    enter(dev, FF_STARTING, ANSWER_MS);
    for (uint16_t i = 0; i < dev->n_own; i++) {
        struct ff_shm_msg region = {.type = FF_MSG_REGION,
                                    .number = i,
                                    .size = dev->own[i].size,
                                    .offset = dev->own[i].offset};

        ff_control_send(dev, &region, dev->own[i].fd);
    }
    ff_control_send(dev, &msg, -1);
}

static void stop(struct ff_dev *dev) {
    struct ff_shm_msg msg = {.type = FF_MSG_STOP};

    ff_data_quiet(dev);
    enter(dev, FF_STOPPING, STOP_MS);
    ff_control_send(dev, &msg, -1);
}

/* ---- messages ------------------------------------------------------------------- */

static void welcome(struct ff_dev *dev, const struct ff_shm_msg *msg) {
    memcpy(&dev->mac, msg->mac, sizeof(dev->mac));
    dev->max_mtu = (uint16_t)RTE_MIN(msg->mtu, (uint32_t)UINT16_MAX);
    dev->max_queues = RTE_MIN(RTE_MAX(msg->queues, 1), FF_SHM_QUEUES);
    snprintf(dev->port, sizeof(dev->port), "%s", msg->text);
    dev->link_up = true;
    enter(dev, FF_IDLE, 0);
}

static void refused(struct ff_dev *dev, const struct ff_shm_msg *msg) {
    if (dev->link == FF_STARTING) {
        dev->want_run = false;
        snprintf(dev->error, sizeof(dev->error), "%s", msg->text);
        enter(dev, FF_IDLE, 0);
    } else if (dev->link == FF_GREETING) {
        hang_up(dev, msg->text);
    } else {
        FF_LOG(WARNING, dev, "the switch says: %s", msg->text);
    }
}

/* A message that belongs to the connection's own life; false for any other. */
static bool handle_own(struct ff_dev *dev, const struct ff_shm_msg *msg, const int *fds, int n) {
    char why[FF_SHM_TEXT];

    if (msg->type == FF_MSG_WELCOME && dev->link == FF_GREETING) {
        welcome(dev, msg);
    } else if (msg->type == FF_MSG_RINGS && dev->link == FF_STARTING) {
        if (ff_data_up(dev, msg, fds, n, why) == 0) {
            enter(dev, FF_RUNNING, 0);
        } else {
            dev->want_run = false;
            ff_control_complain(dev, (struct ff_shm_msg){0}, why);
            hang_up(dev, why);
        }
    } else if (msg->type == FF_MSG_DONE && dev->link == FF_STOPPING) {
        ff_data_down(dev);
        enter(dev, FF_IDLE, 0);
    } else if (msg->type == FF_MSG_ERROR) {
        refused(dev, msg);
    } else if (msg->type == FF_MSG_LINK) {
        dev->link_up = msg->flags & 1;
        set_link(dev, dev->link == FF_RUNNING && dev->link_up);
    } else {
        return false;
    }
    return true;
}

static void receive(struct ff_dev *dev) {
    struct ff_shm_msg msg;
    int fds[FF_MSG_FDS], n;
    int rc = ff_msg_receive(dev->sock, &msg, fds, &n);

    if (rc < 0)
        hang_up(dev, rc == -ECONNRESET ? "the switch closed it" : strerror(-rc));
    else if (rc > 0 && !handle_own(dev, &msg, fds, n))
        ff_request(dev, &msg, n > 0 ? fds[0] : -1);
    for (int i = 0; i < n; i++)
        close(fds[i]);
}

/* ---- the loop --------------------------------------------------------------------- */

/* What is due by the time, or by what the application wants. */
static void step(struct ff_dev *dev) {
    bool late = ff_now_ms() >= dev->deadline;

    if (dev->lost && dev->sock >= 0) {
        hang_up(dev, dev->error);
        return;
    }
    switch (dev->link) {
    case FF_DOWN:
        if (late && !dev->want_end)
            try_connect(dev);
        break;
    case FF_GREETING:
    case FF_STARTING:
        if (late || dev->want_end)
            hang_up(dev, "it does not answer");
        break;
    case FF_IDLE:
        if (dev->want_end)
            hang_up(dev, "");
        else if (dev->want_run)
            start(dev);
        break;
    case FF_RUNNING:
        if (!dev->want_run || dev->want_end)
            stop(dev);
        else if (ff_data_broken(dev))
            hang_up(dev, "the switch's rings are broken");
        break;
    case FF_STOPPING:
        if (late)
            hang_up(dev, "it does not answer STOP");
        break;
    }
}

static int timeout_of(const struct ff_dev *dev, bool busy) {
    uint64_t now = ff_now_ms();

    if (busy)
        return TICK_MS;
    if (dev->link == FF_IDLE || dev->link == FF_RUNNING)
        return -1;
    return dev->deadline > now ? (int)(dev->deadline - now) : 0;
}

static void serve(struct ff_dev *dev, bool busy) {
    struct pollfd fds[2] = {{.fd = dev->wake_fd, .events = POLLIN},
                            {.fd = dev->sock, .events = POLLIN}};
    int timeout = timeout_of(dev, busy);
    bool tell;

    pthread_mutex_unlock(&dev->lock);
    poll(fds, 2, timeout);
    pthread_mutex_lock(&dev->lock);
    if (fds[0].revents) {
        eventfd_t n;

        eventfd_read(dev->wake_fd, &n);
    }
    if (fds[1].revents && dev->sock >= 0)
        receive(dev);
    step(dev);
    tell = dev->tell_link && !dev->want_end;
    dev->tell_link = false;
    if (tell) { /* the application's callback may call back */
        pthread_mutex_unlock(&dev->lock);
        rte_eth_dev_callback_process(dev->eth, RTE_ETH_EVENT_INTR_LSC, NULL);
        pthread_mutex_lock(&dev->lock);
    }
}

static void *control_thread(void *arg) {
    struct ff_dev *dev = arg;
    bool busy = false;

    pthread_mutex_lock(&dev->lock);
    while (!(dev->want_end && dev->link == FF_DOWN)) {
        serve(dev, busy);
        busy = ff_data_tick(dev);
    }
    ff_data_take_back(dev);
    dev->life = FF_ENDED;
    pthread_cond_broadcast(&dev->changed);
    while (dev->life != FF_RELEASED)
        pthread_cond_wait(&dev->changed, &dev->lock);
    dev->life = ff_data_tick(dev) ? FF_LINGERS : FF_OVER;
    pthread_cond_broadcast(&dev->changed);
    if (dev->life == FF_OVER) {
        pthread_mutex_unlock(&dev->lock);
        return NULL;
    }
    do { /* neighbours' memory stays until the application has no mbuf over it any more */
        const struct timespec pause = {.tv_nsec = LINGER_MS * 1000000};

        pthread_mutex_unlock(&dev->lock);
        nanosleep(&pause, NULL);
        pthread_mutex_lock(&dev->lock);
    } while (ff_data_tick(dev));
    pthread_mutex_unlock(&dev->lock);
    ff_dev_free(dev);
    return NULL;
}

/* ---- what the application's threads call ---------------------------------------------- */

/* Starts the thread, and returns once the switch has welcomed it; or -errno, and the reason in
 * dev->error. */
int ff_control_start(struct ff_dev *dev) {
    char name[RTE_MAX_THREAD_NAME_LEN];
    int rc;

    snprintf(name, sizeof(name), "%.15s", dev->name);
    rc = rte_ctrl_thread_create(&dev->thread, name, NULL, control_thread, dev);
    if (rc != 0) {
        snprintf(dev->error, sizeof(dev->error), "no thread: %s", strerror(-rc));
        return rc;
    }
    pthread_mutex_lock(&dev->lock);
    while (dev->link != FF_IDLE && dev->error[0] == '\0')
        pthread_cond_wait(&dev->changed, &dev->lock);
    rc = dev->link == FF_IDLE ? 0 : -ECONNREFUSED;
    pthread_mutex_unlock(&dev->lock);
    return rc;
}

/* Returns once packets flow, or the switch has refused, with the reason in dev->error. When the
 * switch is away it returns at once: packets will flow when it is back. */
int ff_control_run(struct ff_dev *dev) {
    int rc;

    pthread_mutex_lock(&dev->lock);
    dev->error[0] = '\0';
    dev->want_run = true;
    ff_control_wake(dev);
    while (dev->want_run && dev->link != FF_RUNNING && dev->link != FF_DOWN)
        pthread_cond_wait(&dev->changed, &dev->lock);
    rc = dev->want_run ? 0 : -EIO;
    pthread_mutex_unlock(&dev->lock);
    return rc;
}

/* Returns once no packets flow. */
void ff_control_stop(struct ff_dev *dev) {
    pthread_mutex_lock(&dev->lock);
    dev->want_run = false;
    ff_control_wake(dev);
    while (dev->link == FF_STARTING || dev->link == FF_RUNNING || dev->link == FF_STOPPING)
        pthread_cond_wait(&dev->changed, &dev->lock);
    pthread_mutex_unlock(&dev->lock);
}

/* Ends the connection, and takes back what is lent: the queues may be freed then, */
void ff_control_quit(struct ff_dev *dev) {
    pthread_mutex_lock(&dev->lock);
    dev->want_run = false;
    dev->want_end = true;
    ff_control_wake(dev);
    while (dev->life != FF_ENDED)
        pthread_cond_wait(&dev->changed, &dev->lock);
    pthread_mutex_unlock(&dev->lock);
}

/* and then the device: now, or when no mbuf needs it any more. */
void ff_control_end(struct ff_dev *dev) {
    pthread_t thread = dev->thread;
    bool over;

    pthread_mutex_lock(&dev->lock);
    dev->life = FF_RELEASED;
    pthread_cond_broadcast(&dev->changed);
    while (dev->life == FF_RELEASED)
        pthread_cond_wait(&dev->changed, &dev->lock);
    over = dev->life == FF_OVER;
    pthread_mutex_unlock(&dev->lock);
    if (over) {
        pthread_join(thread, NULL);
        ff_dev_free(dev);
    } else {
        pthread_detach(thread);
    }
}
