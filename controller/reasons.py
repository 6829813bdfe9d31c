# SPDX-License-Identifier: Apache-2.0
"""Why a path was chosen or refused: a code for programs, a sentence for people, and what to do about it.

docs/reasons.md is `table()`; a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """The reasons that a decision can give."""

    BEST_POSSIBLE = "best-possible"
    SAME_ENDPOINT = "same-endpoint"
    NETWORKS_DIFFER = "networks-differ"
    NETWORK_UNKNOWN = "network-unknown"
    NOT_PLACED = "not-placed"
    HOST_UNKNOWN = "host-unknown"
    HOST_LOST = "host-lost"
    HOSTS_DIFFER = "hosts-differ"
    POLICY_DENIES = "policy-denies"
    POLICY_FILTERS = "policy-filters"
    OPENING_DENIED = "opening-denied"
    POLICY_PATHS = "policy-paths"
    NO_TRUST_DOMAIN = "no-trust-domain"
    TRUST_DOMAINS_DIFFER = "trust-domains-differ"
    TRUST_DOMAIN_UNKNOWN = "trust-domain-unknown"
    NOT_FF_PORT = "not-ff-port"
    NOT_KERNEL_PORT = "not-kernel-port"
    HOST_LACKS_FF = "host-lacks-ff"
    HOST_LACKS_SOCKETS = "host-lacks-sockets"
    NO_RDMA_PORT = "no-rdma-port"
    RDMA_PORT_DOWN = "rdma-port-down"
    RDMA_LINK_LAYERS_DIFFER = "rdma-link-layers-differ"
    RDMA_SUBNETS_DIFFER = "rdma-subnets-differ"
    RDMA_NO_ROCE_V2 = "rdma-no-roce-v2"
    RDMA_FAMILIES_DIFFER = "rdma-families-differ"
    NO_UPLINK = "no-uplink"
    UPLINK_NO_ADDRESS = "uplink-no-address"
    UPLINK_FAMILIES_DIFFER = "uplink-families-differ"
    UPLINK_MTU_TOO_SMALL = "uplink-mtu-too-small"
    MTU_REDUCED = "mtu-reduced"


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a code means, and what somebody who wants it otherwise can do."""

    sentence: str
    advice: str


