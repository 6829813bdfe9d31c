# SPDX-License-Identifier: Apache-2.0
"""The kernel's own addresses, routes and neighbours, and what changes of them (rtnetlink(7))."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib import import_module
from ipaddress import ip_address
from typing import Any, Protocol

from vswitch.slowpath import netfilter
from vswitch.slowpath.errors import SwitchError

_RTMGRP_LINK, _RTMGRP_NEIGH = 0x1, 0x4
_RTMGRP_IPV4, _RTMGRP_IPV6 = 0x10 | 0x40, 0x100 | 0x400  # addresses, routes
_NTF_USE = 1  # "somebody has a packet for it": linux/neighbour.h
_HAS_MAC = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80  # NUD_REACHABLE, STALE, DELAY, PROBE, NOARP, PERMANENT
_SO_ATTACH_FILTER = 26
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78


@dataclass(frozen=True, slots=True)
class Link:
    """A kernel interface."""

    index: int
    name: str
    mac: bytes
    mtu: int


@dataclass(frozen=True, slots=True)
class Route:
    """How the kernel would send to an address: by which interface, and to whom there."""

    link: int
    next_hop: bytes


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What the kernel knows of a host on a link; an empty MAC: it does not answer, or nobody asked yet."""

    link: int
    ip: bytes
    mac: bytes


class Kernel(Protocol):
    """What the uplinks need of the kernel; every method raises SwitchError when it does not answer."""

    async def addresses(self) -> dict[bytes, int]: ...
    async def link(self, index: int) -> Link | None: ...
    async def route(self, to: bytes) -> Route | None: ...
    async def neighbours(self) -> list[Neighbour]: ...
    async def resolve(self, link: int, ip: bytes) -> None: ...
    def changes(self) -> AsyncIterator[Neighbour | None]: ...
    def sink(self, ip: bytes, udp_port: int) -> Callable[[], None]: ...
    def leave_alone(self, link: Link, ip: bytes, udp_port: int) -> Callable[[], None]: ...
    async def close(self) -> None: ...


class Rtnetlink:
    """The kernel of this network namespace."""

    def __init__(self, query: Any, events: Any, error: type[Exception]) -> None:
        self._query, self._events, self._error = query, events, error

    @classmethod
    async def open(cls) -> Rtnetlink:
        """Sockets for questions and for changes; SwitchError when there are none to be had."""
        # Reading the library takes long enough to be felt, and not every switch has an uplink.
        library = await asyncio.to_thread(import_module, "pyroute2")
        try:
            query, events = library.AsyncIPRoute(), library.AsyncIPRoute()
            await events.bind(groups=_RTMGRP_LINK | _RTMGRP_NEIGH | _RTMGRP_IPV4 | _RTMGRP_IPV6)
        except OSError as error:
            raise SwitchError(f"the kernel's routes cannot be read: {error}") from None
        return cls(query, events, library.NetlinkError)

    async def addresses(self) -> dict[bytes, int]:
        """The addresses of the kernel's interfaces, each with the interface's index."""
        found = {}
        async for message in await self._query.get_addr():
            # Of a point-to-point interface, the address is the peer's, and local is ours (rtnetlink(7)).
            address = message.get("local") or message.get("address")
            if address:
                found[ip_address(address).packed] = int(message["index"])
        return found

    async def link(self, index: int) -> Link | None:
        """An interface; None when there is none of that index."""
        with contextlib.suppress(self._error):
            for message in await self._query.link("get", index=index):
                mac = bytes.fromhex((message.get("address") or "").replace(":", ""))
                return Link(index, message.get("ifname"), mac, int(message.get("mtu")))
        return None

    async def route(self, to: bytes) -> Route | None:
        """The route to an address, None when there is none."""
        with contextlib.suppress(self._error):
            for message in await self._query.route("get", dst=str(ip_address(to))):
                gateway = message.get("gateway") or (message.get("via") or {}).get("addr")
                link = message.get("oif")
                if link:
                    return Route(int(link), ip_address(gateway).packed if gateway else to)
        return None

    async def neighbours(self) -> list[Neighbour]:
        """All that the kernel knows."""
        found = [_neighbour(message) async for message in await self._query.get_neighbours()]
        return [neighbour for neighbour in found if neighbour is not None]

    async def resolve(self, link: int, ip: bytes) -> None:
        """Have the kernel find a neighbour out, or look after one that it has not heard of for long."""
        with contextlib.suppress(self._error):
            await self._query.neigh("replace", dst=str(ip_address(ip)), ifindex=link, flags=_NTF_USE, state=0)

    async def changes(self) -> AsyncIterator[Neighbour | None]:
        """What changes, for ever: a neighbour; None for anything else."""
        while True:
            async for message in self._events.get():
                if message["event"] in ("RTM_NEWNEIGH", "RTM_DELNEIGH"):
                    neighbour = _neighbour(message)
                    if neighbour is not None:
                        yield neighbour
                else:
                    yield None

    def sink(self, ip: bytes, udp_port: int) -> Callable[[], None]:
        """Take what comes for a UDP port and drop it, so that the kernel tells nobody that it is unreachable.

        Returns what ends that. Raises OSError.
        """
        family = socket.AF_INET if len(ip) == 4 else socket.AF_INET6
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            # BPF's "return 0": the kernel keeps nothing of any packet (socket(7)).
            program = struct.pack("HBBI", 0x06, 0, 0, 0)
            buffer = _buffer(program)
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, buffer[0]))
            # An IPv6 address may not be bound to while the kernel asks whether it is taken.
            level, freebind = (
                (socket.IPPROTO_IP, _IP_FREEBIND) if len(ip) == 4 else (socket.IPPROTO_IPV6, _IPV6_FREEBIND)
            )
            sock.setsockopt(level, freebind, 1)
            sock.bind((str(ip_address(ip)), udp_port))
        except BaseException:
            sock.close()
            raise
        return sock.close

    def leave_alone(self, link: Link, ip: bytes, udp_port: int) -> Callable[[], None]:
        """`netfilter.leave_alone` on a link."""
        return netfilter.leave_alone(link.name, ip, udp_port)

    async def close(self) -> None:
        """Close both sockets."""
        for one in (self._query, self._events):
            one.close()


def _buffer(data: bytes) -> tuple[int, Any]:
    """The address of a copy of `data`, and what keeps it."""
    import ctypes  # noqa: PLC0415  (only hosts with a shared uplink need it)

    kept = ctypes.create_string_buffer(data, len(data))
    return ctypes.addressof(kept), kept


def _neighbour(message: Any) -> Neighbour | None:
    ip, mac = message.get("dst"), message.get("lladdr")
    if not ip or message["family"] not in (socket.AF_INET, socket.AF_INET6):
        return None
    valid = message["state"] & _HAS_MAC and message.get("event") != "RTM_DELNEIGH"
    raw = bytes.fromhex(mac.replace(":", "")) if valid and mac else b""
    return Neighbour(int(message["ifindex"]), ip_address(ip).packed, raw)
