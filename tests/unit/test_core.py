# SPDX-License-Identifier: Apache-2.0
"""The decision core by example: learning, forwarding, time."""

from __future__ import annotations

import pytest

from tests import packets
from tests.core_driver import BROADCAST, A, B, C, Driver, drop, out, port, udp_frame
from vswitch.slowpath.pipeline import parse
from vswitch.slowpath.types import (
    AddFlow,
    DelFlow,
    Drop,
    Finish,
    FlowStats,
    Key,
    Notice,
    Upcall,
)


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


def test_fork_learns_by_itself(switch: Driver) -> None:
    switch.udp(1, A, B)
    fork = switch.core.fork()
    key = parse(udp_frame(B, A), 2)
    assert isinstance(key, Key)
    assert fork.upcall(Upcall(1, key, b"", 60), switch.now)[-1] == Finish(1, out(1))
    assert len(fork.fdb()) == 2 and len(fork.flows()) == 1
    assert switch.where(B) is None and switch.actions(1, A, B) == out(2, 3)
