# SPDX-License-Identifier: Apache-2.0
"""Shortcuts under a controller: what it says opens them, and takes them back without a loss; both explain it alike."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.system.containers import wait_for
from tests.system.endpoints import GONE, Flow
from tests.system.ffswitchd import Ffswitchd
from tests.system.underlay import Controller, on_a_bridge, run, until

pytestmark = pytest.mark.timeout(300)

MAY_LOG = rf"{GONE}|controller|WARNING .*(: lost \(|moved from)"
NETWORK = {"kind": "Network", "name": "blue", "vni": 71, "subnets": ["10.71.0.0/24"]}
SHOP = {"kind": "TrustDomain", "name": "shop"}
GUESTS = {"kind": "TrustDomain", "name": "guests"}
WORLD = (NETWORK, SHOP, GUESTS)
PAIR = ("web0", "db0")
BOTH = {"endpoints": list(PAIR)}
# What a host adds to the decision.
OF_A_HOST = ("shortcuts", "fallback")


@dataclass
class Bed:
    """Two hosts and their controller; web0 and db0 talk on the first."""

    controller: Controller
    netns: str
    here: Ffswitchd
    there: Ffswitchd
    flows: tuple[Flow, Flow]

    def explained(self) -> Any:
        """What the host says of the pair; the controller says the same, but for what the host knows alone."""
        told = self.here.call("explain", source=PAIR[0], destination=PAIR[1])
        (decided,) = self.controller.explain([PAIR]).values()
        assert {key: value for key, value in told.items() if key not in OF_A_HOST} == decided
        return told

    def lines(self) -> list[str]:
        """`ffswitch explain`; `ffctl explain` prints the same but for the ways of now."""
        code = "from vswitch.cli.main import main; main()"
        words = [sys.executable, "-c", code, "--run-dir", str(self.here.run_dir), "explain", *PAIR]
        lines = run(self.netns, *words).splitlines()
        assert [line for line in lines if not line.startswith("now ")] == self.controller.ctl(
            "explain", *PAIR
        ).splitlines()
        return lines

    def until_open(self) -> None:
        until(self.here, "explain", lambda told: all(way["open"] for way in told["shortcuts"]), **_ends())

    def until_gone(self) -> None:
        """No shortcut is left, not even one that ends."""
        wait_for(lambda: not any("shortcut" in flow for flow in self.here.call("flow.dump")), "shortcuts gone")

    def by_switch(self) -> int:
        """Packets that web0 sent into the switch."""
        return int(self.here.call("port.get", name="web0")["stats"]["rx_packets"])

    def goes_by_the_switch(self) -> None:
        before = self.by_switch()
        wait_for(lambda: self.by_switch() > before + 1000, "packets by the switch")

    def prefix(self) -> None:
        """All that came is what was sent first: nothing in between is missing, nothing was overtaken."""
        for flow in self.flows:
            report = flow.report()
            assert (report["lost"], report["late"]) == (0, 0)
            assert report["got"] > 0

    def conclude(self) -> None:
        """All that was sent came."""
        sent = [flow.stop() for flow in self.flows]
        for flow, count in zip(self.flows, reversed(sent), strict=True):
            report = flow.report()
            assert (report["lost"], report["late"], report["got"]) == (0, 0, count)


def _ends() -> dict[str, str]:
    return {"source": PAIR[0], "destination": PAIR[1]}


def refusals(told: Any) -> set[str]:
    """Why the pair has no zero-copy."""
    return {reason["code"] for path in told["refused"] if path["path"] == "zero-copy" for reason in path["reasons"]}


def place(daemon: Ffswitchd, name: str, **config: str) -> None:
    daemon.call("port.add", name=name, type="ff", trust_domain="shop", **config)
    if config:
        until(daemon, "port.get", lambda port: port["endpoint"]["state"] == "placed", name=name)


@pytest.fixture
def bed(tmp_path: Path, run_dir: Path) -> Iterator[Bed]:
    with ExitStack() as stack:
        names = stack.enter_context(on_a_bridge(2))
        controller = stack.enter_context(Controller(names[0], tmp_path / "controller"))
        controller.apply(*WORLD)
        daemons = []
        for number, netns in enumerate(names, start=1):
            options = [*controller.options(f"h{number}", tmp_path / f"state{number}"), "--shortcut-rate", "0"]
            directory = run_dir.with_name(f"h{number}")
            daemon = stack.enter_context(Ffswitchd(directory, *options, netns=netns, may_log=MAY_LOG))
            until(daemon, "status", lambda status: status["controller"]["state"] == "connected")
            daemons.append(daemon)
        here, there = daemons
        for name in PAIR:
            place(here, name, network="blue")
        flows = Flow(here, "web0", "db0"), Flow(here, "db0", "web0")
        for flow in flows:
            stack.callback(flow.close)
            flow.started()
        for name in PAIR:
            until(here, "port.get", lambda port: port["state"] == "ready", name=name)
        for flow in flows:
            flow.go()
        made = Bed(controller, names[0], here, there, flows)
        made.until_open()
        told = made.explained()
        assert (told["path"], told["mode"], told["refused"]) == ("zero-copy", "read-write", [])
        assert made.lines()[0].startswith("web0 → db0: zero-copy")
        assert [line.split(", ")[0] for line in made.lines() if line.startswith("now ")] == [
            "now web0 → db0: zero-copy",
            "now db0 → web0: zero-copy",
        ]
        yield made


def test_a_policy_that_wants_the_switch(bed: Bed) -> None:
    policy = {"kind": "Policy", "name": "seen", "action": "allow", "from": BOTH, "to": BOTH, "paths": ["switched"]}
    bed.controller.apply(*WORLD, policy)
    bed.until_gone()
    bed.goes_by_the_switch()
    told = bed.explained()
    assert (told["path"], refusals(told)) == ("switched", {"policy-paths"})
    assert not any(way["open"] for way in told["shortcuts"])
    assert any(line.startswith("now web0 → db0: switched, since ") for line in bed.lines())
    gone = "\n---\n".join(map(json.dumps, WORLD))
    bed.controller.ctl("apply", "-f", "-", "--prune", "--wait", "30", given=gone)
    bed.here.call("flow.flush")
    bed.until_open()
    assert bed.explained()["path"] == "zero-copy"
    bed.conclude()


def test_a_policy_that_denies(bed: Bed) -> None:
    bed.controller.apply(*WORLD, {"kind": "Policy", "name": "apart", "action": "deny", "from": BOTH, "to": BOTH})
    bed.until_gone()
    told = bed.explained()
    assert (told["path"], told["reasons"][0]["about"]) == ("denied", "policy apart")
    assert bed.lines()[0].startswith("web0 → db0: denied")
    bed.prefix()


def test_trust_of_another_mode_and_of_none(bed: Bed) -> None:
    bed.controller.apply(NETWORK, GUESTS, SHOP | {"mode": "read-only"})
    until(bed.here, "explain", lambda told: told["mode"] == "read-only", **_ends())
    bed.here.call("flow.flush")
    bed.until_open()
    maps = [Path(f"/proc/{flow.process.pid}/maps").read_text() for flow in bed.flows]
    assert all(any("nohuge" in line and "r--s" in line for line in text.splitlines()) for text in maps)
    assert bed.explained()["mode"] == "read-only"
    bed.here.call("port.set", name="db0", values={"trust_domain": "guests"})
    bed.until_gone()
    bed.goes_by_the_switch()
    until(bed.here, "explain", lambda told: refusals(told) == {"trust-domains-differ"}, **_ends())
    bed.controller.ctl("wait")
    told = bed.explained()
    assert (told["path"], refusals(told)) == ("switched", {"trust-domains-differ"})
    bed.conclude()


def test_an_endpoint_moves(bed: Bed) -> None:
    place(bed.there, "db0")
    bed.there.call("port.set", name="db0", values={"network": "blue"})
    until(bed.there, "port.get", lambda port: port["endpoint"]["state"] == "placed", name="db0")
    bed.until_gone()
    told = bed.explained()
    assert "hosts-differ" in refusals(told)
    assert told["path"] in {"vxlan", "none"}
    bed.prefix()


def test_an_endpoint_is_deleted(bed: Bed) -> None:
    bed.here.call("port.del", name="db0")
    bed.until_gone()
    bed.controller.ctl("wait")
    assert "db0" in bed.controller.refusal("explain", *PAIR)
    bed.prefix()
