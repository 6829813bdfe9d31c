# SPDX-License-Identifier: Apache-2.0
"""What a controller has told of its networks: which endpoint is where, what it may send, and to whom.

In a controlled network an endpoint sends from its own addresses only, and is
where the controller says, whatever frames claim. No I/O, and nothing here
looks at flows: who changes the overlay revalidates them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple, Protocol

from vswitch.slowpath.flows import union
from vswitch.slowpath.pipeline import FRAG_LATER, EthType, IpProto
from vswitch.slowpath.types import TUNNEL_RDMA, Drop, Key

ARP_REQUEST: Final = 1  # RFC 826
NEIGHBOUR_SOLICITATION: Final = 135  # RFC 4861 section 4.3
NEIGHBOUR_ADVERTISEMENT: Final = 136  # RFC 4861 section 4.4

_ANY4: Final = bytes(4)
_ANY6: Final = bytes(16)

_LOOKED_AT_NOTHING: Final = Key()
_LOOKED_AT_SOURCE_IP: Final = Key(ip_src=b"\xff" * 16)
_LOOKED_AT_PROTOCOL: Final = Key(ip_proto=0xFF)
_LOOKED_AT_PORTS: Final = Key(ip_proto=0xFF, ip_frag=0xFF, l4_src=0xFFFF, l4_dst=0xFFFF)

_WITH_PORTS: Final = frozenset({IpProto.TCP, IpProto.UDP, IpProto.SCTP})


class Scope(IntEnum):
    """What a filter has to know of a packet."""

    NOTHING = 0
    PROTOCOL = 1
    PORTS = 2


class Paths(NamedTuple):
    """The ways to another host, as far as a pair of endpoints may take them."""

    rdma: bool = True
    vxlan: bool = True


_ALL_PATHS: Final = Paths()


class Filter(Protocol):
    """What a policy lets pass from one endpoint to another."""

    @property
    def scope(self) -> Scope:
        """What `permits` looks at."""

    @property
    def paths(self) -> Paths:
        """The ways to another host that the pair may take."""

    def permits(self, protocol: int, source_port: int | None, destination_port: int | None) -> bool:
        """Whether a packet passes; a port is None where the packet shows none."""


@dataclass(frozen=True, slots=True)
class Binding:
    """Where an endpoint is: at `port` of this host, or else on another one.

    `remote` is the tunnel end there, and `rdma` the one that only RDMA leads to; 0: there is none.
    """

    network: str
    name: str
    mac: bytes
    ips: tuple[bytes, ...] = ()  # packed; none: any
    port: int | None = None
    remote: int = 0
    mtu: int = 0  # of the largest IP packet that fits the way to `remote`
    rdma: int = 0
    rdma_mtu: int = 0


class Way(NamedTuple):
    """How to get to an endpoint on another host."""

    port: int  # the network's vxlan port
    remote: int  # the tunnel end, with TUNNEL_RDMA where its peer may be taken
    mtu: int


class Passage(NamedTuple):
    """What the overlay says of a frame."""

    mask: Key  # what it looked at beyond what bridging looks at
    drop: Drop = Drop.NONE
    to: Binding | None = None  # the endpoint that it is for
    asks: bool = False  # for an address, which the switch may know


class Overlay:
    """The controlled networks and their endpoints."""

    def __init__(self) -> None:
        self._ports: dict[str, int | None] = {}
        self._by_name: dict[tuple[str, str], Binding] = {}
        self._by_mac: dict[tuple[str, bytes], Binding] = {}
        self._by_ip: dict[tuple[str, bytes], Binding] = {}
        self._on_port: dict[int, dict[str, Binding]] = {}
        self._filters: dict[tuple[str, str], Filter] = {}

    # ---- what the controller tells ---------------------------------------------

    def set_network(self, name: str, vxlan_port: int | None) -> None:
        """A network is controlled; its endpoints on other hosts are behind `vxlan_port`."""
        self._ports[name] = vxlan_port

    def remove_network(self, name: str) -> list[Binding]:
        """A network is controlled no more; returns the endpoints that were in it."""
        self._ports.pop(name, None)
        gone = [binding for (network, _), binding in self._by_name.items() if network == name]
        for binding in gone:
            self.remove(binding)
        return gone

    def set(self, binding: Binding) -> list[Binding]:
        """An endpoint is new or changed. Returns what changed: the binding before, if any, and the one now."""
        before = self._by_name.get((binding.network, binding.name))
        if before == binding:
            return []
        if before is not None:
            self.remove(before)
        self._by_name[binding.network, binding.name] = binding
        self._by_mac[binding.network, binding.mac] = binding
        for ip in binding.ips:
            self._by_ip[binding.network, ip] = binding
        if binding.port is not None:
            self._on_port.setdefault(binding.port, {})[binding.name] = binding
        return [binding] if before is None else [before, binding]

    def remove(self, binding: Binding) -> None:
        """An endpoint is gone. An address that another one has got meanwhile stays with that one."""
        self._by_name.pop((binding.network, binding.name), None)
        if self._by_mac.get((binding.network, binding.mac)) == binding:
            del self._by_mac[binding.network, binding.mac]
        for ip in binding.ips:
            if self._by_ip.get((binding.network, ip)) == binding:
                del self._by_ip[binding.network, ip]
        if binding.port is not None:
            on_port = self._on_port.get(binding.port, {})
            on_port.pop(binding.name, None)
            if not on_port:
                self._on_port.pop(binding.port, None)

    def set_filter(self, source: str, destination: str, rules: Filter | None) -> None:
        """What may pass from one endpoint to another, by name; None: everything."""
        if rules is None:
            self._filters.pop((source, destination), None)
        else:
            self._filters[source, destination] = rules

    # ---- what it means for frames --------------------------------------------------

    def controls(self, network: str) -> bool:
        """Whether a controller has told of the network."""
        return network in self._ports

    def networks(self) -> Iterable[str]:
        """The controlled networks."""
        return self._ports.keys()

    def endpoint(self, network: str, name: str) -> Binding | None:
        """An endpoint by its name."""
        return self._by_name.get((network, name))

    def owner(self, network: str, ip: bytes) -> Binding | None:
        """The endpoint that has an IP address (packed)."""
        return self._by_ip.get((network, ip)) or self._owner_of_link_local(network, ip)

    def at(self, network: str, mac: bytes) -> Binding | None:
        """The endpoint that has a MAC address."""
        return self._by_mac.get((network, mac))

    def way(self, sender: Binding | None, to: Binding) -> Way | None:
        """How frames of `sender` (None: of no endpoint) reach an endpoint on another host; None: there is no way."""
        port = self._ports.get(to.network)
        if port is None:
            return None
        rules = self._filters.get((sender.name, to.name)) if sender is not None else None
        paths = rules.paths if rules is not None else _ALL_PATHS
        rdma = sender is not None and to.rdma != 0 and paths.rdma
        if to.remote and paths.vxlan:
            return Way(port, to.remote | (TUNNEL_RDMA if rdma else 0), to.mtu)
        return Way(port, to.rdma | TUNNEL_RDMA, to.rdma_mtu) if rdma else None

    def passage(self, key: Key, network: str, port: int, *, tunnel: bool) -> Passage:
        """Whether a frame that came in by a port may pass, and to which endpoint; pure."""
        sender = self._by_mac.get((network, key.eth_src))
        mask, drop = self._admit(key, sender, port, tunnel)
        if drop:
            return Passage(mask, drop)
        to = self._by_mac.get((network, key.eth_dst))
        if key.eth_type == EthType.ARP:
            mask = union(mask, _LOOKED_AT_PROTOCOL)
        if asks(key):
            return Passage(mask, to=to, asks=True)
        if to is None or sender is None or key.eth_type not in (EthType.IPV4, EthType.IPV6):
            return Passage(mask, to=to)
        rules = self._filters.get((sender.name, to.name))
        if rules is None:
            return Passage(mask, to=to)
        looked_at, passes = _filter(rules, key)
        return Passage(union(mask, looked_at), Drop.NONE if passes else Drop.DENIED, to)

    def _admit(self, key: Key, sender: Binding | None, port: int, tunnel: bool) -> tuple[Key, Drop]:
        """Whether the frame may come from where it does: what was looked at, and the verdict."""
        here = not tunnel and port in self._on_port
        if not here:
            # Neither another host nor a port of nobody's may speak for an endpoint of this host.
            wrong = sender is not None and (sender.port is not None or not tunnel)
            return _LOOKED_AT_NOTHING, Drop.SPOOFED if wrong else Drop.NONE
        if sender is None or sender.port != port:
            return _LOOKED_AT_NOTHING, Drop.SPOOFED
        if not sender.ips or key.eth_type not in (EthType.IPV4, EthType.IPV6, EthType.ARP):
            return _LOOKED_AT_NOTHING, Drop.NONE
        return _LOOKED_AT_SOURCE_IP, Drop.NONE if _own_address(key, sender) else Drop.SPOOFED

    def _owner_of_link_local(self, network: str, ip: bytes) -> Binding | None:
        mac = mac_of_link_local(ip)
        return self._by_mac.get((network, mac)) if mac else None


def link_local(mac: bytes) -> bytes:
    """The link-local address that a host makes of its MAC (RFC 4291 appendix A)."""
    return b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]


def mac_of_link_local(ip: bytes) -> bytes | None:
    """The MAC that `link_local` made an address of; None: it made it of none."""
    if len(ip) != 16 or ip[:8] != b"\xfe\x80" + bytes(6) or ip[11:13] != b"\xff\xfe":
        return None
    return bytes([ip[8] ^ 2]) + ip[9:11] + ip[13:]


def _own_address(key: Key, sender: Binding) -> bool:
    if key.eth_type == EthType.IPV6:
        # Unspecified while it asks whether an address is taken (RFC 4862 section 5.4.2).
        return key.ip_src in sender.ips or key.ip_src in (_ANY6, link_local(sender.mac))
    # 0.0.0.0 in an ARP probe (RFC 5227 section 2.1.1) and in DHCP (RFC 2131 section 4.1).
    return key.ip_src[:4] in sender.ips or key.ip_src[:4] == _ANY4


def is_resolution(key: Key) -> bool:
    """Whether it is a neighbour solicitation or advertisement."""
    kinds = (NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT)
    return key.eth_type == EthType.IPV6 and key.ip_proto == IpProto.ICMPV6 and key.l4_src in kinds


def asks(key: Key) -> bool:
    """Whether it is an ARP request or a neighbour solicitation."""
    if key.eth_type == EthType.ARP:
        return key.ip_proto == ARP_REQUEST
    return key.eth_type == EthType.IPV6 and key.ip_proto == IpProto.ICMPV6 and key.l4_src == NEIGHBOUR_SOLICITATION


def _filter(rules: Filter, key: Key) -> tuple[Key, bool]:
    """What of an IP packet the rules looked at, and whether it passes."""
    if rules.scope is Scope.NOTHING:
        return _LOOKED_AT_NOTHING, rules.permits(0, None, None)
    if rules.scope is Scope.PROTOCOL or key.ip_proto not in _WITH_PORTS:
        return _LOOKED_AT_PROTOCOL, rules.permits(key.ip_proto, None, None)
    shown = not key.ip_frag & FRAG_LATER
    ports = (key.l4_src, key.l4_dst) if shown else (None, None)
    return _LOOKED_AT_PORTS, rules.permits(key.ip_proto, *ports)
