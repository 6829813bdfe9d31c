/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the switch asks of a running container: neighbours' memory and shortcuts, and their ends.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"

#define DRAIN_MS 10000 /* for the queues to take what a dropped shortcut still holds */

/* Shows the queues what has changed in dev->ins, dev->outs and dev->region; returns when no burst
 * uses what was before. */
void ff_publish(struct ff_dev *dev) {
    struct ff_rx_view *old[FF_SHM_QUEUES] = {0};

    for (uint16_t i = 0; i < dev->n_rx; i++) {
        struct ff_rx_view *v = ff_rx_view_new(dev, i);

        if (v == NULL) { /* and what the queue has is not to be used any more */
            FF_LOG(ERR, dev, "no memory: receive queue %u stops", i);
            __atomic_store_n(&dev->rxq[i]->up, false, __ATOMIC_RELEASE);
        }
        old[i] = __atomic_exchange_n(&dev->rxq[i]->view, v, __ATOMIC_ACQ_REL);
    }
    __atomic_store_n(&dev->version, dev->version + 1, __ATOMIC_RELEASE);
    ff_quiesce(dev);
    for (uint16_t i = 0; i < dev->n_rx; i++)
        free(old[i]);
}

/* ---- regions --------------------------------------------------------------------- */

static void add_neighbour(struct ff_dev *dev, const struct ff_shm_msg *msg, int fd) {
    char why[FF_SHM_TEXT];
    struct ff_region *r = ff_memory_map(dev, msg, fd, why);

    if (r != NULL) {
        r->next = dev->regions;
        dev->regions = r;
        __atomic_store_n(&dev->region[r->number], r, __ATOMIC_RELEASE);
    }
    ff_control_answer(dev, msg->serial, r == NULL ? why : NULL);
}

static void unmap(struct ff_dev *dev, const struct ff_shm_msg *msg) {
    struct ff_region *r = dev->region[msg->region];

    for (struct ff_out *out = dev->outs_list; out != NULL; out = out->next)
        __atomic_and_fetch(&out->grant[msg->region / 8], (uint8_t) ~(1u << msg->region % 8),
                           __ATOMIC_RELAXED);
    if (r == NULL || r->own) {
        ff_control_answer(dev, msg->serial, r == NULL ? NULL : "UNMAP names own memory");
        return;
    }
    __atomic_store_n(&dev->region[msg->region], NULL, __ATOMIC_RELEASE);
    ff_quiesce(dev);
    r->going = true; /* ff_data_tick does the rest */
    r->serial = msg->serial;
}

/* ---- shortcuts --------------------------------------------------------------------- */

static struct ff_in *find_in(const struct ff_dev *dev, uint16_t number) {
    struct ff_in *in = dev->ins;

    while (in != NULL && in->number != number)
        in = in->next;
    return in;
}

static void add_shortcut(struct ff_dev *dev, const struct ff_shm_msg *msg, int fd) {
    bool is_out = msg->flags & FF_MSG_OUT;
    char why[FF_SHM_TEXT];

    if (msg->number >= FF_SHM_SHORTCUTS ||
        (is_out ? dev->outs[msg->number] != NULL : find_in(dev, msg->number) != NULL)) {
        snprintf(why, sizeof(why), "shortcut %u is there already, or beyond the table",
                 msg->number);
        ff_control_answer(dev, msg->serial, why);
        return;
    }
    if (is_out) {
        struct ff_out *out = ff_out_new(msg, fd, why);

        if (out != NULL) {
            out->next = dev->outs_list;
            dev->outs_list = out;
            __atomic_store_n(&dev->outs[msg->number], out, __ATOMIC_RELEASE);
        }
        ff_control_answer(dev, msg->serial, out == NULL ? why : NULL);
    } else {
        struct ff_in *in = ff_in_new(msg, fd, why);

        if (in != NULL) {
            in->next = dev->ins;
            dev->ins = in;
            ff_publish(dev);
        }
        ff_control_answer(dev, msg->serial, in == NULL ? why : NULL);
    }
}

/* Takes a shortcut away from the receive queues; what they did not take is given back unseen. */
void ff_drop_in(struct ff_dev *dev, struct ff_in *in) {
    struct ff_in **at = &dev->ins;

    while (*at != in)
        at = &(*at)->next;
    *at = in->next;
    ff_publish(dev);
    in->next = dev->old_ins;
    dev->old_ins = in;
    ff_in_discard(in);
}

/* Takes a shortcut away from the transmit queues; what is lent stays lent. */
void ff_drop_out(struct ff_dev *dev, struct ff_out *out) {
    struct ff_out **at = &dev->outs_list;

    while (*at != out)
        at = &(*at)->next;
    *at = out->next;
    __atomic_store_n(&dev->outs[out->number], NULL, __ATOMIC_RELEASE);
    ff_publish(dev);
    out->next = dev->old_outs;
    dev->old_outs = out;
}

static void drop(struct ff_dev *dev, const struct ff_shm_msg *msg) {
    bool known = msg->number < FF_SHM_SHORTCUTS;

    if (msg->flags & FF_MSG_OUT) {
        if (known && dev->outs[msg->number] != NULL)
            ff_drop_out(dev, dev->outs[msg->number]);
        ff_control_answer(dev, msg->serial, NULL);
    } else {
        struct ff_in *in = find_in(dev, msg->number);

        if (in == NULL) {
            ff_control_answer(dev, msg->serial, NULL);
        } else { /* ff_data_tick does the rest */
            in->serial = msg->serial;
            in->going = true;
            in->give_up = ff_now_ms() + DRAIN_MS;
        }
    }
}

static void reclaim(struct ff_dev *dev, const struct ff_shm_msg *msg) {
    if (msg->number < FF_SHM_SHORTCUTS && dev->outs[msg->number] != NULL)
        ff_drop_out(dev, dev->outs[msg->number]);
    for (struct ff_out *out = dev->old_outs; out != NULL; out = out->next)
        for (uint16_t q = 0; out->number == msg->number && q < out->n_rings; q++)
            ff_out_seize(&out->ring[q]);
    ff_control_answer(dev, msg->serial, NULL);
}

static void grant(struct ff_dev *dev, const struct ff_shm_msg *msg) {
    struct ff_out *out = msg->number < FF_SHM_SHORTCUTS ? dev->outs[msg->number] : NULL;

    if (out != NULL)
        __atomic_or_fetch(&out->grant[msg->region / 8], (uint8_t)(1u << msg->region % 8),
                          __ATOMIC_RELAXED);
    ff_control_answer(dev, msg->serial, NULL);
}

void ff_request(struct ff_dev *dev, const struct ff_shm_msg *msg, int fd) {
    char why[FF_SHM_TEXT];

    if (dev->link == FF_RUNNING || dev->link == FF_STOPPING) {
        switch (msg->type) {
        case FF_MSG_NEIGHBOUR:
            return add_neighbour(dev, msg, fd);
        case FF_MSG_UNMAP:
            return unmap(dev, msg);
        case FF_MSG_SHORTCUT:
            return add_shortcut(dev, msg, fd);
        case FF_MSG_DROP:
            return drop(dev, msg);
        case FF_MSG_RECLAIM:
            return reclaim(dev, msg);
        case FF_MSG_GRANT:
            return grant(dev, msg);
        default:
            break;
        }
    }
    snprintf(why, sizeof(why), "message %u is not for now", msg->type);
    ff_control_answer(dev, msg->serial, why);
}
