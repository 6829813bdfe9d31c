# SPDX-License-Identifier: Apache-2.0
"""Which worker should poll which receive queue: decided from measured load. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import pvariance
from typing import NamedTuple

# As OVS's pmd-auto-lb-improvement-threshold: less is not worth a move.
IMPROVEMENT = 0.25
# Share of a worker's time below which the busiest one needs no help.
LOAD = 0.5


class RxqLoad(NamedTuple):
    """A receive queue: `load` is the share of a worker's time (0..1) that it took; a pinned one stays where it is."""

    port_id: int
    queue: int
    worker: int
    load: float
    pinned: bool = False


class Move(NamedTuple):
    port_id: int
    queue: int
    worker: int  # the new one


def rebalance(rxqs: Sequence[RxqLoad], n_workers: int, *, improvement: float, load: float) -> list[Move]:
    """The moves that even the workers' loads out; none when they are not worth it.

    Nothing moves as long as the busiest worker takes less than `load` of its time, or when the variance
    of the workers' loads would not fall by more than the fraction `improvement`. Idle queues stay.
    """
    before = _loads(rxqs, {}, n_workers)
    if max(before) < load:
        return []
    placed = _place(rxqs, n_workers)
    after = _loads(rxqs, placed, n_workers)
    if pvariance(before) - pvariance(after) <= improvement * pvariance(before):
        return []
    return [
        Move(rxq.port_id, rxq.queue, worker)
        for rxq in rxqs
        if (worker := placed.get((rxq.port_id, rxq.queue), rxq.worker)) != rxq.worker
    ]


def _place(rxqs: Sequence[RxqLoad], n_workers: int) -> dict[tuple[int, int], int]:
    """Busiest queue first, each to the worker with the least so far; where it is now, when that is as good."""
    loads = [sum(rxq.load for rxq in rxqs if rxq.pinned and rxq.worker == worker) for worker in range(n_workers)]
    placed = {}
    movable = [rxq for rxq in rxqs if not rxq.pinned and rxq.load > 0]
    for rxq in sorted(movable, key=lambda rxq: (-rxq.load, rxq.port_id, rxq.queue)):
        worker = min(range(n_workers), key=lambda worker: (loads[worker], worker != rxq.worker))
        loads[worker] += rxq.load
        placed[rxq.port_id, rxq.queue] = worker
    return placed


def _loads(rxqs: Sequence[RxqLoad], placed: Mapping[tuple[int, int], int], n_workers: int) -> list[float]:
    loads = [0.0] * n_workers
    for rxq in rxqs:
        loads[placed.get((rxq.port_id, rxq.queue), rxq.worker)] += rxq.load
    return loads
