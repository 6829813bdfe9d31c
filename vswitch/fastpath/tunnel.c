/* SPDX-License-Identifier: Apache-2.0 */
/* Tunnels as the control thread sets them: uplinks, remotes and the vxlan ports of networks. */
#include "tunnel.h"

#include <errno.h>
#include <stdlib.h>

#include <rte_hash.h>
#include <rte_jhash.h>

#define DEFAULT_TTL 64

static struct rte_hash *vnis;  /* VNI → port id */
static struct rte_hash *peers; /* struct ff_outer_ip → how many remotes have it */
static struct ff_remote *_Atomic remotes[FF_MAX_REMOTES];

static struct rte_hash *hash_make(const char *name, uint32_t entries, uint32_t key_len) {
    const struct rte_hash_parameters params = {
        .name = name,
        .entries = entries,
        .key_len = key_len,
        .hash_func = rte_jhash,
        .socket_id = SOCKET_ID_ANY,
        .extra_flag = RTE_HASH_EXTRA_FLAGS_RW_CONCURRENCY_LF,
    };

    return rte_hash_create(&params);
}

int ff_tunnel_init(void) {
    vnis = hash_make("ff_vnis", FF_MAX_PORTS, sizeof(uint32_t));
    peers = hash_make("ff_peers", FF_MAX_REMOTES, sizeof(struct ff_outer_ip));
    return vnis == NULL || peers == NULL ? -ENOMEM : 0;
}

void ff_tunnel_fini(void) {
    for (unsigned int i = 0; i < FF_MAX_REMOTES; i++)
        free(atomic_exchange(&remotes[i], NULL));
    rte_hash_free(vnis);
    rte_hash_free(peers);
}

/* Without internal memory management, the place of a deleted key is the caller's to give back. */
static void hash_remove(struct rte_hash *h, const void *key) {
    int32_t at = rte_hash_del_key(h, key);

    if (at < 0)
        return;
    ff_synchronize();
    (void)rte_hash_free_key_with_position(h, at);
}

/* ---- for workers ---- */

struct ff_port *ff_tunnel_port(uint32_t vni) {
    void *id;

    return rte_hash_lookup_data(vnis, &vni, &id) < 0 ? NULL : ff_port((uint16_t)(uintptr_t)id);
}

bool ff_tunnel_peer(const struct ff_outer_ip *ip) {
    return rte_hash_lookup(peers, ip) >= 0;
}

const struct ff_remote *ff_tunnel_remote(uint16_t remote) {
    return atomic_load_explicit(&remotes[remote], memory_order_acquire);
}

/* ---- uplinks ---- */

static bool is_zero(const void *p, size_t len) {
    static const uint8_t zero[16];

    return memcmp(p, zero, len) == 0;
}

void ff_uplink_clear(struct ff_port *port) {
    ff_retire(atomic_exchange(&port->uplink, NULL));
}

int ff_uplink_set(uint16_t port_id, const struct ff_uplink_conf *conf) {
    struct ff_port *port = ff_port(port_id);
    struct ff_uplink_conf *copy;

    if (port == NULL)
        return -ENOENT;
    if (is_zero(conf->ip4, sizeof(conf->ip4)) && is_zero(conf->ip6, sizeof(conf->ip6))) {
        ff_uplink_clear(port);
        return 0;
    }
    copy = malloc(sizeof(*copy));
    if (copy == NULL)
        return -ENOMEM;
    *copy = *conf;
    ff_retire(atomic_exchange(&port->uplink, copy));
    ff_reclaim();
    return 0;
}

/* ---- remotes ---- */

static struct ff_outer_ip remote_ip(const struct ff_remote *r) {
    struct ff_outer_ip a;

    if (!r->ipv6)
        return ff_outer_ipv4(r->header + RTE_ETHER_HDR_LEN +
                             offsetof(struct rte_ipv4_hdr, dst_addr));
    memcpy(a.ip, r->header + RTE_ETHER_HDR_LEN + offsetof(struct rte_ipv6_hdr, dst_addr),
           sizeof(a.ip));
    return a;
}

/* Counts the remotes that share an address: it is a peer's as long as there is one. */
static int peer_count(const struct ff_remote *r, int change) {
    struct ff_outer_ip ip = remote_ip(r);
    void *data = NULL;
    intptr_t n;

    (void)rte_hash_lookup_data(peers, &ip, &data);
    n = (intptr_t)data + change;
    if (n == 0) {
        hash_remove(peers, &ip);
        return 0;
    }
    return rte_hash_add_key_data(peers, &ip, (void *)n);
}

