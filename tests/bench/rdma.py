# SPDX-License-Identifier: Apache-2.0
"""`make bench-rdma`: a stream from host to host by RDMA and by other ways, in two emulated guests.

See docs/performance.md for what emulation means for the figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
from rich.table import Table

from tests.bench import generator, program, report
from tests.bench.errors import BenchError
from tests.bench.peers.rdma import SIZES, KernelTcp, Meter, Ours, Reading, SendBw, Way, switches
from tests.bench.report import Goal
from tests.bench.stats import Ratio, Spread
from tests.guest.guest import GuestError
from tests.guest.image import ImageError
from tests.rdma import bed

OUTPUT = Path("build/bench/rdma.json")
RDMA, VXLAN, KERNEL = "ffswitch rdma", "ffswitch vxlan", "kernel vxlan"
POLLING, EVENTS = "ib_send_bw", "ib_send_bw -e"
WAYS = (POLLING, EVENTS, RDMA, VXLAN, KERNEL)
GOALS: Mapping[str, Goal] = {
    "vs_send_bw_1500": Goal(0.8),
    "vs_send_bw_64k": Goal(0.8),
    "vs_kernel_1500": Goal(1.5),
    "vs_kernel_64k": Goal(3.0),
}


@dataclass(slots=True)
class Found:
    """All readings, by way and size, one for each round."""

    readings: dict[tuple[str, str], list[Reading]] = field(default_factory=dict)

    def ratios(self) -> dict[str, Ratio]:
        """What RDMA carries over what the others do, within each round; of ib_send_bw the better."""
        peers = {"vs_send_bw": (POLLING, EVENTS), "vs_vxlan": (VXLAN,), "vs_kernel": (KERNEL,)}
        return {
            f"{name}_{size}": self._ratio(size, theirs) for size in SIZES for name, theirs in peers.items()
        }  # fmt: skip

    def _ratio(self, size: str, theirs: Sequence[str]) -> Ratio:
        ours = self.readings[RDMA, size]
        others = list(zip(*(self.readings[name, size] for name in theirs), strict=True))
        values = [own.rate / max(one.rate for one in best) for own, best in zip(ours, others, strict=True)]
        return Ratio(Spread.of(values), max(one.others for one in (*ours, *(one for best in others for one in best))))


def table(found: Found) -> Table:
    """A line for each size and way: medians and spread over the rounds."""
    made = Table(title="From guest to guest, TCP payload", title_justify="left")
    for heading in ("frames", "way"):
        made.add_column(heading)
    for heading in ("MB/s", "min .. max", "CPU ns/byte", "min .. max", "lost", "others' CPU"):
        made.add_column(heading, justify="right")
    for size in SIZES:
        for name in WAYS:
            readings = found.readings[name, size]
            rate, cpu = (
                Spread.of(values) for values in zip(*((r.rate / 1e6, r.cpu_ns) for r in readings), strict=True)
            )
            made.add_row(
                size if name == WAYS[0] else "",
                name,
                f"{rate.median:.2f}",
                f"{rate.minimum:.2f} .. {rate.maximum:.2f}",
                f"{cpu.median:.0f}",
                f"{cpu.minimum:.0f} .. {cpu.maximum:.0f}",
                report.percent(max(r.lost for r in readings)),
                report.percent(max(r.others for r in readings)),
                end_section=name == WAYS[-1],
            )
    return made


async def measure(rounds: int, seconds: int) -> Found:
    """All ways in turn. Raises BenchError, GuestError, ImageError."""
    crossing = generator.compile_program(OUTPUT.parent, "crossing").resolve()
    found = Found()
    async with bed.direct("left", "right") as hosts, contextlib.AsyncExitStack() as stack:
        meter = Meter(hosts, sorted(os.sched_getaffinity(0)))
        kernel = KernelTcp(hosts, meter)
        await kernel.prepare()
        both = await stack.enter_async_context(switches(hosts, meter, crossing))
        ways: dict[str, Way] = {
            POLLING: SendBw(hosts, meter),
            EVENTS: SendBw(hosts, meter, "-e"),
            RDMA: Ours(both, rdma=True),
            VXLAN: Ours(both, rdma=False),
            KERNEL: kernel,
        }
        for number in range(1, rounds + 1):
            for size in SIZES:
                for name in WAYS:
                    reading = await ways[name].measure(size, seconds)
                    found.readings.setdefault((name, size), []).append(reading)
                    click.echo(f"round {number}/{rounds}: {size}: {name}: {reading.rate / 1e6:.2f} MB/s,"
                               f" {reading.cpu_ns:.0f} ns/byte, others {report.percent(reading.others)}")  # fmt: skip
    return found


def bench(rounds: int, seconds: int) -> None:
    """All of it, printed and written to OUTPUT. Raises BenchError."""
    if os.geteuid() != 0:
        raise BenchError("the guests' file systems are made as root: run it as root")
    try:
        found = asyncio.run(measure(rounds, seconds))
    except (GuestError, ImageError) as error:
        raise BenchError(str(error)) from error
    ratios = found.ratios()
    console = report.console()
    console.print(table(found))
    console.print(report.ratio_table(ratios, GOALS))
    report.write_json(OUTPUT, {
        "ratios": {name: report.ratio_json(value, GOALS.get(name)) for name, value in ratios.items()},
        "cells": [
            {"way": name, "size": size, "round": number, **asdict(reading)}
            for (name, size), readings in found.readings.items()
            for number, reading in enumerate(readings, 1)
        ],
    })  # fmt: skip
    click.echo(f"written to {OUTPUT}")


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--seconds", type=click.IntRange(min=1), default=2, show_default=True, help="Of each measurement.")
def command(rounds: int, seconds: int) -> None:
    """Measure ffswitch's RDMA against ib_send_bw, its own VXLAN and Linux's, in two guests."""
    program.end_tidily()
    bench(rounds, seconds)


def main(args: Sequence[str] | None = None) -> int:
    """As `program.run`."""
    return program.run(command, "bench-rdma", args)


if __name__ == "__main__":
    sys.exit(main())
