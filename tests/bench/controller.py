# SPDX-License-Identifier: Apache-2.0
"""`make bench-controller`: one ffcontroller with many hosts; how long a move takes, a cold start, and its memory.

The hosts are real sessions over TLS without switches, in a few processes of their own, on the same machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import click

from controller.proto import ffswitch_pb2 as pb
from controller.proto.ffswitch_pb2_grpc import AdminStub
from controller.security.client import secure_channel
from controller.security.files import ADMIN, load_identity
from tests.agents import free_target
from tests.bench.controller_state import Scale, endpoints, host_name, network_name, populate

OUTPUT = Path("build/bench/controller.json")
_DEADLINE = 600.0
_HEARTBEAT = 10.0


@dataclass(frozen=True, slots=True)
class Result:
    """What is measured. A move takes from the new host's report until the last host concerned is told."""

    hosts: int
    endpoints: int
    moves: int
    hosts_per_move: float
    move_p50_ms: float
    move_p99_ms: float
    move_max_ms: float
    cold_start_s: float
    connect_s: float
    full_sync_ms: float
    full_sync_mb: float
    rss_mb: float


class Child:
    """A process that is told and tells lines of JSON."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def say(self, command: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        await self.process.stdin.drain()

    async def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), _DEADLINE)
        if not line:
            raise RuntimeError("a process of agents ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python process that ends with the block."""
    pipe = asyncio.subprocess.PIPE
    started = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=pipe, stdout=pipe)
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


async def measure(scale: Scale, moves: int, clients: int, directory: Path) -> Result:
    """Start everything, move endpoints one after the other, and end it."""
    await asyncio.to_thread(populate, directory, scale)
    target = free_target()
    run = "import sys; from controller.cli.ffcontroller import main; sys.exit(main())"
    options = ["--listen", f"{target[0]}:{target[1]}", "--heartbeat", str(_HEARTBEAT)]
    begun = time.monotonic()
    async with process("-c", run, "run", "--state-dir", str(directory), *options) as controller:
        assert controller.stdout is not None
        await asyncio.wait_for(controller.stdout.readline(), _DEADLINE)
        status = await _status(directory, target)
        cold = time.monotonic() - begun
        async with contextlib.AsyncExitStack() as stack:
            children = []
            for index in range(clients):
                started = await stack.enter_async_context(process("-m", "tests.bench.controller_agents"))
                children.append(Child(started))
                numbers = list(range(index, scale.hosts, clients))
                await children[-1].say(_setup(directory, target, numbers, status.revision))
            begun = time.monotonic()
            for child in children:
                await child.hear()
            connected = time.monotonic() - begun
            times, concerned = await _moves(scale, children, moves)
            rss = _rss(controller.pid)
        async with process("-m", "tests.bench.controller_agents") as started:
            child = Child(started)
            await child.say(_setup(directory, target, [0], 0))
            synced = await child.hear()
    times.sort()
    return Result(
        hosts=scale.hosts,
        endpoints=scale.endpoints,
        moves=moves,
        hosts_per_move=round(concerned / moves, 1),
        move_p50_ms=_ms(times[len(times) // 2]),
        move_p99_ms=_ms(times[min(len(times) - 1, int(len(times) * 0.99))]),
        move_max_ms=_ms(times[-1]),
        cold_start_s=round(cold, 2),
        connect_s=round(connected, 2),
        full_sync_ms=_ms(synced["slowest"]),
        full_sync_mb=round(synced["bytes"] / 1e6, 2),
        rss_mb=round(rss, 1),
    )


def _setup(directory: Path, target: tuple[str, int], numbers: list[int], revision: int) -> dict[str, Any]:
    return {"directory": str(directory), "target": target, "numbers": numbers, "revision": revision}


async def _status(directory: Path, target: tuple[str, int]) -> pb.StatusReply:
    async with secure_channel(target, load_identity(directory, ADMIN, datetime.now(UTC))) as channel:
        reply = await AdminStub(channel).Status(pb.StatusRequest(), timeout=_DEADLINE)
        assert isinstance(reply, pb.StatusReply)
        return reply


async def _moves(scale: Scale, children: list[Child], count: int) -> tuple[list[float], int]:
    """Seconds of each move, and how many hosts all of them concerned together."""
    places = {endpoint.name: endpoint.host for endpoint in endpoints(scale)}
    members: dict[int, dict[str, int]] = {}
    for number, host in enumerate(places.values()):
        hosts = members.setdefault(number % scale.networks, {})
        hosts[host] = hosts.get(host, 0) + 1
    rng = Random(2)
    times, concerned = [], 0
    for _ in range(count):
        number = rng.randrange(scale.endpoints)
        name = f"ep{number:06}"
        old = places[name]
        new = rng.choice([n for n in range(scale.hosts) if host_name(n) != old])
        hosts = members[number % scale.networks]
        wanted = {*hosts, host_name(new)}
        places[name] = host_name(new)
        hosts[host_name(new)] = hosts.get(host_name(new), 0) + 1
        hosts[old] -= 1
        if not hosts[old]:
            del hosts[old]
        concerned += len(wanted)
        move = {"name": name, "host": new, "network": network_name(number % scale.networks)}
        times.append(await _move(children, move, wanted))
    return times, concerned


async def _move(children: list[Child], move: dict[str, Any], wanted: set[str]) -> float:
    for child in children:
        await child.say({"expect": move["name"]})
    for child in children:
        await _until(child, "ready")
    mover = children[move["host"] % len(children)]
    await mover.say({"expect": move["name"], **move})
    waits = [asyncio.create_task(_seen(child, children, move, wanted)) for child in children]
    answers = await asyncio.gather(*waits)
    begun = next(sent for sent, _ in answers if sent)
    return max(last for _, last in answers) - begun


async def _until(child: Child, word: str) -> None:
    while word not in (answer := await child.hear()):
        if "ended" in answer:
            raise RuntimeError(f"the session of {host_name(answer['ended'])} ended: {answer['why']}")


async def _seen(child: Child, children: list[Child], move: dict[str, Any], wanted: set[str]) -> tuple[float, float]:
    """When the child's host sent the move, if it did, and when the last of its hosts concerned was told."""
    index, clients = children.index(child), len(children)
    missing = {host for host in wanted if int(host[4:]) % clients == index}
    sent = last = 0.0
    waits_for_sent = move["host"] % clients == index
    while missing or (waits_for_sent and not sent):
        answer = await child.hear()
        if "sent" in answer:
            sent = answer["at"]
        elif answer.get("of") == move["name"]:
            missing.discard(host_name(answer["seen"]))
            last = max(last, answer["at"])
        elif "ended" in answer:
            raise RuntimeError(f"the session of {host_name(answer['ended'])} ended: {answer['why']}")
    return sent, last


def _rss(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1000


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


@click.command()
@click.option("--hosts", default=1000, show_default=True)
@click.option("--endpoints", "number", default=100_000, show_default=True)
@click.option("--networks", default=1000, show_default=True)
@click.option("--moves", default=300, show_default=True)
@click.option("--clients", default=4, show_default=True, help="Processes that the agents are spread over.")
def main(hosts: int, number: int, networks: int, moves: int, clients: int) -> None:
    """Measure a controller."""
    with tempfile.TemporaryDirectory() as directory:
        result = asyncio.run(measure(Scale(hosts, number, networks), moves, clients, Path(directory) / "state"))
    for name, value in asdict(result).items():
        click.echo(f"{name:<16}{value:>12}")
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps({**asdict(result), "cpus": os.cpu_count()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
