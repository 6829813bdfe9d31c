# SPDX-License-Identifier: Apache-2.0
"""ffctl's way to a controller: the first of several that answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import grpc

from controller.proto.ffswitch_pb2_grpc import AdminStub
from controller.security.client import parse_target, secure_channel, why_unreachable
from controller.security.files import ADMIN, load_identity

if TYPE_CHECKING:
    # Stubs only.
    from controller.proto.ffswitch_pb2_grpc import AdminAsyncStub

T = TypeVar("T")
_CONNECT = 5.0


class CtlError(Exception):
    """The command failed: one line."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the controllers are, and the directory of the operator's certificate."""

    controllers: Sequence[tuple[str, int]]
    credentials: Path


def read_targets(text: str) -> list[tuple[str, int]]:
    """`HOST[:PORT],...`; raises ValueError."""
    return [parse_target(part.strip()) for part in text.split(",")]


@contextlib.asynccontextmanager
async def admin(settings: Settings) -> AsyncIterator[AdminAsyncStub]:
    """The service of the first controller that answers. Raises CtlError, SecurityError."""
    identity = load_identity(settings.credentials, ADMIN, datetime.now(UTC))
    for target in settings.controllers:
        async with secure_channel(target, identity) as channel:
            try:
                async with asyncio.timeout(_CONNECT):
                    await channel.channel_ready()
            except TimeoutError:
                continue
            try:
                yield AdminStub(channel)
            except grpc.aio.AioRpcError as error:
                raise CtlError(error.details() or error.code().name) from None
            return
    raise CtlError(await why_unreachable(settings.controllers))


def call(work: Awaitable[T]) -> T:
    """Run one command's coroutine."""

    async def run() -> T:
        return await work

    return asyncio.run(run())
