# SPDX-License-Identifier: Apache-2.0
"""One switch under traffic: set up, warm up, sample, figure."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import machine
from tests.bench.environment import Environment
from tests.bench.errors import BenchError
from tests.bench.generator import Generator
from tests.bench.peers import Peer
from tests.bench.stats import Core, Figure, Sample, enough, figure

# Long enough for addresses to be learned and for OVS's caches, filled by chance, to be full.
WARM_UP_SECONDS = 0.5
SLICE_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Case:
    """Frames of `size` bytes without FCS; `flows` UDP 5-tuples each way."""

    size: int
    flows: int

    @property
    def label(self) -> str:
        return f"{self.size} B, {self.flows:,} flow{'s' if self.flows > 1 else ''}"


@dataclass(frozen=True, slots=True)
class Rig:
    """A switch that forwards between the generator's ports, every thread in its place."""

    peer: Peer
    generator: Generator
    environment: Environment
    poll_threads: tuple[int, int]  # the switch's and the generator's

    def pause(self) -> None:
        """Stops all its processes where they are, so that another rig has the machine."""
        self._signal(signal.SIGSTOP)

    @contextlib.contextmanager
    def resumed(self) -> Iterator[None]:
        """Lets a paused rig run meanwhile."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.pause()

    def _signal(self, number: signal.Signals) -> None:
        for pid in (*self.peer.pids, self.generator.process.pid):
            with contextlib.suppress(ProcessLookupError):  # whoever looks after it will say so
                os.kill(pid, number)

    def measure(self, case: Case, seconds: float) -> Figure:
        """The figure of `seconds` of quiet slices, or of the quietest there were.

        Raises BenchError when no packet comes through.
        """
        self.generator.run(case.size, case.flows)
        self.generator.wait_for_traffic(self.peer.name)
        time.sleep(WARM_UP_SECONDS)
        before = self.peer.own_count()
        wanted = max(1, round(seconds / SLICE_SECONDS))
        with machine.pinned_self(self.environment.cpus.generator), machine.undisturbed(self.poll_threads):
            samples = [self._sample()]
            while not enough(samples, wanted):
                time.sleep(SLICE_SECONDS)
                samples.append(self._sample())
        after = self.peer.own_count()
        tsc_hz = self.generator.counters().tsc_hz
        self.generator.stop()
        self.peer.check()
        own = (before, after) if before is not None and after is not None else None
        try:
            return figure(samples, wanted, tsc_hz, own)
        except ValueError as error:
            raise BenchError(f"{self.peer.name}, {case.label}: {error}") from error

    def _sample(self) -> Sample:
        cpus = self.environment.cpus
        both = (cpus.switch, cpus.generator)
        counters = self.generator.counters()
        own = machine.own_ns([*self.peer.pids, self.generator.process.pid, os.getpid()], both)
        idle = machine.idle_ns(both)
        return Sample(
            ns=counters.ns,
            sent=counters.sent,
            received=counters.received,
            turns=counters.turns,
            turns_full=counters.turns_full,
            switch=Core(own[cpus.switch], idle[cpus.switch]),
            generator=Core(own[cpus.generator], idle[cpus.generator]),
        )


@contextlib.contextmanager
def rig(peer: Peer, program: Path, environment: Environment) -> Iterator[Rig]:
    """Starts the switch and the generator `program`, connects them, sees packets pass, and pins every thread."""
    sockets: Sequence[Path] = environment.sockets
    cpus = environment.cpus
    with peer, Generator(program, environment) as generator:
        # The second socket appears when the first has its peer.
        generator.process.wait_until("no socket", sockets[0].exists)
        peer.connect(sockets)
        generator.ready(peer.check)
        poll = machine.poll_thread(peer.pids[0], peer.poll_prefix)
        generator_poll = machine.poll_thread(generator.process.pid, "rte-worker")
        machine.pin(peer.pids, poll, cpus.switch, cpus.generator)
        yield Rig(peer, generator, environment, (poll, generator_poll))
