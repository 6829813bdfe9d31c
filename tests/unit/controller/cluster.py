# SPDX-License-Identifier: Apache-2.0
"""Controllers in this process, over one SQLite store, with their own authority and an operator."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from controller.codec import to_json
from controller.manifest import parse
from controller.model import kind_of
from controller.proto import ffswitch_pb2 as pb
from controller.proto.ffswitch_pb2_grpc import AdminStub
from controller.security.authority import KeyPair, host_uri, key_pem, new_key, signing_request
from controller.security.client import secure_channel
from controller.security.files import ADMIN, Identity, initialise, load_authority, load_identity
from controller.service.server import Controller, Settings
from controller.store.base import Store
from controller.store.sqlite import SqliteStore
from tests.agents import DEADLINE, FakeAgent, free_target

BLUE = "kind: Network\nname: blue\nvni: 100\nsubnets: [10.1.0.0/24]\n"
HEARTBEAT = 0.5


class Clock:
    """The controllers' wall clock: the real one, moved on by a test."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class Cluster:
    """`start` makes controllers; the rest talks to them."""

    def __init__(self, directory: Path, store: Store) -> None:
        self.directory = directory
        self.store = store
        self.clock = Clock()
        self._stack = contextlib.AsyncExitStack()
        self._number = 0

    async def start(self, heartbeat: float = HEARTBEAT) -> Controller:
        """One more controller; `stop` or the end of the test ends it."""
        self._number += 1
        settings = Settings(free_target(), self.directory, f"c{self._number}", "sqlite", heartbeat)
        return await self._stack.enter_async_context(Controller(self.store, settings, self.clock))

    async def stop(self, controller: Controller) -> None:
        """Let a controller end; its agents are cut off."""
        await controller.__aexit__(None, None, None)

    def identity(self, host: str) -> Identity:
        """A certificate for a host, without a token."""
        authority = load_authority(self.directory)
        key = new_key()
        chain = authority.issue_host(signing_request(key, host_uri(host)), host, datetime.now(UTC))
        return Identity(KeyPair(chain, key_pem(key)), authority.certificate)

    def agent(self, controller: Controller, host: str, **hello: Any) -> FakeAgent:
        """The host's agent, which is connected to one controller."""
        return FakeAgent(controller.target, self.identity(host), host, **hello)

    async def admin(self, controller: Controller) -> Any:
        """The operator's stub."""
        identity = load_identity(self.directory, ADMIN, datetime.now(UTC))
        channel = await self._stack.enter_async_context(secure_channel(controller.target, identity))
        return AdminStub(channel)

    async def apply(self, controller: Controller, yaml: str, **flags: bool) -> pb.ApplyReply:
        """Apply a manifest; the caller looks at the problems."""
        items = [pb.Item(kind=kind_of(o).value, object=json.dumps(to_json(o))) for o in parse({"t": yaml}).objects]
        stub = await self.admin(controller)
        reply = await stub.Apply(pb.ApplyRequest(objects=items, **flags), timeout=DEADLINE)
        assert isinstance(reply, pb.ApplyReply)
        return reply

    async def close(self) -> None:
        """End all controllers, then the store."""
        await self._stack.aclose()
        await self.store.close()


@contextlib.asynccontextmanager
async def cluster(directory: Path) -> AsyncIterator[Cluster]:
    """A cluster without a controller yet."""
    initialise(directory, datetime.now(UTC))
    made = Cluster(directory, SqliteStore(directory / "store.db"))
    try:
        yield made
    finally:
        await made.close()


async def eventually(controller: Controller, holds: Any) -> None:
    """Wait until the controller's state is as wanted."""
    changed = asyncio.Event()
    with controller.state.listen(lambda update: changed.set()):
        async with asyncio.timeout(DEADLINE):
            while not holds(controller.state):
                changed.clear()
                await changed.wait()
