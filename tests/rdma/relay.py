# SPDX-License-Identifier: Apache-2.0
"""The underlay between guests: a switch by MAC, whose loss, delay and cuts the test controls.

A thread of its own moves the frames, so that nothing a test does holds them up.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
import select
import socket
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Self

FRAME_MAX = 65536 + 64
BURST = 64  # frames from one guest before the others have their turn
QUEUE_MAX = 4096  # frames that wait for a guest which does not read
BUFFER_BYTES = 4 << 20
ROCE, VXLAN = 4791, 4789  # UDP ports


@dataclass(slots=True)
class Wire:
    """One direction between two guests. All that a test sets holds for the next frame."""

    loss: float = 0.0  # of the frames, drawn from the relay's seed
    delay: float = 0.0  # seconds
    cut: bool = False
    refused: frozenset[int] = frozenset()  # UDP destination ports whose frames are lost
    slow: dict[int, float] = field(default_factory=dict)  # more seconds for frames to these UDP ports
    due: float = 0.0  # when the last frame so far is delivered: none overtakes another when `delay` shrinks
    lost: int = 0  # frames, by `loss`, `cut` or `refused`
    overflowed: int = 0  # frames that the receiver's queue had no room for
    # When the first frame to a UDP port went on its way (time.monotonic) since a test emptied this; 0 for all else.
    first: dict[int, float] = field(default_factory=dict)
    # What was delivered or is on its way, by UDP destination port; 0 for all else.
    frames: Counter[int] = field(default_factory=Counter)
    bytes: Counter[int] = field(default_factory=Counter)


class Plug:
    """One guest's end: `socket` is for the guest."""

    def __init__(self, name: str, mac: str) -> None:
        self.name = name
        self.mac = bytes.fromhex(mac.replace(":", ""))
        self.ours, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (self.ours, self.socket):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self.ours.setblocking(False)
        self.waiting: deque[bytes] = deque()

    def close(self) -> None:
        """Close both ends."""
        self.ours.close()
        self.socket.close()


class Relay:
    """Moves frames between its plugs inside `with`."""

    def __init__(self, macs: dict[str, str], seed: int = 0) -> None:
        """`macs` names the plugs."""
        self.plugs = {name: Plug(name, mac) for name, mac in macs.items()}
        self.wires = {pair: Wire() for pair in itertools.permutations(macs, 2)}
        self._random = random.Random(seed)
        self._by_mac = {plug.mac: plug for plug in self.plugs.values()}
        self._late: list[tuple[float, int, Plug, bytes]] = []  # a heap by time
        self._numbers = itertools.count()
        self._end = os.eventfd(0)
        self._thread = threading.Thread(target=self._run, name="relay")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        os.eventfd_write(self._end, 1)
        self._thread.join()
        os.close(self._end)
        for plug in self.plugs.values():
            plug.close()

    # ---- what a test does with it -----------------------------------------------

    def between(self, left: str, right: str) -> tuple[Wire, Wire]:
        """Both directions."""
        return self.wires[left, right], self.wires[right, left]

    def impair(self, *, loss: float = 0.0, delay: float = 0.0) -> None:
        """Give every wire this loss and delay (seconds)."""
        for wire in self.wires.values():
            wire.loss, wire.delay = loss, delay

    def cut(self, *names: str) -> None:
        """Cut the wires to and from these guests; all without a name."""
        for pair, wire in self.wires.items():
            wire.cut = wire.cut or not names or not set(names).isdisjoint(pair)

    def refuse(self, *ports: int) -> None:
        """Lose the frames to these UDP ports on every wire, and no others."""
        for wire in self.wires.values():
            wire.refused = frozenset(ports)

    def slow(self, port: int, delay: float) -> None:
        """Let others overtake the frames to this UDP port, on every wire."""
        for wire in self.wires.values():
            wire.slow = {port: delay}

    def heal(self) -> None:
        """Undo what `cut`, `refuse`, `slow` and `impair` did."""
        for wire in self.wires.values():
            wire.cut, wire.refused, wire.loss, wire.delay, wire.slow = False, frozenset(), 0.0, 0.0, {}

    # ---- its thread -------------------------------------------------------------

    def _run(self) -> None:
        poll = select.epoll()
        poll.register(self._end, select.EPOLLIN)
        plugs = {plug.ours.fileno(): plug for plug in self.plugs.values()}
        for number in plugs:
            poll.register(number, select.EPOLLIN)
        buffer = memoryview(bytearray(FRAME_MAX))
        with poll:
            while True:
                timeout = max(0.0, self._late[0][0] - time.monotonic()) if self._late else None
                for number, event in poll.poll(timeout):
                    if number == self._end:
                        return
                    plug = plugs[number]
                    if event & select.EPOLLOUT:
                        self._flush(plug)
                    if event & select.EPOLLIN:
                        self._receive(plug, buffer)
                while self._late and self._late[0][0] <= time.monotonic():
                    _, _, plug, frame = heapq.heappop(self._late)
                    self._send(plug, frame)
                for number, plug in plugs.items():
                    poll.modify(number, select.EPOLLIN | (select.EPOLLOUT if plug.waiting else 0))

    def _receive(self, plug: Plug, buffer: memoryview) -> None:
        for _ in range(BURST):
            try:
                length = plug.ours.recv_into(buffer)
            except (BlockingIOError, ConnectionResetError):  # nothing more; or that guest is gone
                return
            frame = buffer[:length]
            receiver = self._by_mac.get(bytes(frame[:6]))
            for other in [receiver] if receiver else self.plugs.values():
                if other is not plug:
                    self._forward(self.wires[plug.name, other.name], other, frame)

    def _forward(self, wire: Wire, receiver: Plug, frame: memoryview) -> None:
        # each frame has its draw, so that a cut does not change the fate of those after it
        port = udp_port(frame)
        if self._random.random() < wire.loss or wire.cut or port in wire.refused:
            wire.lost += 1
            return
        if len(receiver.waiting) >= QUEUE_MAX:
            wire.overflowed += 1
            return
        wire.frames[port] += 1
        wire.bytes[port] += len(frame)
        now = time.monotonic()
        wire.first.setdefault(port, now)
        wire.due = max(wire.due, now + wire.delay)
        due = wire.due + wire.slow.get(port, 0.0)
        if due > now:
            heapq.heappush(self._late, (due, next(self._numbers), receiver, bytes(frame)))
        else:
            self._send(receiver, frame)

    def _send(self, plug: Plug, frame: memoryview | bytes) -> None:
        if plug.waiting:
            plug.waiting.append(bytes(frame))
            return
        try:
            plug.ours.send(frame)
        except BlockingIOError:
            plug.waiting.append(bytes(frame))
        except ConnectionError:  # that guest is gone
            pass

    def _flush(self, plug: Plug) -> None:
        waiting, plug.waiting = plug.waiting, deque()
        while waiting:
            try:
                plug.ours.send(waiting[0])
            except BlockingIOError:
                break
            except ConnectionError:
                pass
            waiting.popleft()
        plug.waiting = waiting


def udp_port(frame: memoryview | bytes) -> int:
    """The destination port of an untagged frame with UDP over IP, unfragmented and without options; else 0."""
    ethertype = frame[12:14]
    if ethertype == b"\x08\x00" and frame[14] == 0x45 and frame[23] == socket.IPPROTO_UDP:
        return int.from_bytes(frame[36:38])
    if ethertype == b"\x86\xdd" and frame[20] == socket.IPPROTO_UDP:
        return int.from_bytes(frame[56:58])
    return 0
