# SPDX-License-Identifier: Apache-2.0
"""How fast a sleeping switch is back: the first packet, and the full rate."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.bench import machine
from tests.bench.environment import Environment
from tests.bench.errors import BenchError
from tests.bench.generator import LatencyProbe, Programs
from tests.bench.measure import WARM_UP_SECONDS, Case, Rig
from tests.bench.peers.ffswitch import FfSwitch
from tests.bench.process import pass_time
from tests.bench.rounds import Group, Outcome, Run, say, start
from tests.bench.stats import Ratio, Spread, others_between, percentile, time_to_rate

SMALL = Case(64)
# A frame and an eventfd take turns, so each comes every 5 ms.
PAUSE_US = 2_500
SAMPLES_A_SECOND = 1_200
SAMPLES_MIN = 400
P99 = 0.99
RAMPS = 5
RAMPS_MAX = 15
RAMP_SECONDS = 0.05
WAITED_NS = 5_000_000  # longer than the commands take, shorter than a window that would be missed
IDLE_SECONDS = 0.3
FULL_RATE = 0.9
WINDOW = 4  # bins: 1 ms


@dataclass(frozen=True, slots=True)
class Delays:
    """Delays in ns, alternately measured; others: worst share of a core that others took meanwhile."""

    frames: Sequence[int]
    eventfds: Sequence[int]
    others: float

    @property
    def ratio(self) -> float:
        """p99 of the first packet's over p99 of the eventfd's."""
        return percentile(self.frames, P99) / percentile(self.eventfds, P99)


@dataclass(frozen=True, slots=True)
class Ramp:
    """Frames received by the end of each bin after a pause; waited_ns: for how long poll threads lacked a core."""

    bin_seconds: float
    received: Sequence[int]
    waited_ns: int


def measure(run: Run) -> Outcome:
    """Both, every round. Raises BenchError."""
    delays: list[Delays] = []
    ramps: list[float] = []
    with contextlib.ExitStack() as stack:
        _, rig = start(stack, run, "ramp", FfSwitch)
        part = run.environment.part("wake")
        switch, probe = stack.enter_context(_probe(part, run.programs))
        for number in range(1, run.rounds + 1):
            found = _delays(switch, probe, part, max(SAMPLES_MIN, round(SAMPLES_A_SECOND * run.seconds)))
            delays.append(found)
            with rig.resumed():
                ramps.append(_ramp(rig))
            say(
                run,
                number,
                f"a first packet's median and p99 {_median_p99(found.frames)} µs, an eventfd's "
                f"{_median_p99(found.eventfds)} µs; {FULL_RATE:.0%} of the rate after "
                f"{ramps[-1]:.2f} ms",
            )
    worst = max(d.others for d in delays)
    return Outcome(
        {
            "wake_vs_eventfd": Ratio(Spread.of([d.ratio for d in delays]), worst),
            "full_rate_ms": Ratio(Spread.of(ramps), worst),
        },
        details={"wake_us": [_summary(d) for d in delays]},
    )


@contextlib.contextmanager
def _probe(environment: Environment, programs: Programs) -> Iterator[tuple[FfSwitch, LatencyProbe]]:
    """A switch and the probe that it connects, every thread in its place."""
    cpus = environment.cpus
    with FfSwitch(environment) as switch, LatencyProbe(programs.latency, environment) as probe:
        sockets = environment.sockets()
        probe.process.wait_until("no socket", sockets[0].exists)
        switch.connect(sockets)
        probe.ready(switch.check)
        (worker,) = machine.poll_threads(switch.pids[0], switch.poll_prefix, 1)
        machine.pin(switch.pids, {worker: cpus.switch[0]}, cpus.generator[0])
        yield switch, probe


def _delays(switch: FfSwitch, probe: LatencyProbe, environment: Environment, count: int) -> Delays:
    cpus = environment.cpus
    pids = [*switch.pids, probe.process.pid, probe.child]
    (worker,) = machine.poll_threads(switch.pids[0], switch.poll_prefix, 1)
    with machine.pinned_self(cpus.generator[0]), machine.undisturbed([worker, probe.process.pid, probe.child]):
        before, started = machine.core_times(pids, cpus.both), time.monotonic_ns()
        frames, eventfds = probe.sample(count, PAUSE_US)
        after, wall = machine.core_times(pids, cpus.both), time.monotonic_ns() - started
    switch.check()
    lost = frames.count(0) + eventfds.count(0)
    if lost * 100 > 2 * count:
        raise BenchError(f"{switch.name}: {lost} of {2 * count} first packets or eventfds were not seen in time")
    others = max(others_between(before[cpu], after[cpu], wall) for cpu in cpus.both)
    return Delays([ns for ns in frames if ns], [ns for ns in eventfds if ns], others)


def _ramp(rig: Rig) -> float:
    """Milliseconds from the first packet after a pause to FULL_RATE, the median of RAMPS."""
    rig.start(SMALL)
    pass_time(WARM_UP_SECONDS)
    with (
        machine.pinned_self(rig.environment.cpus.generator[0]),
        machine.undisturbed(rig.poll_threads, [rig.generator.process.pid]),
    ):
        ramps = quiet_ramps(lambda: _after_pause(rig))
    rig.generator.stop()
    try:
        return statistics.median(time_to_rate(r.received, r.bin_seconds, FULL_RATE, WINDOW) for r in ramps) * 1e3
    except ValueError as error:
        raise BenchError(f"{rig.peer.name}, after a pause: {error}") from error


def _after_pause(rig: Rig) -> Ramp:
    rig.generator.stop()
    pass_time(IDLE_SECONDS)
    before = machine.waited_ns(rig.poll_threads)
    rig.generator.run(SMALL.size, SMALL.stations)
    pass_time(RAMP_SECONDS)
    bin_seconds, received = rig.generator.ramp()
    return Ramp(bin_seconds, received, machine.waited_ns(rig.poll_threads) - before)


def quiet_ramps(once: Callable[[], Ramp]) -> list[Ramp]:
    """RAMPS ramps, or as many as RAMPS_MAX attempts give, in which no poll thread waited for its core.

    The others say nothing about the switch. Raises BenchError when there is none.
    """
    attempts = (once() for _ in range(RAMPS_MAX))
    found = list(itertools.islice((ramp for ramp in attempts if ramp.waited_ns <= WAITED_NS), RAMPS))
    if not found:
        raise BenchError(f"after a pause: others had a poll thread's core in each of {RAMPS_MAX} ramps")
    return found


def _median_p99(values: Sequence[float]) -> str:
    return f"{percentile(values, 0.5) / 1e3:.0f} and {percentile(values, P99) / 1e3:.0f}"


def _summary(delays: Delays) -> dict[str, float]:
    return {
        f"{name}_{label}": percentile(values, share) / 1e3
        for name, values in (("frame", delays.frames), ("eventfd", delays.eventfds))
        for label, share in (("p50", 0.5), ("p99", P99), ("max", 1.0))
    }


GROUP = Group("wake", ("wake_vs_eventfd", "full_rate_ms"), measure)
