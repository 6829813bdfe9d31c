# SPDX-License-Identifier: Apache-2.0
"""Who is next on the way to another host's tunnel end, and at which MAC: asked of the kernel, or found out here.

Each resolver is told whom to look after, and calls `changed` with the address whenever its answer differs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface, ip_address
from typing import Final, NamedTuple

from vswitch.slowpath import answers
from vswitch.slowpath.netlink import Kernel, Neighbour, Route
from vswitch.slowpath.pipeline import ETH_HLEN, EthType

_RETRY: Final = 1.0  # RFC 4861 section 10: RETRANS_TIMER
_REFRESH: Final = 30.0  # RFC 4861 section 10: REACHABLE_TIME
_LOST_AFTER: Final = 3 * _RETRY  # MAX_UNICAST_SOLICIT
_BROADCAST: Final = b"\xff" * 6


class NextHop(NamedTuple):
    """Where to send what is for a tunnel end; an empty MAC: nowhere yet, and `why`."""

    ip: bytes = b""
    mac: bytes = b""
    why: str = ""


Changed = Callable[[bytes], None]


# ---- shared with the kernel --------------------------------------------------------


class KernelResolver:
    """Next hops as the kernel has them; `refresh` and `on_neighbour` are to be called when its tables change."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._routes: dict[bytes, Route | None] = {}
        self._macs: dict[tuple[int, bytes], bytes] = {}

    def next_hop(self, to: bytes) -> NextHop:
        """The next hop on the way `to`."""
        route = self._routes.get(to)
        if route is None:
            return NextHop(why=f"the kernel has no route to {ip_address(to)}")
        mac = self._macs.get((route.link, route.next_hop), b"")
        return NextHop(route.next_hop, mac, "" if mac else f"{ip_address(route.next_hop)} does not answer")

    def link(self, to: bytes) -> int:
        """Index of the interface by which the kernel would send, 0: by none."""
        route = self._routes.get(to)
        return route.link if route else 0

    def on_neighbour(self, neighbour: Neighbour) -> list[bytes]:
        """Take in what the kernel tells; returns whose next hop it is."""
        key = (neighbour.link, neighbour.ip)
        if self._macs.get(key, b"") == neighbour.mac:
            return []
        if neighbour.mac:
            self._macs[key] = neighbour.mac
        else:
            self._macs.pop(key, None)
        return [to for to, route in self._routes.items() if route is not None and (route.link, route.next_hop) == key]

    async def add(self, to: bytes) -> None:
        """Look after one more address."""
        if to in self._routes:
            return
        self._routes[to] = await self._kernel.route(to)
        await self._look_after(to)

    def forget(self, to: bytes) -> None:
        """Look after an address no more."""
        self._routes.pop(to, None)

    async def refresh(self) -> None:
        """Read everything anew, and have the kernel look after all next hops: it sees no packet to them."""
        self._macs = {(n.link, n.ip): n.mac for n in await self._kernel.neighbours() if n.mac}
        for to in list(self._routes):
            route = await self._kernel.route(to)
            if to in self._routes:
                self._routes[to] = route
                await self._look_after(to)

    async def _look_after(self, to: bytes) -> None:
        route = self._routes.get(to)
        if route is not None:
            await self._kernel.resolve(route.link, route.next_hop)


# ---- on its own ---------------------------------------------------------------------


