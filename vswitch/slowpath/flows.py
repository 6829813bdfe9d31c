# SPDX-License-Identifier: Apache-2.0
"""The flows that the core has installed, found by whatever may change their decision.

Each change of the switch (an address learned, a port up or down) concerns few
of many flows; the indexes here name them without a look at the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from operator import or_
from types import MappingProxyType
from typing import Final, Generic, TypeVar

from vswitch.slowpath.learning import Segment, Station
from vswitch.slowpath.pipeline import EthType, IpProto
from vswitch.slowpath.types import Action, Flow, Key
from vswitch.slowpath.vlan import PCP_DEI_MASK, VID_MASK

# ICMPv6 types whose sender tells its own address: RS, NS, NA (RFC 4861 section 4)
ND_TYPES: Final = frozenset({133, 135, 136})

K = TypeVar("K", bound=Hashable)

_ALL16: Final = 0xFFFF
_MAC: Final = b"\xff" * 6
_IP: Final = b"\xff" * 16

MASK_PORT: Final = Key(in_port=_ALL16)
MASK_VLAN: Final = MASK_PORT._replace(vlan_tpid=(_ALL16, 0), vlan_tci=(VID_MASK, 0))
MASK_DST: Final = MASK_VLAN._replace(eth_dst=_MAC)
_PLAIN: Final = MASK_DST._replace(eth_src=_MAC, eth_type=_ALL16)
_ARP: Final = _PLAIN._replace(ip_src=_IP)
_IPV6: Final = _PLAIN._replace(ip_proto=0xFF)
_ICMPV6: Final = _IPV6._replace(l4_src=_ALL16)
_ND: Final = _ICMPV6._replace(ip_src=_IP)


def _with_priority(mask: Key) -> Key:
    return mask._replace(vlan_tci=(VID_MASK | PCP_DEI_MASK, 0))


_PRIORITY: Final = {mask: _with_priority(mask) for mask in (_PLAIN, _ARP, _IPV6, _ICMPV6, _ND)}


def bridging_mask(key: Key, keeps_priority: bool) -> Key:
    """What forwarding and learning look at in a frame.

    The address pair, the VLAN and the EtherType; and where a host tells its own
    IP address (ARP, neighbour discovery) that address too, so that a new one
    is noticed. `keeps_priority`: the priority bits of the tag go into actions.
    """
    if key.eth_type == EthType.ARP:
        mask = _ARP
    elif key.eth_type != EthType.IPV6:
        mask = _PLAIN
    elif key.ip_proto != IpProto.ICMPV6:
        mask = _IPV6
    else:
        mask = _ND if key.l4_src in ND_TYPES else _ICMPV6
    return _PRIORITY[mask] if keeps_priority else mask


@lru_cache(maxsize=1024)
def union(one: Key, other: Key) -> Key:
    """Every bit that is in one mask or the other."""
    return Key(
        _or(one.eth_dst, other.eth_dst),
        _or(one.eth_src, other.eth_src),
        one.eth_type | other.eth_type,
        one.in_port | other.in_port,
        (one.vlan_tpid[0] | other.vlan_tpid[0], one.vlan_tpid[1] | other.vlan_tpid[1]),
        (one.vlan_tci[0] | other.vlan_tci[0], one.vlan_tci[1] | other.vlan_tci[1]),
        one.ip_proto | other.ip_proto,
        one.ip_tos | other.ip_tos,
        one.ip_frag | other.ip_frag,
        one.tcp_flags | other.tcp_flags,
        one.l4_src | other.l4_src,
        one.l4_dst | other.l4_dst,
        _or(one.ip_src, other.ip_src),
        _or(one.ip_dst, other.ip_dst),
    )


def _or(one: bytes, other: bytes) -> bytes:
    return bytes(map(or_, one, other))


@dataclass(frozen=True, slots=True)
class Depends:
    """What a flow's decision depends on, besides the port that it came in by."""

    src: Station | None = None
    dst: Station | None = None
    flood: Segment | None = None  # whose ports it goes to


class _Index(Generic[K]):
    """key → handles."""

    def __init__(self) -> None:
        self._handles: dict[K, set[int]] = {}

    def add(self, key: K | None, handle: int) -> None:
        if key is not None:
            self._handles.setdefault(key, set()).add(handle)

    def remove(self, key: K | None, handle: int) -> None:
        if key is not None:
            handles = self._handles[key]
            handles.remove(handle)
            if not handles:
                del self._handles[key]

    def get(self, key: K) -> AbstractSet[int]:
        return self._handles.get(key, frozenset())

    def keys(self) -> tuple[K, ...]:
        return tuple(self._handles)


