# SPDX-License-Identifier: Apache-2.0
"""What holds of the core after any sequence of events: the flows that it installed are never wrong.

A state machine drives a few ports, VLANs and addresses, so few that moves,
quotas, holds and changes of ports keep running into each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests import packets
from tests.model import Oracle
from tests.naive import NaiveBridge
from vswitch.slowpath.core import SwitchCore
from vswitch.slowpath.flows import union
from vswitch.slowpath.pipeline import masked, match, parse
from vswitch.slowpath.simulate import Fate
from vswitch.slowpath.types import (
    AddFlow,
    Command,
    DelFlow,
    Finish,
    Flow,
    FlowStats,
    Key,
    Notice,
    Port,
    PortConfig,
    Upcall,
)
from vswitch.slowpath.vlan import Tag, VlanPolicy

PORT_IDS = range(1, 6)
NO_QUOTA = 4096
MACS = [bytes([2, 0, 0, 0, 0, n]) for n in range(1, 5)]
SOURCES = st.sampled_from([*MACS, bytes(6)])
DESTINATIONS = st.sampled_from([*MACS, bytes(6), packets.BROADCAST, bytes.fromhex("0180c2000003")])
VLANS = st.sampled_from([0, 10, 20])
TAGS = st.none() | st.tuples(
    st.sampled_from([0x8100, 0x88A8]), st.builds(lambda pcp, vid: pcp << 13 | vid, st.integers(0, 7), VLANS)
)
CONFIGS = st.fixed_dictionaries(
    {
        "tag": st.sampled_from([0, 0, 10, 20]),
        "trunks": st.sampled_from([(), (10,), (10, 20)]),
        "native_vlan": st.sampled_from([0, 0, 10]),
        "mirror": st.sampled_from(["", "", "", "p1", "p2"]),
        "network": st.sampled_from(["default", "default", "blue"]),
        "mac_quota": st.sampled_from([1, 2, NO_QUOTA]),
    }
)
PAYLOADS = st.sampled_from(
    [
        (0x0800, packets.ipv4(packets.udp())),
        (0x0800, packets.ipv4(packets.tcp(), proto=6, src=bytes([10, 0, 0, 7]))),
        (0x0806, packets.arp()),
        (0x0806, packets.arp(spa=bytes([10, 0, 0, 8]))),
        (0x86DD, packets.ipv6(packets.udp())),
        (0x86DD, packets.neighbour(135)),
        (0x86DD, packets.neighbour(136, src=packets.IP6_B)),
        (0x86DD, packets.ipv6(packets.icmp(128), proto=58)),
        (0x88B5, b""),
    ]
)


@st.composite
def tagged_frames(draw: st.DrawFn) -> bytes:
    tag = draw(TAGS)
    eth_type, payload = draw(PAYLOADS)
    return packets.ethernet(
        payload, src=draw(SOURCES), dst=draw(DESTINATIONS), tags=(tag,) if tag else (), eth_type=eth_type
    )


ANY_KEYS = st.builds(
    Key,
    eth_dst=DESTINATIONS,
    eth_src=SOURCES,
    eth_type=st.sampled_from([0, 0x0800, 0x0806, 0x86DD, 0x88B5]),
    in_port=st.sampled_from(PORT_IDS),
    vlan_tpid=st.tuples(st.sampled_from([0, 0x8100, 0x88A8]), st.sampled_from([0, 0x8100])),
    vlan_tci=st.tuples(st.integers(0, 0xFFFF) | VLANS, st.integers(0, 0xFFFF)),
    ip_proto=st.sampled_from([1, 6, 17, 58]),
    l4_src=st.sampled_from([0, 80, 128, 133, 135, 136]),
    ip_src=st.sampled_from([packets.IP6_A, packets.IP_A + bytes(12), bytes(16)]),
)


class RecordingCore(SwitchCore):
    """Keeps what the last upcall returned."""

    last: list[Command]

    def upcall(self, upcall: Upcall, now: float) -> list[Command]:
        self.last = super().upcall(upcall, now)
        return self.last


def full_mask() -> Key:
    ones = 0xFFFF
    return Key(
        b"\xff" * 6, b"\xff" * 6, ones, ones, (ones, ones), (ones, ones), 255, 255, 255, 255, ones, ones,
        b"\xff" * 16, b"\xff" * 16,
    )  # fmt: skip


def outside(mask: Key) -> Key:
    """The bits that a mask leaves out."""

    def flip(have: bytes) -> bytes:
        return bytes(byte ^ 0xFF for byte in have)

    every = full_mask()
    return Key(
        flip(mask.eth_dst),
        flip(mask.eth_src),
        every.eth_type ^ mask.eth_type,
        every.in_port ^ mask.in_port,
        (0xFFFF ^ mask.vlan_tpid[0], 0xFFFF ^ mask.vlan_tpid[1]),
        (0xFFFF ^ mask.vlan_tci[0], 0xFFFF ^ mask.vlan_tci[1]),
        255 ^ mask.ip_proto,
        255 ^ mask.ip_tos,
        255 ^ mask.ip_frag,
        255 ^ mask.tcp_flags,
        0xFFFF ^ mask.l4_src,
        0xFFFF ^ mask.l4_dst,
        flip(mask.ip_src),
        flip(mask.ip_dst),
    )


# Some key to take the bits outside a mask from: nothing, everything, and two in between.
FILLINGS = [
    Key(),
    full_mask(),
    Key(
        MACS[0], MACS[1], 0x0806, 1, (0x8100, 0x8100), (0x200A, 20), 58, 0xB8, 1, 2, 135, 0,
        packets.IP6_A, packets.IP6_B,
    ),
    Key(
        packets.BROADCAST, MACS[2], 0x86DD, 2, (0x88A8, 0), (0xE000, 0), 6, 0, 0, 18, 80, 443,
        packets.IP_A + bytes(12), packets.IP_B + bytes(12),
    ),
]  # fmt: skip


def matching_keys(flow: Flow) -> Iterator[Key]:
    """Keys of packets that a flow matches."""
    for filling in FILLINGS:
        key = union(flow.key, masked(filling, outside(flow.mask)))
        assert match(key, flow)
        yield key


def whereabouts(core: SwitchCore) -> dict[tuple[str, int, bytes], int]:
    return {(entry.network, entry.vlan, entry.mac): entry.port for entry in core.fdb()}


class Bridging(RuleBasedStateMachine):
    """Any events in any order; the invariants are the properties."""

    def __init__(self) -> None:
        super().__init__()
        self.core = RecordingCore()
        self.switch = Oracle([], core=self.core)

    # ---- events

    @rule(port_id=st.sampled_from(PORT_IDS), config=CONFIGS, up=st.booleans())
    def set_port(self, port_id: int, config: dict[str, object], up: bool) -> None:
        """Adds a port, or gives it another configuration."""
        port = Port(port_id, PortConfig(name=f"p{port_id}", **config), up)  # type: ignore[arg-type]
        known = port_id in self.core.ports()
        event = self.core.port_changed if known else self.core.port_added
        self.switch.command(event(port, self.switch.now))

    @rule(config=CONFIGS)
    def all_plain_ports(self, config: dict[str, object]) -> None:
        """So that some sequences soon have traffic."""
        for port_id in PORT_IDS:
            self.set_port(port_id, {**config, "mirror": ""}, True)

    @precondition(lambda self: self.core.ports())
    @rule(data=st.data())
    def toggle_port(self, data: st.DataObject) -> None:
        port = self.core.ports()[data.draw(st.sampled_from(sorted(self.core.ports())))]
        self.switch.command(self.core.port_changed(Port(port.id, port.config, not port.up), self.switch.now))

    @precondition(lambda self: self.core.ports())
    @rule(data=st.data())
    def remove_port(self, data: st.DataObject) -> None:
        port_id = data.draw(st.sampled_from(sorted(self.core.ports())))
        self.switch.command(self.core.port_removed(port_id, self.switch.now))

    @rule(seconds=st.sampled_from([0.5, 3.0, 11.0, 301.0]))
    def time_passes(self, seconds: float) -> None:
        self.switch.advance(seconds)

    @rule(ago=st.sampled_from([0.0, 4.0, 20.0]), data=st.data())
    def statistics(self, ago: float, data: st.DataObject) -> None:
        used = {
            handle: FlowStats(1, 60, self.switch.now - ago) for handle in self.core.flows() if data.draw(st.booleans())
        }
        self.switch.command(self.core.flow_stats(used, self.switch.now))

    @rule(port_id=st.none() | st.sampled_from(PORT_IDS))
    def flush_addresses(self, port_id: int | None) -> None:
        self.switch.command(self.core.fdb_flush(self.switch.now, port_id))

    @rule()
    def flush_flows(self) -> None:
        self.switch.command(self.core.flow_flush(self.switch.now))
        assert not self.core.flows()

    @precondition(lambda self: self.core.ports())
    @rule(vlan=VLANS, mac=st.sampled_from(MACS), data=st.data())
    def add_static(self, vlan: int, mac: bytes, data: st.DataObject) -> None:
        port_id = data.draw(st.sampled_from(sorted(self.core.ports())))
        self.switch.command(self.core.add_static(vlan, mac, port_id, self.switch.now))

    @precondition(lambda self: self.core.ports())
    @rule(data=st.data(), sent=st.lists(tagged_frames(), min_size=1, max_size=8))
    def packets_arrive(self, data: st.DataObject, sent: list[bytes]) -> None:
        for frame in sent:
            in_port = data.draw(st.sampled_from(sorted(self.core.ports())))
            before = NaiveBridge(self.core)
            fate = self.switch.fate(in_port, frame)
            self.check_fate(in_port, frame, fate, before)
            quota = self.core.ports()[in_port].config.mac_quota
            assert NaiveBridge(self.core).learned_on(in_port) <= max(quota, before.learned_on(in_port))

    def check_fate(self, in_port: int, frame: bytes, fate: Fate, naive: NaiveBridge) -> None:
        assert fate.decision is not None
        if fate.missed:
            self.check_upcall(fate)
        drop, expected = naive.judge(in_port, frame)
        assert fate.decision.drop is drop
        assert in_port not in [port for port, _ in fate.outputs]
        bridged = sorted((port, out) for port, out in fate.outputs if not naive.is_mirror(port))
        assert bridged == sorted((port, out) for port, out in expected if naive.ports[port].up)
        copies = sorted((port, out) for port, out in fate.outputs if naive.is_mirror(port))
        assert copies == [(port, frame) for port in naive.copies(in_port, expected)]
        for port, out in bridged:
            # Sent back where it came out, it would be in the VLAN that it was in.
            assert self.vlan(port, out) == self.vlan(in_port, frame) is not None

    def check_upcall(self, fate: Fate) -> None:
        """Notices and flows, then one verdict, which is what `decide` had announced."""
        *before, last = self.core.last
        assert fate.decision is not None
        assert isinstance(last, Finish) and last.actions == fate.decision.actions
        assert all(isinstance(command, AddFlow | DelFlow | Notice) for command in before)

    def vlan(self, port: int, frame: bytes) -> int | None:
        key = parse(frame, port)
        assert isinstance(key, Key)
        return VlanPolicy.of(self.core.ports()[port].config).classify(Tag.of(key))

    # ---- properties

    @rule(key=ANY_KEYS)
    def a_decision_looks_at_its_mask_only(self, key: Key) -> None:
        decision = self.core.decide(key, self.switch.now)
        for like in matching_keys(Flow(masked(key, decision.mask), decision.mask, ())):
            again = self.core.decide(like, self.switch.now)
            assert (again.actions, again.mask, again.drop) == (decision.actions, decision.mask, decision.drop)

    @invariant()
    def commands_tell_the_whole_table(self) -> None:
        table = self.switch.simulator.table
        assert len(table) == len(self.core.flows())
        assert all(table[handle] == flow for handle, flow in self.core.flows().items())

    @invariant()
    def flows_do_what_a_fresh_decision_would(self) -> None:
        """And the decision looks at nothing outside the mask."""
        for flow in self.core.flows().values():
            for key in matching_keys(flow):
                decision = self.core.decide(key, self.switch.now)
                assert (decision.actions, decision.mask) == (flow.actions, flow.mask)

    @invariant()
    def flows_hide_no_news(self) -> None:
        """No packet that hits a flow would have taught where an address is (a quota may have room since)."""
        for flow in self.core.flows().values():
            if self.core.ports()[flow.key.in_port].config.mac_quota == NO_QUOTA:
                fork = self.core.fork()
                fork.upcall(Upcall(1, flow.key, b"", 60), self.switch.now)
                assert whereabouts(fork) == whereabouts(self.core)

    @invariant()
    def flows_are_disjoint(self) -> None:
        for one, other in combinations(self.core.flows().values(), 2):
            assert masked(one.key, other.mask) != masked(other.key, one.mask)

    @invariant()
    def learned_addresses_are_where_they_may_be(self) -> None:
        targets = {port.config.mirror for port in self.core.ports().values()}
        for entry in self.core.fdb():
            port = self.core.ports()[entry.port]
            assert entry.static or VlanPolicy.of(port.config).carries(entry.vlan)
            assert entry.static or port.config.name not in targets
            assert entry.mac in MACS and len(entry.ips) <= 8

    @invariant()
    def every_frame_has_a_fate(self) -> None:
        switch = self.switch
        received = switch.rx.total() + switch.replicated.total()
        assert received == switch.tx.total() + switch.drops.total()


# Time enough for hypothesis to make a failure small.
TestBridging = pytest.mark.timeout(600)(Bridging.TestCase)
TestBridging.settings = settings(max_examples=150, stateful_step_count=40)
