# SPDX-License-Identifier: Apache-2.0
"""The texts and numbers that the model's fields are made of: names, addresses, ranges. Each has one written form."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import total_ordering
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated

from controller.codec import Scalar, show

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_PORT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,30}")
_LABEL_KEY = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_./-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"[A-Za-z0-9_.-]{0,63}")
_WORD = re.compile(r"[\x21-\x7e]{1,255}")
_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
_DECIMAL = re.compile(r"[0-9]{1,10}")

_RULES = "letters, digits, '_', '.' and '-', the first a letter or digit"

PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "gre": 47, "icmpv6": 58, "sctp": 132}  # IANA's assigned numbers
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
PORT_MAX = 65535
MTU_MIN, MTU_MAX = 68, 65535  # RFC 791: every IPv4 link carries 68 bytes


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{show(value)} is not a text")
    return value


def _matching(pattern: re.Pattern[str], what: str) -> Scalar[str]:
    def read(value: object) -> str:
        if not pattern.fullmatch(text := _text(value)):
            raise ValueError(f"{show(text)} is not {what}")
        return text

    return Scalar(read, str)


def _or_empty(scalar: Scalar[str]) -> Scalar[str]:
    return Scalar(lambda value: "" if value == "" else scalar.read(value), str)


def _whole(low: int, high: int) -> Scalar[int]:
    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"{show(value)} is not a whole number from {low} to {high}")
        return value

    return Scalar(read, int)


def _line(value: object) -> str:
    text = _text(value)
    if len(text) > 255 or not text.isprintable():
        raise ValueError(f"{show(text)} is not a line of up to 255 characters")
    return text


def _time(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{show(value)} is not a time in seconds since 1970")
    return float(value)


def _mac(value: object) -> str:
    if not _MAC.fullmatch(text := _text(value)):
        raise ValueError(f"{show(text)} is not a MAC address like 02:00:00:00:00:01")
    raw = bytes.fromhex(text.replace(":", ""))
    if raw[0] & 1 or raw == bytes(6):
        raise ValueError(f"{text} cannot be an interface's address: it is a group address or all zero")
    return text.lower()


def _address(value: object) -> IPv4Address | IPv6Address:
    try:
        address = ipaddress.ip_address(_text(value))
    except ValueError:
        raise ValueError(f"{show(value)} is not an IPv4 or IPv6 address (without a prefix length)") from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise ValueError(f"{show(value)}: a scope means nothing on another host, leave out what follows the '%'")
    if address.is_multicast or address.is_unspecified:
        raise ValueError(f"{address} cannot be an interface's address")
    return address


def _gid(value: object) -> IPv6Address:
    try:
        return IPv6Address(_text(value))
    except ValueError:
        raise ValueError(f"{show(value)} is not a GID like fe80::1 or ::ffff:10.0.0.1") from None


def _subnet(value: object) -> IPv4Network | IPv6Network:
    text = _text(value)
    try:
        wide = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{show(text)} is not a subnet like 10.1.0.0/16 or fd00:1::/64") from None
    if "/" not in text:
        raise ValueError(f"{show(text)} has no prefix length: say {text}/{24 if wide.version == 4 else 64}, or another")
    if str(wide.network_address) != str(ipaddress.ip_address(text.partition("/")[0])):
        raise ValueError(f"{text} has bits set beyond its prefix: did you mean {wide}?")
    if wide.is_multicast:
        raise ValueError(f"{wide} is for groups, not for interfaces")
    return wide


@total_ordering
@dataclass(frozen=True, slots=True)
class AddressRange:
    """The addresses from `first` to `last`, both included, of one family."""

    first: IPv4Address | IPv6Address
    last: IPv4Address | IPv6Address

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    def __lt__(self, other: AddressRange) -> bool:
        mine = (self.first.version, int(self.first), int(self.last))
        return mine < (other.first.version, int(other.first), int(other.last))


def _address_range(value: object) -> AddressRange:
    text = _text(value)
    if "/" in text:
        subnet = _subnet(text)
        return AddressRange(subnet[0], subnet[-1])
    low, dash, high = text.partition("-")
    try:
        first = ipaddress.ip_address(low.strip())
        last = ipaddress.ip_address(high.strip()) if dash else first
    except ValueError:
        raise ValueError(f"{show(text)} is not a range like 10.1.0.1-10.1.0.9, 10.1.0.0/28 or 10.1.0.1") from None
    if first.version != last.version or int(first) > int(last):
        raise ValueError(f"{show(text)}: the range ends before it begins, or in another family")
    return AddressRange(first, last)


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """The transport ports from `first` to `last`, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def _port_range(value: object) -> PortRange:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)
    low, dash, high = text.partition("-")
    if not _DECIMAL.fullmatch(low) or (dash and not _DECIMAL.fullmatch(high)):
        raise ValueError(f"{show(value)} is neither a port like 80 nor a range like 8000-8099")
    first, last = int(low), int(high or low)
    if not first <= last <= PORT_MAX:
        raise ValueError(f"{show(value)} is not a range of ports from 0 to {PORT_MAX}, the lower first")
    return PortRange(first, last)


