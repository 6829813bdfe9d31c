/* SPDX-License-Identifier: Apache-2.0 */
/* Queue pairs: made with the memory that they send from, joined to the other end's, freed. */
#include <errno.h>
#include <stdlib.h>

#include <rte_random.h>

#include "rdma.h"

#define PAGE 4096u
#define INLINE_WANTED 256u
#define RNR_TIMER 12 /* 0.64 ms: InfiniBand specification, table 45; credits make it needless */
#define RNR_RETRIES 6
#define PSN_MASK 0xffffffu
#define HOP_LIMIT 64
#define RING_BYTES RTE_ALIGN(FF_RDMA_RING + FF_RDMA_SQ * FF_RDMA_HEADER_LEN, PAGE)

static int qp_create(struct ff_rdma_qp *qp) {
    struct ff_rdma_queue *q = qp->queue;
    struct ibv_qp_init_attr attr = {
        .send_cq = q->send_cq,
        .recv_cq = q->recv_cq,
        .srq = q->srq,
        .cap = {.max_send_wr = FF_RDMA_SQ, .max_send_sge = 1, .max_inline_data = INLINE_WANTED},
        .qp_type = IBV_QPT_RC,
    };
    struct ibv_qp_attr init = {.qp_state = IBV_QPS_INIT, .port_num = q->dev->number};

    qp->qp = ibv_create_qp(q->dev->pd, &attr);
    if (qp->qp == NULL) {
        attr.cap.max_inline_data = 0;
        qp->qp = ibv_create_qp(q->dev->pd, &attr);
    }
    if (qp->qp == NULL)
        return -errno;
    qp->number = qp->qp->qp_num;
    qp->inline_max = attr.cap.max_inline_data;
    return -ibv_modify_qp(qp->qp, &init,
                          IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
}

void ff_rdma_qp_publish(struct ff_rdma_qp *qp) {
    struct ff_rdma_queue *q = qp->queue;
    unsigned int i = 0;

    while (atomic_load(&q->qps[i]) != NULL)
        i++;
    atomic_store_explicit(&q->qps[i], qp, memory_order_release);
    if (i >= atomic_load(&q->n_qps))
        atomic_store_explicit(&q->n_qps, i + 1, memory_order_release);
}

void ff_rdma_qp_conceal(const struct ff_rdma_qp *qp) {
    struct ff_rdma_queue *q = qp->queue;

    for (unsigned int i = 0; i < atomic_load(&q->n_qps); i++)
        if (atomic_load(&q->qps[i]) == qp)
            atomic_store(&q->qps[i], NULL);
}

void ff_rdma_qp_free(struct ff_rdma_qp *qp) {
    if (qp->qp != NULL)
        (void)ibv_destroy_qp(qp->qp);
    if (qp->mr != NULL)
        (void)ibv_dereg_mr(qp->mr);
    free(qp->ring);
    free(qp);
}

struct ff_rdma_qp *ff_rdma_qp_make(struct ff_rdma_peer *peer, struct ff_rdma_queue *q, int *rc) {
    struct ff_rdma_qp *qp = aligned_alloc(64, RTE_ALIGN(sizeof(*qp), 64));

    *rc = -ENOMEM;
    if (qp == NULL)
        return NULL;
    memset(qp, 0, sizeof(*qp));
    qp->peer = peer;
    qp->queue = q;
    qp->psn = (uint32_t)rte_rand() & PSN_MASK;
    qp->ring = aligned_alloc(PAGE, RING_BYTES);
    if (qp->ring != NULL) {
        qp->mr = ibv_reg_mr(q->dev->pd, qp->ring, RING_BYTES, 0);
        *rc = qp->mr == NULL ? -errno : qp_create(qp);
    }
    if (*rc == 0)
        *rc = ff_rdma_buffers_add(q);
    if (*rc != 0) {
        ff_rdma_qp_free(qp);
        return NULL;
    }
    return qp;
}

static enum ibv_mtu mtu_enum(uint16_t bytes) {
    enum ibv_mtu mtu = IBV_MTU_256;

    while (mtu < IBV_MTU_4096 && 128u << (mtu + 1) <= bytes)
        mtu++;
    return mtu;
}

int ff_rdma_qp_join(struct ff_rdma_qp *qp, unsigned int i, const struct ff_rdma_connect *conf) {
    const struct ff_rdma_device *dev = qp->queue->dev;
    const struct ff_rdma_end *r = &conf->remote;
    struct ibv_qp_attr ready = {
        .qp_state = IBV_QPS_RTR,
        .path_mtu = RTE_MIN(mtu_enum(r->mtu), dev->attr.active_mtu),
        .dest_qp_num = r->qpn[i],
        .rq_psn = r->psn[i],
        .min_rnr_timer = RNR_TIMER,
        .ah_attr = {.dlid = r->lid,
                    .port_num = dev->number,
                    .is_global = dev->attr.link_layer == IBV_LINK_LAYER_ETHERNET,
                    .grh = {.sgid_index = dev->gid_index, .hop_limit = HOP_LIMIT}},
    };
    struct ibv_qp_attr send = {.qp_state = IBV_QPS_RTS,
                               .timeout = conf->timeout,
                               .retry_cnt = conf->retries,
                               .rnr_retry = RNR_RETRIES,
                               .sq_psn = qp->psn};
    int rc;

    memcpy(ready.ah_attr.grh.dgid.raw, r->gid, sizeof(r->gid));
    ff_rdma_window_open(&qp->window, FF_RDMA_CREDITS, r->credits);
    rc = ibv_modify_qp(qp->qp, &ready,
                       IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
                           IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
    if (rc == 0)
        rc = ibv_modify_qp(qp->qp, &send,
                           IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                               IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
    return -rc;
}