class _Known:
    """What is known of a neighbour; times are CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self.mac = b""
        self.heard = 0.0
        self.asked = float("-inf")


class OwnResolver:
    """An address that is the switch's alone: it answers for it and asks for others, by ARP or neighbour discovery."""

    def __init__(
        self,
        own: IPv4Interface | IPv6Interface,
        gateway: bytes,
        mac: bytes,
        send: Callable[[bytes], None],
        changed: Changed,
    ) -> None:
        """`gateway` is packed, b"" for none; `send` puts a frame on the underlay."""
        self._own, self._gateway, self.mac = own, gateway, mac
        self._send, self._changed = send, changed
        self._wanted: dict[bytes, bytes] = {}
        self._known: dict[bytes, _Known] = {}

    def next_hop(self, to: bytes) -> NextHop:
        """The next hop on the way `to`."""
        ip = self._next(to)
        if not ip:
            return NextHop(why=f"{ip_address(to)} is not within {self._own.network}, and there is no uplink_gateway")
        known = self._known.get(ip)
        mac = known.mac if known else b""
        return NextHop(ip, mac, "" if mac else f"{ip_address(ip)} does not answer")

    def add(self, to: bytes, now: float) -> None:
        """Look after one more address."""
        ip = self._next(to)
        self._wanted[to] = ip
        if ip and ip not in self._known:
            self._known[ip] = _Known()
            self._ask(ip, now)

    def forget(self, to: bytes) -> None:
        """Look after an address no more."""
        ip = self._wanted.pop(to, b"")
        if ip not in self._wanted.values():
            self._known.pop(ip, None)

    def tick(self, now: float) -> None:
        """Ask those who do not answer, or have not been heard for long; to be called once a second."""
        for ip, known in list(self._known.items()):
            silent = now - known.heard
            if (not known.mac or silent >= _REFRESH) and now - known.asked >= _RETRY:
                self._ask(ip, now)
            if known.mac and silent >= _REFRESH + _LOST_AFTER:
                known.mac = b""
                self._tell(ip)

    def on_frame(self, frame: bytes, now: float) -> None:
        """ARP or neighbour discovery from the underlay: answer what is asked of us, learn what was asked for."""
        ethertype = int.from_bytes(frame[12:14])
        if self._own.version == 4 and ethertype == EthType.ARP:
            self._on_arp(frame, now)
        elif self._own.version == 6 and ethertype == EthType.IPV6:
            self._on_nd(frame, now)

    def _next(self, to: bytes) -> bytes:
        return to if ip_address(to) in self._own.network else self._gateway

    def _on_arp(self, frame: bytes, now: float) -> None:
        if len(frame) < ETH_HLEN + 28:
            return
        sender_mac, sender, target = frame[22:28], frame[28:32], frame[38:42]
        self._learn(sender, sender_mac, now)
        if frame[20:22] == b"\0\1" and target == self._own.ip.packed and sender != target:
            self._send(answers.arp_reply(frame, self.mac))

    def _on_nd(self, frame: bytes, now: float) -> None:
        target = answers.solicited(frame)
        if target is None:
            return
        kind, option = frame[ETH_HLEN + 40], _lladdr(frame[ETH_HLEN + 64 :])
        if kind == 136:
            self._learn(target, option.get(2, b""), now)
        elif kind == 135:
            self._learn(frame[ETH_HLEN + 8 : ETH_HLEN + 24], option.get(1, b""), now)
            if target == self._own.ip.packed:
                self._send(answers.neighbour_advertisement(frame, self.mac))

    def _learn(self, ip: bytes, mac: bytes, now: float) -> None:
        known = self._known.get(ip)
        if known is None or len(mac) != 6 or mac[0] & 1:
            return
        known.heard = now
        if known.mac != mac:
            known.mac = mac
            self._tell(ip)

    def _tell(self, ip: bytes) -> None:
        for to, by in self._wanted.items():
            if by == ip:
                self._changed(to)

    def _ask(self, ip: bytes, now: float) -> None:
        self._known[ip].asked = now
        own = self._own.ip.packed
        if self._own.version == 4:
            arp = struct.pack("!HHBBH", 1, EthType.IPV4, 6, 4, 1) + self.mac + own + bytes(6) + ip
            self._send((_BROADCAST + self.mac + EthType.ARP.to_bytes(2) + arp).ljust(60, b"\0"))
        else:
            self._send(neighbour_solicitation(own, self.mac, ip))


def neighbour_solicitation(own: bytes, mac: bytes, ip: bytes) -> bytes:
    """Asks for the MAC of an IPv6 address (RFC 4861 section 4.3)."""
    group = IPv6Address("ff02::1:ff00:0").packed[:13] + ip[13:]
    body = bytes(4) + ip + bytes([1, 1]) + mac
    head = b"\x33\x33" + group[12:] + mac + EthType.IPV6.to_bytes(2)
    return head + answers.icmp6(own, group, 135, body, 255)


def _lladdr(options: bytes) -> dict[int, bytes]:
    """The link-layer addresses among the options of a neighbour message (RFC 4861 section 4.6.1)."""
    found: dict[int, bytes] = {}
    while len(options) >= 8 and options[1]:
        if options[0] in (1, 2) and options[1] == 1:
            found[options[0]] = options[2:8]
        options = options[8 * options[1] :]
    return found
