# SPDX-License-Identifier: Apache-2.0
"""Malformed frames: each dropped at once with its reason, and never seen by the slow path."""

from __future__ import annotations

import struct

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    Jumbo,
)
from scapy.layers.l2 import ARP
from scapy.packet import Raw

from tests.fastpath.frames import ether, flow, ip, mac, numbered, output, tagged
from tests.fastpath.switch import Switch
from vswitch.slowpath.types import Drop, Key

V4 = IP(src=ip(1), dst=ip(2))
V6 = IPv6(src="fd00::1", dst="fd00::2")
PAYLOAD = Raw(bytes(32))


def patched(frame: bytes, offset: int, value: bytes) -> bytes:
    return frame[:offset] + value + frame[offset + len(value) :]


def cut(frame: bytes, by: int) -> bytes:
    """The frame without its last `by` bytes; the lengths in its headers stay."""
    return frame[:-by]


TCP4 = ether(1, 2, V4 / TCP() / PAYLOAD)
UDP4 = ether(1, 2, V4 / UDP() / PAYLOAD)
UDP6 = ether(1, 2, V6 / UDP() / PAYLOAD)
ARP4 = ether(1, 2, ARP(psrc=ip(1), pdst=ip(2)))
JUMBO = ether(1, 2, IPv6(src="fd00::1", dst="fd00::2", plen=0) / IPv6ExtHdrHopByHop(options=[Jumbo(jumboplen=40)]))
IP_AT, L4_AT = 14, 34  # offsets in an untagged IPv4 frame
TYPE_V4, TYPE_V6 = b"\x08\x00", b"\x86\xdd"

