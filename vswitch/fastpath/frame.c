/* SPDX-License-Identifier: Apache-2.0 */
/* Frames that leave the burst: copies into mbufs. */
#include <stdbool.h>

#include "frame.h"

/* Appends bytes to a chain that ends at *last, with new mbufs as needed. */
static int append(struct rte_mbuf *first, struct rte_mbuf **last, struct rte_mempool *pool,
                  const uint8_t *p, uint32_t len) {
    while (len > 0) {
        struct rte_mbuf *m = *last;
        uint32_t n = RTE_MIN(len, (uint32_t)rte_pktmbuf_tailroom(m));

        if (n == 0) {
            m = rte_pktmbuf_alloc(pool);
            if (m == NULL)
                return -1;
            (*last)->next = m;
            *last = m;
            first->nb_segs++;
            m->data_off = 0; /* only the first needs headroom */
            continue;
        }
        memcpy(rte_pktmbuf_mtod_offset(m, uint8_t *, m->data_len), p, n);
        m->data_len += (uint16_t)n;
        first->pkt_len += n;
        p += n;
        len -= n;
    }
    return 0;
}

struct rte_mbuf *ff_frame_copy(const struct ff_frame *f, struct rte_mempool *pool, uint32_t max) {
    struct rte_mbuf *m, *last;
    uint32_t n;

    if (ff_frame_is_mbuf(f))
        return rte_pktmbuf_copy(f->buf, pool, 0, max);
    m = last = rte_pktmbuf_alloc(pool);
    if (m == NULL)
        return NULL;
    n = RTE_MIN(max, (uint32_t)f->head_len);
    if (append(m, &last, pool, f->head, n) != 0)
        goto fail;
    max -= n;
    for (unsigned int i = 0; i < f->n_segs && max > 0; i++) {
        n = RTE_MIN(max, f->seg[i].len);
        if (append(m, &last, pool, f->seg[i].p, n) != 0)
            goto fail;
        max -= n;
    }
    return m;
fail:
    rte_pktmbuf_free(m);
    return NULL;
}

static void become(struct ff_frame *f, struct rte_mbuf *m) {
    const struct ff_frame was = *f;

    ff_frame_from_mbuf(f, m);
    f->steer = was.steer;
    f->offload = was.offload;
}

int ff_frame_keep(struct ff_frame *f, struct rte_mempool *pool) {
    struct rte_mbuf *m;

    if (ff_frame_is_mbuf(f))
        return 0;
    m = ff_frame_copy(f, pool, UINT32_MAX);
    if (m == NULL)
        return -1;
    become(f, m);
    return 0;
}

int ff_frame_unshare(struct ff_frame *f, struct ff_arena *arena, struct rte_mempool *pool) {
    struct rte_mbuf *m;

    if (!ff_frame_is_mbuf(f) && arena->n_heads < RTE_DIM(arena->head) &&
        f->head_len <= FF_HEAD_COPY) {
        uint8_t *head = arena->head[arena->n_heads++] + FF_HEAD_ROOM;

        memcpy(head, f->head, f->head_len);
        f->head = head;
        return 0;
    }
    m = ff_frame_copy(f, pool, UINT32_MAX);
    if (m == NULL)
        return -1;
    ff_frame_free(f);
    become(f, m);
    return 0;
}

void ff_reader_start(struct ff_reader *r, const struct ff_frame *f) {
    *r = (struct ff_reader){.f = f, .p = f->head, .here = f->head_len};
    if (ff_frame_is_mbuf(f))
        r->m = f->buf->next;
}

struct ff_seg ff_reader_take(struct ff_reader *r, uint32_t max) {
    struct ff_seg s;

    while (r->here == 0) {
        if (ff_frame_is_mbuf(r->f)) {
            r->p = rte_pktmbuf_mtod(r->m, const uint8_t *);
            r->here = r->m->data_len;
            r->m = r->m->next;
        } else {
            r->p = r->f->seg[r->next].p;
            r->here = r->f->seg[r->next++].len;
        }
    }
    s = (struct ff_seg){r->p, RTE_MIN(max, r->here)};
    r->p += s.len;
    r->here -= s.len;
    return s;
}

void ff_reader_copy(struct ff_reader *r, uint8_t *dst, uint32_t len) {
    while (len > 0) {
        struct ff_seg s = ff_reader_take(r, len);

        memcpy(dst, s.p, s.len);
        dst += s.len;
        len -= s.len;
    }
}
