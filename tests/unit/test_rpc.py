# SPDX-License-Identifier: Apache-2.0
"""The control socket: what clients may do to it, and to each other."""

import asyncio
import json
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from vswitch.slowpath import rpc
from vswitch.slowpath.errors import BadParams, SwitchError
from vswitch.slowpath.rpc import Client, Method, Params, Server, Stream

DEADLINE = 20.0


class Methods:
    """Methods that do to the server what real ones may."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.ended = asyncio.Event()

    def table(self) -> dict[str, Method]:
        return {
            "echo": Method(self.echo, frozenset({"value"})),
            "fail": Method(self.fail, frozenset({"how"})),
            "count": Method(self.count, frozenset({"n"})),
            "wait": Method(self.wait),
            "big": Method(self.big),
            "stream": Method(self.stream),
            "live": Method(self.live),
        }

    async def echo(self, params: Params, client: Client) -> object:
        return params.get("value")

    async def fail(self, params: Params, client: Client) -> object:
        match params.get("how"):
            case "words":
                raise BadParams("say\nit better")
            case "state":
                raise SwitchError("not now")
        raise RuntimeError("a defect")

    async def count(self, params: Params, client: Client) -> object:
        n = params["n"]
        assert isinstance(n, int)
        return iter(range(n))

    async def wait(self, params: Params, client: Client) -> object:
        self.entered.set()
        await self.release.wait()
        return "released"

    async def big(self, params: Params, client: Client) -> object:
        return "x" * (8 << 20)

    async def stream(self, params: Params, client: Client) -> object:
        async def run() -> None:
            client.write(b"raw bytes")
            await client.until_closed(self.release)
            client.write(b", the end")
            self.ended.set()

        return Stream({"ok": True}, run)

    async def live(self, params: Params, client: Client) -> object:
        client.notify("tick", {"n": 1})
        await client.until_closed(self.release)
        self.ended.set()
        return {"count": 1}


class Peer:
    """A client that may misbehave."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, line: bytes) -> None:
        self.writer.write(line)

    async def answer(self) -> Any:
        async with asyncio.timeout(DEADLINE):
            line = await self.reader.readuntil(b"\n")
        return json.loads(line)

    async def call(self, method: str, **params: Any) -> Any:
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        self.send(json.dumps(request).encode() + b"\n")
        return await self.answer()

    async def rest(self) -> bytes:
        async with asyncio.timeout(DEADLINE):
            return await self.reader.read()


class Bench:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.methods = Methods()
        self.server = Server(self.methods.table())
        self.peers: list[Peer] = []

    async def peer(self) -> Peer:
        peer = Peer(*await asyncio.open_unix_connection(self.path, limit=64 << 20))
        self.peers.append(peer)
        return peer


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path / "x.sock")
    await bench.server.start(bench.path)
    yield bench
    for peer in bench.peers:
        peer.writer.transport.abort()
    await bench.server.stop()


async def test_call(bench: Bench) -> None:
    peer = await bench.peer()
    assert await peer.call("echo", value="Grüße") == {"jsonrpc": "2.0", "id": 1, "result": "Grüße"}
    assert await peer.call("echo") == {"jsonrpc": "2.0", "id": 1, "result": None}


async def test_socket_is_for_owner_and_group_and_goes_at_stop(bench: Bench) -> None:
    assert stat.S_IMODE(bench.path.stat().st_mode) == 0o660
    await bench.server.stop()
    assert not bench.path.exists()


async def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    bench = Bench(path)
    await bench.server.start(path)
    assert (await (await bench.peer()).call("echo", value=1))["result"] == 1
    await bench.server.stop()


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (b"GET / HTTP/1.0", rpc.PARSE_ERROR, "not JSON"),
        (b"\x00\xff\xfe", rpc.PARSE_ERROR, "not JSON"),
        (b"[" * 100_000, rpc.PARSE_ERROR, "not JSON"),
        (b"9" * 10_000, rpc.PARSE_ERROR, "not JSON"),
        (b"[]", rpc.INVALID_REQUEST, "with a method"),
        (b'{"id": 1}', rpc.INVALID_REQUEST, "with a method"),
        (b'{"id": [], "method": "echo"}', rpc.INVALID_REQUEST, "id"),
        (b'{"id": 1, "method": "fly"}', rpc.METHOD_NOT_FOUND, "'fly'"),
        (b'{"id": 1, "method": "echo", "params": [1]}', -32602, "must be an object"),
        (b'{"id": 1, "method": "echo", "params": {"worth": 1}}', -32602, "unknown key 'worth': known are value"),
        (b'{"id": 1, "method": "fail", "params": {"how": "words"}}', -32602, "say it better"),
        (b'{"id": 1, "method": "fail", "params": {"how": "state"}}', -32000, "not now"),
        (b'{"id": 1, "method": "fail"}', rpc.INTERNAL_ERROR, "RuntimeError: a defect"),
    ],
)
async def test_refused_and_the_connection_goes_on(bench: Bench, line: bytes, code: int, words: str) -> None:
    peer = await bench.peer()
    peer.send(line + b"\n\n")
    error = (await peer.answer())["error"]
    assert error["code"] == code
    assert words in error["message"]
    assert "\n" not in error["message"]
    assert (await peer.call("echo", value=2))["result"] == 2


