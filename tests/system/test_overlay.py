# SPDX-License-Identifier: Apache-2.0
"""Hosts joined by VXLAN, with a controller: two switches, and a switch with Linux's own vxlan device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from tests.frontend import FrontEnd
from tests.system.ffswitchd import Ffswitchd, RpcError
from tests.system.underlay import Controller, add_uplink, joined

pytestmark = pytest.mark.timeout(300)

DEADLINE = 60.0
NETWORK = {"kind": "Network", "name": "blue", "vni": 66, "subnets": ["10.66.0.0/24", "fd66::/64"]}
AWAY = r"controller|is refused|certificate"


def until(daemon: Ffswitchd, what: str, true: Callable[[Any], bool], **params: Any) -> Any:
    """Ask the daemon until its answer is as it should be; each request waits for the one before."""
    deadline = time.monotonic() + DEADLINE
    while True:
        answer = daemon.call(what, **params)
        if true(answer):
            return answer
        assert time.monotonic() < deadline, answer


@dataclass
class Container:
    """A port and its front-end."""

    front: FrontEnd
    mac: str
    ips: list[str]

    @property
    def ip4(self) -> str:
        return next(ip for ip in self.ips if "." in ip)

    @property
    def ip6(self) -> str:
        return next(ip for ip in self.ips if ":" in ip)

    def to(self, other: Container, payload: bytes, sport: int = 1000) -> bytes:
        ether = Ether(src=self.mac, dst=other.mac)
        return bytes(ether / IP(src=self.ip4, dst=other.ip4) / UDP(sport=sport, dport=7) / Raw(payload))


def container(daemon: Ffswitchd, name: str, **params: Any) -> Container:
    port = daemon.call("port.add", name=name, network="blue", **params)
    front = FrontEnd(port["socket"]).connect(DEADLINE)
    port = daemon.call("port.add", name=name, network="blue", may_exist=True, wait_s=20, **params)
    assert port["state"] == "ready", port
    assert port["endpoint"]["state"] == "placed", port
    return Container(front, port["mac"], port["ips"])


@dataclass
class Pair:
    """Two hosts with a container each, h1 with the controller."""

    controller: Controller
    hosts: tuple[Ffswitchd, Ffswitchd]
    web: Container
    db: Container


@pytest.fixture(scope="module", params=["192.0.2", "2001:db8:"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("overlay")
    separator = "." if "." in request.param else ":"
    length = 24 if separator == "." else 64
    with joined() as names:
        controller = Controller(names[0], directory / "controller")
        hosts: list[Ffswitchd] = []
        fronts: list[FrontEnd] = []
        try:
            controller.apply(NETWORK)
            for number, netns in enumerate(names, start=1):
                options = controller.options(f"h{number}", directory / f"state{number}")
                host = Ffswitchd(directory / f"h{number}", *options, netns=netns, may_log=AWAY)
                hosts.append(host)
                add_uplink(host, f"{request.param}{separator}{number}/{length}")
                until(host, "status", lambda status: status["controller"]["state"] == "connected")
            web, db = container(hosts[0], "web0"), container(hosts[1], "db0")
            fronts += [web.front, db.front]
            for host in hosts:
                until(host, "status", lambda status: any(remote["mac"] for remote in status["remotes"]))
            yield Pair(controller, (hosts[0], hosts[1]), web, db)
        finally:
            for front in fronts:
                front.close()
            for host in hosts:
                host.stop()
            controller.stop()


def received(front: FrontEnd, n: int) -> list[bytes]:
    return front.wait_received(n, DEADLINE)


def test_frames_cross_byte_for_byte(pair: Pair) -> None:
    web, db = pair.web, pair.db
    for sender, receiver in ((web, db), (db, web)):
        frames = [sender.to(receiver, bytes([n]) * (n * 45), sport=1000 + n) for n in range(30)]
        sender.front.send(frames)
        assert sorted(received(receiver.front, len(frames))) == sorted(frames)


def test_who_has_is_answered_here(pair: Pair) -> None:
    web, db = pair.web, pair.db
    request = Ether(src=web.mac, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=web.mac, psrc=web.ip4, pdst=db.ip4)
    web.front.send([bytes(request)])
    (answer,) = (Ether(frame) for frame in received(web.front, 1))
    assert (answer[ARP].op, answer[ARP].hwsrc, answer[ARP].psrc) == (2, db.mac, db.ip4)
    assert db.front.receive() == []


def test_too_big_is_told(pair: Pair) -> None:
    web, db = pair.web, pair.db
    (remote,) = pair.hosts[0].call("status")["remotes"]
    mtu = 1500 - (50 if ip_address(remote["remote"]).version == 4 else 70)
    web.front.send([web.to(db, bytes(1472))])
    (told,) = (Ether(frame) for frame in received(web.front, 1))
    assert (told[ICMP].type, told[ICMP].code, told[ICMP].nexthopmtu) == (3, 4, mtu)
    web.front.send([web.to(db, bytes(mtu - 28))])
    (whole,) = received(db.front, 1)
    assert len(whole) == mtu + 14


def test_spoofing_stops_at_the_port(pair: Pair) -> None:
    web, db = pair.web, pair.db
    forged = Ether(src=web.mac, dst=db.mac) / IPv6(src=db.ip6, dst=db.ip6) / UDP()
    before = pair.hosts[0].call("port.get", name="web0")["stats"]["dropped"]
    web.front.send([bytes(forged), web.to(db, b"honest")])
    assert received(db.front, 1) == [web.to(db, b"honest")]
    assert pair.hosts[0].call("port.get", name="web0")["stats"]["dropped"] == before + 1


def test_explain(pair: Pair) -> None:
    for host in pair.hosts:
        decision = host.call("explain", source="web0", destination="db0")
        assert decision["path"] == "vxlan"
        assert [refused["path"] for refused in decision["refused"]] == ["zero-copy", "shm-stream", "switched", "rdma"]
    with pytest.raises(RpcError, match="knows no endpoint nobody"):
        pair.hosts[0].call("explain", source="web0", destination="nobody")


def test_a_refused_port_says_why(pair: Pair) -> None:
    port = pair.hosts[0].call("port.add", name="lost0", network="bleu", wait_s=1)
    try:
        assert port["endpoint"]["state"] == "refused"
        assert "no network bleu" in port["endpoint"]["reason"]
    finally:
        pair.hosts[0].call("port.del", name="lost0")


def test_the_controller_goes_and_comes_back(pair: Pair) -> None:
    web, db = pair.web, pair.db
    pair.controller.kill()
    for host in pair.hosts:
        until(host, "status", lambda status: status["controller"]["state"] == "degraded")
    frames = [web.to(db, b"on its own %d" % n, sport=2000 + n) for n in range(5)]
    web.front.send(frames)
    assert sorted(received(db.front, len(frames))) == sorted(frames)
    late = pair.hosts[0].call("port.add", name="late0", network="blue")
    assert late["endpoint"]["state"] == "away"
    with FrontEnd(late["socket"]).connect(DEADLINE) as front:
        until(pair.hosts[0], "port.get", lambda port: port["state"] == "ready", name="late0")
        hello = bytes(Ether(src=late["mac"], dst=web.mac) / IP(src="10.66.0.77", dst=web.ip4) / UDP())
        front.send([hello])
        assert received(web.front, 1) == [hello]
        pair.controller.restart()
        until(pair.hosts[0], "port.get", lambda port: port["endpoint"]["state"] == "placed", name="late0")
        for host in pair.hosts:
            until(host, "status", lambda status: status["controller"]["state"] == "connected")
        pair.hosts[0].call("port.del", name="late0")
