# SPDX-License-Identifier: Apache-2.0
"""Memory ports: frames of all kinds from and to containers, with no shortcut between them."""

from __future__ import annotations

import pytest

from tests.fastpath.frames import flow, numbered, output
from tests.fastpath.switch import Attached, Switch
from tests.frontend import FrontEnd
from tests.memport import Container, Shape

SIZES = [60, 61, 127, 128, 129, 130, 1000, 1514, 2047, 2048, 2049, 4096, 9014, 65535]
BIG = 65535


def peer(port: Attached) -> FrontEnd | Container:
    return port.container or port.peer


def add(switch: Switch, kind: str, name: str, **shape: int) -> Attached:
    if kind == "ff":
        return switch.add_memory(name, mtu=BIG, shape=Shape(**shape))
    return switch.add(name, mtu=BIG, rx_ring=1024, tx_ring=1024)


def pair(switch: Switch, kinds: tuple[str, str] = ("ff", "ff"), **shape: int) -> tuple[Attached, Attached]:
    a, b = (add(switch, kind, name, **shape) for kind, name in zip(kinds, "ab", strict=True))
    switch.install(flow(output(b.id), in_port=a.id), flow(output(a.id), in_port=b.id))
    return a, b


@pytest.mark.parametrize("kinds", [("ff", "ff"), ("ff", "vhost"), ("vhost", "ff")], ids="-".join)
@pytest.mark.parametrize("segment", [2048, 700, 64, 1025])
def test_frames_of_all_sizes(switch: Switch, kinds: tuple[str, str], segment: int) -> None:
    sizes = [size for size in SIZES if size <= 64 * segment]
    a, b = pair(switch, kinds, segment=segment)
    frames = [numbered(1, 2, 1, size=size, start=size)[0] for size in sizes for _ in range(3)]
    for frame in frames:
        peer(a).send([frame])
        assert peer(b).wait_received(1) == [frame]
    peer(b).send(frames[:10])
    assert peer(a).wait_received(10) == frames[:10]
    assert switch.settle() == (len(frames) + 10, 0, len(frames) + 10, 0, 0)
    stats = switch.fp.port_stats(a.id)
    assert (stats.rx_bytes, stats.tx_bytes) == (sum(map(len, frames)), sum(map(len, frames[:10])))
