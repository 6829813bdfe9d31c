# SPDX-License-Identifier: Apache-2.0
"""A host's agent without a switch: it says what a test lets it say, and keeps what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import grpc

from controller.proto import ffswitch_pb2 as pb
from controller.proto import ffswitch_pb2_grpc
from controller.security.client import secure_channel
from controller.security.files import Identity

DEADLINE = 60.0
Ports = Mapping[str, Mapping[str, Any]]


class FakeAgent:
    """`known` is what the controller said, by kind and name. Use as `async with`."""

    def __init__(self, target: tuple[str, int], identity: Identity, host: str, **hello: Any) -> None:
        """`hello` is further fields of the Hello."""
        self.host = host
        self.known: dict[tuple[str, str], dict[str, Any]] = {}
        self.refused: dict[str, str] = {}
        self.offers: dict[str, pb.RdmaOffer] = {}  # by from whom; id 0: gone, or withdrawn
        self.desired: list[tuple[int, int, bool]] = []  # epoch, revision, full
        self.revision = 0
        self.ended = ""
        self.beating = True
        self._hello = pb.Hello(**{"host": host, **hello})
        self._channel = secure_channel(target, identity)
        self._changed = asyncio.Condition()
        self._over = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._call = ffswitch_pb2_grpc.AgentsStub(self._channel).Session(timeout=10 * DEADLINE)
        await self._say(pb.AgentMessage(hello=self._hello))
        self._tasks.append(asyncio.create_task(self._read()))
        return self

    async def __aexit__(self, *exception: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()

    async def observe(self, ports: Ports, *, full: bool = False, gone: Iterable[str] = ()) -> None:
        """Report ports with what the user asked for them."""
        told = [pb.Port(name=name, endpoint=json.dumps(dict(asked))) for name, asked in ports.items()]
        await self._say(pb.AgentMessage(observed=pb.Observed(full=full, ports=told, gone=gone)))

    async def beat(self, revision: int | None = None, capabilities: str = "") -> None:
        """One heartbeat."""
        applied = self.revision if revision is None else revision
        await self._say(pb.AgentMessage(heartbeat=pb.Heartbeat(revision=applied, capabilities=capabilities)))

    async def offer(self, host: str, number: int, joined: int = 0) -> None:
        """Offer a host one end of an RDMA connection."""
        end = pb.RdmaEnd(gid=bytes(16), mtu=1024, credits=64, qpn=[number], psn=[1])
        await self._say(pb.AgentMessage(rdma=pb.RdmaOffer(host=host, id=number, joined=joined, end=end)))

    async def _say(self, message: pb.AgentMessage) -> None:
        # Two writes at a time are an error of grpc.aio.
        async with self._turn:
            await self._call.write(message)

    async def until(self, holds: Callable[[FakeAgent], Any]) -> Any:
        """Wait until `holds` gives something true, and return that."""
        found: Any = None

        def look() -> bool:
            nonlocal found
            found = holds(self)
            return bool(found)

        async with asyncio.timeout(DEADLINE), self._changed:
            await self._changed.wait_for(look)
        return found

    async def endpoint(self, name: str, **fields: Any) -> dict[str, Any]:
        """The endpoint, once it is known with these fields."""

        def look(agent: FakeAgent) -> dict[str, Any] | None:
            found = agent.known.get(("Endpoint", name))
            return found if found is not None and fields.items() <= found.items() else None

        found: dict[str, Any] = await self.until(look)
        return found

    async def _read(self) -> None:
        try:
            while isinstance(message := await self._call.read(), pb.ControllerMessage):
                async with self._changed:
                    await self._take(message)
                    self._changed.notify_all()
            self.ended = self.ended or "the stream ended"
        except grpc.aio.AioRpcError as error:
            self.ended = error.details() or error.code().name
        self._over.set()
        async with self._changed:
            self._changed.notify_all()

    async def _take(self, message: pb.ControllerMessage) -> None:
        match message.WhichOneof("message"):
            case "welcome":
                self._tasks.append(asyncio.create_task(self._beat(message.welcome.heartbeat)))
            case "desired":
                desired = message.desired
                self.desired.append((desired.epoch, desired.revision, desired.full))
                if desired.full:
                    self.known.clear()
                for item in desired.set:
                    found = json.loads(item.object)
                    self.known[item.kind, found["name"]] = found
                for name in desired.delete:
                    self.known.pop((name.kind, name.name), None)
                self.revision = desired.revision
                if self.beating:
                    await self.beat()
            case "rdma":
                self.offers[message.rdma.host] = message.rdma
            case "refused" if message.refused.port:
                self.refused[message.refused.port] = message.refused.reason
            case "refused":
                self.ended = message.refused.reason
                self._over.set()

    async def _beat(self, interval: float) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), interval)
            if self.beating and not self._over.is_set():
                await self.beat()


def free_target() -> tuple[str, int]:
    """A loopback address with two free ports in a row: for sessions, and for joining."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                other.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return "127.0.0.1", port
