# SPDX-License-Identifier: Apache-2.0
"""How long `ffswitch` commands take, from the start of the process to its exit."""

from __future__ import annotations

import time

from tests.bench.peers.ffswitch import FfSwitch
from tests.bench.rounds import Group, Outcome, Run
from tests.bench.stats import Spread

SAMPLES = 20


def measure(run: Run) -> Outcome:
    """Seconds of each command, SAMPLES times, against a daemon that has nothing else to do."""
    with FfSwitch(run.environment.part("commands")) as switch:
        times = {
            "ffswitch --help": Spread.of([_timed(switch, "--help") for _ in range(SAMPLES)]),
            "ffswitch add-port": Spread.of([_timed(switch, "add-port", f"p{i}") for i in range(SAMPLES)]),
            "ffswitch del-port": Spread.of([_timed(switch, "del-port", f"p{i}") for i in range(SAMPLES)]),
        }
    return Outcome(times=times)


def _timed(switch: FfSwitch, *words: str) -> float:
    start = time.perf_counter()
    switch.command(*words)
    return time.perf_counter() - start


GROUP = Group("commands", (), measure)
