# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' arithmetic: cost of a packet, contamination, ratios."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.bench.measure import Case
from tests.bench.stats import (
    PATIENCE,
    Core,
    Figure,
    OwnCount,
    Sample,
    Slice,
    Spread,
    enough,
    figure,
    ratios,
)
from tests.bench.switch import CASES, MANY, NORMAL, NORMAL_CACHES, SMALL, forwarding_ratios

TSC_HZ = 2e9
SECOND = 1_000_000_000
ZERO = Sample(ns=0, sent=0, received=0, turns=0, turns_full=0, switch=Core(0, 0), generator=Core(0, 0))


def after(before: Sample, packets: int, *, stolen: float = 0.0, full: float = 0.5, idle: float = 0.0) -> Sample:
    """A sample one second later. Shares of that second on the switch's core: others ran, it idled."""
    core, other = before.switch, before.generator
    own = 1 - stolen - idle
    return Sample(
        ns=before.ns + SECOND,
        sent=before.sent + packets,
        received=before.received + packets,
        turns=before.turns + 1000,
        turns_full=before.turns_full + int(1000 * full),
        switch=Core(core.own_ns + int(SECOND * own), core.idle_ns + int(SECOND * idle)),
        generator=Core(other.own_ns + SECOND, other.idle_ns),
    )


def series(*seconds: dict[str, float]) -> list[Sample]:
    samples = [ZERO]
    for kwargs in seconds:
        packets = int(kwargs.pop("packets"))
        samples.append(after(samples[-1], packets, **kwargs))
    return samples


def test_cost_is_core_time_over_packets_that_came_out() -> None:
    found = figure(series({"packets": 10_000_000}), 1, TSC_HZ, None)
    assert found.cycles == pytest.approx(200)
    assert found.mpps == pytest.approx(10)
    assert found.cost == found.cycles


def test_time_that_others_took_is_not_the_switchs_cost() -> None:
    found = figure(series({"packets": 5_000_000, "stolen": 0.5}), 1, TSC_HZ, None)
    assert found.cycles == pytest.approx(200)
    assert found.mpps == pytest.approx(5)
    assert found.others_switch == pytest.approx(0.5)
    assert found.others_generator == 0


def test_sleep_is_no_contamination_and_costs_as_polling_does() -> None:
    samples = series({"packets": 10_000_000, "idle": 0.6})
    assert Slice.between(*samples).contamination == pytest.approx(0)
    assert figure(samples, 1, TSC_HZ, None).cycles == pytest.approx(200)


def test_either_core_contaminates() -> None:
    first, last = series({"packets": 1, "stolen": 0.1})
    assert Slice.between(first, last).contamination == pytest.approx(0.1)
    swapped = replace(last, switch=last.generator, generator=last.switch)
    assert Slice.between(first, swapped).contamination == pytest.approx(0.1)


def test_only_the_quietest_slices_count() -> None:
    samples = series(
        {"packets": 1_000_000, "stolen": 0.3},
        {"packets": 10_000_000},
        {"packets": 2_000_000, "stolen": 0.2},
        {"packets": 10_000_000, "stolen": 0.01},
    )
    found = figure(samples, 2, TSC_HZ, None)
    assert (found.slices, found.slices_used) == (4, 2)
    assert found.cycles == pytest.approx(199)  # of 200 and 198
    assert found.others_switch == pytest.approx(0.005)


def test_sampling_ends_with_enough_quiet_slices_or_with_patience() -> None:
    quiet, loud = {"packets": 1.0}, {"packets": 1.0, "stolen": 0.5}
    assert not enough([ZERO], 1)
    assert enough(series(dict(quiet)), 1)
    assert not enough(series(dict(quiet), dict(loud)), 2)
    assert enough(series(dict(quiet), dict(loud), dict(quiet)), 2)
    assert not enough(series(*(dict(loud) for _ in range(PATIENCE - 1))), 1)
    assert enough(series(*(dict(loud) for _ in range(PATIENCE))), 1)


def test_where_the_generator_is_the_limit_the_switchs_own_count_is_taken() -> None:
    own = (OwnCount(1000, 10), OwnCount(1000 + 150 * 90, 100))
    limited = figure(series({"packets": 5_000_000, "full": 0.01}), 1, TSC_HZ, own)
    assert not limited.switch_limited
    assert limited.own_cycles == pytest.approx(150)
    assert limited.cost == limited.own_cycles
    saturated = figure(series({"packets": 5_000_000, "full": 0.9}), 1, TSC_HZ, own)
    assert saturated.cost == saturated.cycles == pytest.approx(400)


def test_without_a_count_of_its_own_the_core_time_stands() -> None:
    idle_count = (OwnCount(5, 7), OwnCount(5, 7))
    for own in (None, idle_count):
        found = figure(series({"packets": 5_000_000, "full": 0.01}), 1, TSC_HZ, own)
        assert found.own_cycles is None
        assert found.cost == found.cycles


def test_loss_is_what_was_taken_and_did_not_come_out() -> None:
    first, last = series({"packets": 1000})
    assert figure([first, replace(last, sent=1250)], 1, TSC_HZ, None).loss == pytest.approx(0.2)
    # Frames in flight at the first sample come out later: no negative loss.
    assert figure([first, replace(last, sent=990)], 1, TSC_HZ, None).loss == 0


def test_nothing_came_out() -> None:
    with pytest.raises(ValueError, match="no packet"):
        figure(series({"packets": 0}), 1, TSC_HZ, None)


def test_ratios_are_within_rounds() -> None:
    assert ratios([300, 400, 100], [100, 200, 100]) == Spread(median=2.0, minimum=1.0, maximum=3.0)
    with pytest.raises(ValueError, match="shorter"):
        ratios([1, 2], [1])


def cost(cycles: float) -> Figure:
    return Figure(
        mpps=1.0,
        cycles=cycles,
        own_cycles=None,
        switch_limited=True,
        loss=0.0,
        others_switch=0.0,
        others_generator=0.0,
        slices=1,
        slices_used=1,
    )


def test_ratios_of_a_run() -> None:
    names = ("ovs-flows", NORMAL, "testpmd-io", "ffswitch")
    costs: dict[tuple[str, Case], list[float]] = {
        (name, case): [100.0 * i] * 3 for case in CASES for i, name in enumerate(names, start=1)
    }
    costs["ffswitch", SMALL] = [50.0, 100.0, 200.0]
    for i, name in enumerate(NORMAL_CACHES):
        for case in MANY.values():
            costs[name, case] = [500.0] * 3
            # One quick round does not make a cache setting the best one.
            costs[name, MANY["10k"]] = [1.0, 160.0, 160.0] if i == 1 else [1.0, 500.0, 500.0]
    found = forwarding_ratios({key: [cost(c) for c in values] for key, values in costs.items()})
    assert found["vs_ovs_normal_64"] == Spread(2.0, 1.0, 4.0)
    assert found["vs_ovs_flows_64"] == Spread(1.0, 0.5, 2.0)
    assert found["vs_io_64"] == Spread(3.0, 1.5, 6.0)
    assert found["vs_io_1500"] == Spread(0.75, 0.75, 0.75)
    assert found["flows_10k"] == Spread(0.25, 0.125, 0.5)
    assert found["vs_ovs_1k"] == Spread(0.5, 0.5, 0.5)
    assert found["vs_ovs_10k"] == Spread(160 / 400, 1 / 400, 160 / 400)
