# SPDX-License-Identifier: Apache-2.0
"""Numbered frames of several flows between the endpoints of two `FastPathHost`s, a window of them on their way."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from tests.frontend import FrontEnd

FLOWS = 8
BURST = 8
MACS = bytes.fromhex("0200000000bb0200000000aa")
SECONDS = 60.0
_PAYLOAD = struct.Struct("!HI")  # flow, number


def frame(flow: int, number: int) -> bytes:
    """A UDP packet of a flow; by VXLAN each flow has a source port of its own."""
    payload = _PAYLOAD.pack(flow, number)
    udp = struct.pack("!HHHH", 1000 + flow, 2000, 8 + len(payload), 0) + payload
    addresses = bytes([10, 0, 0, 1, 10, 0, 0, 2])
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(payload), 0, 0, 64, 17, 0) + addresses
    return MACS + b"\x08\x00" + ip + udp


def read(data: bytes) -> tuple[int, int]:
    """A frame's flow and number."""
    flow, number = _PAYLOAD.unpack_from(data, 42)
    return flow, number


class Sender:
    """Sends bursts, as long as less than `window` frames are not acknowledged."""

    def __init__(self, front: FrontEnd, window: int) -> None:
        self._front, self._window = front, window
        self._acknowledged = self.sent = 0

    def burst(self) -> None:
        """Send one more burst."""
        while self.sent + BURST - self._acknowledged > self._window:
            self._listen(self._front.wait_received(1, SECONDS))
        numbers = range(self.sent, self.sent + BURST)
        self._front.send([frame(number % FLOWS, number // FLOWS) for number in numbers])
        self.sent += BURST
        self._listen(self._front.receive())

    def until(self, condition: Callable[[], bool]) -> None:
        """Send until it holds, and one burst at least."""
        self.burst()
        while not condition():
            self.burst()

    def finish(self) -> None:
        """Wait until all is acknowledged, and say so."""
        while self._acknowledged < self.sent:
            self._listen(self._front.wait_received(1, SECONDS))
        self._front.send([frame(FLOWS, 0)])
        self._front.flush()

    def _listen(self, frames: list[bytes]) -> None:
        for data in frames:
            self._acknowledged = read(data)[1]


def receive(front: FrontEnd) -> dict[str, int]:
    """Acknowledge what comes until the sender has finished; return what was wrong with it."""
    expected = [0] * FLOWS
    seen: set[tuple[int, int]] = set()
    found = {"reordered": 0, "duplicated": 0, "received": 0}
    for flow, number in _numbers(front):
        found["received"] += 1
        found["duplicated"] += (flow, number) in seen
        found["reordered"] += number < expected[flow]
        seen.add((flow, number))
        expected[flow] = max(expected[flow], number + 1)
    return found | {"lost": sum(expected) - len(seen)}


def _numbers(front: FrontEnd) -> Iterator[tuple[int, int]]:
    count = 0
    while True:
        for data in front.wait_received(1, SECONDS):
            flow, number = read(data)
            if flow == FLOWS:
                return
            count += 1
            yield flow, number
        front.send([frame(0, count)])
