/* SPDX-License-Identifier: Apache-2.0 */
/* The names of the drop reasons, faults and stages. */
#include "ff.h"

static const char *const ff_drop_names[] = {
    [FF_DROP_NONE] = "none",
    [FF_DROP_TOO_SHORT] = "too-short",
    [FF_DROP_OVERSIZE] = "oversize",
    [FF_DROP_SRC_MULTICAST] = "src-multicast",
    [FF_DROP_MALFORMED_VLAN] = "malformed-vlan",
    [FF_DROP_MALFORMED_ARP] = "malformed-arp",
    [FF_DROP_MALFORMED_IPV4] = "malformed-ipv4",
    [FF_DROP_MALFORMED_IPV6] = "malformed-ipv6",
    [FF_DROP_MALFORMED_TCP] = "malformed-tcp",
    [FF_DROP_MALFORMED_UDP] = "malformed-udp",
    [FF_DROP_MALFORMED_ICMP] = "malformed-icmp",
    [FF_DROP_BAD_OFFLOAD] = "bad-offload",
    [FF_DROP_POLICY] = "policy",
    [FF_DROP_VLAN] = "vlan",
    [FF_DROP_RESERVED_MAC] = "reserved-mac",
    [FF_DROP_SAME_PORT] = "same-port",
    [FF_DROP_NO_DEST] = "no-dest",
    [FF_DROP_MOVE_HOLD] = "move-hold",
    [FF_DROP_MAC_QUOTA] = "mac-quota",
    [FF_DROP_SPOOFED] = "spoofed",
    [FF_DROP_DENIED] = "denied",
    [FF_DROP_ANSWERED] = "answered",
    [FF_DROP_NO_ENDPOINT] = "no-endpoint",
    [FF_DROP_NOT_TUNNEL] = "not-tunnel",
    [FF_DROP_TUNNEL_MTU] = "tunnel-mtu",
    [FF_DROP_TUNNEL_MALFORMED] = "tunnel-malformed",
    [FF_DROP_TUNNEL_VNI] = "tunnel-vni",
    [FF_DROP_TUNNEL_PEER] = "tunnel-peer",
    [FF_DROP_TUNNEL_ECN] = "tunnel-ecn",
    [FF_DROP_RDMA_MALFORMED] = "rdma-malformed",
    [FF_DROP_RDMA_EPOCH] = "rdma-epoch",
    [FF_DROP_RDMA_OVERSIZE] = "rdma-oversize",
    [FF_DROP_UPCALL_BUDGET] = "upcall-budget",
    [FF_DROP_UPCALL_FULL] = "upcall-full",
    [FF_DROP_NO_COPY] = "no-copy",
    [FF_DROP_PORT_GONE] = "port-gone",
    [FF_DROP_PORT_DOWN] = "port-down",
    [FF_DROP_RING_FULL] = "ring-full",
    [FF_DROP_TX_OVERSIZE] = "tx-oversize",
    [FF_DROP_TUNNEL_DOWN] = "tunnel-down",
};
_Static_assert(sizeof(ff_drop_names) / sizeof(ff_drop_names[0]) == FF_DROP_MAX,
               "every drop reason has a name");

const char *ff_drop_name(unsigned int reason) {
    return reason < FF_DROP_MAX ? ff_drop_names[reason] : "unknown";
}

static const char *const ff_fault_names[] = {
    [FF_FAULT_NONE] = "none",
    [FF_FAULT_AVAIL_JUMP] = "avail-jump",
    [FF_FAULT_INDEX] = "descriptor-index",
    [FF_FAULT_CHAIN] = "descriptor-chain",
    [FF_FAULT_ADDRESS] = "buffer-address",
    [FF_FAULT_DIRECTION] = "buffer-direction",
    [FF_FAULT_INDIRECT] = "indirect-table",
    [FF_FAULT_SHORT] = "short-chain",
    [FF_FAULT_MEMORY] = "memory-truncated",
    [FF_FAULT_LAP] = "slot-lap",
    [FF_FAULT_MARKER] = "path-marker",
};
_Static_assert(sizeof(ff_fault_names) / sizeof(ff_fault_names[0]) == FF_FAULT_MAX,
               "every fault has a name");

const char *ff_fault_name(unsigned int fault) {
    return fault < FF_FAULT_MAX ? ff_fault_names[fault] : "unknown";
}

static const char *const ff_stage_names[] = {
    [FF_STAGE_RX] = "rx",           [FF_STAGE_PARSE] = "parse",   [FF_STAGE_LOOKUP] = "lookup",
    [FF_STAGE_ACTIONS] = "actions", [FF_STAGE_UPCALL] = "upcall", [FF_STAGE_TX] = "tx",
    [FF_STAGE_RX_DONE] = "rx-done",
};
_Static_assert(sizeof(ff_stage_names) / sizeof(ff_stage_names[0]) == FF_STAGE_MAX,
               "every stage has a name");

const char *ff_stage_name(unsigned int stage) {
    return stage < FF_STAGE_MAX ? ff_stage_names[stage] : "unknown";
}
