/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segmentation and checksums in software, for a port that cannot have the
 * offloads that a frame asks for. librte_gso would need the frame in mbufs, a
 * second copy, knows no TCP over IPv6, and computes no checksum. Here a
 * segment is a frame like any other: a head of its own, and a view of the
 * sender's payload. The original is only read: other ports may have it too.
 */
#include <netinet/in.h>

#include <rte_ip.h>
#include <rte_tcp.h>

#include "switch.h"

/* What is being sent, and how it goes. */
struct job {
    struct ff_worker *w;
    struct ff_port *port;
    ff_gso_emit *emit;
    struct ff_gso *out;
};

/* Sends what is gathered; whether the port took all of it. */
static bool flush(struct job *j) {
    struct ff_gso *out = j->out;
    unsigned int n = out->n, n_done = out->n_done;
    struct rte_mbuf *done[FF_BURST];
    struct ff_frame frames[FF_BURST];
    bool all;

    /* what is sent through a tunnel may come back here, for another port */
    memcpy(frames, out->frames, n * sizeof(frames[0]));
    memcpy(done, out->done, n_done * sizeof(done[0]));
    out->n = out->n_segs = out->n_done = 0;
    all = n == 0 || j->emit(j->w, j->port, frames, n) == n;
    if (n_done > 0)
        rte_pktmbuf_free_bulk(done, n_done);
    return all;
}

/* The next frame to fill in, with `headers` bytes of f's own at a head of its own. */
static struct ff_frame *next_frame(struct job *j, const struct ff_frame *f, uint32_t headers) {
    struct ff_gso *out = j->out;
    struct ff_frame *s = &out->frames[out->n];
    uint8_t *head = out->head[out->n++];

    memcpy(head, f->head, headers);
    *s = (struct ff_frame){
        .head = head,
        .seg = &out->seg[out->n_segs],
        .len = headers,
        .head_len = (uint16_t)headers,
        .steer = f->steer,
        .remote = f->remote,
        .offload = {.what = FF_OFF_VALID},
    };
    return s;
}

/* Lends s the next `len` bytes, and returns the sum over them (not folded). */
static uint32_t lend(struct job *j, struct ff_frame *s, struct ff_reader *r, uint32_t len) {
    uint32_t sum = 0, done = 0;

    while (done < len) {
        struct ff_seg piece = ff_reader_take(r, len - done);
        uint16_t part = rte_raw_cksum(piece.p, piece.len);

        sum += done % 2 == 0 ? part : rte_bswap16(part); /* RFC 1071 section 2(B) */
        done += piece.len;
        j->out->seg[j->out->n_segs++] = piece;
        s->n_segs++;
    }
    s->len += len;
    return sum;
}

static uint16_t fold(uint32_t sum) {
    sum = (sum >> 16) + (sum & 0xffff);
    return (uint16_t)((sum >> 16) + sum);
}

/* Completes the checksum, which holds the pseudo-header's sum; `sum` is the payload's. */
static void put_checksum(const struct ff_frame *s, const struct ff_offload *o, uint32_t sum) {
    uint8_t *l4 = s->head + o->csum_start;
    uint8_t *at = l4 + (o->what & FF_OFF_TCP ? FF_TCP_CSUM_AT : FF_UDP_CSUM_AT);
    uint16_t csum;

    sum += rte_raw_cksum(l4, s->head_len - o->csum_start);
    csum = (uint16_t)~fold(sum);
    if (csum == 0 && !(o->what & FF_OFF_TCP))
        csum = 0xffff; /* RFC 768: zero says that there is none */
    memcpy(at, &csum, sizeof(csum));
}

/* A frame that only lacks its checksum. */
static void complete(struct job *j, const struct ff_frame *f) {
    uint32_t headers = ff_offload_headers(f), end = ff_offload_end(f), sum;
    struct ff_frame *s = next_frame(j, f, headers);
    struct ff_reader r;

    ff_reader_start(&r, f);
    ff_reader_skip(&r, headers);
    sum = lend(j, s, &r, end - headers);
    (void)lend(j, s, &r, f->len - end); /* padding */
    put_checksum(s, &f->offload, sum);
}

