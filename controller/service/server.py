# SPDX-License-Identifier: Apache-2.0
"""A controller: its store, its services, and its work for all. Any number of them may share a store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc

from controller.security.client import joining, target_text
from controller.security.files import ServerFiles, load_authority
from controller.service.admin import Admin
from controller.service.agents import Agents
from controller.service.draft import Clock
from controller.service.keys import REPLICA, ROOT
from controller.service.leader import lead
from controller.service.session import Replica
from controller.service.state import State
from controller.store.base import LeaseLost, Put, Store, StoreError

log = logging.getLogger(__name__)

OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
    # A host that is cut off is noticed by these, not by TCP's many minutes.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)
_REPLICA_TTL = 15
_RENEW_CHECK = 3600.0
_STOP_GRACE = 2.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Hosts join at the port after that of `listen`. `heartbeat` is in seconds."""

    listen: tuple[str, int]
    state_dir: Path
    name: str
    store_text: str
    heartbeat: float = 5.0


class Controller:
    """Use as `async with`; `target` is where it listens, `joining` where hosts join."""

    def __init__(self, store: Store, settings: Settings, clock: Clock) -> None:
        """`clock` gives seconds since 1970. Raises SecurityError when certificates are not there or do not do."""
        self._settings = settings
        self._clock = clock
        self._files = ServerFiles(settings.state_dir)
        self._authority = load_authority(settings.state_dir)
        self._files.renew(self._authority, self._now())
        self.state = State(store, ROOT)
        self.replica = Replica(self.state, settings.name, settings.heartbeat, clock)
        self.agents = Agents(self.replica, self._authority)
        self.admin = Admin(self.replica, self._authority, settings.store_text)
        self.target = settings.listen
        self.joining = joining(settings.listen)
        self._server: grpc.aio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Controller:
        """Listens when it returns. Raises StoreError, OSError for an address that cannot be had."""
        self._tasks.append(asyncio.create_task(self._follow()))
        ready = asyncio.create_task(self.state.ready.wait())
        await asyncio.wait([ready, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            self._tasks[0].result()
        self._tasks += [
            asyncio.create_task(lead(self.replica)),
            asyncio.create_task(self._announce()),
            asyncio.create_task(self._renew()),
            asyncio.create_task(self._watch_store()),
        ]
        try:
            self._server = server = grpc.aio.server(options=OPTIONS)
            server.add_generic_rpc_handlers((self.agents.handlers(), self.admin.handlers(), self.agents.joining()))
            self.target = self._listen(server, self._settings.listen, clients=True)
            self.joining = self._listen(server, self.joining, clients=False)
            await server.start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._stop()

    async def failed(self) -> None:
        """Returns never; raises what makes it impossible to go on."""
        await self._tasks[0]
        raise StoreError("the store was closed")

    def _listen(self, server: grpc.aio.Server, where: tuple[str, int], *, clients: bool) -> tuple[str, int]:
        credentials = self._files.credentials(clients=clients)
        try:
            return where[0], server.add_secure_port(target_text(where), credentials)
        except RuntimeError:
            raise OSError(f"{target_text(where)} cannot be listened on: is another controller there?") from None

    async def _stop(self) -> None:
        self.agents.end_sessions("this controller stops")
        if self._server is not None:
            await self._server.stop(_STOP_GRACE)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    async def _follow(self) -> None:
        await self.state.run()

    async def _announce(self) -> None:
        """Let the other replicas know of this one."""
        store = self.state.store
        lease = 0
        while True:
            with contextlib.suppress(StoreError):
                try:
                    await store.keepalive(lease)
                except (LeaseLost, StoreError):
                    lease = await store.grant(_REPLICA_TTL)
                    await store.txn([], [Put(REPLICA + self.replica.name, target_text(self.target).encode(), lease)])
            await asyncio.sleep(_REPLICA_TTL / 3)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_CHECK)
            if self._files.renew(self._authority, self._now()):
                log.info("this controller has a new certificate")

    async def _watch_store(self) -> None:
        """A controller that does not know its store's changes sends its agents to others, which may."""
        lost_since: float | None = None
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.replica.heartbeat)
            if self.state.mirror.connected:
                lost_since = None
                continue
            lost_since = lost_since or loop.time()
            if loop.time() - lost_since >= self.replica.lease_ttl:
                self.agents.end_sessions("this controller has lost its store: try another")
