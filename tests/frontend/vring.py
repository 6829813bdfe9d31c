# SPDX-License-Identifier: Apache-2.0
"""The driver's side of a virtqueue: what both ring formats share, and the split ring.

Section numbers are those of virtio 1.2. Fields that the device reads while we
write (indices, flags) are accessed through memoryview.cast, which stores a
whole integer at once; ordinary x86 stores are seen in program order.
"""

from __future__ import annotations

import struct
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from tests.frontend.memory import SharedMemory, guest, user
from tests.frontend.protocol import FrontEndError

# 2.7.5 and 2.8.2: the same 16 bytes with other last fields: addr, len, flags, next / addr, len, id, flags.
DESC = struct.Struct("@QIHH")
DESC_LEN = 16
F_NEXT = 1
F_WRITE = 2
F_INDIRECT = 4

AVAIL_IDX = 1  # 2.7.6, in units of le16: flags, idx, ring[]
AVAIL_RING = 2
USED_FLAGS = 0  # 2.7.8: flags, idx, then {id, len} of le32
USED_IDX = 1
USED_F_NO_NOTIFY = 1

_fence_lock = threading.Lock()


def fence() -> None:
    """A full memory barrier: store before, load after (2.7.13.4, "Notifying the device").

    Taking a free lock is an atomic read-modify-write, the one thing in Python that is a barrier.
    """
    _fence_lock.acquire()
    _fence_lock.release()


class Buffer(NamedTuple):
    """One descriptor's worth of memory: offset and length in bytes."""

    offset: int
    length: int


class RingAddress(NamedTuple):
    """What SET_VRING_ADDR says: for a packed ring, avail is the driver's event area and used the device's."""

    desc: int
    avail: int
    used: int


class Ring(ABC):
    """Driver's side of one virtqueue. `free` is the number of descriptors that can be added."""

    size: int
    free: int
    address: RingAddress

    def __init__(self, memory: SharedMemory, size: int, indirect: int) -> None:
        self._memory = memory
        self.size = self.free = size
        # 2.7.5.3: indirect tables of `indirect` descriptors each, one for each ring entry; 0: none.
        self._indirect = indirect
        self._tables = memory.alloc(size * indirect * DESC_LEN, DESC_LEN)

    def needed(self, n_buffers: int) -> int:
        """How many ring descriptors a chain of `n_buffers` takes."""
        return 1 if 1 < n_buffers <= self._indirect else n_buffers

    @abstractmethod
    def add(self, chain: Sequence[Buffer], writable: bool) -> int:
        """Adds one chain, not yet visible to the device; returns its id. Needs room."""

    @abstractmethod
    def publish(self) -> None:
        """Makes all that was added since the last call visible by one store."""

    @abstractmethod
    def take_used(self) -> list[tuple[int, int]]:
        """Takes what the device has used: (id, bytes written) each, in order; frees the descriptors."""

    @abstractmethod
    def wants_kick(self) -> bool:
        """Whether the device asks to be notified of what was published."""

    @abstractmethod
    def base(self) -> int:
        """SET_VRING_BASE for a device that starts (again) on this ring as it is."""

    def _write_table(self, ident: int, chain: Sequence[Buffer], flags: int, linked: bool) -> Buffer:
        table = self._tables + ident * self._indirect * DESC_LEN
        last = len(chain) - 1
        for i, (offset, length) in enumerate(chain):
            # 2.7.5.3.1: split tables are linked by next; 2.8.7: packed ones are an array and id means nothing.
            tail = ((flags | F_NEXT, i + 1) if i < last else (flags, 0)) if linked else (0, flags)
            DESC.pack_into(self._memory.view, table + i * DESC_LEN, guest(offset), length, *tail)
        return Buffer(table, len(chain) * DESC_LEN)


class SplitRing(Ring):
    """2.7 "Split Virtqueues"."""

    def __init__(self, memory: SharedMemory, size: int, indirect: int = 0, event_idx: bool = False) -> None:
        super().__init__(memory, size, indirect)
        self.desc = memory.alloc(DESC_LEN * size, 16)
        avail = memory.alloc(6 + 2 * size, 2)
        used = memory.alloc(6 + 8 * size, 4)
        self.address = RingAddress(user(self.desc), user(avail), user(used))
        self.avail = memory.view[avail : avail + 6 + 2 * size].cast("H")
        self.used = memory.view[used : used + 4].cast("H")
        self.used_ring = memory.view[used + 4 : used + 4 + 8 * size].cast("I")
        self.avail_event = memory.view[used + 4 + 8 * size : used + 6 + 8 * size].cast("H")
        self._event_idx = event_idx
        self._avail_idx = 0  # next to be added, free running modulo 2^16
        self._asked_at = 0  # _avail_idx when wants_kick was last called
        self._last_used = 0
        self._free_ids = deque(range(size))
        self._chains: dict[int, list[int]] = {}  # by head: the descriptors of each chain at the device

    def add(self, chain: Sequence[Buffer], writable: bool) -> int:
        view, flags = self._memory.view, F_WRITE if writable else 0
        n = self.needed(len(chain))
        ids = [self._free_ids.popleft() for _ in range(n)]
        head = ids[0]
        if n != len(chain):
            chain, flags = [self._write_table(head, chain, flags, linked=True)], F_INDIRECT
        for i in range(n - 1):
            offset, length = chain[i]
            DESC.pack_into(view, self.desc + ids[i] * DESC_LEN, guest(offset), length, flags | F_NEXT, ids[i + 1])
        offset, length = chain[-1]
        DESC.pack_into(view, self.desc + ids[-1] * DESC_LEN, guest(offset), length, flags, 0)
        self.avail[AVAIL_RING + self._avail_idx % self.size] = head
        self._avail_idx = (self._avail_idx + 1) & 0xFFFF
        self._chains[head] = ids
        self.free -= n
        return head

    def publish(self) -> None:
        self.avail[AVAIL_IDX] = self._avail_idx

    def take_used(self) -> list[tuple[int, int]]:
        done = self._take_used()
        if self._event_idx and self.avail[AVAIL_RING + self.size] != self._last_used:
            # 2.7.7: asks to be told of the next one; what came before that is taken here.
            self.avail[AVAIL_RING + self.size] = self._last_used
            fence()
            done += self.take_used()
        return done

    def _take_used(self) -> list[tuple[int, int]]:
        count = (self.used[USED_IDX] - self._last_used) & 0xFFFF
        if count > len(self._chains):
            raise FrontEndError(f"used index moved by {count}, only {len(self._chains)} buffers are out")
        done = []
        for _ in range(count):
            slot = self._last_used % self.size * 2
            head, length = self.used_ring[slot], self.used_ring[slot + 1]
            ids = self._chains.pop(head, None)
            if ids is None:
                raise FrontEndError(f"used element {self._last_used}: {head} is no buffer of ours")
            self._free_ids.extend(ids)
            self.free += len(ids)
            self._last_used = (self._last_used + 1) & 0xFFFF
            done.append((head, length))
        return done

    def wants_kick(self) -> bool:
        fence()
        old, self._asked_at = self._asked_at, self._avail_idx
        if self._event_idx:  # 2.7.10: whether avail_event is one of those added since
            return (self._avail_idx - self.avail_event[0] - 1) & 0xFFFF < (self._avail_idx - old) & 0xFFFF
        return not self.used[USED_FLAGS] & USED_F_NO_NOTIFY

    def base(self) -> int:
        # What was not used is done again (vhost-user doc, "Ring states": the base is the next avail index).
        return int(self.used[USED_IDX])
