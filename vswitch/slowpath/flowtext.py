# SPDX-License-Identifier: Apache-2.0
"""Keys, flows and actions as people read them, in Open vSwitch's words (ovs-fields(7), ovs-actions(7))."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator

from vswitch.slowpath.reasons import mac_text
from vswitch.slowpath.types import EXACT, TUNNEL_RDMA, Action, ActionType, Drop, Key

PortLabel = Callable[[int], str]

_ARP, _IPV4, _IPV6 = 0x0806, 0x0800, 0x86DD
_ETHER_TYPES = {_ARP: "ARP", _IPV4: "IPv4", _IPV6: "IPv6"}
_PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 47: "GRE", 50: "ESP", 51: "AH", 58: "ICMPv6", 132: "SCTP"}
_WITH_PORTS = frozenset({6, 17, 132})
_ICMP = frozenset({1, 58})
_VID, _DEI = 0x0FFF, 0x1000  # of a TCI; the rest is the PCP (IEEE 802.1Q clause 9.6)

# Field of the key: its bits, and Open vSwitch's name for it.
_NUMBERS = {
    "eth_type": (16, "dl_type"),
    "ip_proto": (8, "nw_proto"),
    "ip_tos": (8, "nw_tos"),
    "ip_frag": (8, "ip_frag"),
    "tcp_flags": (8, "tcp_flags"),
    "l4_src": (16, "tp_src"),
    "l4_dst": (16, "tp_dst"),
}
_HEX = frozenset({"eth_type", "ip_tos", "tcp_flags"})


def ip_text(eth_type: int, address: bytes) -> str:
    """An address of the key: IPv6 or, for IPv4 and ARP, its first four bytes."""
    return str(ipaddress.ip_address(address if eth_type == _IPV6 else address[:4]))


def _masked(value: str, mask: bytes, full: bytes, text: Callable[[bytes], str]) -> str:
    return value if mask == full else f"{value}/{text(mask)}"


def _number(value: int, mask: int, bits: int, *, hexadecimal: bool) -> str:
    full = (1 << bits) - 1
    digits = f"0x{{:0{bits // 4}x}}"
    text = digits.format(value & mask) if hexadecimal else str(value & mask)
    return text if mask == full else f"{text}/{digits.format(mask)}"


def _vlan_fields(key: Key, mask: Key) -> Iterator[tuple[str, str, str]]:
    for i, (tag, dl) in enumerate((("vlan", "dl_vlan"), ("inner_vlan", "inner_dl_vlan"))):
        tpid, tci = key.vlan_tpid[i], key.vlan_tci[i]
        tpid_mask, tci_mask = mask.vlan_tpid[i], mask.vlan_tci[i]
        if tpid_mask and not tpid:
            yield f"{tag}_tpid", "none", f"{tag}_tci=0x0000"  # ovs-fields(7): no tag
            continue
        if tpid_mask:
            text = _number(tpid, tpid_mask, 16, hexadecimal=True)
            yield f"{tag}_tpid", text, f"{tag}_tpid={text}"
        if tci_mask & _VID:
            yield f"{tag}_vid", str(tci & _VID), f"{dl}={tci & _VID}"
        if tci_mask >> 13:
            yield f"{tag}_pcp", str(tci >> 13), f"{dl}_pcp={tci >> 13}"
        if tci_mask & _DEI:
            yield f"{tag}_dei", str(int(bool(tci & _DEI))), f"{tag}_dei={int(bool(tci & _DEI))}"


def _ip_name(key: Key, end: str) -> str:
    if key.eth_type == _ARP:
        return "arp_spa" if end == "src" else "arp_tpa"
    return f"ipv6_{end}" if key.eth_type == _IPV6 else f"nw_{end}"


def _fields(key: Key, mask: Key, port: PortLabel) -> Iterator[tuple[str, str, str]]:
    """(field of the key, its text, "name=text") of everything that `mask` has bits of."""
    if mask.in_port:
        yield "in_port", port(key.in_port), f"in_port={port(key.in_port)}"
    yield from _vlan_fields(key, mask)
    for field, name in (("eth_src", "dl_src"), ("eth_dst", "dl_dst")):
        bits: bytes = getattr(mask, field)
        if any(bits):
            text = _masked(mac_text(getattr(key, field)), bits, b"\xff" * 6, mac_text)
            yield field, text, f"{name}={text}"
    for field, (width, name) in _NUMBERS.items():
        number: int = getattr(mask, field)
        if number:
            text = _number(getattr(key, field), number, width, hexadecimal=field in _HEX)
            yield field, text, f"{name}={text}"
    for end in ("src", "dst"):
        bits = getattr(mask, f"ip_{end}")
        if any(bits):
            length = 16 if key.eth_type == _IPV6 else 4
            text = ip_text(key.eth_type, getattr(key, f"ip_{end}"))
            text = _masked(text, bits[:length], b"\xff" * length, lambda b: ip_text(key.eth_type, b))
            yield f"ip_{end}", text, f"{_ip_name(key, end)}={text}"


def present(key: Key) -> Key:
    """The mask of the fields that a packet with this key has."""
    outer, inner = (0xFFFF if tpid else 0 for tpid in key.vlan_tpid)
    absent = {field: none for field, none in Key()._asdict().items() if getattr(key, field) == none}
    return EXACT._replace(**absent | {"vlan_tpid": (outer, inner), "vlan_tci": (outer, inner)})


def match_text(key: Key, mask: Key, port: PortLabel) -> str:
    """A flow's match, "in_port=web0,dl_src=...,dl_dst=..."."""
    return ",".join(text for _, _, text in _fields(key, mask, port))


