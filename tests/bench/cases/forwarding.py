# SPDX-License-Identifier: Apache-2.0
"""Forwarding between two ports, one core, against OVS-DPDK and testpmd."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial

from tests.bench.measure import Case
from tests.bench.peers.ffswitch import FfSwitch
from tests.bench.peers.ovs import Ovs
from tests.bench.peers.testpmd import Testpmd
from tests.bench.rounds import Contender, Group, Outcome, Results, Run, interleave, start
from tests.bench.stats import Figure, Ratio, Spread, ratio

SMALL, LARGE = Case(64), Case(1500)
MANY = {"1k": Case(64, (25, 20)), "10k": Case(64, (100, 50))}
CASES = (SMALL, LARGE, *MANY.values())

NORMAL, FLOWS = "ovs-normal", "ovs-flows"
# How OVS can cache many flows; its default is the exact-match cache, filled with a probability of 1/100.
NORMAL_CACHES: Mapping[str, Mapping[str, str]] = {
    "ovs-normal, emc always": {"emc-insert-inv-prob": "1"},
    "ovs-normal, smc": {"emc-insert-inv-prob": "0", "smc-enable": "true"},
    "ovs-normal, no cache": {"emc-insert-inv-prob": "0"},
}


def measure(run: Run) -> Outcome:
    """All switches at once, each with its generator, all but one paused. Raises BenchError."""
    with contextlib.ExitStack() as stack:
        _, flows = start(stack, run, "flows", lambda here: Ovs(here, FLOWS, flows=True))
        ovs, normal = start(stack, run, "normal", lambda here: Ovs(here, NORMAL, flows=False))
        _, testpmd = start(stack, run, "testpmd", Testpmd)
        _, ffswitch = start(stack, run, "ffswitch", FfSwitch)
        caches = [
            Contender(name, normal, tuple(MANY.values()), partial(ovs.set_caches, settings))
            for name, settings in NORMAL_CACHES.items()
        ]
        field = [
            Contender(FLOWS, flows, CASES),
            Contender(NORMAL, normal, CASES, partial(ovs.set_caches, {})),
            Contender(Testpmd.name, testpmd, CASES),
            Contender(FfSwitch.name, ffswitch, CASES),
            *caches,
        ]
        results = interleave(run, field)
    return Outcome(ratios(results), results)


def ratios(results: Results) -> dict[str, Ratio]:
    """The ratios of the issue's table, each within a round; see docs/performance.md."""

    def best_normal(case: Case) -> str:
        return min((NORMAL, *NORMAL_CACHES), key=lambda name: _median_cost(results[name, case]))

    ours = {case: results[FfSwitch.name, case] for case in CASES}
    found = {}
    for suffix, case in (("64", SMALL), ("1500", LARGE)):
        found[f"vs_ovs_normal_{suffix}"] = ratio(results[NORMAL, case], ours[case])
        found[f"vs_ovs_flows_{suffix}"] = ratio(results[FLOWS, case], ours[case])
        found[f"vs_io_{suffix}"] = ratio(results[Testpmd.name, case], ours[case])
    for suffix, case in MANY.items():
        best = best_normal(case)
        found[f"vs_ovs_{suffix}"] = ratio(results[best, case], ours[case], note=f"against {best}")
        found[f"flows_{suffix}"] = ratio(ours[SMALL], ours[case])
    return found


def _median_cost(figures: list[Figure]) -> float:
    return Spread.of([figure.cost for figure in figures]).median


GROUP = Group(
    "forwarding",
    (
        *(f"vs_{peer}_{size}" for size in (64, 1500) for peer in ("ovs_normal", "ovs_flows", "io")),
        *(f"{kind}_{count}" for count in MANY for kind in ("vs_ovs", "flows")),
    ),
    measure,
)
