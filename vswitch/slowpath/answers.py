# SPDX-License-Identifier: Apache-2.0
"""Frames that the switch makes itself: answers to who-has, and "too big" to who sends too much at a time.

Pure functions from a received frame (at least its headers) to the frame that goes back, None where there is none.
"""

from __future__ import annotations

import struct
from ipaddress import IPv6Address
from typing import Final

from vswitch.slowpath.pipeline import ETH_HLEN, VLAN_HLEN, VLAN_TPIDS, EthType, IpProto

_ARP_LEN: Final = 28
_IPV6_HLEN: Final = 40
_NA_FLAGS: Final = 0x60000000  # solicited, override (RFC 4861 section 4.4)
_ND_HOP_LIMIT: Final = 255  # RFC 4861 section 7.1.1
_ALL_NODES: Final = IPv6Address("ff02::1").packed

_ICMP_ERRORS: Final = frozenset({3, 4, 5, 11, 12})  # RFC 1122 section 3.2.2
_ICMP4_MAX: Final = 576  # RFC 1812 section 4.3.2.3
_ICMP6_MAX: Final = 1280  # RFC 4443 section 2.4 (c)
_TTL: Final = 64


def _headers(frame: bytes) -> tuple[bytes, int]:
    """The VLAN tags, and where what the EtherType says begins."""
    at = ETH_HLEN
    while int.from_bytes(frame[at - 2 : at]) in VLAN_TPIDS:
        at += VLAN_HLEN
    return frame[12 : at - 2], at


def arp_target(frame: bytes) -> bytes | None:
    """The IPv4 address that an ARP request asks for; None: it announces its own (RFC 5227 section 3)."""
    _, at = _headers(frame)
    sender, target = frame[at + 14 : at + 18], frame[at + 24 : at + 28]
    return target if len(frame) >= at + _ARP_LEN and target != sender else None


def arp_reply(frame: bytes, mac: bytes) -> bytes:
    """Tells who sent the ARP request that the address it asks for is at `mac`."""
    tags, at = _headers(frame)
    asker, asker_ip, target_ip = frame[at + 8 : at + 14], frame[at + 14 : at + 18], frame[at + 24 : at + 28]
    head = frame[6:12] + mac + tags + EthType.ARP.to_bytes(2)
    return head + struct.pack("!HHBBH", 1, EthType.IPV4, 6, 4, 2) + mac + target_ip + asker + asker_ip


def solicited(frame: bytes) -> bytes | None:
    """The IPv6 address that a neighbour solicitation asks for; None: it is none that a host may send."""
    _, at = _headers(frame)
    target = frame[at + 48 : at + 64]
    # RFC 4861 section 7.1.1; extension headers have no business there (RFC 6980 for fragments)
    fine = len(target) == 16 and frame[at + 6] == IpProto.ICMPV6 and frame[at + 7] == _ND_HOP_LIMIT
    return target if fine and target[0] != 0xFF else None


def neighbour_advertisement(frame: bytes, mac: bytes) -> bytes:
    """Tells who sent the neighbour solicitation that the address it asks for is at `mac`."""
    tags, at = _headers(frame)
    asker, target = frame[at + 8 : at + 24], frame[at + 48 : at + 64]
    # RFC 4861 section 7.2.4: who has no address yet is told as one of all, and did not solicit.
    to, flags = (asker, _NA_FLAGS) if any(asker) else (_ALL_NODES, 0x20000000)
    body = flags.to_bytes(4) + target + bytes([2, 1]) + mac
    dst = frame[6:12] if any(asker) else b"\x33\x33" + _ALL_NODES[12:]
    return dst + mac + tags + EthType.IPV6.to_bytes(2) + icmp6(target, to, 136, body, _ND_HOP_LIMIT)


def too_big(frame: bytes, mtu: int) -> bytes | None:
    """Tells who sent a frame that packets to its destination may have `mtu` bytes (RFC 1191, RFC 8201).

    From the destination's addresses, since the switch has none of its own.
    """
    tags, at = _headers(frame)
    ethertype = int.from_bytes(frame[at - 2 : at])
    head = frame[6:12] + frame[0:6] + tags + ethertype.to_bytes(2)
    packet = frame[at:]
    if ethertype == EthType.IPV4 and _may_be_told4(packet):
        return head + _too_big4(packet, mtu)
    if ethertype == EthType.IPV6 and _may_be_told6(packet):
        src, dst = packet[8:24], packet[24:40]
        quoted = packet[: _ICMP6_MAX - _IPV6_HLEN - 8]
        return head + icmp6(dst, src, 2, mtu.to_bytes(4) + quoted, _TTL)
    return None


def _may_be_told4(packet: bytes) -> bool:
    """RFC 1122 section 3.2.2: no error about an error, a group, a later fragment, or a sender that is nobody."""
    if len(packet) < 20:
        return False
    header = (packet[0] & 15) * 4
    error = packet[9] == IpProto.ICMP and packet[header : header + 1] != b"" and packet[header] in _ICMP_ERRORS
    later = int.from_bytes(packet[6:8]) & 0x1FFF
    return not error and not later and packet[16] < 224 and any(packet[12:16])


def _may_be_told6(packet: bytes) -> bool:
    """RFC 4443 section 2.4 (e); a packet too big may be told of to a group's sender, too."""
    if len(packet) < _IPV6_HLEN or not any(packet[8:24]):
        return False
    return not (packet[6] == IpProto.ICMPV6 and len(packet) > _IPV6_HLEN and packet[_IPV6_HLEN] < 128)


def _too_big4(packet: bytes, mtu: int) -> bytes:
    header = (packet[0] & 15) * 4
    # RFC 1812 section 4.3.2.3: as much of the packet as fits; of an upcall, its first bytes
    quoted = packet[: max(header + 8, _ICMP4_MAX - 28)]
    body = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + quoted
    body = body[:2] + checksum(body).to_bytes(2) + body[4:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, _TTL, IpProto.ICMP, 0) + packet[16:20] + packet[12:16]
    return ip[:10] + checksum(ip).to_bytes(2) + ip[12:] + body


def icmp6(src: bytes, dst: bytes, kind: int, rest: bytes, hops: int) -> bytes:
    """An IPv6 packet with an ICMPv6 message of code 0; `rest` follows its checksum."""
    length = 4 + len(rest)
    pseudo = src + dst + length.to_bytes(4) + IpProto.ICMPV6.to_bytes(4)  # RFC 8200 section 8.1
    message = bytes([kind, 0, 0, 0]) + rest
    message = message[:2] + checksum(pseudo + message).to_bytes(2) + rest
    return struct.pack("!IHBB", 6 << 28, length, IpProto.ICMPV6, hops) + src + dst + message


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return ~total & 0xFFFF
