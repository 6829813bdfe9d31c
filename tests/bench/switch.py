# SPDX-License-Identifier: Apache-2.0
"""`make bench-switch`: ffswitch against OVS-DPDK and testpmd; see docs/performance.md."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import click

from tests.bench import commands, generator, machine, many_ports, report
from tests.bench.environment import Environment
from tests.bench.errors import BenchError
from tests.bench.measure import Case, Rig, rig
from tests.bench.peers import Peer
from tests.bench.peers.ffswitch import FfSwitch
from tests.bench.peers.ovs import Ovs
from tests.bench.peers.testpmd import Testpmd
from tests.bench.stats import Figure, Spread, ratios

OUTPUT = Path("build/bench/switch.json")
# All switches and their generators, with room for EAL's rounding up.
HUGE_MB = 1024

SMALL, LARGE = Case(64, 1), Case(1500, 1)
MANY = {"1k": Case(64, 1_000), "10k": Case(64, 10_000)}
CASES = (SMALL, LARGE, *MANY.values())

NORMAL = "ovs-normal"
# How OVS can cache many flows; its default is the exact-match cache, filled with a probability of 1/100.
NORMAL_CACHES: Mapping[str, Mapping[str, str]] = {
    "ovs-normal, emc always": {"emc-insert-inv-prob": "1"},
    "ovs-normal, smc": {"emc-insert-inv-prob": "0", "smc-enable": "true"},
    "ovs-normal, no cache": {"emc-insert-inv-prob": "0"},
}
WANTED = {"vs_ovs_normal_64": 1.0, "ports_256": 0.5}
WANTED_SECONDS = {"ffswitch --help": 0.150, "ffswitch add-port": 0.050}

Results = dict[tuple[str, Case], list[Figure]]


@dataclass(frozen=True, slots=True)
class Contender:
    """A line of the table: a switch, how it is set up, and the cases that it is measured in."""

    name: str
    rig: Rig
    cases: Sequence[Case] = CASES
    prepare: Callable[[], None] = lambda: None


@contextlib.contextmanager
def contenders(environment: Environment, program: Path) -> Iterator[Sequence[Contender]]:
    """Starts one switch of each kind, each with its generator, and pauses them all."""
    with contextlib.ExitStack() as stack:

        def start(peer: Peer, part: Environment) -> Rig:
            started = stack.enter_context(rig(peer, program, part))
            started.pause()
            return started

        here = environment.part("flows")
        flows = start(Ovs(here, "ovs-flows", flows=True), here)
        here = environment.part("normal")
        ovs = Ovs(here, NORMAL, flows=False)
        normal = start(ovs, here)
        here = environment.part("testpmd")
        testpmd = start(Testpmd(here), here)
        here = environment.part("ffswitch")
        ffswitch = start(FfSwitch(here), here)
        caches = [
            Contender(name, normal, tuple(MANY.values()), partial(ovs.set_caches, settings))
            for name, settings in NORMAL_CACHES.items()
        ]
        yield [
            Contender(flows.peer.name, flows),
            Contender(NORMAL, normal, CASES, partial(ovs.set_caches, {})),
            Contender(testpmd.peer.name, testpmd),
            Contender(ffswitch.peer.name, ffswitch),
            *caches,
        ]


def forwarding(environment: Environment, program: Path, rounds: int, seconds: float) -> Results:
    """`rounds` times: every case, in each every switch, one after the other. Raises BenchError."""
    results: Results = {}
    with contenders(environment, program) as field:
        for number in range(1, rounds + 1):
            for case in CASES:
                for contender in (c for c in field if case in c.cases):
                    with contender.rig.resumed():
                        contender.prepare()
                        figure = contender.rig.measure(case, seconds)
                    results.setdefault((contender.name, case), []).append(figure)
                    click.echo(
                        f"round {number}/{rounds}: {case.label}: {contender.name}: {figure.cost:.0f} cycles, "
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
    console.print(report.times_table(times, WANTED_SECONDS))


def _interrupted(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)  # so that every `with` cleans up


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0.25), default=1.0, show_default=True, help="Of each measurement.")
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