@dataclass(slots=True)
class _Record:
    flow: Flow
    depends: Depends
    used: float


class FlowIndex:
    """Flows by handle, and by what they depend on."""

    def __init__(self) -> None:
        self._records: dict[int, _Record] = {}
        self._flows: dict[int, Flow] = {}
        self._by_match: dict[tuple[Key, Key], int] = {}
        self._by_port: _Index[int] = _Index()
        self._by_src: _Index[Station] = _Index()
        self._by_dst: _Index[Station] = _Index()
        self._by_flood: _Index[Segment] = _Index()
        self._segments: dict[tuple[str, bytes], Counter[Segment]] = {}  # (network, MAC) → segments with its flows
        self._last_handle = 0

    def __len__(self) -> int:
        return len(self._flows)

    def all(self) -> Mapping[int, Flow]:
        """Every flow by handle, a live view."""
        return MappingProxyType(self._flows)

    def get(self, handle: int) -> Flow | None:
        """A flow, None when the handle names none (any more)."""
        return self._flows.get(handle)

    def find(self, key: Key, mask: Key) -> int | None:
        """The handle of the flow with this (masked) key and mask."""
        return self._by_match.get((key, mask))

    def add(self, flow: Flow, depends: Depends, now: float) -> int:
        """Enters a flow whose key and mask are not there yet; returns its handle."""
        self._last_handle += 1
        handle = self._last_handle
        self._records[handle] = _Record(flow, depends, used=now)
        self._flows[handle] = flow
        self._by_match[flow.key, flow.mask] = handle
        self._by_port.add(flow.key.in_port, handle)
        self._enter(handle, depends)
        return handle

    def replace(self, handle: int, actions: tuple[Action, ...], depends: Depends) -> Flow:
        """Gives a flow other actions, which may depend on other things."""
        record = self._records[handle]
        self._leave(handle, record.depends)
        self._enter(handle, depends)
        record.depends = depends
        record.flow = Flow(record.flow.key, record.flow.mask, actions)
        self._flows[handle] = record.flow
        return record.flow

    def remove(self, handle: int) -> None:
        """Takes a flow out."""
        record = self._records.pop(handle)
        flow = self._flows.pop(handle)
        del self._by_match[flow.key, flow.mask]
        self._by_port.remove(flow.key.in_port, handle)
        self._leave(handle, record.depends)

    def depends(self, handle: int) -> Depends:
        """What a flow's decision depends on."""
        return self._records[handle].depends

    def used(self, handle: int, when: float = 0.0) -> float:
        """When a flow was last used (or installed), after noting that it was at `when`."""
        record = self._records[handle]
        record.used = max(record.used, when)
        return record.used

    def from_port(self, port: int) -> AbstractSet[int]:
        """Flows that come in by a port."""
        return self._by_port.get(port)

    def from_station(self, station: Station) -> AbstractSet[int]:
        """Flows that a station sends."""
        return self._by_src.get(station)

    def to_station(self, station: Station) -> AbstractSet[int]:
        """Flows that go to a station, wherever it is or if nobody knows."""
        return self._by_dst.get(station)

    def stations(self, network: str, mac: bytes) -> Sequence[Station]:
        """The stations of a MAC in a network that flows come from or go to."""
        return [Station(segment, mac) for segment in self._segments.get((network, mac), ())]

    def flooding(self, segment: Segment) -> AbstractSet[int]:
        """Flows that go to all ports of a segment."""
        return self._by_flood.get(segment)

    def flooded_segments(self) -> Sequence[Segment]:
        """The segments that have such flows."""
        return self._by_flood.keys()

    def _enter(self, handle: int, depends: Depends) -> None:
        self._by_src.add(depends.src, handle)
        self._by_dst.add(depends.dst, handle)
        self._by_flood.add(depends.flood, handle)
        for station in {depends.src, depends.dst} - {None}:
            assert station is not None
            self._segments.setdefault((station.segment.network, station.mac), Counter())[station.segment] += 1

    def _leave(self, handle: int, depends: Depends) -> None:
        self._by_src.remove(depends.src, handle)
        self._by_dst.remove(depends.dst, handle)
        self._by_flood.remove(depends.flood, handle)
        for station in {depends.src, depends.dst} - {None}:
            assert station is not None
            where = (station.segment.network, station.mac)
            counts = self._segments[where]
            counts[station.segment] -= 1
            if not counts[station.segment]:
                del counts[station.segment]
            if not counts:
                del self._segments[where]
