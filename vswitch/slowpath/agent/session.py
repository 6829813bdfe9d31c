# SPDX-License-Identifier: Apache-2.0
"""The host's stream to a controller: joined once by a token, found again at another one whenever it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import grpc

from controller.proto import ffswitch_pb2 as pb
from controller.proto import ffswitch_pb2_grpc
from controller.security.authority import SecurityError
from controller.security.client import join, renew, secure_channel, target_text, why_unreachable
from controller.security.files import HOST, Identity, load_identity, save_identity

log = logging.getLogger(__name__)

Target = tuple[str, int]
_WELCOME_S = 10.0  # how long a controller may take until it greets
_BACKOFF_S, _BACKOFF_MAX_S = 0.2, 5.0
_RENEWAL_RETRY_S = 60.0


class Refusal(Exception):
    """A session that ends here: a controller says so, or what it says cannot be right. One line."""


class Host(Protocol):
    """What the session asks of the host, and tells it."""

    def hello(self) -> pb.Hello: ...
    def observed(self) -> pb.Observed: ...
    def heartbeat(self) -> pb.Heartbeat: ...
    def welcome(self, epoch: int) -> None: ...
    def desired(self, desired: pb.Desired) -> None: ...
    def refused(self, port: str, reason: str) -> None: ...
    def greeted(self) -> None: ...
    def offered(self, offer: pb.RdmaOffer) -> None: ...


@dataclass(slots=True)
class Standing:
    """How the session stands; `since` is seconds since 1970, `why` one line when it is not connected."""

    connected: bool = False
    controller: str = ""
    since: float = field(default_factory=time.time)
    why: str = "no controller was reached yet"


@dataclass(frozen=True, slots=True)
class Access:
    """How controllers are reached; tests have their own."""

    channel: Callable[[Target, Identity], grpc.aio.Channel] = secure_channel
    why: Callable[[Sequence[Target]], Awaitable[str]] = why_unreachable
    backoff: float = _BACKOFF_S


CONTROLLERS = Access()


class Session:
    """Keeps one stream to one of `targets` for as long as it runs."""

    def __init__(
        self,
        targets: Sequence[Target],
        name: str,
        state_dir: Path,
        token: str,
        host: Host,
        *,
        access: Access,
    ) -> None:
        self.standing = Standing()
        self._targets, self._name, self._dir, self._token = list(targets), name, state_dir, token
        self._host, self._access = host, access
        self._identity: Identity | None = None
        self._say: asyncio.Queue[pb.AgentMessage] = asyncio.Queue()
        self._speaking = False
        self._beat_s = _WELCOME_S
        self._renew_at = 0.0
        self._changed = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether a controller has greeted, and its stream stands."""
        return self.standing.connected

    @property
    def speaking(self) -> bool:
        """Whether what is said now reaches a controller."""
        return self._speaking

    def say(self, message: pb.AgentMessage) -> None:
        """Tell the controller; what is said while there is none is not kept, since each session begins anew."""
        if self._speaking:
            self._say.put_nowait(message)

    async def until_changed(self) -> None:
        """Wait until the session stands otherwise than now."""
        await self._changed.wait()

    async def run(self) -> None:
        """For ever: connect, serve, and look for the next controller."""
        failures = 0
        while True:
            target = self._targets[0]
            try:
                await self._once(target)
            except TimeoutError:
                self._lost(f"{target_text(target)} does not greet within {_WELCOME_S:g} s")
            except (SecurityError, Refusal, OSError) as error:
                self._lost(str(error))
            except grpc.aio.AioRpcError as error:
                self._lost(await self._why(target, error))
            except Exception as error:
                log.exception("the session with %s failed", target_text(target))
                self._lost(f"{target_text(target)}: {type(error).__name__}: {error}")
            failures = 1 if self.standing.controller else failures + 1
            self.standing.controller = ""
            self._targets = [*self._targets[1:], target]
            # All of them are tried before any waiting.
            rounds = failures // len(self._targets)
            if rounds:
                await asyncio.sleep(min(self._access.backoff * 2 ** min(rounds - 1, 16), _BACKOFF_MAX_S))

    async def _why(self, target: Target, error: grpc.aio.AioRpcError) -> str:
        if error.code() is grpc.StatusCode.UNAVAILABLE and not self.standing.connected:
            return await self._access.why([target])
        return f"{target_text(target)}: {error.details() or error.code().name}"

    def _lost(self, why: str) -> None:
        if self.standing.connected:
            log.warning("the controller is away: %s", why)
            self.standing = Standing(False, self.standing.controller, time.time(), why)
        else:
            if self.standing.why != why:
                log.warning("no controller: %s", why)
            self.standing.why = why
        self._tell_change()

    def _tell_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # ---- one session ---------------------------------------------------------------------

    async def _once(self, target: Target) -> None:
        identity = self._identity = self._identity or await self._identify(target)
        async with self._access.channel(target, identity) as channel:
            self._say = asyncio.Queue()
            self._beat_s = _WELCOME_S
            call = ffswitch_pb2_grpc.AgentsStub(channel).Session(self._speak(channel))
            try:
                await self._listen(target, call)
            finally:
                self._speaking = False
                call.cancel()

    async def _identify(self, target: Target) -> Identity:
        """The certificate in the state directory, or one for the token."""
        if (self._dir / f"{HOST}.pem").exists():
            return load_identity(self._dir, HOST, datetime.now(UTC))
        identity = await join(target, self._name, self._token)
        save_identity(self._dir, HOST, identity)
        log.info("host %s joined at %s", self._name, target_text(target))
        return identity

    async def _speak(self, channel: grpc.aio.Channel) -> AsyncIterator[pb.AgentMessage]:
        yield pb.AgentMessage(hello=self._host.hello())
        # From here on nothing may be missed: `observed` says all there is now.
        self._speaking = True
        yield pb.AgentMessage(observed=self._host.observed())
        while True:
            message = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._beat_s):
                    message = await self._say.get()
            if message is None:
                await self._renew(channel)
            yield message or pb.AgentMessage(heartbeat=self._host.heartbeat())

    async def _listen(self, target: Target, call: Any) -> None:
        async with asyncio.timeout(_WELCOME_S) as patience:
            while (message := await call.read()) is not grpc.aio.EOF:
                match message.WhichOneof("message"):
                    case "welcome":
                        self._host.welcome(message.welcome.epoch)
                        patience.reschedule(None)
                        self._greeted(target, message.welcome.heartbeat)
                    case "desired":
                        self._host.desired(message.desired)
                        self.say(pb.AgentMessage(heartbeat=self._host.heartbeat()))
                    case "rdma":
                        self._host.offered(message.rdma)
                    case "refused" if message.refused.port:
                        self._host.refused(message.refused.port, message.refused.reason)
                    case "refused":
                        raise Refusal(f"{target_text(target)}: {message.refused.reason}")
        raise Refusal(f"{target_text(target)}: the controller hung up")

    def _greeted(self, target: Target, heartbeat: float) -> None:
        self._beat_s = max(0.01, heartbeat)
        self.standing = Standing(True, target_text(target), time.time(), "")
        log.info("controller %s: connected", target_text(target))
        # Whoever speaks waits by the old interval until there is something to say.
        self.say(pb.AgentMessage(heartbeat=self._host.heartbeat()))
        self._host.greeted()
        self._tell_change()

    async def _renew(self, channel: grpc.aio.Channel) -> None:
        """Get a new certificate before the old one ends; sessions from the next one on show it."""
        now = time.monotonic()
        if self._identity is None or now < self._renew_at or not self._identity.renewal_due(datetime.now(UTC)):
            return
        self._renew_at = now + _RENEWAL_RETRY_S
        try:
            self._identity = await renew(channel, self._name)
            save_identity(self._dir, HOST, self._identity)
            log.info("the certificate of host %s was renewed", self._name)
        except (SecurityError, OSError) as error:
            log.warning("the certificate of host %s cannot be renewed: %s", self._name, error)
        except grpc.aio.AioRpcError as error:
            log.warning("the certificate of host %s cannot be renewed: %s", self._name, error.details())