EXPLANATIONS: dict[Code, Explanation] = {
    Code.BEST_POSSIBLE: Explanation(
        "it is the best path that policy and capabilities allow",
        "nothing; the paths that were refused say what a better one would take",
    ),
    Code.SAME_ENDPOINT: Explanation(
        "both are the same endpoint", "name two; what an endpoint sends to itself does not leave its container"
    ),
    Code.NETWORKS_DIFFER: Explanation(
        "the endpoints are in different networks",
        "give both an endpoint in one network, or route between them in a container that has both",
    ),
    Code.NETWORK_UNKNOWN: Explanation(
        "the endpoint's network does not exist", "`ffctl apply` the network, or correct its name in the endpoint"
    ),
    Code.NOT_PLACED: Explanation(
        "the endpoint is on no host yet", "start its container; the host's agent then reports the port"
    ),
    Code.HOST_UNKNOWN: Explanation(
        "the endpoint's host has never registered", "start ffswitchd there with a join token, or correct the name"
    ),
    Code.HOST_LOST: Explanation(
        "the controller does not hear the host, and grants new shortcuts on fresh trust only",
        "see `ffctl describe host`, then the host's `ffswitch status` and its way to the controller",
    ),
    Code.HOSTS_DIFFER: Explanation(
        "the endpoints are on different hosts, and this path stays on one",
        "nothing, or move one container to the other's host",
    ),
    Code.POLICY_DENIES: Explanation(
        "a policy denies everything between the two",
        "`ffctl describe policy` shows it; an allowing policy of higher priority goes first",
    ),
    Code.POLICY_FILTERS: Explanation(
        "policies deny some protocols or ports, and only the switch can tell packets apart",
        "allow the pair every protocol in both directions, or leave it `switched`",
    ),
    Code.OPENING_DENIED: Explanation(
        "a policy denies everything that the first opens to the second, which may only answer",
        "`ffctl describe policy` shows it; an allowing policy of higher priority goes first",
    ),
    Code.POLICY_PATHS: Explanation(
        "a policy's list of paths for this pair leaves it out", "add the path to `paths` of that policy"
    ),
    Code.NO_TRUST_DOMAIN: Explanation(
        "an endpoint is in no trust domain, so it shares memory with nobody",
        "set `trust_domain` of both endpoints to the same, if they may read and write each other's packets",
    ),
    Code.TRUST_DOMAINS_DIFFER: Explanation(
        "the endpoints are in different trust domains", "move one to the other's trust domain, if they trust each other"
    ),
    Code.TRUST_DOMAIN_UNKNOWN: Explanation(
        "the endpoints' trust domain does not exist", "`ffctl apply` the trust domain, or correct its name"
    ),
    Code.NOT_FF_PORT: Explanation(
        "zero-copy takes an `ff` port on both ends", "attach the container by `ffswitch add-port --type ff`"
    ),
    Code.NOT_KERNEL_PORT: Explanation(
        "only kernel sockets can be paired, and these are behind a `pmd` port",
        "nothing for DPDK applications; others reach the switch through a veth and the socket library",
    ),
    Code.HOST_LACKS_FF: Explanation(
        "the host's ffswitchd has no memory ports", "upgrade ffswitchd there, or install the net_ff plugin"
    ),
    Code.HOST_LACKS_SOCKETS: Explanation(
        "the host's ffswitchd cannot pair sockets", "upgrade ffswitchd there, or install libffsock.so"
    ),
    Code.NO_RDMA_PORT: Explanation(
        "a host has no RDMA port", "`ffswitch doctor` there says what it looked for; without RDMA hardware, nothing"
    ),
    Code.RDMA_PORT_DOWN: Explanation(
        "none of a host's RDMA ports is active",
        "`ibv_devinfo` there; check the cable, the driver and the subnet manager",
    ),
    Code.RDMA_LINK_LAYERS_DIFFER: Explanation(
        "one host's RDMA is on InfiniBand and the other's on Ethernet",
        "nothing, unless a port can change its link type",
    ),
    Code.RDMA_SUBNETS_DIFFER: Explanation(
        "the InfiniBand ports are in different subnets", "compare the GIDs' first 64 bits; join the fabrics"
    ),
    Code.RDMA_NO_ROCE_V2: Explanation(
        "an RDMA port on Ethernet has no RoCE v2 address, and RoCE v1 cannot be routed",
        "give the port's network interface an IP address; see `show_gids` or /sys/class/infiniband/*/ports/*/gid_attrs",
    ),
    Code.RDMA_FAMILIES_DIFFER: Explanation(
        "the RoCE v2 ports have no address family in common",
        "give both ports' network interfaces an IPv4 address, or both an IPv6 one that is not link-local",
    ),
    Code.NO_UPLINK: Explanation(
        "a host has no uplink", "`ffswitch add-port --type pmd` one there, and start ffswitchd with it as its uplink"
    ),
    Code.UPLINK_NO_ADDRESS: Explanation(
        "no uplink of a host has an address that others can reach",
        "give it one that is neither link-local nor loopback",
    ),
    Code.UPLINK_FAMILIES_DIFFER: Explanation(
        "the hosts' uplinks have no address family in common, or the same address",
        "give both an IPv4 or both an IPv6 address, each its own",
    ),
    Code.UPLINK_MTU_TOO_SMALL: Explanation(
        "the uplinks' MTU leaves too little room inside VXLAN",
        "raise it: IPv6 inside takes 1280 bytes and IPv4 68, VXLAN adds 50 over IPv4 and 70 over IPv6",
    ),
    Code.MTU_REDUCED: Explanation(
        "the path carries smaller packets than the network's MTU; larger ones are answered with an ICMP too-big",
        "raise the uplinks' MTU by 50 (IPv4) or 70 (IPv6) bytes, or lower the network's",
    ),
}


@dataclass(frozen=True, slots=True, order=True)
class Reason:
    """A code, and the object that it is about: `host h2`, `policy no-shm`."""

    code: Code
    about: str = ""

    def __str__(self) -> str:
        sentence = EXPLANATIONS[self.code].sentence
        return f"{sentence} ({self.about})" if self.about else sentence

    @property
    def advice(self) -> str:
        """What somebody who wants it otherwise can do."""
        return EXPLANATIONS[self.code].advice


def table() -> str:
    """Every code as a table in Markdown."""
    rows = [f"| `{code}` | {EXPLANATIONS[code].sentence} | {EXPLANATIONS[code].advice} |" for code in Code]
    return "\n".join(["| code | what it means | what to do |", "|---|---|---|", *rows]) + "\n"
