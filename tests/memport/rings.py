# SPDX-License-Identifier: Apache-2.0
"""The container's sides of the rings of ff_shm.h, written from its text alone."""

from __future__ import annotations

import struct
from collections import deque
from typing import NamedTuple

from tests.frontend.vring import fence

HEAD_LEN, ENTRY_LEN, DESC_LEN = 192, 20, 16
MAGIC, VERSION = 0x46465348, 1
MORE, MARKER = 1, 2
CHAIN_MAX = 64
HEAD = struct.Struct("<4I")
DESC = struct.Struct("<I5H2B")
USED = struct.Struct("<2H")
# Of the head, in units of 4 bytes.
LISTEN, TAIL, USED_TAIL = 4, 16, 32
COUNTS_AT = 72  # packets, bytes
MASK32 = 0xFFFFFFFF


class RingError(Exception):
    """The other side broke a rule."""


class Desc(NamedTuple):
    """struct ff_shm_desc."""

    offset: int
    region: int
    len: int
    before: int = 0
    behind: int = 0
    slot: int = 0
    lap: int = 0
    flags: int = 0


class Buffer(NamedTuple):
    """A piece of a region."""

    region: int
    offset: int
    len: int


def ring_bytes(size: int) -> int:
    return HEAD_LEN + size * ENTRY_LEN


class Ring:
    """What all sides share: the ring's memory. Indices run freely, modulo 2^32."""

    def __init__(self, view: memoryview, size: int, epoch: int = 0) -> None:
        if HEAD.unpack_from(view) != (MAGIC, VERSION, size, epoch):
            raise RingError(f"a ring of {size} with epoch {epoch} begins with {HEAD.unpack_from(view)}")
        self.size = size
        self.view = view
        self.words = view[:HEAD_LEN].cast("I")
        self.desc = view[HEAD_LEN : HEAD_LEN + DESC_LEN * size]
        self.behind = view[HEAD_LEN + DESC_LEN * size : ring_bytes(size)]

    @staticmethod
    def make(view: memoryview, size: int, epoch: int) -> None:
        """Fills in the head, in zeroed memory."""
        HEAD.pack_into(view, 0, MAGIC, VERSION, size, epoch)

    def write(self, index: int, desc: Desc) -> None:
        DESC.pack_into(self.desc, index % self.size * DESC_LEN, *desc)

    def read(self, index: int) -> Desc:
        return Desc(*DESC.unpack_from(self.desc, index % self.size * DESC_LEN))

    def distance(self, word: int, since: int, most: int) -> int:
        """How far an index of the other side is, at most `most`."""
        n = (self.words[word] - since) & MASK32
        if n > most:
            raise RingError(f"an index jumped by {n}")
        return n


