# SPDX-License-Identifier: Apache-2.0
"""`Container`: one that has a memory port, as `ffswitchd` and net_ff set it up between them."""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle

from tests.frontend.frontend import Stats
from tests.frontend.queues import chunks
from tests.memport.rings import MASK32, Borrower, Buffer, Lender, Poster, Ring, ring_bytes
from tests.memport.table import CLOSING, OPENING, TABLE_LEN, In, Table
from tests.polling import until
from vswitch.slowpath.types import MemConf, MemFile

DEFAULT_TIMEOUT = 30.0  # a loaded machine may stand still for 10 s
PAUSE = 0.0005  # seconds between looks at a ring: nothing wakes a container
_region_numbers = cycle(range(7, 65000, 64))
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass(frozen=True)
class Shape:
    """What a container asks for. `segment`: bytes of a frame that go into one buffer."""

    rx_queues: int = 1
    tx_queues: int = 1
    ring_size: int = 256
    regions: int = 1
    buffer: int = 2048
    segment: int = 2048


def memory_file(name: str, size: int, seals: int = 0) -> tuple[int, memoryview]:
    """A zeroed memfd, mapped."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd, memoryview(mmap.mmap(fd, size))


def pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


@dataclass
class Incoming:
    """A shortcut to this container: its rings, and its number in the table."""

    number: int
    epoch: int
    rings: list[Borrower]
    taken: list[bool]  # by ring: whether it was taken from
    told: In  # as the table said last

    def may_take(self, ring: int) -> bool:
        told = self.told
        return told.state in {OPENING, CLOSING} and told.epoch == self.epoch and bool(told.opened >> ring & 1)


class Path:
    """The way of what one transmit queue sends: by the switch, or by a shortcut for one address."""

    def __init__(self, lender: Lender, kick: int) -> None:
        self.switch = lender
        self.kick = kick
        self.by_shortcut: dict[int, int] = {}  # number: epoch, for those that the queue has gone over to


class Container:
    """Both ends of a memory port but for the switch itself: `conf` is for FastPath.mem_attach, then `start`.

    Nothing runs in the background. Frames that come by the switch and by shortcuts are merged as CHANGE OF PATH
    in ff_shm.h says.
    """

    def __init__(self, shape: Shape | None = None) -> None:
        self.shape = shape = shape or Shape()
        pairs = max(shape.rx_queues, shape.tx_queues)
        self._rings_len = ring_bytes(shape.ring_size)
        self.rings_fd, self._rings = memory_file("rings", pages(2 * pairs * self._rings_len), SEALS)
        self.table_fd, table = memory_file("table", pages(TABLE_LEN), SEALS)
        self.table = Table(table)
        self.kicks = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(shape.tx_queues)]
        count = 2 * pairs * shape.ring_size
        self._region_len = pages(-(-count // shape.regions) * shape.buffer)
        self.regions = [memory_file("packets", self._region_len) for _ in range(shape.regions)]
        self.first_region = next(_region_numbers)
        self.mapped = {self.first_region + i: view for i, (_, view) in enumerate(self.regions)}
        self._free = deque(
            Buffer(number, offset, shape.buffer)
            for offset in range(0, self._region_len - shape.buffer + 1, shape.buffer)
            for number in self.mapped
        )
        self.buffers = len(self._free)
        self.tx: list[Path] = []
        self.rx: list[Poster] = []
        self.outgoing: dict[int, list[Lender]] = {}  # rings by number
        self.incoming: dict[int, Incoming] = {}
        self._received: list[tuple[int, bytes]] = []  # with the queue, as they came
        self._kicked = 0

    @property
    def conf(self) -> MemConf:
        shape = self.shape
        return MemConf(
            tuple(MemFile(fd, 0, self._region_len) for fd, _ in self.regions),
            self.first_region,
            shape.rx_queues,
            shape.tx_queues,
            shape.ring_size,
            self.rings_fd,
            self.table_fd,
            tuple(self.kicks),
        )

    def start(self) -> None:
        """Takes the rings, whose heads are filled in now, and posts buffers in all there is room for."""
        shape, length = self.shape, self._rings_len
        self.table.check()
        for queue in range(shape.tx_queues):
            at = 2 * queue * length
            self.tx.append(Path(Lender(Ring(self._rings[at : at + length], shape.ring_size)), self.kicks[queue]))
        for queue in range(shape.rx_queues):
            at = (2 * queue + 1) * length
            self.rx.append(Poster(Ring(self._rings[at : at + length], shape.ring_size)))
            self._post(queue)

    def close(self) -> None:
        """Frees everything."""
        for fd in [self.rings_fd, self.table_fd, *self.kicks, *(fd for fd, _ in self.regions)]:
            os.close(fd)

    # ---- shortcuts ----------------------------------------------------------

    def add_outgoing(self, number: int, rings: Iterable[Ring]) -> None:
        """Has a shortcut's rings as a sender; it uses them when the table says so."""
        self.outgoing[number] = [Lender(ring) for ring in rings]

    def add_incoming(self, number: int, epoch: int, rings: Iterable[Ring], regions: dict[int, memoryview]) -> None:
        """Has a shortcut's rings as a receiver, and its sender's memory."""
        borrowers = [Borrower(ring) for ring in rings]
        taken, told = [False] * len(borrowers), self.table.incoming(number)
        self.incoming[number] = Incoming(number, epoch, borrowers, taken, told)
        self.mapped |= regions

    def drop_outgoing(self, number: int) -> bool:
        """What DROP asks of a sender: whether no queue uses the shortcut, and all that was lent is back."""
        self.idle_burst()
        self.reclaim()
        used = any(number in path.by_shortcut for path in self.tx)
        if used or any(lender.lent for lender in self.outgoing[number]):
            return False
        del self.outgoing[number]
        return True

    def drop_incoming(self, number: int) -> bool:
        """What DROP asks of a receiver: whether its rings are empty."""
        self.poll()
        shortcut = self.incoming[number]
        if any(ring.pending for ring in shortcut.rings):
            return False
        del self.incoming[number]
        return True

    # ---- frames -------------------------------------------------------------

    def send(
        self, frames: Sequence[bytes], queue: int = 0, burst: int | None = None, *, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        """Sends `frames` in order, `burst` (default: 32) at a time. Waits for room; raises TimeoutError without."""
        deadline = time.monotonic() + timeout
        for part in chunks(frames, burst or 32):
            entries = sum(self._pieces(frame) for frame in part)
            if not until(partial(self._room, queue, entries), deadline - time.monotonic(), PAUSE):
                raise TimeoutError(f"no room for {entries} descriptors of queue {queue}")
            self._burst(queue, part)

    def idle_burst(self) -> None:
        """What net_ff does without a frame to send: each queue looks at the table, and goes over."""
        for queue in range(len(self.tx)):
            self._burst(queue, ())

    def kick(self, queue: int = 0) -> None:
        """Wakes the switch, whether it wants that or not."""
        os.eventfd_write(self.kicks[queue], 1)
        self._kicked += 1

    def poll(self) -> int:
        """Takes what has come, on every queue; returns how many frames wait for `receive`."""
        # in this order: what lies before these was sent before anything that the table does not tell yet
        limits = [(poster.taken + poster.ready()) & MASK32 for poster in self.rx]
        _ = self.table.generation
        for shortcut in self.incoming.values():
            shortcut.told = self.table.incoming(shortcut.number)
        self._take_up_to_open()
        for shortcut in self.incoming.values():
            if shortcut.told.state == CLOSING:
                self._take_rings(shortcut)
        for shortcut in self.incoming.values():
            if shortcut.told.state == OPENING:
                self._take_rings(shortcut)
        for queue, limit in enumerate(limits):
            self._take_until(queue, limit)
            self._post(queue)
        return len(self._received)

    def receive(self, queue: int | None = None) -> list[bytes]:
        """The frames that have come so far (on one queue; default: on all, as they came), each once."""
        self.poll()
        taken = [frame for number, frame in self._received if queue in {None, number}]
        self._received = [item for item in self._received if queue not in {None, item[0]}]
        return taken

    def wait_received(self, n: int, timeout: float = DEFAULT_TIMEOUT) -> list[bytes]:
        """Waits for at least n frames; returns all that have come. Raises TimeoutError, which says how many came."""
        if not until(lambda: self.poll() >= n, timeout, PAUSE):
            raise TimeoutError(f"timed out waiting for frame {self.poll() + 1} of {n}")
        return self.receive()

    def reclaim(self) -> None:
        """Takes back the buffers that nobody reads any more."""
        for lender in self._lenders():
            self._free.extend(buffer._replace(len=self.shape.buffer) for buffer in lender.reclaim())

    @property
    def lent(self) -> int:
        """Descriptors that have not come back."""
        self.reclaim()
        return sum(len(lender.lent) for lender in self._lenders())

    @property
    def stats(self) -> Stats:
        return Stats(
            sum(path.switch.packets for path in self.tx),
            sum(path.switch.bytes for path in self.tx),
            sum(poster.packets for poster in self.rx),
            sum(poster.bytes for poster in self.rx),
            self._kicked,
        )

    # ---- inside -------------------------------------------------------------

    def _lenders(self) -> list[Lender]:
        return [path.switch for path in self.tx] + [lender for rings in self.outgoing.values() for lender in rings]

    def _pieces(self, frame: bytes) -> int:
        return -(-len(frame) // self.shape.segment)

    def _room(self, queue: int, entries: int) -> bool:
        self.reclaim()
        # a marker may come in front of the frames
        rings = [self.tx[queue].switch, *(rings[queue] for rings in self.outgoing.values())]
        return min(len(lender.free) for lender in rings) > entries + len(self.outgoing) <= len(self._free)

    def _burst(self, queue: int, frames: Iterable[bytes]) -> None:
        path = self.tx[queue]
        ways = self._ways(queue)
        for frame in frames:
            number = ways.get(frame[:6])
            lender = path.switch if number is None else self.outgoing[number][queue]
            lender.put(self._write(frame))
        # what goes by the switch first: a marker is not to be late
        path.switch.publish()
        for number in ways.values():
            self.outgoing[number][queue].publish()
        if path.switch.wants_kick():
            self.kick(queue)

    def _ways(self, queue: int) -> dict[bytes, int]:
        """Steps 3 and 2 of CHANGE OF PATH: which shortcut the burst takes, by address."""
        path = self.tx[queue]
        ways, epochs = {}, {}
        for entry in self.table.out():
            if entry.number in self.outgoing:
                ways[entry.mac], epochs[entry.number] = entry.number, entry.epoch
        for number, epoch in epochs.items():
            if path.by_shortcut.get(number) != epoch:
                path.switch.put_marker(epoch, number)
        path.by_shortcut = epochs
        return ways

    def _write(self, frame: bytes) -> list[Buffer]:
        buffers = []
        for start in range(0, len(frame), self.shape.segment):
            part = frame[start : start + self.shape.segment]
            buffer = self._free.popleft()._replace(len=len(part))
            self.mapped[buffer.region][buffer.offset : buffer.offset + len(part)] = part
            buffers.append(buffer)
        return buffers

    def _post(self, queue: int) -> None:
        poster = self.rx[queue]
        while poster.room and self._free:
            poster.post(self._free.popleft())
        poster.publish()

    def _read(self, pieces: Iterable[Buffer]) -> bytes:
        return b"".join(self.mapped[piece.region][piece.offset : piece.offset + piece.len] for piece in pieces)

    def _take_until(self, queue: int, limit: int) -> None:
        """Takes what came by the switch, up to an index; nothing when it has come that far."""
        poster = self.rx[queue]
        if (limit - poster.taken) & MASK32 > poster.ring.size:
            return
        while poster.taken != limit:
            buffers = poster.take()
            self._received.append((queue, self._read(buffers)))
            self._free.extend(buffer._replace(len=self.shape.buffer) for buffer in buffers)

    def _take_up_to_open(self) -> None:
        """Takes what came before a ring was opened, for all rings that are open and were not taken from yet."""
        for shortcut in self.incoming.values():
            for ring, taken in enumerate(shortcut.taken):
                if not taken and shortcut.may_take(ring):
                    for queue, at in enumerate(shortcut.told.start(ring, len(self.rx))):
                        self._take_until(queue, at)

    def _take_rings(self, shortcut: Incoming) -> None:
        """Empties the rings of a shortcut that are open."""
        for number, ring in enumerate(shortcut.rings):
            if not shortcut.may_take(number):
                continue
            shortcut.taken[number] = True
            while (descs := ring.take()) is not None:
                frame = self._read(Buffer(desc.region, desc.offset, desc.len) for desc in descs)
                self._received.append((number % len(self.rx), frame))
                for desc in descs:
                    ring.give(desc.slot)
