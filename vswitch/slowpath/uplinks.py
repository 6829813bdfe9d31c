# SPDX-License-Identifier: Apache-2.0
"""The underlay: ports with this host's tunnel ends, and the ways to the tunnel ends of other hosts.

An address of a port's `uplink` that is a kernel interface's too is *shared*: routes and neighbours are the kernel's.
Any other is *owned*: the switch answers for it, and finds next hops out itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface

from vswitch.slowpath.errors import SwitchError
from vswitch.slowpath.fastpath import FastPathError
from vswitch.slowpath.neighbours import KernelResolver, NextHop, OwnResolver
from vswitch.slowpath.netlink import Kernel, Link, Neighbour, Rtnetlink
from vswitch.slowpath.ports import default_mac
from vswitch.slowpath.switch import PortEntry, Switch
from vswitch.slowpath.types import VXLAN_PORT, Remote, Uplink, UplinkFrame

log = logging.getLogger(__name__)

_REMOTES_MAX = 4095  # FF_MAX_REMOTES - 1
_REFRESH_S = 20.0  # how often the kernel is made to look after next hops
_NO_REMOTE = 0
NO_UPLINK = ""  # of tunnel ends that only RDMA leads to


@dataclass(frozen=True, slots=True)
class End:
    """One address of an uplink: the port's number, whose it is, and the MAC that packets get."""

    port: int
    interface: IPv4Interface | IPv6Interface
    mac: bytes
    mtu: int
    link: Link | None  # of the kernel, when it is shared

    @property
    def ip(self) -> bytes:
        """The address, packed."""
        return self.interface.ip.packed


@dataclass(frozen=True, slots=True)
class UplinkView:
    """An uplink as people and the controller are told of it. `mtu`: bytes of IP packet; `speed`: Mb/s, 0: unknown."""

    name: str
    ips: tuple[str, ...]
    shared: tuple[str, ...]
    mtu: int
    speed: int
    why: str


@dataclass(frozen=True, slots=True)
class RemoteView:
    """A tunnel end on another host as people are told of it."""

    number: int
    uplink: str
    local: str
    remote: str
    next_hop: NextHop

    @property
    def hop_text(self) -> str:
        """The next hop's address, for people."""
        return str(ip_address(self.next_hop.ip)) if self.next_hop.ip else ""


@dataclass(eq=False, slots=True)
class _Tunnel:
    number: int
    uplink: str
    local: bytes
    remote: bytes
    users: int = 1
    told: Remote | None = None  # what the fast path has


@dataclass(eq=False, slots=True)
class _Port:
    """An uplink that is set up."""

    ends: dict[bytes, End]
    why: str = ""
    own: dict[bytes, OwnResolver] = field(default_factory=dict)


