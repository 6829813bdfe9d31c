# SPDX-License-Identifier: Apache-2.0
"""Receive queues that move between workers. With one worker alone there is little to see: see conftest.py."""

from __future__ import annotations

import pytest

from tests.fastpath.frames import flow, numbered, output
from tests.fastpath.switch import Attached, Switch
from vswitch.slowpath.fastpath import FastPathError


def worker_of(switch: Switch, port: Attached, queue: int = 0) -> int:
    (rxq,) = [rxq for rxq in switch.fp.rxqs() if (rxq.port_id, rxq.queue) == (port.id, queue)]
    return rxq.worker


def received_by(switch: Switch, port: Attached) -> list[int]:
    """Packets from the port by worker."""
    return [stats.rx_packets for stats in switch.fp.port_stats(port.id).workers]


def test_queues_are_spread(switch: Switch) -> None:
    n = switch.fp.n_workers
    a = switch.add("a", queues=2 * n)
    assert sorted(rxq.worker for rxq in switch.fp.rxqs()) == sorted(2 * [*range(n)])
    assert [(rxq.port_id, rxq.queue) for rxq in switch.fp.rxqs()] == [(a.id, queue) for queue in range(2 * n)]


def test_the_worker_told_to_does_the_work(switch: Switch) -> None:
    a, b = switch.add_hosts(2)
    switch.install(flow(output(b.id), in_port=a.id))
    expected = [0] * switch.fp.n_workers
    for worker in (*range(switch.fp.n_workers), 0):
        switch.fp.rxq_move(a.id, 0, worker)
        assert worker_of(switch, a) == worker
        a.peer.send(numbered(1, 2, 40))
        assert b.peer.wait_received(40) == numbered(1, 2, 40)
        switch.settle()
        expected[worker] += 40
        assert received_by(switch, a) == expected
    (rxq,) = [rxq for rxq in switch.fp.rxqs() if rxq.port_id == a.id]
    assert rxq.packets == sum(expected)
    assert rxq.cycles > 0


def test_no_such_queue_or_worker(switch: Switch) -> None:
    a = switch.add("a")
    for port, queue, worker in ((a.id, 1, 0), (a.id + 1, 0, 0), (a.id, 0, switch.fp.n_workers)):
        with pytest.raises(FastPathError, match=f"queue {queue} cannot move to worker {worker}"):
            switch.fp.rxq_move(port, queue, worker)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_moves_under_traffic_keep_every_packet_in_order(switch: Switch, packed: bool) -> None:
    a, b = switch.add("a", packed=packed), switch.add("b", packed=packed, rx_ring=1024)
    switch.install(flow(output(b.id), in_port=a.id))
    frames, seen = numbered(1, 2, 30_000), list[bytes]()
    for start in range(0, len(frames), 20):
        a.peer.send(frames[start : start + 20])
        switch.fp.rxq_move(a.id, 0, start // 20 % switch.fp.n_workers)
        seen += b.peer.receive()
        while start - len(seen) > 900:  # of the 1024 that the receiver's ring holds
            seen += b.peer.wait_received(1)
    seen += b.peer.wait_received(len(frames) - len(seen))
    assert seen == frames
    assert all(received_by(switch, a)), "each worker had its part"


def test_what_is_parked_goes_first(switch: Switch) -> None:
    """The new worker has the flow, the old one the first packets: those must leave before the others."""
    a, b = switch.add_hosts(2)
    workers = switch.fp.n_workers
    for round_ in range(50):
        switch.fp.rxq_move(a.id, 0, round_ % workers)
        first, second, third = (numbered(1, 2, 10, start=100 * part) for part in range(3))
        a.peer.send(first)
        (upcall,) = switch.wait_upcalls(1)
        a.peer.send(second)
        switch.settle(parked=20)
        switch.fp.rxq_move(a.id, 0, (round_ + 1) % workers)
        a.peer.send(third)
        ids = switch.install(flow(output(b.id), in_port=a.id))
        switch.finish(upcall, output(b.id))
        assert b.peer.wait_received(30) == first + second + third
        switch.fp.flow_del(ids)


def test_a_queue_waits_for_the_verdict_of_what_it_left_behind(switch: Switch) -> None:
    a, b = switch.add_hosts(2)
    away = (worker_of(switch, a) + 1) % switch.fp.n_workers
    switch.install(flow(output(b.id), in_port=a.id, eth_src=bytes.fromhex("020000000005")))
    a.peer.send(numbered(1, 2, 1))
    (upcall,) = switch.wait_upcalls(1)
    switch.fp.rxq_move(a.id, 0, away)
    other = numbered(5, 2, 10)
    a.peer.send(other)
    if switch.fp.n_workers > 1:
        # a second round trip through both workers: whoever could poll the queue has had the chance
        b.peer.send(numbered(2, 1, 1))
        (second,) = [up for up in switch.wait_upcalls(2) if up is not upcall]
        switch.finish(second, [])
        assert switch.received(a) == 1
        assert not b.peer.receive()
    switch.finish(upcall, output(b.id))
    assert sorted(b.peer.wait_received(11)) == sorted(numbered(1, 2, 1) + other)


def test_a_port_removed_while_its_queue_moves(switch: Switch) -> None:
    for _ in range(20):
        a, b = switch.add_hosts(2)
        a.peer.send(numbered(1, 2, 5))
        switch.wait_upcalls(1)
        for worker in range(switch.fp.n_workers):
            switch.fp.rxq_move(a.id, 0, worker)
        switch.delete(a)
        switch.delete(b)
        switch.upcalls.clear()


def test_each_worker_has_a_transmit_queue_of_its_own(switch: Switch) -> None:
    """Where the receiver offers as many queues: nothing is locked, and each worker's frames stay in order."""
    n = switch.fp.n_workers
    a, b = switch.add("a", queues=n), switch.add("b", queues=n, rx_ring=1024)
    switch.install(flow(output(b.id), in_port=a.id))
    for queue in range(n):
        switch.fp.rxq_move(a.id, queue, queue)
        a.peer.send(numbered(10 + queue, 2, 100), queue)
    switch.settle()
    for queue in range(n):
        assert b.peer.receive(queue) == numbered(10 + queue, 2, 100)
