# SPDX-License-Identifier: Apache-2.0
"""`ffswitch stats --perf`: where the workers' cycles go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click

from vswitch.cli.render import count, print_table

Sample = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class WorkerPerf:
    """A worker between two readings of `stats`; None: nothing happened that it could be computed from.

    `stages`: cycles a packet of each stage, measured on a sample; `rest` is what is left of `cycles_per_packet`:
    looks at empty queues, verdicts, the loop itself.
    """

    cpu: int
    busy_pct: float
    packets_per_s: float
    packets_per_burst: float | None
    cycles_per_packet: float | None
    stages: dict[str, float]
    rest: float | None
    misses_per_s: float
    upcall_us: float | None  # from a miss to its verdict, on average


def perf_between(before: Sample, after: Sample) -> list[WorkerPerf]:
    """What each worker did between two readings of `stats`."""
    seconds = max(after["time_s"] - before["time_s"], 1e-6)
    hz = after["tsc_hz"]
    return [_worker(old, new, seconds, hz) for old, new in zip(before["workers"], after["workers"], strict=True)]


def _worker(old: Sample, new: Sample, seconds: float, hz: float) -> WorkerPerf:
    packets, busy, misses = (new[key] - old[key] for key in ("packets", "busy_cycles", "misses"))
    old_perf, perf = old["perf"], new["perf"]
    bursts, sampled, verdicts, waited = (
        perf[key] - old_perf[key] for key in ("bursts", "sampled_packets", "verdicts", "verdict_cycles")
    )
    stages = {
        stage: round((cycles - old_perf["stage_cycles"][stage]) / sampled, 1)
        for stage, cycles in perf["stage_cycles"].items()
        if sampled
    }
    each = round(busy / packets, 1) if packets else None
    return WorkerPerf(
        cpu=new["cpu"],
        busy_pct=round(min(100 * busy / hz / seconds, 100.0), 1),
        packets_per_s=round(packets / seconds, 1),
        packets_per_burst=round(packets / bursts, 1) if bursts else None,
        cycles_per_packet=each,
        stages=stages,
        rest=round(max(each - sum(stages.values()), 0.0), 1) if each is not None and stages else None,
        misses_per_s=round(misses / seconds, 1),
        upcall_us=round(waited / verdicts / hz * 1e6, 1) if verdicts else None,
    )


def to_json(workers: Sequence[WorkerPerf]) -> list[dict[str, Any]]:
    """One object a worker."""
    return [asdict(worker) for worker in workers]


def print_perf(workers: Sequence[WorkerPerf]) -> None:
    """Draw a summary and a table of stages for each worker."""
    for number, worker in enumerate(workers):
        if number:
            click.echo()
        click.echo(_summary(number, worker))
        if worker.stages:
            print_table(["STAGE", ">CYCLES/PACKET", ">SHARE"], _rows(worker), "")


def _summary(number: int, worker: WorkerPerf) -> str:
    words = [f"worker {number} on CPU {worker.cpu}: {worker.busy_pct} % busy, {count(worker.packets_per_s)} packets/s"]
    if worker.packets_per_burst is not None:
        words.append(f"{worker.packets_per_burst} packets a burst")
    if worker.cycles_per_packet is not None:
        words.append(f"{worker.cycles_per_packet} cycles a packet")
    words.append(f"{count(worker.misses_per_s)} misses/s")
    if worker.upcall_us is not None:
        words.append(f"verdicts after {worker.upcall_us} µs")
    return ", ".join(words)


def _rows(worker: WorkerPerf) -> list[list[str]]:
    lines = [*worker.stages.items(), ("rest", worker.rest or 0.0)]
    total = sum(cycles for _, cycles in lines) or 1.0
    return [[stage, f"{cycles:.1f}", f"{100 * cycles / total:.1f} %"] for stage, cycles in lines]
