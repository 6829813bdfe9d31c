# SPDX-License-Identifier: Apache-2.0
"""Processes of traffic/duplex.c: the applications whose packets `make bench-shortcut` counts."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import machine
from tests.bench.environment import Environment
from tests.bench.process import Process, wait_for
from tests.bench.stats import others_between

PLUGIN = Path("build/endpoint/librte_net_ff.so").resolve()
MEMORY_MB = 192
LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Rate:
    """Packets/s that all of them took and sent, and the worst share of a core that others took meanwhile."""

    taken: float
    sent: float
    others: float


class Ends:
    """Some processes, each on a CPU with one or more devices. They end with the context."""

    def __init__(self, program: Path, environment: Environment, size: int) -> None:
        """size: bytes of a frame."""
        self._program, self._environment, self._size = program, environment, size
        self._stack = contextlib.ExitStack()
        self._processes: list[Process] = []

    def __enter__(self) -> Ends:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def start(self, name: str, cpu: int, vdevs: Sequence[str], roles: Sequence[str]) -> None:
        """One more, with a role for each device; returns when its devices are started. Raises BenchError."""
        environment = self._environment
        memory = environment.memory_args(MEMORY_MB, f"{name}{self._size}")
        argv: list[str | Path] = [self._program, "--lcores", f"0@{cpu}", *memory, "-d", PLUGIN]
        argv += [word for vdev in vdevs for word in ("--vdev", vdev)]
        argv += ["--", str(self._size), *roles]
        log = environment.directory / f"{name}.log"
        end = self._stack.enter_context(Process(f"duplex {name}", argv, log, env=environment.env, pipe_stdout=True))
        self._expect(end, b"started\n")
        self._processes.append(end)

    def linked(self) -> None:
        """Returns when all have their links up. Raises BenchError."""
        for end in self._processes:
            self._expect(end, b"linked\n")

    @staticmethod
    def _expect(end: Process, word: bytes) -> None:
        while (line := end.stdout.readline()) != word:
            if not line:
                end.ended()

    def rate(self, seconds: float, switch: Sequence[int] = (), polling: Sequence[int] = ()) -> Rate:
        """Counts for a while. switch: its processes; polling: those of its threads that poll. Raises BenchError."""
        ends = [end.pid for end in self._processes]
        pids, cpus = [*ends, os.getpid(), *switch], self._environment.cpus.both
        before, begun = machine.core_times(pids, cpus), time.monotonic_ns()
        with machine.undisturbed([*ends, *polling]):
            taken, sent = self._count(seconds)
        after, wall = machine.core_times(pids, cpus), time.monotonic_ns() - begun
        others = max(others_between(before[cpu], after[cpu], wall) for cpu in cpus)
        return Rate(taken / seconds, sent / seconds, others)

    def flowing(self) -> None:
        """Returns when packets come through. Raises BenchError."""
        wait_for("no packet comes through", lambda: self._count(LOOK_SECONDS)[0] > 0)

    def _count(self, seconds: float) -> tuple[int, int]:
        for end in self._processes:
            end.say(str(int(seconds * 1000)))
        taken = sent = 0
        for end in self._processes:
            line = end.stdout.readline()
            if not line:
                end.ended()
            counts = [int(word) for word in line.split()]
            taken, sent = taken + counts[0], sent + counts[1]
        return taken, sent
