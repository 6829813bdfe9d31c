# SPDX-License-Identifier: Apache-2.0
"""Drives verbs_peer.py, which runs in a guest."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.guest.guest import GuestError, Job
from tests.rdma.bed import DEVICE, GID_INDEX, Host

PROGRAM = Path(__file__).with_name("verbs_peer.py")
REQUESTS, ANSWERS = "/tmp/verbs.in", "/tmp/verbs.out"
ANSWER_SECONDS = 80


class Verbs:
    """A queue pair in a guest."""

    def __init__(self, host: Host, job: Job) -> None:
        self._host = host
        self._job = job

    async def call(self, what: str, **values: Any) -> dict[str, Any]:
        """Have it do something, see `Peer`; GuestError when the program ends instead."""
        guest = self._host.guest
        # A serial port is no way for a large message.
        (guest.shared / "request.json").write_text(json.dumps({"do": what, **values}) + "\n")
        ask = f"cat /shared/request.json >{REQUESTS}; timeout {ANSWER_SECONDS} head -n 1 {ANSWERS}"
        status, answer = await guest.status(ask)
        if status:
            raise GuestError(f"{guest.name}: {PROGRAM.name} has not answered: {await self._job.stop()}")
        return dict(json.loads(answer))

    async def send(self, message: bytes) -> int:
        """Send a message; return its completion's status (enum ibv_wc_status)."""
        return int((await self.call("send", data=base64.b64encode(message).decode()))["status"])

    async def receive(self) -> bytes:
        """The next message."""
        return base64.b64decode((await self.call("receive"))["data"])


@contextlib.asynccontextmanager
async def start(host: Host) -> AsyncIterator[Verbs]:
    """Run the program; its queue pair ends with the context."""
    command = f"/usr/bin/python3 {PROGRAM} {DEVICE} {GID_INDEX} <>{REQUESTS} 1<>{ANSWERS}"
    await host.guest.run(f"rm -f {REQUESTS} {ANSWERS}; mkfifo {REQUESTS} {ANSWERS}")
    async with host.guest.job(f"exec {command}") as job:
        yield Verbs(host, job)


async def connect(left: Verbs, right: Verbs) -> None:
    """Connect two queue pairs with each other."""
    for one, other in ((left, right), (right, left)):
        end = await other.call("endpoint")
        await one.call("connect", number=end["number"], gid=end["gid"])