static void header_ipv4(uint8_t *p, const struct ff_remote_conf *conf) {
    struct rte_ipv4_hdr ip = {
        .version_ihl = RTE_IPV4_VHL_DEF,
        /* RFC 7348 section 4.3: tunnel ends do not fragment; RFC 6864: the id is then free */
        .fragment_offset = rte_cpu_to_be_16(RTE_IPV4_HDR_DF_FLAG),
        .time_to_live = conf->ttl ? conf->ttl : DEFAULT_TTL,
        .next_proto_id = IPPROTO_UDP,
    };

    memcpy(&ip.src_addr, conf->local_ip, sizeof(ip.src_addr));
    memcpy(&ip.dst_addr, conf->remote_ip, sizeof(ip.dst_addr));
    memcpy(p, &ip, sizeof(ip));
}

static void header_ipv6(uint8_t *p, const struct ff_remote_conf *conf) {
    struct rte_ipv6_hdr ip = {
        .vtc_flow = rte_cpu_to_be_32(6u << 28),
        .proto = IPPROTO_UDP,
        .hop_limits = conf->ttl ? conf->ttl : DEFAULT_TTL,
    };

    memcpy(ip.src_addr, conf->local_ip, sizeof(ip.src_addr));
    memcpy(ip.dst_addr, conf->remote_ip, sizeof(ip.dst_addr));
    memcpy(p, &ip, sizeof(ip));
}

static struct ff_remote *remote_make(const struct ff_remote_conf *conf) {
    const struct rte_udp_hdr udp = {.dst_port = rte_cpu_to_be_16(conf->udp_port)};
    const struct rte_ether_hdr eth = {
        .ether_type = conf->family == 6 ? rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV6)
                                        : rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV4),
    };
    struct ff_remote *r = calloc(1, sizeof(*r));
    uint8_t *p;

    if (r == NULL)
        return NULL;
    r->uplink = conf->uplink;
    r->ipv6 = conf->family == 6;
    r->header_len = r->ipv6 ? FF_ENCAP_IPV6 : FF_ENCAP_IPV4;
    r->reachable = !is_zero(conf->next_hop_mac, sizeof(conf->next_hop_mac));
    r->checksum = conf->checksum;
    p = r->header;
    memcpy(p, &eth, sizeof(eth));
    memcpy(p, conf->next_hop_mac, sizeof(conf->next_hop_mac));
    memcpy(p + RTE_ETHER_ADDR_LEN, conf->local_mac, sizeof(conf->local_mac));
    p += sizeof(eth);
    if (r->ipv6)
        header_ipv6(p, conf);
    else
        header_ipv4(p, conf);
    p = r->header + r->header_len - sizeof(udp) - sizeof(struct rte_vxlan_hdr);
    memcpy(p, &udp, sizeof(udp));
    return r;
}

int ff_remote_set(uint16_t remote, const struct ff_remote_conf *conf) {
    struct ff_remote *r = NULL, *old;
    int rc;

    if (remote == 0 || remote >= FF_MAX_REMOTES ||
        (conf != NULL && ((conf->family != 4 && conf->family != 6) || conf->udp_port == 0)))
        return -EINVAL;
    if (conf != NULL) {
        r = remote_make(conf);
        if (r == NULL)
            return -ENOMEM;
        rc = peer_count(r, 1);
        if (rc < 0) {
            free(r);
            return rc;
        }
    }
    old = atomic_exchange(&remotes[remote], r);
    if (old != NULL)
        (void)peer_count(old, -1);
    ff_retire(old);
    ff_reclaim();
    return 0;
}

/* ---- vxlan ports ---- */

static int vxlan_open(struct ff_port *port, const struct ff_port_conf *conf, char *err) {
    uint32_t vni = conf->vni;
    void *id = (void *)(uintptr_t)port->id;

    if (vni >> 24 != 0 || rte_hash_lookup(vnis, &vni) >= 0) {
        snprintf(err, FF_ERR_LEN, "%s: VNI %u is %s", conf->name, vni,
                 vni >> 24 != 0 ? "not in 0..16777215" : "that of another port");
        return vni >> 24 != 0 ? -EINVAL : -EEXIST;
    }
    port->dev = (void *)(uintptr_t)vni;
    port->rx_queues = 0; /* what it receives comes from uplinks */
    port->tx_queues = 1;
    atomic_store(&port->ready, true);
    ff_port_state(port, FF_PORT_READY, "VNI %u", vni);
    return rte_hash_add_key_data(vnis, &vni, id);
}

static void vxlan_close(struct ff_port *port) {
    uint32_t vni = (uint32_t)(uintptr_t)port->dev;

    hash_remove(vnis, &vni);
}

static void vxlan_info(struct ff_port *port, struct ff_port_info *info) {
    (void)port;
    snprintf(info->driver, sizeof(info->driver), "vxlan");
}

const struct ff_port_ops ff_port_vxlan_ops = {
    .open = vxlan_open,
    .close = vxlan_close,
    .info = vxlan_info,
};