class Lender:
    """The producer of a lend ring."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.tail = 0
        self.free = deque(range(ring.size))
        self.lent: dict[int, Buffer | None] = {}  # by slot, in the order of sending; None: a marker
        self.lap = bytearray(ring.size)
        self.packets = self.bytes = 0

    def put(self, buffers: list[Buffer]) -> None:
        """Lends a frame; there is room. Others see it after `publish`."""
        for buffer in buffers:
            more = MORE if buffer is not buffers[-1] else 0
            self._put(Desc(buffer.offset, buffer.region, buffer.len, flags=more), buffer)
        self.packets += 1
        self.bytes += sum(buffer.len for buffer in buffers)

    def put_marker(self, epoch: int, number: int) -> None:
        self._put(Desc(epoch, number, 0, flags=MARKER), None)

    def publish(self) -> None:
        struct.pack_into("<2Q", self.ring.view, COUNTS_AT, self.packets, self.bytes)
        self.ring.words[TAIL] = self.tail

    def wants_kick(self) -> bool:
        fence()
        return self.ring.words[LISTEN] == 1

    def reclaim(self) -> list[Buffer]:
        """The buffers that have come back."""
        back = [slot for slot in self.lent if self.ring.behind[slot] == self.lap[slot]]
        self.free.extend(back)
        return [buffer for slot in back if (buffer := self.lent.pop(slot)) is not None]

    def seize(self) -> list[Buffer]:
        """All buffers that are lent: the consumer is gone."""
        self.free.extend(self.lent)
        lent, self.lent = self.lent, {}
        return [buffer for buffer in lent.values() if buffer is not None]

    def _put(self, desc: Desc, buffer: Buffer | None) -> None:
        slot = self.free.popleft()
        self.lap[slot] = (self.lap[slot] + 1) & 0xFF
        self.lent[slot] = buffer
        self.ring.write(self.tail, desc._replace(slot=slot, lap=self.lap[slot]))
        self.tail = (self.tail + 1) & MASK32


class Borrower:
    """The consumer of a lend ring."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.pos = 0
        self.lap = bytearray(ring.size)
        self.held: set[int] = set()

    def take(self) -> list[Desc] | None:
        """The next frame, or None. Its slots are held until `give`."""
        n = self.pending
        if n == 0:
            return None
        frame = [self._take()]
        while frame[-1].flags & MORE:
            if len(frame) in {n, CHAIN_MAX}:
                raise RingError("a frame does not end")
            frame.append(self._take())
        self.ring.words[USED_TAIL] = self.pos
        return frame

    @property
    def pending(self) -> int:
        """Descriptors that were not taken."""
        return self.ring.distance(TAIL, self.pos, self.ring.size)

    def give(self, slot: int) -> None:
        self.held.remove(slot)
        self.ring.behind[slot] = self.lap[slot]

    def _take(self) -> Desc:
        desc = self.ring.read(self.pos)
        if desc.slot >= self.ring.size:
            raise RingError(f"slot {desc.slot}")
        if desc.slot in self.held or desc.lap != (self.lap[desc.slot] + 1) & 0xFF:
            raise RingError(f"lap {desc.lap} of slot {desc.slot}")
        self.lap[desc.slot] = desc.lap
        self.held.add(desc.slot)
        self.pos = (self.pos + 1) & MASK32
        return desc


class Poster:
    """The producer of a post ring."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.tail = self.taken = 0
        self.posted: deque[Buffer] = deque()
        self.packets = self.bytes = 0

    @property
    def room(self) -> int:
        return self.ring.size - len(self.posted)

    def post(self, buffer: Buffer) -> None:
        """Others see it after `publish`."""
        self.posted.append(buffer)
        self.ring.write(self.tail, Desc(buffer.offset, buffer.region, buffer.len))
        self.tail = (self.tail + 1) & MASK32

    def publish(self) -> None:
        self.ring.words[TAIL] = self.tail

    def ready(self) -> int:
        """How many buffers have come back."""
        return self.ring.distance(USED_TAIL, self.taken, len(self.posted))

    def take(self) -> list[Buffer]:
        """The buffers of the next frame of those that came back, as long as what is in them; they are the caller's."""
        frame = []
        while True:
            length, flags = USED.unpack_from(self.ring.behind, self.taken % self.ring.size * USED.size)
            buffer = self.posted.popleft()
            if not 0 < length <= buffer.len:
                raise RingError(f"{length} bytes in a buffer of {buffer.len}")
            self.taken = (self.taken + 1) & MASK32
            frame.append(buffer._replace(len=length))
            if not flags & MORE:
                break
        self.packets += 1
        self.bytes += sum(buffer.len for buffer in frame)
        return frame


class Filler:
    """The consumer of a post ring: the switch's side, for tests of the rings alone."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.pos = 0

    def ready(self) -> int:
        return self.ring.distance(TAIL, self.pos, self.ring.size)

    def fill(self, lengths: list[int]) -> list[Desc]:
        """Gives the next buffers back as one frame with these many bytes in each; returns them."""
        descs = []
        for i, length in enumerate(lengths):
            more = MORE if i < len(lengths) - 1 else 0
            USED.pack_into(self.ring.behind, self.pos % self.ring.size * USED.size, length, more)
            descs.append(self.ring.read(self.pos))
            self.pos = (self.pos + 1) & MASK32
        self.ring.words[USED_TAIL] = self.pos
        return descs