/* Makes the headers those of the segment that begins `offset` bytes into f's payload. */
static void segment_headers(const struct ff_frame *s, const struct ff_frame *f, uint32_t number,
                            uint32_t offset, bool last) {
    const struct ff_offload *o = &f->offload;
    struct rte_tcp_hdr *tcp = (struct rte_tcp_hdr *)(void *)(s->head + o->csum_start);
    uint8_t *l3 = s->head + o->csum_start - o->l3_words * 4u;
    uint16_t len = (uint16_t)(s->len - o->csum_start);
    uint16_t old_len = (uint16_t)(ff_offload_end(f) - o->csum_start);

    /* the pseudo-header's sum, with this segment's length in it (RFC 1624) */
    tcp->cksum =
        fold((uint32_t)tcp->cksum + (uint16_t)~rte_cpu_to_be_16(old_len) + rte_cpu_to_be_16(len));
    tcp->sent_seq = rte_cpu_to_be_32(rte_be_to_cpu_32(tcp->sent_seq) + offset);
    if (!last)
        tcp->tcp_flags &= (uint8_t) ~(RTE_TCP_FIN_FLAG | RTE_TCP_PSH_FLAG);
    if (offset > 0)
        tcp->tcp_flags &= (uint8_t)~RTE_TCP_CWR_FLAG;
    if (o->what & FF_OFF_TSO4) {
        struct rte_ipv4_hdr *ip = (struct rte_ipv4_hdr *)(void *)l3;

        ip->total_length = rte_cpu_to_be_16((uint16_t)(len + o->l3_words * 4u));
        ip->packet_id = rte_cpu_to_be_16((uint16_t)(rte_be_to_cpu_16(ip->packet_id) + number));
        ip->hdr_checksum = 0;
        ip->hdr_checksum = (uint16_t)~rte_raw_cksum(ip, o->l3_words * 4u);
    } else {
        struct rte_ipv6_hdr *ip = (struct rte_ipv6_hdr *)(void *)l3;

        ip->payload_len = rte_cpu_to_be_16((uint16_t)(len + o->l3_words * 4u - sizeof(*ip)));
    }
}

static bool is_full(const struct ff_gso *out) {
    return out->n == FF_BURST || out->n_segs > FF_ARENA_SEGS - FF_CHAIN_MAX - 1;
}

/* Cuts f. A port that does not take all of a burst gets no more of it. */
static void segment(struct job *j, const struct ff_frame *f) {
    uint32_t headers = ff_offload_headers(f), payload = ff_offload_end(f) - headers;
    uint32_t size = f->offload.gso_size, n = (payload + size - 1) / size;
    struct ff_reader r;

    /* the copies beyond the first, of the law of the counters */
    j->w->port_stats[j->port->id].replicated += n - 1;
    ff_reader_start(&r, f);
    ff_reader_skip(&r, headers);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t offset = i * size, sum;
        struct ff_frame *s;

        if (is_full(j->out) && !flush(j)) {
            j->w->port_stats[j->port->id].drop[FF_DROP_RING_FULL] += n - i;
            return;
        }
        s = next_frame(j, f, headers);
        sum = lend(j, s, &r, RTE_MIN(size, payload - offset));
        segment_headers(s, f, i, offset, i + 1 == n);
        put_checksum(s, &f->offload, sum);
    }
}

void ff_gso_send(struct ff_worker *w, struct ff_port *port, const struct ff_frame *frames,
                 unsigned int n, ff_gso_emit *emit) {
    struct job j = {.w = w, .port = port, .emit = emit, .out = &w->gso};

    for (unsigned int i = 0; i < n; i++) {
        const struct ff_frame *f = &frames[i];
        uint8_t cannot = f->offload.what & (uint8_t)~port->offloads;

        if (is_full(j.out))
            (void)flush(&j);
        if (cannot == 0) {
            j.out->frames[j.out->n++] = *f;
            continue;
        }
        if (f->offload.what & FF_OFF_TSO)
            segment(&j, f);
        else
            complete(&j, f);
        if (ff_frame_is_mbuf(f))
            j.out->done[j.out->n_done++] = f->buf;
    }
    (void)flush(&j);
}
