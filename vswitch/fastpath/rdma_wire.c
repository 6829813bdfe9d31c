/* SPDX-License-Identifier: Apache-2.0 */
/* Messages and credits of ff_rdma.h, as arithmetic: nothing here touches a device. */
#include <errno.h>
#include <string.h>

#include "ff.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "headers are read as they are");

int ff_rdma_check(const uint8_t *message, uint32_t len, uint32_t epoch) {
    struct ff_rdma_header h;

    if (len < sizeof(h))
        return FF_DROP_RDMA_MALFORMED;
    memcpy(&h, message, sizeof(h));
    if (h.magic != FF_RDMA_MAGIC || h.version != FF_RDMA_VERSION || h.type < FF_RDMA_DATA ||
        h.type > FF_RDMA_CAME)
        return FF_DROP_RDMA_MALFORMED;
    if (h.epoch != epoch)
        return FF_DROP_RDMA_EPOCH;
    if (h.len > FF_RDMA_FRAME_MAX)
        return FF_DROP_RDMA_OVERSIZE;
    if (h.len != len - sizeof(h) || (h.type == FF_RDMA_DATA) != (h.len > 0))
        return FF_DROP_RDMA_MALFORMED;
    return FF_DROP_NONE;
}

void ff_rdma_window_open(struct ff_rdma_window *w, uint32_t credits, uint32_t peer_credits) {
    *w = (struct ff_rdma_window){
        .limit = peer_credits, .granted = credits, .told = credits, .credits = credits};
}

uint32_t ff_rdma_window_left(const struct ff_rdma_window *w) {
    return w->limit - w->posted;
}

int ff_rdma_window_limit(struct ff_rdma_window *w, uint32_t limit) {
    if (limit - w->posted > FF_RDMA_CREDITS_MAX || limit - w->limit > FF_RDMA_CREDITS_MAX)
        return -EPROTO;
    w->limit = limit;
    return 0;
}

int ff_rdma_window_arrive(struct ff_rdma_window *w) {
    if (w->arrived == w->told)
        return -EPROTO;
    w->arrived++;
    return 0;
}

int ff_rdma_window_owes(const struct ff_rdma_window *w) {
    return w->granted - w->told >= (w->credits + 1) / 2;
}

static const char *const state_names[] = {
    [FF_RDMA_NEW] = "new",
    [FF_RDMA_CONNECTED] = "connected",
    [FF_RDMA_ACTIVE] = "active",
    [FF_RDMA_FAILED] = "failed",
};

const char *ff_rdma_state_name(unsigned int state) {
    return state < sizeof(state_names) / sizeof(state_names[0]) ? state_names[state] : "unknown";
}
