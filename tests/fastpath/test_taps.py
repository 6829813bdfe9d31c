# SPDX-License-Identifier: Apache-2.0
"""Taps: what capture and live trace see."""

from __future__ import annotations

import time

import pytest

from tests.fastpath.frames import UPCALL, drop, flow, mirror, numbered, output, push, tagged
from tests.fastpath.switch import Attached, Switch
from vswitch.slowpath.fastpath import TAP_RX, TAP_TRACE, TAP_TX, TapRecord
from vswitch.slowpath.types import Action, ActionType, Drop

SNAPLEN = 262144
BURSTS = (1, 31, 32, 33, 257)


def taps(switch: Switch, n: int) -> list[TapRecord]:
    """Waits for n records; fails when there are more."""
    records: list[TapRecord] = []

    def enough() -> bool:
        records.extend(switch.fp.taps())
        return len(records) >= n

    switch.wait(enough, lambda: f"{n} tap records, there are {len(records)}")
    records.extend(switch.fp.taps())
    assert len(records) == n
    return records


def hosts(switch: Switch, n: int) -> list[Attached]:
    return switch.add_hosts(n, rx_ring=1024, tx_ring=1024)


@pytest.mark.parametrize("burst", BURSTS)
def test_received_and_sent_frames(switch: Switch, burst: int) -> None:
    a, b = hosts(switch, 2)
    switch.install(flow([push(5), *output(b.id)], in_port=a.id))
    switch.fp.tap_set(a.id, TAP_RX, SNAPLEN)
    switch.fp.tap_set(b.id, TAP_TX, SNAPLEN)
    frames = numbered(1, 2, burst)
    before = time.time_ns()
    a.peer.send(frames)
    switch.settle()
    records = taps(switch, 2 * burst)
    received = [record for record in records if record.kind == TAP_RX]
    sent = [record for record in records if record.kind == TAP_TX]
    assert [record.frame for record in received] == frames
    assert [record.frame for record in sent] == [tagged(frame, 5) for frame in frames]
    assert {record.port_id for record in received} == {a.id}
    assert {record.port_id for record in sent} == {b.id}
    assert {record.frame_len for record in received} == {60}
    # Of the clock: within the test, give or take the conversion from cycles.
    slack = 10_000_000
    assert all(before - slack <= record.time_ns <= time.time_ns() + slack for record in records)
    assert b.peer.receive() == [record.frame for record in sent]


def test_only_what_is_asked_for(switch: Switch) -> None:
    a, b = hosts(switch, 2)
    switch.install(flow(output(b.id), in_port=a.id), flow(output(a.id), in_port=b.id))
    switch.fp.tap_set(a.id, TAP_TX, SNAPLEN)
    a.peer.send(numbered(1, 2, 5))
    b.peer.send(numbered(2, 1, 3))
    switch.settle()
    assert [record.frame for record in taps(switch, 3)] == numbered(2, 1, 3)
    switch.fp.tap_set(a.id, 0, 0)
    a.peer.send(numbered(1, 2, 5))
    b.peer.send(numbered(2, 1, 3))
    switch.settle()
    assert taps(switch, 0) == []


def test_malformed_frames_are_captured_too(switch: Switch) -> None:
    a, _ = hosts(switch, 2)
    switch.fp.tap_set(a.id, TAP_RX, SNAPLEN)
    a.peer.send([b"short"])
    switch.settle()
    assert taps(switch, 1)[0].frame == b"short"


@pytest.mark.parametrize("snaplen", [1, 64, 2048, 2049, 5000])
def test_snaplen(switch: Switch, snaplen: int) -> None:
    a = switch.add("a", mtu=9000)
    switch.fp.tap_set(a.id, TAP_RX, snaplen)
    (frame,) = numbered(1, 2, 1, size=8000)
    a.peer.send([frame])
    switch.settle(parked=1)
    (record,) = taps(switch, 1)
    assert (record.frame_len, record.frame) == (8000, frame[:snaplen])


def test_what_was_not_sent_is_not_captured(switch: Switch) -> None:
    """TAP_TX is of frames that went to the port, not of those that its ring had no room for."""
    a, b = switch.add("a", tx_ring=1024), switch.add("b", rx_ring=64)
    switch.install(flow(output(b.id), in_port=a.id))
    switch.fp.tap_set(b.id, TAP_TX, SNAPLEN)
    frames = numbered(1, 2, 100)
    a.peer.send(frames)
    switch.settle()
    assert switch.drops(b) == {Drop.RING_FULL: 36}
    assert [record.frame for record in taps(switch, 64)] == frames[:64]


