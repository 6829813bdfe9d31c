# SPDX-License-Identifier: Apache-2.0
"""Three hosts on one underlay, two networks, two trust domains: what holds for all pairs, and what failures change."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.system.ffswitchd import Ffswitchd, RpcError
from tests.system.underlay import DEADLINE, Container, Controller, add_uplink, container, on_a_bridge, run, until

pytestmark = pytest.mark.timeout(300)

MAY_LOG = r"controller|is refused|refuses it|certificate|up0"
SUBNETS = {"blue": "10.71.0.0/24", "green": "10.72.0.0/24"}
NETWORKS = [
    {"kind": "Network", "name": name, "vni": 71 + number, "subnets": [subnet]}
    for number, (name, subnet) in enumerate(SUBNETS.items())
]
DOMAINS = [{"kind": "TrustDomain", "name": name} for name in ("shop", "guests")]
# Endpoint: its host, network and trust domain.
PLACES = {
    "a1": ("h1", "blue", "shop"),
    "b1": ("h1", "blue", "shop"),
    "a2": ("h2", "blue", "shop"),
    "b2": ("h2", "green", "guests"),
    "a3": ("h3", "green", "guests"),
    "b3": ("h3", "green", "shop"),
}
PAIRS = list(itertools.permutations(PLACES, 2))
BLUE = [name for name, place in PLACES.items() if place[1] == "blue"]


@dataclass
class HostUnderTest:
    """A namespace with an ffswitchd, which may be killed and started again."""

    netns: str
    directory: Path
    daemon: Ffswitchd
    options: list[str] = field(default_factory=list)

    def restart(self) -> None:
        """kill -9 and a new one, with the certificate that it has."""
        self.daemon.kill()
        self.daemon = Ffswitchd(self.directory, *self.options, netns=self.netns, may_log=MAY_LOG)

    def cli(self, *words: str) -> str:
        """What an ffswitch command prints."""
        code = "from vswitch.cli.main import main; main()"
        return run(self.netns, sys.executable, "-c", code, "--run-dir", str(self.directory), *words)


@dataclass
class Overlay:
    """All of it; each test leaves it as it was."""

    controller: Controller
    hosts: dict[str, HostUnderTest]
    boxes: dict[str, Container]

    def on(self, name: str) -> Ffswitchd:
        """The daemon of an endpoint's host."""
        return self.hosts[PLACES[name][0]].daemon

    def until_all(self, state: str) -> None:
        for host in self.hosts.values():
            until(host.daemon, "status", lambda status: status["controller"]["state"] == state)

    def until_quiet(self) -> None:
        """No packet is on its way within a switch."""
        for host in self.hosts.values():
            until(host.daemon, "stats", lambda stats: stats["totals"]["parked"] == 0)

    def everyone_talks(self, what: bytes) -> None:
        """A frame for each pair of a network arrives, as it was sent, and nothing else does."""
        expected: dict[str, list[bytes]] = {name: [] for name in PLACES}
        for source, destination in PAIRS:
            if PLACES[source][1] == PLACES[destination][1]:
                frame = self.boxes[source].to(self.boxes[destination], what + f" {source} {destination}".encode())
                expected[destination].append(frame)
                self.boxes[source].front.send([frame])
        for name, frames in expected.items():
            assert sorted(self.boxes[name].front.wait_received(len(frames), DEADLINE)) == sorted(frames)


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Overlay]:
    directory = tmp_path_factory.mktemp("hosts")
    with contextlib.ExitStack() as stack:
        names = stack.enter_context(on_a_bridge(3))
        controller = stack.enter_context(Controller(names[0], directory / "controller"))
        controller.apply(*NETWORKS, *DOMAINS)
        hosts: dict[str, HostUnderTest] = {}
        for number, netns in enumerate(names, start=1):
            name, run_dir = f"h{number}", directory / f"h{number}"
            options = controller.options(name, directory / f"state{number}")
            daemon = Ffswitchd(run_dir, *options, netns=netns, may_log=MAY_LOG)
            place = options.index("--join-token")
            hosts[name] = HostUnderTest(netns, run_dir, daemon, options[:place] + options[place + 2 :])
            stack.push(lambda *exc, host=hosts[name]: host.daemon.__exit__(*exc))
            add_uplink(daemon, f"192.0.2.{number}/24")
            until(daemon, "status", lambda status: status["controller"]["state"] == "connected")
        boxes: dict[str, Container] = {}
        for name, (host, network, domain) in PLACES.items():
            boxes[name] = container(hosts[host].daemon, name, network, trust_domain=domain)
            stack.callback(boxes[name].front.close)
        made = Overlay(controller, hosts, boxes)
        until_ways(made)
        yield made


