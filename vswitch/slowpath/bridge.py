# SPDX-License-Identifier: Apache-2.0
"""What a learning bridge (IEEE 802.1Q) does with a frame: one pure judgement per key.

`Bridge` knows the ports; the forwarding database is given with each question.
Judging changes nothing but a cache of action lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from vswitch.slowpath.flows import MASK_DST, MASK_PORT, MASK_VLAN, Depends, bridging_mask, union
from vswitch.slowpath.learning import Admission, Fdb, Segment, Station
from vswitch.slowpath.overlay import Binding, Overlay, Way, is_resolution
from vswitch.slowpath.pipeline import ETH_HLEN, VLAN_HLEN, EthType, IpProto
from vswitch.slowpath.types import Action, ActionType, Drop, Key, Port, PortType
from vswitch.slowpath.vlan import Tag, VlanPolicy, output_actions

NO_PORT: Final = 0  # FF_PORT_NONE
_MASK_TYPE: Final = MASK_PORT._replace(eth_type=0xFFFF)
_MASK_PROTOCOL: Final = _MASK_TYPE._replace(ip_proto=0xFF)
_MASK_ICMPV6: Final = _MASK_PROTOCOL._replace(l4_src=0xFFFF)
_CACHE_MAX: Final = 1 << 16  # action lists; a bound, far above what real port sets need


class Member(NamedTuple):
    """A port with its part in bridging worked out."""

    id: int
    up: bool
    network: str
    tunnel: bool  # the network's endpoints on other hosts are behind it
    uplink: bool  # the underlay is behind it, or other hosts by RDMA, and no network
    vlans: VlanPolicy
    quota: int
    mirror: int  # port that gets a copy of what this one sends and receives, NO_PORT: none is there and up
    is_mirror: bool  # other ports' copies go here, so it takes no part in bridging

    @property
    def untagged(self) -> Segment | None:
        """Where its untagged frames belong."""
        vlan = self.vlans.classify(Tag(0, 0))
        return Segment(self.network, vlan) if vlan is not None else None

    def bridges(self, segment: Segment) -> bool:
        """Whether a bridge's frames of the segment may come and go here; a tunnel's go to one endpoint only."""
        if self.is_mirror or self.tunnel or self.uplink:
            return False
        return self.network == segment.network and self.vlans.carries(segment.vlan)


class Verdict(NamedTuple):
    """What becomes of a frame, and all that it depends on."""

    actions: tuple[Action, ...]
    mask: Key
    drop: Drop = Drop.NONE
    vlan: int | None = None  # None: it did not get into one
    admission: Admission | None = None  # None: dropped before its source mattered
    target: int | None = None  # port behind which its destination is known to be
    depends: Depends = Depends()
    asks: bool = False  # for an address that the switch may know: each such frame goes to the slow path

    @property
    def floods(self) -> bool:
        """Whether it went to every port that would have it."""
        return self.depends.flood is not None


class _Frame(NamedTuple):
    """A frame that was let into a VLAN."""

    port: Member
    tag: Tag
    segment: Segment
    src: Station
    dst: Station


class Bridge:
    """The ports, and the judgement of frames that arrive on them."""

    def __init__(self) -> None:
        self._ports: dict[int, Port] = {}
        self._members: dict[int, Member] = {}
        self._carriers: dict[Segment, tuple[Member, ...]] = {}
        self.overlay = Overlay()
        self._actions: dict[tuple[int, int, int, Tag], tuple[Action, ...]] = {}

    @property
    def ports(self) -> Mapping[int, Port]:
        """Every port by id."""
        return MappingProxyType(self._ports)

    def member(self, port_id: int) -> Member | None:
        """A port's part in bridging."""
        return self._members.get(port_id)

    def set_ports(self, ports: Iterable[Port]) -> list[tuple[Member | None, Member | None]]:
        """Replaces the ports; returns (before, after) of each whose part in bridging changed."""
        before = self._members
        self._ports = {port.id: port for port in sorted(ports, key=lambda port: port.id)}
        self._members = _members(self._ports.values())
        self._carriers.clear()
        self._actions.clear()
        pairs = [(before.get(i), self._members.get(i)) for i in sorted(before.keys() | self._members.keys())]
        return [(old, new) for old, new in pairs if old != new]

    def carriers(self, segment: Segment) -> tuple[Member, ...]:
        """The ports to which a frame of the segment floods, by id."""
        carriers = self._carriers.get(segment)
        if carriers is None:
            carriers = tuple(m for m in self._members.values() if m.up and m.bridges(segment))
            self._carriers[segment] = carriers
        return carriers

    def judge(self, key: Key, fdb: Fdb) -> Verdict:
        """Decides on a frame; the verdict's mask names every bit of the key that was looked at."""
        port = self._members.get(key.in_port)
        if port is None:
            return Verdict((_drop(Drop.POLICY),), MASK_PORT, Drop.POLICY)
        if port.is_mirror:
            return self._dropped(port, Verdict((), MASK_PORT, Drop.POLICY))
        if port.uplink:
            return self._underlay(port, key)
        tag = Tag.of(key)
        vlan = port.vlans.classify(tag)
        if vlan is None or (port.tunnel and tag.tpid):  # RFC 7348 section 6.1: no inner tags
            return self._dropped(port, Verdict((), MASK_VLAN, Drop.VLAN))
        if _is_reserved(key.eth_dst):
            return self._dropped(port, Verdict((), MASK_DST, Drop.RESERVED_MAC, vlan))
        # Where a priority tag becomes a VLAN tag, its priority bits go along; else nobody looks at them.
        keeps_priority = tag.tpid != 0 and tag.vid == 0 and vlan != 0
        segment = Segment(port.network, vlan)
        frame = _Frame(port, tag, segment, Station(segment, key.eth_src), Station(segment, key.eth_dst))
        verdict = Verdict(
            actions=(),
            mask=bridging_mask(key, keeps_priority),
            vlan=vlan,
            admission=None if port.tunnel else fdb.admission(frame.src, port.id, port.quota),
            depends=Depends(frame.src, frame.dst),
        )
        if self.overlay.controls(port.network):
            return self._controlled(frame, key, verdict, fdb)
        if port.tunnel:
            return self._dropped(port, verdict._replace(drop=Drop.NO_ENDPOINT))
        return self._forward(frame, verdict, fdb)

    def bends(self, sender: int, receiver: int, mac: bytes, fdb: Fdb) -> str:
        """Why untagged frames for `mac` from one port do not go to another, as they are and nowhere else; or ""."""
        one, other = self._members.get(sender), self._members.get(receiver)
        if one is None or other is None or not (one.up and other.up):
            return "a port is down"
        if any(m.mirror != NO_PORT or m.is_mirror for m in (one, other)):
            return "a port is mirrored"
        segment = one.untagged
        if segment is None or not (one.bridges(segment) and other.bridges(segment)):
            return "the ports share no network and VLAN for untagged frames"
        if output_actions(segment.vlan, Tag(0, 0), [(receiver, other.vlans)]) != (Action(ActionType.OUTPUT, receiver),):
            return "frames change their VLAN tag on the way"
        told = self.overlay.at(segment.network, mac) if self.overlay.controls(segment.network) else None
        where = told.port if told is not None else fdb.port_of(Station(segment, mac))
        return "" if where == receiver else f"{mac.hex(':')} is not there"

    def _underlay(self, port: Member, key: Key) -> Verdict:
        """What an uplink receives that is no tunnel's. Who resolves next hops there has a look at ARP and ND."""
        mask = _MASK_TYPE
        if key.eth_type == EthType.IPV6:
            mask = _MASK_ICMPV6 if key.ip_proto == IpProto.ICMPV6 else _MASK_PROTOCOL
        verdict = Verdict((), mask, Drop.NOT_TUNNEL, asks=key.eth_type == EthType.ARP or is_resolution(key))
        return self._dropped(port, verdict)

    def _controlled(self, frame: _Frame, key: Key, verdict: Verdict, fdb: Fdb) -> Verdict:
        """A frame in a network whose endpoints a controller has told: what it says goes before what was learned."""
        port = frame.port
        passage = self.overlay.passage(key, port.network, port.id, tunnel=port.tunnel)
        verdict = verdict._replace(mask=union(verdict.mask, passage.mask), asks=passage.asks)
        if passage.drop:
            # What is refused must not be learned either.
            return self._dropped(port, verdict._replace(drop=passage.drop, admission=None))
        if passage.to is None:
            if port.tunnel:
                return self._dropped(port, verdict._replace(drop=Drop.NO_ENDPOINT))
            return self._forward(frame, verdict, fdb)
        if verdict.admission is Admission.HELD:
            return self._dropped(port, verdict._replace(drop=Drop.MOVE_HOLD))
        if passage.to.port is None:
            return self._away(frame, verdict, passage.to)
        return self._to_port(frame, verdict, passage.to.port)

    def _to_port(self, frame: _Frame, verdict: Verdict, target: int) -> Verdict:
        """To the port behind which the destination is."""
        port, to = frame.port, self._members.get(target)
        if target == port.id:
            return self._dropped(port, verdict._replace(drop=Drop.SAME_PORT, target=target))
        if to is None or not to.bridges(frame.segment):  # a static entry or an endpoint may name such a port
            return self._dropped(port, verdict._replace(drop=Drop.NO_DEST, target=target))
        return verdict._replace(actions=self._outputs(frame, to), target=target)

    def _away(self, frame: _Frame, verdict: Verdict, to: Binding) -> Verdict:
        """To an endpoint on another host. VLANs stay on this one, and no frame is taken from host to host."""
        port, way = frame.port, self.overlay.way(self.overlay.at(frame.port.network, frame.src.mac), to)
        if port.tunnel or frame.segment.vlan:
            return self._dropped(port, verdict._replace(drop=Drop.NO_ENDPOINT))
        if way is None or way.port not in self._members:
            return self._dropped(port, verdict._replace(drop=Drop.TUNNEL_DOWN))
        actions = (*_mirrors(port, [self._members[way.port]]), *_tunnel_actions(frame.tag, way))
        return verdict._replace(actions=actions, target=way.port)

    def _forward(self, frame: _Frame, verdict: Verdict, fdb: Fdb) -> Verdict:
        """The bridged part: from the source that was let in to the outputs."""
        port, segment, dst = frame.port, frame.segment, frame.dst
        if verdict.admission is Admission.HELD:
            return self._dropped(port, verdict._replace(drop=Drop.MOVE_HOLD))
        target = fdb.port_of(dst)  # of a group, never known: no frame comes from one
        if frame.src == dst and verdict.admission not in (Admission.STATIC, Admission.NONE):
            target = port.id  # whether or not the port may learn it
        if target is not None:
            return self._to_port(frame, verdict, target)
        verdict = verdict._replace(depends=Depends(frame.src, dst, flood=segment))
        actions = self._outputs(frame, None)
        if not actions:
            return self._dropped(port, verdict._replace(drop=Drop.NO_DEST))
        return verdict._replace(actions=actions)

    def _outputs(self, frame: _Frame, to: Member | None) -> tuple[Action, ...]:
        """Actions towards one port, or (None) all of the VLAN; empty when there is none."""
        port, tag, vlan = frame.port, frame.tag, frame.segment.vlan
        cache_key = (port.id, to.id if to else NO_PORT, vlan, tag)
        actions = self._actions.get(cache_key)
        if actions is None:
            if len(self._actions) >= _CACHE_MAX:
                self._actions.clear()
            outputs = [to] if to else [m for m in self.carriers(frame.segment) if m.id != port.id]
            actions = output_actions(vlan, tag, ((m.id, m.vlans) for m in outputs))
            if actions:
                actions = _mirrors(port, outputs) + actions
            self._actions[cache_key] = actions
        return actions

    def _dropped(self, port: Member, verdict: Verdict) -> Verdict:
        return verdict._replace(actions=(*_mirrors(port, ()), _drop(verdict.drop)))


