# SPDX-License-Identifier: Apache-2.0
"""Two workers against one, between two pairs of ports."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from functools import partial

from tests.bench.generator import Ends
from tests.bench.machine import Cpus
from tests.bench.measure import Case
from tests.bench.peers.ffswitch import FfSwitch
from tests.bench.rounds import Contender, Group, Outcome, Run, interleave, start
from tests.bench.stats import Figure, Ratio, Spread, ratio, worst

SMALL = Case(64)
ENDS = Ends(pairs=2)
WORKERS = 2
ONE, TWO = f"{FfSwitch.name}, one worker", f"{FfSwitch.name}, two workers"


def measure(run: Run) -> Outcome:
    """A switch with one worker and one with two; each worker has a CPU where there are enough. Raises BenchError."""
    cpus = Cpus.choose(os.sched_getaffinity(0), each=WORKERS)
    run = replace(run, environment=replace(run.environment, cpus=cpus))
    with contextlib.ExitStack() as stack:
        _, one = start(stack, run, "one-worker", FfSwitch, ENDS)
        _, two = start(stack, run, "two-workers", partial(FfSwitch, workers=WORKERS), ENDS)
        results = interleave(run, [Contender(ONE, one, [SMALL]), Contender(TWO, two, [SMALL])])
    spread = len(cpus.switch) == WORKERS
    found = (by_rate if spread else by_cycles)(results[ONE, SMALL], results[TWO, SMALL])
    return Outcome({"workers_2": found}, results)


def by_rate(one: list[Figure], two: list[Figure]) -> Ratio:
    """Packets a second of two workers over those of one, round by round."""
    spread = Spread.of([b.mpps / a.mpps for a, b in zip(one, two, strict=True)])
    return Ratio(spread, worst((*one, *two)), "packets a second")


def by_cycles(one: list[Figure], two: list[Figure]) -> Ratio:
    """What two cores could do: packets a cycle of workers that take turns on one core, twice."""
    return ratio(one, two, scale=WORKERS, note="by cycles, workers take turns on one core")


GROUP = Group("workers", ("workers_2",), measure)
