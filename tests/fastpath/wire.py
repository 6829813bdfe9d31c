# SPDX-License-Identifier: Apache-2.0
"""Network interfaces for ports on poll mode drivers: veth pairs, and raw sockets at their other end."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Self

ETH_P_ALL = 3
PACKET_OUTGOING = 4
TIMEOUT = 10.0
_numbers = count()


def name() -> str:
    """An interface name that no other test process uses (at most 15 characters)."""
    return f"ff{os.getpid()}x{next(_numbers)}"


@contextlib.contextmanager
def veth() -> Iterator[tuple[str, str]]:
    """A veth pair, up on both ends and silent (no IPv6 on it)."""
    left, right = name(), name()
    _ip("link", "add", left, "type", "veth", "peer", "name", right)
    try:
        for end in (left, right):
            up(end)
        yield left, right
    finally:
        # The driver may have taken it along.
        subprocess.run(["ip", "link", "del", left], check=False, capture_output=True)


def up(interface: str, mtu: int = 1500) -> None:
    Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6").write_text("1")
    _ip("link", "set", interface, "up", "mtu", str(mtu))


def down(interface: str) -> None:
    _ip("link", "set", interface, "down")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Wire:
    """A raw socket on an interface. Only frames from locally administered sources of ours are looked at."""

    def __init__(self, interface: str) -> None:
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._sock.bind((interface, ETH_P_ALL))
        self._sock.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._sock.close()

    def send(self, frames: list[bytes]) -> None:
        for frame in frames:
            self._sock.send(frame)

    def receive(self, n: int) -> list[bytes]:
        """Waits for n frames that came in on the interface."""
        frames: list[bytes] = []
        deadline = time.monotonic() + TIMEOUT
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        while len(frames) < n:
            assert poller.poll(max(deadline - time.monotonic(), 0) * 1000), f"{len(frames)} of {n} frames came"
            with contextlib.suppress(BlockingIOError):
                while len(frames) < n:
                    frame, (_, _, kind, _, _) = self._sock.recvfrom(65536)
                    if kind != PACKET_OUTGOING and frame[6:8] == b"\x02\x00":
                        frames.append(frame)
        return frames
