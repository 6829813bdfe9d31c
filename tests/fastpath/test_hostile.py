# SPDX-License-Identifier: Apache-2.0
"""Front-ends that break the rules of their rings: each costs its own queue, is named, and may come back."""

from __future__ import annotations

import os
import struct

import pytest

from tests.fastpath.frames import flow, numbered, output
from tests.fastpath.hostile import DEEDS, INDIRECT, NEXT, RING_DEEDS, transmit_ring, truncate
from tests.fastpath.switch import Switch
from tests.frontend import FrontEnd
from tests.frontend.memory import guest
from vswitch.slowpath.types import Drop, PortConfig, PortState


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.replace(" ", "-"))
def test_a_broken_rule_costs_its_own_port(switch: Switch, deed: str) -> None:
    bad, left, right = switch.add_hosts(3)
    switch.install(flow(output(right.id), in_port=left.id), flow(output(right.id), in_port=bad.id))
    DEEDS[deed](bad.peer)
    bad.peer.kick()
    switch.wait_state(bad, PortState.LOST)
    assert f"transmit queue 0 stopped: {deed.split(maxsplit=1)[0]}" in switch.fp.port_info(bad.id).reason
    assert switch.received(bad) == 0
    assert switch.fp.port_stats(bad.id).faults == {deed.split(maxsplit=1)[0]: 1}

    left.peer.send(numbered(2, 3, 20))
    assert right.peer.wait_received(20) == numbered(2, 3, 20), "the others must not feel it"

    bad.peer.kill()
    switch.reconnect(bad)
    bad.peer.send(numbered(1, 3, 20))
    assert right.peer.wait_received(20) == numbered(1, 3, 20), "it may come back"


def test_an_eventfd_that_would_block_holds_nobody(switch: Switch) -> None:
    """Its counter at the maximum, and O_NONBLOCK taken back."""
    bad, left, right = switch.add_hosts(3)
    switch.install(flow(output(bad.id, right.id), in_port=left.id), flow(output(left.id), in_port=bad.id))
    calls = [vring.call for vring in bad.peer.vrings]
    for call in calls:
        os.set_blocking(call, True)
        os.eventfd_write(call, 2**64 - 2)
    try:
        bad.peer.send(numbered(1, 2, 20))
        assert left.peer.wait_received(20) == numbered(1, 2, 20)
        left.peer.send(numbered(2, 3, 20))
        assert right.peer.wait_received(20) == numbered(2, 3, 20)
        assert bad.peer.receive() == numbered(2, 3, 20)
    finally:
        for call in calls:
            os.eventfd_read(call)


@pytest.mark.parametrize("deed", RING_DEEDS, ids=lambda deed: deed.replace(" ", "-"))
@pytest.mark.parametrize("direction", ["transmit", "receive"])
def test_a_ring_that_reaches_beyond_itself(switch: Switch, deed: str, direction: str) -> None:
    """librte_vhost passes on sizes and positions as the front-end tells them, also of running rings."""
    packed, request, number = RING_DEEDS[deed]
    left, right = switch.add_hosts(2)
    bad = switch.add("bad", packed=packed, rx_ring=64, tx_ring=64)
    switch.install(flow(output(right.id), in_port=left.id), flow(output(bad.id), in_port=bad.id))
    bad.peer.send(numbered(1, 3, 20))
    assert bad.peer.wait_received(20) == numbered(1, 3, 20)
    bad.peer.set_vring(request, int(direction == "transmit"), number)
    switch.wait_state(bad, PortState.LOST)
    assert f"{direction} queue 0 stopped: {deed.split(maxsplit=1)[0]}" in switch.fp.port_info(bad.id).reason
    left.peer.send(numbered(1, 2, 20))
    assert right.peer.wait_received(20) == numbered(1, 2, 20), "the others must not feel it"
    bad.peer.kill()
    switch.reconnect(bad)
    bad.peer.send(numbered(1, 3, 20))
    assert bad.peer.wait_received(20) == numbered(1, 3, 20), "it may come back"


def test_a_position_told_before_the_ring_starts(switch: Switch) -> None:
    class Liar(FrontEnd):
        def base_of(self, index: int) -> int:
            return 0x7FFF if index == 1 else super().base_of(index)

    path = switch.run_dir / "bad"
    front = Liar(path, packed=True)
    bad = switch.add_config(PortConfig("bad", socket=str(path)))
    bad.front = front
    front.connect()
    switch.wait_state(bad, PortState.LOST)
    assert "transmit queue 0 stopped: descriptor-index" in switch.fp.port_info(bad.id).reason


@pytest.mark.parametrize("part, off", [("desc", 8), ("avail", 1), ("used", 2)])
@pytest.mark.parametrize("packed", [False, True])
def test_a_ring_that_is_not_aligned(switch: Switch, packed: bool, part: str, off: int) -> None:
    class Crooked(FrontEnd):
        def _make_rings(self) -> None:
            super()._make_rings()
            ring = self.vrings[1].ring
            ring.address = ring.address._replace(**{part: getattr(ring.address, part) + off})

    path = switch.run_dir / "bad"
    front = Crooked(path, packed=packed)
    bad = switch.add_config(PortConfig("bad", socket=str(path)))
    bad.front = front
    front.connect()
    switch.wait_state(bad, PortState.LOST)
    assert "transmit queue 0 stopped: buffer-address" in switch.fp.port_info(bad.id).reason


def test_chains_that_fill_a_burst(switch: Switch) -> None:
    """Two chains of all the pieces that a burst may have, and plain frames behind them."""
    pieces, size = 1024, 150
    bad = switch.add("bad", mtu=65500)
    right = switch.add("right")
    switch.install(flow(output(right.id), in_port=bad.id))
    assert bad.peer.memory is not None
    memory, ring = bad.peer.memory, transmit_ring(bad.peer)
    data, table = memory.size - 2 * 16384 - 4096, memory.size - 2 * 16384
    plain = numbered(1, 2, 1, size=size)[0]
    memory.view[data : data + 12 + size] = bytes(12) + plain
    for head in range(10):
        if head < 2:
            at = table + head * 16384
            for i in range(pieces):
                flags, following = (NEXT, i + 1) if i < pieces - 1 else (0, 0)
                struct.pack_into("<QIHH", memory.view, at + 16 * i, guest(data), size + 12, flags, following)
            fields = guest(at), pieces * 16, INDIRECT, 0
        else:
            fields = guest(data), 12 + size, 0, 0
        struct.pack_into("<QIHH", memory.view, ring.desc + 16 * head, *fields)
        ring.avail[2 + head] = head
    ring.avail[1] = 10
    bad.peer.kick()
    assert right.peer.wait_received(8) == [plain] * 8
    assert switch.drops(bad) == {Drop.OVERSIZE: 2}
    bad.peer.kill()
    switch.delete(bad)


def test_memory_truncated_while_frames_come(switch: Switch) -> None:
    """The worker meets it in the middle of a copy; the sender must not notice."""
    sender, bad, right = switch.add_hosts(3)
    switch.install(flow(output(bad.id, right.id), in_port=sender.id))
    truncate(bad.peer)
    sender.peer.send(numbered(1, 3, 100))
    assert right.peer.wait_received(100) == numbered(1, 3, 100)
    switch.wait_state(bad, PortState.LOST)
    assert "memory-truncated" in switch.fp.port_info(bad.id).reason
