# SPDX-License-Identifier: Apache-2.0
"""From counters to figures: cost of a packet, contamination, spread. No I/O.

The cost of a packet is the time that the switch's core was there for it, in TSC
cycles, over the packets that reached the other side. It is taken from outside,
in the same way for every switch, whether it polls or sleeps when it finds
nothing, and time that other processes take from the core is not in it. It is
right only while the switch is the limit, that is, while the generator finds the
switch's rings full; otherwise part of that time went to empty rings, and the
switch's own count of busy cycles is taken instead.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

NS = 1e9
# The switch is the limit when at least this share of the generator's bursts found no room. Where the generator
# is the limit the share is near 0, where the switch is it was never seen below 0.3.
FULL_SHARE = 0.2
# A slice is quiet when others had no more than this share of either core's time. With real-time priority for the
# poll threads the kernel still leaves the others 5 %.
QUIET = 0.06
# On a busy machine a measurement goes on for up to so many times its length to find quiet slices.
PATIENCE = 4


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    minimum: float
    maximum: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Median, least and greatest of at least one value."""
        return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Core:
    """Cumulative times of one CPU, in ns; of several: their mean."""

    own_ns: int  # threads of the benchmark ran there
    idle_ns: int

    @staticmethod
    def mean(cores: Sequence[Core]) -> Core:
        """The mean of at least one CPU's times."""
        return Core(sum(c.own_ns for c in cores) // len(cores), sum(c.idle_ns for c in cores) // len(cores))


def others_between(first: Core, last: Core, wall_ns: int) -> float:
    """The share of a core's time that others took in `wall_ns`."""
    used = (last.own_ns - first.own_ns) + (last.idle_ns - first.idle_ns)
    return min(1.0, max(0.0, 1 - used / wall_ns))  # proc(5): the idle times may go back


@dataclass(frozen=True, slots=True)
class Sample:
    """All counters at one instant, cumulative."""

    ns: int  # CLOCK_MONOTONIC
    sent: int  # frames that the switch's rings took
    received: int  # frames that came out at the other side
    turns: int  # bursts that the generator offered
    turns_full: int  # bursts of which the ring took only a part
    switch: Core
    generator: Core


@dataclass(frozen=True, slots=True)
class OwnCount:
    """A switch's own counters, cumulative: cycles spent on packets, and packets."""

    cycles: float
    packets: float


@dataclass(frozen=True, slots=True)
class Slice:
    """What happened between two samples; others_* are shares of that core's time."""

    seconds: float
    sent: int
    received: int
    full_share: float
    others_switch: float
    others_generator: float

    @staticmethod
    def between(a: Sample, b: Sample) -> Slice:
        """The counters' growth from `a` to the later `b`."""
        wall = b.ns - a.ns
        return Slice(
            seconds=wall / NS,
            sent=b.sent - a.sent,
            received=b.received - a.received,
            full_share=(b.turns_full - a.turns_full) / max(1, b.turns - a.turns),
            others_switch=others_between(a.switch, b.switch, wall),
            others_generator=others_between(a.generator, b.generator, wall),
        )

    @property
    def core_seconds(self) -> float:
        """Time that the switch had its core."""
        return self.seconds * (1 - self.others_switch)

    @property
    def contamination(self) -> float:
        return max(self.others_switch, self.others_generator)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement of one switch in one case."""

    mpps: float  # million packets a second that came out, both ways together
    cycles: float  # TSC cycles of the switch's cores per packet
    own_cycles: float | None  # the same as the switch itself counts it
    switch_limited: bool  # else the generator was the limit
    loss: float  # share of the frames taken that did not come out
    others_switch: float  # share of the core's time that went to other processes, in the slices used
    others_generator: float
    slices: int
    slices_used: int

    @property
    def cost(self) -> float:
        """Cycles a packet, from whichever count is valid here."""
        return self.cycles if self.switch_limited or self.own_cycles is None else self.own_cycles

    @property
    def others(self) -> float:
        """Share of the core that others disturbed more."""
        return max(self.others_switch, self.others_generator)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A number of the table: its spread over the rounds, and the worst share of a core that others took meanwhile."""

    spread: Spread
    others: float
    note: str = ""


def enough(samples: Sequence[Sample], wanted: int) -> bool:
    """Whether samples in time order hold `wanted` quiet slices, or so many slices that waiting has become pointless."""
    slices = [Slice.between(a, b) for a, b in pairwise(samples)]
    return sum(s.contamination <= QUIET for s in slices) >= wanted or len(slices) >= PATIENCE * wanted


def figure(
    samples: Sequence[Sample], wanted: int, tsc_hz: float, own: tuple[OwnCount, OwnCount] | None, cores: int = 1
) -> Figure:
    """The figure of the `wanted` quietest slices of samples in time order; `own`: the switch's counts around them.

    `cores` are those that the switch's poll threads have.

    Slices are chosen by what other processes did and never by the switch's figures, so none is favoured.
    Raises ValueError when nothing came out.
    """
    slices = [Slice.between(a, b) for a, b in pairwise(samples)]
    used = [s for s in sorted(slices, key=lambda s: s.contamination)[:wanted] if s.received > 0]
    if not used:
        raise ValueError("no packet came through")
    seconds = sum(s.seconds for s in used)
    received = sum(s.received for s in used)
    sent = samples[-1].sent - samples[0].sent
    own_packets = own[1].packets - own[0].packets if own else 0
    return Figure(
        mpps=received / seconds / 1e6,
        cycles=statistics.median(s.core_seconds / s.received for s in used) * tsc_hz * cores,
        own_cycles=(own[1].cycles - own[0].cycles) / own_packets if own and own_packets > 0 else None,
        switch_limited=statistics.median(s.full_share for s in used) >= FULL_SHARE,
        loss=max(0.0, 1 - (samples[-1].received - samples[0].received) / max(1, sent)),
        others_switch=sum(s.others_switch * s.seconds for s in used) / seconds,
        others_generator=sum(s.others_generator * s.seconds for s in used) / seconds,
        slices=len(slices),
        slices_used=len(used),
    )


def ratio(theirs: Sequence[Figure], ours: Sequence[Figure], *, scale: float = 1.0, note: str = "") -> Ratio:
    """How many times less a packet costs us, round by round: theirs[i] / ours[i], times `scale`."""
    pairs = [_alike(t, o) for t, o in zip(theirs, ours, strict=True)]
    return Ratio(Spread.of([scale * t / o for t, o in pairs]), worst((*theirs, *ours)), note)


def _alike(a: Figure, b: Figure) -> tuple[float, float]:
    """What a packet costs in two measurements, counted in the same way where that can be."""
    if a.own_cycles is None or b.own_cycles is None or (a.switch_limited and b.switch_limited):
        return a.cost, b.cost
    return a.own_cycles, b.own_cycles


def worst(figures: Iterable[Figure]) -> float:
    """The worst share of a core that others took in any of the measurements."""
    return max(figure.others for figure in figures)


def percentile(values: Sequence[float], share: float) -> float:
    """The least of the values that at least this share of them does not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def time_to_rate(received: Sequence[int], bin_seconds: float, share: float, window: int) -> float:
    """Seconds from the start until the rate over `window` bins is `share` of the steady one.

    `received`: frames by the end of each bin. The steady rate is that of the last half, which is what counts as
    steady however slow it is. Raises ValueError when nothing came in that half.
    """
    totals = [0, *received]
    half = len(received) // 2
    steady = (totals[-1] - totals[half]) / (len(received) - half)
    if steady <= 0:
        raise ValueError("no packet came through")
    rates = ((end, (totals[end] - totals[max(0, end - window)]) / window) for end in range(1, len(totals)))
    return next(end for end, rate in rates if rate >= share * steady) * bin_seconds