def key_fields(key: Key, mask: Key, port: PortLabel) -> dict[str, str]:
    """The fields that `mask` has bits of, by the key's own names."""
    return {field: text for field, text, _ in _fields(key, mask, port)}


def _no_address(number: int) -> str:
    return ""


def _action_text(action: Action, port: PortLabel, remote: PortLabel) -> str:
    match action.type:
        case ActionType.OUTPUT:
            return f"output:{port(action.arg)}"
        case ActionType.MIRROR:
            return f"mirror:{port(action.arg)}"
        case ActionType.VLAN_PUSH:
            return f"push_vlan(tpid=0x{action.tpid:04x},vid={action.arg & _VID},pcp={action.arg >> 13})"
        case ActionType.VLAN_POP:
            return "pop_vlan"
        case ActionType.DROP:
            return f"drop({Drop(action.arg).label})"
        case ActionType.UPCALL:
            return "upcall"
        case ActionType.SET_TUNNEL:
            number = action.arg & ~TUNNEL_RDMA
            words = [word for word in (remote(number), "rdma" if action.arg & TUNNEL_RDMA else "") if word]
            return f"set_tunnel:{number}({','.join(words)})" if words else f"set_tunnel:{number}"
        case ActionType.CHECK_LEN:
            return f"check_len:{action.arg}"


def actions_text(actions: Iterable[Action], port: PortLabel, remote: PortLabel = _no_address) -> str:
    """A list of actions, "pop_vlan,output:db0"; `remote` gives tunnel ends their addresses."""
    return ",".join(_action_text(action, port, remote) for action in actions) or f"drop({Drop.POLICY.label})"


def summary(key: Key, frame_len: int) -> str:
    """One line on a packet: "02:..:01 > 02:..:02, vlan 10, IPv4 10.0.0.1:80 > 10.0.0.2:4242 TCP, 60 bytes"."""
    parts = [f"{mac_text(key.eth_src)} > {mac_text(key.eth_dst)}"]
    parts += [f"vlan {tci & _VID}" for tpid, tci in zip(key.vlan_tpid, key.vlan_tci, strict=True) if tpid]
    parts += [_network_summary(key), f"{frame_len} bytes"]
    return ", ".join(parts)


def _network_summary(key: Key) -> str:
    if key.eth_type == 0:
        return "IEEE 802.3 length frame"
    name = _ETHER_TYPES.get(key.eth_type)
    if name is None:
        return f"type 0x{key.eth_type:04x}"
    source, target = ip_text(key.eth_type, key.ip_src), ip_text(key.eth_type, key.ip_dst)
    if key.eth_type == _ARP:
        operation = {1: "request", 2: "reply"}.get(key.ip_proto, f"operation {key.ip_proto}")
        return f"ARP {operation}, {source} about {target}"
    protocol = _PROTOCOLS.get(key.ip_proto, f"protocol {key.ip_proto}")
    if key.ip_frag:
        protocol += " fragment"
    if key.ip_proto in _WITH_PORTS and (key.l4_src or key.l4_dst):
        source = f"[{source}]:{key.l4_src}" if key.eth_type == _IPV6 else f"{source}:{key.l4_src}"
        target = f"[{target}]:{key.l4_dst}" if key.eth_type == _IPV6 else f"{target}:{key.l4_dst}"
    elif key.ip_proto in _ICMP:
        protocol += f" type {key.l4_src} code {key.l4_dst}"
    return f"{name} {source} > {target} {protocol}"
