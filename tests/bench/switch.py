# SPDX-License-Identifier: Apache-2.0
"""`make bench-switch`: ffswitch against OVS-DPDK, testpmd and itself; see docs/performance.md."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from tests.bench import generator, machine, program, report
from tests.bench.cases import commands, forwarding, idle, many_ports, million, offload, packed, wake, workers
from tests.bench.environment import Environment
from tests.bench.errors import BenchError
from tests.bench.report import Goal
from tests.bench.rounds import Group, Outcome, Run

OUTPUT = Path("build/bench/switch.json")
# All switches and their generators, with room for EAL's rounding up.
HUGE_MB = 1024

GROUPS: Sequence[Group] = tuple(
    module.GROUP for module in (forwarding, packed, million, offload, idle, wake, workers, many_ports, commands)
)
GOALS: Mapping[str, Goal] = {
    "vs_ovs_normal_64": Goal(2.0),
    "vs_io_64": Goal(1.4),
    "vs_ovs_normal_1500": Goal(1.8),
    "vs_io_1500": Goal(1.5),
    "packed_vs_io_64": Goal(1.3),
    "flows_10k": Goal(0.8),
    "flows_1m": Goal(0.5),
    "vs_ovs_10k": Goal(3.0),
    "tso_64k": Goal(3.0),
    "idle_cpu_pct": Goal(2.0, at_most=True),
    "wake_vs_eventfd": Goal(1.5, at_most=True),
    "full_rate_ms": Goal(10.0, at_most=True),
    "workers_2": Goal(1.8),
    "ports_256": Goal(0.5),
}
WANTED_SECONDS = {"ffswitch --help": 0.150, "ffswitch add-port": 0.050}


def choose(names: Sequence[str]) -> list[Group]:
    """The groups of these names or with ratios of these names; all when there is none. Raises click.UsageError."""
    known = {name for group in GROUPS for name in (group.name, *group.ratios)}
    for name in names:
        if name not in known:
            raise click.UsageError(f"--only {name}: there is no such measurement: there are {', '.join(sorted(known))}")
    return [group for group in GROUPS if not names or not {group.name, *group.ratios}.isdisjoint(names)]


def bench(groups: Sequence[Group], rounds: int, seconds: float, huge: bool) -> None:
    """The groups one after the other, printed and written to OUTPUT. Raises BenchError."""
    if os.geteuid() != 0:
        raise BenchError("the benchmark pins threads and starts switches: run it as root")
    cpus = machine.Cpus.choose(os.sched_getaffinity(0))
    programs = generator.build(OUTPUT.parent)
    with (
        tempfile.TemporaryDirectory(prefix="ffbench-") as directory,
        machine.huge_pages(HUGE_MB if huge else 0) as enough,
    ):
        environment = Environment(Path(directory), cpus, huge and enough)
        click.echo(
            f"switch on CPU {cpus.switch[0]}, generator on CPU {cpus.generator[0]}, "
            f"{'2 MB' if environment.huge else '4 KB'} pages"
        )
        run = Run(environment, programs, rounds, seconds)
        outcomes = {group.name: group.measure(run) for group in groups}
    whole = combine(outcomes.values())
    _print(whole)
    report.write_json(OUTPUT, document(whole) | {"machine": {"cpus": asdict(cpus), "huge_pages": environment.huge}})
    click.echo(f"written to {OUTPUT}")


def combine(outcomes: Iterable[Outcome]) -> Outcome:
    """What several groups found, as one."""
    whole = Outcome()
    for outcome in outcomes:
        whole.ratios.update(outcome.ratios)
        whole.results.update(outcome.results)
        whole.times.update(outcome.times)
        whole.details.update(outcome.details)
    return whole


def document(outcome: Outcome) -> dict[str, object]:
    """The content of OUTPUT."""
    return {
        "ratios": {name: report.ratio_json(ratio, GOALS.get(name)) for name, ratio in outcome.ratios.items()},
        "cells": report.cells_json(outcome.results),
        "seconds": {name: report.spread_json(spread) for name, spread in outcome.times.items()},
        **outcome.details,
    }


def _print(outcome: Outcome) -> None:
    console = report.console()
    if outcome.results:
        console.print(report.cost_table(outcome.results))
    if warning := report.contamination_warning(outcome.results):
        console.print(warning)
    if outcome.ratios:
        console.print(report.ratio_table(outcome.ratios, GOALS))
    if outcome.times:
        console.print(report.times_table(outcome.times, WANTED_SECONDS))


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0.25), default=1.0, show_default=True, help="Of each measurement.")
@click.option("--only", multiple=True, metavar="NAME", help="A ratio or a group of them; may be given again.")
@click.option("--no-huge", is_flag=True, help="Leave the machine's huge pages alone, and use 4 KB pages.")
def command(rounds: int, seconds: float, only: tuple[str, ...], no_huge: bool) -> None:
    """Measure ffswitch against OVS-DPDK, testpmd and itself on this machine."""
    groups = choose(only)
    program.end_tidily()
    bench(groups, rounds, seconds, not no_huge)


def main(args: Sequence[str] | None = None) -> int:
    """As `program.run`."""
    return program.run(command, "bench-switch", args)


if __name__ == "__main__":
    sys.exit(main())
