# SPDX-License-Identifier: Apache-2.0
"""Drives generator.c: the one traffic source and sink of all measurements."""

from __future__ import annotations

import json
import os
import select
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.bench.environment import Environment
from tests.bench.errors import BenchError
from tests.bench.process import Process, run

SOURCE = Path(__file__).with_name("generator.c")
MEMORY_MB = 48
ANSWER_SECONDS = 10.0
CONNECT_SECONDS = 60.0
CHECK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Counters:
    """The generator's counters since its start; see struct way in generator.c. ns: CLOCK_MONOTONIC."""

    ns: int
    tsc_hz: int
    sent: int
    received: int
    received_each: tuple[int, int]
    stray: int
    turns: int
    turns_full: int


def build(directory: Path) -> Path:
    """Compiles the generator into `directory` when its source is newer; returns the program."""
    program = directory / "generator"
    if program.exists() and program.stat().st_mtime > SOURCE.stat().st_mtime:
        return program
    directory.mkdir(parents=True, exist_ok=True)
    flags, libs = (shlex.split(run(["pkg-config", option, "libdpdk"])) for option in ("--cflags", "--libs"))
    warnings = ["-Wall", "-Wextra", "-Werror"]
    run(["gcc", "-std=gnu11", "-O3", *warnings, *flags, SOURCE, "-o", program, *libs], seconds=120)
    return program


class Generator:
    """Two virtio-user ports in server mode, so that each switch comes as a vhost-user client.

    The process is there from construction on, and its sockets soon after; `ready` returns
    when the switch has connected to both.
    """

    def __init__(self, program: Path, environment: Environment) -> None:
        argv: list[str | Path] = [program, *environment.lcores(environment.cpus.generator)]
        argv += environment.memory_args(MEMORY_MB, "generator")
        for index, path in enumerate(environment.sockets):
            argv += ["--vdev", f"net_virtio_user{index},path={path},server=1,mac=02:00:00:00:00:{index + 1:02x}"]
        log = environment.directory / "generator.log"
        self.process = Process("generator", argv, log, env=environment.env, pipe_stdout=True)
        self._pending = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.stop()

    def ready(self, check: Callable[[], None]) -> None:
        """Waits until both ports run, as long as `check` does not raise. Raises BenchError."""
        self._answer(CONNECT_SECONDS, check)

    def run(self, size: int, flows: int) -> None:
        """Sends frames of `size` bytes (without FCS) in `flows` UDP flows each way, as fast as they are taken."""
        self._command(f"run {size} {flows}")

    def stop(self) -> None:
        """Sends nothing more."""
        self._command("stop")

    def counters(self) -> Counters:
        fields = self._command("stats")
        first, second = fields.pop("received_each")
        return Counters(received_each=(first, second), **fields)

    def wait_for_traffic(self, switch: str) -> None:
        """Returns when frames come out of both ports. Raises BenchError, which names the `switch`."""
        start = self.counters().received_each
        self.process.wait_until(
            f"no traffic in both directions through {switch}",
            lambda: all(now > then for now, then in zip(self.counters().received_each, start, strict=True)),
        )

    def _command(self, line: str) -> dict[str, Any]:
        self.process.say(line)
        answer = self._answer(ANSWER_SECONDS)
        if "error" in answer:
            raise BenchError(f"generator: {answer['error']}: {line}")
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
                raise BenchError(f"generator: no answer within {seconds:.0f} s: {self.process.last_words()}")
            data = os.read(stdout, 65536)
            if not data:
                self.process.ended()
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer
