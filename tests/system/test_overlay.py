# SPDX-License-Identifier: Apache-2.0
"""Hosts joined by VXLAN, with a controller: two switches, and a switch with Linux's own vxlan device."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from tests.frontend import FrontEnd
from tests.system.ffswitchd import Ffswitchd, RpcError
from tests.system.underlay import DEADLINE, Container, Controller, add_uplink, container, ip, joined, run, until
from vswitch.slowpath.answers import checksum

pytestmark = pytest.mark.timeout(300)

NETWORK = {"kind": "Network", "name": "blue", "vni": 66, "subnets": ["10.66.0.0/24", "fd66::/64"]}
AWAY = r"controller|is refused|certificate"


@dataclass
class Pair:
    """Two hosts with a container each, h1 with the controller."""

    controller: Controller
    names: tuple[str, str]  # their namespaces
    hosts: tuple[Ffswitchd, Ffswitchd]
    web: Container
    db: Container


# The kernel has the first two, and nobody but the switch the others.
UPLINKS = ["192.0.2.{}/24", "2001:db8::{}/64", "192.0.2.10{}/24", "2001:db8::10{}/64"]


@pytest.fixture(scope="module", params=UPLINKS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("overlay")
    with contextlib.ExitStack() as stack:
        names = stack.enter_context(joined())
        controller = stack.enter_context(Controller(names[0], directory / "controller"))
        controller.apply(NETWORK)
        hosts: list[Ffswitchd] = []
        for number, netns in enumerate(names, start=1):
            options = controller.options(f"h{number}", directory / f"state{number}")
            host = stack.enter_context(Ffswitchd(directory / f"h{number}", *options, netns=netns, may_log=AWAY))
            hosts.append(host)
            add_uplink(host, request.param.format(number))
            until(host, "status", lambda status: status["controller"]["state"] == "connected")
        web, db = container(hosts[0], "web0"), container(hosts[1], "db0")
        stack.callback(web.front.close)
        stack.callback(db.front.close)
        for host in hosts:
            until(host, "status", lambda status: any(remote["mac"] for remote in status["remotes"]))
        yield Pair(controller, names, (hosts[0], hosts[1]), web, db)


def received(front: FrontEnd, n: int) -> list[bytes]:
    return front.wait_received(n, DEADLINE)


def test_frames_cross_byte_for_byte(pair: Pair) -> None:
    web, db = pair.web, pair.db
    for sender, receiver in ((web, db), (db, web)):
        frames = [sender.to(receiver, bytes([n]) * (n * 45), sport=1000 + n) for n in range(30)]
        sender.front.send(frames)
        assert sorted(received(receiver.front, len(frames))) == sorted(frames)


def udp_received(netns: str) -> int:
    """Datagrams over IPv4 and IPv6 that a namespace's kernel has looked at, whether somebody wanted them or not."""
    names, values = (line.split() for line in run(netns, "grep", "^Udp:", "/proc/net/snmp").splitlines())
    found = dict(zip(names, values, strict=True))
    found |= dict(map(str.split, run(netns, "cat", "/proc/net/snmp6").splitlines()))
    kinds = [before + what for before in ("", "Udp6") for what in ("InDatagrams", "InErrors", "NoPorts")]
    return sum(int(found[kind]) for kind in kinds)


def test_the_kernel_does_not_look_at_tunnel_frames(pair: Pair) -> None:
    before = [udp_received(name) for name in pair.names]
    pair.web.front.send([pair.web.to(pair.db, b"%d" % n) for n in range(5)])
    pair.db.front.send([pair.db.to(pair.web, b"%d" % n) for n in range(5)])
    received(pair.db.front, 5)
    received(pair.web.front, 5)
    assert [udp_received(name) for name in pair.names] == before


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


# ---- Linux's own vxlan device at the other end -----------------------------------------------

LINUX_MAC = "02:00:00:00:66:09"


@pytest.fixture(params=[4, 6])
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Container, str]]:
    """A container of ours, and the namespace of a host without an agent, whose bridge is in the network too."""
    ours, theirs = ("192.0.2.1", "192.0.2.2") if request.param == 4 else ("2001:db8::1", "2001:db8::2")
    length = 24 if request.param == 4 else 64
    with contextlib.ExitStack() as stack:
        names = stack.enter_context(joined())
        vxlan = ("type", "vxlan", "id", "66", "local", theirs, "remote", ours, "dstport", "4789", "dev", "eth0")
        ip("link", "add", "name", "vx66", *vxlan, netns=names[1])
        ip("link", "add", "name", "br66", "address", LINUX_MAC, "type", "bridge", netns=names[1])
        ip("link", "set", "vx66", "master", "br66", "up", netns=names[1])
        ip("addr", "add", "10.66.0.9/24", "dev", "br66", netns=names[1])
        ip("addr", "add", "fd66::9/64", "dev", "br66", "nodad", netns=names[1])
        ip("link", "set", "br66", "up", netns=names[1])
        run(names[1], "ethtool", "-K", "br66", "tx", "off")
        controller = stack.enter_context(Controller(names[0], tmp_path / "controller"))
        uplink = {"name": "eth0", "ips": [theirs], "mtu": 1500}
        far = {"kind": "Host", "name": "linux", "agentless": True, "capabilities": {"uplinks": [uplink]}}
        place = {"mac": LINUX_MAC, "ips": ["10.66.0.9", "fd66::9"], "host": "linux"}
        controller.apply(NETWORK, far, {"kind": "Endpoint", "name": "nine", "network": "blue"} | place)
        options = controller.options("h1", tmp_path / "state")
        host = stack.enter_context(Ffswitchd(tmp_path / "h1", *options, netns=names[0], may_log=AWAY))
        add_uplink(host, f"{ours}/{length}")
        web = container(host, "web0")
        stack.callback(web.front.close)
        until(host, "status", lambda status: any(remote["mac"] for remote in status["remotes"]))
        yield web, names[1]


def echo(web: Container, family: int, size: int) -> bytes:
    head = Ether(src=web.mac, dst=LINUX_MAC)
    if family == 4:
        return bytes(head / IP(src=web.ip4, dst="10.66.0.9") / ICMP(id=7, seq=1) / Raw(bytes(range(size))))
    return bytes(head / IPv6(src=web.ip6, dst="fd66::9") / ICMPv6EchoRequest(id=7, seq=1, data=bytes(range(size))))


@pytest.mark.parametrize("inner", [4, 6])
def test_linux_answers_us(foreign: tuple[Container, str], inner: int) -> None:
    web, _ = foreign
    web.front.send([echo(web, inner, 200)])
    answer = next_of(web.front, lambda frame: frame.haslayer(ICMP) or frame.haslayer(ICMPv6EchoReply))
    packet = answer[IP] if inner == 4 else answer[IPv6]
    assert (packet.src, answer.src) == ("10.66.0.9" if inner == 4 else "fd66::9", LINUX_MAC)
    assert bytes(packet.payload)[8:208] == bytes(range(200))
    if inner == 4:
        assert checksum(bytes(packet.payload)[: packet.len - 20]) == 0


