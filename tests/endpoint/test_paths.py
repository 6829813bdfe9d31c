# SPDX-License-Identifier: Apache-2.0
"""Changes of path under a flow whose frames are numbered: none is lost, repeated or late."""

from __future__ import annotations

import os
from collections import deque

import pytest

from tests.endpoint.bench import Bench, Container, introduce
from tests.endpoint.switchside import Marker, Shortcut

FRAMES = int(os.environ.get("FFSWITCH_PATH_FRAMES", "30000"))


class Worker:
    """Moves what one container sends to another, in order, as far as there are buffers."""

    def __init__(self, sender: Container, receiver: Container) -> None:
        self.sender, self.receiver = sender.port, receiver.port
        self.waiting: deque[bytes | Marker] = deque()
        self.shortcut: Shortcut | None = None
        self.moved = 0

    def work(self) -> None:
        """Take a burst, and bring on what there is room for."""
        for queue in range(self.sender.n_tx):
            self.waiting += self.sender.take(queue)
        while self.waiting:
            frame = self.waiting[0]
            if isinstance(frame, Marker):
                if self.shortcut and frame.epoch == self.shortcut.epoch:
                    self.shortcut.marked()
            elif self.receiver.posted() > 0:
                self.receiver.give(frame)
                self.moved += 1
            else:
                return
            self.waiting.popleft()

    def open(self) -> None:
        """Open a new shortcut."""
        self.shortcut = Shortcut(self.sender, self.receiver, 0, 0)
        self.shortcut.open()

    def lent(self) -> int:
        """Return how many frames went by the shortcut."""
        assert self.shortcut
        return int(self.shortcut.rings.head(0).tail)

    def close(self) -> None:
        """Close it, and take it away when both ends say that they have nothing of it any more."""
        assert self.shortcut
        self.shortcut.close()
        drop = self.shortcut.begin_drop()
        while not self.shortcut.dropped(drop):
            self.work()


@pytest.mark.parametrize("before", [0, 1, 2000])
def test_a_flow_keeps_its_order(bench: Bench, before: int) -> None:
    a, b = bench.container("a", "1 1 256"), bench.container("b", "1 1 256")
    introduce(a, b)
    worker = Worker(a, b)
    b.app.say(f"sink {FRAMES}")
    a.app.say(f"flow {b.mac} {FRAMES} 100")
    changes = 0
    while not b.app.spoke():
        worker.open()
        for _ in range(before):
            worker.work()
        worker.close()
        changes += 1
    assert a.app.hear("sent") == str(FRAMES)
    assert b.app.hear("sink") == f"{FRAMES} lost 0 late 0 bad 0"
    shortcut = a.app.stats()["tx_shortcut_packets"]
    assert changes > 1
    assert shortcut > 0 or before == 0
    assert worker.moved == FRAMES - shortcut > 0


def test_frames_wait_for_those_that_came_by_the_switch_before(bench: Bench) -> None:
    a, b = bench.container("a", "1 1 64"), bench.container("b", "2 1 64")
    introduce(a, b)
    a.send(b, 0, 10)
    early = a.port.take()
    for i, frame in enumerate(early):
        b.port.give(bytes(frame), queue=i % 2)
    shortcut = Shortcut(a.port, b.port, 0, 0)
    shortcut.open()
    a.send(b, 10, 10)
    assert [type(frame) for frame in a.port.take()] == [Marker]
    assert sorted(b.numbers(10)) == list(range(10))
    assert b.app.do("poll 20") == "0"  # not opened
    shortcut.marked()
    assert b.numbers(10) == list(range(10, 20))


def test_frames_of_a_closing_ring_come_first(bench: Bench) -> None:
    a, b = bench.container("a"), bench.container("b")
    introduce(a, b)
    worker = Worker(a, b)
    worker.open()
    a.send(b, 0, 10)
    worker.work()
    assert worker.shortcut
    worker.shortcut.close()
    a.send(b, 10, 10)
    worker.work()
    assert b.numbers(20) == list(range(20))


def test_from_one_shortcut_to_the_next(bench: Bench) -> None:
    a, b = bench.container("a"), bench.container("b")
    introduce(a, b)
    worker = Worker(a, b)
    worker.open()
    a.send(b, 0, 10)
    worker.work()
    assert worker.shortcut
    worker.shortcut.close()
    worker.shortcut = Shortcut(a.port, b.port, 1, 1)
    worker.shortcut.open()
    a.send(b, 10, 10)
    worker.work()
    assert b.numbers(20) == list(range(20))
