# SPDX-License-Identifier: Apache-2.0
"""The driver's side of a packed virtqueue (virtio 1.2, 2.8 "Packed Virtqueues")."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from operator import ne

from tests.frontend.memory import SharedMemory, guest, user
from tests.frontend.protocol import FrontEndError
from tests.frontend.vring import DESC, DESC_LEN, F_INDIRECT, F_NEXT, F_WRITE, Buffer, Ring, RingAddress, fence

F_AVAIL = 1 << 7  # 2.8.1
F_USED = 1 << 15
EVENT_FLAGS = 1  # 2.8.10, in le16: desc, flags
EVENT_DISABLE = 1
WRAP = 0x8000


class PackedRing(Ring):
    """2.8: one ring of descriptors that driver and device both write. in_order: VIRTIO_F_IN_ORDER was negotiated."""

    def __init__(self, memory: SharedMemory, size: int, indirect: int = 0, in_order: bool = False) -> None:
        super().__init__(memory, size, indirect)
        self._in_order = in_order
        self.desc = memory.alloc(DESC_LEN * size, 16)
        driver = memory.alloc(4, 4)
        device = memory.alloc(4, 4)
        self.address = RingAddress(user(self.desc), user(driver), user(device))
        # desc16[8 * i + 6] is descriptor i's id, + 7 its flags; desc32[4 * i + 2] its length.
        self.desc16 = memory.view[self.desc : self.desc + DESC_LEN * size].cast("H")
        self.desc32 = memory.view[self.desc : self.desc + DESC_LEN * size].cast("I")
        self.device_event = memory.view[device : device + 4].cast("H")
        self._next = 0
        self._wrap = 1  # 2.8.1: both counters start at 1
        self._used = 0
        self._used_wrap = 1
        self._free_ids = deque(range(size))
        self._chains: dict[int, int] = {}  # by id: descriptors of each chain at the device
        self._first: tuple[int, int] | None = None  # position and flags of the first descriptor not yet published

    def add(self, chain: Sequence[Buffer], writable: bool) -> int:
        flags = F_WRITE if writable else 0
        n = self.needed(len(chain))
        ident = self._free_ids.popleft()
        if n != len(chain):
            chain, flags = [self._write_table(ident, chain, flags, linked=False)], F_INDIRECT
        for i, (offset, length) in enumerate(chain):
            bits = flags | (F_AVAIL if self._wrap else F_USED) | (F_NEXT if i < n - 1 else 0)
            if self._first is None:
                # 2.8.21.1: the flags of the first are written last, so that all become visible at once.
                self._first = (self._next, bits)
                bits = self.desc16[8 * self._next + 7]
            DESC.pack_into(self._memory.view, self.desc + self._next * DESC_LEN, guest(offset), length, ident, bits)
            self._next += 1
            if self._next == self.size:
                self._next, self._wrap = 0, self._wrap ^ 1
        self._chains[ident] = n
        self.free -= n
        return ident

    def publish(self) -> None:
        if self._first is not None:
            position, bits = self._first
            self.desc16[8 * position + 7] = bits
            self._first = None

    def take_used(self) -> list[tuple[int, int]]:
        done = []
        while self._chains:
            bits = self.desc16[8 * self._used + 7]
            # 2.8.1: used when both bits equal the driver's used wrap counter.
            if bool(bits & F_AVAIL) != bool(self._used_wrap) or bool(bits & F_USED) != bool(self._used_wrap):
                break
            ident, length = self.desc16[8 * self._used + 6], self.desc32[4 * self._used + 2]
            if ident not in self._chains:
                raise FrontEndError(f"used descriptor {self._used}: {ident} is no buffer of ours")
            # 2.8.8: in order, one used descriptor may stand for all up to its own; those before it were read only.
            before = [*takewhile(partial(ne, ident), self._chains)] if self._in_order else []
            # 2.8.6: WRITE is set in a used descriptor exactly when length is valid.
            done += [(other, 0) for other in before] + [(ident, length if bits & F_WRITE else 0)]
            for other in (*before, ident):
                self._take_back(other)
        return done

    def _take_back(self, ident: int) -> None:
        n = self._chains.pop(ident)
        self._free_ids.append(ident)
        self.free += n
        self._used += n
        if self._used >= self.size:
            self._used, self._used_wrap = self._used - self.size, self._used_wrap ^ 1

    def wants_kick(self) -> bool:
        fence()
        return self.device_event[EVENT_FLAGS] != EVENT_DISABLE

    def base(self) -> int:
        # vhost-user doc, "A vring state description": bits 0-14 index, bit 15 wrap counter, avail low, used high.
        one = self._used | (WRAP if self._used_wrap else 0)
        return one | one << 16
