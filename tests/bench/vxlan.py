# SPDX-License-Identifier: Apache-2.0
"""`make bench-vxlan`: from container to container over VXLAN, ffswitch against OVS-DPDK; see docs/performance.md."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from tests.bench import generator, machine, program, report
from tests.bench.environment import Environment
from tests.bench.errors import BenchError
from tests.bench.generator import Generator, Programs
from tests.bench.measure import Case, Rig
from tests.bench.peers.kernel import KernelOverlay
from tests.bench.peers.overlay import FfOverlay, Overlay, OvsOverlay
from tests.bench.report import Goal
from tests.bench.rounds import Contender, Results, Run, interleave
from tests.bench.stats import Ratio, Spread, ratio, worst

OUTPUT = Path("build/bench/vxlan.json")
CASES = {"64": Case(64), "1400": Case(1400)}
OURS, OVS, KERNEL = "ffswitch", "ovs", "kernel"
GOALS: Mapping[str, Goal] = {f"vs_ovs_{size}": Goal(1.2) for size in CASES}


def ratios(results: Results) -> dict[str, Ratio]:
    """How many times less a packet costs us from one container to the other, within each round."""
    found = {}
    for size, case in CASES.items():
        ours = results[OURS, case]
        found[f"vs_ovs_{size}"] = ratio(results[OVS, case], ours)
        kernel = [theirs.cost / own.cost for theirs, own in zip(results[KERNEL, case], ours, strict=True)]
        # The kernel's softirqs are nobody's CPU time, so what others took of its measurements is not known.
        found[f"vs_kernel_{size}"] = Ratio(Spread.of(kernel), worst(ours))
    return found


def document(results: Results, found: Mapping[str, Ratio]) -> dict[str, object]:
    """The content of OUTPUT."""
    return {
        "ratios": {name: report.ratio_json(value, GOALS.get(name)) for name, value in found.items()},
        "cells": report.cells_json(results),
    }


def bench(rounds: int, seconds: float) -> None:
    """All contenders in turn, printed and written to OUTPUT. Raises BenchError."""
    if os.geteuid() != 0:
        raise BenchError("the benchmark makes network namespaces and pins threads: run it as root")
    cpus = machine.Cpus.choose(os.sched_getaffinity(0))
    programs = generator.build(OUTPUT.parent)
    with tempfile.TemporaryDirectory(prefix="ffbench-") as directory, contextlib.ExitStack() as stack:
        # What net_af_packet copies to and from the kernel's ring is the same with pages of any size.
        run = Run(Environment(Path(directory), cpus, huge=False), programs, rounds, seconds)
        click.echo(f"both switches on CPU {cpus.switch[0]}, generator on CPU {cpus.generator[0]}")
        field = [
            Contender(name, _start(stack, run, name, make), tuple(CASES.values()))
            for name, make in ((OVS, OvsOverlay), (KERNEL, KernelOverlay), (OURS, FfOverlay))
        ]
        with machine.favoured():
            results = interleave(run, field)
    found = ratios(results)
    console = report.console()
    console.print(report.cost_table(results, "From container to container over VXLAN, both hosts on one core"))
    counted = {key: figures for key, figures in results.items() if key[0] != KERNEL}
    if warning := report.contamination_warning(counted):
        console.print(warning)
    console.print(report.ratio_table(found, GOALS))
    report.write_json(OUTPUT, document(results, found) | {"machine": {"cpus": asdict(cpus)}})
    click.echo(f"written to {OUTPUT}")


def _start(stack: contextlib.ExitStack, run: Run, name: str, make: Callable[[Environment], Overlay]) -> Rig:
    here = run.environment.part(name)
    started = stack.enter_context(_rig(make(here), run.programs, here))
    started.pause()
    return started


@contextlib.contextmanager
def _rig(peer: Overlay, programs: Programs, environment: Environment) -> Iterator[Rig]:
    """Starts the switches and the generator, connects them, and pins every thread."""
    sockets = environment.sockets()
    with peer, Generator(programs.generator, environment, peer.ends) as traffic:
        if not peer.ends.links:
            # The next socket appears when the one before has its peer.
            traffic.process.wait_until("no socket", sockets[0].exists)
        peer.connect(sockets)
        traffic.ready(peer.check)
        peer.tsc_hz = traffic.counters().tsc_hz
        cpus = environment.cpus
        for host in peer.hosts:
            poll = machine.poll_threads(host.pids[0], peer.poll_prefix, peer.poll_count)
            machine.pin(host.pids, dict.fromkeys(poll, cpus.switch[0]), cpus.generator[0])
            # Real-time turns are of 100 ms, longer than any ring: these take ordinary, short ones, before all others.
            machine.go_first(poll)
        senders = machine.poll_threads(traffic.process.pid, "rte-worker", len(cpus.generator))
        yield Rig(peer, traffic, environment, peer.ends, tuple(senders))


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0.25), default=0.5, show_default=True, help="Of each measurement.")
def command(rounds: int, seconds: float) -> None:
    """Measure ffswitch's VXLAN against OVS-DPDK's on this machine."""
    program.end_tidily()
    bench(rounds, seconds)


def main(args: Sequence[str] | None = None) -> int:
    """As `program.run`."""
    return program.run(command, "bench-vxlan", args)


if __name__ == "__main__":
    sys.exit(main())
