# SPDX-License-Identifier: Apache-2.0
"""The members of an etcd cluster: a channel to each, which of them is asked, what is tried again, what errors mean."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc

from controller.proto import etcd_pb2_grpc
from controller.store.base import StoreRefused, StoreUnavailable, StoreUncertain

# Seconds: for one member's answer, and for all attempts together. An election takes one or two.
CALL_TIMEOUT = 5.0
DEADLINE = 15.0
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0

# A member that is cut off from the others says so at once, without waiting (etcd: rpctypes/metadatafields.go).
REQUIRE_LEADER = (("hasleader", "true"),)

OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A member that stands still is found by pings; etcd allows one in 5 s (--grpc-keepalive-min-time). What ends the
    # connection is this time-out of each ping, 60 s by default; grpc.keepalive_timeout_ms alone does not shorten it.
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.http2.ping_timeout_ms", 3000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Two stores in one process share no connection, nor its back-off.
    ("grpc.use_local_subchannel_pool", 1),
)

# The answers after which it is certain that a write was not done and another member may do it.
_NOT_DONE = ("etcdserver: no leader", "etcdserver: too many requests", "failed to connect to all addresses")
_REFUSALS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
)

T = TypeVar("T")


class EtcdRefused(StoreRefused):
    """A refusal by its status code, for callers that expect some of them."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: whom to trust, and who we are."""

    ca: Path
    cert: Path | None = None
    key: Path | None = None


class Retry:
    """Pauses between attempts, longer and longer, until DEADLINE after the first failure."""

    def __init__(self) -> None:
        self._pause = FIRST_PAUSE
        self._deadline: float | None = None

    async def pause(self) -> bool:
        """After a failed attempt: False when there is no time for another one, and then without waiting."""
        now = asyncio.get_running_loop().time()
        self._deadline = self._deadline or now + DEADLINE
        if now + self._pause >= self._deadline:
            return False
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return True


class Member:
    """One endpoint and its stubs."""

    def __init__(self, endpoint: str, tls: grpc.ChannelCredentials | None) -> None:
        self.endpoint = endpoint
        self.channel = (
            grpc.aio.insecure_channel(endpoint, OPTIONS)
            if tls is None
            else grpc.aio.secure_channel(endpoint, tls, OPTIONS)
        )
        self.kv = etcd_pb2_grpc.KVStub(self.channel)
        self.lease = etcd_pb2_grpc.LeaseStub(self.channel)
        self.watch = etcd_pb2_grpc.WatchStub(self.channel)


class Members:
    """All endpoints; one of them is preferred until it fails."""

    def __init__(self, endpoints: Sequence[str], tls: Tls | None) -> None:
        """Endpoints are `host:port`. Raises StoreRefused when a file of `tls` cannot be read."""
        if not endpoints:
            raise ValueError("etcd needs at least one endpoint")
        credentials = _credentials(tls) if tls else None
        self._members = [Member(endpoint, credentials) for endpoint in endpoints]
        self._preferred = 0

    def __str__(self) -> str:
        return "etcd " + ",".join(member.endpoint for member in self._members)

    async def repeat(self, call: Callable[[Member], Awaitable[T]]) -> T:
        """`call` on one member after the other until one answers: for what may be done twice.

        Raises EtcdRefused, or StoreUnavailable when DEADLINE is over.
        """
        return await self._attempts(call, again=True)

    async def once(self, call: Callable[[Member], Awaitable[T]]) -> T:
        """`call` on the first member that can be reached, on others only if it is certain that it was not done.

        Raises EtcdRefused, StoreUnavailable, or StoreUncertain when it may have been done.
        """
        return await self._attempts(call, again=False)

    async def connected(self) -> Member:
        """A member with a connection, the preferred one if it has. Raises StoreUnavailable after DEADLINE."""
        members = self._members[self._preferred :] + self._members[: self._preferred]
        for member in members:
            if member.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
                return member
        waits = {asyncio.ensure_future(member.channel.channel_ready()): member for member in members}
        try:
            done, _ = await asyncio.wait(waits, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        for wait, member in waits.items():
            if wait in done:
                wait.result()
                return member
        raise StoreUnavailable(f"{self}: none of them can be reached")

    def avoid(self, member: Member) -> None:
        """Prefer the one after `member`, if `member` was preferred."""
        if member is self._members[self._preferred]:
            self._preferred = (self._preferred + 1) % len(self._members)

    async def close(self) -> None:
        await asyncio.gather(*(member.channel.close() for member in self._members))

    async def _attempts(self, call: Callable[[Member], Awaitable[T]], *, again: bool) -> T:
        retry = Retry()
        while True:
            member = await self.connected()
            try:
                return await call(member)
            except grpc.aio.AioRpcError as error:
                not_done = any(text in (error.details() or "") for text in _NOT_DONE)
                if error.code() in _REFUSALS and not not_done:
                    raise EtcdRefused(error.code(), f"{self}: {_text(error)}") from None
                self.avoid(member)
                if not (again or not_done):
                    raise StoreUncertain(f"{self}: {_text(error)}") from None
                last = _text(error)
            if not await retry.pause():
                raise StoreUnavailable(f"{self}: {last}")


def _text(error: grpc.aio.AioRpcError) -> str:
    return " ".join((error.details() or error.code().name).split())


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    files: list[bytes | None] = []
    for path in (tls.ca, tls.key, tls.cert):
        try:
            files.append(path.read_bytes() if path else None)
        except OSError as error:
            raise StoreRefused(f"{path}: {error.strerror}") from None
    return grpc.ssl_channel_credentials(*files)
