# SPDX-License-Identifier: Apache-2.0
"""Idle workers sleep, and whatever comes wakes them."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.fastpath import wire
from tests.fastpath.frames import flow, mac, numbered, output
from tests.fastpath.switch import Attached, Switch
from tests.fastpath.traffic import kick_storm
from tests.fastpath.wire import Wire
from tests.frontend import Feature
from vswitch.slowpath.types import PortState, PortType

RINGS: dict[str, dict[str, Any]] = {
    "split": {},
    "split-event-idx": {"features": Feature.EVENT_IDX},
    "packed": {"packed": True},
    "packed-event-idx": {"packed": True, "features": Feature.EVENT_IDX},
}
# The default of the fixture `fastpath`.
SPIN_US, SLEEP_US = 50, 100


@pytest.fixture(autouse=True)
def settings(switch: Switch) -> Iterator[None]:
    yield
    switch.fp.idle_set(SPIN_US, SLEEP_US)


def pair(switch: Switch, **options: Any) -> tuple[Attached, Attached]:
    a, b = switch.add("a", **options), switch.add("b", **options)
    switch.install(flow(output(b.id), in_port=a.id), flow(output(a.id), in_port=b.id))
    return a, b


def sleeps(switch: Switch) -> list[int]:
    return [worker.sleeps for worker in switch.fp.worker_stats()]


def wait_asleep(switch: Switch) -> None:
    """Until every worker has gone to sleep once more: whatever woke it last has been dealt with."""
    before = sleeps(switch)
    switch.fp.idle_set(SPIN_US, SLEEP_US)  # wakes those that sleep already
    switch.wait(lambda: all(now > then for now, then in zip(sleeps(switch), before, strict=True)), lambda: "sleep")


def pass_one(a: Attached, b: Attached, number: int = 1) -> None:
    a.peer.send(numbered(1, 2, 1, start=number))
    assert b.peer.wait_received(1) == numbered(1, 2, 1, start=number)


def spin(us: float) -> None:
    """Lets time pass, exactly."""
    end = time.perf_counter_ns() + 1000 * us
    while time.perf_counter_ns() < end:
        pass


@pytest.mark.parametrize("options", RINGS.values(), ids=RINGS.keys())
def test_a_kick_wakes_the_worker(switch: Switch, options: dict[str, Any]) -> None:
    a, b = pair(switch, **options)
    for number in range(20):
        wait_asleep(switch)
        kicks = a.peer.stats.kicks
        pass_one(a, b, number)
        assert a.peer.stats.kicks == kicks + 1, "a worker that sleeps has to be told"


@pytest.mark.parametrize("options", RINGS.values(), ids=RINGS.keys())
def test_no_wake_up_is_lost(switch: Switch, options: dict[str, Any]) -> None:
    """One frame at a time at every moment of a worker's way to sleep: it goes there 30 µs after the last one."""
    a, b = pair(switch, **options)
    switch.fp.idle_set(30, SLEEP_US)
    frames = numbered(1, 2, 4000)
    rng = random.Random(1)
    before, kicks = sum(sleeps(switch)), a.peer.stats.kicks
    for frame in frames:
        spin(rng.uniform(0, 60))
        a.peer.send([frame])
        assert b.peer.wait_received(1) == [frame]
    assert sum(sleeps(switch)) > before
    assert kicks < a.peer.stats.kicks


@pytest.mark.parametrize("options", RINGS.values(), ids=RINGS.keys())
def test_no_wake_up_is_lost_by_what_changes(switch: Switch, options: dict[str, Any]) -> None:
    """Queues that move, rings that stop, and descriptors that change, at every moment of a worker's way to sleep."""
    a, b = pair(switch, **options)
    switch.fp.idle_set(30, SLEEP_US)
    rng = random.Random(1)

    def move() -> None:
        switch.fp.rxq_move(a.id, 0, rng.randrange(switch.fp.n_workers))

    def new_kick() -> None:
        os.close(a.peer.replace_kick(0, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)))

    def stop_and_start() -> None:
        a.peer.enable(0, on=False)
        a.peer.enable(0, on=True)

    changes = [move, move, move, new_kick, stop_and_start, a.peer.share_memory]
    for number in range(200):
        for change in rng.choices(changes, k=rng.randint(1, 3)):
            change()
        spin(rng.uniform(0, 60))
        pass_one(a, b, number)


def test_a_busy_worker_is_not_kicked(switch: Switch) -> None:
    a, b = pair(switch)
    switch.fp.idle_set(0, 0)
    pass_one(a, b)
    kicks = a.peer.stats.kicks
    for number in range(100):
        pass_one(a, b, number)
    assert a.peer.stats.kicks == kicks


