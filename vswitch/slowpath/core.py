# SPDX-License-Identifier: Apache-2.0
"""The decision core of the slow path: events in, commands out, no I/O.

Its one promise: each installed flow does what a fresh decision on any packet
that it matches would do, and no such packet would teach the forwarding
database where an address is. Every change of ports or addresses therefore
revalidates the flows that it concerns, before it returns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from vswitch.slowpath.bridge import Bridge, Member, Verdict
from vswitch.slowpath.flows import ND_TYPES, FlowIndex
from vswitch.slowpath.learning import HOLD_TIME, MOVES_MAX, MOVES_WINDOW, Admission, Fdb, Segment, Station
from vswitch.slowpath.overlay import Binding, Filter, Overlay
from vswitch.slowpath.pipeline import EthType, IpProto, masked
from vswitch.slowpath.reasons import explain, mac_text
from vswitch.slowpath.responder import Responder
from vswitch.slowpath.types import (
    AddFlow,
    Command,
    Decision,
    DelFlow,
    Drop,
    FdbEntry,
    Finish,
    Flow,
    FlowStats,
    Key,
    Notice,
    Port,
    Upcall,
    UplinkFrame,
)
from vswitch.slowpath.vlan import VID_MASK


class SwitchCore:
    """A learning bridge's state and decisions. `now` is CLOCK_MONOTONIC seconds and never goes back."""

    def __init__(self, *, mac_age: float = 300.0, flow_idle: float = 10.0, max_flows: int = 1_000_000) -> None:
        self.flow_idle = flow_idle
        self._max_flows = max_flows
        self._bridge = Bridge()
        self._fdb = Fdb(mac_age)
        self._flows = FlowIndex()
        self._responder = Responder(self._bridge)
        self._quota_told: set[int] = set()
        self._full_told = False
        self.revision = 0  # grows with whatever may change a decision

    @property
    def mac_age(self) -> float:
        """Seconds after which an address not heard is forgotten."""
        return self._fdb.mac_age

    @mac_age.setter
    def mac_age(self, seconds: float) -> None:
        self._fdb.mac_age = seconds

    # ---- ports -------------------------------------------------------------

    def ports(self) -> Mapping[int, Port]:
        """The ports by id."""
        return self._bridge.ports

    def port_added(self, port: Port, now: float) -> list[Command]:
        """A new port; ValueError when its id is in use."""
        if port.id in self._bridge.ports:
            raise ValueError(f"port id {port.id} is in use")
        return self._set_ports([*self._bridge.ports.values(), port])

    def port_changed(self, port: Port, now: float) -> list[Command]:
        """A port's configuration changed, or it went up or down; ValueError for an unknown id."""
        old = self._bridge.ports.get(port.id)
        if old is None:
            raise ValueError(f"no port has id {port.id}")
        if port.config.mac_quota != old.config.mac_quota:
            self._quota_told.discard(port.id)
        return self._set_ports([port if p.id == port.id else p for p in self._bridge.ports.values()])

    def port_removed(self, port_id: int, now: float) -> list[Command]:
        """A port went, and with it its flows and addresses; ValueError for an unknown id."""
        if port_id not in self._bridge.ports:
            raise ValueError(f"no port has id {port_id}")
        self._quota_told.discard(port_id)
        return self._set_ports([p for p in self._bridge.ports.values() if p.id != port_id])

    def _set_ports(self, ports: Iterable[Port]) -> list[Command]:
        concerned: set[int] = set()
        for old, new in self._bridge.set_ports(ports):
            port_id = new.id if new else old.id if old else 0
            # Being up matters to floods alone: a known destination keeps its port, up or down.
            if old is None or new is None or old._replace(up=new.up) != new:
                concerned |= self._flows.from_port(port_id)
                concerned |= self._port_stations_changed(port_id, new)
            for segment in self._flows.flooded_segments():
                if any(member and member.bridges(segment) for member in (old, new)):
                    concerned |= self._flows.flooding(segment)
        return self._revalidate(concerned)

    def _port_stations_changed(self, port_id: int, member: Member | None) -> set[int]:
        """Forgets stations that cannot be behind the port any more; the flows concerned."""
        concerned: set[int] = set()
        for station in self._fdb.on_port(port_id):
            concerned |= self._flows.to_station(station)
            stays = member is not None and (self._fdb.is_static(station) or member.bridges(station.segment))
            if not stays:
                self._fdb.remove(station)
                concerned |= self._flows.from_station(station)
        return concerned

    # ---- packets -----------------------------------------------------------

    def upcall(self, upcall: Upcall, now: float) -> list[Command]:
        """Learns from a packet, installs its flow and gives the verdict: flows first, one Finish last."""
        commands = self._release_holds(now)
        verdict = self._bridge.judge(upcall.key, self._fdb)
        commands += self._learn(upcall.key, verdict, now)
        own = self._responder.answer(upcall, verdict, now)
        if own is not None:
            verdict = verdict._replace(actions=own.actions)
            commands += own.frames
        elif upcall.key.in_port in self._bridge.ports and not verdict.asks:
            commands += self._install(upcall.key, verdict, now)
        if verdict.asks and verdict.drop is Drop.NOT_TUNNEL:
            commands.append(UplinkFrame(upcall.key.in_port, upcall.frame))
        commands.append(Finish(upcall.id, verdict.actions))
        return commands

    def decide(self, key: Key, now: float) -> Decision:
        """What would become of a packet, and why. Changes nothing."""
        verdict = self._bridge.judge(key, self._fdb)
        reasons = explain(key, verdict, self._bridge, self._fdb, now)
        return Decision(verdict.actions, verdict.mask, reasons, verdict.drop, verdict.floods)

    def _learn(self, key: Key, verdict: Verdict, now: float) -> list[Command]:
        src, port = verdict.depends.src, self._bridge.member(key.in_port)
        if src is None or port is None or verdict.admission is None:
            return []
        old_port = self._fdb.port_of(src)
        commands: list[Command] = []
        match self._fdb.learn(src, port.id, port.quota, now):
            case Admission.NEW:
                commands = self._station_changed(src)
            case Admission.MOVE:
                commands = [*self._move_notices(src, old_port, port.id), *self._station_changed(src)]
            case Admission.QUOTA if port.id not in self._quota_told:
                self._quota_told.add(port.id)
                text = f"{self._name(port.id)} has as many addresses as it may learn ({port.quota}): new ones are not"
                commands = [Notice(text)]
        self._learn_ip(key, src)
        return commands

    def announced(self, port_id: int, mac: bytes, now: float) -> list[Command]:
        """A container has this address, whether or not it ever sends: it is learned as from an untagged frame."""
        port = self._bridge.member(port_id)
        segment = port.untagged if port is not None else None
        if port is None or segment is None or not port.bridges(segment) or self.overlay.controls(port.network):
            return []
        station = Station(segment, mac)
        before = self._fdb.port_of(station)
        match self._fdb.learn(station, port_id, port.quota, now):
            case Admission.NEW:
                return self._station_changed(station)
            case Admission.MOVE:
                return [*self._move_notices(station, before, port_id), *self._station_changed(station)]
        return []

    def _learn_ip(self, key: Key, src: Station) -> None:
        if key.eth_type == EthType.ARP:
            self._fdb.learn_ip(src, key.in_port, key.ip_src[:4], authoritative=True)
        elif key.eth_type == EthType.IPV4:
            self._fdb.learn_ip(src, key.in_port, key.ip_src[:4], authoritative=False)
        elif key.eth_type == EthType.IPV6:
            neighbour_discovery = key.ip_proto == IpProto.ICMPV6 and key.l4_src in ND_TYPES
            self._fdb.learn_ip(src, key.in_port, key.ip_src, authoritative=neighbour_discovery)

    def _move_notices(self, station: Station, old_port: int | None, new_port: int) -> list[Command]:
        here = self._name(new_port)
        who = f"{mac_text(station.mac)} (VLAN {station.segment.vlan})"
        notices: list[Command] = [Notice(f"{who} moved from {self._name(old_port)} to {here}")]
        entry = self._fdb.entry(station)
        if entry is not None and entry.held_until:
            notices.append(
                Notice(
                    f"{who} moved {MOVES_MAX} times in {MOVES_WINDOW:.0f} s: "
                    f"for {HOLD_TIME:.0f} s its frames are let in by {here} only"
                )
            )
        return notices

    def _install(self, key: Key, verdict: Verdict, now: float) -> list[Command]:
        match = masked(key, verdict.mask)
        flow = Flow(match, verdict.mask, verdict.actions)
        handle = self._flows.find(match, verdict.mask)
        if handle is not None:
            # Two workers missed at the same time. Adding again does no harm.
            return [AddFlow(handle, flow)]
        if len(self._flows) >= self._max_flows:
            if self._full_told:
                return []
            self._full_told = True
            return [Notice(f"the flow table is full ({self._max_flows} flows): packets of new flows all go up")]
        return [AddFlow(self._flows.add(flow, verdict.depends, now), flow)]

    # ---- what a controller tells ---------------------------------------------

    @property
    def overlay(self) -> Overlay:
        """What a controller has told; to be looked at, and changed by the methods here only."""
        return self._bridge.overlay

    def set_network(self, name: str, vxlan_port: int | None, now: float) -> list[Command]:
        """A network is controlled: its endpoints are told, those on other hosts are behind `vxlan_port`."""
        self.overlay.set_network(name, vxlan_port)
        return self._network_changed(name)

    def remove_network(self, name: str, now: float) -> list[Command]:
        """A network is controlled no more, and learns again; its endpoints are forgotten."""
        self.overlay.remove_network(name)
        return self._network_changed(name)

    def set_endpoints(self, bindings: Iterable[Binding], now: float) -> list[Command]:
        """Endpoints are new or changed; flows from and to them, where they were and where they are, are revalidated."""
        concerned: set[int] = set()
        for binding in bindings:
            for changed in self.overlay.set(binding):
                concerned |= self._of_endpoint(changed)
        return self._revalidate(concerned)

    def remove_endpoints(self, names: Iterable[tuple[str, str]], now: float) -> list[Command]:
        """Endpoints, each by (network, name), are gone; unknown ones are passed over."""
        concerned: set[int] = set()
        for network, name in names:
            binding = self.overlay.endpoint(network, name)
            if binding is not None:
                self.overlay.remove(binding)
                concerned |= self._of_endpoint(binding)
        return self._revalidate(concerned)

    def set_filters(self, filters: Mapping[tuple[str, str], Filter | None], now: float) -> list[Command]:
        """What may pass between pairs of endpoints (from, to), by name; None: everything."""
        concerned: set[int] = set()
        for (source, destination), rules in filters.items():
            self.overlay.set_filter(source, destination, rules)
            for network in self.overlay.networks():
                sender = self.overlay.endpoint(network, source)
                to = self.overlay.endpoint(network, destination)
                if sender is not None and to is not None:
                    concerned |= self._of_mac(sender, source=True) & self._of_mac(to, source=False)
        return self._revalidate(concerned)

    def _network_changed(self, name: str) -> list[Command]:
        ports = [port.id for port in self._bridge.ports.values() if port.config.network == name]
        return self._revalidate(handle for port in ports for handle in self._flows.from_port(port))

    def _of_endpoint(self, binding: Binding) -> set[int]:
        concerned = self._of_mac(binding, source=True) | self._of_mac(binding, source=False)
        if binding.port is not None:
            # A port with its first endpoint, or without its last, lets others in than before.
            concerned |= self._flows.from_port(binding.port)
        return concerned

    def _of_mac(self, binding: Binding, *, source: bool) -> set[int]:
        """Flows that an endpoint sends, or that go to it, in any VLAN of its network."""
        stations = self._flows.stations(binding.network, binding.mac)
        find = self._flows.from_station if source else self._flows.to_station
        return {handle for station in stations for handle in find(station)}

    # ---- shortcuts past the switch --------------------------------------------

    def bends(self, sender: int, receiver: int, mac: bytes) -> str:
        """Why untagged frames for `mac` from one port do not go to another, as they are and nowhere else; or ""."""
        return self._bridge.bends(sender, receiver, mac, self._fdb)

    def heard(self, port_id: int, now: float, mac: bytes | None = None) -> None:
        """A port sends or takes what the switch does not see: its untagged addresses (or this one) are alive."""
        port = self._bridge.member(port_id)
        segment = port.untagged if port is not None else None
        for station in self._fdb.on_port(port_id):
            if station.segment == segment and mac in (None, station.mac):
                self._fdb.refresh(station, port_id, now)

    # ---- time and statistics -----------------------------------------------

    def flow_stats(self, stats: Mapping[int, FlowStats], now: float) -> list[Command]:
        """Counters by handle: keeps alive the addresses heard of, and removes the idle flows."""
        commands: list[Command] = []
        recalled: Counter[int] = Counter()
        for handle, counters in stats.items():
            flow = self._flows.get(handle)
            if flow is None:
                continue
            used = self._flows.used(handle, counters.last_used)
            done = now - used >= self.flow_idle
            src, port = self._flows.depends(handle).src, self._bridge.member(flow.key.in_port)
            if src is not None and port is not None and not port.tunnel:
                self._fdb.refresh(src, port.id, counters.last_used)
                # The quota kept this one from being learned, and has room now: the next packet is to come up.
                room = port.quota - self._fdb.learned_on(port.id)
                if recalled[port.id] < room and self._fdb.admission(src, port.id, port.quota).changes:
                    recalled[port.id] += 1
                    done = True
            if done:
                commands.append(self._delete(handle))
        return commands

    def tick(self, now: float) -> list[Command]:
        """Forgets old addresses and ends holds; to be called once a second."""
        if len(self._flows) * 2 < self._max_flows:
            self._full_told = False
        commands = self._release_holds(now)
        for station in self._fdb.expire(now):
            commands += self._station_changed(station)
        return commands

    def _release_holds(self, now: float) -> list[Command]:
        commands: list[Command] = []
        for station in self._fdb.release_holds(now):
            commands += self._station_changed(station)
        return commands

    # ---- flows ---------------------------------------------------------------

    def flows(self) -> Mapping[int, Flow]:
        """The installed flows by handle; a live view."""
        return self._flows.all()

    def flow_flush(self, now: float) -> list[Command]:
        """Deletes every flow; addresses stay."""
        return [self._delete(handle) for handle in list(self._flows.all())]

    def _station_changed(self, station: Station) -> list[Command]:
        return self._revalidate(self._flows.from_station(station) | self._flows.to_station(station))

    def _revalidate(self, handles: Iterable[int]) -> list[Command]:
        """Gives flows the actions of a fresh decision, or deletes those that must be seen anew."""
        self.revision += 1
        commands: list[Command] = []
        for handle in sorted(handles):
            flow = self._flows.all()[handle]
            verdict = self._bridge.judge(flow.key, self._fdb)
            teaches = verdict.admission is not None and verdict.admission.changes
            if teaches or verdict.mask != flow.mask or flow.key.in_port not in self._bridge.ports:
                commands.append(self._delete(handle))
            elif verdict.actions != flow.actions or verdict.depends != self._flows.depends(handle):
                changed = self._flows.replace(handle, verdict.actions, verdict.depends)
                if verdict.actions != flow.actions:
                    commands.append(AddFlow(handle, changed))
        return commands

    def _delete(self, handle: int) -> DelFlow:
        self._flows.remove(handle)
        return DelFlow(handle)

    # ---- addresses -----------------------------------------------------------

    def fdb(self) -> Sequence[FdbEntry]:
        """Every known address, by VLAN and MAC."""
        return self._fdb.entries()

    def fdb_flush(self, now: float, port_id: int | None = None) -> list[Command]:
        """Forgets the learned addresses, of one port or all; static ones stay."""
        commands: list[Command] = []
        for port in [port_id] if port_id is not None else list(self._bridge.ports):
            for station in self._fdb.on_port(port):
                if not self._fdb.is_static(station):
                    self._fdb.remove(station)
                    commands += self._station_changed(station)
        return commands

    def add_static(self, vlan: int, mac: bytes, port_id: int, now: float) -> list[Command]:
        """Puts an address behind a port, until the port goes; ValueError for one that cannot be there."""
        if port_id not in self._bridge.ports:
            raise ValueError(f"no port has id {port_id}")
        if len(mac) != 6 or mac[0] & 1 or not any(mac):
            raise ValueError(f"{mac_text(mac)} is not the address of one station")
        if not 0 <= vlan < VID_MASK:
            raise ValueError(f"VLAN {vlan} is not in 0..{VID_MASK - 1}")
        station = Station(Segment(self._bridge.ports[port_id].config.network, vlan), mac)
        self._fdb.add_static(station, port_id, now)
        return self._station_changed(station)

    def fork(self) -> SwitchCore:
        """A copy of ports and addresses, without flows, to try packets on."""
        copy = SwitchCore(mac_age=self.mac_age, flow_idle=self.flow_idle, max_flows=self._max_flows)
        copy._bridge.set_ports(self._bridge.ports.values())
        copy._bridge.overlay = self._bridge.overlay
        copy._fdb = self._fdb.copy()
        copy._quota_told = set(self._quota_told)
        return copy

    def _name(self, port_id: int | None) -> str:
        port = self._bridge.ports.get(port_id) if port_id is not None else None
        return port.config.name if port else f"port {port_id}"
