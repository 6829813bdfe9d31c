# SPDX-License-Identifier: Apache-2.0
"""Two workers against one, between two pairs of ports."""

from __future__ import annotations

import contextlib
import os
import statistics
from dataclasses import replace
from functools import partial

from tests.bench.generator import Ends
from tests.bench.machine import Cpus
from tests.bench.measure import Case
from tests.bench.peers.ffswitch import FfSwitch
from tests.bench.rounds import Contender, Group, Outcome, Results, Run, interleave, start
from tests.bench.stats import Ratio, Spread, ratio, worst

ENDS = Ends(pairs=2)
WORKERS = 2
ALL = Case(64)
# Where each worker has no CPU of its own, the pairs, and so the workers, are busy one after the other.
ALONE = tuple(Case(64, pair=pair) for pair in range(ENDS.pairs))
ONE, TWO = f"{FfSwitch.name}, one worker", f"{FfSwitch.name}, two workers"


def measure(run: Run) -> Outcome:
    """A switch with one worker and one with two; each worker has a CPU where there are enough. Raises BenchError."""
    cpus = Cpus.choose(os.sched_getaffinity(0), each=WORKERS)
    spread = len(cpus.switch) == WORKERS
    run = replace(run, environment=replace(run.environment, cpus=cpus))
    cases = (ALL,) if spread else ALONE
    with contextlib.ExitStack() as stack:
        _, one = start(stack, run, "one-worker", FfSwitch, ENDS)
        _, two = start(stack, run, "two-workers", partial(FfSwitch, workers=WORKERS), ENDS)
        results = interleave(run, [Contender(ONE, one, cases), Contender(TWO, two, cases)])
    return Outcome({"workers_2": by_rate(results) if spread else by_cycles(results)}, results)


def by_rate(results: Results) -> Ratio:
    """Packets a second of two workers over those of one, round by round."""
    one, two = results[ONE, ALL], results[TWO, ALL]
    spread = Spread.of([b.mpps / a.mpps for a, b in zip(one, two, strict=True)])
    return Ratio(spread, worst((*one, *two)), "packets a second")


def by_cycles(results: Results) -> Ratio:
    """Packets a cycle of one core's worker, for each of two: what they do together unless they contend."""
    found = [ratio(results[ONE, case], results[TWO, case], scale=WORKERS) for case in ALONE]
    # A packet of either pair counts alike.
    middle, low, high = (
        statistics.mean(getattr(r.spread, name) for r in found) for name in ("median", "minimum", "maximum")
    )
    return Ratio(Spread(middle, low, high), max(r.others for r in found), "by cycles, one worker busy at a time")


GROUP = Group("workers", ("workers_2",), measure)
