# SPDX-License-Identifier: Apache-2.0
"""Upcalls: parking, order, budget, verdicts."""

from __future__ import annotations

import pytest

from tests.fastpath.frames import UPCALL, drop, flow, mac, numbered, output, push, tagged
from tests.fastpath.switch import Switch
from vswitch.slowpath.types import Drop, Finish, Key


def test_an_upcall_tells_the_key_and_the_head(switch: Switch) -> None:
    a, _ = switch.add_hosts(2)
    frame = numbered(1, 2, 1, size=1400, vid=7)[0]
    a.peer.send([frame])
    (upcall,) = switch.wait_upcalls(1)
    assert upcall.frame_len == 1400
    assert len(upcall.frame) >= 256
    assert frame.startswith(upcall.frame)
    assert upcall.key == Key(
        eth_dst=mac(2),
        eth_src=mac(1),
        eth_type=0x0800,
        in_port=a.id,
        vlan_tpid=(0x8100, 0),
        vlan_tci=(7, 0),
        ip_proto=17,
        l4_src=1000,
        l4_dst=2000,
        ip_src=bytes([10, 0, 0, 1]) + bytes(12),
        ip_dst=bytes([10, 0, 0, 2]) + bytes(12),
    )
    switch.finish(upcall, [])


@pytest.mark.parametrize("burst", [1, 31, 32, 33, 257])
def test_one_upcall_for_a_burst_and_nothing_overtakes(switch: Switch, burst: int) -> None:
    a, b = switch.add_hosts(2, rx_ring=1024, tx_ring=512)
    switch.fp.port_set_parked_max(a.id, 2 * burst)
    frames = numbered(1, 2, 2 * burst)
    a.peer.send(frames[:burst])
    (upcall,) = switch.wait_upcalls(1)
    switch.settle(parked=burst)
    # The flow is there, but what came first has no verdict yet: later frames wait behind it.
    switch.install(flow(output(b.id), eth_dst=mac(2)))
    a.peer.send(frames[burst:])
    switch.settle(parked=2 * burst)
    switch.assert_silent([b])
    switch.finish(upcall, output(b.id))
    switch.settle()
    assert b.peer.receive() == frames
    assert switch.upcalls == []


def test_other_conversations_pass_while_one_waits(switch: Switch) -> None:
    a, b, c = switch.add_hosts(3)
    switch.install(flow(output(b.id), in_port=a.id, eth_src=mac(4)), flow(output(a.id), in_port=b.id))
    parked = numbered(1, 2, 20)
    passing = numbered(4, 2, 20)
    a.peer.send([frame for pair in zip(parked, passing, strict=True) for frame in pair])
    back = numbered(2, 1, 20)
    b.peer.send(back)
    (upcall,) = switch.wait_upcalls(1)
    switch.settle(parked=20)
    assert b.peer.receive() == passing
    assert a.peer.receive() == back
    # The same addresses with another tag, or from another port, are other conversations.
    tags = [tagged(frame, 5) for frame in parked[:3]]
    a.peer.send(tags)
    c.peer.send(parked[:2])
    _, tagged_upcall, other_port = switch.wait_upcalls(3)
    assert (tagged_upcall.key.vlan_tci, other_port.key.in_port) == ((5, 0), c.id)
    for waiting in (upcall, tagged_upcall, other_port):
        switch.finish(waiting, [])
    switch.install(flow([], in_port=a.id, eth_src=mac(1)), flow([], in_port=c.id))
    switch.policy = lambda _: ((), ())
    switch.settle()


def test_only_the_first_gets_the_verdict(switch: Switch) -> None:
    """The others go through the table again: without a flow, up again, one upcall for all of them."""
    a, b = switch.add_hosts(2)
    frames = numbered(1, 2, 5)
    a.peer.send(frames)
    (first,) = switch.wait_upcalls(1)
    switch.settle(parked=len(frames))
    switch.finish(first, [push(9), *output(b.id)])
    (second,) = switch.wait_upcalls(1)
    assert second.frame == frames[1]
    assert switch.settle(parked=4) == (5, 0, 1, 0, 4)
    switch.install(flow(output(b.id), in_port=a.id))
    switch.finish(second, [drop(Drop.SAME_PORT)])
    switch.settle()
    assert b.peer.receive() == [tagged(frames[0], 9), *frames[2:]]
    assert switch.drops(a) == {Drop.SAME_PORT: 1}


def test_order_holds_over_many_verdicts(switch: Switch) -> None:
    """Verdicts that send only the packet itself, while more frames come all the time."""
    a, b = switch.add_hosts(2)
    switch.policy = lambda _: ((), output(b.id))
    frames = numbered(1, 2, 200)
    for start in range(0, 200, 10):
        a.peer.send(frames[start : start + 10])
    switch.settle()
    assert b.peer.receive() == frames


