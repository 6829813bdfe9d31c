# SPDX-License-Identifier: Apache-2.0
"""virtio-net queues over a ring: frames out (TxQueue) and frames in (RxQueue). Virtio 1.2, 5.1."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from itertools import islice

from tests.frontend.memory import SharedMemory
from tests.frontend.protocol import FrontEndError
from tests.frontend.vring import Buffer, Ring

NUM_BUFFERS = struct.Struct("<H")
NUM_BUFFERS_AT = 10  # 5.1.6: struct virtio_net_hdr, the last field


class TxQueue:
    """5.1.6.2 "Packet Transmission". Buffers are `segment` bytes, one descriptor each."""

    def __init__(self, memory: SharedMemory, ring: Ring, header_len: int, segment: int, buffers: int) -> None:
        self.ring = ring
        self._view = memory.view
        self._header = bytes(header_len)
        self._segment = segment
        base = memory.alloc(buffers * segment, 64)
        self._buffers = buffers
        self._free = deque(base + i * segment for i in range(buffers))
        self._out: dict[int, list[int]] = {}  # by chain id: its buffers
        self.packets = self.bytes = 0

    @property
    def pending(self) -> int:
        """Frames that the device has not used yet, as far as we have looked."""
        return len(self._out)

    def segments(self, frame: bytes) -> int:
        return -(-(len(self._header) + len(frame)) // self._segment)

    def room(self, frames: Sequence[bytes]) -> bool:
        """Whether all of `frames` fit now. Raises ValueError when they never will."""
        counts = [self.segments(frame) for frame in frames]
        entries, buffers = sum(map(self.ring.needed, counts)), sum(counts)
        if entries > self.ring.size or buffers > self._buffers:
            raise ValueError(
                f"a burst of {len(frames)} frames needs {entries} descriptors and {buffers} buffers: "
                f"the ring has {self.ring.size} and {self._buffers}"
            )
        return entries <= self.ring.free and buffers <= len(self._free)

    def put(self, frames: Sequence[bytes], header: bytes | None = None) -> None:
        """Writes frames, each behind a virtio-net header (default: zeros), and publishes them at once. Needs room."""
        segment, view = self._segment, self._view
        for frame in frames:
            data = (self._header if header is None else header) + frame
            chain, offsets = [], []
            for start in range(0, len(data), segment):
                part = data[start : start + segment]
                offset = self._free.popleft()
                view[offset : offset + len(part)] = part
                offsets.append(offset)
                chain.append(Buffer(offset, len(part)))
            self._out[self.ring.add(chain, writable=False)] = offsets
            self.bytes += len(frame)
        self.packets += len(frames)
        self.ring.publish()

    def reap(self) -> int:
        """Takes back what the device has used; returns how many frames."""
        done = self.ring.take_used()
        for ident, _ in done:
            self._free.extend(self._out.pop(ident))
        return len(done)


class RxQueue:
    """5.1.6.3 "Setting Up Receive Buffers" and 5.1.6.4 "Processing of Incoming Packets".

    The ring is kept full of buffers of `buffer` bytes, each a chain of descriptors of up to `segment` bytes.
    `headers` are the virtio-net headers of the last frames that came, as many as the ring has descriptors.
    """

    def __init__(
        self, memory: SharedMemory, ring: Ring, header_len: int, segment: int, *, buffer: int, mergeable: bool
    ) -> None:
        self.ring = ring
        self._view = memory.view
        self._header_len = header_len
        self._mergeable = mergeable
        self._chains: dict[int, list[Buffer]] = {}
        self.headers: deque[bytes] = deque(maxlen=ring.size)
        self._used: deque[tuple[list[Buffer], int]] = deque()  # taken, but their frame is not complete
        self.packets = self.bytes = 0
        lengths = [min(segment, buffer - start) for start in range(0, buffer, segment)]
        while self.ring.free >= self.ring.needed(len(lengths)):
            base = memory.alloc(buffer, 64)
            self._post([Buffer(base + i * segment, length) for i, length in enumerate(lengths)])
        self.ring.publish()

    def poll(self) -> list[bytes]:
        """Takes the frames that have come, and gives their buffers back by one index update."""
        done = self.ring.take_used()
        if not done:
            return []
        self._used.extend((self._chains.pop(ident), length) for ident, length in done)
        frames = []
        while self._used:
            count = self._num_buffers(self._used[0][0][0])
            if count > len(self._used):
                break
            parts = [self._take(*self._used.popleft()) for _ in range(count)]
            frames.append((parts[0] if count == 1 else b"".join(parts))[self._header_len :])
            self.headers.append(parts[0][: self._header_len])
        self.ring.publish()
        self.packets += len(frames)
        self.bytes += sum(map(len, frames))
        return frames

    def _num_buffers(self, first: Buffer) -> int:
        if not self._mergeable:
            return 1
        count = int(NUM_BUFFERS.unpack_from(self._view, first.offset + NUM_BUFFERS_AT)[0])
        if not 1 <= count <= self.ring.size:
            raise FrontEndError(f"num_buffers is {count}")
        return count

    def _take(self, chain: list[Buffer], length: int) -> bytes:
        # A chain's buffers are adjacent in memory.
        total = sum(buffer.length for buffer in chain)
        if length > total:
            raise FrontEndError(f"{length} bytes used of a buffer of {total}")
        offset = chain[0].offset
        data = bytes(self._view[offset : offset + length])
        self._post(chain)
        return data

    def _post(self, chain: list[Buffer]) -> None:
        self._chains[self.ring.add(chain, writable=True)] = chain


def chunks(frames: Sequence[bytes], size: int) -> list[list[bytes]]:
    """Cuts `frames` into lists of `size`, the last one shorter."""
    rest = iter(frames)
    return [part for _ in range(0, len(frames), size) if (part := list(islice(rest, size)))]
