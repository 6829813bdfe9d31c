# SPDX-License-Identifier: Apache-2.0
"""The control socket's protocol: JSON-RPC 2.0, one object a line.

Each client has its own task, so one that is slow, silent or talks nonsense
harms nobody else; what it can make the server hold is bounded.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vswitch.slowpath.errors import BadParams, SwitchError, one_line

log = logging.getLogger(__name__)

# A request may carry a whole capture for `ffswitch trace --packet`.
MAX_LINE = 16 * 2**20
MAX_CLIENTS = 256
# A client that takes nothing for so long is dropped.
WRITE_TIMEOUT_S = 30.0
# How long clients may take what is on its way to them when the server stops.
STOP_TIMEOUT_S = 1.0
# Of a long array, what is encoded before other work gets its turn.
_ARRAY_CHUNK = 256

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INTERNAL_ERROR = -32700, -32600, -32601, -32603

Params = dict[str, object]


class Client:
    """One connection, as the methods see it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def backlog(self) -> int:
        """Bytes written and not yet taken by the client."""
        return self._writer.transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        """Put bytes on their way, whatever waits already: look at `backlog` first."""
        self._writer.write(data)

    async def flush(self) -> None:
        """Wait until the client has taken most of what was written. Raises ConnectionError, also when it takes none."""
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await self._writer.drain()
        except TimeoutError:
            self.abort()
            raise ConnectionAbortedError("takes nothing") from None

    async def close(self) -> None:
        """Close, after the client has taken what is on its way."""
        self._writer.close()
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await self._writer.wait_closed()
        except (TimeoutError, ConnectionError):
            self.abort()

    def abort(self) -> None:
        """Close at once."""
        self._writer.transport.abort()

    def notify(self, method: str, params: object) -> None:
        """Send a notification (section 4.1)."""
        self.write(_encode({"jsonrpc": "2.0", "method": method, "params": params}) + b"\n")

    async def until_closed(self, ended: asyncio.Event) -> None:
        """Wait until the client closes its side or `ended` is set; what it sends meanwhile is thrown away."""
        tasks = [asyncio.ensure_future(self._closed()), asyncio.ensure_future(ended.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _closed(self) -> None:
        while await self._reader.read(65536):
            pass

    async def line(self) -> bytes | None:
        """The next line, or None at the end. Raises asyncio.LimitOverrunError."""
        try:
            return await self._reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            return error.partial or None


@dataclass(frozen=True, slots=True)
class Stream:
    """A result after which the connection carries something else than JSON-RPC, until `run` ends."""

    result: object
    run: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Method:
    """`call` gets the parameters, of which only `keys` may be given. An Iterator it returns is sent as an array."""

    call: Callable[[Params, Client], Awaitable[object]]
    keys: frozenset[str] = frozenset()


class _Refused(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def _encode(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def _error(request_id: object, code: int, message: str) -> bytes:
    error = {"code": code, "message": one_line(message)}
    return _encode({"jsonrpc": "2.0", "id": request_id, "error": error}) + b"\n"


def _request(line: bytes) -> tuple[object, bool, str, Params]:
    """(id, whether an answer is wanted, method, params) of a request's line; raises _Refused."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _Refused(PARSE_ERROR, f"the request is not JSON: {error}") from None
    if not isinstance(request, dict) or not isinstance(request.get("method"), str):
        raise _Refused(INVALID_REQUEST, "the request is not a JSON-RPC 2.0 object with a method")
    request_id = request.get("id")
    if request_id is not None and not isinstance(request_id, str | int | float):
        raise _Refused(INVALID_REQUEST, "the request's id is neither a text nor a number")
    params = request.get("params", {})
    if not isinstance(params, dict):
        raise _Refused(BadParams.code, f"{request['method']}: the parameters must be an object")
    return request_id, "id" in request, request["method"], params


class Server:
    """Serves `methods` on a Unix socket."""

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self._methods = methods
        self._clients: dict[asyncio.Task[None], Client] = {}
        self._server: asyncio.Server | None = None
        self._path: Path | None = None

    async def start(self, path: Path, mode: int = 0o660) -> None:
        """Listen at `path`; a socket that lies there is replaced. Raises OSError."""
        self._server = await asyncio.start_unix_server(self._serve, path, limit=MAX_LINE, start_serving=False)
        self._path = path
        os.chmod(path, mode)  # noqa: PTH101 (before anyone can connect, and at once)
        await self._server.start_serving()

    async def stop(self) -> None:
        """Refuse new clients, end those there are, remove the socket."""
        if self._server is None or self._path is None:
            return
        self._server.close()
        self._path.unlink(missing_ok=True)
        for task in self._clients:
            task.cancel()
        if self._clients:
            await asyncio.wait(self._clients, timeout=STOP_TIMEOUT_S)
        for client in self._clients.values():
            client.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        client = Client(reader, writer)
        try:
            if len(self._clients) < MAX_CLIENTS:
                self._clients[task] = client
                await self._converse(client)
            else:
                client.write(_error(None, SwitchError.code, f"{MAX_CLIENTS} clients are connected already: try again"))
        except ConnectionError:
            pass  # the client went away: its own affair
        finally:
            await client.close()
            self._clients.pop(task, None)

    async def _converse(self, client: Client) -> None:
        while True:
            try:
                line = await client.line()
            except asyncio.LimitOverrunError:
                client.write(_error(None, INVALID_REQUEST, f"the request has more than {MAX_LINE} bytes"))
                return
            if line is None:
                return
            if line.strip():
                stream = await self._answer(line, client)
                await client.flush()
                if stream is not None:
                    await stream.run()
                    return

    async def _answer(self, line: bytes, client: Client) -> Stream | None:
        request_id: object = None
        wanted = True
        try:
            request_id, wanted, name, params = _request(line)
            result = await self._call(name, params, client)
        except (_Refused, SwitchError) as error:
            if wanted:
                client.write(_error(request_id, error.code, str(error)))
            return None
        except ConnectionError:
            raise
        except Exception as error:
            log.exception("a request failed: %s", one_line(line[:200].decode(errors="replace")))
            if wanted:
                why = f"{type(error).__name__}: {error}"
                client.write(_error(request_id, INTERNAL_ERROR, f"internal error, see ffswitchd's log: {why}"))
            return None
        if isinstance(result, Stream):
            client.write(_encode({"jsonrpc": "2.0", "id": request_id, "result": result.result}) + b"\n")
            return result
        if isinstance(result, Iterator):
            await _send_array(client, request_id, result)
        elif wanted:
            client.write(_encode({"jsonrpc": "2.0", "id": request_id, "result": result}) + b"\n")
        return None

    async def _call(self, name: str, params: Params, client: Client) -> object:
        method = self._methods.get(name)
        if method is None:
            raise _Refused(METHOD_NOT_FOUND, f"there is no method {name[:60]!r}")
        unknown = sorted(params.keys() - method.keys)
        if unknown:
            known = ", ".join(sorted(method.keys)) or "none"
            raise BadParams(f"{name}: unknown key {unknown[0][:60]!r}: known are {known}")
        return await method.call(params, client)


async def _send_array(client: Client, request_id: object, items: Iterator[object]) -> None:
    """Send a result that may be long, bit by bit, so that it neither stalls the loop nor piles up."""
    client.write(b'{"jsonrpc":"2.0","id":' + _encode(request_id) + b',"result":[')
    separator = b""
    while chunk := list(itertools.islice(items, _ARRAY_CHUNK)):
        client.write(separator + _encode(chunk)[1:-1])
        separator = b","
        await client.flush()
        await asyncio.sleep(0)
    client.write(b"]}\n")
