# SPDX-License-Identifier: Apache-2.0
"""`FrontEnd`: one virtio-net device's driver, as a container's virtio-user is for the switch.

Nothing runs in the background: frames are sent and taken by the caller's
thread, which waits, always with a deadline, on the call eventfds.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.frontend.memory import SharedMemory
from tests.frontend.packed import PackedRing
from tests.frontend.protocol import (
    VRING_ADDR,
    VRING_STATE,
    Channel,
    Feature,
    FrontEndError,
    ProtocolFeature,
    Request,
    mem_table,
)
from tests.frontend.queues import RxQueue, TxQueue, chunks
from tests.frontend.vring import DESC_LEN, Ring, SplitRing

DEFAULT_TIMEOUT = 30.0  # a loaded machine may stand still for 10 s
# The largest chain that goes into an indirect table: 64 KB in buffers of 2 KB, and some.
INDIRECT_LEN = 64
NO_FEATURES = Feature(0)


@dataclass(slots=True)
class Stats:
    """Frames and bytes (without virtio headers) of all queues, and the notifications sent."""

    tx_packets: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    rx_bytes: int = 0
    kicks: int = 0


@dataclass(slots=True)
class Vring:
    """One ring with its eventfds; its index is 2 * queue for receive, + 1 for transmit (virtio 5.1.2)."""

    ring: Ring
    kick: int
    call: int


class FrontEnd:
    """A vhost-user front-end with `queues` queue pairs.

    server: it listens on `path`, from construction on, and the back-end connects (the
    switch's default); otherwise it connects itself. Ring sizes are descriptors; `segment`
    is the bytes that one descriptor covers, `rx_buffer` the bytes of one receive buffer.
    `tx_buffers` > tx_ring makes sense with `indirect` only. `features` are further virtio
    features to accept when offered; `modern` is VERSION_1, without which the header has 10
    bytes unless `mergeable`. `mac` is for the caller's use: vhost-user does not carry it.
    """

    def __init__(
        self,
        path: Path | str,
        server: bool = True,
        queues: int = 1,
        mergeable: bool = True,
        mac: str = "",
        *,
        packed: bool = False,
        indirect: bool = False,
        modern: bool = True,
        rx_ring: int = 256,
        tx_ring: int = 256,
        tx_buffers: int = 0,
        segment: int = 2048,
        rx_buffer: int = 2048,
        features: Feature = NO_FEATURES,
    ) -> None:
        self.path = Path(path)
        self.server = server
        self.queues = queues
        self.mac = mac
        self.wanted = features | Feature.PROTOCOL_FEATURES
        for bit, want in (
            (Feature.MRG_RXBUF, mergeable),
            (Feature.MQ, queues > 1),
            (Feature.RING_PACKED, packed),
            (Feature.INDIRECT_DESC, indirect),
            (Feature.VERSION_1, modern or packed),
        ):
            self.wanted |= bit if want else NO_FEATURES
        self.rx_ring, self.tx_ring = rx_ring, tx_ring
        self.tx_buffers = tx_buffers or tx_ring
        self.segment, self.rx_buffer = segment, rx_buffer
        self.features = NO_FEATURES  # negotiated
        self.memory: SharedMemory | None = None
        self.rx: list[RxQueue] = []
        self.tx: list[TxQueue] = []
        self.vrings: list[Vring] = []
        self._received: list[list[bytes]] = [[] for _ in range(queues)]
        self._kicks = 0
        self._channel: Channel | None = None
        self._listener: socket.socket | None = None
        _raise_fd_limit()
        if server:
            self.path.unlink(missing_ok=True)
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            self._listener.bind(str(self.path))
            self._listener.listen(1)

    # ---- connection ---------------------------------------------------------

    def connect(self, timeout: float = DEFAULT_TIMEOUT) -> Self:
        """Meets the back-end and sets the device up; on return every ring is enabled.

        A second call, after a lost connection, keeps memory and rings: the new back-end
        goes on where the old one stopped, as after a restart of the switch.
        """
        deadline = time.monotonic() + timeout
        self._drop_connection()
        channel = self._channel = Channel(self._meet(deadline), timeout)
        self._negotiate(channel)
        if self.memory is None:
            self._make_rings()
        else:  # a packed ring's position is known only up to what was taken of it
            self.poll()
            for tx in self.tx:
                tx.reap()
        self.share_memory()
        for index, vring in enumerate(self.vrings):
            self._start_vring(channel, index, vring)
        for index in range(len(self.vrings)):
            channel.set_vring(Request.SET_VRING_ENABLE, index, 1)
        return self

    @property
    def connected(self) -> bool:
        """Whether the back-end still holds its end of the connection."""
        if self._channel is None:
            return False
        poller = select.poll()
        poller.register(self._channel, select.POLLRDHUP)
        return not poller.poll(0)

    def wait_disconnected(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Waits until the back-end has closed the connection. Raises TimeoutError."""
        if self._channel is None:
            return
        poller = select.poll()
        poller.register(self._channel, select.POLLRDHUP)
        if not poller.poll(timeout * 1000):
            raise TimeoutError(f"{self.path}: the back-end is still connected after {timeout} s")

    def enable(self, queue: int, on: bool) -> None:
        """Turns both rings of one queue pair on or off (SET_VRING_ENABLE)."""
        for index in (2 * queue, 2 * queue + 1):
            self._require_channel().set_vring(Request.SET_VRING_ENABLE, index, int(on))

    def base_of(self, index: int) -> int:
        """What SET_VRING_BASE says when a connection begins."""
        return self.vrings[index].ring.base()

    def set_vring(self, request: Request, index: int, num: int) -> None:
        """Sends one message about one vring (SET_VRING_NUM, SET_VRING_BASE, ...), whether it makes sense or not."""
        self._require_channel().set_vring(request, index, num)

    def share_memory(self) -> None:
        """Sends the memory table (again): a back-end that has it maps it anew, under running rings too."""
        assert self.memory is not None
        self._require_channel().set(Request.SET_MEM_TABLE, mem_table([self.memory.region()]), [self.memory.fd])

    def close(self) -> None:
        """Stops every ring as a driver does on shutdown (GET_VRING_BASE), disconnects and frees everything."""
        if self._channel is not None and self.connected:
            # It may go away at any of these; then there is nothing left to stop.
            with contextlib.suppress(FrontEndError):
                for index in range(len(self.vrings)):
                    self._channel.call(Request.GET_VRING_BASE, VRING_STATE.pack(index, 0))
        self.kill()

    def kill(self) -> None:
        """Drops the connection without a word and frees everything, as a killed process does.

        The socket file stays behind, as it does then.
        """
        if self._listener is not None:  # first, or the back-end comes back at once
            self._listener.close()
            self._listener = None
        self._drop_connection()
        for vring in self.vrings:
            os.close(vring.kick)
            os.close(vring.call)
        self.rx, self.tx, self.vrings = [], [], []
        if self.memory is not None:
            self.memory.close()
            self.memory = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- frames -------------------------------------------------------------

    def send(
        self,
        frames: Sequence[bytes],
        queue: int = 0,
        burst: int | None = None,
        *,
        header: bytes | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        """Sends `frames` in order, `burst` (default: all) of them at a time by one index update.

        Waits for the back-end to make room; raises TimeoutError when it does not, and
        ValueError for a burst that no empty ring could hold. `header` is put before each
        frame instead of a zero virtio-net header.
        """
        tx, vring = self.tx[queue], self.vrings[2 * queue + 1]
        deadline = time.monotonic() + timeout
        for part in chunks(frames, burst or max(len(frames), 1)):
            tx.reap()
            while not tx.room(part):
                self._wait([vring], deadline, f"room for {len(part)} frames, {tx.pending} not taken yet")
                tx.reap()
            tx.put(part, header)
            if vring.ring.wants_kick():
                self.kick(queue)

    def kick(self, queue: int = 0) -> None:
        """Notifies the back-end of a transmit queue, whether it wants that or not."""
        os.eventfd_write(self.vrings[2 * queue + 1].kick, 1)
        self._kicks += 1

    def flush(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Waits until the back-end has taken everything that was sent. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        for tx, vring in zip(self.tx, self.vrings[1::2], strict=True):
            tx.reap()
            while tx.pending:
                self._wait([vring], deadline, f"{tx.pending} frames to be taken")
                tx.reap()

    def replace_kick(self, queue: int, fd: int) -> int:
        """Gives a transmit queue another descriptor to be kicked by, and returns the old one; the caller closes it."""
        index = 2 * queue + 1
        self._require_channel().set_u64(Request.SET_VRING_KICK, index, [fd])
        old, self.vrings[index].kick = self.vrings[index].kick, fd
        return old

    def poll(self) -> int:
        """Takes what has come, on every queue; returns how many frames wait for `receive`."""
        for queue, rx in enumerate(self.rx):
            self._received[queue] += rx.poll()
        return sum(map(len, self._received))

    def receive(self, queue: int | None = None) -> list[bytes]:
        """The frames that have come so far (on one queue; default: on all, queue by queue), each once."""
        self.poll()
        frames: list[bytes] = []
        for number in range(self.queues) if queue is None else [queue]:
            frames += self._received[number]
            self._received[number] = []
        return frames

    def wait_received(self, n: int, timeout: float = DEFAULT_TIMEOUT) -> list[bytes]:
        """Waits for at least n frames; returns all that have come. Raises TimeoutError, which says how many came."""
        deadline = time.monotonic() + timeout
        while (have := self.poll()) < n:
            self._wait(self.vrings[::2], deadline, f"frame {have + 1} of {n}")
        return self.receive()

    @property
    def stats(self) -> Stats:
        return Stats(
            sum(tx.packets for tx in self.tx),
            sum(tx.bytes for tx in self.tx),
            sum(rx.packets for rx in self.rx),
            sum(rx.bytes for rx in self.rx),
            self._kicks,
        )

    def call_fds(self) -> list[int]:
        """The eventfds that the back-end signals when frames have come."""
        return [vring.call for vring in self.vrings[::2]]

    # ---- inside -------------------------------------------------------------

    def _require_channel(self) -> Channel:
        if self._channel is None:
            raise FrontEndError(f"{self.path}: not connected")
        return self._channel

    def _drop_connection(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _meet(self, deadline: float) -> socket.socket:
        if self._listener is not None:
            self._listener.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                return self._listener.accept()[0]
            except TimeoutError as error:
                raise FrontEndError(f"{self.path}: no back-end has connected") from error
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(str(self.path))
        except OSError as error:
            sock.close()
            raise FrontEndError(f"{self.path}: no back-end listens: {error}") from error
        return sock

    def _negotiate(self, channel: Channel) -> None:
        channel.set(Request.SET_OWNER)
        offered = Feature(channel.get(Request.GET_FEATURES))
        if missing := self.wanted & ~offered:
            raise FrontEndError(f"{self.path}: the back-end does not offer {missing!r}")
        self.features = self.wanted
        protocol = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK
        protocol &= ProtocolFeature(channel.get(Request.GET_PROTOCOL_FEATURES))
        channel.set_u64(Request.SET_PROTOCOL_FEATURES, protocol)
        channel.reply_ack = ProtocolFeature.REPLY_ACK in protocol
        # vhost-user doc, "Multiple queue support": more than one needs the feature, and GET_QUEUE_NUM is the limit.
        limit = channel.get(Request.GET_QUEUE_NUM) if ProtocolFeature.MQ in protocol else 1
        if self.queues > limit:
            raise FrontEndError(f"{self.path}: {self.queues} queue pairs asked for, the back-end has {limit}")
        channel.set_u64(Request.SET_FEATURES, self.features)

    def _make_rings(self) -> None:
        # virtio 5.1.6.1: num_buffers is there with MRG_RXBUF or VERSION_1.
        header_len = 12 if self.features & (Feature.MRG_RXBUF | Feature.VERSION_1) else 10
        indirect = INDIRECT_LEN if Feature.INDIRECT_DESC in self.features else 0
        packed = Feature.RING_PACKED in self.features
        in_order = Feature.IN_ORDER in self.features
        event_idx = Feature.EVENT_IDX in self.features
        overhead = DESC_LEN * (2 + indirect)  # of a descriptor: in the ring, in both index areas, in its table
        pair = (self.rx_ring + self.tx_ring) * overhead + self.tx_buffers * self.segment + 4096
        pair += self.rx_ring * (max(self.segment, self.rx_buffer) + 64)
        memory = self.memory = SharedMemory(pair * self.queues)
        for _ in range(self.queues):
            rx, tx = (
                PackedRing(memory, size, indirect, in_order) if packed else SplitRing(memory, size, indirect, event_idx)
                for size in (self.rx_ring, self.tx_ring)
            )
            mergeable = Feature.MRG_RXBUF in self.features
            self.rx.append(RxQueue(memory, rx, header_len, self.segment, buffer=self.rx_buffer, mergeable=mergeable))
            self.tx.append(TxQueue(memory, tx, header_len, self.segment, self.tx_buffers))
            for ring in (rx, tx):
                flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
                self.vrings.append(Vring(ring, os.eventfd(0, flags), os.eventfd(0, flags)))

    def _start_vring(self, channel: Channel, index: int, vring: Vring) -> None:
        ring = vring.ring
        channel.set_u64(Request.SET_VRING_CALL, index, [vring.call])
        channel.set_vring(Request.SET_VRING_NUM, index, ring.size)
        channel.set_vring(Request.SET_VRING_BASE, index, self.base_of(index))
        desc, avail, used = ring.address
        channel.set(Request.SET_VRING_ADDR, VRING_ADDR.pack(index, 0, desc, used, avail, 0))
        # vhost-user doc, "Ring states": the kick starts the ring; it stays disabled until SET_VRING_ENABLE.
        channel.set_u64(Request.SET_VRING_KICK, index, [vring.kick])

    def _wait(self, vrings: Sequence[Vring], deadline: float, what: str) -> None:
        """Waits for a call on one of `vrings`; the caller looks at the rings before each time."""
        poller = select.poll()
        poller.register(self._require_channel(), select.POLLRDHUP)
        for vring in vrings:
            poller.register(vring.call, select.POLLIN)
        ready = dict(poller.poll(max(deadline - time.monotonic(), 0) * 1000))
        if not ready:
            raise TimeoutError(f"{self.path}: timed out waiting for {what}")
        clear_calls(vring.call for vring in vrings)
        if len(ready) == 1 and self._require_channel().fileno() in ready:
            raise FrontEndError(f"{self.path}: the back-end closed the connection; waited for {what}")


def wait_any(fronts: Sequence[FrontEnd], timeout: float) -> bool:
    """Waits until the back-end signals one of many front-ends; False when none within `timeout` seconds.

    Look with `poll` first: a signal that an earlier wait took is not repeated.
    """
    poller = select.poll()
    fds = [fd for front in fronts for fd in front.call_fds()]
    for fd in fds:
        poller.register(fd, select.POLLIN)
    ready = poller.poll(timeout * 1000)
    clear_calls(fd for fd, _ in ready)
    return bool(ready)


def clear_calls(fds: Iterable[int]) -> None:
    """Resets eventfds, signalled or not."""
    for fd in fds:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)


def _raise_fd_limit() -> None:
    """Lifts the soft limit of open files to the hard one: hundreds of front-ends take thousands."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