def test_a_worker_told_never_to_sleep(switch: Switch) -> None:
    switch.fp.idle_set(0, 0)
    switch.wait(lambda: all(worker.loops > 0 for worker in switch.fp.worker_stats()), lambda: "loops")
    loops = [worker.loops + 1000 for worker in switch.fp.worker_stats()]
    # one that was asleep has been woken, and may have counted a last sleep before that
    switch.wait(lambda: _looped(switch, loops), lambda: "1000 loops")
    before, loops = sleeps(switch), [worker.loops + 1000 for worker in switch.fp.worker_stats()]
    switch.wait(lambda: _looped(switch, loops), lambda: "1000 more")
    assert sleeps(switch) == before


def _looped(switch: Switch, loops: list[int]) -> bool:
    return all(worker.loops >= n for worker, n in zip(switch.fp.worker_stats(), loops, strict=True))


def test_a_verdict_wakes_the_worker(switch: Switch) -> None:
    a, b = switch.add_hosts(2)
    a.peer.send(numbered(1, 2, 1))
    (upcall,) = switch.wait_upcalls(1)
    wait_asleep(switch)
    switch.finish(upcall, output(b.id))
    assert b.peer.wait_received(1) == numbered(1, 2, 1)


def test_rings_stopped_and_started_under_a_sleeping_worker(switch: Switch) -> None:
    a, b = pair(switch)
    for number in range(10):
        wait_asleep(switch)
        a.peer.enable(0, on=False)
        a.peer.enable(0, on=True)
        pass_one(a, b, number)


def test_a_new_kick_descriptor(switch: Switch) -> None:
    """The old one wakes nobody any more, though the front-end still holds it."""
    a, b = pair(switch)
    pass_one(a, b)
    old = a.peer.replace_kick(0, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
    pass_one(a, b, 2)
    wait_asleep(switch)
    before = sum(sleeps(switch))
    for _ in range(100):
        os.eventfd_write(old, 1)
        spin(100)
    assert sum(sleeps(switch)) - before < 10
    os.close(old)
    pass_one(a, b, 3)


def test_a_peer_that_comes_back(switch: Switch) -> None:
    a, b = pair(switch)
    for number in range(5):
        pass_one(a, b, number)
        a.peer.kill()
        switch.wait_state(a, PortState.LOST)
        wait_asleep(switch)
        switch.reconnect(a)


def test_a_kick_descriptor_that_cannot_wake(switch: Switch) -> None:
    """A pipe instead of an eventfd: the worker looks from time to time."""
    a, b = pair(switch)
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    old = a.peer.replace_kick(0, read_end)
    os.close(write_end)
    os.close(old)
    before = sum(sleeps(switch))
    switch.wait(lambda: sum(sleeps(switch)) > before + 20, lambda: "timed sleeps")
    a.peer.replace_kick(0, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
    os.close(read_end)
    pass_one(a, b)


def test_a_kick_storm_starves_nobody(switch: Switch) -> None:
    bad = switch.add("bad")
    a, b = pair(switch)
    with kick_storm(bad):
        for number in range(100):
            pass_one(a, b, number)
            pass_one(b, a, number)


def test_a_device_without_interrupts(switch: Switch) -> None:
    """Its worker looks from time to time; kicks of other ports wake it all the same."""
    with wire.veth() as (ours, theirs), ExitStack() as stack:
        device = switch.add_pmd("wire", f"net_af_packet0,iface={ours}")
        peer = stack.enter_context(Wire(theirs))
        a, b = switch.add_hosts(2)
        switch.policy = lambda _: ((), ())
        switch.install(
            flow(output(b.id), in_port=a.id),
            flow(output(a.id), in_port=device.id, eth_src=mac(1)),
        )
        before = sum(sleeps(switch))
        switch.wait(lambda: sum(sleeps(switch)) > before + 20, lambda: "timed sleeps")
        for number in range(10):
            pass_one(a, b, number)
            peer.send(numbered(1, 2, 1, start=number))
            assert a.peer.wait_received(1) == numbered(1, 2, 1, start=number)


def test_a_packet_socket_wakes_its_worker(switch: Switch) -> None:
    with wire.veth() as (ours, theirs), Wire(theirs) as peer:
        device = switch.add_pmd("wire", ours, PortType.PACKET)
        host = switch.add("host")
        switch.policy = lambda _: ((), ())
        switch.install(flow(output(host.id), in_port=device.id, eth_src=mac(1)))
        for number in range(10):
            wait_asleep(switch)
            peer.send(numbered(1, 2, 1, start=number))
            assert host.peer.wait_received(1) == numbered(1, 2, 1, start=number)


def test_ports_added_while_workers_sleep(switch: Switch) -> None:
    a, b = pair(switch)
    for number in range(3, 10):
        wait_asleep(switch)
        more = switch.add(f"h{number}")
        switch.install(flow(output(b.id), in_port=more.id))
        wait_asleep(switch)
        pass_one(more, b, number)
        pass_one(a, b, number)