def test_linux_opens_to_us(foreign: tuple[Container, str]) -> None:
    """Linux asks for our MAC through the tunnel, and our own switch answers."""
    web, netns = foreign
    code = f"import socket; s = socket.create_connection(({web.ip4!r}, 80), 30); print(s.recv(9))"
    command = ["ip", "netns", "exec", netns, sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as client:
        syn = next_of(web.front, lambda frame: frame.haslayer(TCP))
        assert (syn.src, syn[IP].src, syn[TCP].flags) == (LINUX_MAC, "10.66.0.9", "S")
        assert checksum(_pseudo(syn) + bytes(syn[IP].payload)) == 0
        back = TCP(sport=80, dport=syn[TCP].sport, seq=100, ack=syn[TCP].seq + 1)
        head = Ether(src=web.mac, dst=LINUX_MAC) / IP(src=web.ip4, dst="10.66.0.9")
        answer, data, end = back.copy(), back.copy(), back.copy()
        answer.flags, data.flags, data.seq, end.flags, end.seq = "SA", "PA", 101, "R", 107
        web.front.send([bytes(head / answer), bytes(head / data / Raw(b"hello"))])
        out, _ = client.communicate(timeout=DEADLINE)
        web.front.send([bytes(head / end)])
    assert (client.returncode, out.strip()) == (0, "b'hello'")


_LISTEN = """
import select, socket, sys  # 3 is ETH_P_ALL
devices = {}
for name in sys.argv[1:]:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
    sock.bind((name, 0))
    devices[sock] = name
print("ready", flush=True)
while True:
    for sock in select.select(list(devices), [], [])[0]:
        frame, (_, _, kind, *_) = sock.recvfrom(65536)
        print(devices[sock], "out" if kind == socket.PACKET_OUTGOING else "in", frame.hex(), flush=True)
"""


@contextlib.contextmanager
def captured(netns: str, *devices: str) -> Iterator[Iterator[tuple[str, Packet]]]:
    """What passes these devices from now on: `device in` or `device out`, and the frame, in the kernel's order each."""
    command = ["ip", "netns", "exec", netns, sys.executable, "-c", _LISTEN, *devices]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:

        def lines() -> Iterator[str]:
            assert process.stdout is not None
            rest = b""
            while True:
                assert select.select([process.stdout], [], [], DEADLINE)[0], "nothing passes any more"
                more = os.read(process.stdout.fileno(), 1 << 16)
                assert more, "whoever listened has ended"
                *whole, rest = (rest + more).split(b"\n")
                yield from map(bytes.decode, whole)

        found = lines()
        try:
            assert next(found) == "ready"
            yield ((f"{where} {way}", Ether(bytes.fromhex(text))) for where, way, text in map(str.split, found))
        finally:
            process.kill()


@pytest.mark.parametrize("inner", [4, 6])
def test_captures_of_both_ends_agree_frame_by_frame(foreign: tuple[Container, str], inner: int) -> None:
    """Echo requests of many sizes: at our container, on the wire, at Linux's bridge; and the answers, back."""
    web, netns = foreign
    requests = [echo(web, inner, size) for size in range(0, 256, 5)]
    seen: dict[str, list[Packet]] = {"eth0 in": [], "eth0 out": [], "br66 in": [], "br66 out": []}
    with captured(netns, "eth0", "br66") as passing:
        web.front.send(requests)
        while min(map(len, seen.values())) < len(requests):
            where, frame = next(passing)
            carried = frame[VXLAN].payload if where.startswith("eth0") and frame.haslayer(VXLAN) else frame
            if carried.haslayer(ICMP) or carried.haslayer(ICMPv6EchoRequest) or carried.haslayer(ICMPv6EchoReply):
                seen[where].append(frame)
    answers: list[bytes] = []
    while len(answers) < len(requests):
        answers += [frame for frame in received(web.front, 1) if is_echo_reply(Ether(frame))]
    assert [bytes(frame[VXLAN].payload) for frame in seen["eth0 in"]] == requests
    assert [bytes(frame) for frame in seen["br66 in"]] == requests
    assert [bytes(frame) for frame in seen["br66 out"]] == answers
    assert [bytes(frame[VXLAN].payload) for frame in seen["eth0 out"]] == answers
    for ours, theirs in zip(seen["eth0 in"], seen["eth0 out"], strict=True):
        assert bytes(ours[VXLAN])[:8] == bytes(theirs[VXLAN])[:8]
        assert ours[UDP].dport == theirs[UDP].dport == 4789 and ours[UDP].len == theirs[UDP].len
        assert ours[UDP].sport >= 49152
        assert outer_words(ours) == outer_words(theirs)


def is_echo_reply(frame: Packet) -> bool:
    return bool(frame.haslayer(ICMPv6EchoReply) or (frame.haslayer(ICMP) and frame[ICMP].type == 0))


def outer_words(frame: Packet) -> tuple[object, ...]:
    """What two tunnel ends say alike of a frame: length, traffic class, protocol; the checksum that IPv6 takes.

    Over IPv4 Linux sends one too, and RFC 7348 section 5 would rather have none.
    """
    if frame.haslayer(IPv6) and frame.type == 0x86DD:
        return frame[IPv6].plen, frame[IPv6].tc, frame[IPv6].nh, bool(frame[UDP].chksum)
    return frame[IP].len, frame[IP].tos, frame[IP].proto


def _pseudo(frame: Packet) -> bytes:
    """RFC 793 section 3.1."""
    packet = frame[IP]
    return bytes(packet)[12:20] + int(packet.proto).to_bytes(2) + int(packet.len - 20).to_bytes(2)


def next_of(front: FrontEnd, fits: Callable[[Packet], Any]) -> Packet:
    """The next frame that fits; what a host's stack sends besides is passed over."""
    while True:
        for frame in front.wait_received(1, DEADLINE):
            packet = Ether(frame)
            if fits(packet):
                return packet
