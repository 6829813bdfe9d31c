/* SPDX-License-Identifier: Apache-2.0 */
/* Action lists: checked and compiled by the control thread, done by workers. */
#include <errno.h>
#include <stdlib.h>

#include "switch.h"

static_assert(FF_MAX_PUSHED * FF_VLAN_HLEN <= FF_HEAD_ROOM, "tags are put into the room");

static int action_valid(const struct ff_action *a, bool last) {
    switch (a->type) {
    case FF_ACT_OUTPUT:
    case FF_ACT_MIRROR:
        return a->arg != FF_PORT_NONE && a->arg < FF_MAX_PORTS;
    case FF_ACT_VLAN_PUSH:
        return a->tpid != 0;
    case FF_ACT_VLAN_POP:
        return 1;
    case FF_ACT_DROP:
        return last && a->arg > FF_DROP_NONE && a->arg < FF_DROP_MAX;
    case FF_ACT_UPCALL:
        return last;
    case FF_ACT_SET_TUNNEL:
        return (a->arg & ~FF_TUNNEL_RDMA) != 0 && (a->arg & ~FF_TUNNEL_RDMA) < FF_MAX_REMOTES;
    case FF_ACT_CHECK_LEN:
        return a->arg >= FF_ETH_HLEN;
    default:
        return 0;
    }
}

/* More tags than the room in front of a private head holds, were they all there at a time. */
static bool overruns(const struct ff_action *list, uint32_t n) {
    uint32_t tags = 0; /* beyond those that the frame came with: a pop may find none */

    for (uint32_t i = 0; i < n; i++) {
        if (list[i].type == FF_ACT_VLAN_PUSH && ++tags > FF_MAX_PUSHED)
            return true;
        if (list[i].type == FF_ACT_VLAN_POP && tags > 0)
            tags--;
    }
    return false;
}

/* The order in which actions are done whatever the caller's. */
static unsigned int rank_of(const struct ff_action *a) {
    return a->type == FF_ACT_CHECK_LEN ? 0 : a->type == FF_ACT_MIRROR ? 1 : 2;
}

struct ff_actions *ff_actions_compile(const struct ff_action *list, uint32_t n, int *rc) {
    static const struct ff_action drop = {.type = FF_ACT_DROP, .arg = FF_DROP_POLICY};
    struct ff_actions *a;

    if (n == 0) {
        list = &drop;
        n = 1;
    }
    *rc = -EINVAL;
    if (n > FF_MAX_ACTIONS || overruns(list, n))
        return NULL;
    for (uint32_t i = 0; i < n; i++)
        if (!action_valid(&list[i], i + 1 == n))
            return NULL;
    *rc = -ENOMEM;
    a = malloc(sizeof(*a) + n * sizeof(a->list[0]));
    if (a == NULL)
        return NULL;
    *a = (struct ff_actions){.only = -1};
    /* a length that does not fit sends nothing yet, and a mirror gets the packet as received */
    for (unsigned int rank = 0; rank < 3; rank++)
        for (uint32_t i = 0; i < n; i++)
            if (rank_of(&list[i]) == rank)
                a->list[a->n++] = list[i];
    for (uint32_t i = 0; i < n; i++)
        a->n_outputs += list[i].type == FF_ACT_OUTPUT || list[i].type == FF_ACT_MIRROR;
    a->ends = list[n - 1].type == FF_ACT_DROP || list[n - 1].type == FF_ACT_UPCALL;
    if (n == 1 && list[0].type == FF_ACT_OUTPUT)
        a->only = list[0].arg;
    *rc = 0;
    return a;
}

/* A hash of the addresses, the same for all packets of a flow: fragments too. */
static uint16_t steer_hash(const struct ff_key *key) {
    const uint32_t *a = (const uint32_t *)(const void *)key->ip_src;
    uint32_t h = a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7];

    if (!(key->ip_frag & FF_FRAG_ANY) && key->ip_proto != 1 && key->ip_proto != 58)
        h ^= ((uint32_t)key->l4_src << 16) ^ key->l4_dst;
    h ^= h >> 16;     /* what tells neighbours apart, the last bytes of addresses, comes high */
    h *= 0x9e3779b1u; /* 2^32 / golden ratio */
    return (uint16_t)(h >> 16);
}

/* A list beyond one output. Each output but the last shares the frame. */
static void execute_list(struct ff_worker *w, struct ff_frame *frame, const struct ff_key *key,
                         unsigned int queue, const struct ff_actions *actions) {
    uint16_t in_port = key->in_port;
    unsigned int tags = (key->vlan_tpid[0] != 0) + (key->vlan_tpid[1] != 0);
    uint32_t left = actions->n_outputs;
    bool shared = false;

    for (uint32_t i = 0; i < actions->n; i++) {
        const struct ff_action *a = &actions->list[i];

        switch (a->type) {
        case FF_ACT_OUTPUT:
        case FF_ACT_MIRROR:
            if (--left == 0 && !actions->ends) {
                ff_output(w, a->arg, in_port, frame);
                return;
            }
            w->port_stats[in_port].replicated++;
            ff_frame_share(frame);
            shared = true;
            struct ff_frame copy = *frame;
            ff_output(w, a->arg, in_port, &copy);
            break;
        case FF_ACT_VLAN_PUSH:
        case FF_ACT_VLAN_POP:
            if (a->type == FF_ACT_VLAN_POP && tags == 0)
                break;
            if ((shared && ff_frame_unshare(frame, &w->arena, ff.pool) != 0) ||
                (a->type == FF_ACT_VLAN_PUSH && ff_frame_vlan_push(frame, a->tpid, a->arg) != 0)) {
                ff_drop(w, in_port, FF_DROP_NO_COPY, frame);
                return;
            }
            shared = false;
            tags++;
            if (a->type == FF_ACT_VLAN_POP) {
                ff_frame_vlan_pop(frame);
                tags -= 2;
            }
            break;
        case FF_ACT_SET_TUNNEL:
            frame->remote = a->arg;
            break;
        case FF_ACT_CHECK_LEN:
            if (likely(frame->len <= a->arg) || ff_offload_unit(frame) <= a->arg)
                break;
            ff_upcall_raise(w, frame, key, queue);
            return;
        case FF_ACT_UPCALL:
            ff_upcall_raise(w, frame, key, queue);
            return;
        default:
            ff_drop(w, in_port, a->arg, frame);
            return;
        }
    }
    ff_drop(w, in_port, FF_DROP_POLICY, frame); /* a list that never outputs */
}

void ff_execute(struct ff_worker *w, struct ff_frame *frame, const struct ff_key *key,
                unsigned int queue, const struct ff_actions *actions) {
    frame->steer = steer_hash(key);
    frame->remote = 0;
    if (likely(actions->only >= 0))
        ff_output(w, (uint16_t)actions->only, key->in_port, frame);
    else
        execute_list(w, frame, key, queue, actions);
}
