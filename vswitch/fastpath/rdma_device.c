/* SPDX-License-Identifier: Apache-2.0 */
/* A port of an RDMA device: opened, waited for, closed; and what the device says of itself. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

#include "rdma.h"

/* ---- opening ---- */

static struct ibv_device *device_find(struct ibv_device **list, int n, const char *name) {
    for (int i = 0; i < n; i++)
        if (strcmp(ibv_get_device_name(list[i]), name) == 0)
            return list[i];
    return NULL;
}

static void no_such_device(struct ibv_device **list, int n, const char *name, char *err) {
    int at = snprintf(err, FF_ERR_LEN, "no RDMA device is named \"%s\"; there %s", name,
                      n == 1 ? "is" : "are");

    for (int i = 0; i < n && at < FF_ERR_LEN; i++)
        at += snprintf(err + at, FF_ERR_LEN - (size_t)at, "%s %s", i > 0 ? "," : "",
                       ibv_get_device_name(list[i]));
}

static int context_open(struct ff_rdma_device *dev, const char *name, char *err) {
    int n = 0, rc = 0;
    struct ibv_device **list = ibv_get_device_list(&n);
    struct ibv_device *device;

    if (list == NULL || n == 0) {
        snprintf(err, FF_ERR_LEN, "%s: this host has no RDMA device", name);
        rc = -ENODEV;
    } else if ((device = device_find(list, n, name)) == NULL) {
        no_such_device(list, n, name, err);
        rc = -ENODEV;
    } else if ((dev->context = ibv_open_device(device)) == NULL) {
        rc = -errno;
        snprintf(err, FF_ERR_LEN, "%s: %s: %s", name,
                 rc == -EACCES || rc == -EPERM ? "no right to open /dev/infiniband/uverbs*"
                                               : "the RDMA device does not open",
                 strerror(-rc));
    }
    if (list != NULL)
        ibv_free_device_list(list);
    return rc;
}

/* Reads what the device's port is like now; -errno with a line when it cannot be used. */
static int port_look(struct ff_rdma_device *dev, char *err) {
    const char *name = ibv_get_device_name(dev->context->device);
    struct ibv_gid_entry gid;
    struct ibv_device_attr attr;

    if (ibv_query_device(dev->context, &attr) != 0 || dev->number < 1 ||
        dev->number > attr.phys_port_cnt) {
        snprintf(err, FF_ERR_LEN, "%s: there is no port %u", name, dev->number);
        return -EINVAL;
    }
    if (ibv_query_port(dev->context, dev->number, &dev->attr) != 0) {
        snprintf(err, FF_ERR_LEN, "%s: port %u does not say what it is like", name, dev->number);
        return -EIO;
    }
    if (dev->attr.state != IBV_PORT_ACTIVE) {
        snprintf(err, FF_ERR_LEN, "%s: port %u is not active but %s", name, dev->number,
                 ibv_port_state_str(dev->attr.state));
        return -ENETDOWN;
    }
    if (ibv_query_gid_ex(dev->context, dev->number, dev->gid_index, &gid, 0) != 0) {
        snprintf(err, FF_ERR_LEN, "%s: port %u has no GID of index %u", name, dev->number,
                 dev->gid_index);
        return -EADDRNOTAVAIL;
    }
    dev->gid = gid.gid;
    return 0;
}

static unsigned int chunks_max(const struct ff_rdma_device *dev) {
    struct ibv_device_attr attr = {0};

    (void)ibv_query_device(dev->context, &attr);
    return (unsigned int)RTE_MIN(
        RTE_MIN(attr.max_srq_wr / (int)FF_RDMA_BUFFERS, attr.max_cqe / (int)FF_RDMA_SQ),
        (int)FF_RDMA_QUEUE_QPS);
}

static bool nonblocking(int fd) {
    int flags = fcntl(fd, F_GETFL);

    return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0;
}