def until_ways(overlay: Overlay) -> None:
    """Each host knows its network's other ends, and how to get there."""
    controller = json.loads(overlay.controller.ctl("wait", "-o", "json"))
    assert not controller["pending"]
    for host in overlay.hosts.values():
        until(host.daemon, "status", lambda status: all(remote["mac"] for remote in status["remotes"]))


# ---- all pairs -------------------------------------------------------------------------------


def test_all_of_a_network_reach_each_other_and_nobody_else(overlay: Overlay) -> None:
    for source, destination in PAIRS:
        if PLACES[source][1] != PLACES[destination][1]:
            one, other = overlay.boxes[source], overlay.boxes[destination]
            ether, inner = Ether(src=one.mac, dst=other.mac), IP(src=one.ip4, dst=other.ip4)
            one.front.send([bytes(ether / inner / TCP() / Raw(f"astray from {PLACES[source][1]}".encode()))])
    for box in overlay.boxes.values():
        box.front.flush()
    overlay.until_quiet()
    for name, box in overlay.boxes.items():
        # A MAC that a network does not know is flooded on its own host, and there only.
        for frame in box.front.receive():
            assert frame.endswith(f"astray from {PLACES[name][1]}".encode())
    overlay.everyone_talks(b"hello")
    sizes = range(60, 1400, 67)
    for source, destination in (("a1", "b1"), ("a1", "a2"), ("b2", "b3")):
        sender, receiver = overlay.boxes[source], overlay.boxes[destination]
        frames = [sender.to(receiver, bytes([size % 256]) * size, sport=size) for size in sizes]
        sender.front.send(frames)
        assert sorted(receiver.front.wait_received(len(frames), DEADLINE)) == sorted(frames)
    overlay.until_quiet()
    assert not any(box.front.receive() for box in overlay.boxes.values())


def test_explain_is_right_for_every_pair(overlay: Overlay) -> None:
    told = overlay.controller.explain(PAIRS)
    for (source, destination), decision in told.items():
        one, other = PLACES[source], PLACES[destination]
        refused = {item["path"]: {reason["code"] for reason in item["reasons"]} for item in decision["refused"]}
        if one[1] != other[1]:
            assert (decision["path"], decision["reasons"][0]["code"]) == ("none", "networks-differ")
        elif one[0] == other[0]:
            assert (decision["path"], list(refused)) == ("switched", ["zero-copy", "shm-stream"])
            assert all(("trust-domains-differ" in codes) == (one[2] != other[2]) for codes in refused.values())
            assert "not-ff-port" in refused["zero-copy"]
        else:
            assert (decision["path"], decision["mtu"]) == ("vxlan", 1450)
            assert decision["tunnel"]["local"] == f"192.0.2.{one[0][1]}"
            assert decision["tunnel"]["remote"] == f"192.0.2.{other[0][1]}"
            assert list(refused) == ["zero-copy", "shm-stream", "switched", "rdma"]
            assert all("hosts-differ" in refused[path] for path in ("zero-copy", "shm-stream", "switched"))
            assert "no-rdma-port" in refused["rdma"]
        for name, host in overlay.hosts.items():
            networks = {place[1] for place in PLACES.values() if place[0] == name}
            if {one[1], other[1]} <= networks:
                assert host.daemon.call("explain", source=source, destination=destination) == decision
            else:
                with pytest.raises(RpcError, match="this host knows no endpoint"):
                    host.daemon.call("explain", source=source, destination=destination)
    lines = overlay.controller.ctl("explain", "a1", "a2")
    assert lines == overlay.hosts["h1"].cli("explain", "a1", "a2")
    assert lines.startswith("a1 → a2: vxlan, tunnel 192.0.2.1 → 192.0.2.2 by up0, MTU 1450\n")
