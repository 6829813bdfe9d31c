# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' arithmetic: cost of a packet, contamination, ratios, latencies."""

from __future__ import annotations

from dataclasses import replace

import pytest

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
    others_between,
    percentile,
    ratio,
    time_to_rate,
)

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


def test_cost_is_that_of_all_the_switchs_cores() -> None:
    assert figure(series({"packets": 10_000_000}), 1, TSC_HZ, None, cores=2).cycles == pytest.approx(400)


def test_several_cpus_count_as_their_mean() -> None:
    assert Core.mean([Core(10, 4), Core(20, 0)]) == Core(15, 2)


def test_idle_times_that_go_back_are_no_more_than_the_whole_core() -> None:
    assert others_between(Core(0, 500), Core(0, 400), 100) == 1


def cost(cycles: float, **changes: object) -> Figure:
    base = Figure(
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
    return replace(base, **changes)  # type: ignore[arg-type]


def test_ratios_are_within_rounds() -> None:
    found = ratio([cost(300), cost(400), cost(100)], [cost(100), cost(200), cost(100)])
    assert found.spread == Spread(median=2.0, minimum=1.0, maximum=3.0)
    with pytest.raises(ValueError, match="shorter"):
        ratio([cost(1), cost(2)], [cost(1)])


def test_a_ratio_compares_counts_of_the_same_kind() -> None:
    limited = cost(400, own_cycles=90.0, switch_limited=False)
    saturated = cost(200, own_cycles=180.0)
    assert ratio([saturated], [limited]).spread.median == pytest.approx(2)
    assert ratio([limited], [saturated]).spread.median == pytest.approx(0.5)
    # A switch that keeps no count leaves no choice.
    assert ratio([limited], [cost(200)]).spread.median == pytest.approx(90 / 200)


def test_a_ratio_knows_its_worst_disturbance() -> None:
    quiet, loud = cost(1), cost(1, others_generator=0.2, others_switch=0.1)
    assert ratio([quiet, loud], [quiet, quiet]).others == pytest.approx(0.2)
    assert ratio([quiet, quiet], [quiet, loud]).others == pytest.approx(0.2)


def test_percentile_is_one_of_the_values() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert percentile(values, 0.99) == 99
    assert percentile(values, 0.5) == 50
    assert percentile(values, 1.0) == 100
    assert percentile([7.0], 0.99) == 7


def totals(rates: list[int]) -> list[int]:
    return [sum(rates[: end + 1]) for end in range(len(rates))]


def test_time_to_full_rate_is_the_end_of_the_first_window_that_has_it() -> None:
    # 90 % of 10 is reached by the window of two bins that ends with the sixth.
    assert time_to_rate(totals([0, 0, 4, 8, 8, 10, 10, 10, 10, 10, 10, 10]), 0.5, 0.9, 2) == pytest.approx(3.0)
    assert time_to_rate(totals([10] * 8), 0.5, 0.9, 1) == pytest.approx(0.5)


def test_a_burst_in_one_bin_is_not_the_full_rate() -> None:
    assert time_to_rate(totals([10, 0, 0, 0, 10, 10, 10, 10, 10, 10]), 1.0, 0.9, 4) == pytest.approx(8.0)


def test_a_switch_that_does_not_come_back_has_no_full_rate() -> None:
    with pytest.raises(ValueError, match="no packet"):
        time_to_rate([5, 5, 5, 5], 0.5, 0.9, 1)
