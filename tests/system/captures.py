# SPDX-License-Identifier: Apache-2.0
"""Captures to replay: those that come with the project, when they are there, and one made here."""

from __future__ import annotations

from pathlib import Path

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Raw
from scapy.utils import PcapReader

SHARED = Path(__file__).resolve().parents[3] / "shared" / "captures"
GENERATED = "generated"
LARGEST = 1 << 18  # bytes of a record; scapy's own limit would cut jumbograms


def names() -> list[str]:
    """The captures that `load` knows: always at least one."""
    return [*sorted(path.name for path in SHARED.glob("*.pcap")), GENERATED]


def load(name: str) -> list[bytes]:
    """The frames of a capture, as captured, in order."""
    if name == GENERATED:
        return generate()
    frames: list[bytes] = []
    with PcapReader(str(SHARED / name)) as reader:
        while True:
            try:
                packet = reader.read_packet(size=LARGEST)
            except EOFError:
                return frames
            frames.append(bytes(packet.original))


def generate() -> list[bytes]:
    """A little of everything between five hosts: ARP, ND, TCP, UDP, fragments, VLANs, broadcast, malformed frames."""
    hosts = [f"02:00:00:00:01:{number:02x}" for number in range(1, 6)]
    a, b, c, d, e = hosts
    frames: list[bytes] = []
    for number, host in enumerate(hosts):
        arp = ARP(op=1, hwsrc=host, psrc=f"10.1.0.{number + 1}", pdst="10.1.0.1")
        frames.append(bytes(Ether(src=host, dst="ff:ff:ff:ff:ff:ff") / arp))
    frames.append(bytes(Ether(src=a, dst="33:33:ff:00:00:02") / IPv6(src="fe80::1") / ICMPv6ND_NS(tgt="fe80::2")))
    v4 = IP(src="10.1.0.1", dst="10.1.0.2")
    for number in range(300):
        data = Ether(src=a, dst=b) / v4 / TCP(sport=4000, dport=80, seq=number) / Raw(bytes([number % 256]) * 1400)
        frames.append(bytes(data))
        if number % 7 == 0:
            back = IP(src="10.1.0.2", dst="10.1.0.1") / TCP(sport=80, dport=4000, ack=number, flags="A")
            frames.append(bytes(Ether(src=b, dst=a) / back))
    for number in range(40):
        query = UDP(sport=5000 + number, dport=53) / DNS(rd=1, qd=DNSQR(qname=f"host{number}.example"))
        frames.append(bytes(Ether(src=c, dst=d) / IP(src="10.1.0.3", dst="10.1.0.4") / query))
    pieces = [IP(src="10.1.0.4", dst="10.1.0.3", id=7, proto=17, flags="MF" * (n < 2), frag=n * 175) for n in range(3)]
    frames += [bytes(Ether(src=d, dst=c) / piece / Raw(bytes([8, *range(200)] * 7)[:1400])) for piece in pieces]
    six = IPv6(src="fd00::4", dst="fd00::5")
    frames += [
        bytes(Ether(src=d, dst=e) / six / IPv6ExtHdrFragment(offset=n * 100, m=1, nh=17) / UDP()) for n in (0, 1)
    ]
    frames += [bytes(Ether(src=a, dst=e) / Dot1Q(vlan=vid) / v4 / UDP() / Raw(b"tagged")) for vid in (0, 1, 2, 4094)]
    frames.append(bytes(Ether(src=e, dst=a) / Dot1AD(vlan=9) / Dot1Q(vlan=1) / v4 / ICMP()))
    for number in range(70):
        boot = IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / BOOTP(xid=number) / DHCP()
        frames.append(bytes(Ether(src=e, dst="ff:ff:ff:ff:ff:ff") / boot))
    frames.append(bytes(Ether(src=a, dst="01:80:c2:00:00:00") / Raw(bytes(46))))
    frames.append(bytes(Ether(src=b, dst=b) / v4 / UDP()))
    good = bytes(Ether(src=c, dst=a) / v4 / TCP() / Raw(b"x"))
    frames += [
        good[:13],
        good[:20],
        good[:40],
        good[:12] + b"\x81\x00\x00",
        b"\x03" + good[1:6] + b"\xff" * 6 + good[12:],
    ]
    frames.append(bytes(Ether(src=c, dst=a) / IP(src="10.1.0.3", dst="10.1.0.1") / UDP(len=4) / Raw(b"x")))
    frames.append(good + bytes(9000))
    frames.append(good + bytes(65590 - len(good)))  # larger than any port takes
    return frames
