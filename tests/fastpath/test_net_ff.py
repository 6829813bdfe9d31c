# SPDX-License-Identifier: Apache-2.0
"""The net_ff driver in two applications, on ports of the real fast path."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.endpoint.bench import Bench, Container, introduce
from tests.endpoint.switchside import MTU
from tests.endpoint.switchside import Shortcut as Rings
from tests.fastpath.frames import flow, output
from tests.fastpath.switch import Switch
from vswitch.slowpath.types import PortConfig, PortType, Shortcut

FRAMES = 300000


class Pair:
    """Two containers, and the ids of their ports."""

    def __init__(self, bench: Bench, switch: Switch, directory: Path) -> None:
        self.switch = switch
        ports = [switch.add_config(PortConfig(name, PortType.FF, mtu=MTU, queues=1)) for name in "ab"]
        self.ids = [port.id for port in ports]
        a, b = self.ids
        switch.install(flow(output(b), in_port=a), flow(output(a), in_port=b))
        self.a = bench.add(Container(directory, "a", 1, "1 1 256", attach=partial(switch.fp.mem_attach, a)))
        self.b = bench.add(Container(directory, "b", 2, "1 1 256", attach=partial(switch.fp.mem_attach, b)))
        introduce(self.a, self.b)

    def open(self) -> tuple[Rings, Shortcut]:
        """Open a shortcut from a to b."""
        rings = Rings(self.a.port, self.b.port, 0, 0)
        mac = bytes.fromhex(self.b.mac.replace(":", ""))
        sender, receiver = self.ids
        shortcut = Shortcut(sender, receiver, 0, 0, rings.epoch, mac, MTU + 14, 1)
        self.switch.fp.shortcut_open(shortcut)
        return rings, shortcut

    def close(self, rings: Rings, shortcut: Shortcut) -> None:
        """Close it, and free its numbers."""
        self.switch.fp.shortcut_close(shortcut)
        rings.drop()
        self.switch.fp.shortcut_free(shortcut)


@pytest.fixture
def pair(switch: Switch, tmp_path: Path) -> Iterator[Pair]:
    bench = Bench(tmp_path)
    pair = Pair(bench, switch, tmp_path)
    yield pair
    for port in pair.ids:
        switch.fp.mem_detach(port)
    bench.close()


def test_frames_by_the_switch(pair: Pair) -> None:
    for length, segments in ((64, 1), (1500, 1), (9000, 5)):
        for sender, receiver in ((pair.a, pair.b), (pair.b, pair.a)):
            sender.send(receiver, 0, 20, length, f"{segments} plain")
            frames = receiver.receive(20)
            assert [(number, size) for number, size, *_ in frames] == [(i, length) for i in range(20)]


def test_a_flow_changes_its_path(pair: Pair) -> None:
    """The switch drops what a receiver has no buffers for; beside that nothing is lost, and nothing is late."""
    pair.b.app.say(f"sink {FRAMES}")
    pair.a.app.say(f"flow {pair.b.mac} {FRAMES - 1} 100")
    while not pair.a.app.spoke():
        rings, shortcut = pair.open()
        while rings.rings.head(0).tail == 0 and not pair.a.app.spoke(0.001):
            pass
        pair.close(rings, shortcut)
    assert pair.a.app.hear("sent") == str(FRAMES - 1)
    while not pair.b.app.spoke():  # the ring may be full, or the last one dropped
        pair.a.app.do(f"tx {pair.b.mac} {FRAMES - 1} 1 100", "sent")
    words = pair.b.app.hear("sink").split()
    result = dict(zip(words[1::2], map(int, words[2::2]), strict=True))
    drops = sum(sum(pair.switch.drops(pair.switch.ports[port]).values()) for port in pair.ids)
    assert (result["late"], result["bad"]) == (0, 0)
    assert result["lost"] <= drops
    assert pair.a.app.stats()["tx_shortcut_packets"] > 0
