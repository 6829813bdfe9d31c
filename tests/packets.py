# SPDX-License-Identifier: Apache-2.0
"""Frames built byte by byte, right and wrong: what the parser tests feed to both parsers.

No library builds them, so that every length field can lie.
"""

from __future__ import annotations

import struct

from vswitch.slowpath.types import Drop

A = bytes.fromhex("020000000001")
B = bytes.fromhex("020000000002")
BROADCAST = b"\xff" * 6
IP_A, IP_B = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
IP6_A, IP6_B = bytes.fromhex("20010db8" + "00" * 11 + "01"), bytes.fromhex("20010db8" + "00" * 11 + "02")


def be16(value: int) -> bytes:
    return struct.pack("!H", value)


def ethernet(
    payload: bytes = b"",
    *,
    dst: bytes = B,
    src: bytes = A,
    tags: tuple[tuple[int, int], ...] = (),
    eth_type: int = 0x0800,
) -> bytes:
    """`tags`: (TPID, TCI), outer first."""
    return dst + src + b"".join(be16(tpid) + be16(tci) for tpid, tci in tags) + be16(eth_type) + payload


def arp(
    *, spa: bytes = IP_A, tpa: bytes = IP_B, sha: bytes = A, op: int = 1, fixed: bytes = b"\x00\x01\x08\x00\x06\x04"
) -> bytes:
    return fixed + be16(op) + sha + spa + bytes(6) + tpa


def ipv4(
    payload: bytes = b"",
    *,
    proto: int = 17,
    src: bytes = IP_A,
    dst: bytes = IP_B,
    tos: int = 0,
    frag: int = 0,
    options: bytes = b"",
    total_len: int | None = None,
    ihl: int | None = None,
    version: int = 4,
) -> bytes:
    """`frag`: flags and offset, as on the wire; `total_len`, `ihl`: told instead of the true ones."""
    true_ihl = 5 + len(options) // 4
    told = true_ihl * 4 + len(payload) if total_len is None else total_len
    first = version << 4 | (true_ihl if ihl is None else ihl)
    fixed = struct.pack("!BBHHHBBH4s4s", first, tos, told, 1, frag, 64, proto, 0, src, dst)
    return fixed + options + payload


def ipv6(
    payload: bytes = b"",
    *,
    proto: int = 17,
    extensions: tuple[tuple[int, bytes], ...] = (),
    src: bytes = IP6_A,
    dst: bytes = IP6_B,
    tos: int = 0,
    payload_len: int | None = None,
    version: int = 6,
) -> bytes:
    """`extensions`: (type, header with its first byte left out), in order."""
    types = [kind for kind, _ in extensions] + [proto]
    chain = b"".join(bytes([types[i + 1]]) + body for i, (_, body) in enumerate(extensions))
    told = len(chain) + len(payload) if payload_len is None else payload_len
    return struct.pack("!IHBB16s16s", version << 28 | tos << 20, told, types[0], 64, src, dst) + chain + payload


def extension(words: int = 0, fill: int = 0) -> bytes:
    """Body of a hop-by-hop, routing, destination or mobility header of 8 + 8 * words bytes (Pad1 by default)."""
    return bytes([words]) + bytes([fill]) * (6 + 8 * words)


def fragment(offset: int = 0, more: bool = False) -> bytes:
    """Body of a fragment header; `offset` in units of 8 bytes."""
    return b"\x00" + be16(offset << 3 | more) + bytes(4)


def tcp(
    payload: bytes = b"",
    *,
    sport: int = 1025,
    dport: int = 80,
    flags: int = 0x18,
    options: bytes = b"",
    doff: int | None = None,
) -> bytes:
    true_doff = 5 + len(options) // 4
    told = (true_doff if doff is None else doff) << 4
    return struct.pack("!HHIIBBHHH", sport, dport, 1, 2, told, flags, 512, 0, 0) + options + payload


def udp(payload: bytes = b"", *, sport: int = 53, dport: int = 4242, length: int | None = None) -> bytes:
    return struct.pack("!HHHH", sport, dport, 8 + len(payload) if length is None else length, 0) + payload


