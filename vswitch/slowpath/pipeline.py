# SPDX-License-Identifier: Apache-2.0
"""The packet pipeline in plain Python: the reference that the C fast path is held against.

Three pure functions over bytes: `parse` (parse.c), `match` (the flow table's
comparison) and `apply` (what actions do to a frame). Written to be read, not
to be quick.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from vswitch.slowpath.types import Action, ActionType, Drop, Flow, Key

ETH_HLEN: Final = 14
VLAN_HLEN: Final = 4
MAX_VLANS: Final = 2  # tags that the key holds

ETH_TYPE_MIN: Final = 0x0600  # IEEE 802.3 clause 3.2.6: below it, the field is a length
VLAN_TPIDS: Final = frozenset({0x8100, 0x88A8, 0x9100})


class EthType(IntEnum):
    """EtherTypes that the parser looks into."""

    IPV4 = 0x0800
    ARP = 0x0806
    IPV6 = 0x86DD


class IpProto(IntEnum):
    """IP protocols and IPv6 extension headers that the parser looks into."""

    HOPOPTS = 0
    ICMP = 1
    TCP = 6
    UDP = 17
    ROUTING = 43
    FRAGMENT = 44
    AH = 51
    ICMPV6 = 58
    DSTOPTS = 60
    SCTP = 132
    MOBILITY = 135


# ESP (50) hides what follows and no-next-header (59) has nothing to follow, so both end the walk.
IPV6_EXTENSIONS: Final = frozenset(
    {IpProto.HOPOPTS, IpProto.ROUTING, IpProto.FRAGMENT, IpProto.DSTOPTS, IpProto.AH, IpProto.MOBILITY}
)
IPV6_MAX_EXTENSIONS: Final = 8
IPV6_OPT_PAD1: Final = 0
IPV6_OPT_JUMBO: Final = 0xC2  # RFC 2675 section 2

FRAG_ANY: Final = 1  # FF_FRAG_ANY
FRAG_LATER: Final = 2  # FF_FRAG_LATER


def _be16(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2])


def _padded(address: bytes) -> bytes:
    """An IPv4 address as the key holds it: the first 4 of 16 bytes."""
    return address + bytes(12)


@dataclass(slots=True)
class _Fields:
    """A key in the making."""

    eth_type: int = 0
    ip_proto: int = 0
    ip_tos: int = 0
    ip_frag: int = 0
    tcp_flags: int = 0
    l4_src: int = 0
    l4_dst: int = 0
    ip_src: bytes = bytes(16)
    ip_dst: bytes = bytes(16)


def parse(frame: bytes, in_port: int) -> Key | Drop:
    """The key of a frame received on a port, or the reason to drop it."""
    if len(frame) < ETH_HLEN:
        return Drop.TOO_SHORT
    if frame[6] & 1:
        return Drop.SRC_MULTICAST
    tpid, tci = [0, 0], [0, 0]
    offset = 12
    eth_type = _be16(frame, offset)
    for i in range(MAX_VLANS + 1):
        if eth_type not in VLAN_TPIDS:
            break
        if len(frame) < offset + 2 + VLAN_HLEN:
            return Drop.MALFORMED_VLAN
        if i == MAX_VLANS:  # one more tag stays the payload's
            break
        tpid[i], tci[i] = eth_type, _be16(frame, offset + 2)
        offset += VLAN_HLEN
        eth_type = _be16(frame, offset)
    fields = _Fields(eth_type=eth_type if eth_type >= ETH_TYPE_MIN else 0)
    drop = _parse_l3(frame[offset + 2 :], fields)
    if drop is not Drop.NONE:
        return drop
    return Key(
        eth_dst=frame[0:6],
        eth_src=frame[6:12],
        eth_type=fields.eth_type,
        in_port=in_port,
        vlan_tpid=(tpid[0], tpid[1]),
        vlan_tci=(tci[0], tci[1]),
        ip_proto=fields.ip_proto,
        ip_tos=fields.ip_tos,
        ip_frag=fields.ip_frag,
        tcp_flags=fields.tcp_flags,
        l4_src=fields.l4_src,
        l4_dst=fields.l4_dst,
        ip_src=fields.ip_src,
        ip_dst=fields.ip_dst,
    )


def _parse_l3(packet: bytes, fields: _Fields) -> Drop:
    match fields.eth_type:
        case EthType.ARP:
            return _parse_arp(packet, fields)
        case EthType.IPV4:
            return _parse_ipv4(packet, fields)
        case EthType.IPV6:
            return _parse_ipv6(packet, fields)
    return Drop.NONE


def _parse_arp(packet: bytes, fields: _Fields) -> Drop:
    """RFC 826 for IPv4 over Ethernet; any other hardware or protocol is refused."""
    if len(packet) < 28 or packet[0:6] != b"\x00\x01\x08\x00\x06\x04":
        return Drop.MALFORMED_ARP
    fields.ip_proto = packet[7]
    fields.ip_src = _padded(packet[14:18])
    fields.ip_dst = _padded(packet[24:28])
    return Drop.NONE


def _parse_ipv4(packet: bytes, fields: _Fields) -> Drop:
    """RFC 791. Total length 0 is a segmentation-offload super-frame: the rest of the frame counts."""
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return Drop.MALFORMED_IPV4
    header_len = (packet[0] & 0xF) * 4
    told_len = _be16(packet, 2)
    total_len = told_len or len(packet)
    if header_len < 20 or header_len > total_len or total_len > len(packet):
        return Drop.MALFORMED_IPV4
    fragment = _be16(packet, 6)
    fields.ip_tos = packet[1]
    fields.ip_proto = packet[9]
    fields.ip_src = _padded(packet[12:16])
    fields.ip_dst = _padded(packet[16:20])
    fields.ip_frag = _fragment_bits(offset=fragment & 0x1FFF, more=bool(fragment & 0x2000))
    return _parse_l4(packet[header_len:total_len], fields, super_frame=told_len == 0)


def _parse_ipv6(packet: bytes, fields: _Fields) -> Drop:
    """RFC 8200; length 0 as with IPv4. A jumbogram (RFC 2675) is refused: no port has an MTU for it."""
    if len(packet) < 40 or packet[0] >> 4 != 6:
        return Drop.MALFORMED_IPV6
    told_len = _be16(packet, 4)
    payload_len = told_len or len(packet) - 40
    if payload_len > len(packet) - 40:
        return Drop.MALFORMED_IPV6
    fields.ip_tos = (packet[0] & 0xF) << 4 | packet[1] >> 4
    fields.ip_src = packet[8:24]
    fields.ip_dst = packet[24:40]
    return _parse_ipv6_payload(packet[6], packet[40 : 40 + payload_len], fields, super_frame=told_len == 0)


def _parse_ipv6_payload(next_header: int, payload: bytes, fields: _Fields, super_frame: bool) -> Drop:
    """RFC 8200 section 4: the extension headers, then what they lead to."""
    extensions = 0
    while next_header in IPV6_EXTENSIONS and not fields.ip_frag & FRAG_LATER:
        extensions += 1
        if extensions > IPV6_MAX_EXTENSIONS or len(payload) < 8:
            return Drop.MALFORMED_IPV6
        match next_header:
            case IpProto.FRAGMENT:
                header_len = 8
                fragment = _be16(payload, 2)
                fields.ip_frag |= _fragment_bits(offset=fragment & 0xFFF8, more=bool(fragment & 1))
            case IpProto.AH:  # AH counts in 4-byte words minus 2 (RFC 4302 section 2.2)
                header_len = (payload[1] + 2) * 4
            case _:
                header_len = (payload[1] + 1) * 8
        if header_len > len(payload):
            return Drop.MALFORMED_IPV6
        if next_header == IpProto.HOPOPTS and _has_jumbo_option(payload[2:header_len]):
            return Drop.MALFORMED_IPV6
        next_header = payload[0]
        payload = payload[header_len:]
    fields.ip_proto = next_header
    return _parse_l4(payload, fields, super_frame)


def _has_jumbo_option(options: bytes) -> bool:
    """Whether a hop-by-hop header's options, walked as far as they go, hold RFC 2675's."""
    while len(options) > 1:
        if options[0] == IPV6_OPT_JUMBO:
            return True
        options = options[1:] if options[0] == IPV6_OPT_PAD1 else options[2 + options[1] :]
    return False


def _fragment_bits(offset: int, more: bool) -> int:
    """`ip_frag`; an atomic fragment (RFC 6946: offset 0, no more to come) is none."""
    if offset:
        return FRAG_ANY | FRAG_LATER
    return FRAG_ANY if more else 0


def _parse_l4(segment: bytes, fields: _Fields, super_frame: bool) -> Drop:
    """`segment` is the rest of the IP packet, so Ethernet padding is never seen here."""
    if fields.ip_frag & FRAG_LATER:
        return Drop.NONE
    match fields.ip_proto:
        case IpProto.TCP:
            return _parse_tcp(segment, fields)
        case IpProto.UDP:
            return _parse_udp(segment, fields, super_frame)
        case IpProto.SCTP if len(segment) >= 12:
            fields.l4_src, fields.l4_dst = _be16(segment, 0), _be16(segment, 2)
        case IpProto.ICMP | IpProto.ICMPV6:
            if len(segment) < 8:
                return Drop.MALFORMED_ICMP
            fields.l4_src, fields.l4_dst = segment[0], segment[1]
    return Drop.NONE


def _parse_tcp(segment: bytes, fields: _Fields) -> Drop:
    if len(segment) < 20:
        return Drop.MALFORMED_TCP
    header_len = (segment[12] >> 4) * 4
    if header_len < 20 or (header_len > len(segment) and not fields.ip_frag):
        return Drop.MALFORMED_TCP
    fields.l4_src, fields.l4_dst = _be16(segment, 0), _be16(segment, 2)
    fields.tcp_flags = segment[13]
    return Drop.NONE


def _parse_udp(segment: bytes, fields: _Fields, super_frame: bool) -> Drop:
    if len(segment) < 8:
        return Drop.MALFORMED_UDP
    length = _be16(segment, 4)
    if length < 8 and not (length == 0 and super_frame):
        return Drop.MALFORMED_UDP
    if length > len(segment) and not fields.ip_frag:
        return Drop.MALFORMED_UDP
    fields.l4_src, fields.l4_dst = _be16(segment, 0), _be16(segment, 2)
    return Drop.NONE


# ---- the flow table's comparison ------------------------------------------


def _and(value: bytes, mask: bytes) -> bytes:
    if mask.count(0xFF) == len(mask):
        return value
    return bytes(v & m for v, m in zip(value, mask, strict=True)) if any(mask) else mask


def masked(key: Key, mask: Key) -> Key:
    """`key & mask`, bit by bit."""
    return Key(
        _and(key.eth_dst, mask.eth_dst),
        _and(key.eth_src, mask.eth_src),
        key.eth_type & mask.eth_type,
        key.in_port & mask.in_port,
        (key.vlan_tpid[0] & mask.vlan_tpid[0], key.vlan_tpid[1] & mask.vlan_tpid[1]),
        (key.vlan_tci[0] & mask.vlan_tci[0], key.vlan_tci[1] & mask.vlan_tci[1]),
        key.ip_proto & mask.ip_proto,
        key.ip_tos & mask.ip_tos,
        key.ip_frag & mask.ip_frag,
        key.tcp_flags & mask.tcp_flags,
        key.l4_src & mask.l4_src,
        key.l4_dst & mask.l4_dst,
        _and(key.ip_src, mask.ip_src),
        _and(key.ip_dst, mask.ip_dst),
    )


def match(key: Key, flow: Flow) -> bool:
    """Whether a packet with this key belongs to the flow."""
    return masked(key, flow.mask) == flow.key


# ---- actions ---------------------------------------------------------------


def vlan_push(frame: bytes, tpid: int, tci: int) -> bytes:
    """The frame with one more outer tag."""
    return frame[:12] + tpid.to_bytes(2) + tci.to_bytes(2) + frame[12:]


def vlan_pop(frame: bytes) -> bytes:
    """The frame without its outer tag, or as it is when it has none."""
    if len(frame) < ETH_HLEN + VLAN_HLEN or _be16(frame, 12) not in VLAN_TPIDS:
        return frame
    return frame[:12] + frame[12 + VLAN_HLEN :]


def apply(actions: Iterable[Action], frame: bytes) -> list[tuple[int, bytes]]:
    """(port id, frame) for each output and mirror, in order; drop and upcall end the list.

    A frame longer than CHECK_LEN allows goes up and nowhere else. To which tunnel end an output leads is not shown.
    """
    actions = tuple(actions)
    if any(action.type is ActionType.CHECK_LEN and len(frame) > action.arg for action in actions):
        return []
    received = frame
    sent: list[tuple[int, bytes]] = []
    for action in actions:
        match action.type:
            case ActionType.OUTPUT:
                sent.append((action.arg, frame))
            case ActionType.MIRROR:
                sent.append((action.arg, received))
            case ActionType.VLAN_PUSH:
                frame = vlan_push(frame, action.tpid, action.arg)
            case ActionType.VLAN_POP:
                frame = vlan_pop(frame)
            case ActionType.DROP | ActionType.UPCALL:
                break
    return sent
