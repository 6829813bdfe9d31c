# SPDX-License-Identifier: Apache-2.0
"""What `make bench-vxlan` makes of its measurements, and how it is called."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.generator import SPLIT, Ends
from tests.bench.peers.overlay import STATIONS, bridge_ip, link_ip
from tests.bench.rounds import Results
from tests.bench.stats import Spread
from tests.bench.vxlan import CASES, KERNEL, OURS, OVS, document, main, ratios
from tests.unit.test_bench_stats import cost


def results() -> Results:
    costs = {OURS: [100.0, 200.0, 100.0], OVS: [150.0, 200.0, 130.0], KERNEL: [300.0] * 3}
    return {(name, case): [cost(cycles) for cycles in costs[name]] for case in CASES.values() for name in costs}


def test_ratios_are_computed_within_a_round() -> None:
    found = ratios(results())
    for size in CASES:
        assert found[f"vs_ovs_{size}"].spread == Spread(1.3, 1.0, 1.5)
        assert found[f"vs_kernel_{size}"].spread == Spread(3.0, 1.5, 3.0)


def test_the_kernels_measurements_say_nothing_of_others() -> None:
    measured = results()
    for case in CASES.values():
        measured[KERNEL, case] = [replace(figure, others_switch=0.9) for figure in measured[KERNEL, case]]
        measured[OURS, case] = [replace(figure, others_switch=0.01) for figure in measured[OURS, case]]
    assert {value.others for name, value in ratios(measured).items() if "kernel" in name} == {0.01}


def test_document_has_goals_for_ovs_alone() -> None:
    measured = results()
    whole = json.loads(json.dumps(document(measured, ratios(measured))))
    assert whole["ratios"]["vs_ovs_64"] | {"at_least": 1.2, "ok": True} == whole["ratios"]["vs_ovs_64"]
    assert "ok" not in whole["ratios"]["vs_kernel_64"]
    assert len(whole["cells"]) == 3 * 2 * 3


def test_devices_of_the_generator() -> None:
    links = Ends(links=("c0", "c1"), netns="there")
    assert links.vdevs([]) == ["net_af_packet0,iface=c0", "net_af_packet1,iface=c1"]
    assert links.enter == ["ip", "netns", "exec", "there"]
    assert SPLIT.vdevs([Path("a")]) == ["net_virtio_user0,path=a,server=1"]
    assert SPLIT.enter == []


def test_the_hosts_differ() -> None:
    assert len({address(number) for address in (link_ip, bridge_ip) for number in (0, 1)}) == 4
    assert STATIONS[0] != STATIONS[1]


@pytest.mark.parametrize("words", [["--rounds", "0"], ["--seconds", "0.1"], ["--bogus"]])
def test_bad_usage_is_one_line_and_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1
