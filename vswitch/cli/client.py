# SPDX-License-Identifier: Apache-2.0
"""The client side of ffswitchd's control socket: JSON-RPC 2.0, one object a line."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SOCKET_NAME = "ffswitch.sock"
INVALID_PARAMS = -32602
ANSWER_WITHIN = 30.0  # seconds; every method answers at once but those that are told to wait
_CHUNK = 1 << 16

Params = Mapping[str, object]


class ClientError(Exception):
    """No answer can be had; the text is one line for people."""


class RpcError(Exception):
    """The daemon refused; the text is its own line for people."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Client:
    """One connection to the daemon. Use it in a `with` block."""

    def __init__(self, run_dir: Path) -> None:
        """Connect; ClientError says why that failed and what to do."""
        path = run_dir / SOCKET_NAME
        self._path = path
        self._buffer = bytearray()
        self._last_id = 0
        self._hung_up = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_WITHIN)
        try:
            self._socket.connect(os.fspath(path))
        except OSError as error:
            self._socket.close()
            raise ClientError(_why_not_connected(path, error)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def call(self, method: str, params: Params | None = None, wait: float | None = ANSWER_WITHIN) -> Any:
        """Return the result of `method`; `wait` is how many seconds its answer may take, None = for ever.

        Raises RpcError when the daemon refuses, ClientError when it does not answer.
        """
        self._request(method, params or {})
        while True:
            message = self._message(wait)
            if "method" not in message:
                return message.get("result")

    def stream(self, method: str, params: Params) -> Iterator[Any]:
        """Yield the params of each notification that the daemon sends before the result, or until hang_up()."""
        self._request(method, params)
        while True:
            try:
                message = self._message(None)
            except ClientError:
                if self._hung_up:
                    return
                raise
            if "method" not in message:
                return
            yield message.get("params")

    def raw(self) -> Iterator[bytes]:
        """Yield the bytes that follow the last result, until the daemon closes the connection."""
        self._socket.settimeout(None)
        if self._buffer:
            yield bytes(self._buffer)
            self._buffer.clear()
        while True:
            try:
                data = self._socket.recv(_CHUNK)
            except ConnectionError:
                return
            if not data:
                return
            yield data

    def hang_up(self) -> None:
        """Tell the daemon that this is enough: it sends what it still has, and a stream() or raw() ends.

        A second call does not wait for that. Safe in a signal handler.
        """
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR if self._hung_up else socket.SHUT_WR)
        self._hung_up = True

    @property
    def hung_up(self) -> bool:
        """Whether hang_up() was called."""
        return self._hung_up

    @contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """Have ^C, SIGTERM and SIGHUP hang up within the `with` block, so that output is cut at no odd place."""
        stop = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, lambda *_: self.hang_up()) for number in stop}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _request(self, method: str, params: Params) -> None:
        self._last_id += 1
        request = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": dict(params)}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError:
            # A daemon that refuses a request unread says why and hangs up: what it said can be read.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)

    def _message(self, wait: float | None) -> dict[str, Any]:
        self._socket.settimeout(wait)
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            try:
                data = self._socket.recv(_CHUNK)
            except TimeoutError:
                raise ClientError(
                    f"no answer from ffswitchd on {self._path} in {wait:g} s; look at its log, restart it if it hangs"
                ) from None
            except ConnectionError:
                data = b""
            if not data:
                raise ClientError(f"ffswitchd hung up on {self._path} without an answer; if it ended, its log says why")
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise ClientError(f"what answers on {self._path} is not ffswitchd; is the run directory right?")
        if error := message.get("error"):
            raise RpcError(int(error.get("code", 0)), str(error.get("message", "the daemon gave no reason")))
        return message


def _why_not_connected(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return f"ffswitchd is not running: nobody listens on {path}; start ffswitchd, or name its --run-dir"
    if isinstance(error, PermissionError):
        return f"no permission for {path}; run this as root or as a member of the socket's group"
    if isinstance(error, TimeoutError):
        return f"ffswitchd does not accept connections on {path}; look at its log, restart it if it hangs"
    # A path that is too long has no errno.
    return f"cannot connect to {path}: {error.strerror or error}; name another --run-dir"
