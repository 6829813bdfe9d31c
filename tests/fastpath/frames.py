# SPDX-License-Identifier: Apache-2.0
"""Frames and flows for the fast path's tests. `mac(n)` and `ip(n)` are host n's addresses."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from vswitch.slowpath.types import EXACT, Action, ActionType, Drop, Flow, Key

ETH_LEN = 14
MIN_LEN = 60


def mac(n: int) -> bytes:
    return bytes([0x02, 0, 0, 0, n >> 8, n & 0xFF])


def mac_text(n: int) -> str:
    return mac(n).hex(":")


def ip(n: int) -> str:
    return socket.inet_ntoa(bytes([10, 0, n >> 8, n & 0xFF]))


def ether(src: int, dst: int, *layers: Packet) -> bytes:
    """A frame from host src to host dst with the given layers behind the Ethernet header."""
    packet = Ether(src=mac_text(src), dst=mac_text(dst))
    for layer in layers:
        packet /= layer
    return bytes(packet)


def numbered(src: int, dst: int, n: int, *, size: int = MIN_LEN, start: int = 0, vid: int | None = None) -> list[bytes]:
    """n UDP frames of one flow, `size` bytes each, told apart by their last four bytes (start, start + 1, ...)."""
    tags = [] if vid is None else [Dot1Q(vlan=vid)]
    headers = ETH_LEN + 4 * len(tags) + 28
    body = ether(
        src, dst, *tags, IP(src=ip(src), dst=ip(dst)), UDP(sport=1000, dport=2000, chksum=0), Raw(bytes(size - headers))
    )[:-4]
    return [body + number.to_bytes(4, "big") for number in range(start, start + n)]


def tagged(frame: bytes, tci: int, tpid: int = 0x8100) -> bytes:
    """The frame with one more outer tag."""
    return frame[:12] + tpid.to_bytes(2, "big") + tci.to_bytes(2, "big") + frame[12:]


def flow(actions: Sequence[Action], **fields: Any) -> Flow:
    """A flow that matches the given key fields wholly, and nothing else."""
    key = Key(**fields)
    mask = Key(**{name: getattr(EXACT, name) for name in fields})
    return Flow(key, mask, tuple(actions))


def output(*port_ids: int) -> list[Action]:
    return [Action(ActionType.OUTPUT, port_id) for port_id in port_ids]


def mirror(port_id: int) -> Action:
    return Action(ActionType.MIRROR, port_id)


def push(tci: int, tpid: int = 0x8100) -> Action:
    return Action(ActionType.VLAN_PUSH, tci, tpid)


POP = Action(ActionType.VLAN_POP)
UPCALL = Action(ActionType.UPCALL)


def drop(reason: Drop) -> Action:
    return Action(ActionType.DROP, reason)