def test_order_holds_when_the_flow_comes_under_traffic(switch: Switch) -> None:
    """A learning slow path: flow, then verdict, with traffic of many pairs going on meanwhile."""
    a, b = switch.add_hosts(2, rx_ring=1024, tx_ring=1024)
    switch.fp.port_set_parked_max(a.id, 1000)
    switch.policy = lambda upcall: (
        [flow(output(b.id), in_port=a.id, eth_src=upcall.key.eth_src)],
        output(b.id),
    )
    pairs = {src: numbered(src, 2, 100) for src in range(10, 20)}
    for at in range(100):
        a.peer.send([pairs[src][at] for src in pairs])
    switch.settle()
    got = b.peer.receive()
    assert len(got) == 1000
    for src, frames in pairs.items():
        assert [frame for frame in got if frame[6:12] == mac(src)] == frames


def test_budget_is_of_each_port(switch: Switch) -> None:
    a, b, c = switch.add_hosts(3)
    switch.fp.port_set_parked_max(a.id, 10)
    for number in range(25):  # one conversation each
        a.peer.send(numbered(100 + number, 2, 1))
    switch.wait_upcalls(10)
    switch.settle(parked=10)
    assert switch.drops(a) == {Drop.UPCALL_BUDGET: 15}
    b.peer.send(numbered(50, 2, 1))
    upcalls = switch.wait_upcalls(11)
    assert upcalls[-1].key.in_port == b.id
    # Verdicts make room again.
    for upcall in upcalls[:10]:
        switch.finish(upcall, output(c.id))
    switch.settle(parked=1)
    a.peer.send(numbered(70, 2, 1))
    switch.wait_upcalls(2)
    assert switch.drops(a) == {Drop.UPCALL_BUDGET: 15}
    assert len(c.peer.receive()) == 10


def test_budget_counts_what_waits_behind_the_first(switch: Switch) -> None:
    a, b = switch.add_hosts(2)
    switch.fp.port_set_parked_max(a.id, 10)
    frames = numbered(1, 2, 25)
    a.peer.send(frames)
    (upcall,) = switch.wait_upcalls(1)
    assert switch.settle(parked=10) == (25, 0, 0, 15, 10)
    switch.install(flow(output(b.id), in_port=a.id))
    switch.finish(upcall, output(b.id))
    switch.settle()
    assert b.peer.receive() == frames[:10]


def test_more_flows_than_a_worker_can_park(switch: Switch) -> None:
    """Past its limit the worker drops, with the reason, and recovers."""
    a, b = switch.add_hosts(2)
    switch.fp.port_set_parked_max(a.id, 100_000)
    total = 3000
    for start in range(0, total, 100):
        a.peer.send([numbered(number, 2, 1)[0] for number in range(start, start + 100)])
    fates = switch.settle(parked=None)
    assert fates.parked > 0
    assert switch.drops(a) == {Drop.UPCALL_FULL: total - fates.parked}
    upcalls = list(switch.wait_upcalls(fates.parked))
    for upcall in upcalls:
        switch.finish(upcall, [])
    switch.settle()
    a.peer.send(numbered(1, 2, 1))
    switch.finish(switch.wait_upcalls(1)[0], output(b.id))
    switch.settle()
    assert len(b.peer.receive()) == 1


def test_a_verdict_counts_once(switch: Switch) -> None:
    a, b = switch.add_hosts(2)
    a.peer.send(numbered(1, 2, 1))
    (upcall,) = switch.wait_upcalls(1)
    switch.fp.finish([Finish(upcall.id, tuple(output(b.id)))])
    switch.settle()
    switch.finish(upcall, output(b.id))
    switch.fp.finish([Finish(0xDEAD_BEEF_DEAD_BEEF, tuple(output(b.id)))])
    a.peer.send(numbered(3, 2, 1))
    switch.finish(switch.wait_upcalls(1)[0], [])
    assert switch.settle() == (2, 0, 1, 1, 0)


def test_a_verdict_may_send_up_again(switch: Switch) -> None:
    a, b = switch.add_hosts(2)
    frames = numbered(1, 2, 3)
    a.peer.send(frames)
    (first,) = switch.wait_upcalls(1)
    switch.settle(parked=len(frames))
    switch.finish(first, [UPCALL])
    (second,) = switch.wait_upcalls(1)
    assert second.frame == frames[0]
    switch.install(flow(output(b.id), in_port=a.id))
    switch.finish(second, output(b.id))
    switch.settle()
    assert b.peer.receive() == frames


def test_deleting_a_port_frees_what_it_parked(switch: Switch) -> None:
    a, b = switch.add_hosts(2)
    a.peer.send(numbered(1, 2, 20) + numbered(3, 2, 20))
    b.peer.send(numbered(2, 1, 1))
    upcalls = list(switch.wait_upcalls(3))
    switch.settle(parked=41)
    switch.delete(a)
    assert sum(worker.parked for worker in switch.fp.worker_stats()) == 1
    # Verdicts that come late for packets that are gone do nothing.
    for upcall in upcalls:
        switch.finish(upcall, output(b.id))
    assert switch.settle() == (41, 0, 1, 40, 0)
    assert len(b.peer.receive()) == 1


def test_a_verdict_for_a_port_that_is_gone(switch: Switch) -> None:
    a, b = switch.add_hosts(2)
    a.peer.send(numbered(1, 2, 1))
    (upcall,) = switch.wait_upcalls(1)
    switch.delete(b)
    switch.finish(upcall, output(b.id))
    switch.settle()
    assert switch.drops(a) == {Drop.PORT_GONE: 1}
