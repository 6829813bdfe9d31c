# SPDX-License-Identifier: Apache-2.0
"""A connection to a container: whole messages with file descriptors, in asyncio's thread, without a task of its own."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence

from vswitch.slowpath.memory import wire

# Messages taken before others get their turn.
_BURST = 32
# Messages that wait for a container which reads none: a mesh of neighbours with many regions has some hundred.
_BACKLOG_MAX = 8192
_CREDENTIALS = struct.Struct("3i")


class ChannelError(Exception):
    """The connection is of no more use; str() says why, "" when the container just left."""


def close_all(fds: Sequence[int]) -> None:
    """Close each."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


class Channel:
    """Calls `on_message` with each message and its file descriptors, which are then the callee's; `on_end` once.

    After `on_end`, or after `close`, nothing is called any more, and no file descriptor is held.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[wire.Message, list[int]], None],
        on_end: Callable[[str], None],
    ) -> None:
        """Takes `sock` over."""
        self._sock = sock
        self._on_message, self._on_end = on_message, on_end
        self._loop = asyncio.get_running_loop()
        self._backlog: deque[tuple[bytes, list[int]]] = deque()
        self._open = True
        sock.setblocking(False)
        self._loop.add_reader(sock, self._readable)

    def peer(self) -> str:
        """Who is at the other end, for the log."""
        raw = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(raw)
        return f"process {pid} of user {uid}"

    def send(self, message: wire.Message, fds: Sequence[int] = ()) -> None:
        """Put a message on its way, with duplicates of `fds`. Nothing happens once the connection has ended."""
        if not self._open:
            return
        data = wire.encode(message)
        if not self._backlog and self._send_now(data, fds):
            return
        if len(self._backlog) >= _BACKLOG_MAX:
            # Not from within: the caller is in the middle of something.
            self._loop.call_soon(self._end, "it takes no messages")
            return
        if not self._backlog:
            self._loop.add_writer(self._sock, self._writable)
        self._backlog.append((data, [os.dup(fd) for fd in fds]))

    def _send_now(self, data: bytes, fds: Sequence[int]) -> bool:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            pass  # it left: what is readable says so
        return True

    def _writable(self) -> None:
        while self._backlog:
            data, fds = self._backlog[0]
            if not self._send_now(data, fds):
                return
            self._backlog.popleft()
            close_all(fds)
        self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        for _ in range(_BURST):
            if not self._open:
                return
            try:
                received = self._receive()
            except ChannelError as error:
                self._end(str(error))
                return
            if received is None:
                return
            self._on_message(*received)

    def _receive(self) -> tuple[wire.Message, list[int]] | None:
        """The next message, None when there is none now. Raises ChannelError, and then holds no descriptor of it."""
        room = socket.CMSG_SPACE(wire.FDS_MAX * array.array("i").itemsize)
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(wire.SIZE + 1, room, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except OSError:
            raise ChannelError("") from None
        fds = array.array("i")
        for level, kind, value in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(value[: len(value) - len(value) % fds.itemsize])
        try:
            if not data:
                raise ChannelError("")
            if flags & socket.MSG_CTRUNC:
                raise ChannelError(f"it sent a message with more than {wire.FDS_MAX} file descriptors")
            return wire.decode(data), fds.tolist()
        except wire.WireError as error:
            close_all(fds)
            raise ChannelError(f"it sent {error}") from None
        except ChannelError:
            close_all(fds)
            raise

    def _end(self, why: str) -> None:
        if self._open:
            self.close()
            self._on_end(why)

    def close(self) -> None:
        """Close the connection, after what the socket has taken; what waits behind it is thrown away."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        for _, fds in self._backlog:
            close_all(fds)
        self._backlog.clear()
        self._sock.close()
