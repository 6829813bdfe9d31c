# SPDX-License-Identifier: Apache-2.0
"""`make bench-shortcut`: two applications joined by shortcuts, by net_memif, and by the switch.

The applications are the same program (traffic/duplex.c) on each device. Each has a CPU of its own; behind the switch,
which polls, both are one process on one CPU, and the switch has the other. A rate is that of both ways together.
And a chain of four, by shortcuts and by OVS-DPDK: see chain.py.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from tests.bench import chain, generator, machine, program, report
from tests.bench.ends import Ends, Rate
from tests.bench.environment import Environment
from tests.bench.errors import BenchError
from tests.bench.peers.ffswitch import FfSwitch
from tests.bench.process import pass_time, wait_for
from tests.bench.report import Goal
from tests.bench.stats import Ratio, Spread
from vswitch.cli.client import Client

OUTPUT = Path("build/bench/shortcut.json")
SIZES = (64, 1500, 9000)
CHAIN_SIZES = (64, 1500)
MACS = ("02:00:00:00:00:0a", "02:00:00:00:00:0b")
NAMES = ("left", "right")
CHANGES = 20  # of a path, for setup_ms and revoke_ms
GOALS: Mapping[str, Goal] = {
    "vs_memif_1500": Goal(3.0),
    "vs_memif_64": Goal(1.0),
    "vs_switched_1500": Goal(5.0),
    "vs_switched_64": Goal(2.5),
    "chain4_vs_ovs": Goal(4.0),
    "chain4_vs_ovs_64": Goal(4.0),
    "size_flatness": Goal(1.2, at_most=True),
    "switch_cpu_pct": Goal(2.0, at_most=True),
    "setup_ms": Goal(5.0, at_most=True),
    "revoke_ms": Goal(1.0, at_most=True),
}


@dataclass(frozen=True, slots=True)
class Link:
    """A way to join the two. vdevs: of the left and the right one, for a size."""

    name: str
    vdevs: Callable[[Environment], tuple[str, str]]
    port: Mapping[str, Any] | None = None  # with the switch between them: how its ports are added


def _memif(zero_copy: bool) -> Callable[[Environment], tuple[str, str]]:
    def vdevs(environment: Environment) -> tuple[str, str]:
        common = f"socket={environment.directory}/memif.sock,socket-abstract=no,bsize=9216"
        more = ",zero-copy=yes" if zero_copy else ""
        return f"net_memif0,role=server,{common}", f"net_memif0,role=client,{common}{more}"

    return vdevs


def _ports(kind: str) -> Callable[[Environment], tuple[str, str]]:
    def vdevs(environment: Environment) -> tuple[str, str]:
        directories = [environment.directory / "run" / "ports" / name for name in NAMES]
        if kind == "ff":
            left, right = (f"net_ff0,path={directory}/ff.sock" for directory in directories)
        else:
            left, right = (
                f"net_virtio_user{number},path={directory}/vhost.sock,server=1,queue_size=1024,mac={MACS[number]}"
                for number, directory in enumerate(directories)
            )
        return left, right

    return vdevs


SHORTCUT = Link("shortcut", _ports("ff"), {"type": "ff", "trust_domain": "bench"})
SWITCHED = Link("switched", _ports("vhost-user"), {})
COPY = Link("memif", _memif(zero_copy=False))
ZERO_COPY = Link("memif zero-copy", _memif(zero_copy=True))
LINKS = (SHORTCUT, SWITCHED, COPY, ZERO_COPY)


@dataclass(slots=True)
class Found:
    """Rates in packets/s, by link and size, a value for each round; and the rest by name."""

    rates: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    others: dict[tuple[str, int], float] = field(default_factory=dict)  # worst share of a core that others took
    lost: dict[tuple[str, int], list[float]] = field(default_factory=dict)  # share of what a chain was given
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, link: str, size: int, rate: Rate) -> None:
        """What a round has measured."""
        key = link, size
        self.rates.setdefault(key, []).append(rate.taken)
        self.others[key] = max(rate.others, self.others.get(key, 0.0))
        click.echo(f"{size} B, {link}: {rate.taken / 1e6:.2f} Mpps")

    def ratio(self, above: Sequence[tuple[str, int]], below: Sequence[tuple[str, int]]) -> Ratio | None:
        """The best of some over the best of others, round by round; None where one was not measured."""
        if not all(key in self.rates for key in (*above, *below)):
            return None
        rounds = zip(
            zip(*(self.rates[k] for k in above), strict=True),
            zip(*(self.rates[k] for k in below), strict=True),
            strict=True,
        )
        return Ratio(Spread.of([max(a) / max(b) for a, b in rounds]), max(self.others[k] for k in (*above, *below)))


class Pair:
    """The two applications on a link, with the switch where it takes one."""

    def __init__(self, link: Link, size: int, program_: Path, environment: Environment) -> None:
        self.link = link
        self._environment = environment
        self._stack = contextlib.ExitStack()
        self.switch: FfSwitch | None = None
        self._ends = Ends(program_, environment, size)

    def __enter__(self) -> Pair:
        with contextlib.ExitStack() as stack:
            if self.link.port is not None:
                self._start_switch(stack)
            stack.enter_context(self._ends)
            vdevs, cpus = self.link.vdevs(self._environment), self._environment.cpus
            cpu = (cpus.generator[0], cpus.switch[0])
            for numbers in ((0, 1),) if self.link is SWITCHED else ((0,), (1,)):
                # one after the other: net_memif's client starts only when its server is there
                first, mine = numbers[0], [vdevs[number] for number in numbers]
                self._ends.start(NAMES[first], cpu[first], mine, [MACS[1 - number] for number in numbers])
            self._ends.linked()
            self._stack = stack.pop_all()
        if self.link is SHORTCUT:
            wait_for("no shortcuts", lambda: len(self.shortcuts()) == 2)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _start_switch(self, stack: contextlib.ExitStack) -> None:
        assert self.link.port is not None
        self.switch = stack.enter_context(FfSwitch(self._environment, options=["--shortcut-rate", "0"]))
        with self.client() as client:
            for name, mac in zip(NAMES, MACS, strict=True):
                config = {"name": name, "mac": mac, "mtu": 9200, **self.link.port}
                client.call("port.add", config)

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        """The switch's control socket."""
        with Client(self._environment.directory / "run") as client:
            yield client

    def shortcuts(self) -> list[Mapping[str, Any]]:
        """Those that are open."""
        with self.client() as client:
            flows = client.call("flow.dump")
        return [flow for flow in flows if flow.get("shortcut", {}).get("state") == "open"]

    def rate(self, seconds: float) -> Rate:
        """Packets/s, both ways together. Raises BenchError."""
        return self._ends.rate(seconds, self.switch.pids if self.switch else (), self._poll_threads())

    def _poll_threads(self) -> Sequence[int]:
        if self.switch is None or self.link is not SWITCHED:
            return ()
        (pid,) = self.switch.pids
        return machine.poll_threads(pid, self.switch.poll_prefix, 1)


