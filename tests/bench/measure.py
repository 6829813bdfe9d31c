# SPDX-License-Identifier: Apache-2.0
"""One switch under traffic: set up, warm up, sample, figure."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import click

from tests.bench import machine
from tests.bench.environment import Environment
from tests.bench.errors import BenchError
from tests.bench.generator import SPLIT, Ends, Generator, Programs
from tests.bench.peers import Peer
from tests.bench.process import pass_time
from tests.bench.stats import Core, Figure, Sample, enough, figure

# Long enough for addresses to be learned and for OVS's caches, filled by chance, to be full.
WARM_UP_SECONDS = 0.5
SLICE_SECONDS = 0.25
LEARN_SECONDS = 600.0
TELL_SECONDS = 5.0
POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Case:
    """Frames of `size` bytes without FCS.

    stations: how many MAC addresses there are behind the first and the second port of each
    pair; everyone sends to everyone on the other side, so a switch that learns has two flows
    for each pair of them. pair: the only pair of ports that sends. stream: one TCP stream in
    one direction instead.
    """

    size: int
    stations: tuple[int, int] = (1, 1)
    pair: int | None = None
    stream: bool = False

    @property
    def flows(self) -> int:
        """Flows of a pair of ports, both ways together."""
        return 1 if self.stream else 2 * self.stations[0] * self.stations[1]

    @property
    def label(self) -> str:
        if self.stream:
            return f"{self.size:,} B, one stream"
        where = "" if self.pair is None else f", pair {self.pair + 1} alone"
        return f"{self.size} B, " + ("one flow each way" if self.flows == 2 else f"{self.flows:,} flows") + where


@dataclass(frozen=True, slots=True)
class Learned:
    """How learning went; lost: frames that did not come back."""

    flows: int
    seconds: float
    lost: int


@dataclass(frozen=True, slots=True)
class Rig:
    """A switch that forwards between the generator's ports, every thread in its place."""

    peer: Peer
    generator: Generator
    environment: Environment
    ends: Ends
    poll_threads: tuple[int, ...]  # the switch's and the generator's

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

    def learn(self, case: Case) -> Learned:
        """Has each flow of the case come once, in order, so that the switch knows all; says how it goes.

        Raises BenchError when that takes more than LEARN_SECONDS.
        """
        began = told = time.monotonic()
        before = self.generator.counters()
        self.generator.learn(case.size, case.stations, case.pair)
        while left := self.generator.counters().left:
            self.peer.check()
            now = time.monotonic()
            if now - began > LEARN_SECONDS:
                raise BenchError(f"{self.peer.name}, {case.label}: {left:,} not learned within {LEARN_SECONDS:.0f} s")
            if now - told > TELL_SECONDS:
                told = now
                click.echo(f"{self.peer.name}, {case.label}: {left:,} to be learned")
            pass_time(POLL_SECONDS)
        after = self.generator.counters()
        return Learned(case.flows, time.monotonic() - began, after.lost - before.lost)

    def start(self, case: Case) -> None:
        """Begins to send; returns when frames come out everywhere. Raises BenchError."""
        ports = range(2 * self.ends.pairs) if case.pair is None else range(2 * case.pair, 2 * case.pair + 2)
        if case.stream:
            # Nobody answers on the other side, so the switch is to hear its address once.
            self.generator.run(64, (1, 1))
            self.generator.wait_for_traffic(self.peer.name, ports)
            self.generator.stream(case.size)
            ports = ports[::2]
        else:
            self.learn(case)
            self.generator.run(case.size, case.stations, case.pair)
        self.generator.wait_for_traffic(self.peer.name, ports)

    def measure(self, case: Case, seconds: float) -> Figure:
        """The figure of `seconds` of quiet slices, or of the quietest there were.

        Raises BenchError when no packet comes through.
        """
        self.start(case)
        pass_time(WARM_UP_SECONDS)
        before = self.peer.own_count()
        wanted = max(1, round(seconds / SLICE_SECONDS))
        with (
            machine.pinned_self(self.environment.cpus.generator[0]),
            machine.undisturbed(self.poll_threads, [self.generator.process.pid]),
        ):
            samples = [self._sample()]
            while not enough(samples, wanted):
                pass_time(SLICE_SECONDS)
                samples.append(self._sample())
        after = self.peer.own_count()
        tsc_hz = self.generator.counters().tsc_hz
        self.generator.stop()
        self.peer.check()
        own = (before, after) if before is not None and after is not None else None
        try:
            return figure(samples, wanted, tsc_hz, own, len(self.environment.cpus.switch))
        except ValueError as error:
            raise BenchError(f"{self.peer.name}, {case.label}: {error}") from error

    def _sample(self) -> Sample:
        cpus = self.environment.cpus
        counters = self.generator.counters()
        times = machine.core_times([*self.peer.pids, self.generator.process.pid, os.getpid()], cpus.both)
        return Sample(
            ns=counters.ns,
            sent=counters.sent,
            received=counters.received,
            turns=counters.turns,
            turns_full=counters.turns_full,
            switch=Core.mean([times[cpu] for cpu in cpus.switch]),
            generator=Core.mean([times[cpu] for cpu in cpus.generator]),
        )


@contextlib.contextmanager
def rig(peer: Peer, programs: Programs, environment: Environment, ends: Ends = SPLIT) -> Iterator[Rig]:
    """Starts the switch and the generator, connects them, and pins every thread."""
    sockets = environment.sockets(ends.pairs)
    with peer, Generator(programs.generator, environment, ends) as generator:
        # The next socket appears when the one before has its peer.
        generator.process.wait_until("no socket", sockets[0].exists)
        # The first ports of all pairs first: workers get queues in turn, so each pair is one worker's.
        peer.connect([*sockets[::2], *sockets[1::2]])
        generator.ready(peer.check)
        yield Rig(peer, generator, environment, ends, pin(peer, generator, environment))


def pin(peer: Peer, generator: Generator, environment: Environment) -> tuple[int, ...]:
    """Puts every poll thread on its CPU, several on one where CPUs are few; returns them. Raises BenchError."""
    cpus = environment.cpus
    poll = machine.poll_threads(peer.pids[0], peer.poll_prefix, peer.poll_count)
    places = {tid: cpus.switch[i % len(cpus.switch)] for i, tid in enumerate(poll)}
    machine.pin(peer.pids, places, cpus.generator[0])
    senders = machine.poll_threads(generator.process.pid, "rte-worker", len(cpus.generator))
    return (*poll, *senders)