@pytest.mark.parametrize(
    "actions",
    [
        [Action(ActionType.OUTPUT, 2)],
        [push(0x2005, 0x88A8), Action(ActionType.OUTPUT, 2), Action(ActionType.OUTPUT, 3)],
        [drop(Drop.SAME_PORT)],
        [mirror(3), Action(ActionType.OUTPUT, 2)],
    ],
    ids=["output", "push", "drop", "mirror"],
)
def test_trace_of_a_flow(switch: Switch, actions: list[Action]) -> None:
    a, _, _ = hosts(switch, 3)
    (flow_id,) = switch.install(flow(actions, in_port=a.id))
    switch.fp.tap_set(a.id, TAP_TRACE, SNAPLEN)
    frames = numbered(1, 2, 3)
    a.peer.send(frames)
    switch.settle()
    records = taps(switch, 3)
    assert [record.frame for record in records] == frames
    for record in records:
        assert (record.kind, record.port_id, record.flow_id) == (TAP_TRACE, a.id, flow_id)
        assert (record.n_actions, list(record.actions)) == (len(actions), actions)
        assert record.dropped == Drop.NONE


def test_trace_of_more_actions_than_a_record_holds(switch: Switch) -> None:
    (a,) = hosts(switch, 1)
    switch.install(flow(output(*range(2, 102)), in_port=a.id))
    switch.fp.tap_set(a.id, TAP_TRACE, SNAPLEN)
    a.peer.send(numbered(1, 2, 1))
    switch.settle()
    (record,) = taps(switch, 1)
    assert record.n_actions == 100
    assert list(record.actions) == output(*range(2, 10))


def test_trace_of_drops_and_misses(switch: Switch) -> None:
    a, b = hosts(switch, 2)
    switch.fp.tap_set(a.id, TAP_TRACE, SNAPLEN)
    good = numbered(1, 2, 1)[0]
    a.peer.send([b"short", good, good + bytes(2000)])
    (upcall,) = switch.wait_upcalls(1)
    switch.finish(upcall, output(b.id))
    switch.settle()
    # By kind: a worker drops malformed frames of a burst before it looks up the others.
    records = {record.frame: record for record in taps(switch, 3)}
    assert records[b"short"].dropped == Drop.TOO_SHORT
    assert records[good + bytes(2000)].dropped == Drop.OVERSIZE
    assert (records[good].dropped, records[good].flow_id, records[good].n_actions) == (Drop.NONE, 0, 0)


def test_trace_of_an_upcall_action(switch: Switch) -> None:
    a, _ = hosts(switch, 2)
    (flow_id,) = switch.install(flow([UPCALL], in_port=a.id))
    switch.fp.tap_set(a.id, TAP_TRACE, SNAPLEN)
    a.peer.send(numbered(1, 2, 1))
    switch.finish(switch.wait_upcalls(1)[0], [])
    switch.settle()
    (record,) = taps(switch, 1)
    assert (record.flow_id, record.actions) == (flow_id, (UPCALL,))


def test_a_capture_that_nobody_reads_blocks_nothing(switch: Switch) -> None:
    a, b = hosts(switch, 2)
    switch.install(flow(output(b.id), in_port=a.id))
    switch.fp.tap_set(a.id, TAP_RX, SNAPLEN)
    switch.fp.taps()
    lost_before = switch.fp.taps_lost
    frames = numbered(1, 2, 500)
    total = 20_000
    for _ in range(0, total, len(frames)):
        a.peer.send(frames)
        switch.settle()
        assert b.peer.receive() == frames
    kept = 0
    while batch := switch.fp.taps():
        kept += len(batch)
    assert kept > 0
    assert kept + switch.fp.taps_lost - lost_before == total
    # Its buffers are free again.
    a.peer.send(frames)
    switch.settle()
    assert [record.frame for record in taps(switch, 500)] == frames


def test_large_frames_in_one_drain(switch: Switch) -> None:
    """More bytes than one drain takes."""
    a = switch.add("a", mtu=65535, tx_ring=1024)
    switch.install(flow([drop(Drop.POLICY)], in_port=a.id))
    switch.fp.tap_set(a.id, TAP_RX, SNAPLEN)
    frames = numbered(1, 2, 30, size=65549)
    for start in range(0, 30, 10):
        a.peer.send(frames[start : start + 10])
    switch.settle()
    assert [record.frame for record in taps(switch, 30)] == frames


def test_the_port_goes_with_records_waiting(switch: Switch) -> None:
    a, _ = hosts(switch, 2)
    switch.install(flow([drop(Drop.POLICY)], in_port=a.id))
    switch.fp.tap_set(a.id, TAP_RX, SNAPLEN)
    frames = numbered(1, 2, 10)
    a.peer.send(frames)
    switch.settle()
    port_id = a.id
    switch.delete(a)
    assert [record.port_id for record in taps(switch, 10)] == [port_id] * 10
    c = switch.add("c")
    c.peer.send(numbered(3, 4, 5))
    switch.settle(parked=None)
    assert taps(switch, 0) == [], "a new port with the same number is not tapped"
