# SPDX-License-Identifier: Apache-2.0
"""What the kernel itself is to leave alone of an interface's frames, by nftables' ingress hook.

Packet sockets have a frame before that hook, so whoever listens with one still gets it; the IP layer does not.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from ipaddress import ip_address

_NETLINK_NETFILTER, _NFPROTO_NETDEV = 12, 5
_NFT_SUBSYSTEM, _BATCH_BEGIN, _BATCH_END = 10, 0x10, 0x11  # linux/netfilter/nfnetlink.h
_NLMSG_ERROR = 2
_REQUEST, _ACK, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x200, 0x400  # NLM_F_
_NESTED = 0x8000

# linux/netfilter/nf_tables.h
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE = 0, 3, 6
_TABLE_OWNER = 0x2  # the table goes with the socket that made it, however its process ends
_INGRESS, _BEFORE_ALL = 0, -500
_REGISTER_VERDICT, _REGISTER = 0, 1
_META_PROTOCOL, _META_L4PROTO = 1, 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_DROP = 0
_CHAIN = "ingress"


def leave_alone(interface: str, ip: bytes, udp_port: int) -> Callable[[], None]:
    """Have the kernel drop, unread, what comes by an interface for a UDP port of an address.

    Returns what ends that; it also ends with the process. Raises OSError where the kernel cannot do it.
    """
    table = f"ffswitch-{os.getpid()}-{interface}-{ip_address(ip)}"
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    try:
        sock.bind((0, 0))
        sock.send(batch(table, interface, ip, udp_port))
        _check(sock, 3)
    except BaseException:
        sock.close()
        raise
    return sock.close


def batch(table: str, interface: str, ip: bytes, udp_port: int) -> bytes:
    """The messages that make a table with one chain at the interface's ingress and its one rule (nft(8), "netdev")."""
    hook = _number(1, _INGRESS) + _number(2, _BEFORE_ALL) + _text(3, interface)
    chain = _text(1, table) + _text(3, _CHAIN) + _nest(4, hook) + _text(7, "filter")
    rule = _text(1, table) + _text(2, _CHAIN) + _nest(4, b"".join(_expressions(ip, udp_port)))
    return (
        _message(_BATCH_BEGIN, 0, socket.AF_UNSPEC, _NFT_SUBSYSTEM)
        + _nft_message(_NEW_TABLE, _text(1, table) + _number(2, _TABLE_OWNER))
        + _nft_message(_NEW_CHAIN, chain)
        + _nft_message(_NEW_RULE, rule)
        + _message(_BATCH_END, 0, socket.AF_UNSPEC, _NFT_SUBSYSTEM)
    )


def _expressions(ip: bytes, udp_port: int) -> list[bytes]:
    """A fragment that is not the first has no transport header: no comparison with one holds (nft_payload)."""
    # EtherType, and the destination address's place in the header: RFC 791 section 3.1, RFC 8200 section 3.
    ether_type, offset = (0x0800, 16) if len(ip) == 4 else (0x86DD, 24)
    return [
        *_equal(_meta(_META_PROTOCOL), struct.pack("!H", ether_type)),
        *_equal(_payload(_NETWORK_HEADER, offset, len(ip)), ip),
        *_equal(_meta(_META_L4PROTO), bytes([socket.IPPROTO_UDP])),
        *_equal(_payload(_TRANSPORT_HEADER, 2, 2), struct.pack("!H", udp_port)),
        _expression("immediate", _number(1, _REGISTER_VERDICT) + _nest(2, _nest(2, _number(1, _DROP)))),
    ]


def _equal(load: bytes, value: bytes) -> tuple[bytes, bytes]:
    return load, _expression("cmp", _number(1, _REGISTER) + _number(2, 0) + _nest(3, _attribute(1, value)))


def _meta(key: int) -> bytes:
    return _expression("meta", _number(1, _REGISTER) + _number(2, key))


def _payload(base: int, offset: int, length: int) -> bytes:
    words = ((1, _REGISTER), (2, base), (3, offset), (4, length))
    return _expression("payload", b"".join(_number(kind, value) for kind, value in words))


def _expression(name: str, data: bytes) -> bytes:
    return _nest(1, _text(1, name) + _nest(2, data))


def _nft_message(kind: int, attributes: bytes) -> bytes:
    flags = _ACK | _CREATE | _EXCLUSIVE
    return _message(_NFT_SUBSYSTEM << 8 | kind, flags, _NFPROTO_NETDEV, 0, attributes)


def _message(kind: int, flags: int, family: int, resource: int, attributes: bytes = b"") -> bytes:
    body = struct.pack("!BBH", family, 0, resource) + attributes
    return struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | flags, 0, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _nest(kind: int, value: bytes) -> bytes:
    return _attribute(kind | _NESTED, value)


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("!i", value))


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _check(sock: socket.socket, wanted: int) -> None:
    """Read as many acknowledgements, which are there once the request is sent. Raises OSError."""
    while wanted > 0:
        answer = sock.recv(1 << 16, socket.MSG_DONTWAIT)
        while answer:
            length, kind = struct.unpack_from("=IH", answer)
            code = -struct.unpack_from("=i", answer, 16)[0] if kind == _NLMSG_ERROR else errno.EPROTO
            if code:
                raise OSError(code, os.strerror(code))
            wanted -= 1
            answer = answer[length + 3 & ~3 :]