def switch_cpu(pair: Pair, seconds: float) -> float:
    """Percent of a core that the whole switch uses. Raises BenchError."""
    assert pair.switch is not None
    (pid,) = pair.switch.pids
    before, begun = machine.cpu_ns(pid), time.monotonic_ns()
    pass_time(seconds)
    return 100 * (machine.cpu_ns(pid) - before) / (time.monotonic_ns() - begun)


def path_changes(pair: Pair, found: Found) -> None:
    """Take the shortcuts back and have them again, some times; a command that changes nothing here is the control."""
    with pair.client() as client:

        def timed(**values: Any) -> float:
            begun = time.perf_counter()
            client.call("port.set", {"name": "left", "values": values})
            return (time.perf_counter() - begun) * 1000

        for number in range(CHANGES):
            control = timed(mac_quota=4000 + number)
            found.values.setdefault("revoke_ms", []).append(max(0.0, timed(shortcut_quota=0) - control))
            wait_for("shortcuts stay", lambda: not any("shortcut" in f for f in client.call("flow.dump")), poll=0.002)
            timed(shortcut_quota=64)
            client.call("flow.flush")
            wait_for("no shortcuts", lambda: len(pair.shortcuts()) == 2, poll=0.002)
            found.values.setdefault("setup_ms", []).extend(f["shortcut"]["setup_ms"] for f in pair.shortcuts())


