# SPDX-License-Identifier: Apache-2.0
"""Front-ends that break the rules of their rings: each costs its own queue, is named, and may come back."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

import pytest

from tests.fastpath.frames import flow, numbered, output
from tests.fastpath.switch import Switch
from tests.frontend import FrontEnd
from tests.frontend.memory import guest
from tests.frontend.vring import SplitRing
from vswitch.slowpath.types import PortState

# virtio 1.1 section 2.6.5
NEXT, WRITE, INDIRECT = 1, 2, 4
SOMEWHERE = guest(4096)  # an address of the guest's memory


def transmit_ring(front: FrontEnd) -> SplitRing:
    ring = front.vrings[1].ring
    assert isinstance(ring, SplitRing)
    return ring


def offer(front: FrontEnd, head: int) -> None:
    """Makes the chain at `head` available, without the front-end's own care."""
    ring = transmit_ring(front)
    index = ring.avail[1]
    ring.avail[2 + index % ring.size] = head
    ring.avail[1] = (index + 1) & 0xFFFF


def offer_descriptor(front: FrontEnd, address: int, length: int, flags: int, following: int = 0) -> None:
    assert front.memory is not None
    struct.pack_into("<QIHH", front.memory.view, transmit_ring(front).desc, address, length, flags, following)
    offer(front, 0)


def jump(front: FrontEnd) -> None:
    ring = transmit_ring(front)
    ring.avail[1] = (ring.avail[1] + ring.size + 1) & 0xFFFF


def truncate(front: FrontEnd) -> None:
    assert front.memory is not None
    os.ftruncate(front.memory.fd, 0)


DEEDS: dict[str, Callable[[FrontEnd], None]] = {
    "avail-jump": jump,
    "descriptor-index": lambda front: offer(front, 0xFFFF),
    "buffer-address": lambda front: offer_descriptor(front, 0xDEAD_0000_0000, 64, 0),
    "buffer-address beyond the end": lambda front: offer_descriptor(front, SOMEWHERE, 0xFFFF_FFFF, 0),
    "buffer-address that wraps": lambda front: offer_descriptor(front, 2**64 - 32, 64, 0),
    "buffer-direction": lambda front: offer_descriptor(front, SOMEWHERE, 64, WRITE),
    "descriptor-chain": lambda front: offer_descriptor(front, SOMEWHERE, 64, NEXT, 0),
    "descriptor-chain of nothing": lambda front: offer_descriptor(front, SOMEWHERE, 0, NEXT, 0),
    "short-chain": lambda front: offer_descriptor(front, SOMEWHERE, 4, 0),
    "indirect-table": lambda front: offer_descriptor(front, SOMEWHERE, 8, INDIRECT),
    "indirect-table and more": lambda front: offer_descriptor(front, SOMEWHERE, 16, INDIRECT | NEXT, 0),
    "memory-truncated": truncate,
}


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.replace(" ", "-"))
def test_a_broken_rule_costs_its_own_port(switch: Switch, deed: str) -> None:
    bad, left, right = switch.add_hosts(3)
    switch.install(flow(output(right.id), in_port=left.id), flow(output(right.id), in_port=bad.id))
    DEEDS[deed](bad.peer)
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


def test_memory_truncated_while_frames_come(switch: Switch) -> None:
    """The worker meets it in the middle of a copy; the sender must not notice."""
    sender, bad, right = switch.add_hosts(3)
    switch.install(flow(output(bad.id, right.id), in_port=sender.id))
    truncate(bad.peer)
    sender.peer.send(numbered(1, 3, 100))
    assert right.peer.wait_received(100) == numbered(1, 3, 100)
    switch.wait_state(bad, PortState.LOST)
    assert "memory-truncated" in switch.fp.port_info(bad.id).reason