def icmp(kind: int = 8, code: int = 0, payload: bytes = b"ping") -> bytes:
    return bytes([kind, code]) + bytes(6) + payload


def neighbour(kind: int, *, src: bytes = IP6_A, dst: bytes = IP6_B) -> bytes:
    """The IPv6 packet of a router solicitation (133), neighbour solicitation (135) or advertisement (136)."""
    return ipv6(icmp(kind, 0, bytes(16)), proto=58, src=src, dst=dst)


_UDP4 = ethernet(ipv4(udp(b"data")))
_TAGGED = ethernet(ipv4(udp(b"data")), tags=((0x88A8, 10), (0x8100, 20)))
_JUMBO = b"\x00" + b"\xc2\x04\x00\x01\x00\x00"  # RFC 2675 section 2
_DST = (60, extension())

# name: (frame, why the parser refuses it; NONE: it does not)
EDGES: dict[str, tuple[bytes, Drop]] = {
    "empty": (b"", Drop.TOO_SHORT),
    "13 bytes": (_UDP4[:13], Drop.TOO_SHORT),
    "a group sends": (ethernet(ipv4(udp()), src=BROADCAST), Drop.SRC_MULTICAST),
    "too short before a group": (bytes(6) + b"\xff" * 7, Drop.TOO_SHORT),
    "802.3 length": (ethernet(b"\x42\x42\x03", eth_type=0x0026), Drop.NONE),
    "802.3 length of 1535": (ethernet(bytes(40), eth_type=0x05FF), Drop.NONE),
    "EtherType 1536": (ethernet(bytes(40), eth_type=0x0600), Drop.NONE),
    "no payload": (ethernet(eth_type=0x88CC), Drop.NONE),
    "tag without TCI": (_TAGGED[:14], Drop.MALFORMED_VLAN),
    "tag without type": (_TAGGED[:17], Drop.MALFORMED_VLAN),
    "second tag without type": (_TAGGED[:21], Drop.MALFORMED_VLAN),
    "third tag": (ethernet(bytes(4), tags=((0x8100, 1), (0x8100, 2)), eth_type=0x9100), Drop.NONE),
    "third tag without type": (
        ethernet(bytes(3), tags=((0x8100, 1), (0x8100, 2)), eth_type=0x9100),
        Drop.MALFORMED_VLAN,
    ),
    "ARP": (ethernet(arp(), eth_type=0x0806), Drop.NONE),
    "ARP cut": (ethernet(arp()[:27], eth_type=0x0806), Drop.MALFORMED_ARP),
    "ARP hardware": (ethernet(arp(fixed=b"\x00\x06\x08\x00\x06\x04"), eth_type=0x0806), Drop.MALFORMED_ARP),
    "ARP protocol": (ethernet(arp(fixed=b"\x00\x01\x86\xdd\x06\x04"), eth_type=0x0806), Drop.MALFORMED_ARP),
    "ARP hardware length": (ethernet(arp(fixed=b"\x00\x01\x08\x00\x08\x04"), eth_type=0x0806), Drop.MALFORMED_ARP),
    "ARP protocol length": (ethernet(arp(fixed=b"\x00\x01\x08\x00\x06\x10"), eth_type=0x0806), Drop.MALFORMED_ARP),
    "IPv4": (_UDP4, Drop.NONE),
    "IPv4 cut": (_UDP4[: 14 + 19], Drop.MALFORMED_IPV4),
    "IPv4 version": (ethernet(ipv4(udp(), version=6)), Drop.MALFORMED_IPV4),
    "IPv4 IHL 4": (ethernet(ipv4(udp(), ihl=4)), Drop.MALFORMED_IPV4),
    "IPv4 IHL beyond total length": (ethernet(ipv4(bytes(40), ihl=8, total_len=28)), Drop.MALFORMED_IPV4),
    "IPv4 IHL beyond a super-frame": (ethernet(ipv4(ihl=6, total_len=0)), Drop.MALFORMED_IPV4),
    "IPv4 total length 19": (ethernet(ipv4(udp(), total_len=19)), Drop.MALFORMED_IPV4),
    "IPv4 total length beyond frame": (ethernet(ipv4(udp(), total_len=29)), Drop.MALFORMED_IPV4),
    "IPv4 padded": (_UDP4 + bytes(14), Drop.NONE),
    "IPv4 super-frame": (ethernet(ipv4(tcp(bytes(100)), proto=6, total_len=0)), Drop.NONE),
    "IPv4 all options": (ethernet(ipv4(udp(), options=bytes(40))), Drop.NONE),
    "IPv4 later fragment": (ethernet(ipv4(b"x", proto=6, frag=0x0001)), Drop.NONE),
    "IPv4 fragment at half of the largest offset": (ethernet(ipv4(b"x", proto=6, frag=0x1000)), Drop.NONE),
    "IPv4 first fragment of 7 bytes": (ethernet(ipv4(udp()[:7], frag=0x2000)), Drop.MALFORMED_UDP),
    "IPv6": (ethernet(ipv6(udp()), eth_type=0x86DD), Drop.NONE),
    "IPv6 cut": (ethernet(ipv6()[:39], eth_type=0x86DD), Drop.MALFORMED_IPV6),
    "IPv6 version": (ethernet(ipv6(udp(), version=4), eth_type=0x86DD), Drop.MALFORMED_IPV6),
    "IPv6 payload beyond frame": (ethernet(ipv6(udp(), payload_len=9), eth_type=0x86DD), Drop.MALFORMED_IPV6),
    "IPv6 without payload": (ethernet(ipv6(proto=59, payload_len=0), eth_type=0x86DD), Drop.NONE),
    "IPv6 TCP super-frame": (ethernet(ipv6(tcp(), proto=6, payload_len=0), eth_type=0x86DD), Drop.NONE),
    "IPv6 UDP super-frame": (ethernet(ipv6(udp(length=0), payload_len=0), eth_type=0x86DD), Drop.NONE),
    "IPv6 TCP without payload": (ethernet(ipv6(proto=6), eth_type=0x86DD), Drop.MALFORMED_TCP),
    "IPv6 TCP in the padding": (
        ethernet(ipv6(tcp(), proto=6, payload_len=19), eth_type=0x86DD),
        Drop.MALFORMED_TCP,
    ),
    "IPv6 jumbogram": (
        ethernet(ipv6(udp(), extensions=((0, _JUMBO),), payload_len=0), eth_type=0x86DD),
        Drop.MALFORMED_IPV6,
    ),
    "IPv6 jumbo option": (ethernet(ipv6(udp(), extensions=((0, _JUMBO),)), eth_type=0x86DD), Drop.MALFORMED_IPV6),
    "IPv6 jumbo option behind others": (
        ethernet(
            ipv6(udp(), extensions=((0, b"\x01" + b"\x00\x01\x02\x00\x00" + b"\xc2" + bytes(8)),)), eth_type=0x86DD
        ),
        Drop.MALFORMED_IPV6,
    ),
    "IPv6 jumbo option hidden in another": (
        ethernet(ipv6(udp(), extensions=((0, b"\x00" + b"\x01\x04\xc2\xc2\xc2\xc2"),)), eth_type=0x86DD),
        Drop.NONE,
    ),
    "IPv6 jumbo option's number as a value": (
        ethernet(ipv6(udp(), extensions=((0, b"\x00" + b"\x01\x01\xc2\x01\x01\x00"),)), eth_type=0x86DD),
        Drop.NONE,
    ),
    "IPv6 jumbo option where it means nothing": (
        ethernet(ipv6(udp(), extensions=((60, _JUMBO),)), eth_type=0x86DD),
        Drop.NONE,
    ),
    "IPv6 eight extensions": (ethernet(ipv6(udp(), extensions=(_DST,) * 8), eth_type=0x86DD), Drop.NONE),
    "IPv6 nine extensions": (ethernet(ipv6(udp(), extensions=(_DST,) * 9), eth_type=0x86DD), Drop.MALFORMED_IPV6),
    "IPv6 extension of 7 bytes": (
        ethernet(ipv6(extensions=(_DST,))[:-1], eth_type=0x86DD),
        Drop.MALFORMED_IPV6,
    ),
    "IPv6 extension beyond packet": (
        ethernet(ipv6(udp(), extensions=((43, b"\x02" + bytes(6)),)), eth_type=0x86DD),
        Drop.MALFORMED_IPV6,
    ),
    "IPv6 AH": (ethernet(ipv6(udp(), extensions=((51, b"\x04" + bytes(22)),)), eth_type=0x86DD), Drop.NONE),
    "IPv6 AH beyond packet": (
        ethernet(ipv6(extensions=((51, b"\x04" + bytes(21)),)), eth_type=0x86DD),
        Drop.MALFORMED_IPV6,
    ),
    "IPv6 mobility": (ethernet(ipv6(proto=59, extensions=((135, extension(1)),)), eth_type=0x86DD), Drop.NONE),
    "IPv6 ESP": (ethernet(ipv6(b"", proto=50), eth_type=0x86DD), Drop.NONE),
    "IPv6 atomic fragment": (ethernet(ipv6(udp(), extensions=((44, fragment()),)), eth_type=0x86DD), Drop.NONE),
    "IPv6 first fragment of an atomic one": (
        ethernet(ipv6(tcp(doff=9), proto=6, extensions=((44, fragment(0, True)), (44, fragment()))), eth_type=0x86DD),
        Drop.NONE,
    ),
    "IPv6 first fragment": (
        ethernet(ipv6(tcp(options=bytes(8))[:20], proto=6, extensions=((44, fragment(0, True)),)), eth_type=0x86DD),
        Drop.NONE,
    ),
    "IPv6 later fragment": (ethernet(ipv6(b"x", proto=6, extensions=((44, fragment(9)),)), eth_type=0x86DD), Drop.NONE),
    "IPv6 later fragment of an extension": (
        ethernet(ipv6(b"x", proto=60, extensions=((44, fragment(9)),)), eth_type=0x86DD),
        Drop.NONE,
    ),
    "TCP": (ethernet(ipv4(tcp(), proto=6)), Drop.NONE),
    "TCP cut": (ethernet(ipv4(tcp()[:19], proto=6)), Drop.MALFORMED_TCP),
    "TCP in the padding": (ethernet(ipv4(tcp(), proto=6, total_len=39)), Drop.MALFORMED_TCP),
    "TCP first fragment of 19 bytes": (ethernet(ipv4(tcp()[:19], proto=6, frag=0x2000)), Drop.MALFORMED_TCP),
    "TCP offset 4": (ethernet(ipv4(tcp(doff=4), proto=6)), Drop.MALFORMED_TCP),
    "TCP offset beyond packet": (ethernet(ipv4(tcp(doff=6), proto=6)), Drop.MALFORMED_TCP),
    "TCP offset beyond first fragment": (ethernet(ipv4(tcp(doff=6), proto=6, frag=0x2000)), Drop.NONE),
    "UDP cut": (ethernet(ipv4(udp()[:7])), Drop.MALFORMED_UDP),
    "UDP length 7": (ethernet(ipv4(udp(length=7))), Drop.MALFORMED_UDP),
    "UDP length 0": (ethernet(ipv4(udp(length=0))), Drop.MALFORMED_UDP),
    "UDP length 0 in a super-frame": (ethernet(ipv4(udp(length=0), total_len=0)), Drop.NONE),
    "UDP length beyond packet": (ethernet(ipv4(udp(length=9))), Drop.MALFORMED_UDP),
    "UDP length beyond first fragment": (ethernet(ipv4(udp(length=900), frag=0x2000)), Drop.NONE),
    "ICMP cut": (ethernet(ipv4(icmp()[:7], proto=1)), Drop.MALFORMED_ICMP),
    "ICMPv6 cut": (ethernet(ipv6(icmp()[:7], proto=58), eth_type=0x86DD), Drop.MALFORMED_ICMP),
    "SCTP cut": (ethernet(ipv4(bytes([0, 1, 0, 2]) + bytes(7), proto=132)), Drop.NONE),
    "SCTP": (ethernet(ipv4(bytes([0, 1, 0, 2]) + bytes(8), proto=132)), Drop.NONE),
}
