# SPDX-License-Identifier: Apache-2.0
"""Three hosts on one underlay, two networks, two trust domains: what holds for all pairs, and what failures change."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.frontend import FrontEnd, wait_any
from tests.system.ffswitchd import Ffswitchd, RpcError
from tests.system.underlay import DEADLINE, Container, Controller, add_uplink, container, ip, on_a_bridge, run, until

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

    def kept(self) -> int:
        """The revision that is in desired.json."""
        state_dir = Path(self.options[self.options.index("--state-dir") + 1])
        return int(json.loads((state_dir / "desired.json").read_bytes())["revision"])

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


def endpoints(overlay: Overlay) -> dict[str, Any]:
    return {item["name"]: item for item in json.loads(overlay.controller.ctl("get", "endpoints", "-o", "json"))}


def remotes(daemon: Ffswitchd) -> set[str]:
    return {remote["remote"] for remote in daemon.call("status")["remotes"]}


def denied(daemon: Ffswitchd) -> int:
    count: int = daemon.call("stats")["totals"]["dropped"].get("denied", 0)
    return count


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


# What a host adds: its switch does with the pair what was decided.
AS_DECIDED = {"fallback": "", "shortcuts": []}


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
                assert host.daemon.call("explain", source=source, destination=destination) == decision | AS_DECIDED
            else:
                with pytest.raises(RpcError, match="this host knows no endpoint"):
                    host.daemon.call("explain", source=source, destination=destination)
    lines = overlay.controller.ctl("explain", "a1", "a2")
    assert lines == overlay.hosts["h1"].cli("explain", "a1", "a2")
    assert lines.startswith("a1 → a2: vxlan, tunnel 192.0.2.1 → 192.0.2.2 by up0, MTU 1450\n")


# ---- a move ----------------------------------------------------------------------------------

WINDOW = 32


class Stream:
    """Numbered frames of one flow to a container that is in two places for a while, WINDOW on their way at most."""

    def __init__(self, sender: Container, receiver: Container, places: tuple[FrontEnd, FrontEnd]) -> None:
        self._sender, self._receiver, self._places = sender, receiver, places
        self._sent = self._edge = 0  # below the edge, what has not arrived is lost
        self.got: tuple[list[int], list[int]] = ([], [])

    def send(self, number: int) -> None:
        frames = [self._sender.to(self._receiver, n.to_bytes(4)) for n in range(self._sent, self._sent + number)]
        self._sender.front.send(frames)
        self._sent += number

    def take(self, seconds: float) -> bool:
        """What has come, or comes now; False when nothing does."""
        came = any(front.poll() for front in self._places) or wait_any(self._places, seconds)
        for front, got in zip(self._places, self.got, strict=True):
            numbers = [int.from_bytes(frame[-4:]) for frame in front.receive()]
            got.extend(numbers)
            self._edge = max([self._edge, *(number + 1 for number in numbers)])
        return came

    def until_all_came(self) -> None:
        """The last one, and so all before it."""
        while self._edge < self._sent:
            assert self.take(DEADLINE), (self._sent, self._edge)

    def run_until(self, done: Future[None]) -> None:
        """Send as long as something comes; then what has not come is lost."""
        while not done.done():
            if self._sent - self._edge < WINDOW:
                self.send(1)
            self.take(0.01 if self._sent - self._edge == WINDOW else 0)
        done.result()

    @property
    def lost(self) -> set[int]:
        return set(range(self._sent)) - set(self.got[0]) - set(self.got[1])


def move(overlay: Overlay, directory: Path, name: str, target: str) -> None:
    """To another host under a stream from a1: the new container is up before the old one goes."""
    old, (_, network, domain) = overlay.boxes[name], PLACES[name]
    old_host = overlay.hosts[endpoints(overlay)[name]["host"]].daemon
    new_host, watcher = overlay.hosts[target].daemon, overlay.hosts["h1"].daemon
    new_host.call("port.add", name=name, socket=str(directory / target), trust_domain=domain)
    front = FrontEnd(directory / target).connect(DEADLINE)
    until(new_host, "port.get", lambda port: port["state"] == "ready", name=name)

    def claim() -> None:
        new_host.call("port.set", name=name, values={"network": network})
        until(new_host, "port.get", lambda port: port["endpoint"]["state"] == "placed", name=name)
        to = f"192.0.2.{target[1]}"
        until(watcher, "explain", lambda told: told["tunnel"]["remote"] == to, source="a1", destination=name)
        until(new_host, "status", lambda status: all(remote["mac"] for remote in status["remotes"]))
        until(watcher, "status", lambda status: all(remote["mac"] for remote in status["remotes"]))

    stream = Stream(overlay.boxes["a1"], old, (old.front, front))
    stream.send(WINDOW)
    stream.until_all_came()
    assert not stream.got[1]
    with ThreadPoolExecutor(1) as pool:
        stream.run_until(pool.submit(claim))
    before = stream.lost
    stream.send(WINDOW)
    stream.until_all_came()
    left, came = stream.got
    assert left == sorted(set(left)) and came == sorted(set(came))
    assert left[-1] < came[0] and len(came) >= WINDOW
    assert len(before) <= WINDOW and stream.lost <= before
    old.front.close()
    old_host.call("port.del", name=name)
    overlay.boxes[name] = Container(front, old.mac, old.ips)
    port = new_host.call("port.get", name=name)
    assert (port["mac"], port["ips"]) == (old.mac, old.ips)


def test_a_move_loses_what_was_in_flight_and_leaves_nothing(overlay: Overlay, tmp_path: Path) -> None:
    kept = endpoints(overlay)
    roamer = overlay.boxes["a2"]
    before = {name: remotes(host.daemon) for name, host in overlay.hosts.items()}
    assert before == {"h1": {"192.0.2.2"}, "h2": {"192.0.2.1", "192.0.2.3"}, "h3": {"192.0.2.2"}}
    move(overlay, tmp_path, "a2", "h3")
    # All that h2 had in blue was a2.
    until(overlay.hosts["h2"].daemon, "status", lambda status: len(status["remotes"]) == 1)
    assert {name: remotes(host.daemon) for name, host in overlay.hosts.items()} == {
        "h1": {"192.0.2.3"},
        "h2": {"192.0.2.3"},
        "h3": {"192.0.2.1", "192.0.2.2"},
    }
    for name, host in overlay.hosts.items():
        flows = host.daemon.call("flow.dump")
        assert not any("192.0.2.2" in flow["actions"] for flow in flows if name == "h1"), flows
        # What b2 sent astray to that MAC is a flow of the other network.
        concerned = [flow for flow in flows if roamer.mac in flow["match"] and "in_port=b2," not in flow["match"]]
        assert name != "h2" or not concerned, concerned
        learned = [entry for entry in host.daemon.call("fdb.dump") if entry["mac"] == roamer.mac]
        assert all(entry["port"] == "a2" for entry in learned) and (name == "h3" or not learned), learned
    ports = {port["name"] for port in overlay.hosts["h2"].daemon.call("port.list")}
    assert ports == {"up0", "b2", "vxlan72"}
    overlay.everyone_talks(b"moved")
    move(overlay, tmp_path, "a2", "h2")
    until_ways(overlay)
    assert {name: remotes(host.daemon) for name, host in overlay.hosts.items()} == before
    assert {name: item["ips"] for name, item in endpoints(overlay).items()} == {
        name: item["ips"] for name, item in kept.items()
    }
    overlay.everyone_talks(b"moved back")


# ---- failures --------------------------------------------------------------------------------


def test_a_host_that_is_cut_off_is_marked_and_comes_back_clean(overlay: Overlay) -> None:
    before, netns = endpoints(overlay), overlay.hosts["h3"].netns
    ip("link", "set", "eth0", "down", netns=netns)
    try:
        until_host(overlay, "h3", "lost")
        until(overlay.hosts["h3"].daemon, "status", lambda status: status["controller"]["state"] == "degraded")
        assert endpoints(overlay) == before
        (decision,) = overlay.controller.explain([("b2", "b3")]).values()
        assert "host-lost" in {reason["code"] for path in decision["refused"] for reason in path["reasons"]}
        # Its containers and the others go on among themselves.
        for source, destination in (("a3", "b3"), ("a1", "a2")):
            frame = overlay.boxes[source].to(overlay.boxes[destination], b"cut off")
            overlay.boxes[source].front.send([frame])
            assert overlay.boxes[destination].front.wait_received(1, DEADLINE) == [frame]
    finally:
        ip("link", "set", "eth0", "up", netns=netns)
    until_host(overlay, "h3", "up")
    overlay.until_all("connected")
    until_ways(overlay)
    assert endpoints(overlay) == before
    overlay.everyone_talks(b"back")


def until_host(overlay: Overlay, name: str, state: str) -> None:
    """`ffctl get hosts` says so."""
    deadline = time.monotonic() + DEADLINE
    while True:
        hosts = json.loads(overlay.controller.ctl("get", "hosts", "-o", "json"))
        states = {host["name"]: host["state"] for host in hosts}
        if states[name] == state:
            return
        assert time.monotonic() < deadline, states


def test_the_controller_is_killed(overlay: Overlay) -> None:
    before, h1 = endpoints(overlay), overlay.hosts["h1"]
    overlay.controller.kill()
    overlay.until_all("degraded")
    assert "host h1: degraded" in h1.cli("status")
    overlay.everyone_talks(b"alone")
    late = h1.daemon.call("port.add", name="c1", network="blue")
    assert late["endpoint"]["state"] == "away"
    with FrontEnd(late["socket"]).connect(DEADLINE) as front:
        until(h1.daemon, "port.get", lambda port: port["state"] == "ready", name="c1")
        local = overlay.boxes["b1"]
        hello = bytes(Ether(src=late["mac"], dst=local.mac) / IP(src="10.71.0.99", dst=local.ip4) / UDP(dport=7))
        front.send([hello])
        assert local.front.wait_received(1, DEADLINE) == [hello]
        # A host that is started meanwhile goes on with what it was told.
        restart_h2(overlay)
        assert "host h2: degraded" in overlay.hosts["h2"].cli("status")
        overlay.everyone_talks(b"from what was kept")
        overlay.controller.restart()
        overlay.until_all("connected")
        port = until(h1.daemon, "port.get", lambda port: port["endpoint"]["state"] == "placed", name="c1")
        until_ways(overlay)
        added = Container(front, port["mac"], port["ips"])
        frame = added.to(overlay.boxes["a2"], b"placed")
        front.send([frame])
        assert overlay.boxes["a2"].front.wait_received(1, DEADLINE) == [frame]
    h1.daemon.call("port.del", name="c1")
    until_ways(overlay)
    assert {name: item["ips"] for name, item in endpoints(overlay).items()} == {
        name: item["ips"] for name, item in before.items()
    }
    overlay.everyone_talks(b"healed")


def restart_h2(overlay: Overlay) -> None:
    host = overlay.hosts["h2"]
    until(host.daemon, "status", lambda status: host.kept() == status["controller"]["revision"])
    host.restart()
    for name in ("a2", "b2"):
        overlay.boxes[name].front.connect(DEADLINE)
        until(host.daemon, "port.get", lambda port: port["state"] == "ready", name=name)
        port = host.daemon.call("port.get", name=name)
        assert (port["endpoint"]["state"], port["mac"]) == ("placed", overlay.boxes[name].mac)
    until(host.daemon, "status", lambda status: len(status["remotes"]) == 2)
    until(host.daemon, "status", lambda status: all(remote["mac"] for remote in status["remotes"]))


# ---- policies --------------------------------------------------------------------------------


def test_a_policy_cuts_a_live_pair(overlay: Overlay) -> None:
    both = {"endpoints": ["a1", "a2"]}
    policy = {"kind": "Policy", "name": "apart", "action": "deny", "from": both, "to": both}
    manifest = "\n---\n".join(map(json.dumps, (*NETWORKS, *DOMAINS, policy)))
    assert "policy apart would cut a1 ↔ a2 (live)" in overlay.controller.ctl(
        "apply", "-f", "-", "--dry-run", given=manifest
    )
    overlay.everyone_talks(b"only said")
    overlay.controller.apply(*NETWORKS, *DOMAINS, policy)
    try:
        a1, b1, a2 = (overlay.boxes[name] for name in BLUE)
        for sender, receiver, name in ((a1, a2, "a1"), (a2, a1, "a2")):
            dropped = denied(overlay.on(name))
            sender.front.send([sender.to(receiver, b"apart"), sender.to(b1, b"allowed")])
            assert b1.front.wait_received(1, DEADLINE) == [sender.to(b1, b"allowed")]
            assert denied(overlay.on(name)) == dropped + 1
            b1.front.send([b1.to(receiver, b"allowed")])
            assert receiver.front.wait_received(1, DEADLINE) == [b1.to(receiver, b"allowed")]
        (decision,) = overlay.controller.explain([("a1", "a2")]).values()
        assert (decision["path"], decision["reasons"][0]["about"]) == ("denied", "policy apart")
        for name in ("h1", "h2"):
            assert overlay.hosts[name].daemon.call("explain", source="a1", destination="a2") == decision | AS_DECIDED
    finally:
        gone = "\n---\n".join(map(json.dumps, (*NETWORKS, *DOMAINS)))
        overlay.controller.ctl("apply", "-f", "-", "--prune", "--wait", "30", given=gone)
    overlay.everyone_talks(b"again")


# ---- wrong on purpose ------------------------------------------------------------------------


def test_what_is_wrong_is_said_where_it_is_wrong(overlay: Overlay) -> None:
    red = "kind: Network\nname: red\nvni: 99\nsubnets: [10.71.0.128/25]\n"
    refusal = overlay.controller.refusal("apply", "-f", "-", given=red)
    assert refusal.startswith("ffctl: -:4:11: subnets[0]: 10.71.0.128/25 overlaps 10.71.0.0/24 of network blue")
    refusal = overlay.controller.refusal("apply", "-f", "-", given=red.replace("subnets", "subnet"))
    assert refusal.startswith("ffctl: -:4:1: subnet: no such field: did you mean subnets?")
    tiny = {"kind": "Network", "name": "tiny", "vni": 98, "subnets": ["10.98.0.0/30"]}
    overlay.controller.apply(tiny)
    h1 = overlay.hosts["h1"].daemon
    try:
        ports = [h1.call("port.add", name=f"t{number}", network="tiny") for number in range(3)]
        assert [port["endpoint"]["state"] for port in ports] == ["placed", "placed", "refused"]
        assert "no IPv4 address left" in ports[2]["endpoint"]["reason"]
    finally:
        for number in range(3):
            h1.call("port.del", name=f"t{number}", if_exists=True)
        gone = "\n---\n".join(map(json.dumps, (*NETWORKS, *DOMAINS)))
        overlay.controller.ctl("wait")
        overlay.controller.ctl("apply", "-f", "-", "--prune", given=gone)


def test_a_token_is_for_one_host(overlay: Overlay, tmp_path: Path) -> None:
    """The switch runs, degraded, and says why it may not join."""
    token = json.loads(overlay.controller.ctl("token", "create", "h9", "-o", "json"))["token"]
    options = ["--controller", "192.0.2.1:7443", "--host-name", "h8", "--join-token", token]
    netns = overlay.hosts["h3"].netns
    with Ffswitchd(tmp_path / "h8", *options, "--state-dir", str(tmp_path / "s"), netns=netns, may_log=MAY_LOG) as h8:
        status = until(h8, "status", lambda status: "token" in status["controller"]["why"])
        assert status["controller"]["state"] == "degraded"
    hosts = json.loads(overlay.controller.ctl("get", "hosts", "-o", "json"))
    assert {host["name"] for host in hosts} == {"h1", "h2", "h3"}
