# SPDX-License-Identifier: Apache-2.0
"""The reference parser: what it reads, against scapy and by hand, and what it refuses."""

from __future__ import annotations

import socket
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from tests import captures, packets
from tests.strategies import frames, mutated_frames
from vswitch.slowpath.pipeline import FRAG_ANY, FRAG_LATER, parse
from vswitch.slowpath.types import Drop, Key

SRC, DST = "02:00:00:00:00:01", "02:00:00:00:00:02"
ETHER = Ether(src=SRC, dst=DST)
BASE = Key(eth_dst=packets.B, eth_src=packets.A, in_port=7)
V4 = BASE._replace(eth_type=0x0800, ip_src=packets.IP_A + bytes(12), ip_dst=packets.IP_B + bytes(12))
V6 = BASE._replace(eth_type=0x86DD, ip_src=packets.IP6_A, ip_dst=packets.IP6_B)
IP4 = IP(src="10.0.0.1", dst="10.0.0.2")
IP6 = IPv6(src="2001:db8::1", dst="2001:db8::2")

WELL_FORMED: dict[str, tuple[Packet, Key]] = {
    "TCP": (
        ETHER / IP4 / TCP(sport=1025, dport=80, flags="SAEC", options=[("MSS", 1460)]),
        V4._replace(ip_proto=6, l4_src=1025, l4_dst=80, tcp_flags=0xD2),
    ),
    "UDP, TOS": (
        ETHER / IP(src="10.0.0.1", dst="10.0.0.2", tos=0xB8) / UDP(sport=5353, dport=53),
        V4._replace(ip_proto=17, ip_tos=0xB8, l4_src=5353, l4_dst=53),
    ),
    "ICMP": (ETHER / IP4 / ICMP(type=3, code=4), V4._replace(ip_proto=1, l4_src=3, l4_dst=4)),
    "SCTP": (ETHER / IP4 / SCTP(sport=2905, dport=2906), V4._replace(ip_proto=132, l4_src=2905, l4_dst=2906)),
    "802.1Q": (
        ETHER / Dot1Q(vlan=10, prio=5) / IP4 / UDP(sport=1, dport=2),
        V4._replace(vlan_tpid=(0x8100, 0), vlan_tci=(5 << 13 | 10, 0), ip_proto=17, l4_src=1, l4_dst=2),
    ),
    "802.1ad": (
        ETHER / Dot1AD(vlan=200) / Dot1Q(vlan=10) / IP4 / UDP(sport=1, dport=2),
        V4._replace(vlan_tpid=(0x88A8, 0x8100), vlan_tci=(200, 10), ip_proto=17, l4_src=1, l4_dst=2),
    ),
    "ARP": (
        ETHER / ARP(op=2, hwsrc=SRC, psrc="10.0.0.1", hwdst=DST, pdst="10.0.0.2"),
        V4._replace(eth_type=0x0806, ip_proto=2),
    ),
    "first fragment": (
        ETHER / IP(src="10.0.0.1", dst="10.0.0.2", flags="MF") / UDP(sport=1, dport=2, len=4000) / Raw(bytes(100)),
        V4._replace(ip_proto=17, ip_frag=FRAG_ANY, l4_src=1, l4_dst=2),
    ),
    "last fragment": (
        ETHER / IP(src="10.0.0.1", dst="10.0.0.2", frag=185, proto=17) / Raw(bytes(100)),
        V4._replace(ip_proto=17, ip_frag=FRAG_ANY | FRAG_LATER),
    ),
    "IPv6 TCP": (
        ETHER / IPv6(src="2001:db8::1", dst="2001:db8::2", tc=0xB9) / TCP(sport=1025, dport=80, flags="F"),
        V6._replace(ip_proto=6, ip_tos=0xB9, l4_src=1025, l4_dst=80, tcp_flags=1),
    ),
    "neighbour solicitation": (ETHER / IP6 / ICMPv6ND_NS(), V6._replace(ip_proto=58, l4_src=135)),
    "extension headers": (
        ETHER / IP6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting() / IPv6ExtHdrDestOpt() / UDP(sport=1, dport=2),
        V6._replace(ip_proto=17, l4_src=1, l4_dst=2),
    ),
    "IPv6 first fragment": (
        ETHER / IP6 / IPv6ExtHdrFragment(m=1) / UDP(sport=1, dport=2, len=4000) / Raw(bytes(64)),
        V6._replace(ip_proto=17, ip_frag=FRAG_ANY, l4_src=1, l4_dst=2),
    ),
    "IPv6 last fragment": (
        ETHER / IP6 / IPv6ExtHdrFragment(offset=9, nh=17) / Raw(bytes(64)),
        V6._replace(ip_proto=17, ip_frag=FRAG_ANY | FRAG_LATER),
    ),
    "IPv6 atomic fragment": (
        ETHER / IP6 / IPv6ExtHdrFragment() / UDP(sport=1, dport=2),
        V6._replace(ip_proto=17, l4_src=1, l4_dst=2),
    ),
}


