# SPDX-License-Identifier: Apache-2.0
"""Measured loads, and the moves that follow from them."""

from __future__ import annotations

import pytest

from tests.unit.fake_fastpath import FakeFastPath
from vswitch.slowpath.errors import BadParams, SwitchError
from vswitch.slowpath.ports import change_port
from vswitch.slowpath.types import PortConfig
from vswitch.slowpath.workers import WINDOW_S, Workers


class Bench:
    """Two ports of two queues each on two workers, of which the first has everything; 1000 cycles a second."""

    def __init__(self) -> None:
        self.now = 0.0
        self.fast_path = FakeFastPath()
        self.fast_path.n_workers = 2
        self.configs = {self.fast_path.port_add(c): c for c in (PortConfig(name, queues=2) for name in ("a", "b"))}
        self.workers = Workers(self.fast_path, self.configs.get, lambda: self.now)

    def run(self, seconds: int, **cycles_per_s: int) -> None:
        """Lets time pass; `a0=900`: queue 0 of port a takes 900 cycles each second."""
        for _ in range(seconds):
            self.now += 1
            for name, cycles in cycles_per_s.items():
                key = ("ab".index(name[0]) + 1, int(name[1]))
                self.fast_path.cycles[key] = self.fast_path.cycles.get(key, 0) + cycles
                worker = self.fast_path.placed.get(key, 0)
                self.fast_path.busy[worker] = self.fast_path.busy.get(worker, 0) + cycles
            self.workers.tick()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_loads_are_shares_of_time(bench: Bench) -> None:
    bench.workers.auto_lb = False
    bench.run(5, a0=300, b1=100)
    assert [rxq.load for rxq in bench.workers.rxqs()] == pytest.approx([0.3, 0.0, 0.0, 0.1])
    assert bench.workers.loads() == pytest.approx([0.4, 0.0])
    bench.run(WINDOW_S, a0=100)
    assert bench.workers.loads() == pytest.approx([0.1, 0.0]), "what is long ago does not count"


def test_busy_queues_part_by_themselves(bench: Bench) -> None:
    bench.run(WINDOW_S - 1, a0=400, b0=400)
    assert not bench.fast_path.placed
    bench.run(1, a0=400, b0=400)
    assert bench.fast_path.placed == {(2, 0): 1}
    bench.run(5 * WINDOW_S, a0=400, b0=400)
    assert bench.fast_path.placed == {(2, 0): 1}, "and rest"


def test_not_when_switched_off(bench: Bench) -> None:
    bench.workers.auto_lb = False
    bench.run(2 * WINDOW_S, a0=400, b0=400)
    assert not bench.fast_path.placed
    assert [tuple(move) for move in bench.workers.rebalance()] == [(2, 0, 1)]
    assert bench.fast_path.placed == {(2, 0): 1}


def test_pinned_queues_stay(bench: Bench) -> None:
    bench.configs[2] = change_port(bench.configs[2], {"rxq_affinity": "1:0, 0:0"})
    assert bench.configs[2].rxq_affinity == "0:0,1:0"
    bench.run(2 * WINDOW_S, a0=400, b0=400)
    assert bench.fast_path.placed == {(1, 0): 1}


def test_one_worker_has_nobody_to_share_with(bench: Bench) -> None:
    bench.fast_path.n_workers = 1
    bench.workers = Workers(bench.fast_path, bench.configs.get, lambda: bench.now)
    bench.run(2 * WINDOW_S, a0=400, b0=400)
    assert bench.workers.rebalance() == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0", "'0' is not QUEUE:WORKER"),
        ("0:1,x:1", "'x:1' is not QUEUE:WORKER"),
        ("0:-1", "not QUEUE:WORKER"),
        ("0:1,0:2", "queue 0 is there twice"),
        ("2:0", "there is no queue 2: a has 0 to 1"),
        ("0:2", "there is no worker 2: the switch has 0 to 1"),
    ],
)
def test_bad_affinity(bench: Bench, text: str, words: str) -> None:
    with pytest.raises((BadParams, SwitchError), match=words):
        bench.workers.check(change_port(bench.configs[1], {"rxq_affinity": text}))