class Uplinks:
    """Follows the ports with an `uplink`, and keeps the fast path's remotes right."""

    def __init__(
        self,
        switch: Switch,
        *,
        kernel: Callable[[], Awaitable[Kernel]] = Rtnetlink.open,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._switch, self._open_kernel, self._clock = switch, kernel, clock
        self._ports: dict[str, _Port] = {}
        self._tunnels: dict[tuple[str, bytes, bytes], _Tunnel] = {}
        self._numbers: dict[int, _Tunnel] = {}
        self._kernel: Kernel | None = None
        self._resolver: KernelResolver | None = None
        self._sinks: dict[bytes, Callable[[], None]] = {}
        self._unseen: dict[bytes, tuple[tuple[int, str], Callable[[], None]]] = {}  # by address: on which link
        self._again = asyncio.Event()
        self._stale = True  # the kernel's routes are others than at the last look
        self._tasks: list[asyncio.Task[None]] = []
        self.changed: list[Callable[[], None]] = []  # called when an uplink or a next hop is another one
        switch.watchers.append(self._port_changed)
        switch.flows.on_uplink_frame = self._on_frame

    def start(self) -> None:
        """Begin, in the running loop; nothing is done as long as no port is an uplink."""
        self._tasks = [asyncio.create_task(self._keep()), asyncio.create_task(self._every_second())]

    async def stop(self) -> None:
        """End, and give back what the kernel lent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._ports.clear()
        self._give_back()
        if self._kernel is not None:
            await self._kernel.close()

    # ---- tunnel ends on other hosts --------------------------------------------------

    def acquire(self, uplink: str, local: bytes, remote: bytes) -> int:
        """The number of a tunnel end on another host, to be released once for each time; 0: there are too many."""
        tunnel = self._tunnels.get((uplink, local, remote))
        if tunnel is not None:
            tunnel.users += 1
            return tunnel.number
        number = next((n for n in range(1, _REMOTES_MAX + 1) if n not in self._numbers), _NO_REMOTE)
        if number == _NO_REMOTE:
            log.error("no way to %s: %d tunnel ends are in use already", ip_address(remote), _REMOTES_MAX)
            return number
        tunnel = _Tunnel(number, uplink, local, remote)
        self._tunnels[uplink, local, remote] = self._numbers[number] = tunnel
        self._look_after(tunnel)
        self._update(tunnel)
        self._again.set()
        return number

    def release(self, number: int) -> None:
        """A user of a tunnel end is gone; 0 is passed over."""
        tunnel = self._numbers.get(number)
        if tunnel is None:
            return
        tunnel.users -= 1
        if tunnel.users:
            return
        del self._numbers[number]
        del self._tunnels[tunnel.uplink, tunnel.local, tunnel.remote]
        self._tell_fast_path(tunnel, None)
        if not any(other.remote == tunnel.remote for other in self._tunnels.values()):
            if self._resolver is not None:
                self._resolver.forget(tunnel.remote)
            for port in self._ports.values():
                for own in port.own.values():
                    own.forget(tunnel.remote)

    # ---- what there is --------------------------------------------------------------

    def views(self) -> list[UplinkView]:
        """The uplinks, by name."""
        found = []
        for name, port in sorted(self._ports.items()):
            ends = port.ends.values()
            shared = tuple(str(end.interface) for end in ends if end.link is not None)
            mtu = min((end.mtu for end in ends), default=self._switch.ports[name].config.mtu)
            link = next((end.link for end in ends if end.link is not None), None)
            ips = tuple(str(end.interface) for end in ends)
            found.append(UplinkView(name, ips, shared, mtu, _speed(link.name) if link else 0, port.why))
        return found

    def remotes(self) -> list[RemoteView]:
        """The tunnel ends on other hosts, by number."""
        return [
            RemoteView(n, t.uplink, str(ip_address(t.local)), str(ip_address(t.remote)), self.next_hop(t))
            for n, t in sorted(self._numbers.items())
        ]

    def remote_text(self, number: int) -> str:
        """A tunnel end's address, for people."""
        tunnel = self._numbers.get(number)
        return str(ip_address(tunnel.remote)) if tunnel else ""

    def next_hop(self, tunnel: _Tunnel) -> NextHop:
        """The next hop to a tunnel end."""
        if tunnel.uplink == NO_UPLINK:
            return NextHop(why="by RDMA only")
        port = self._ports.get(tunnel.uplink)
        end = port.ends.get(tunnel.local) if port else None
        if port is None or end is None:
            return NextHop(why=f"there is no uplink {tunnel.uplink} with {ip_address(tunnel.local)}")
        if end.link is None:
            return port.own[tunnel.local].next_hop(tunnel.remote)
        if self._resolver is None:
            return NextHop(why="the kernel was not asked yet")
        link = self._resolver.link(tunnel.remote)
        if link not in (0, end.link.index):
            return NextHop(why=f"the kernel's route to {ip_address(tunnel.remote)} is not by {end.link.name}")
        return self._resolver.next_hop(tunnel.remote)

    # ---- keeping up ------------------------------------------------------------------

    def _port_changed(self, name: str) -> None:
        entry = self._switch.ports.get(name)
        if name in self._ports or (entry is not None and entry.config.uplink):
            self._again.set()

    def _on_frame(self, frame: UplinkFrame) -> None:
        for port in self._ports.values():
            for address, own in port.own.items():
                if port.ends[address].port == frame.port:
                    own.on_frame(frame.frame, self._clock())

    async def _every_second(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            for port in self._ports.values():
                for own in port.own.values():
                    own.tick(self._clock())

    async def _keep(self) -> None:
        """Bring everything up to date whenever something may have changed, and the kernel's view now and then."""
        follower: asyncio.Task[None] | None = None
        try:
            while True:
                timeout = _REFRESH_S if self._resolver is not None else None
                try:
                    async with asyncio.timeout(timeout):
                        await self._again.wait()
                except TimeoutError:
                    self._stale = True
                self._again.clear()
                try:
                    await self._reconcile()
                except (SwitchError, FastPathError, OSError) as error:
                    log.error("uplinks: %s", error)
                except Exception:
                    log.exception("the uplinks cannot be looked after")
                if self._kernel is not None and follower is None:
                    follower = asyncio.create_task(self._follow(self._kernel))
        finally:
            if follower is not None:
                follower.cancel()

    async def _follow(self, kernel: Kernel) -> None:
        while True:
            try:
                async for change in kernel.changes():
                    self._on_change(change)
            except OSError:
                # Changes came faster than they were read (netlink(7), ENOBUFS): read everything anew.
                self._on_change(None)

    def _on_change(self, change: Neighbour | None) -> None:
        if change is None:
            self._stale = True
            self._again.set()
        elif self._resolver is not None:
            for remote in self._resolver.on_neighbour(change):
                self._next_hop_changed(remote)

    async def _reconcile(self) -> None:
        """Set up the uplinks there are to be, take down the others, and look at all next hops."""
        wanted = {e.config.name: e for e in self._switch.ports.values() if e.config.uplink and e.id}
        addresses: dict[bytes, int] = {}
        if wanted:
            if self._kernel is None:
                self._kernel = await self._open_kernel()
                self._resolver = KernelResolver(self._kernel)
            addresses = await self._kernel.addresses()
        before = self.views()
        for name in [name for name in self._ports if name not in wanted]:
            self._take_down(name)
        for name, entry in wanted.items():
            ends = [await self._end(entry, text, addresses) for text in entry.config.uplink]
            if self._switch.ports.get(name) is entry and entry.id:
                self._set_up(entry, {end.ip: end for end in ends})
        self._give_back()
        if self._resolver is not None and self._kernel is not None:
            for tunnel in list(self._tunnels.values()):
                if self._is_shared(tunnel):
                    await self._resolver.add(tunnel.remote)
            if self._stale:
                self._stale = False
                await self._resolver.refresh()
        for tunnel in self._tunnels.values():
            self._update(tunnel)
        if self.views() != before:
            self._tell()

    async def _end(self, entry: PortEntry, text: str, addresses: dict[bytes, int]) -> End:
        interface = ip_interface(text)
        index = addresses.get(interface.ip.packed)
        link = await self._kernel.link(index) if index and self._kernel else None
        if link is not None:
            return End(entry.id, interface, link.mac, min(entry.config.mtu, link.mtu), link)
        mac = self._switch.fast_path.port_info(entry.id).mac or entry.config.mac or default_mac(entry.config.name)
        return End(entry.id, interface, bytes.fromhex(mac.replace(":", "")), entry.config.mtu, None)

    def _set_up(self, entry: PortEntry, ends: dict[bytes, End]) -> None:
        name = entry.config.name
        old = self._ports.get(name)
        if old is not None and old.ends == ends:
            return
        port = _Port(ends)
        gateways = {ip_address(gateway).version: ip_address(gateway).packed for gateway in entry.config.uplink_gateway}
        for ip, end in ends.items():
            if end.link is not None:
                self._take_over(end, end.link, port)
            else:
                gateway = gateways.get(end.interface.version, b"")
                port.own[ip] = OwnResolver(
                    end.interface, gateway, end.mac, self._sender(end.port), self._next_hop_changed
                )
        self._ports[name] = port
        by_family = {end.interface.version: ip for ip, end in ends.items()}
        try:
            self._switch.fast_path.uplink_set(entry.id, Uplink(by_family.get(4, b""), by_family.get(6, b"")))
        except FastPathError as error:
            port.why = str(error)
        for tunnel in self._tunnels.values():
            if tunnel.uplink == name:
                self._look_after(tunnel)
        words = [f"{e.interface} ({'shared with ' + e.link.name if e.link else 'its own'})" for e in ends.values()]
        log.info("uplink %s: %s%s", name, ", ".join(words), f": {port.why}" if port.why else "")

    def _take_down(self, name: str) -> None:
        del self._ports[name]
        entry = self._switch.ports.get(name)
        if entry is not None and entry.id:
            self._switch.fast_path.uplink_set(entry.id, Uplink())
        log.info("uplink %s: is none any more", name)

    def _take_over(self, end: End, link: Link, port: _Port) -> None:
        """The tunnel's UDP port of a shared address is the switch's: the kernel need not look at what comes for it."""
        if self._kernel is None:
            return
        if end.ip not in self._sinks:
            try:
                self._sinks[end.ip] = self._kernel.sink(end.ip, VXLAN_PORT)
            except OSError as error:
                port.why = f"UDP port {VXLAN_PORT} of {end.interface.ip}: {error.strerror}: is there a vxlan device?"
                log.warning("uplink: %s", port.why)
                return
        place = (link.index, link.name)
        old, close = self._unseen.pop(end.ip, (place, None))
        if close is not None and old != place:
            close()
            close = None
        try:
            self._unseen[end.ip] = place, close or self._kernel.leave_alone(link, end.ip, VXLAN_PORT)
        except OSError as error:
            text = "the kernel looks at tunnel frames for %s too, which takes CPU: no nftables at %s's ingress: %s"
            log.warning("uplink: " + text, end.interface.ip, link.name, error.strerror)

    def _give_back(self) -> None:
        used = {ip for port in self._ports.values() for ip, end in port.ends.items() if end.link is not None}
        for ip in self._unseen.keys() - used:
            self._unseen.pop(ip)[1]()
        for ip in self._sinks.keys() - used:
            self._sinks.pop(ip)()

    def _sender(self, port: int) -> Callable[[bytes], None]:
        def send(frame: bytes) -> None:
            try:
                self._switch.fast_path.packet_out(port, frame)
            except FastPathError as error:
                log.debug("%s", error)

        return send

    # ---- next hops --------------------------------------------------------------------

    def _is_shared(self, tunnel: _Tunnel) -> bool:
        port = self._ports.get(tunnel.uplink)
        end = port.ends.get(tunnel.local) if port else None
        return end is not None and end.link is not None

    def _look_after(self, tunnel: _Tunnel) -> None:
        port = self._ports.get(tunnel.uplink)
        own = port.own.get(tunnel.local) if port else None
        if own is not None:
            own.add(tunnel.remote, self._clock())

    def _next_hop_changed(self, remote: bytes) -> None:
        for tunnel in self._tunnels.values():
            if tunnel.remote == remote:
                self._update(tunnel)
        self._tell()

    def _update(self, tunnel: _Tunnel) -> None:
        port = self._ports.get(tunnel.uplink)
        end = port.ends.get(tunnel.local) if port else None
        if end is None:
            self._tell_fast_path(tunnel, None)
            return
        # Linux drops UDP without a checksum over IPv6, as RFC 8200 section 8.1 has it.
        mac = self.next_hop(tunnel).mac
        remote = Remote(end.port, tunnel.local, tunnel.remote, end.mac, mac, checksum=len(tunnel.remote) == 16)
        self._tell_fast_path(tunnel, remote)

    def _tell_fast_path(self, tunnel: _Tunnel, remote: Remote | None) -> None:
        if tunnel.told == remote:
            return
        try:
            self._switch.fast_path.remote_set(tunnel.number, remote)
        except FastPathError as error:
            log.error("%s", error)
            return
        tunnel.told = remote

    def _tell(self) -> None:
        for call in self.changed:
            call()


def _speed(interface: str) -> int:
    """Mb/s, 0 when the driver does not say."""
    try:
        with open(f"/sys/class/net/{interface}/speed", encoding="ascii") as file:  # noqa: PTH123
            return max(0, int(file.read()))
    except (OSError, ValueError):
        return 0