@pytest.mark.parametrize("name", WELL_FORMED)
def test_reads_what_scapy_built(name: str) -> None:
    packet, key = WELL_FORMED[name]
    assert parse(bytes(packet), 7) == key


@pytest.mark.parametrize("name", packets.EDGES)
def test_edges(name: str) -> None:
    frame, drop = packets.EDGES[name]
    parsed = parse(frame, 7)
    assert (parsed if isinstance(parsed, Drop) else Drop.NONE) is drop


def test_edges_reach_every_reason() -> None:
    reasons = {drop for _, drop in packets.EDGES.values()}
    assert reasons == {Drop.NONE, Drop.TOO_SHORT, Drop.SRC_MULTICAST} | {
        drop for drop in Drop if drop.label.startswith("malformed-")
    }


@pytest.mark.parametrize(
    ("name", "eth_type"), [("802.3 length", 0), ("802.3 length of 1535", 0), ("EtherType 1536", 0x0600)]
)
def test_length_field_is_no_type(name: str, eth_type: int) -> None:
    frame, _ = packets.EDGES[name]
    assert parse(frame, 7) == BASE._replace(eth_type=eth_type)


def test_third_tag_is_payload() -> None:
    frame, _ = packets.EDGES["third tag"]
    assert parse(frame, 7) == BASE._replace(eth_type=0x9100, vlan_tpid=(0x8100, 0x8100), vlan_tci=(1, 2))


def test_padding_is_not_read() -> None:
    """A SCTP packet cut at 8 of 12 bytes has no ports, whatever the padding looks like."""
    segment = bytes([0, 1, 0, 2]) + bytes(8)
    frame = packets.ethernet(packets.ipv4(segment, proto=132, total_len=28))
    assert parse(frame, 7) == V4._replace(ip_proto=132)


@given(frames() | mutated_frames() | st.binary(max_size=200), st.integers(1, 0xFFFF))
def test_result_is_a_key_of_this_port_or_a_parser_reason(frame: bytes, in_port: int) -> None:
    parsed = parse(frame, in_port)
    if isinstance(parsed, Drop):
        assert parsed in {drop for _, drop in packets.EDGES.values()} - {Drop.NONE}
    else:
        assert (parsed.in_port, parsed.eth_dst, parsed.eth_src) == (in_port, frame[:6], frame[6:12])
        assert parsed.ip_frag in (0, FRAG_ANY, FRAG_ANY | FRAG_LATER)
        assert len(parsed.ip_src) == len(parsed.ip_dst) == 16


@given(frames(), st.binary(max_size=30))
def test_what_follows_an_ip_packet_changes_nothing(frame: bytes, more: bytes) -> None:
    """Unless total length 0 says that all of the frame belongs to it."""
    parsed = parse(frame, 1)
    ip = isinstance(parsed, Key) and parsed.eth_type in (0x0800, 0x86DD)
    tags = sum(map(bool, parsed.vlan_tpid)) if isinstance(parsed, Key) else 0
    told = frame[14 + 4 * tags + 2 : 14 + 4 * tags + 4]
    if ip and told != bytes(2):
        assert parse(frame + more, 1) == parsed


REFUSED = {
    captures.GENERATED: Counter(drop for _, drop in packets.EDGES.values() if drop is not Drop.NONE),
    "arp-oobr.pcap": {Drop.MALFORMED_ARP: 254, Drop.SRC_MULTICAST: 17},
    "ipv6-fragments.pcap": {Drop.MALFORMED_UDP: 1},  # frame 1: UDP length 0 behind an atomic fragment header
    "ipv6_jumbogram_invalid_length.pcap": {Drop.MALFORMED_IPV6: 1},
}


@pytest.mark.parametrize("name", captures.names())
def test_captures_have_as_many_bad_frames(name: str) -> None:
    parsed = [parse(frame, 1) for frame in captures.frames(name)]
    assert Counter(drop for drop in parsed if isinstance(drop, Drop)) == REFUSED.get(name, {})


@pytest.mark.parametrize("name", captures.names())
def test_captures_read_like_scapy(name: str) -> None:
    """Addresses, protocol and ports of each frame that scapy takes for plain TCP or UDP over IPv4."""
    for number, frame in enumerate(captures.frames(name)[:200], 1):
        parsed = parse(frame, 1)
        if isinstance(parsed, Drop):
            continue
        ip = Ether(frame).payload
        while isinstance(ip, Dot1Q):
            ip = ip.payload
        if not isinstance(ip, IP) or not isinstance(ip.payload, TCP | UDP):
            continue
        assert (parsed.ip_src[:4], parsed.ip_dst[:4]) == (socket.inet_aton(ip.src), socket.inet_aton(ip.dst)), number
        assert (parsed.ip_proto, parsed.l4_src, parsed.l4_dst) == (ip.proto, ip.sport, ip.dport), number