def chains(number: int, seconds: float, environment: Environment, program_: Path, found: Found) -> None:
    """One round of the chain, both ways. Raises BenchError."""
    for size in CHAIN_SIZES:
        for link in chain.LINKS:
            here = environment.part(f"chain{number}-{size}-{chain.LINKS.index(link)}")
            rate = chain.measure(link, size, seconds, program_, here)
            found.add(link, size, rate)
            found.lost.setdefault((link, size), []).append(max(0.0, 1 - rate.taken / max(1.0, rate.sent)))


def measure(rounds: int, seconds: float, environment: Environment, program_: Path) -> Found:
    """All links at all sizes, one after the other, again and again. Raises BenchError."""
    found = Found()
    for number in range(1, rounds + 1):
        click.echo(f"round {number}/{rounds}")
        chains(number, seconds, environment, program_, found)
        for size in SIZES:
            for link in LINKS:
                if size == SIZES[-1] and link is not SHORTCUT:
                    continue
                here = environment.part(f"{number}-{size}-{LINKS.index(link)}")
                with Pair(link, size, program_, here) as pair:
                    pair.rate(0.2)
                    found.add(link.name, size, pair.rate(seconds))
                    if link is SHORTCUT and size == SIZES[0]:
                        found.values.setdefault("switch_cpu_pct", []).append(switch_cpu(pair, seconds))
                        if number == rounds:
                            path_changes(pair, found)
    return found


def ratios(found: Found) -> dict[str, Ratio]:
    """The numbers of the table."""
    memif = (COPY.name, ZERO_COPY.name)
    wanted = {
        **{f"vs_memif_{size}": ([(SHORTCUT.name, size)], [(n, size) for n in memif]) for size in (1500, 64)},
        **{f"vs_switched_{size}": ([(SHORTCUT.name, size)], [(SWITCHED.name, size)]) for size in (1500, 64)},
        "chain4_vs_ovs": ([(chain.SHORTCUT, 1500)], [(chain.OVS, 1500)]),
        "chain4_vs_ovs_64": ([(chain.SHORTCUT, 64)], [(chain.OVS, 64)]),
        "size_flatness": ([(SHORTCUT.name, SIZES[0])], [(SHORTCUT.name, SIZES[-1])]),
    }
    named = {name: found.ratio(*terms) for name, terms in wanted.items()}
    others = found.others.get((SHORTCUT.name, SIZES[0]), 0.0)
    named |= {name: Ratio(Spread.of(values), others) for name, values in found.values.items()}
    return {name: ratio for name, ratio in named.items() if ratio is not None}


def bench(rounds: int, seconds: float) -> None:
    """Measure, print, write. Raises BenchError."""
    if os.geteuid() != 0:
        raise BenchError("the benchmark starts switches: run it as root")
    cpus = machine.Cpus.choose(os.sched_getaffinity(0))
    duplex = generator.compile_program(OUTPUT.parent, "duplex")
    with (
        tempfile.TemporaryDirectory(prefix="ffbench-") as directory,
        machine.huge_pages(1024) as enough,
    ):
        environment = Environment(Path(directory), cpus, enough)
        found = measure(rounds, seconds, environment, duplex)
    result = ratios(found)
    report.console().print(report.ratio_table(result, GOALS))
    cells = []
    for (name, size), rates in found.rates.items():
        cell: dict[str, Any] = {"link": name, "size": size, "pps": report.spread_json(Spread.of(rates))}
        if lost := found.lost.get((name, size)):
            cell["lost"] = report.spread_json(Spread.of(lost))
        cells.append(cell)
    document = {name: report.ratio_json(ratio, GOALS.get(name)) for name, ratio in result.items()}
    report.write_json(OUTPUT, {"ratios": document, "cells": cells, "huge_pages": environment.huge})
    click.echo(f"written to {OUTPUT}")


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0.25), default=1.0, show_default=True, help="Of each measurement.")
def command(rounds: int, seconds: float) -> None:
    """Measure shortcuts against net_memif and the switch on this machine."""
    program.end_tidily()
    bench(rounds, seconds)


def main(args: Sequence[str] | None = None) -> int:
    """As `program.run`."""
    return program.run(command, "bench-shortcut", args)


if __name__ == "__main__":
    sys.exit(main())
