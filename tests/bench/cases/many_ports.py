# SPDX-License-Identifier: Apache-2.0
"""What hundreds of idle ports on the same worker cost the one pair that is busy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench import report
from tests.bench.measure import Case, rig
from tests.bench.peers.ffswitch import FfSwitch
from tests.bench.process import wait_for
from tests.bench.rounds import Group, Outcome, Results, Run, say
from tests.bench.stats import ratio
from tests.frontend.frontend import FrontEnd

IDLE_PORTS = 254
CASE = Case(64)
# Idle rings need not be large, and there are four hundred of them to give memory to.
RING = 64
# rte_vhost tries every absent peer once a second, one after the other.
CONNECT_SECONDS = 60.0
# Each starts a switch and hundreds of front-ends.
ROUNDS_MAX = 3
# The pair alone, with idle ports whose containers are absent, and with idle ports that are connected.
ALONE, WAITING, CONNECTED = (f"{FfSwitch.name}, {what}" for what in ("2 ports", "254 waiting", "254 idle"))


def measure(run: Run) -> Outcome:
    """Each round with a switch of its own. Raises BenchError."""
    results: Results = {}
    for number in range(1, min(run.rounds, ROUNDS_MAX) + 1):
        here = run.environment.part(f"ports{number}")
        switch = FfSwitch(here)
        sockets = [here.directory / f"idle{i}.sock" for i in range(IDLE_PORTS)]
        with rig(switch, run.programs, here) as running, contextlib.ExitStack() as stack:

            def one(name: str, number: int = number) -> None:
                figure = running.measure(CASE, run.seconds)
                results.setdefault((name, CASE), []).append(figure)
                say(run, number, f"{CASE.label}: {name}: {report.figure_text(figure)}")

            one(ALONE)
            add_idle(switch, sockets)
            one(WAITING)
            connect_idle(stack, switch, sockets)
            one(CONNECTED)
    alone = results[ALONE, CASE]
    found = {
        "ports_256": ratio(alone, results[CONNECTED, CASE]),
        "ports_256_waiting": ratio(alone, results[WAITING, CASE]),
    }
    return Outcome(found, results)


def add_idle(switch: FfSwitch, sockets: Sequence[Path]) -> None:
    """Adds a port for each socket. Raises BenchError."""
    for i, path in enumerate(sockets):
        switch.call("port.add", name=f"idle{i}", socket=str(path))


def connect_idle(stack: contextlib.ExitStack, switch: FfSwitch, sockets: Sequence[Path]) -> None:
    """A front-end at each port of `add_idle`, which `stack` closes; returns when all ports are ready."""
    ends = [FrontEnd(path, rx_ring=RING, tx_ring=RING) for path in sockets]
    for end in ends:
        stack.callback(end.close)
    for end in ends:
        end.connect(CONNECT_SECONDS)
    wait_for("the idle ports are not all ready", _all_ready(switch), CONNECT_SECONDS)


def _all_ready(switch: FfSwitch) -> Callable[[], bool]:
    return lambda: all(port["state"] == "ready" for port in switch.call("port.list"))


GROUP = Group("ports", ("ports_256", "ports_256_waiting"), measure)
