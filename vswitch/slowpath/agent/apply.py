# SPDX-License-Identifier: Apache-2.0
"""Carries out on the switch what follows from what the host was told: vxlan ports, tunnel ends, endpoints, filters."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple

from controller.links import RdmaLink
from vswitch.slowpath.agent.world import EndpointWish, NetworkWish, Pair, Todo
from vswitch.slowpath.errors import SwitchError
from vswitch.slowpath.overlay import Binding
from vswitch.slowpath.ports import MTU_MAX
from vswitch.slowpath.rdma_peers import Local, RdmaPeers, Want
from vswitch.slowpath.switch import PortEntry, Switch
from vswitch.slowpath.types import Command, PortConfig, PortType
from vswitch.slowpath.uplinks import NO_UPLINK, Uplinks

log = logging.getLogger(__name__)


class _Numbers(NamedTuple):
    """The tunnel ends of an endpoint on another host: the usual one, and that without an uplink; 0: none."""

    way: int = 0
    rdma: int = 0


_NONE = _Numbers()


@dataclass(eq=False, slots=True)
class _ByRdma:
    """How RDMA leads to a host, and how many of its endpoints each tunnel end serves."""

    link: RdmaLink
    numbers: Counter[int] = field(default_factory=Counter)


class Applier:
    """Keeps the switch as it is wished to be; between two calls nothing is half done."""

    def __init__(
        self, switch: Switch, uplinks: Uplinks, rdma: RdmaPeers, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._switch, self._uplinks, self._rdma, self._clock = switch, uplinks, rdma, clock
        self._tunnels: dict[str, PortEntry | None] = {}  # by network; None: there is no vxlan port, and it was said why
        self._endpoints: dict[Pair, EndpointWish] = {}
        self._numbers: dict[Pair, _Numbers] = {}
        self._by_rdma: dict[str, _ByRdma] = {}  # by host
        self._by_port: dict[str, set[Pair]] = {}

    def apply(self, todo: Todo) -> None:
        """Do what is to be done."""
        core, now = self._switch.core, self._clock()
        commands: list[Command] = []
        # A VNI may have gone from one network to another.
        for name, wish in sorted(todo.networks.items(), key=lambda item: item[1] is not None):
            commands += self._network(name, wish)
        commands += core.set_filters(todo.filters, now)
        gone = [pair for pair, wish in todo.endpoints.items() if wish is None]
        commands += core.remove_endpoints(gone, now)
        hosts = self._hosts_of(todo.endpoints)
        old_numbers = [self._forget(pair) for pair in todo.endpoints]
        there = {pair: wish for pair, wish in todo.endpoints.items() if wish is not None}
        for pair, endpoint in there.items():
            self._remember(pair, endpoint)
        commands += core.set_endpoints([self._binding(pair) for pair in there], now)
        self._switch.flows.execute(commands)
        for host in sorted(hosts | self._hosts_of(todo.endpoints)):
            self._rdma.want(host, self._want(host))
        # No flow and no peer leads to them any more: they may be given to others.
        for numbers in old_numbers:
            self._uplinks.release(numbers.way)
            self._uplinks.release(numbers.rdma)
        self._assign_all(todo.endpoints)

    def port_changed(self, name: str) -> None:
        """A port came, went or changed: its endpoint is bound anew."""
        pairs = self._by_port.get(name, set())
        self._switch.flows.execute(
            self._switch.core.set_endpoints([self._binding(pair) for pair in pairs], self._clock())
        )
        self._assign_all(pairs)

    # ---- networks --------------------------------------------------------------------

    def _network(self, name: str, wish: NetworkWish | None) -> list[Command]:
        core, old = self._switch.core, self._tunnels.get(name)
        if old is not None and (wish is None or old.config.vni != wish.vni):
            self._switch.remove_own(old)
            old = None
        if wish is None:
            self._tunnels.pop(name, None)
            return core.remove_network(name, self._clock())
        if old is None:
            old = self._add_tunnel(name, wish)
        self._tunnels[name] = old
        return core.set_network(name, old.id if old is not None else None, self._clock())

    def _add_tunnel(self, name: str, wish: NetworkWish) -> PortEntry | None:
        config = PortConfig(f"vxlan{wish.vni}", PortType.VXLAN, vni=wish.vni, network=name, mtu=MTU_MAX)
        try:
            return self._switch.add_own(config)
        except SwitchError as error:
            log.error("network %s reaches no other host: %s", name, error)
            return None

    # ---- endpoints -------------------------------------------------------------------

    def _forget(self, pair: Pair) -> _Numbers:
        """Returns the tunnel ends that are to be released."""
        old = self._endpoints.pop(pair, None)
        numbers = self._numbers.pop(pair, _NONE)
        if old is not None and old.rdma is not None:
            self._by_rdma[old.host].numbers.subtract(numbers)
        if old is not None and old.port:
            pairs = self._by_port.get(old.port, set())
            pairs.discard(pair)
            if not pairs:
                self._by_port.pop(old.port, None)
                self._unassign(old.port)
        return numbers

    def _remember(self, pair: Pair, wish: EndpointWish) -> None:
        self._endpoints[pair] = wish
        if wish.port:
            self._by_port.setdefault(wish.port, set()).add(pair)
        way, link = wish.way, wish.rdma
        numbers = _Numbers(
            self._uplinks.acquire(way.uplink, way.local.packed, way.remote.packed) if way is not None else 0,
            self._uplinks.acquire(NO_UPLINK, link.local.gid.packed, link.remote.gid.packed) if link is not None else 0,
        )
        self._numbers[pair] = numbers
        if link is not None:
            by_rdma = self._by_rdma.setdefault(wish.host, _ByRdma(link))
            by_rdma.link = link
            by_rdma.numbers.update(numbers)

    def _hosts_of(self, pairs: Iterable[Pair]) -> set[str]:
        """The hosts of those that are to be reached by RDMA."""
        wishes = [self._endpoints.get(pair) for pair in pairs]
        return {wish.host for wish in wishes if wish is not None and wish.rdma is not None}

    def _want(self, host: str) -> Want | None:
        """How a host is to be reached by RDMA; None: not at all."""
        by_rdma = self._by_rdma[host]
        remotes = frozenset(number for number, users in by_rdma.numbers.items() if number and users > 0)
        if not remotes:
            del self._by_rdma[host]
            return None
        local, remote = by_rdma.link.local, by_rdma.link.remote
        return Want(Local(local.device, local.port, local.gid), remote.gid, remotes)

    def _binding(self, pair: Pair) -> Binding:
        network, name = pair
        wish = self._endpoints[pair]
        entry = self._local(network, wish.port)
        port = entry.id if entry is not None and entry.id else None
        numbers = self._numbers[pair]
        return Binding(
            network, name, wish.mac, wish.ips, port, numbers.way, wish.mtu, rdma=numbers.rdma, rdma_mtu=wish.rdma_mtu
        )

    def _local(self, network: str, port: str) -> PortEntry | None:
        entry = self._switch.ports.get(port) if port else None
        return entry if entry is not None and entry.config.network == network else None

    def _assign_all(self, pairs: Iterable[Pair]) -> None:
        """Write down for the containers of this host what addresses they have."""
        for pair in pairs:
            wish = self._endpoints.get(pair)
            entry = self._local(pair[0], wish.port) if wish is not None else None
            if wish is None or entry is None:
                continue
            try:
                ips = tuple(str(ip_address(ip)) for ip in wish.ips)
                self._switch.assign(entry.config.name, wish.mac.hex(":"), ips)
            except SwitchError as error:
                log.error("%s", error)

    def _unassign(self, port: str) -> None:
        entry = self._switch.ports.get(port)
        if entry is not None:
            try:
                self._switch.assign(port, "", ())
            except SwitchError as error:
                log.error("%s", error)
