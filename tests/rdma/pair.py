# SPDX-License-Identifier: Apache-2.0
"""Two fast paths in two guests, and a peer between them."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import AsyncIterator
from typing import Any

from tests.guest.guest import Job
from tests.guest.root import ROOT
from tests.rdma.bed import DEVICE, GID_INDEX, Bed, Host
from tests.rdma.fastpath_host import ANSWERS, REQUESTS

EPOCH = 5
SECONDS = 120.0  # for an answer: longer than the other side waits for anything
PROGRAM = f"cd {ROOT} && exec .venv/bin/python -m tests.rdma.fastpath_host"


class Driven:
    """The fast path in a guest."""

    def __init__(self, host: Host, job: Job) -> None:
        self.host = host
        self._job = job

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method of `FastPathHost` there; AssertionError with what it said when it raises."""
        ok, value = await self._ask(method, *args)
        assert ok, f"{self.host.guest.name}: {method}: {value}"
        return value

    async def refusal(self, method: str, *args: Any) -> str:
        """What a method says that raises."""
        ok, value = await self._ask(method, *args)
        assert not ok
        return str(value)

    async def pause(self) -> None:
        """Stop the process, with all its workers."""
        await self.host.guest.run(f"kill -STOP -{self._job.pid}")

    async def resume(self) -> None:
        """Let it go on."""
        await self.host.guest.run(f"kill -CONT -{self._job.pid}")

    async def _ask(self, method: str, *args: Any) -> list[Any]:
        request = shlex.quote(json.dumps([method, args]))
        output = await self.host.guest.run(f"echo {request} >{REQUESTS}; cat {ANSWERS}", SECONDS)
        return list(json.loads(output))


class Pair:
    """Two fast paths and a peer between them."""

    def __init__(self, bed: Bed, left: Driven, right: Driven) -> None:
        self.bed = bed
        self.ends = (left, right)
        self.peers = [0, 0]

    async def join(
        self,
        queue_pairs: int = 1,
        timeout: int = 14,  # noqa: ASYNC109
        retries: int = 7,
        *,
        use: bool = True,
    ) -> None:
        """Connect a new peer at each end and use it."""
        ends = []
        for number, end in enumerate(self.ends):
            self.peers[number], told = await end.call("add", queue_pairs)
            ends.append(told)
        for end, peer, told in zip(self.ends, self.peers, reversed(ends), strict=True):
            await end.call("connect", peer, told, EPOCH, timeout, retries)
        for end, peer in zip(self.ends, self.peers, strict=True):
            if use:
                await end.call("use", peer)

    async def part(self) -> None:
        """End the peers that there are, and forget what came."""
        for end in self.ends:
            await end.call("forget")
        self.peers = [0, 0]

    async def exchange(self, sizes: list[int], seed: int, burst: int | None = None) -> None:
        """Both send, and receive what the other sent."""
        left, right = self.ends
        await left.call("send", sizes, seed, burst)
        await right.call("send", sizes, seed + 1, burst)
        await right.call("expect", sizes, seed)
        await left.call("expect", sizes, seed + 1)

    def underlay(self, port: int) -> int:
        """Frames with this UDP port that went over the underlay, both ways."""
        wires = self.bed.relay.between(*(end.host.guest.name for end in self.ends))
        return sum(wire.frames[port] for wire in wires)


@contextlib.asynccontextmanager
async def running(bed: Bed, workers: int = 1) -> AsyncIterator[Pair]:
    """Two fast paths, with their devices and no peers."""
    left, right = bed.hosts
    async with contextlib.AsyncExitStack() as stack:
        ends = []
        for host, other in ((left, right), (right, left)):
            job = await stack.enter_async_context(host.guest.job(PROGRAM))
            await job.said("ready")
            driven = Driven(host, job)
            await driven.call("open", [host.ipv4, host.mac], [other.ipv4, other.mac], workers)
            await driven.call("open_device", DEVICE, 1, GID_INDEX)
            ends.append(driven)
        yield Pair(bed, *ends)
