# SPDX-License-Identifier: Apache-2.0
"""The decision core by example: what each event leads to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests import packets
from vswitch.slowpath.core import SwitchCore
from vswitch.slowpath.pipeline import parse
from vswitch.slowpath.types import (
    Action,
    ActionType,
    AddFlow,
    Command,
    DelFlow,
    Drop,
    FdbEntry,
    Finish,
    FlowStats,
    Key,
    Notice,
    Port,
    PortConfig,
    Upcall,
)

A, B, C, BROADCAST = packets.A, packets.B, bytes.fromhex("020000000003"), packets.BROADCAST
ACCESS_10 = {"tag": 10}


def port(port_id: int, up: bool = True, **config: object) -> Port:
    return Port(port_id, replace(PortConfig(name=f"p{port_id}"), **config), up)  # type: ignore[arg-type]


def out(*ports: int) -> tuple[Action, ...]:
    return tuple(Action(ActionType.OUTPUT, port_id) for port_id in ports)


def drop(reason: Drop) -> tuple[Action, ...]:
    return (Action(ActionType.DROP, reason),)


def udp_frame(src: bytes, dst: bytes, tags: tuple[tuple[int, int], ...] = ()) -> bytes:
    return packets.ethernet(packets.ipv4(packets.udp()), src=src, dst=dst, tags=tags)


class Driver:
    """Feeds a core, and keeps what it returned last."""

    def __init__(self, *ports: Port, **options: float) -> None:
        self.core = SwitchCore(**options)  # type: ignore[arg-type]
        self.now = 100.0
        self.commands: list[Command] = []
        for added in ports or (port(1), port(2), port(3)):
            self.core.port_added(added, self.now)

    def frame(self, in_port: int, frame: bytes) -> tuple[Action, ...]:
        """An upcall for this frame; the verdict."""
        key = parse(frame, in_port)
        assert isinstance(key, Key)
        self.commands = self.core.upcall(Upcall(1, key, frame, len(frame)), self.now)
        finish = self.commands[-1]
        assert isinstance(finish, Finish)
        return finish.actions

    def udp(self, in_port: int, src: bytes, dst: bytes, *tags: tuple[int, int]) -> tuple[Action, ...]:
        return self.frame(in_port, udp_frame(src, dst, tags))

    def of(self, kind: type) -> list[Command]:
        return [command for command in self.commands if isinstance(command, kind)]

    def actions(self, in_port: int, src: bytes, dst: bytes) -> tuple[Action, ...] | None:
        """The installed actions for UDP from src to dst; None: no flow."""
        found = [
            flow.actions
            for flow in self.core.flows().values()
            if (flow.key.in_port, flow.key.eth_src, flow.key.eth_dst) == (in_port, src, dst)
        ]
        assert len(found) <= 1
        return found[0] if found else None

    def where(self, mac: bytes) -> int | None:
        return next((entry.port for entry in self.core.fdb() if entry.mac == mac), None)

    def entry(self, mac: bytes) -> FdbEntry:
        return next(entry for entry in self.core.fdb() if entry.mac == mac)

    def used_now(self) -> list[Command]:
        """Every flow was used just now."""
        stats = {handle: FlowStats(1, 64, self.now) for handle in self.core.flows()}
        self.commands = self.core.flow_stats(stats, self.now)
        return self.commands


@pytest.fixture
def switch() -> Driver:
    return Driver()


# ---- learning and forwarding


def test_unknown_floods_and_the_answer_does_not(switch: Driver) -> None:
    assert switch.udp(1, A, B) == out(2, 3)
    assert switch.udp(2, B, A) == out(1)
    assert (switch.where(A), switch.where(B)) == (1, 2)


def test_learning_a_destination_corrects_the_flows_towards_it(switch: Driver) -> None:
    switch.udp(1, A, B)
    (flooding,) = switch.of(AddFlow)
    switch.udp(2, B, C)
    assert switch.actions(1, A, B) == out(2)
    corrected = switch.of(AddFlow)[0]
    assert isinstance(corrected, AddFlow) and isinstance(flooding, AddFlow)
    assert corrected.handle == flooding.handle


def test_flows_come_before_the_verdict(switch: Driver) -> None:
    switch.udp(1, A, B)
    switch.udp(2, B, A)
    assert [type(command) for command in switch.commands] == [AddFlow, AddFlow, Finish]


def test_groups_flood_for_good(switch: Driver) -> None:
    assert switch.udp(1, A, BROADCAST) == out(2, 3)
    assert switch.udp(1, A, bytes.fromhex("01005e000001")) == out(2, 3)
    assert switch.core.add_static(0, C, 3, switch.now) == []
    assert switch.udp(2, B, BROADCAST) == out(1, 3)


def test_same_port(switch: Driver) -> None:
    switch.udp(1, A, B)
    assert switch.udp(1, B, A) == drop(Drop.SAME_PORT)
    assert switch.actions(1, A, B) == drop(Drop.SAME_PORT), "B turned out to be on port 1 as well"


def test_to_itself(switch: Driver) -> None:
    assert switch.udp(1, A, A) == drop(Drop.SAME_PORT)
    switch.udp(2, A, A)
    assert switch.where(A) == 2
    assert switch.actions(2, A, A) == drop(Drop.SAME_PORT)


def test_nobody_else(switch: Driver) -> None:
    lonely = Driver(port(1), port(2, up=False))
    assert lonely.udp(1, A, B) == drop(Drop.NO_DEST)
    lonely.core.port_changed(port(2), lonely.now)
    assert lonely.actions(1, A, B) == out(2)


def test_zero_source_is_not_learned(switch: Driver) -> None:
    assert switch.udp(1, bytes(6), B) == out(2, 3)
    assert switch.udp(2, B, bytes(6)) == out(1, 3)
    assert switch.where(bytes(6)) is None


@pytest.mark.parametrize(("last", "reserved"), [(0x00, True), (0x0F, True), (0x10, False)])
def test_reserved_addresses(switch: Driver, last: int, reserved: bool) -> None:
    dst = bytes.fromhex("0180c20000") + bytes([last])
    assert switch.udp(1, A, dst) == (drop(Drop.RESERVED_MAC) if reserved else out(2, 3))
    assert switch.where(A) == (None if reserved else 1)


def test_packet_of_no_port_is_dropped_and_not_cached(switch: Driver) -> None:
    assert switch.udp(9, A, B) == drop(Drop.POLICY)
    assert not switch.core.flows() and not switch.core.fdb()


def test_second_miss_of_a_flow_adds_it_again(switch: Driver) -> None:
    switch.udp(1, A, B)
    first = switch.of(AddFlow)
    assert switch.udp(1, A, B) == out(2, 3)
    assert switch.of(AddFlow) == first and len(switch.core.flows()) == 1


# ---- IP addresses


def test_ips_are_learned_from_arp_neighbour_discovery_and_packets(switch: Driver) -> None:
    switch.frame(1, packets.ethernet(packets.arp(), dst=BROADCAST, eth_type=0x0806))
    switch.frame(1, packets.ethernet(packets.neighbour(135), eth_type=0x86DD))
    switch.frame(1, packets.ethernet(packets.ipv4(packets.udp(), src=bytes([10, 0, 0, 9]))))
    assert switch.entry(A).ips == ("10.0.0.1", "2001:db8::1", "10.0.0.9")


def test_a_new_address_in_arp_comes_up_and_asking_for_another_does_not(switch: Driver) -> None:
    def ask(spa: int, tpa: int) -> Key:
        frame = packets.ethernet(
            packets.arp(spa=bytes([10, 0, 0, spa]), tpa=bytes([10, 0, 0, tpa])), dst=BROADCAST, eth_type=0x0806
        )
        key = parse(frame, 1)
        assert isinstance(key, Key)
        return key

    decision = switch.core.decide(ask(1, 2), switch.now)
    assert decision.mask.ip_src == b"\xff" * 16
    assert decision.mask.ip_dst == bytes(16)


# ---- moves


def test_a_move_takes_the_flows_along(switch: Driver) -> None:
    switch.udp(1, A, B)
    switch.udp(2, B, A)
    assert switch.udp(3, A, B) == out(2)
    assert switch.actions(2, B, A) == out(3)
    assert switch.actions(1, A, B) is None, "back on port 1, A must be noticed"
    assert [type(command) for command in switch.commands] == [Notice, DelFlow, AddFlow, AddFlow, Finish]


def test_too_many_moves_hold(switch: Driver) -> None:
    switch.udp(1, A, B)
    for in_port in (2, 1, 2, 1):
        switch.now += 1
        assert switch.udp(in_port, A, B) != drop(Drop.MOVE_HOLD)
    assert len(switch.of(Notice)) == 2
    assert switch.udp(2, A, B) == drop(Drop.MOVE_HOLD)
    assert switch.actions(2, A, B) == drop(Drop.MOVE_HOLD)
    assert switch.udp(1, A, B) == out(2, 3)
    switch.now += 9.9
    assert switch.core.tick(switch.now) == []
    switch.now += 0.1
    assert [type(command) for command in switch.core.tick(switch.now)] == [DelFlow]
    assert switch.udp(2, A, B) == out(1, 3)
    assert switch.where(A) == 2


def test_a_hold_that_is_over_is_over_before_the_tick(switch: Driver) -> None:
    switch.udp(1, A, B)
    for in_port in (2, 1, 2, 1):
        switch.udp(in_port, A, B)
    assert switch.udp(2, A, B) == drop(Drop.MOVE_HOLD)
    switch.now += 10
    assert switch.udp(2, A, B) == out(1, 3)


# ---- quota


def test_quota() -> None:
    switch = Driver(port(1, mac_quota=1), port(2))
    switch.udp(1, A, BROADCAST)
    assert switch.udp(1, B, BROADCAST) == out(2)
    assert len(switch.of(Notice)) == 1
    assert switch.udp(1, C, BROADCAST) == out(2)
    assert switch.of(Notice) == [], "told once"
    assert [entry.mac for entry in switch.core.fdb()] == [A]


def test_room_in_the_quota_brings_busy_senders_up_again() -> None:
    switch = Driver(port(1, mac_quota=1), port(2))
    switch.udp(1, A, BROADCAST)
    switch.udp(1, B, BROADCAST)
    assert switch.used_now() == []
    switch.udp(2, A, BROADCAST)
    assert switch.where(A) == 2
    assert [type(command) for command in switch.used_now()] == [DelFlow]
    switch.udp(1, B, BROADCAST)
    assert switch.where(B) == 1


def test_no_more_senders_come_up_than_there_is_room_for() -> None:
    switch = Driver(port(1, mac_quota=1), port(2))
    for src in (A, B, C):
        switch.udp(1, src, BROADCAST)
    switch.udp(2, A, BROADCAST)
    assert [type(command) for command in switch.used_now()] == [DelFlow]


def test_quota_is_told_again_of_a_new_port_or_quota() -> None:
    switch = Driver(port(1, mac_quota=1), port(2))

    def tell() -> int:
        switch.udp(1, A, BROADCAST)
        switch.udp(1, B, BROADCAST)
        return len(switch.of(Notice))

    assert [tell(), tell()] == [1, 0]
    switch.core.port_changed(port(1, mac_quota=0), switch.now)
    assert [tell(), tell()] == [1, 0]
    switch.core.port_removed(1, switch.now)
    switch.core.port_added(port(1, mac_quota=0), switch.now)
    switch.udp(1, A, BROADCAST)
    assert len(switch.of(Notice)) == 1


def test_a_larger_quota_counts_at_once() -> None:
    switch = Driver(port(1, mac_quota=1), port(2))
    switch.udp(1, A, BROADCAST)
    switch.udp(1, B, BROADCAST)
    commands = switch.core.port_changed(port(1, mac_quota=2), switch.now)
    assert [type(command) for command in commands] == [DelFlow]


# ---- static addresses


def test_static_address_stays(switch: Driver) -> None:
    switch.udp(1, A, B)
    switch.core.add_static(0, B, 3, switch.now)
    assert switch.actions(1, A, B) == out(3)
    assert switch.udp(2, B, A) == out(1)
    assert switch.where(B) == 3
    switch.core.fdb_flush(switch.now)
    assert [entry.mac for entry in switch.core.fdb()] == [B]
    switch.core.port_removed(3, switch.now)
    assert switch.where(B) is None


def test_static_address_on_a_port_outside_the_vlan() -> None:
    switch = Driver(port(1), port(2, tag=10))
    switch.core.add_static(0, B, 2, switch.now)
    assert switch.udp(1, A, B) == drop(Drop.NO_DEST)
    switch.core.port_changed(port(2), switch.now)
    assert switch.actions(1, A, B) == out(2)
    switch.core.port_changed(port(2, tag=10), switch.now)
    assert switch.actions(1, A, B) == drop(Drop.NO_DEST)
    assert switch.where(B) == 2


@pytest.mark.parametrize(
    ("vlan", "mac", "port_id", "words"),
    [
        (0, A, 9, "no port has id 9"),
        (0, BROADCAST, 1, "not the address of one station"),
        (0, bytes(6), 1, "not the address of one station"),
        (0, A[:5], 1, "not the address of one station"),
        (4095, A, 1, "VLAN 4095 is not in 0..4094"),
    ],
)
def test_bad_static_address(switch: Driver, vlan: int, mac: bytes, port_id: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        switch.core.add_static(vlan, mac, port_id, switch.now)
    assert switch.core.fdb() == []


# ---- VLANs


def test_access_ports_of_two_vlans_do_not_meet() -> None:
    switch = Driver(port(1, tag=10), port(2, tag=10), port(3, tag=20), port(4, tag=20))
    assert switch.udp(1, A, B) == out(2)
    assert switch.udp(3, A, B) == out(4)
    assert [(entry.vlan, entry.port) for entry in switch.core.fdb()] == [(10, 1), (20, 3)]
    assert switch.udp(1, A, B, (0x8100, 20)) == drop(Drop.VLAN)


def test_a_refused_vlan_is_one_flow_for_all_addresses() -> None:
    switch = Driver(port(1, trunks=(10,)), port(2))
    switch.udp(1, A, B, (0x8100, 20))
    switch.udp(1, B, A, (0x8100, 20))
    assert len(switch.core.flows()) == 1
    assert switch.core.fdb() == []


def test_new_vlan_of_a_port_forgets_what_was_there() -> None:
    switch = Driver(port(1, tag=10), port(2, tag=10), port(3, tag=20))
    switch.udp(1, A, B)
    switch.udp(2, B, A)
    switch.core.port_changed(port(1, tag=20), switch.now)
    assert switch.where(A) is None
    assert switch.actions(1, A, B) is None, "A must be learned in its new VLAN"
    assert switch.actions(2, B, A) == drop(Drop.NO_DEST)


# ---- mirrors


def test_mirror_gets_what_its_port_sends_and_receives_once() -> None:
    switch = Driver(port(1, mirror="p3"), port(2, mirror="p3"), port(3), port(4))
    copy = Action(ActionType.MIRROR, 3)
    assert switch.udp(1, A, B) == (copy, *out(2, 4))
    assert switch.udp(2, B, A) == (copy, *out(1))
    assert switch.udp(4, C, A) == (copy, *out(1))


def test_mirror_gets_what_is_dropped() -> None:
    switch = Driver(port(1, mirror="p2", tag=10), port(2), port(3, tag=20))
    copy = Action(ActionType.MIRROR, 2)
    assert switch.udp(1, A, B, (0x8100, 20)) == (copy, *drop(Drop.VLAN))
    assert switch.udp(1, A, bytes.fromhex("0180c2000000")) == (copy, *drop(Drop.RESERVED_MAC))
    assert switch.udp(1, A, B) == (copy, *drop(Drop.NO_DEST))


def test_mirror_port_takes_no_part(switch: Driver) -> None:
    switch.udp(3, C, A)
    switch.udp(1, A, C)
    switch.core.port_changed(port(2, mirror="p3"), switch.now)
    assert switch.where(C) is None
    assert switch.actions(1, A, C) == (Action(ActionType.MIRROR, 3), *out(2))
    assert switch.udp(3, C, A) == drop(Drop.POLICY)
    assert switch.where(C) is None


def test_mirror_port_comes_and_goes() -> None:
    switch = Driver(port(1, mirror="p3"), port(2))
    switch.udp(1, A, B)
    assert switch.actions(1, A, B) == out(2)
    switch.core.port_added(port(3), switch.now)
    assert switch.actions(1, A, B) == (Action(ActionType.MIRROR, 3), *out(2))
    switch.core.port_changed(port(3, up=False), switch.now)
    assert switch.actions(1, A, B) == out(2)
    switch.core.port_changed(port(1), switch.now)
    switch.core.port_changed(port(3), switch.now)
    assert switch.actions(1, A, B) == out(2, 3)


# ---- ports


def test_floods_follow_the_ports(switch: Driver) -> None:
    switch.udp(1, A, B)
    steps = [
        (switch.core.port_added, port(4), out(2, 3, 4)),
        (switch.core.port_added, port(5, up=False), out(2, 3, 4)),
        (switch.core.port_changed, port(2, up=False), out(3, 4)),
        (switch.core.port_changed, port(5), out(3, 4, 5)),
        (switch.core.port_changed, port(4, tag=10), out(3, 5)),
    ]
    for event, changed, expected in steps:
        event(changed, switch.now)
        assert switch.actions(1, A, B) == expected
    switch.core.port_removed(3, switch.now)
    assert switch.actions(1, A, B) == out(5)


def test_known_destination_keeps_its_port_when_that_is_down(switch: Driver) -> None:
    switch.udp(2, B, A)
    switch.udp(1, A, B)
    assert switch.core.port_changed(port(2, up=False), switch.now) == []
    assert switch.actions(1, A, B) == out(2)


def test_removed_port_takes_flows_and_addresses_along(switch: Driver) -> None:
    switch.udp(1, A, B)
    switch.udp(2, B, A)
    switch.core.port_removed(2, switch.now)
    assert switch.where(B) is None
    assert switch.actions(2, B, A) is None
    assert switch.actions(1, A, B) == out(3)


def test_removed_mirror_port_leaves_no_flow(switch: Driver) -> None:
    """Its policy drop looks at in_port only, which says nothing of who has the id next."""
    switch.core.port_changed(port(1, mirror="p3"), switch.now)
    switch.udp(3, C, A)
    assert [type(command) for command in switch.core.port_removed(3, switch.now)] == [DelFlow]
    switch.core.port_added(port(3, tag=0), switch.now)
    assert not switch.core.flows()


def test_removed_port_frees_the_addresses_held_there() -> None:
    switch = Driver(port(1), port(2), port(3))
    for in_port in (1, 2, 1, 2, 1):
        switch.udp(in_port, A, B)
    switch.udp(2, A, B)
    switch.core.port_removed(1, switch.now)
    assert switch.actions(2, A, B) is None
    assert switch.udp(2, A, B) == out(3)


def test_flood_to_a_single_port_is_still_a_flood() -> None:
    """The actions are those towards a known address, and yet not what they depend on."""
    switch = Driver(port(1), port(2))
    switch.udp(2, B, BROADCAST)
    assert switch.udp(1, A, B) == out(2)
    assert [type(command) for command in switch.core.fdb_flush(switch.now, 2)] == [DelFlow]
    assert switch.actions(1, A, B) == out(2)
    switch.core.port_added(port(3), switch.now)
    assert switch.actions(1, A, B) == out(2, 3)


def test_port_ids_are_checked(switch: Driver) -> None:
    with pytest.raises(ValueError, match="1 is in use"):
        switch.core.port_added(port(1), switch.now)
    with pytest.raises(ValueError, match="no port has id 9"):
        switch.core.port_changed(port(9), switch.now)
    with pytest.raises(ValueError, match="no port has id 9"):
        switch.core.port_removed(9, switch.now)


# ---- time


def test_idle_flows_go_and_busy_ones_stay(switch: Driver) -> None:
    switch.udp(1, A, B)
    switch.udp(2, B, A)
    busy, idle = sorted(switch.core.flows())
    switch.now += 10
    stats = {busy: FlowStats(5, 300, switch.now - 1), idle: FlowStats(0, 0, 0.0), 99: FlowStats(1, 1, 1.0)}
    assert switch.core.flow_stats(stats, switch.now) == [DelFlow(idle)]
    assert list(switch.core.flows()) == [busy]


def test_addresses_live_as_long_as_their_flows_are_used(switch: Driver) -> None:
    switch.udp(1, A, B)
    switch.udp(2, B, A)
    switch.now += 200
    busy = min(switch.core.flows())
    switch.core.flow_stats({busy: FlowStats(5, 300, switch.now)}, switch.now)
    switch.now += 150
    commands = switch.core.tick(switch.now)
    assert [entry.mac for entry in switch.core.fdb()] == [A]
    assert switch.actions(1, A, B) == out(2, 3) and switch.actions(2, B, A) is None
    assert {type(command) for command in commands} == {AddFlow, DelFlow}


def test_flush_makes_every_address_unknown(switch: Driver) -> None:
    switch.udp(1, A, B)
    switch.udp(2, B, A)
    switch.udp(3, C, A)
    switch.core.fdb_flush(switch.now, 2)
    assert switch.where(B) is None and switch.where(C) == 3
    switch.core.fdb_flush(switch.now)
    assert switch.core.fdb() == [] and not switch.core.flows()


def test_flow_flush_keeps_addresses(switch: Driver) -> None:
    switch.udp(1, A, B)
    (handle,) = switch.core.flows()
    assert switch.core.flow_flush(switch.now) == [DelFlow(handle)]
    assert not switch.core.flows() and switch.where(A) == 1


def test_full_flow_table_still_forwards() -> None:
    switch = Driver(max_flows=1)
    switch.udp(1, A, BROADCAST)
    assert switch.udp(2, B, A) == out(1)
    assert [type(command) for command in switch.commands] == [Notice, Finish]
    assert switch.udp(3, C, A) == out(1)
    assert [type(command) for command in switch.commands] == [Finish]
    assert len(switch.core.flows()) == 1


# ---- decide and fork


def test_decide_changes_nothing(switch: Driver) -> None:
    switch.udp(1, A, B)
    key = parse(udp_frame(B, A), 2)
    assert isinstance(key, Key)
    decision = switch.core.decide(key, switch.now)
    assert decision.actions == out(1) and not decision.floods and decision.drop is Drop.NONE
    assert switch.where(B) is None and len(switch.core.flows()) == 1


def reasons(switch: Driver, in_port: int, frame: bytes) -> str:
    key = parse(frame, in_port)
    assert isinstance(key, Key)
    return "; ".join(switch.core.decide(key, switch.now).reasons)


def test_reasons_say_what_was_decided_in_order() -> None:
    switch = Driver(port(1), port(2, tag=10, mirror="p4"), port(3, up=False), port(4))
    switch.udp(2, B, BROADCAST)
    switch.udp(3, C, BROADCAST)
    switch.now += 7
    assert reasons(switch, 1, udp_frame(A, B, ((0x8100, 10),))) == (
        "tagged 10 on p1, a trunk: VLAN 10; "
        "source 02:00:00:00:00:01 is new: learned on p1; "
        "destination 02:00:00:00:00:02 is on p2, heard 7 s ago; "
        "copied to mirror port p4; "
        "the outer tag is taken off for p2"
    )
    assert reasons(switch, 1, udp_frame(A, C)) == (
        "untagged on p1, a trunk: VLAN 0; "
        "source 02:00:00:00:00:01 is new: learned on p1; "
        "destination 02:00:00:00:00:03 is on p3, heard 7 s ago; "
        "p3 is down: it will be lost there (port-down)"
    )
    assert reasons(switch, 2, udp_frame(B, A, ((0x8100, 20),))) == (
        "tagged 20 on p2, an access port of VLAN 10 that does not take this: dropped; copied to mirror port p4"
    )
    assert reasons(switch, 4, udp_frame(A, B)) == ("p4 is a mirror port, and what it sends is not bridged: dropped")
    assert reasons(switch, 9, udp_frame(A, B)) == "there is no port 9: dropped"
    assert reasons(switch, 2, udp_frame(B, bytes.fromhex("0180c2000002"))).endswith(
        "01:80:c2:00:00:02 never leaves its link (IEEE 802.1Q table 8-1): dropped; copied to mirror port p4"
    )
    assert reasons(switch, 2, udp_frame(B, BROADCAST)) == (
        "untagged on p2, an access port of VLAN 10: VLAN 10; "
        "source 02:00:00:00:00:02 is known on p2; "
        "destination ff:ff:ff:ff:ff:ff is a group: flooded in the VLAN; "
        "copied to mirror port p4; "
        "a tag is put on for p1"
    )


@pytest.mark.parametrize("step", range(8))
def test_reasons_of_sources(step: int) -> None:
    switch = Driver(port(1, mac_quota=1), port(2), port(3))
    switch.core.add_static(0, C, 3, switch.now)
    switch.udp(1, A, BROADCAST)
    in_port, src, dst, words = [
        (2, A, BROADCAST, "source 02:00:00:00:00:01 moves from p1 to p2"),
        (1, B, BROADCAST, "source 02:00:00:00:00:02 is not learned: p1 has as many addresses as it may"),
        (1, C, BROADCAST, "source 02:00:00:00:00:03 is static on p3"),
        (1, bytes(6), BROADCAST, "source 00:00:00:00:00:00 is nobody's address: not learned"),
        (1, A, A, "destination 02:00:00:00:00:01 is on p1, where the frame came from: dropped"),
        (1, A, C, "destination 02:00:00:00:00:03 is static on p3"),
        (1, A, B, "destination 02:00:00:00:00:02 is not known: flooded in the VLAN"),
        (2, A, BROADCAST, "source 02:00:00:00:00:01 moved too often and is held on p1 for 8 s more: dropped"),
    ][step]
    if step == 7:
        for moved_to in (2, 1, 2, 3):
            switch.udp(moved_to, A, BROADCAST)
        switch.now += 2
        words = words.replace("p1", "p3")
    assert words in reasons(switch, in_port, udp_frame(src, dst))


def test_fork_learns_by_itself(switch: Driver) -> None:
    switch.udp(1, A, B)
    fork = switch.core.fork()
    key = parse(udp_frame(B, A), 2)
    assert isinstance(key, Key)
    assert fork.upcall(Upcall(1, key, b"", 60), switch.now)[-1] == Finish(1, out(1))
    assert len(fork.fdb()) == 2 and len(fork.flows()) == 1
    assert switch.where(B) is None and switch.actions(1, A, B) == out(2, 3)