async def test_notification_gets_no_answer(bench: Bench) -> None:
    peer = await bench.peer()
    for method in (b"echo", b"fail", b"count"):
        peer.send(b'{"method": "' + method + b'", "params": {}}\n')
    assert (await peer.call("echo", value=3))["result"] == 3


async def test_requests_of_one_client_are_answered_in_order(bench: Bench) -> None:
    peer = await bench.peer()
    for number in range(100):
        peer.send(b'{"id": %d, "method": "echo", "params": {"value": %d}}\n' % (number, number))
    for number in range(100):
        answer = await peer.answer()
        assert (answer["id"], answer["result"]) == (number, number)


@pytest.mark.parametrize("n", [0, 1, 256, 1000])
async def test_array_is_sent_whole(bench: Bench, n: int) -> None:
    peer = await bench.peer()
    assert (await peer.call("count", n=n))["result"] == list(range(n))


async def test_last_line_may_lack_its_end(bench: Bench) -> None:
    peer = await bench.peer()
    peer.send(b'{"id": 1, "method": "echo", "params": {"value": 4}}')
    peer.writer.write_eof()
    assert json.loads(await peer.rest())["result"] == 4


async def test_oversized_line_ends_only_its_own_connection(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rpc, "MAX_LINE", 1000)
    path = tmp_path / "small.sock"
    server = Server(bench.methods.table())
    await server.start(path)
    other = Peer(*await asyncio.open_unix_connection(path))
    peer = Peer(*await asyncio.open_unix_connection(path))
    peer.send(b"x" * 5000)
    answer = json.loads(await peer.rest())
    assert answer["error"]["code"] == rpc.INVALID_REQUEST
    assert "more than 1000 bytes" in answer["error"]["message"]
    assert (await other.call("echo", value=5))["result"] == 5
    other.writer.close()
    await server.stop()


async def test_client_that_reads_nothing_harms_nobody(bench: Bench) -> None:
    silent = await bench.peer()
    silent.writer.transport.pause_reading()  # type: ignore[attr-defined]
    silent.send(b'{"id": 1, "method": "big"}\n' * 3)
    other = await bench.peer()
    assert (await other.call("echo", value=6))["result"] == 6


async def test_client_that_takes_nothing_for_too_long_is_dropped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "WRITE_TIMEOUT_S", 0.05)
    left, right = socket.socketpair()
    with left:
        reader, writer = await asyncio.open_unix_connection(sock=right)
        client = Client(reader, writer)
        client.write(b"x" * (8 << 20))
        with pytest.raises(ConnectionAbortedError):
            await client.flush()


async def test_client_that_disappears_harms_nobody(bench: Bench) -> None:
    for line in (b'{"id": 1, "meth', b'{"id": 1, "method": "big"}\n', b'{"id": 1, "method": "wait"}\n'):
        peer = await bench.peer()
        peer.send(line)
        await peer.writer.drain()
        peer.writer.transport.abort()
    bench.methods.release.set()
    assert (await (await bench.peer()).call("wait"))["result"] == "released"


async def test_too_many_clients(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "MAX_CLIENTS", 2)
    first, second = await bench.peer(), await bench.peer()
    for peer in (first, second):
        await peer.call("echo")
    third = await bench.peer()
    assert "2 clients are connected already" in json.loads(await third.rest())["error"]["message"]
    assert (await first.call("echo", value=7))["result"] == 7


async def test_stream_ends_when_the_server_side_ends(bench: Bench) -> None:
    peer = await bench.peer()
    assert (await peer.call("stream"))["result"] == {"ok": True}
    bench.methods.release.set()
    assert await peer.rest() == b"raw bytes, the end"


async def test_stream_ends_when_the_client_stops_sending(bench: Bench) -> None:
    peer = await bench.peer()
    await peer.call("stream")
    peer.writer.write_eof()
    assert await peer.rest() == b"raw bytes, the end"


@pytest.mark.parametrize("method", ["stream", "live"])
async def test_stream_ends_when_the_client_disappears(bench: Bench, method: str) -> None:
    peer = await bench.peer()
    await peer.call(method)
    peer.writer.transport.abort()
    async with asyncio.timeout(DEADLINE):
        await bench.methods.ended.wait()


async def test_notifications_come_before_the_result(bench: Bench) -> None:
    peer = await bench.peer()
    assert await peer.call("live") == {"jsonrpc": "2.0", "method": "tick", "params": {"n": 1}}
    bench.methods.release.set()
    assert (await peer.answer())["result"] == {"count": 1}


async def test_stop_ends_waiting_clients(bench: Bench) -> None:
    idle, waiting = await bench.peer(), await bench.peer()
    await idle.call("echo")
    waiting.send(b'{"id": 1, "method": "wait"}\n')
    async with asyncio.timeout(DEADLINE):
        await bench.methods.entered.wait()
        await bench.server.stop()
    assert await idle.rest() == b""
    assert await waiting.rest() == b""


async def test_stop_does_not_wait_for_a_client_that_takes_nothing(bench: Bench) -> None:
    silent = await bench.peer()
    silent.writer.transport.pause_reading()  # type: ignore[attr-defined]
    silent.send(b'{"id": 1, "method": "big"}\n')
    await (await bench.peer()).call("echo")
    async with asyncio.timeout(DEADLINE):
        await bench.server.stop()
