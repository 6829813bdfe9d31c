# SPDX-License-Identifier: Apache-2.0
"""Rounds: what a ratio compares is measured within seconds of each other, again and again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import click

from tests.bench import report
from tests.bench.environment import Environment
from tests.bench.generator import SPLIT, Ends, Programs
from tests.bench.measure import Case, Rig, rig
from tests.bench.peers import Peer
from tests.bench.stats import Figure, Ratio, Spread

P = TypeVar("P", bound=Peer)

Results = dict[tuple[str, Case], list[Figure]]


@dataclass(frozen=True, slots=True)
class Run:
    """What the groups of measurements are given. seconds: of each measurement."""

    environment: Environment
    programs: Programs
    rounds: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a group of measurements found: ratios by name, what they were computed from, and times in seconds."""

    ratios: dict[str, Ratio] = field(default_factory=dict)
    results: Results = field(default_factory=dict)
    times: dict[str, Spread] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """Measurements that share their processes. ratios: all names that the outcome may have."""

    name: str
    ratios: Sequence[str]
    measure: Callable[[Run], Outcome]


@dataclass(frozen=True, slots=True)
class Contender:
    """A line of the table: a switch, how it is set up, and the cases that it is measured in."""

    name: str
    rig: Rig
    cases: Sequence[Case]
    prepare: Callable[[], None] = lambda: None


def start(
    stack: contextlib.ExitStack, run: Run, name: str, make: Callable[[Environment], P], ends: Ends = SPLIT
) -> tuple[P, Rig]:
    """A switch and its rig in a directory of its own, paused; `stack` ends it. Raises BenchError."""
    here = run.environment.part(name)
    peer = make(here)
    started = stack.enter_context(rig(peer, run.programs, here, ends))
    started.pause()
    return peer, started


def interleave(run: Run, field: Sequence[Contender]) -> Results:
    """Every round: each case, in each every switch, one after the other. Raises BenchError."""
    results: Results = {}
    cases = dict.fromkeys(case for contender in field for case in contender.cases)
    for number in range(1, run.rounds + 1):
        for case in cases:
            for contender in (c for c in field if case in c.cases):
                with contender.rig.resumed():
                    contender.prepare()
                    figure = contender.rig.measure(case, run.seconds)
                results.setdefault((contender.name, case), []).append(figure)
                say(run, number, f"{case.label}: {contender.name}: {report.figure_text(figure)}")
    return results


def say(run: Run, number: int, text: str) -> None:
    """A line of progress in round `number`, from 1."""
    click.echo(f"round {number}/{run.rounds}: {text}")
