/* SPDX-License-Identifier: Apache-2.0 */
#include "frames.h"

void template_make(struct template *t, uint8_t here, uint8_t there, uint32_t size, bool stream) {
    struct headers *h = &t->headers;
    uint16_t words[sizeof(h->ip) / sizeof(uint16_t)];
    uint16_t length = (uint16_t)(size - sizeof(h->eth));

    memset(t, 0, sizeof(*t));
    h->eth.src_addr = (struct rte_ether_addr){{0x02, 0, 0, here, 0, 0}};
    h->eth.dst_addr = (struct rte_ether_addr){{0x02, 0, 0, there, 0, 0}};
    h->eth.ether_type = rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV4);
    h->ip.version_ihl = RTE_IPV4_VHL_DEF;
    h->ip.total_length = rte_cpu_to_be_16(length);
    h->ip.time_to_live = 64;
    h->ip.src_addr = rte_cpu_to_be_32(RTE_IPV4(10, here, 0, 0));
    h->ip.dst_addr = rte_cpu_to_be_32(RTE_IPV4(10, there, 0, 0));
    if (stream) {
        h->ip.next_proto_id = IPPROTO_TCP;
        h->tcp.src_port = rte_cpu_to_be_16(40000);
        h->tcp.dst_port = rte_cpu_to_be_16(40001);
        h->tcp.data_off = sizeof(h->tcp) / 4 << 4;
        h->tcp.tcp_flags = RTE_TCP_ACK_FLAG;
        h->ip.hdr_checksum = rte_ipv4_cksum(&h->ip);
        return;
    }
    h->ip.next_proto_id = IPPROTO_UDP;
    h->udp.dst_port = rte_cpu_to_be_16(4789 + 1); /* any port that no tunnel owns */
    h->udp.dgram_len = rte_cpu_to_be_16((uint16_t)(length - sizeof(h->ip)));
    memcpy(words, &h->ip, sizeof(words));
    for (size_t i = 0; i < RTE_DIM(words); i++)
        t->ip_sum += rte_be_to_cpu_16(words[i]);
}

struct rte_mbuf *frame_make(struct rte_mempool *pool, const struct template *t, uint32_t size) {
    struct rte_mbuf *head = NULL;

    for (uint32_t done = 0; done < size;) {
        struct rte_mbuf *m = rte_pktmbuf_alloc(pool);

        if (m == NULL || (head != NULL && rte_pktmbuf_chain(head, m) != 0)) {
            rte_pktmbuf_free(m);
            rte_pktmbuf_free(head);
            return NULL;
        }
        if (head == NULL)
            head = m;
        m->data_len = (uint16_t)RTE_MIN(size - done, (uint32_t)rte_pktmbuf_tailroom(m));
        memset(rte_pktmbuf_mtod(m, void *), 0, m->data_len);
        done += m->data_len;
    }
    head->pkt_len = size;
    memcpy(rte_pktmbuf_mtod(head, void *), &t->headers, sizeof(t->headers));
    return head;
}

void frame_segmented(struct rte_mbuf *m) {
    struct headers *h = rte_pktmbuf_mtod(m, struct headers *);

    m->ol_flags = RTE_MBUF_F_TX_IPV4 | RTE_MBUF_F_TX_TCP_SEG;
    m->l2_len = sizeof(h->eth);
    m->l3_len = sizeof(h->ip);
    m->l4_len = sizeof(h->tcp);
    m->tso_segsz = SEGMENT;
    h->tcp.cksum = rte_ipv4_phdr_cksum(&h->ip, m->ol_flags);
}
