# SPDX-License-Identifier: Apache-2.0
"""Shortcuts: the switch's part in a change of path, between containers in Python that keep to ff_shm.h."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, replace
from itertools import count

import pytest

from tests.fastpath.frames import flow, mac, numbered, output
from tests.fastpath.switch import Attached, Switch
from tests.memport import Shape
from tests.memport.container import memory_file, pages
from tests.memport.rings import Ring, ring_bytes
from tests.memport.table import CLOSING, FREE, OPENING
from vswitch.slowpath.fastpath import FastPathError
from vswitch.slowpath.types import PortState, Shortcut

SIZE = 256


@dataclass
class Road:
    """A shortcut from a to b, both of which have its rings."""

    a: Attached
    b: Attached
    shortcut: Shortcut

    @classmethod
    def build(cls, a: Attached, b: Attached, epoch: int, numbers: tuple[int, int] = (3, 5)) -> Road:
        out_number, in_number = numbers
        queues = a.box.shape.tx_queues
        fd, view = memory_file("shortcut", pages(queues * ring_bytes(SIZE)))
        os.close(fd)
        parts = [view[ring_bytes(SIZE) * queue : ring_bytes(SIZE) * (queue + 1)] for queue in range(queues)]
        for part in parts:
            Ring.make(part, SIZE, epoch)
        a.box.add_outgoing(out_number, [Ring(part, SIZE, epoch) for part in parts])
        b.box.add_incoming(in_number, epoch, [Ring(part, SIZE, epoch) for part in parts], a.box.mapped)
        return cls(a, b, Shortcut(a.id, b.id, out_number, in_number, epoch, mac(2), 1522, queues))

    def open(self, switch: Switch) -> None:
        switch.fp.shortcut_open(self.shortcut)

    def wait_opened(self, switch: Switch) -> None:
        """Until all rings are open; each queue of a has sent since."""
        table, number = self.b.box.table, self.shortcut.in_number
        all_of_them = (1 << self.shortcut.queues) - 1
        switch.wait(lambda: table.incoming(number).opened == all_of_them, lambda: "all rings to open")

    def close_and_free(self, switch: Switch) -> None:
        switch.fp.shortcut_close(self.shortcut)
        switch.wait(lambda: self.a.box.drop_outgoing(self.shortcut.out_number), lambda: "the sender")
        switch.wait(lambda: self.b.box.drop_incoming(self.shortcut.in_number), lambda: "the receiver")
        switch.fp.shortcut_free(self.shortcut)


def pair(switch: Switch, **shape: int) -> tuple[Attached, Attached]:
    a, b = (switch.add_memory(name, shape=Shape(**shape)) for name in "ab")
    switch.install(flow(output(b.id), in_port=a.id), flow(output(a.id), in_port=b.id))
    return a, b


def test_frames_leave_the_switch_out(switch: Switch) -> None:
    a, b = pair(switch)
    road = Road.build(a, b, 1)
    road.open(switch)
    frames = numbered(1, 2, 500, size=1000)
    a.box.send(frames[:20])
    assert b.box.wait_received(20) == frames[:20]
    assert b.box.table.incoming(5).opened == 1
    before = switch.received(a)
    a.box.send(numbered(1, 3, 5))  # to another address
    assert b.box.wait_received(5) == numbered(1, 3, 5)
    for start in range(0, 500, 20):
        a.box.send(frames[start : start + 20])
        assert b.box.wait_received(20) == frames[start : start + 20]
    switch.settle()
    assert switch.received(a) == before + 5
    road.close_and_free(switch)
    a.box.send(frames[:10])
    assert b.box.wait_received(10) == frames[:10]
    assert switch.received(a) == before + 15


def test_the_table_of_both_sides(switch: Switch) -> None:
    a, b = pair(switch)
    road = Road.build(a, b, 9)
    generations = a.box.table.generation, b.box.table.generation
    road.open(switch)
    (entry,) = a.box.table.out()
    assert (entry.mac, entry.number, entry.epoch, entry.max_len) == (mac(2), 3, 9, 1522)
    told = b.box.table.incoming(5)
    assert (told.state, told.epoch, told.opened) == (OPENING, 9, 0)
    assert a.box.table.generation > generations[0]
    assert b.box.table.generation > generations[1]
    with pytest.raises(
        FastPathError, match=r"shortcut 9 from port \d+ to port \d+ cannot be freed: Device or resource"
    ):
        switch.fp.shortcut_free(road.shortcut)
    switch.fp.shortcut_close(road.shortcut)
    assert not a.box.table.out()
    assert b.box.table.incoming(5).state == CLOSING
    switch.fp.shortcut_free(road.shortcut)
    assert b.box.table.incoming(5).state == FREE
    switch.fp.shortcut_close(road.shortcut)
    switch.fp.shortcut_free(road.shortcut)


@pytest.mark.parametrize("shape", [{}, {"tx_queues": 3}, {"tx_queues": 2, "rx_queues": 3}], ids=str)
def test_changes_of_path_in_flight(switch: Switch, shape: dict[str, int]) -> None:
    """Frames of each queue come once and in order, whenever the path changes; numbers are used again and again."""
    a, b = pair(switch, **shape)
    rng = random.Random(1)
    queues = a.box.shape.tx_queues
    numbers = [count() for _ in range(queues)]
    sent: list[list[bytes]] = [[] for _ in range(queues)]
    came: list[bytes] = []
    epochs = count(1)
    roads: list[Road] = []
    by_shortcut = 0

    def take() -> int:
        came.extend(b.box.receive())
        return len(came)

    def sender_is_back() -> bool:
        take()
        return a.box.drop_outgoing(3)

    for _ in range(300):
        for _ in range(rng.randrange(4)):
            queue = rng.randrange(queues)
            n = rng.randrange(1, 9)
            frames = [numbered(queue + 1, 2, 1, start=next(numbers[queue]))[0] for _ in range(n)]
            a.box.send(frames, queue)
            sent[queue] += frames
        if rng.random() < 0.5:
            take()
        if rng.random() < 0.3 and not roads:
            roads.append(Road.build(a, b, next(epochs)))
            roads[0].open(switch)
        elif rng.random() < 0.2 and roads:
            switch.fp.shortcut_close(roads[0].shortcut)
            switch.wait(sender_is_back, lambda: "the sender")
            by_shortcut += sum(ring.pos for ring in b.box.incoming[5].rings)
            switch.wait(lambda: b.box.drop_incoming(5), lambda: "the receiver")
            switch.fp.shortcut_free(roads.pop().shortcut)
    total = sum(map(len, sent))
    switch.wait(lambda: take() >= total, lambda: f"{len(came)} of {total}")
    for queue, frames in enumerate(sent):
        assert [frame for frame in came if frame[6:12] == mac(queue + 1)] == frames, queue
    assert len(came) == total
    assert by_shortcut > total / 10
    assert next(epochs) > 10


def test_from_one_shortcut_to_the_next(switch: Switch) -> None:
    """Without a frame by the switch in between."""
    a, b = pair(switch)
    number = count()
    old: Road | None = None
    for epoch in range(1, 40):
        road = Road.build(a, b, epoch, (epoch % 2, 2 + epoch % 2))
        if old is not None:
            switch.fp.shortcut_close(old.shortcut)
        road.open(switch)
        frames = [numbered(1, 2, 1, start=next(number))[0] for _ in range(20)]
        a.box.send(frames[:10])
        if old is not None and epoch % 3:
            old.close_and_free(switch)
            old = None
        a.box.send(frames[10:])
        assert b.box.wait_received(20) == frames
        if old is not None:
            old.close_and_free(switch)
        old = road


def test_a_marker_waits_for_what_is_parked(switch: Switch) -> None:
    a, b = switch.add_memory("a"), switch.add_memory("b")
    a.box.send(numbered(1, 2, 3))
    (upcall,) = switch.wait_upcalls(1)
    road = Road.build(a, b, 1)
    road.open(switch)
    a.box.send(numbered(1, 2, 3, start=3))  # by the shortcut, behind a marker
    a.box.send(numbered(1, 9, 3))  # by the switch, behind the marker too
    beside = switch.add_hosts(2)
    switch.install(flow(output(beside[1].id), in_port=beside[0].id))
    beside[0].peer.send(numbered(7, 8, 50))
    assert beside[1].peer.wait_received(50) == numbered(7, 8, 50), "the others must not feel it"
    assert b.box.table.incoming(5).opened == 0
    assert not b.box.receive()
    assert switch.received(a) == 3
    switch.install(flow(output(b.id), in_port=a.id))
    switch.finish(upcall, output(b.id))
    came = b.box.wait_received(9)
    assert [frame for frame in came if frame[:6] == mac(2)] == numbered(1, 2, 6)
    switch.settle()


def test_a_marker_of_a_shortcut_that_is_gone(switch: Switch) -> None:
    """It waited for what was parked until the shortcut was freed, and its numbers given to another."""
    a, b = switch.add_memory("a"), switch.add_memory("b")
    a.box.send(numbered(1, 2, 1))
    (upcall,) = switch.wait_upcalls(1)
    for epoch in range(1, 4):
        road = Road.build(a, b, epoch)
        road.open(switch)
        a.box.idle_burst()
        if epoch < 3:
            road.close_and_free(switch)
    switch.install(flow(output(b.id), in_port=a.id))
    switch.finish(upcall, output(b.id))
    road.wait_opened(switch)
    assert switch.fp.port_info(a.id).state is PortState.READY
    a.box.send(numbered(1, 2, 2, start=1))
    assert b.box.wait_received(3) == numbered(1, 2, 3)


@pytest.mark.parametrize("gone", ["sender", "receiver", "both", "sender's port", "receiver's port"])
def test_an_end_that_goes(switch: Switch, gone: str) -> None:
    a, b = pair(switch)
    for epoch in range(1, 6):
        road = Road.build(a, b, epoch)
        road.open(switch)
        a.box.send(numbered(1, 2, 8))
        assert b.box.wait_received(8) == numbered(1, 2, 8)
        for port, names in ((a, {"sender", "both"}), (b, {"receiver", "both"})):
            if gone in names:
                switch.detach(port)
        if gone == "sender's port":
            switch.delete(a)
        if gone == "receiver's port":
            switch.delete(b)
        switch.fp.shortcut_close(road.shortcut)
        if gone.startswith("sender"):
            assert b.box.table.incoming(5).state == CLOSING
            assert b.box.drop_incoming(5)
        if gone.startswith("receiver"):
            assert not a.box.table.out()
            assert a.box.drop_outgoing(3)
        switch.fp.shortcut_free(road.shortcut)
        if gone.startswith("sender"):
            assert b.box.table.incoming(5).state == FREE
        for port in (a, b):
            if port.container is None and port.id in switch.ports:
                switch.attach(port)
        if a.id not in switch.ports:
            a = switch.add_memory("a")
        if b.id not in switch.ports:
            b = switch.add_memory("b")
        switch.install(flow(output(b.id), in_port=a.id))
    a.box.send(numbered(1, 2, 8))
    assert b.box.wait_received(8) == numbered(1, 2, 8)


def test_what_cannot_be_opened(switch: Switch) -> None:
    a, b = pair(switch)
    vhost = switch.add("v")
    road = Road.build(a, b, 4)
    good = road.shortcut
    for bad, why in (
        (replace(good, receiver=vhost.id), "not connected"),
        (replace(good, receiver=a.id), "Invalid"),
        (replace(good, out_number=256), "Invalid"),
        (replace(good, in_number=256), "Invalid"),
        (replace(good, epoch=0), "Invalid"),
        (replace(good, queues=0), "Invalid"),
        (replace(good, queues=17), "Invalid"),
    ):
        with pytest.raises(FastPathError, match=why):
            switch.fp.shortcut_open(bad)
    switch.fp.shortcut_open(good)
    for bad, why in (
        (replace(good, epoch=5), "busy"),
        (replace(good, epoch=5, out_number=4), "busy"),
        (replace(good, epoch=5, in_number=6), "busy"),
        (replace(good, epoch=4), "Invalid"),
    ):
        with pytest.raises(FastPathError, match=why):
            switch.fp.shortcut_open(bad)
    road.close_and_free(switch)
    with pytest.raises(FastPathError, match="Invalid"):
        switch.fp.shortcut_open(good)  # an epoch is not used twice
