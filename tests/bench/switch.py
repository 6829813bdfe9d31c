# SPDX-License-Identifier: Apache-2.0
"""`make bench-switch`: ffswitch against OVS-DPDK and testpmd; see docs/performance.md."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import click

from tests.bench import commands, generator, machine, many_ports, report
from tests.bench.environment import Environment
from tests.bench.errors import BenchError
from tests.bench.measure import Case, rig
from tests.bench.peers import Peer
from tests.bench.peers.ffswitch import FfSwitch
from tests.bench.peers.ovs import Ovs
from tests.bench.peers.testpmd import Testpmd
from tests.bench.stats import Figure, Spread, ratios

OUTPUT = Path("build/bench/switch.json")
# The largest switch and the generator, with room for EAL's rounding up.
HUGE_MB = 448

SMALL, LARGE = Case(64, 1), Case(1500, 1)
MANY = {"1k": Case(64, 1_000), "10k": Case(64, 10_000)}
CASES = (SMALL, LARGE, *MANY.values())

NORMAL = "ovs-normal"
# OVS's other ways to cache many flows; its default is the exact-match cache, filled with a probability of 1/100.
NORMAL_CACHES: Mapping[str, Mapping[str, str]] = {
    "ovs-normal, emc always": {"emc-insert-inv-prob": "1"},
    "ovs-normal, smc": {"emc-insert-inv-prob": "0", "smc-enable": "true"},
    "ovs-normal, no cache": {"emc-insert-inv-prob": "0"},
}
WANTED = {"vs_ovs_normal_64": 1.0, "ports_256": 0.5}

Results = dict[tuple[str, Case], list[Figure]]


def contenders(environment: Environment) -> Sequence[tuple[Callable[[], Peer], Sequence[Case]]]:
    """One of each switch, in the order of a round, and the cases that it is measured in."""
    basic: list[Callable[[], Peer]] = [
        lambda: Ovs(environment, "ovs-flows", flows=True),
        lambda: Ovs(environment, NORMAL),
        lambda: Testpmd(environment),
        lambda: FfSwitch(environment),
    ]
    caches = [_ovs_normal(environment, name) for name in NORMAL_CACHES]
    return [(peer, CASES) for peer in basic] + [(peer, tuple(MANY.values())) for peer in caches]


def _ovs_normal(environment: Environment, name: str) -> Callable[[], Peer]:
    return lambda: Ovs(environment, name, settings=NORMAL_CACHES[name])


def forwarding(environment: Environment, program: Path, rounds: int, seconds: float) -> Results:
    """Every switch in every case, one switch after the other, `rounds` times over. Raises BenchError."""
    results: Results = {}
    for number in range(1, rounds + 1):
        for make, cases in contenders(environment):
            peer = make()
            with rig(peer, program, environment) as running:
                for case in cases:
                    figure = running.measure(case, seconds)
                    results.setdefault((peer.name, case), []).append(figure)
                    click.echo(
                        f"round {number}/{rounds}: {peer.name}: {case.label}: {figure.cost:.0f} cycles, "
                        f"{figure.mpps:.2f} Mpps, others {report.percent(figure.others_switch)}"
                    )
    return results


def forwarding_ratios(results: Results) -> dict[str, Spread]:
    """The ratios of DESIGN's table, each within a round; see docs/performance.md."""

    def costs(name: str, case: Case) -> list[float]:
        return [figure.cost for figure in results[name, case]]

    def best_normal(case: Case) -> list[float]:
        return min((costs(name, case) for name in (NORMAL, *NORMAL_CACHES)), key=lambda c: Spread.of(c).median)

    ours = {case: costs(FfSwitch.name, case) for case in CASES}
    found = {}
    for suffix, case in (("64", SMALL), ("1500", LARGE)):
        found[f"vs_ovs_normal_{suffix}"] = ratios(costs(NORMAL, case), ours[case])
        found[f"vs_ovs_flows_{suffix}"] = ratios(costs("ovs-flows", case), ours[case])
        found[f"vs_io_{suffix}"] = ratios(costs(Testpmd.name, case), ours[case])
    for suffix, case in MANY.items():
        found[f"vs_ovs_{suffix}"] = ratios(best_normal(case), ours[case])
        found[f"flows_{suffix}"] = ratios(ours[SMALL], ours[case])
    return found


def port_ratios(rounds: Sequence[many_ports.Round]) -> dict[str, Spread]:
    return {
        "ports_256": Spread.of([many_ports.Round.ratio(r.alone, r.connected) for r in rounds]),
        "ports_256_waiting": Spread.of([many_ports.Round.ratio(r.alone, r.waiting) for r in rounds]),
    }


def bench(rounds: int, seconds: float) -> None:
    """Everything, printed and written to OUTPUT. Raises BenchError."""
    if os.geteuid() != 0:
        raise BenchError("the benchmark pins threads and starts switches: run it as root")
    program = generator.build(OUTPUT.parent)
    with (
        tempfile.TemporaryDirectory(prefix="ffbench-") as directory,
        machine.huge_pages(HUGE_MB) as huge,
    ):
        environment = Environment(Path(directory), machine.Cpus.choose(), huge)
        click.echo(
            f"switch on CPU {environment.cpus.switch}, generator on CPU {environment.cpus.generator}, "
            f"{'2 MB' if huge else '4 KB'} pages"
        )
        results = forwarding(environment, program, rounds, seconds)
        times = commands.measure(environment)
        ports = many_ports.measure(environment, program, rounds, seconds)
    found = forwarding_ratios(results) | port_ratios(ports)
    _print(results, found, times)
    document = {
        "ratios": {name: report.spread_json(spread) for name, spread in found.items()},
        "cells": report.cells_json(results),
        "ports": [asdict(r) for r in ports],
        "seconds": {name: report.spread_json(spread) for name, spread in times.items()},
        "machine": {"cpus": asdict(environment.cpus), "huge_pages": huge},
    }
    report.write_json(OUTPUT, document)
    click.echo(f"written to {OUTPUT}")


def _print(results: Results, found: Mapping[str, Spread], times: Mapping[str, Spread]) -> None:
    console = report.console()
    console.print(report.cost_table(results))
    if warning := report.contamination_warning(results):
        console.print(warning)
    console.print(report.ratio_table(found, WANTED))
    console.print(report.times_table(times))


def _interrupted(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)  # so that every `with` cleans up


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0.25), default=2.0, show_default=True, help="Of each measurement.")
def main(rounds: int, seconds: float) -> None:
    """Measure ffswitch against OVS-DPDK and testpmd on this machine."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    try:
        bench(rounds, seconds)
    except BenchError as error:
        click.echo(f"bench-switch: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
