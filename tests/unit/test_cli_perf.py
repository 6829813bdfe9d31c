# SPDX-License-Identifier: Apache-2.0
"""`ffswitch stats --perf`: two readings become cycles a packet by stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.rpcserver import FakeDaemon
from vswitch.cli.main import main
from vswitch.cli.perf import WorkerPerf, perf_between

HZ = 1_000_000_000


def reading(time_s: float, **counts: int) -> dict[str, Any]:
    """What `stats` says of one worker on CPU 3 whose counters are `counts`, 0 where not told."""
    perf = {key: counts.get(key, 0) for key in ("bursts", "sampled_packets", "verdicts", "verdict_cycles")}
    stages = {"rx": counts.get("rx", 0), "tx": counts.get("tx", 0)}
    worker = {key: counts.get(key, 0) for key in ("packets", "busy_cycles", "misses")}
    return {"time_s": time_s, "tsc_hz": HZ, "workers": [{**worker, "cpu": 3, "perf": {**perf, "stage_cycles": stages}}]}


FIRST = reading(10.0, packets=5, busy_cycles=500, bursts=1, sampled_packets=5, rx=100, tx=100)
SECOND = reading(
    12.0,
    packets=5 + 10_000_000,
    busy_cycles=500 + HZ,
    bursts=1 + 500_000,
    sampled_packets=5 + 1000,
    rx=100 + 30_000,
    tx=100 + 50_000,
    misses=4,
    verdicts=2,
    verdict_cycles=100_000,
)


def test_between_two_readings() -> None:
    assert perf_between(FIRST, SECOND) == [
        WorkerPerf(
            cpu=3,
            busy_pct=50.0,
            packets_per_s=5_000_000.0,
            packets_per_burst=20.0,
            cycles_per_packet=100.0,
            stages={"rx": 30.0, "tx": 50.0},
            rest=20.0,
            misses_per_s=2.0,
            upcall_us=50.0,
        )
    ]


def test_an_idle_worker_has_no_averages() -> None:
    assert perf_between(FIRST, FIRST | {"time_s": 11.0}) == [WorkerPerf(3, 0.0, 0.0, None, None, {}, None, 0.0, None)]


def test_a_sample_that_is_dearer_than_the_average_leaves_no_negative_rest() -> None:
    after = reading(12.0, packets=15, busy_cycles=1000, bursts=2, sampled_packets=15, rx=1000, tx=100)
    assert perf_between(FIRST, after)[0].rest == 0.0


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("FFSWITCH_RUN_DIR", str(tmp_path))
    readings = iter([FIRST, SECOND])
    fake = FakeDaemon(tmp_path, {"stats": lambda _: next(readings)})
    yield fake
    fake.close()


@pytest.mark.usefixtures("daemon")
def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "--perf", "--interval", "0.1"]) == 0
    summary, _, rx, tx, rest = capsys.readouterr().out.splitlines()
    assert summary == (
        "worker 0 on CPU 3: 50.0 % busy, 5.00M packets/s, 20.0 packets a burst, 100.0 cycles a packet, "
        "2 misses/s, verdicts after 50.0 µs"
    )
    assert [line.split() for line in (rx, tx, rest)] == [
        ["rx", "30.0", "30.0", "%"],
        ["tx", "50.0", "50.0", "%"],
        ["rest", "20.0", "20.0", "%"],
    ]


@pytest.mark.usefixtures("daemon")
def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "--perf", "--interval", "0.1", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["stages"] == {"rx": 30.0, "tx": 50.0}


@pytest.mark.parametrize("words", [["--perf", "web0"], ["--interval", "2"], ["--perf", "--interval", "0"]])
def test_refused(words: list[str]) -> None:
    assert main(["stats", *words]) == 2
