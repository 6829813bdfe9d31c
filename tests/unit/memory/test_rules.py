# SPDX-License-Identifier: Apache-2.0
"""Who may have a shortcut: ports' settings, bridging, who looks at packets, the controller's word."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.decide import Decision
from controller.model import TrustMode
from tests.unit.memory.scripted import Bench
from vswitch.slowpath.memory.rules import pair_of_ports
from vswitch.slowpath.switch import PortEntry
from vswitch.slowpath.types import Port, PortConfig, PortState, PortType


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def add(bench: Bench, name: str, port_id: int, **config: Any) -> None:
    """A port without a socket: there is no event loop here."""
    wish = {"trust_domain": "red", "type": PortType.FF} | config
    port = PortConfig(name, mac=f"02:00:00:00:00:{port_id:02x}", **wish)
    entry = PortEntry(port, port_id, PortState.READY, "", 0.0)
    bench.switch.ports[name] = bench.switch._by_id[port_id] = entry
    bench.core.port_added(Port(port_id, port, up=True), bench.now)
    bench.core.announced(port_id, mac(port_id), bench.now)
    bench.switch.rules.changed()


def mac(port_id: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, port_id])


def why(bench: Bench, *, new: bool = True) -> str:
    bench.switch.rules.changed()
    return bench.switch.rules.refuses(1, 2, mac(2), new=new)


def test_same_trust_domain(bench: Bench) -> None:
    add(bench, "a", 1)
    add(bench, "b", 2)
    assert why(bench) == ""
    assert bench.switch.rules.refuses(1, 2, mac(9), new=True) == "02:00:00:00:00:09 is not there"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"trust_domain": ""}, "in no trust domain"),
        ({"trust_domain": "blue"}, "red and blue"),
        ({"network": "other"}, "different networks"),
        ({"type": PortType.VHOST_USER}, "vhost-user port"),
        ({"tag": 10}, "share no network and VLAN"),
        ({"trunks": (5,), "native_vlan": 5}, "share no network and VLAN"),
        ({"mirror": "a"}, "mirrored"),
        ({"shortcut_quota": 0}, "shortcut_quota of b is 0"),
    ],
)
def test_refused(bench: Bench, config: dict[str, Any], reason: str) -> None:
    add(bench, "a", 1)
    add(bench, "b", 2, **config)
    assert reason in why(bench)


def test_access_ports_of_one_vlan(bench: Bench) -> None:
    add(bench, "a", 1, tag=10)
    add(bench, "b", 2, tag=10)
    assert why(bench) == ""


def test_a_tag_that_changes(bench: Bench) -> None:
    add(bench, "a", 1, tag=10)
    add(bench, "b", 2)
    bench.core.add_static(10, mac(2), 2, bench.now)
    assert why(bench) == "frames change their VLAN tag on the way"


def test_who_looks_on(bench: Bench) -> None:
    add(bench, "a", 1)
    add(bench, "b", 2)
    taps = bench.switch.taps
    subscription = taps.subscribe(2, 1, 64, lambda records: None)
    assert why(bench) == "a capture of b runs"
    taps.unsubscribe(subscription)
    everywhere = taps.subscribe(None, 4, 64, lambda records: None)
    assert why(bench) == "a live trace of a runs"
    taps.unsubscribe(everywhere)
    assert why(bench) == ""


def test_read_only(bench: Bench) -> None:
    add(bench, "a", 1, memory="read-only")
    add(bench, "b", 2)
    assert (bench.switch.rules.read_only(1, 2), bench.switch.rules.read_only(2, 1)) == (True, False)


class Word:
    """What a controller says."""

    def __init__(self) -> None:
        self.decision: Decision | None = None
        self.fresh = True

    def pair(self, one: PortConfig, other: PortConfig) -> Decision | None:
        return self.decision


def test_the_controllers_word(bench: Bench) -> None:
    add(bench, "a", 1, network="net")
    add(bench, "b", 2, network="net")
    bench.switch.rules.controlled = word = Word()
    assert why(bench) == "an end has not been placed yet"
    fine = pair_of_ports(bench.entry("a").config, bench.entry("b").config)
    word.decision = fine
    assert why(bench) == ""
    word.fresh = False
    assert why(bench, new=False) == ""
    assert "the controller is away" in why(bench)
    word.decision = replace(fine, mode=TrustMode.READ_ONLY)
    bench.switch.rules.changed()
    assert bench.switch.rules.read_only(1, 2)
