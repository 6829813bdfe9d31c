# SPDX-License-Identifier: Apache-2.0
"""A million learned flows in one table, and how fast they are learned."""

from __future__ import annotations

import contextlib
from dataclasses import asdict

import click

from tests.bench.environment import Environment
from tests.bench.measure import Case
from tests.bench.peers.ffswitch import FfSwitch
from tests.bench.rounds import Contender, Group, Outcome, Run, interleave, start
from tests.bench.stats import ratio

ONE = Case(64)
# As many as the slow path keeps: 1000 stations on one side talk to 500 on the other, both ways.
MILLION = Case(64, (1000, 500))
NAME = f"{FfSwitch.name}, long memory"


def _switch(environment: Environment) -> FfSwitch:
    """One that forgets no flow while others are learned or measured."""
    return FfSwitch(environment, options=["--flow-idle", "86400"])


def measure(run: Run) -> Outcome:
    """One switch that has learned them all, with one of them and with all in use. Raises BenchError."""
    with contextlib.ExitStack() as stack:
        switch, rig = start(stack, run, "million", _switch)
        with rig.resumed():
            learned = rig.learn(MILLION)
            seconds = max(learned.seconds, 1e-9)
            click.echo(
                f"{MILLION.label} learned in {seconds:.0f} s, {learned.flows / seconds:,.0f} a second; "
                f"{learned.lost} frames lost; the table has {switch.call('show')['flows']:,}"
            )
        results = interleave(run, [Contender(NAME, rig, [ONE, MILLION])])
    found = ratio(results[NAME, ONE], results[NAME, MILLION])
    return Outcome({"flows_1m": found}, results, details={"learned": asdict(learned)})


GROUP = Group("million", ("flows_1m",), measure)