def _members(ports: Iterable[Port]) -> dict[int, Member]:
    ports = list(ports)
    by_name = {port.config.name: port for port in ports}
    mirrors = {port.config.mirror for port in ports}
    members = {}
    for port in ports:
        mirror = by_name.get(port.config.mirror)
        members[port.id] = Member(
            id=port.id,
            up=port.up,
            network=port.config.network,
            tunnel=port.config.type is PortType.VXLAN,
            uplink=bool(port.config.uplink) or port.config.type is PortType.RDMA,
            vlans=VlanPolicy.of(port.config),
            quota=port.config.mac_quota,
            mirror=mirror.id if mirror and mirror.up else NO_PORT,
            is_mirror=port.config.name in mirrors,
        )
    return members


def _mirrors(port: Member, outputs: Sequence[Member]) -> tuple[Action, ...]:
    """One copy for each mirror port of the ports that the frame passes; first, while it is as received."""
    mirrors = dict.fromkeys(m.mirror for m in (port, *outputs) if m.mirror not in (NO_PORT, port.id))
    return tuple(Action(ActionType.MIRROR, mirror) for mirror in mirrors)


def _tunnel_actions(tag: Tag, way: Way) -> tuple[Action, ...]:
    limit = way.mtu + ETH_HLEN + (VLAN_HLEN if tag.tpid else 0)
    return (
        Action(ActionType.CHECK_LEN, limit),
        *((Action(ActionType.VLAN_POP),) if tag.tpid else ()),  # a priority tag: it names no VLAN
        Action(ActionType.SET_TUNNEL, way.remote),
        Action(ActionType.OUTPUT, way.port),
    )


def _drop(reason: Drop) -> Action:
    return Action(ActionType.DROP, reason)


def _is_reserved(mac: bytes) -> bool:
    """IEEE 802.1Q table 8-1: the addresses that a bridge never relays."""
    return mac[:5] == b"\x01\x80\xc2\x00\x00" and mac[5] < 0x10