def _protocol(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255:
        return value
    if isinstance(value, str) and value in PROTOCOLS:
        return PROTOCOLS[value]
    raise ValueError(f"{show(value)} is not an IP protocol: a number from 0 to 255, or {', '.join(PROTOCOLS)}")


def protocol_name(number: int) -> str | int:
    """IANA's name of the few protocols that have one here, else the number."""
    return _PROTOCOL_NAMES.get(number, number)


def _labels(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{show(value)} is not an object of labels like {{tier: web}}")
    for key, word in value.items():
        if not isinstance(key, str) or not _LABEL_KEY.fullmatch(key):
            raise ValueError(f"{show(key)} is not a label: 1 to 63 letters, digits, '_', '.', '/' and '-'")
        if not isinstance(word, str) or not _LABEL_VALUE.fullmatch(word):
            raise ValueError(f"the label {key} cannot be {show(word)}: up to 63 letters, digits, '_', '.' and '-'")
    return tuple(sorted(value.items()))


def _as_text(read: Callable[[object], object]) -> Scalar[object]:
    return Scalar(read, str)


_NAME_SCALAR = _matching(_NAME, f"a name: 1 to 63 {_RULES}")
_PORT_SCALAR = _matching(_PORT_NAME, f"a port name: 1 to 31 {_RULES}")

Address = Annotated[IPv4Address | IPv6Address, _as_text(_address)]
Subnet = Annotated[IPv4Network | IPv6Network, _as_text(_subnet)]
Excluded = Annotated[AddressRange, _as_text(_address_range)]
Ports = Annotated[PortRange, _as_text(_port_range)]
Gid = Annotated[IPv6Address, _as_text(_gid)]
Mac = Annotated[str, _or_empty(Scalar(_mac, str))]
Name = Annotated[str, _NAME_SCALAR]
NameOrNone = Annotated[str, _or_empty(_NAME_SCALAR)]
PortName = Annotated[str, _or_empty(_PORT_SCALAR)]
Line = Annotated[str, Scalar(_line, str)]
Word = Annotated[str, _matching(_WORD, "a word: 1 to 255 printable ASCII characters without spaces")]
Protocol = Annotated[int, Scalar(_protocol, protocol_name)]
Labels = Annotated[tuple[tuple[str, str], ...], Scalar(_labels, dict)]
Seconds = Annotated[float, Scalar(_time, float)]
Count = Annotated[int, _whole(0, 2**63 - 1)]
Vni = Annotated[int, _whole(1, 2**24 - 1)]  # RFC 7348 section 5: 24 bits; 0 is kept for what has no network
Mtu = Annotated[int, _whole(MTU_MIN, MTU_MAX)]
PortNumber = Annotated[int, _whole(1, 255)]  # InfiniBand: port numbers of a device are one byte, from 1
Priority = Annotated[int, _whole(0, 65535)]
