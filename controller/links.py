# SPDX-License-Identifier: Apache-2.0
"""How two hosts reach each other: which RDMA ports, which uplinks; or why they do not."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from controller.model import IPV6_MTU_MIN, GidType, Host, LinkLayer, Network, RdmaPort, RdmaState, Uplink
from controller.reasons import Code, Reason
from controller.scalars import MTU_MIN

# What stands before the inner IP packet: outer IP, UDP (8), VXLAN (8), inner Ethernet (14); RFC 7348 section 5.
VXLAN_OVERHEAD = {4: 50, 6: 70}


@dataclass(frozen=True, slots=True)
class RdmaLink:
    """The RDMA ports that the two hosts use, and the MTU of the path between them (InfiniBand's, in bytes)."""

    local: RdmaPort
    remote: RdmaPort
    mtu: int


@dataclass(frozen=True, slots=True)
class Tunnel:
    """The ends of the VXLAN tunnel, and the largest IP packet that fits inside it."""

    local: IPv4Address | IPv6Address
    remote: IPv4Address | IPv6Address
    uplink: str
    mtu: int


def rdma_link(local: Host, remote: Host) -> RdmaLink | Reason:
    """The RDMA ports by which two hosts reach each other, or why there are none.

    Of several pairs the one with the largest MTU is taken, then the first by name.
    """
    for host in (local, remote):
        if not host.capabilities.rdma:
            why = host.capabilities.no_rdma
            return Reason(Code.NO_RDMA_PORT, f"host {host.name}: {why}" if why else f"host {host.name}")
    active = [[p for p in host.capabilities.rdma if p.state is RdmaState.ACTIVE] for host in (local, remote)]
    for host, ports in zip((local, remote), active, strict=True):
        if not ports:
            return Reason(Code.RDMA_PORT_DOWN, f"host {host.name}")
    obstacles = []
    links = []
    for one, other in itertools.product(*active):
        obstacle = _obstacle(one, other)
        if obstacle is None:
            links.append(RdmaLink(one, other, min(one.mtu, other.mtu)))
        else:
            obstacles.append(obstacle)
    if not links:
        return Reason(max(obstacles, key=_NEARNESS.index), _pair(local, remote))
    # Ties must fall alike on both hosts, so they are told apart in the order of the hosts' names.
    swapped = local.name > remote.name

    def preference(link: RdmaLink) -> tuple[object, ...]:
        one, other = (link.remote, link.local) if swapped else (link.local, link.remote)
        return (-link.mtu, _order(one), _order(other))

    return min(links, key=preference)


# From what is farthest from working to what is nearest: of several obstacles the nearest is told.
_NEARNESS = (
    Code.RDMA_LINK_LAYERS_DIFFER,
    Code.RDMA_SUBNETS_DIFFER,
    Code.RDMA_NO_ROCE_V2,
    Code.RDMA_FAMILIES_DIFFER,
)


def _obstacle(one: RdmaPort, other: RdmaPort) -> Code | None:
    if one.link_layer is not other.link_layer:
        return Code.RDMA_LINK_LAYERS_DIFFER
    if one.link_layer is LinkLayer.INFINIBAND:
        # InfiniBand Architecture 1.3, section 4.1.1: the upper 64 bits of a GID are its subnet's prefix.
        return Code.RDMA_SUBNETS_DIFFER if int(one.gid) >> 64 != int(other.gid) >> 64 else None
    if GidType.IB_ROCE_V1 in (one.gid_type, other.gid_type):
        return Code.RDMA_NO_ROCE_V2
    families = (_family(one.gid), _family(other.gid))
    return None if families[0] == families[1] != 0 and one.gid != other.gid else Code.RDMA_FAMILIES_DIFFER


def _family(gid: IPv6Address) -> int:
    """4 for an IPv4-mapped GID, 6 for one that can be routed, 0 for one that cannot."""
    if gid.ipv4_mapped is not None:
        return 4
    return 0 if gid.is_link_local or gid.is_unspecified else 6


def _order(port: RdmaPort) -> tuple[str, int, int]:
    return (port.device, port.port, int(port.gid))


def tunnel(local: Host, remote: Host, network: Network) -> Tunnel | Reason:
    """The VXLAN tunnel between two hosts for a network, or why there is none.

    Of several, the one that carries the network's packets best, then the fastest, then the first by name.
    """
    for host in (local, remote):
        if not host.capabilities.uplinks:
            return Reason(Code.NO_UPLINK, f"host {host.name}")
    ends = [_ends(host) for host in (local, remote)]
    for host, found in zip((local, remote), ends, strict=True):
        if not found:
            return Reason(Code.UPLINK_NO_ADDRESS, f"host {host.name}")
    pairs = [
        (one, other)
        for one, other in itertools.product(*ends)
        if one[1].version == other[1].version and one[1] != other[1]
    ]
    if not pairs:
        return Reason(Code.UPLINK_FAMILIES_DIFFER, _pair(local, remote))
    least = IPV6_MTU_MIN if any(isinstance(subnet, IPv6Network) for subnet in network.subnets) else MTU_MIN
    fitting = [pair for pair in pairs if _inner_mtu(*pair) >= least]
    if not fitting:
        return Reason(Code.UPLINK_MTU_TOO_SMALL, _pair(local, remote))
    swapped = local.name > remote.name

    def preference(pair: tuple[_End, _End]) -> tuple[object, ...]:
        one, other = pair[::-1] if swapped else pair
        mtu, speed = _inner_mtu(one, other), min(one[0].speed, other[0].speed)
        return (-min(mtu, network.mtu), -speed, -mtu, _end_order(one), _end_order(other))

    one, other = min(fitting, key=preference)
    return Tunnel(one[1], other[1], one[0].name, _inner_mtu(one, other))


_End = tuple[Uplink, IPv4Address | IPv6Address]


def _ends(host: Host) -> list[_End]:
    """A host's uplinks with each address that other hosts can send to."""
    return [
        (uplink, ip)
        for uplink in host.capabilities.uplinks
        for ip in uplink.ips
        if not (ip.is_link_local or ip.is_loopback)
    ]


def _end_order(end: _End) -> tuple[str, int, int]:
    return (end[0].name, end[1].version, int(end[1]))


def _inner_mtu(one: _End, other: _End) -> int:
    return min(one[0].mtu, other[0].mtu) - VXLAN_OVERHEAD[one[1].version]


def _pair(one: Host, other: Host) -> str:
    return f"hosts {one.name} and {other.name}"
