# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks make of their measurements: the issue's ratios, goals, the JSON document."""

from __future__ import annotations

import json

import pytest

from tests.bench.cases import wake, workers
from tests.bench.cases.forwarding import CASES, MANY, NORMAL, NORMAL_CACHES, SMALL, ratios
from tests.bench.errors import BenchError
from tests.bench.machine import Cpus
from tests.bench.measure import Case
from tests.bench.report import Goal
from tests.bench.rounds import Outcome, Results
from tests.bench.stats import Ratio, Spread
from tests.bench.switch import GOALS, GROUPS, choose, combine, document, main
from tests.unit.test_bench_stats import cost

# The table of the issue.
WANTED = [
    *("vs_ovs_normal_64", "vs_io_64", "vs_ovs_normal_1500", "vs_io_1500", "packed_vs_io_64"),
    *("flows_10k", "flows_1m", "vs_ovs_10k", "tso_64k", "idle_cpu_pct", "wake_vs_eventfd", "workers_2"),
]


def results_of(costs: dict[tuple[str, Case], list[float]]) -> Results:
    return {key: [cost(cycles) for cycles in values] for key, values in costs.items()}


def test_ratios_of_a_run() -> None:
    names = ("ovs-flows", NORMAL, "testpmd-io", "ffswitch")
    costs = {(name, case): [100.0 * i] * 3 for case in CASES for i, name in enumerate(names, start=1)}
    costs["ffswitch", SMALL] = [50.0, 100.0, 200.0]
    for i, name in enumerate(NORMAL_CACHES):
        for case in MANY.values():
            costs[name, case] = [500.0] * 3
            # One quick round does not make a cache setting the best one.
            costs[name, MANY["10k"]] = [1.0, 160.0, 160.0] if i == 1 else [1.0, 500.0, 500.0]
    found = ratios(results_of(costs))
    assert found["vs_ovs_normal_64"].spread == Spread(2.0, 1.0, 4.0)
    assert found["vs_ovs_flows_64"].spread == Spread(1.0, 0.5, 2.0)
    assert found["vs_io_64"].spread == Spread(3.0, 1.5, 6.0)
    assert found["vs_io_1500"].spread == Spread(0.75, 0.75, 0.75)
    assert found["flows_10k"].spread == Spread(0.25, 0.125, 0.5)
    assert found["vs_ovs_1k"] == Ratio(Spread(0.5, 0.5, 0.5), 0.0, "against ovs-normal")
    assert found["vs_ovs_10k"] == Ratio(Spread(160 / 400, 1 / 400, 160 / 400), 0.0, "against ovs-normal, smc")


def test_two_workers_that_cost_as_much_as_one_are_worth_two() -> None:
    costs = {(workers.ONE, case): [100.0, 120.0] for case in workers.ALONE}
    costs |= {(workers.TWO, case): [100.0, 120.0] for case in workers.ALONE}
    assert workers.by_cycles(results_of(costs)).spread == Spread(2.0, 2.0, 2.0)
    costs[workers.TWO, workers.ALONE[1]] = [200.0, 240.0]
    assert workers.by_cycles(results_of(costs)).spread.median == pytest.approx(1.5)


def test_a_ramp_in_which_others_had_the_core_is_repeated() -> None:
    disturbed, quiet = (wake.Ramp(0.25, [0, 0], ns) for ns in (wake.WAITED_NS + 1, wake.WAITED_NS))
    ramps = iter([disturbed, *[quiet] * wake.RAMPS, disturbed])
    assert wake.quiet_ramps(lambda: next(ramps)) == [quiet] * wake.RAMPS
    assert list(ramps) == [disturbed]


def test_ramps_that_are_all_disturbed_are_no_figure() -> None:
    disturbed = wake.Ramp(0.25, [0, 0], wake.WAITED_NS + 1)
    with pytest.raises(BenchError, match="others had a poll thread's core"):
        wake.quiet_ramps(lambda: disturbed)


def test_a_case_says_how_many_flows_a_learning_switch_has() -> None:
    assert [MANY[name].flows for name in ("1k", "10k")] == [1_000, 10_000]
    assert Case(64).label == "64 B, one flow each way"
    assert Case(64, (100, 50)).label == "64 B, 10,000 flows"
    assert Case(64, pair=1).label == "64 B, one flow each way, pair 2 alone"
    assert Case(64294, stream=True).label == "64,294 B, one stream"


@pytest.mark.parametrize(
    ("allowed", "each", "switch", "generator"),
    [
        ({0, 1}, 1, (1,), (0,)),
        ({0, 1, 2, 3}, 1, (3,), (2,)),
        ({0, 1, 2, 3, 4}, 2, (3, 4), (1, 2)),
        ({0, 1, 2}, 2, (2,), (1,)),
    ],
)
def test_cpus(allowed: set[int], each: int, switch: tuple[int, ...], generator: tuple[int, ...]) -> None:
    assert Cpus.choose(allowed, each) == Cpus(switch, generator)


def test_one_cpu_is_too_few() -> None:
    with pytest.raises(BenchError, match="two CPUs"):
        Cpus.choose({3})


def test_every_number_that_the_issue_wants_is_measured_and_has_a_goal() -> None:
    measured = [name for group in GROUPS for name in group.ratios]
    assert len(measured) == len(set(measured))
    assert set(WANTED) <= set(measured)
    assert set(WANTED) <= set(GOALS) <= set(measured)


def test_only_takes_ratios_and_groups() -> None:
    assert [group.name for group in choose(["tso_64k", "wake"])] == ["offload", "wake"]
    assert choose([]) == list(GROUPS)


@pytest.mark.parametrize(
    ("value", "goal", "met"),
    [
        (2.0, Goal(2.0), True),
        (1.9, Goal(2.0), False),
        (2.0, Goal(2.0, at_most=True), True),
        (2.1, Goal(2.0, True), False),
    ],
)
def test_goals(value: float, goal: Goal, met: bool) -> None:
    assert goal.met(value) is met


def test_document() -> None:
    first = Outcome({"vs_io_64": Ratio(Spread(1.5, 1.2, 1.6), 0.03, "hm")}, {("ffswitch", SMALL): [cost(100)]})
    second = Outcome({"idle_cpu_pct": Ratio(Spread(3.0, 1.0, 4.0), 0.0)}, times={"x": Spread(1.0, 1.0, 1.0)})
    written = json.loads(json.dumps(document(combine([first, second]))))
    assert written["ratios"] == {
        "vs_io_64": {
            "median": 1.5,
            "min": 1.2,
            "max": 1.6,
            "others": 0.03,
            "at_least": 1.4,
            "ok": True,
            "note": "hm",
        },
        "idle_cpu_pct": {"median": 3.0, "min": 1.0, "max": 4.0, "others": 0.0, "at_most": 2.0, "ok": False},
    }
    (cell,) = written["cells"]
    assert (cell["switch"], cell["size"], cell["stations"], cell["round"]) == ("ffswitch", 64, [1, 1], 1)
    assert written["seconds"] == {"x": {"median": 1.0, "min": 1.0, "max": 1.0}}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--only", "vs_io_65"], "--only vs_io_65: there is no such measurement: there are "),
        (["--rounds", "0"], "Invalid value for '--rounds': 0 is not in the range x>=1."),
        (["--sizes"], "No such option"),
    ],
)
def test_bad_usage_is_one_line(args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"bench-switch: {says}")
    assert err.count("\n") == 1


def test_without_rights_it_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["--only", "wake"]) == 1
    assert capsys.readouterr().err == "bench-switch: the benchmark pins threads and starts switches: run it as root\n"
