# SPDX-License-Identifier: Apache-2.0
"""What hundreds of idle ports on the same worker cost the one pair that is busy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.environment import Environment
from tests.bench.measure import Case, rig
from tests.bench.peers.ffswitch import FfSwitch
from tests.bench.process import wait_for
from tests.bench.stats import Figure
from tests.frontend.frontend import FrontEnd

IDLE_PORTS = 254
CASE = Case(size=64, flows=1)
# Idle rings need not be large, and there are four hundred of them to give memory to.
RING = 64
# rte_vhost tries every absent peer once a second, one after the other.
CONNECT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Round:
    """The pair alone, with idle ports whose containers are absent, and with idle ports that are connected."""

    alone: Figure
    waiting: Figure
    connected: Figure

    @staticmethod
    def ratio(few: Figure, many: Figure) -> float:
        """The pair's rate with many ports over that with two, for the CPU time that the worker got."""
        return few.cycles / many.cycles


def measure(environment: Environment, program: Path, rounds: int, seconds: float) -> list[Round]:
    """Each round with a switch of its own. Raises BenchError."""
    results = []
    for number in range(rounds):
        here = environment.part(f"ports{number}")
        switch = FfSwitch(here)
        with rig(switch, program, here) as running, contextlib.ExitStack() as stack:
            alone = running.measure(CASE, seconds)
            sockets = [here.directory / f"idle{i}.sock" for i in range(IDLE_PORTS)]
            for i, path in enumerate(sockets):
                switch.call("port.add", name=f"idle{i}", socket=str(path))
            waiting = running.measure(CASE, seconds)
            ends = [FrontEnd(path, rx_ring=RING, tx_ring=RING) for path in sockets]
            for end in ends:
                stack.callback(end.close)
            for end in ends:
                end.connect(CONNECT_SECONDS)
            wait_for("the idle ports are not all ready", _all_ready(switch), CONNECT_SECONDS)
            connected = running.measure(CASE, seconds)
        results.append(Round(alone, waiting, connected))
    return results


def _all_ready(switch: FfSwitch) -> Callable[[], bool]:
    def ready() -> bool:
        states = [port["state"] for port in switch.call("port.list")]
        return states.count("ready") == IDLE_PORTS + 2

    return ready
