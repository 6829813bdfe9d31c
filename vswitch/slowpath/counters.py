# SPDX-License-Identifier: Apache-2.0
"""The fast path's counters as Python objects, read from the structures of ff.h."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, NamedTuple

from vswitch._ff import ffi, lib

DROP_NAMES: tuple[str, ...] = tuple(ffi.string(lib.ff_drop_name(i)).decode() for i in range(lib.FF_DROP_MAX))
FAULT_NAMES: tuple[str, ...] = tuple(ffi.string(lib.ff_fault_name(i)).decode() for i in range(lib.FF_FAULT_MAX))
STAGE_NAMES: tuple[str, ...] = tuple(ffi.string(lib.ff_stage_name(i)).decode() for i in range(lib.FF_STAGE_MAX))


class QueueStats(NamedTuple):
    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int
    tx_full: int
    rx_cycles: int


class Rxq(NamedTuple):
    """A receive queue, the worker that polls it, and what it has received and cost (in TSC cycles) so far.

    A bound one stays with its worker.
    """

    port_id: int
    queue: int
    worker: int
    packets: int
    cycles: int
    bound: bool = False


@dataclass(frozen=True, slots=True)
class PortStats:
    """Counters of one port: summed over workers, and `workers[i]` of each worker alone.

    `drops` and `faults` hold the reasons that occurred.
    """

    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int
    replicated: int
    upcalls: int
    drops: dict[str, int]
    faults: dict[str, int]
    queues: tuple[QueueStats, ...]
    injected: int = 0
    encapsulated: int = 0
    decapsulated: int = 0
    workers: tuple[PortStats, ...] = ()


class PerfStats(NamedTuple):
    """What `stats --perf` is computed from. Cycles are the TSC's; stage_cycles are those of sampled_packets alone."""

    bursts: int
    sampled_packets: int
    stage_cycles: dict[str, int]
    verdicts: int
    verdict_cycles: int


class WorkerStats(NamedTuple):
    cpu: int
    loops: int
    busy_loops: int
    sleeps: int
    busy_cycles: int
    packets: int
    hits: int
    misses: int
    parked: int
    perf: PerfStats


def _sum(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {name: a.get(name, 0) + b.get(name, 0) for name in {**a, **b}}


def _named(names: tuple[str, ...], counts: Any) -> dict[str, int]:
    return {names[number]: count for number, count in enumerate(counts) if count}


def _add(a: PortStats, b: PortStats) -> PortStats:
    return PortStats(
        a.rx_packets + b.rx_packets,
        a.rx_bytes + b.rx_bytes,
        a.tx_packets + b.tx_packets,
        a.tx_bytes + b.tx_bytes,
        a.replicated + b.replicated,
        a.upcalls + b.upcalls,
        _sum(a.drops, b.drops),
        _sum(a.faults, b.faults),
        tuple(QueueStats(*(x + y for x, y in zip(p, q, strict=True))) for p, q in zip(a.queues, b.queues, strict=True)),
        a.injected + b.injected,
        a.encapsulated + b.encapsulated,
        a.decapsulated + b.decapsulated,
    )


def total(workers: Sequence[PortStats]) -> PortStats:
    """The sum of a port's counters over `workers`, at least one, which it keeps."""
    return replace(reduce(_add, workers), workers=tuple(workers))


def unpack_port_stats(s: Any, n_queues: int) -> PortStats:
    """A struct ff_port_stats: one worker's counters of a port that has so many queue pairs."""
    queues = tuple(
        QueueStats(q.rx_packets, q.rx_bytes, q.tx_packets, q.tx_bytes, q.tx_full, q.rx_cycles)
        for q in s.queue[0:n_queues]
    )
    rx_packets, rx_bytes, tx_packets, tx_bytes, *_ = (sum(column) for column in zip(*queues, strict=True))
    return PortStats(
        rx_packets,
        rx_bytes,
        tx_packets,
        tx_bytes,
        s.replicated,
        s.upcalls,
        _named(DROP_NAMES, s.drop),
        _named(FAULT_NAMES, s.fault),
        queues,
        s.injected,
        s.encapsulated,
        s.decapsulated,
    )


def unpack_worker_stats(s: Any) -> WorkerStats:
    """A struct ff_worker_stats."""
    return WorkerStats(
        s.cpu,
        s.loops,
        s.busy_loops,
        s.sleeps,
        s.busy_cycles,
        s.packets,
        s.hits,
        s.misses,
        s.parked,
        PerfStats(
            s.bursts,
            s.sampled_packets,
            dict(zip(STAGE_NAMES, s.stage_cycles, strict=True)),
            s.verdicts,
            s.verdict_cycles,
        ),
    )
