# SPDX-License-Identifier: Apache-2.0
"""What the kernel is to leave alone of an interface's frames: by a real kernel, between two namespaces."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP, fragment
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from tests.system.underlay import DEADLINE, ip, joined, run
from vswitch.slowpath.types import VXLAN_PORT

pytestmark = pytest.mark.timeout(120)

OTHER_PORT, LAST = VXLAN_PORT + 1, b"the last one"
OTHERS = {4: "192.0.2.11", 6: "2001:db8::11"}  # addresses that are no tunnel end's
SIZE = 3000  # of a datagram that goes in fragments

_LEAVE_ALONE = """
import sys
from ipaddress import ip_address
from vswitch.slowpath.netfilter import leave_alone
ends = [leave_alone("eth0", ip_address(text).packed, int(sys.argv[1])) for text in sys.argv[2:]]
print("ready", flush=True)
for end in ends if sys.stdin.readline() else ():
    end()
print("ended", flush=True)
sys.stdin.readline()
"""
# What arrives at two UDP ports, and what a packet socket sees meanwhile, until a datagram says that it is the last.
_LISTEN = """
import json, select, socket, sys
family, ports, last = int(sys.argv[1]), sys.argv[2:4], sys.argv[4].encode()
packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
packets.bind(("eth0", 0))
heard = {port: socket.socket(family, socket.SOCK_DGRAM) for port in ports}
for port, sock in heard.items():
    sock.bind(("", int(port)))
print("ready", flush=True)
def waiting(sock):
    while select.select([sock], [], [], 0)[0]:
        yield sock.recv(1 << 16)
others = []
while last not in others:
    others += waiting(heard[ports[1]])
# what was sent before the last one has come before it
found = {"frames": [*waiting(packets)], ports[0]: [*waiting(heard[ports[0]])], ports[1]: others}
print(json.dumps({name: [data.hex() for data in all_] for name, all_ in found.items()}), flush=True)
"""
_SEND = """
import socket, sys
packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
packets.bind(("eth0", 0))
for line in sys.stdin:
    packets.send(bytes.fromhex(line))
"""


@contextlib.contextmanager
def started(netns: str, code: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a namespace, which has said that it is ready."""
    command = ["ip", "netns", "exec", netns, sys.executable, "-c", code, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert said(process) == "ready"
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[bytes]) -> str:
    """Its next line."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], DEADLINE)[0], "it says nothing"
    return process.stdout.readline().decode().strip()


@dataclass
class Bed:
    """Two namespaces; what is sent by `there` is for `here`."""

    here: str
    there: str
    macs: tuple[str, str]

    def packet(self, version: int, payload: Packet) -> Packet:
        ether = Ether(src=self.macs[1], dst=self.macs[0])
        if version == 4:
            return ether / IP(src="192.0.2.2", dst="192.0.2.1") / payload
        return ether / IPv6(src="2001:db8::2", dst="2001:db8::1") / payload

    def receive(self, version: int, *packets: Packet) -> Any:
        """What of these frames comes to the two ports, and what packet sockets see."""
        last = self.packet(version, UDP(sport=9, dport=OTHER_PORT) / Raw(LAST))
        lines = "".join(f"{bytes(packet).hex()}\n" for packet in (*packets, last))
        words = (str(10 if version == 6 else 2), str(VXLAN_PORT), str(OTHER_PORT), LAST.decode())
        with started(self.here, _LISTEN, *words) as listener:
            run(self.there, sys.executable, "-c", _SEND, given=lines)
            return json.loads(said(listener))


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with joined() as (here, there):
        ip("addr", "add", f"{OTHERS[4]}/24", "dev", "eth0", netns=here)
        ip("addr", "add", f"{OTHERS[6]}/64", "dev", "eth0", "nodad", netns=here)
        macs = mac_of(here), mac_of(there)
        for address in ("192.0.2.2", "2001:db8::2"):  # no answer waits for ARP or ND
            ip("neigh", "replace", address, "lladdr", macs[1], "dev", "eth0", netns=here)
        yield Bed(here, there, macs)


def mac_of(netns: str) -> str:
    return run(netns, "cat", "/sys/class/net/eth0/address").strip()


def tunnelled(bed: Bed, version: int) -> Packet:
    inner = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01") / IP(dst="10.0.0.1") / ICMP()
    return bed.packet(version, UDP(sport=50000, dport=VXLAN_PORT) / VXLAN(vni=66) / inner)


@pytest.mark.parametrize("version", [4, 6])
def test_the_kernel_sees_no_tunnel_frame_and_all_else(bed: Bed, version: int) -> None:
    frame, own = tunnelled(bed, version), ("192.0.2.1", "2001:db8::1")
    elsewhere = frame.copy()
    elsewhere[IP if version == 4 else IPv6].dst = OTHERS[version]
    del elsewhere[UDP].chksum
    other = bed.packet(version, UDP(sport=9, dport=OTHER_PORT) / Raw(b"whole"))
    echo, answer = (ICMP(), ICMP) if version == 4 else (ICMPv6EchoRequest(), ICMPv6EchoReply)
    pieces = fragment(bed.packet(4, UDP(sport=9, dport=OTHER_PORT) / Raw(b"x" * SIZE)), 1000)  # type: ignore[no-untyped-call]
    sent = (frame, elsewhere, other, bed.packet(version, echo), *(pieces if version == 4 else ()))
    with started(bed.here, _LEAVE_ALONE, str(VXLAN_PORT), *own):
        heard = bed.receive(version, *sent)
    vxlan = bytes(elsewhere[UDP].payload).hex()
    assert heard[str(VXLAN_PORT)] == [vxlan]
    whole = [b"whole", b"x" * SIZE] if version == 4 else [b"whole"]
    assert heard[str(OTHER_PORT)] == [data.hex() for data in (*whole, LAST)]
    assert bytes(frame).hex() in heard["frames"]
    answers = [Ether(bytes.fromhex(text)) for text in heard["frames"] if text.startswith(bed.macs[1].replace(":", ""))]
    assert any(reply.haslayer(answer) for reply in answers)


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_it_goes_with_whoever_asked_for_it(bed: Bed, how: str) -> None:
    frame = tunnelled(bed, 4)
    with started(bed.here, _LEAVE_ALONE, str(VXLAN_PORT), "192.0.2.1") as process:
        assert bed.receive(4, frame)[str(VXLAN_PORT)] == []
        if how == "killed":
            process.kill()
            process.wait(DEADLINE)
        else:
            assert process.stdin is not None
            process.stdin.write(b"end\n")
            process.stdin.flush()
            assert said(process) == "ended"
        assert bed.receive(4, frame)[str(VXLAN_PORT)] == [bytes(frame[UDP].payload).hex()]
