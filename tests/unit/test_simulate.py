# SPDX-License-Identifier: Apache-2.0
"""The simulated switch: fates, counters, and real traffic through it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests import captures, packets
from tests.model import Oracle
from vswitch.slowpath.pipeline import parse
from vswitch.slowpath.simulate import FlowTable, Result, Simulator, frame_max
from vswitch.slowpath.types import Action, ActionType, Drop, Flow, Key, Port, PortConfig

A, B = packets.A, packets.B
BIG = 65535


def port(port_id: int, up: bool = True, **config: object) -> Port:
    return Port(port_id, replace(PortConfig(name=f"p{port_id}"), **config), up)  # type: ignore[arg-type]


def frame(src: bytes, dst: bytes, length: int = 0) -> bytes:
    built = packets.ethernet(packets.ipv4(packets.udp()), src=src, dst=dst)
    return built + bytes(max(0, length - len(built)))


def test_flow_table_finds_flows_of_several_masks() -> None:
    table = FlowTable()
    by_port, by_type = Key(in_port=0xFFFF), Key(eth_type=0xFFFF)
    table.add(1, Flow(Key(in_port=1), by_port, ()))
    table.add(2, Flow(Key(eth_type=0x0806), by_type, ()))
    assert table.lookup(Key(in_port=1, eth_type=0x0800)) == 1
    assert table.lookup(Key(in_port=2, eth_type=0x0806)) == 2
    assert table.lookup(Key(in_port=2, eth_type=0x0800)) is None
    table.add(1, Flow(Key(in_port=1), by_port, (Action(ActionType.OUTPUT, 2),)))
    assert len(table) == 2 and table[1].actions == (Action(ActionType.OUTPUT, 2),)
    table.delete(1)
    assert table.lookup(Key(in_port=1, eth_type=0x0800)) is None
    with pytest.raises(KeyError):
        table.delete(1)


def test_second_frame_hits_the_flow_of_the_first() -> None:
    switch = Oracle([port(1), port(2)])
    first, second = switch.fate(1, frame(A, B)), switch.fate(1, frame(A, B))
    assert (first.missed, second.missed) == (True, False)
    assert first.outputs == second.outputs == ((2, frame(A, B)),)
    assert first.result is second.result is Result.FLOODED
    assert switch.fate(2, frame(B, A)).result is Result.FORWARDED
    assert switch.fate(1, frame(A, B)).result is Result.FORWARDED
    assert switch.upcalls == Counter({1: 1, 2: 1})


def test_a_frame_that_the_parser_refuses() -> None:
    switch = Oracle([port(1), port(2)])
    fate = switch.fate(1, b"short")
    assert (fate.result, fate.drop, fate.key, fate.missed) == (Result.DROPPED, Drop.TOO_SHORT, None, False)
    assert switch.port_drops[1] == {Drop.TOO_SHORT: 1}


@pytest.mark.parametrize(("over", "drop"), [(0, Drop.NONE), (1, Drop.OVERSIZE)])
def test_oversize_at_reception(over: int, drop: Drop) -> None:
    switch = Oracle([port(1, mtu=1500), port(2, mtu=9000)])
    assert switch.fate(1, frame(A, B, 1522 + over)).drop is drop
    assert switch.port_drops[1] == Counter([drop] * over)


def test_oversize_comes_before_malformed() -> None:
    switch = Oracle([port(1), port(2)])
    assert switch.fate(1, frame(A, B)[:20] + bytes(3000)).drop is Drop.OVERSIZE


def test_oversize_at_transmission_counts_on_the_output() -> None:
    switch = Oracle([port(1, mtu=9000), port(2, mtu=1500), port(3, mtu=9000)])
    fate = switch.fate(1, frame(A, B, 1523))
    assert fate.result is Result.FLOODED and fate.drops == ((2, Drop.TX_OVERSIZE),)
    assert [to for to, _ in fate.outputs] == [3]
    assert switch.replicated == Counter({1: 1}) and switch.tx == Counter({3: 1})


def test_down_port_counts_port_down() -> None:
    switch = Oracle([port(1), port(2)])
    switch.send(2, frame(B, A))
    switch.command(switch.core.port_changed(port(2, up=False), switch.now))
    fate = switch.fate(1, frame(A, B))
    assert (fate.result, fate.drop, fate.outputs) == (Result.DROPPED, Drop.PORT_DOWN, ())
    assert switch.port_drops[2] == {Drop.PORT_DOWN: 1}


def test_mirror_copy_of_a_dropped_frame_is_not_forwarding() -> None:
    switch = Oracle([port(1, mirror="p2", tag=10), port(2)])
    fate = switch.fate(1, frame(A, B))
    assert (fate.result, fate.drop) == (Result.DROPPED, Drop.NO_DEST)
    assert fate.outputs == ((2, frame(A, B)),) and fate.drops == ((1, Drop.NO_DEST),)
    assert switch.replicated == Counter({1: 1})


def test_verdict_of_a_forgotten_port() -> None:
    """What the fast path does with actions towards a port that went meanwhile."""
    switch = Oracle([port(1), port(2)])
    switch.send(1, frame(A, B))
    handle = switch.simulator.table.lookup(as_key(frame(A, B), 1))
    assert handle is not None
    stale = switch.simulator.table[handle]
    switch.command(switch.core.port_removed(2, switch.now))
    switch.simulator.table.add(handle, stale)
    fate = switch.fate(1, frame(A, B))
    assert (fate.drop, fate.drops) == (Drop.PORT_GONE, ((1, Drop.PORT_GONE),))


def as_key(sent: bytes, in_port: int) -> Key:
    key = parse(sent, in_port)
    assert isinstance(key, Key)
    return key


def test_unknown_port() -> None:
    with pytest.raises(ValueError, match="no port has id 9"):
        Oracle([port(1)]).send(9, frame(A, B))


def test_starts_with_the_flows_of_its_core() -> None:
    switch = Oracle([port(1), port(2)])
    switch.send(1, frame(A, B))
    assert not Simulator(switch.core).send(1, frame(A, B), switch.now).missed
    assert Simulator(switch.core.fork()).send(1, frame(A, B), switch.now).missed


def test_notices_are_told() -> None:
    switch = Oracle([port(1), port(2), port(3)])
    switch.send(1, frame(A, B))
    assert switch.fate(2, frame(A, B)).notices == ("02:00:00:00:00:01 (VLAN 0) moved from p1 to p2",)


def test_frame_max_lets_two_tags_pass() -> None:
    assert frame_max(1500) == 1522


# ---- real traffic


@pytest.mark.parametrize("name", captures.names())
def test_capture_arrives_as_it_was(name: str) -> None:
    """Each MAC's frames from its own port: what is not refused comes out unchanged, and never where it came from."""
    frames = captures.frames(name)
    homes = captures.ports_of_macs(frames, 4)
    switch = Oracle([port(port_id, mtu=BIG) for port_id in range(1, 6)])
    for number, sent in enumerate(frames, 1):
        in_port = homes[sent[6:12]]
        parsed = parse(sent, in_port)
        arrived = switch.send(in_port, sent)
        if isinstance(parsed, Drop):
            assert arrived == {}, number
            continue
        assert in_port not in arrived, number
        assert all(received == [sent] for received in arrived.values()), number
        home = homes.get(sent[:6])
        if sent[0] & 1:
            assert set(arrived) == set(range(1, 6)) - {in_port}, number
        elif home is not None:
            assert home == in_port or home in arrived, number
    assert switch.rx.total() == len(frames)
    assert switch.rx.total() + switch.replicated.total() == switch.tx.total() + switch.drops.total()


def test_two_hosts_talk_over_one_flow_each_way() -> None:
    frames = captures.frames(captures.GENERATED)
    homes = captures.ports_of_macs(frames, 2)
    switch = Oracle([port(1), port(2), port(3)])
    for sent in frames[:42]:
        switch.send(homes[sent[6:12]], sent)
    assert switch.upcalls == Counter({1: 2, 2: 2}), "ARP and IPv4 for each"
    assert switch.tx[3] == 1, "only the ARP request reaches the third port"
