# SPDX-License-Identifier: Apache-2.0
"""Drives the C programs under traffic/: the one traffic source and sink of all measurements, and the latency probe."""

from __future__ import annotations

import json
import os
import select
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.bench.environment import Environment
from tests.bench.errors import BenchError
from tests.bench.process import Process, run

SOURCES = Path(__file__).with_name("traffic")
MEMORY_MB = 64
ANSWER_SECONDS = 10.0
CONNECT_SECONDS = 60.0
CHECK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Ends:
    """The front-ends: pairs of virtio-user ports, their ring layout, and whether they negotiate offloads.

    links: instead of virtio-user ports two network interfaces, in the network namespace `netns`.
    """

    pairs: int = 1
    packed: bool = False
    offload: bool = False
    links: tuple[str, ...] = ()
    netns: str = ""

    @property
    def devargs(self) -> str:
        """virtio-user's own arguments. In-order is its default with either layout."""
        return ",packed_vq=1,in_order=1" if self.packed else ""

    @property
    def enter(self) -> list[str]:
        """What goes before a command that runs in the namespace."""
        return ["ip", "netns", "exec", self.netns] if self.netns else []

    def vdevs(self, sockets: Sequence[Path]) -> list[str]:
        """EAL's devices for the ports; `sockets` are those of the virtio-user ones."""
        if self.links:
            return [f"net_af_packet{index},iface={link}" for index, link in enumerate(self.links)]
        return [f"net_virtio_user{index},path={path},server=1{self.devargs}" for index, path in enumerate(sockets)]


SPLIT = Ends()


@dataclass(frozen=True, slots=True)
class Counters:
    """The generator's counters since its start; see struct way in generator.c. ns: CLOCK_MONOTONIC."""

    ns: int
    tsc_hz: int
    sent: int
    received: int
    received_each: tuple[int, ...]
    stray: int
    lost: int
    left: int
    turns: int
    turns_full: int


@dataclass(frozen=True, slots=True)
class Programs:
    """The compiled programs."""

    generator: Path
    latency: Path


def build(directory: Path) -> Programs:
    """Compiles the programs into `directory` where their sources are newer. Raises BenchError."""
    return Programs(*(compile_program(directory, name) for name in ("generator", "latency")))


def compile_program(directory: Path, name: str) -> Path:
    """One program, compiled into `directory` where its sources are newer. Raises BenchError."""
    program = directory / name
    newest = max(source.stat().st_mtime for source in SOURCES.iterdir())
    if program.exists() and program.stat().st_mtime > newest:
        return program
    directory.mkdir(parents=True, exist_ok=True)
    flags, libs = (shlex.split(run(["pkg-config", option, "libdpdk"])) for option in ("--cflags", "--libs"))
    warnings = ["-Wall", "-Wextra", "-Werror"]
    sources = [SOURCES / f"{name}.c", SOURCES / "frames.c"]
    run(["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-O3", *warnings, *flags, *sources, "-o", program, *libs], seconds=120)
    return program


