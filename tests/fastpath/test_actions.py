# SPDX-License-Identifier: Apache-2.0
"""Each action, with bursts around the worker's own burst of 32."""

from __future__ import annotations

import pytest

from tests.fastpath.frames import POP, UPCALL, drop, flow, mac, mirror, numbered, output, push, tagged
from tests.fastpath.switch import Switch
from vswitch.slowpath.types import Drop

BURSTS = (1, 31, 32, 33, 257)
RING = 512  # so that the largest burst becomes visible at once, and its copies fit

pytestmark = pytest.mark.parametrize("burst", BURSTS)


def test_output_to_one_port(switch: Switch, burst: int) -> None:
    a, b, c = switch.add_hosts(3, rx_ring=RING, tx_ring=RING)
    switch.install(flow(output(b.id), in_port=a.id, eth_dst=mac(2)))
    frames = numbered(1, 2, burst)
    a.peer.send(frames)
    fates = switch.settle()
    assert b.peer.receive() == frames
    switch.assert_silent([a, c])
    assert fates == (burst, 0, burst, 0, 0)
    stats = switch.fp.port_stats(b.id)
    assert (stats.tx_packets, stats.tx_bytes) == (burst, sum(map(len, frames)))


def test_output_to_several_ports(switch: Switch, burst: int) -> None:
    a, b, c, d = switch.add_hosts(4, rx_ring=RING, tx_ring=RING)
    switch.install(flow(output(b.id, c.id, d.id), in_port=a.id))
    frames = numbered(1, 2, burst)
    a.peer.send(frames)
    fates = switch.settle()
    for port in (b, c, d):
        assert port.peer.receive() == frames
    switch.assert_silent([a])
    assert fates == (burst, 2 * burst, 3 * burst, 0, 0)


def test_output_alternates_between_ports(switch: Switch, burst: int) -> None:
    a, b, c = switch.add_hosts(3, rx_ring=RING, tx_ring=RING)
    switch.install(flow(output(b.id), eth_dst=mac(2)), flow(output(c.id), eth_dst=mac(3)))
    to_b, to_c = numbered(1, 2, burst), numbered(1, 3, burst)
    mixed = [frame for pair in zip(to_b, to_c, strict=True) for frame in pair][:burst]
    a.peer.send(mixed)
    switch.settle()
    assert b.peer.receive() == to_b[: (burst + 1) // 2]
    assert c.peer.receive() == to_c[: burst // 2]
    switch.assert_silent([a])


def test_output_to_the_port_it_came_from(switch: Switch, burst: int) -> None:
    a, b = switch.add_hosts(2, rx_ring=RING, tx_ring=RING)
    switch.install(flow(output(a.id), in_port=a.id))
    frames = numbered(1, 2, burst)
    a.peer.send(frames)
    switch.settle()
    assert a.peer.receive() == frames
    switch.assert_silent([b])


@pytest.mark.parametrize("reason", [Drop.POLICY, Drop.VLAN, Drop.SAME_PORT, Drop.MOVE_HOLD])
def test_drop(switch: Switch, burst: int, reason: Drop) -> None:
    a, b = switch.add_hosts(2, rx_ring=RING, tx_ring=RING)
    switch.install(flow([drop(reason)], in_port=a.id))
    a.peer.send(numbered(1, 2, burst))
    assert switch.settle() == (burst, 0, 0, burst, 0)
    assert switch.drops(a) == {reason: burst}
    switch.assert_silent([a, b])


def test_no_actions_are_a_drop_by_policy(switch: Switch, burst: int) -> None:
    a, b = switch.add_hosts(2, rx_ring=RING, tx_ring=RING)
    switch.install(flow([], in_port=a.id))
    a.peer.send(numbered(1, 2, burst))
    switch.settle()
    assert switch.drops(a) == {Drop.POLICY: burst}
    switch.assert_silent([a, b])


@pytest.mark.parametrize("tpid", [0x8100, 0x88A8, 0x9100])
@pytest.mark.parametrize("before", [None, 7])
def test_vlan_push(switch: Switch, burst: int, tpid: int, before: int | None) -> None:
    a, b = switch.add_hosts(2, rx_ring=RING, tx_ring=RING)
    switch.install(flow([push(0xA123, tpid), *output(b.id)], in_port=a.id))
    frames = numbered(1, 2, burst, size=64, vid=before)
    a.peer.send(frames)
    switch.settle()
    assert b.peer.receive() == [tagged(frame, 0xA123, tpid) for frame in frames]


def test_vlan_pop_takes_the_outer_tag(switch: Switch, burst: int) -> None:
    a, b = switch.add_hosts(2, rx_ring=RING, tx_ring=RING)
    switch.install(flow([POP, *output(b.id)], in_port=a.id))
    once = numbered(1, 2, burst, size=64, vid=7)
    a.peer.send([tagged(frame, 100, 0x88A8) for frame in once])
    switch.settle()
    assert b.peer.receive() == once


def test_vlan_actions_change_only_the_outputs_after_them(switch: Switch, burst: int) -> None:
    a, b, c, d = switch.add_hosts(4, rx_ring=RING, tx_ring=RING)
    actions = [*output(b.id), push(5), *output(c.id), POP, POP, push(9, 0x88A8), *output(d.id)]
    switch.install(flow(actions, in_port=a.id))
    plain = numbered(1, 2, burst)
    frames = [tagged(frame, 3) for frame in plain]
    a.peer.send(frames)
    switch.settle()
    assert b.peer.receive() == frames
    assert c.peer.receive() == [tagged(frame, 5) for frame in frames]
    assert d.peer.receive() == [tagged(frame, 9, 0x88A8) for frame in plain]


def test_mirror_gets_the_frame_as_received(switch: Switch, burst: int) -> None:
    a, b, c = switch.add_hosts(3, rx_ring=RING, tx_ring=RING)
    switch.install(flow([push(5), *output(b.id), mirror(c.id)], in_port=a.id))
    frames = numbered(1, 2, burst)
    a.peer.send(frames)
    fates = switch.settle()
    assert c.peer.receive() == frames
    assert b.peer.receive() == [tagged(frame, 5) for frame in frames]
    assert fates == (burst, burst, 2 * burst, 0, 0)


def test_mirror_of_a_dropped_frame(switch: Switch, burst: int) -> None:
    a, b, c = switch.add_hosts(3, rx_ring=RING, tx_ring=RING)
    switch.install(flow([mirror(c.id), drop(Drop.SAME_PORT)], in_port=a.id))
    frames = numbered(1, 2, burst)
    a.peer.send(frames)
    switch.settle()
    assert c.peer.receive() == frames
    switch.assert_silent([a, b])
    assert switch.drops(a) == {Drop.SAME_PORT: burst}


def test_upcall_action(switch: Switch, burst: int) -> None:
    """A flow may send its packets up; output before it goes out at once."""
    a, b, c = switch.add_hosts(3, rx_ring=RING, tx_ring=RING)
    switch.fp.port_set_parked_max(a.id, burst)
    (flow_id,) = switch.install(flow([*output(b.id), UPCALL], in_port=a.id))
    frames = numbered(1, 2, burst)
    a.peer.send(frames)
    (upcall,) = switch.wait_upcalls(1)
    assert (upcall.key.in_port, upcall.frame) == (a.id, frames[0])
    assert switch.settle(parked=burst) == (burst, 1, 1, 0, burst)
    switch.fp.flow_del([flow_id])
    switch.install(flow(output(c.id), in_port=a.id))
    switch.finish(upcall, output(c.id))
    switch.settle()
    assert b.peer.receive() == frames[:1]
    assert c.peer.receive() == frames
