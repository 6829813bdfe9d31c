# SPDX-License-Identifier: Apache-2.0
"""What a switch costs that has nothing to do."""

from __future__ import annotations

import contextlib
import time

from tests.bench import machine
from tests.bench.cases.many_ports import add_idle, connect_idle
from tests.bench.peers.ffswitch import FfSwitch
from tests.bench.process import pass_time
from tests.bench.rounds import Group, Outcome, Run, say
from tests.bench.stats import NS, Ratio, Spread

PORTS = 64
SECONDS = 5.0
SETTLE_SECONDS = 2.0


def measure(run: Run) -> Outcome:
    """CPU time of the whole daemon over SECONDS, in percent of a core, every round. Raises BenchError."""
    here = run.environment.part("idle")
    found = []
    with FfSwitch(here) as switch, contextlib.ExitStack() as stack:
        sockets = [here.directory / f"idle{i}.sock" for i in range(PORTS)]
        add_idle(switch, sockets)
        connect_idle(stack, switch, sockets)
        pass_time(SETTLE_SECONDS)
        for number in range(1, run.rounds + 1):
            used, start = machine.cpu_ns(switch.pids[0]), time.monotonic()
            pass_time(SECONDS)
            percent = 100 * (machine.cpu_ns(switch.pids[0]) - used) / NS / (time.monotonic() - start)
            found.append(percent)
            say(run, number, f"{PORTS} idle ports: {percent:.2f} % of a core")
            switch.check()
    # Others do not show: the daemon's own time is counted, and it waits for nobody.
    return Outcome({"idle_cpu_pct": Ratio(Spread.of(found), 0.0)})


GROUP = Group("idle", ("idle_cpu_pct",), measure)