MALFORMED: dict[str, tuple[Drop, bytes]] = {
    "13-bytes": (Drop.TOO_SHORT, UDP4[:13]),
    "1-byte": (Drop.TOO_SHORT, b"\x02"),
    "group-source": (Drop.SRC_MULTICAST, patched(UDP4, 6, b"\x03")),
    "broadcast-source": (Drop.SRC_MULTICAST, patched(UDP4, 6, b"\xff" * 6)),
    "tag-without-tci": (Drop.MALFORMED_VLAN, UDP4[:12] + b"\x81\x00"),
    "tag-without-type": (Drop.MALFORMED_VLAN, UDP4[:12] + b"\x88\xa8\x00\x05\x08"),
    "second-tag-cut": (Drop.MALFORMED_VLAN, UDP4[:12] + b"\x88\xa8\x00\x05\x81\x00\x00"),
    "third-tag-cut": (Drop.MALFORMED_VLAN, UDP4[:12] + b"\x88\xa8\x00\x05\x81\x00\x00\x06\x91\x00\x00"),
    "arp-cut": (Drop.MALFORMED_ARP, ARP4[: 14 + 27]),
    "arp-hardware": (Drop.MALFORMED_ARP, patched(ARP4, 14, b"\x00\x06")),
    "arp-protocol": (Drop.MALFORMED_ARP, patched(ARP4, 16, b"\x86\xdd")),
    "arp-address-lengths": (Drop.MALFORMED_ARP, patched(ARP4, 18, b"\x06\x10")),
    "arp-tagged-cut": (Drop.MALFORMED_ARP, tagged(ARP4[: 14 + 20], 5)),
    "ipv4-cut": (Drop.MALFORMED_IPV4, UDP4[: 14 + 19]),
    "ipv4-nothing": (Drop.MALFORMED_IPV4, UDP4[:14]),
    "ipv4-version": (Drop.MALFORMED_IPV4, patched(UDP4, IP_AT, b"\x65")),
    "ipv4-ihl-4": (Drop.MALFORMED_IPV4, patched(UDP4, IP_AT, b"\x44")),
    "ipv4-ihl-over-total": (Drop.MALFORMED_IPV4, patched(patched(UDP4, IP_AT, b"\x4f"), IP_AT + 2, b"\x00\x20")),
    "ipv4-total-over-frame": (Drop.MALFORMED_IPV4, cut(UDP4, 1)),
    "ipv4-ihl-over-frame": (Drop.MALFORMED_IPV4, patched(patched(UDP4, IP_AT, b"\x4f"), IP_AT + 2, b"\x00\x00")[:70]),
    "ipv6-cut": (Drop.MALFORMED_IPV6, UDP6[: 14 + 39]),
    "ipv6-version": (Drop.MALFORMED_IPV6, patched(UDP6, IP_AT, b"\x45")),
    "ipv6-payload-over-frame": (Drop.MALFORMED_IPV6, cut(UDP6, 1)),
    "ipv6-extension-cut": (
        Drop.MALFORMED_IPV6,
        ether(1, 2, IPv6(src="fd00::1", dst="fd00::2", nh=0, plen=7) / Raw(b"\x11" + bytes(6))),
    ),
    "ipv6-extension-over-payload": (
        Drop.MALFORMED_IPV6,
        ether(1, 2, IPv6(src="fd00::1", dst="fd00::2", nh=60) / Raw(b"\x11\x01" + bytes(6))),
    ),
    "ipv6-nine-extensions": (
        Drop.MALFORMED_IPV6,
        ether(1, 2, IPv6(src="fd00::1", dst="fd00::2", nh=60) / Raw((b"\x3c\x00" + bytes(6)) * 9)),
    ),
    "ipv6-jumbogram": (Drop.MALFORMED_IPV6, JUMBO),
    "tcp-cut": (Drop.MALFORMED_TCP, ether(1, 2, IP(src=ip(1), dst=ip(2), proto=6) / Raw(bytes(19)))),
    "tcp-offset-4": (Drop.MALFORMED_TCP, patched(TCP4, L4_AT + 12, b"\x40")),
    "tcp-offset-over-segment": (Drop.MALFORMED_TCP, ether(1, 2, V4 / TCP(dataofs=6))),
    "tcp-in-padding": (
        Drop.MALFORMED_TCP,
        ether(1, 2, IP(src=ip(1), dst=ip(2), proto=6, len=24) / Raw(bytes(4)), Raw(bytes(30))),
    ),
    "tcp6-cut": (Drop.MALFORMED_TCP, ether(1, 2, IPv6(src="fd00::1", dst="fd00::2", nh=6) / Raw(bytes(12)))),
    "tcp-first-fragment-cut": (
        Drop.MALFORMED_TCP,
        ether(1, 2, IP(src=ip(1), dst=ip(2), proto=6, flags="MF") / Raw(bytes(16))),
    ),
    "udp-cut": (Drop.MALFORMED_UDP, ether(1, 2, IP(src=ip(1), dst=ip(2), proto=17) / Raw(bytes(7)))),
    "udp-length-7": (Drop.MALFORMED_UDP, patched(UDP4, L4_AT + 4, b"\x00\x07")),
    "udp-length-0": (Drop.MALFORMED_UDP, patched(UDP4, L4_AT + 4, b"\x00\x00")),
    "udp-length-over-packet": (Drop.MALFORMED_UDP, patched(UDP4, L4_AT + 4, b"\x00\x29")),
    "udp-behind-extension-cut": (
        Drop.MALFORMED_UDP,
        ether(1, 2, IPv6(src="fd00::1", dst="fd00::2", nh=60) / Raw(b"\x11\x00" + bytes(6) + bytes(4))),
    ),
    "icmp-cut": (Drop.MALFORMED_ICMP, ether(1, 2, IP(src=ip(1), dst=ip(2), proto=1) / Raw(bytes(7)))),
    "icmp6-cut": (Drop.MALFORMED_ICMP, ether(1, 2, IPv6(src="fd00::1", dst="fd00::2", nh=58) / Raw(bytes(7)))),
}