static int queue_open(struct ff_rdma_device *dev, unsigned int n) {
    struct ff_rdma_queue *q = aligned_alloc(64, RTE_ALIGN(sizeof(*q), 64));
    struct ibv_srq_init_attr srq = {.attr = {.max_sge = 1}};

    if (q == NULL)
        return -ENOMEM;
    memset(q, 0, sizeof(*q));
    q->dev = dev;
    q->waker = FF_NO_WAKER;
    q->max_chunks = chunks_max(dev);
    dev->queue[n] = q;
    srq.attr.max_wr = q->max_chunks * FF_RDMA_BUFFERS;
    q->channel = ibv_create_comp_channel(dev->context);
    if (q->channel == NULL || !nonblocking(q->channel->fd))
        return -errno;
    q->recv_cq = ibv_create_cq(dev->context, (int)srq.attr.max_wr, NULL, q->channel, 0);
    q->send_cq =
        ibv_create_cq(dev->context, (int)(q->max_chunks * FF_RDMA_SQ), NULL, q->channel, 0);
    q->srq = ibv_create_srq(dev->pd, &srq);
    if (q->recv_cq == NULL || q->send_cq == NULL || q->srq == NULL)
        return -errno;
    q->waker.fd = q->channel->fd;
    return 0;
}

/* Takes what woke the worker off the channel: a queue with such events cannot be destroyed. */
static void events_ack(const struct ff_rdma_queue *q) {
    struct ibv_cq *cq;
    void *context;

    while (ibv_get_cq_event(q->channel, &cq, &context) == 0)
        ibv_ack_cq_events(cq, 1);
}

static void queue_close(struct ff_rdma_queue *q) {
    ff_waker_unwatch(&q->waker);
    if (q->channel != NULL && q->recv_cq != NULL && q->send_cq != NULL)
        events_ack(q);
    if (q->srq != NULL)
        (void)ibv_destroy_srq(q->srq);
    if (q->send_cq != NULL)
        (void)ibv_destroy_cq(q->send_cq);
    if (q->recv_cq != NULL)
        (void)ibv_destroy_cq(q->recv_cq);
    if (q->channel != NULL)
        (void)ibv_destroy_comp_channel(q->channel);
    ff_rdma_buffers_free(q);
    free(q);
}

static void device_close(struct ff_rdma_device *dev) {
    for (unsigned int i = 0; i < FF_MAX_WORKERS && dev->queue[i] != NULL; i++)
        queue_close(dev->queue[i]);
    if (dev->pd != NULL)
        (void)ibv_dealloc_pd(dev->pd);
    if (dev->context != NULL)
        (void)ibv_close_device(dev->context);
    free(dev);
}

static int device_open(struct ff_rdma_device *dev, const struct ff_port_conf *conf, char *err) {
    int rc = context_open(dev, conf->devargs, err);

    if (rc == 0)
        rc = port_look(dev, err);
    if (rc != 0)
        return rc;
    dev->pd = ibv_alloc_pd(dev->context);
    rc = dev->pd == NULL || !nonblocking(dev->context->async_fd) ? -errno : 0;
    for (unsigned int i = 0; i < ff.n_workers && rc == 0; i++)
        rc = queue_open(dev, i);
    if (rc != 0)
        snprintf(err, FF_ERR_LEN, "%s: the RDMA device gives no queues: %s", conf->devargs,
                 strerror(-rc));
    return rc;
}

static void say_active(const struct ff_rdma_device *dev) {
    ff_port_state(dev->port, FF_PORT_READY, "%s port %u, %s",
                  ibv_get_device_name(dev->context->device), dev->number,
                  dev->attr.link_layer == IBV_LINK_LAYER_ETHERNET ? "Ethernet" : "InfiniBand");
}

static int rdma_open(struct ff_port *port, const struct ff_port_conf *conf, char *err) {
    struct ff_rdma_device *dev = calloc(1, sizeof(*dev));
    int rc;

    if (dev == NULL)
        return -ENOMEM;
    dev->port = port;
    dev->number = conf->rdma_port;
    dev->gid_index = conf->gid_index;
    rc = device_open(dev, conf, err);
    if (rc != 0) {
        device_close(dev);
        return rc;
    }
    port->dev = dev;
    port->rx_queues = (uint16_t)ff.n_workers;
    port->tx_queues = 0; /* what is sent goes to a peer, by rdma_send.c */
    port->bound = true;
    atomic_store_explicit(&port->ready, true, memory_order_release);
    say_active(dev);
    return 0;
}

