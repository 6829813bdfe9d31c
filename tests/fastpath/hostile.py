# SPDX-License-Identifier: Apache-2.0
"""What a hostile front-end does to its rings, by the name of the fault that it is."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

from tests.frontend import FrontEnd
from tests.frontend.memory import guest
from tests.frontend.protocol import Request
from tests.frontend.vring import SplitRing

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
    "indirect-table that is the ring": lambda front: offer_descriptor(
        front, guest(transmit_ring(front).desc), 16, INDIRECT
    ),
    "memory-truncated": truncate,
}

RING_DEEDS: dict[str, tuple[bool, Request, int]] = {  # packed?, message, number
    "buffer-address": (False, Request.SET_VRING_NUM, 32768),
    "buffer-address of a packed ring": (True, Request.SET_VRING_NUM, 32768),
    "descriptor-index": (True, Request.SET_VRING_BASE, 0x7FFF),
    "descriptor-index behind a ring made smaller": (True, Request.SET_VRING_NUM, 8),
}