class TrafficProgram:
    """One of the programs: virtio-user ports in server mode, so that each switch comes as a vhost-user client.

    The process is there from construction on, and its sockets soon after; `ready` returns
    when the switch has connected to all.
    """

    def __init__(
        self, program: Path, environment: Environment, ends: Ends, poll_cpus: Sequence[int], options: Sequence[str] = ()
    ) -> None:
        argv: list[str | Path] = [*ends.enter, program, *environment.lcores(*poll_cpus)]
        argv += environment.memory_args(MEMORY_MB, program.name)
        for device in ends.vdevs(environment.sockets(ends.pairs)):
            argv += ["--vdev", device]
        if options:
            argv += ["--", *options]
        log = environment.directory / f"{program.name}.log"
        self.process = Process(program.name, argv, log, env=environment.env, pipe_stdout=True)
        self._pending = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.stop()

    def ready(self, check: Callable[[], None]) -> dict[str, Any]:
        """Waits until all ports run, as long as `check` does not raise. Returns what it says. Raises BenchError."""
        return self._answer(CONNECT_SECONDS, check)

    def _command(self, line: str, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        self.process.say(line)
        answer = self._answer(seconds)
        if "error" in answer:
            raise BenchError(f"{self.process.name}: {answer['error']}: {line}")
        return answer

    def _answer(self, seconds: float, check: Callable[[], None] = lambda: None) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        stdout = self.process.stdout.fileno()
        while b"\n" not in self._pending:
            check()
            readable, _, _ = select.select([stdout], [], [], CHECK_SECONDS)
            if not readable:
                if time.monotonic() < deadline:
                    continue
                raise BenchError(f"{self.process.name}: no answer within {seconds:.0f} s: {self.process.last_words()}")
            data = os.read(stdout, 65536)
            if not data:
                self.process.ended()
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Generator(TrafficProgram):
    """traffic/generator.c; see there for what the commands do."""

    def __init__(self, program: Path, environment: Environment, ends: Ends = SPLIT) -> None:
        options = ["--offload"] if ends.offload else []
        super().__init__(program, environment, ends, environment.cpus.generator, options)

    def run(self, size: int, stations: tuple[int, int], pair: int | None = None) -> None:
        """Sends frames of `size` bytes (without FCS) both ways, as fast as they are taken, in one pair of ports or all.

        `stations` are those behind the first and the second port of each pair; everyone sends to everyone there.
        """
        self._command(f"run {_flows(size, stations, pair)}")

    def stream(self, size: int) -> None:
        """One TCP stream in frames of `size` bytes, from the first port of each pair to the second."""
        self._command(f"stream {size}")

    def learn(self, size: int, stations: tuple[int, int], pair: int | None = None) -> None:
        """Begins to send one frame of each flow of `run`; `counters().left` are those not yet back."""
        self._command(f"learn {_flows(size, stations, pair)}")

    def stop(self) -> None:
        """Sends nothing more."""
        self._command("stop")

    def counters(self) -> Counters:
        fields = self._command("stats")
        return Counters(received_each=tuple(fields.pop("received_each")), **fields)

    def ramp(self) -> tuple[float, list[int]]:
        """Seconds of a bin, and frames received by the end of each bin since the last run or stream began."""
        fields = self._command("ramp")
        return fields["us"] / 1e6, fields["received"]

    def wait_for_traffic(self, switch: str, ways: Sequence[int]) -> None:
        """Returns when frames sent from all these ports come out. Raises BenchError, which names the `switch`."""
        start = self.counters().received_each

        def flows() -> bool:
            now = self.counters().received_each
            return all(now[way] > start[way] for way in ways)

        self.process.wait_until(f"no traffic from port {', '.join(map(str, ways))} through {switch}", flows)


def _flows(size: int, stations: tuple[int, int], pair: int | None) -> str:
    return f"{size} {stations[0]} {stations[1]}" + ("" if pair is None else f" {pair}")


class LatencyProbe(TrafficProgram):
    """traffic/latency.c: first packets and bare eventfds, both towards the switch's CPU."""

    def __init__(self, program: Path, environment: Environment) -> None:
        switch_cpu = environment.cpus.switch[0]
        super().__init__(program, environment, Ends(), (), [str(switch_cpu)])
        self.child = 0  # the eventfd's sleeper

    def ready(self, check: Callable[[], None]) -> dict[str, Any]:
        answer = super().ready(check)
        self.child = answer["child"]
        return answer

    def sample(self, count: int, pause_us: int) -> tuple[list[int], list[int]]:
        """Delays of `count` frames and `count` eventfds in ns, alternating, each after a pause of about `pause_us`."""
        answer = self._command(f"sample {count} {pause_us}", ANSWER_SECONDS + count * pause_us * 4e-6)
        return answer["frame"], answer["eventfd"]
