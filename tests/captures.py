# SPDX-License-Identifier: Apache-2.0
"""Captures of real traffic for tests: those beside the repository, where there are any, and one made here."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from scapy.utils import RawPcapReader

from tests import packets

CAPTURES = Path(__file__).resolve().parents[2] / "shared" / "captures"
GENERATED = "generated"


def names() -> list[str]:
    """Every capture there is; never empty."""
    return [GENERATED, *sorted(path.name for path in CAPTURES.glob("*.pcap"))]


@cache
def frames(name: str) -> tuple[bytes, ...]:
    """A capture's frames in order."""
    if name == GENERATED:
        return tuple(_generated())
    with RawPcapReader(str(CAPTURES / name)) as reader:
        return tuple(bytes(frame) for frame, _ in reader)


def ports_of_macs(capture: tuple[bytes, ...], n_ports: int) -> dict[bytes, int]:
    """source MAC → port 1..n_ports, in order of appearance; more MACs than ports share them."""
    macs = dict.fromkeys(frame[6:12] for frame in capture)
    return {mac: 1 + i % n_ports for i, mac in enumerate(macs)}


def _generated() -> list[bytes]:
    """Two hosts: ARP, a TCP exchange, UDP fragments, neighbour discovery, tags, and every edge case."""
    a, b, everyone = packets.A, packets.B, packets.BROADCAST
    ask = packets.ethernet(packets.arp(), dst=everyone, eth_type=0x0806)
    reply = packets.arp(spa=packets.IP_B, tpa=packets.IP_A, sha=b, op=2)
    made = [ask, packets.ethernet(reply, dst=a, src=b, eth_type=0x0806)]
    for i in range(20):
        there = packets.tcp(bytes([i]) * (i * 70), sport=40000, dport=80)
        back = packets.tcp(bytes([i]) * 1400, sport=80, dport=40000)
        made.append(packets.ethernet(packets.ipv4(there, proto=6)))
        made.append(packets.ethernet(packets.ipv4(back, proto=6, src=packets.IP_B, dst=packets.IP_A), dst=a, src=b))
    datagram = packets.udp(bytes(2000))
    made.append(packets.ethernet(packets.ipv4(datagram[:1480], frag=0x2000)))
    made.append(packets.ethernet(packets.ipv4(datagram[1480:], frag=185)))
    for kind in (133, 135, 136):
        made.append(packets.ethernet(packets.neighbour(kind), eth_type=0x86DD))
    for tags in (((0x8100, 0x6000),), ((0x8100, 10),), ((0x88A8, 10), (0x8100, 20))):
        made.append(packets.ethernet(packets.ipv4(packets.udp(b"tagged")), tags=tags))
        made.append(packets.ethernet(packets.ipv4(packets.udp(b"tagged")), dst=a, src=b, tags=tags))
    return made + [frame for frame, _ in packets.EDGES.values()]