# Odd, but right: these pass.
WELL_FORMED: dict[str, bytes] = {
    "14-bytes": mac(2) + mac(1) + b"\x88\xb5",
    "ieee-802.3-length": mac(2) + mac(1) + b"\x00\x2e" + bytes(46),
    "tag-and-nothing": UDP4[:12] + b"\x81\x00\x00\x05\x88\xb5",
    "three-tags": tagged(tagged(tagged(UDP4, 3), 2), 1, 0x88A8),
    "ipv4-total-0": patched(UDP4, IP_AT + 2, b"\x00\x00"),
    "ipv4-padding": UDP4 + bytes(18),
    "ipv4-later-fragment": ether(1, 2, IP(src=ip(1), dst=ip(2), proto=6, frag=100) / Raw(bytes(3))),
    "ipv4-options": ether(1, 2, IP(src=ip(1), dst=ip(2), options=b"\x01" * 8) / UDP() / PAYLOAD),
    "udp-super-frame": patched(patched(UDP4, IP_AT + 2, b"\x00\x00"), L4_AT + 4, b"\x00\x00"),
    "udp-first-fragment": ether(1, 2, IP(src=ip(1), dst=ip(2), flags="MF") / UDP(len=4000) / PAYLOAD),
    "tcp-first-fragment-without-options": ether(1, 2, IP(src=ip(1), dst=ip(2), flags="MF") / TCP(dataofs=15)),
    "icmp": ether(1, 2, V4 / ICMP()),
    "icmp6": ether(1, 2, V6 / ICMPv6EchoRequest()),
    "ipv6-eight-extensions": ether(
        1, 2, IPv6(src="fd00::1", dst="fd00::2", nh=60) / Raw((b"\x3c\x00" + bytes(6)) * 7 + b"\x3b\x00" + bytes(6))
    ),
    "ipv6-destination-options": ether(1, 2, V6 / IPv6ExtHdrDestOpt() / UDP() / PAYLOAD),
    "ipv6-fragment": ether(1, 2, V6 / IPv6ExtHdrFragment(offset=100, nh=6) / Raw(b"abc")),
    "ipv6-atomic-fragment": ether(1, 2, V6 / IPv6ExtHdrFragment(nh=17) / UDP() / PAYLOAD),
    "ipv6-esp": ether(1, 2, IPv6(src="fd00::1", dst="fd00::2", nh=50) / Raw(b"x")),
    "sctp-cut": ether(1, 2, IP(src=ip(1), dst=ip(2), proto=132) / Raw(bytes(4))),
    "unknown-protocol": ether(1, 2, IP(src=ip(1), dst=ip(2), proto=253) / Raw(b"x")),
}


@pytest.mark.parametrize(("reason", "frame"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed(switch: Switch, reason: Drop, frame: bytes) -> None:
    """Between good frames of the same burst, which pass."""
    a, b = switch.add_hosts(2)
    switch.install(flow(output(b.id), in_port=a.id))
    good = numbered(1, 2, 20)
    a.peer.send([*good[:10], frame, frame, *good[10:]])
    assert switch.settle() == (22, 0, 20, 2, 0)
    assert switch.drops(a) == {reason: 2}
    assert b.peer.receive() == good
    assert switch.upcalls == []
    assert switch.fp.parse(frame, a.id) == reason


@pytest.mark.parametrize("frame", WELL_FORMED.values(), ids=WELL_FORMED.keys())
def test_odd_but_well_formed(switch: Switch, frame: bytes) -> None:
    a, b = switch.add_hosts(2)
    a.peer.send([frame])
    (upcall,) = switch.wait_upcalls(1)
    assert upcall.key == switch.fp.parse(frame, a.id)
    assert isinstance(upcall.key, Key)
    switch.finish(upcall, output(b.id))
    switch.settle()
    assert b.peer.receive() == [frame]


def test_headers_over_several_descriptors(switch: Switch) -> None:
    """A chain that splits every header is parsed as one frame."""
    a = switch.add("a", segment=16, tx_ring=256)
    b = switch.add("b")
    frame = ether(1, 2, V6 / IPv6ExtHdrDestOpt() / UDP() / Raw(struct.pack(">100H", *range(100))))
    a.peer.send([frame])
    (upcall,) = switch.wait_upcalls(1)
    assert (upcall.key.ip_proto, upcall.key.l4_dst) == (17, 53)
    switch.finish(upcall, output(b.id))
    switch.settle()
    assert b.peer.receive() == [frame]
