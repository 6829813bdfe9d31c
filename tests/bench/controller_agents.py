# SPDX-License-Identifier: Apache-2.0
"""Many agents without switches in one process, each a session of its own over TLS; driven over standard input.

A line in is one JSON command, a line out one answer: `connect` answers when all have their first Desired; `expect` when
it is known what to look for; `move` reports a port from one host; `seen` is told for each agent that hears of it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc

from controller.codec import to_json
from controller.proto import ffswitch_pb2 as pb
from controller.security.client import OPTIONS, target_text
from controller.security.files import HOST, load_identity
from tests.bench.controller_state import capabilities, host_name

_SESSION = "/ffswitch.v1.Agents/Session"
# TLS handshakes at a time.
_CONNECTING = 16


class Agents:
    """The hosts with these numbers."""

    def __init__(self, directory: Path, target: tuple[str, int], numbers: list[int], revision: int) -> None:
        self._directory = directory
        self._target = target
        self._revision = revision
        self.numbers = numbers
        self.calls: dict[int, Any] = {}
        self._turns = {number: asyncio.Lock() for number in numbers}
        self.wanted = b"\0"
        self.bytes = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._gate = asyncio.Semaphore(_CONNECTING)

    async def connect(self) -> list[float]:
        """Seconds that each took to its first Desired."""
        return await asyncio.gather(*(self._connect(number) for number in self.numbers))

    async def _connect(self, number: int) -> float:
        async with self._gate:
            begun = time.monotonic()
            host = host_name(number)
            identity = load_identity(self._directory / "hosts" / host, HOST, datetime.now(UTC))
            channel = grpc.aio.secure_channel(target_text(self._target), identity.credentials(), OPTIONS)
            session: Any = channel.stream_stream(_SESSION, request_serializer=pb.AgentMessage.SerializeToString)
            call = session(wait_for_ready=True)
            hello = pb.Hello(host=host, capabilities=json.dumps(to_json(capabilities(number))), revision=self._revision)
            await call.write(pb.AgentMessage(hello=hello))
            welcome = pb.ControllerMessage.FromString(await call.read()).welcome
            self.bytes += len(await call.read())
            self.calls[number] = call
            self._tasks.append(asyncio.create_task(self._read(number, call)))
            self._tasks.append(asyncio.create_task(self._beat(number, welcome.heartbeat)))
            return time.monotonic() - begun

    async def say(self, number: int, message: pb.AgentMessage) -> None:
        """Send a message of one host; two writes at a time are an error of grpc.aio."""
        async with self._turns[number]:
            await self.calls[number].write(message)

    async def _read(self, number: int, call: Any) -> None:
        while True:
            try:
                message = await call.read()
            except grpc.aio.AioRpcError as error:
                message = error.details()
            now = time.monotonic()
            if not isinstance(message, bytes):
                tell({"ended": number, "why": str(message)})
                return
            if self.wanted in message:
                tell({"seen": number, "at": now, "of": self.wanted.decode()})
            desired = pb.ControllerMessage.FromString(message).desired
            if desired.revision:
                await self.say(number, pb.AgentMessage(heartbeat=pb.Heartbeat(revision=desired.revision)))

    async def _beat(self, number: int, interval: float) -> None:
        pause = interval * (number % 100) / 100
        while True:
            await asyncio.sleep(pause)
            await self.say(number, pb.AgentMessage(heartbeat=pb.Heartbeat()))
            pause = interval


def tell(answer: dict[str, Any]) -> None:
    """One answer."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def main() -> None:
    """Until standard input ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    setup = json.loads(await reader.readline())
    target = (setup["target"][0], setup["target"][1])
    agents = Agents(Path(setup["directory"]), target, setup["numbers"], setup["revision"])
    took = await agents.connect()
    tell({"connected": len(took), "slowest": max(took, default=0.0), "bytes": agents.bytes})
    while line := await reader.readline():
        command = json.loads(line)
        agents.wanted = command["expect"].encode()
        if "host" in command:
            port = pb.Port(name=command["name"], endpoint=json.dumps({"network": command["network"]}))
            begun = time.monotonic()
            await agents.say(command["host"], pb.AgentMessage(observed=pb.Observed(ports=[port])))
            tell({"sent": command["name"], "at": begun})
        else:
            tell({"ready": True})


if __name__ == "__main__":
    asyncio.run(main())
