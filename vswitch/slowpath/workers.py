# SPDX-License-Identifier: Apache-2.0
"""The workers' load, measured once a second, and the placement of receive queues that follows from it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from vswitch.slowpath.balance import IMPROVEMENT, LOAD, Move, RxqLoad, rebalance
from vswitch.slowpath.counters import Rxq, WorkerStats
from vswitch.slowpath.errors import SwitchError
from vswitch.slowpath.interfaces import FastPathApi
from vswitch.slowpath.ports import rxq_affinity
from vswitch.slowpath.types import PortConfig

log = logging.getLogger(__name__)

# Loads are means over so many seconds, and moves that the switch makes itself are at least as far apart.
WINDOW_S = 10

# The port of an id, None when it is gone.
PortOf = Callable[[int], PortConfig | None]


class _Sample(NamedTuple):
    time: float
    workers: Sequence[WorkerStats]
    cycles: dict[tuple[int, int], int]  # by port id and queue


class Workers:
    """Measures and moves. `clock` gives seconds, `port_of` a port's configuration."""

    def __init__(self, fast_path: FastPathApi, port_of: PortOf, clock: Callable[[], float]) -> None:
        self.auto_lb = True
        self._fast_path = fast_path
        self._port_of = port_of
        self._clock = clock
        self._samples: deque[_Sample] = deque([self._sample(fast_path.rxqs())], maxlen=WINDOW_S + 1)
        self._last_move = clock()

    # ---- placement ------------------------------------------------------------

    def check(self, config: PortConfig) -> None:
        """Raise SwitchError when the port's affinity names a queue or a worker that does not exist."""
        n_workers = len(self._fast_path.worker_stats())
        for queue, worker in rxq_affinity(config).items():
            if queue >= config.queues:
                raise SwitchError(f"rxq_affinity: there is no queue {queue}: {config.name} has {_range(config.queues)}")
            if worker >= n_workers:
                raise SwitchError(f"rxq_affinity: there is no worker {worker}: the switch has {_range(n_workers)}")

    def pin(self, port_id: int, config: PortConfig) -> None:
        """Move the port's queues to the workers that its affinity names."""
        present = {(rxq.port_id, rxq.queue) for rxq in self._fast_path.rxqs()}
        for queue, worker in rxq_affinity(config).items():
            if (port_id, queue) in present:  # a device may have fewer than were asked for
                self._fast_path.rxq_move(port_id, queue, worker)

    def tick(self) -> None:
        """Once a second: measure, and rebalance when that is worth it."""
        self._samples.append(self._sample(self._fast_path.rxqs()))
        if self.auto_lb and self._clock() - self._last_move >= WINDOW_S:
            self._move(IMPROVEMENT, LOAD)

    def rebalance(self) -> list[Move]:
        """Rebalance now, however little there is to gain; the moves made."""
        return self._move(0.0, 0.0)

    def _move(self, improvement: float, load: float) -> list[Move]:
        n_workers = len(self._samples[-1].workers)
        moves = rebalance(self.rxqs(), n_workers, improvement=improvement, load=load) if n_workers > 1 else []
        for move in moves:
            self._fast_path.rxq_move(*move)
        if moves:
            self._last_move = self._clock()
            log.info("rebalanced: %d receive queues moved to other workers", len(moves))
        return moves

    # ---- measuring --------------------------------------------------------------

    def _sample(self, rxqs: Iterable[Rxq]) -> _Sample:
        cycles = {(rxq.port_id, rxq.queue): rxq.cycles for rxq in rxqs}
        return _Sample(self._clock(), self._fast_path.worker_stats(), cycles)

    def rxqs(self) -> list[RxqLoad]:
        """Each receive queue with its worker and load."""
        rxqs = self._fast_path.rxqs()
        before, now = self._samples[0], self._sample(rxqs)
        span = self._span(before, now)
        result = []
        for rxq in rxqs:
            port = self._port_of(rxq.port_id)
            spent = rxq.cycles - before.cycles.get((rxq.port_id, rxq.queue), 0)
            # a port's id may have been another's: its counters began again
            load = max(spent, 0) / span
            pinned = rxq.bound or (port is not None and rxq.queue in rxq_affinity(port))
            result.append(RxqLoad(rxq.port_id, rxq.queue, rxq.worker, load, pinned))
        return result

    def loads(self) -> list[float]:
        """The share of its time that each worker spent with packets."""
        before, now = self._samples[0], self._sample(())
        span = self._span(before, now)
        pairs = zip(before.workers, now.workers, strict=True)
        return [(after.busy_cycles - then.busy_cycles) / span for then, after in pairs]

    def _span(self, before: _Sample, now: _Sample) -> float:
        """The time between two samples in cycles, above 0."""
        return max((now.time - before.time) * self._fast_path.tsc_hz, 1.0)


def _range(n: int) -> str:
    return f"0 to {n - 1}" if n > 1 else "only 0"