static void rdma_close(struct ff_port *port) {
    struct ff_rdma_device *dev = port->dev;

    atomic_store(&port->ready, false);
    ff_rdma_peers_end(dev);
    device_close(dev);
}

/* ---- waiting ---- */

static bool rdma_arm(struct ff_worker *w, struct ff_port *port, unsigned int queue) {
    const struct ff_rdma_device *dev = port->dev;
    struct ff_rdma_queue *q = dev->queue[queue];

    return ff_waker_watch(w, &q->waker) && ibv_req_notify_cq(q->recv_cq, 0) == 0 &&
           ibv_req_notify_cq(q->send_cq, 0) == 0 && q->owing == NULL;
}

static void rdma_disarm(struct ff_port *port, unsigned int queue) {
    const struct ff_rdma_device *dev = port->dev;

    events_ack(dev->queue[queue]);
}

static void rdma_leave(struct ff_port *port, unsigned int queue) {
    (void)port; /* never: its queues are bound to their workers */
    (void)queue;
}

/* ---- what the device says ---- */

int ff_rdma_device_fd(uint16_t port_id) {
    const struct ff_port *port = ff_port(port_id);
    const struct ff_rdma_device *dev;

    if (port == NULL || port->ops != &ff_port_rdma_ops)
        return -1;
    dev = port->dev;
    return dev->context->async_fd;
}

/* what lives on: why, for peers; text, for people */
static void lost(struct ff_rdma_device *dev, const char *why, const char *text) {
    ff_rdma_fail_all(dev, why);
    ff_port_state(dev->port, FF_PORT_LOST, "%s", text);
}

/* The port is another one, or the same again. */
static void look_again(struct ff_rdma_device *dev) {
    union ibv_gid before = dev->gid;
    char err[FF_ERR_LEN];

    if (port_look(dev, err) != 0)
        lost(dev, "the RDMA port is not usable", err);
    else if (memcmp(&before, &dev->gid, sizeof(before)) != 0)
        ff_rdma_fail_all(dev, "the GID of this host is another one now");
    if (dev->attr.state == IBV_PORT_ACTIVE)
        say_active(dev);
}

static void on_event(struct ff_rdma_device *dev, const struct ibv_async_event *e) {
    switch (e->event_type) {
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
        ff_rdma_fail_qp(e->element.qp, ibv_event_type_str(e->event_type));
        break;
    case IBV_EVENT_PORT_ERR:
        if (e->element.port_num == dev->number)
            lost(dev, "the RDMA port is down", "the RDMA port is down");
        break;
    case IBV_EVENT_PORT_ACTIVE:
    case IBV_EVENT_LID_CHANGE:
    case IBV_EVENT_GID_CHANGE:
    case IBV_EVENT_PKEY_CHANGE:
        if (e->element.port_num == dev->number)
            look_again(dev);
        break;
    case IBV_EVENT_DEVICE_FATAL:
    case IBV_EVENT_CQ_ERR:
    case IBV_EVENT_SRQ_ERR:
        lost(dev, ibv_event_type_str(e->event_type), ibv_event_type_str(e->event_type));
        break;
    default:
        break;
    }
}

void ff_rdma_device_drain(uint16_t port_id) {
    struct ff_port *port = ff_port(port_id);
    struct ibv_async_event event;
    struct ff_rdma_device *dev;

    if (port == NULL || port->ops != &ff_port_rdma_ops)
        return;
    dev = port->dev;
    while (ibv_get_async_event(dev->context, &event) == 0) {
        on_event(dev, &event);
        ibv_ack_async_event(&event);
    }
}

static void rdma_info(struct ff_port *port, struct ff_port_info *info) {
    const struct ff_rdma_device *dev = port->dev;

    snprintf(info->driver, sizeof(info->driver), "%s", ibv_get_device_name(dev->context->device));
}

const struct ff_port_ops ff_port_rdma_ops = {
    .open = rdma_open,
    .close = rdma_close,
    .rx = ff_rdma_rx,
    .rx_done = ff_rdma_rx_done,
    .input = ff_rdma_input,
    .arm = rdma_arm,
    .disarm = rdma_disarm,
    .leave = rdma_leave,
    .info = rdma_info,
};
