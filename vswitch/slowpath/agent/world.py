# SPDX-License-Identifier: Apache-2.0
"""What a host was told, and what follows from it for its switch. No I/O.

`HostWorld.apply` takes changes and returns what is to be done; what it costs grows with what the changes concern.
After any changes, what was returned so far adds up to what a new HostWorld returns that is told the last state at
once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast

from controller.decide import World, decide
from controller.links import RdmaLink, Tunnel, rdma_link, tunnel
from controller.model import (
    Endpoint,
    Host,
    HostState,
    Key,
    Kind,
    Network,
    Object,
    Path,
    Policy,
    TrustDomain,
    key_of,
)
from controller.policy import PolicyTable, Rules, allowed, selects
from vswitch.slowpath.overlay import Paths, Scope

K = TypeVar("K")
T = TypeVar("T")
V = TypeVar("V")
_CARRIED = (Path.SWITCHED, Path.RDMA, Path.VXLAN)  # what passes through the switch


@dataclass(frozen=True, slots=True)
class NetworkWish:
    """A network that the switch is to have."""

    vni: int
    mtu: int


@dataclass(frozen=True, slots=True)
class EndpointWish:
    """Where an endpoint is: at `port` of this host, or on `host`, behind `way`, `rdma`, or both.

    `mtu` is the largest IP packet that fits `way`, `rdma_mtu` that for `rdma`.
    """

    mac: bytes
    ips: tuple[bytes, ...]
    port: str = ""
    host: str = ""
    way: Tunnel | None = None
    mtu: int = 0
    rdma: RdmaLink | None = None
    rdma_mtu: int = 0


@dataclass(frozen=True, slots=True)
class PairFilter:
    """What the switch lets pass from one endpoint to another: see `controller.policy`."""

    rules: Rules
    back_rules: Rules
    scope: Scope
    carried: bool  # False: the pair may not use the switch at all
    paths: Paths

    def permits(self, protocol: int, source_port: int | None, destination_port: int | None) -> bool:
        """Whether a packet passes."""
        opens = allowed(self.rules, protocol, destination_port)
        return self.carried and (opens or allowed(self.back_rules, protocol, source_port))


Pair = tuple[str, str]


@dataclass(slots=True)
class Todo:
    """What is to be done to the switch, in the order of the fields; None: it goes."""

    networks: dict[str, NetworkWish | None] = field(default_factory=dict)
    filters: dict[Pair, PairFilter | None] = field(default_factory=dict)  # by (from, to)
    endpoints: dict[Pair, EndpointWish | None] = field(default_factory=dict)  # by (network, name)


class HostWorld:
    """The objects that a host knows, and what its switch was told of them."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._objects: dict[Kind, dict[str, Object]] = {kind: {} for kind in Kind}
        self._members: dict[str, set[str]] = {}  # names of endpoints by network
        self._placed: dict[str, set[str]] = {}  # by host
        self._table = PolicyTable()
        self._told = Todo()
        self._filtered: dict[str, set[Pair]] = {}  # pairs with a filter, by each of their names
        self._networks_here: set[str] = set()  # those with endpoints on this host

    @property
    def objects(self) -> Mapping[Kind, Mapping[str, Object]]:
        """All objects by kind and name; read only."""
        return self._objects

    def all(self) -> list[Object]:
        """Every object, by kind and name."""
        return [self._objects[kind][name] for kind in Kind for name in sorted(self._objects[kind])]

    @property
    def world(self) -> World:
        """What `decide` looks at."""
        return World(self._of(Kind.HOST, Host), self._of(Kind.NETWORK, Network), self._domains, self._table)

    def endpoint(self, name: str) -> Endpoint | None:
        """The endpoint of that name."""
        return self._of(Kind.ENDPOINT, Endpoint).get(name)

    def here(self, endpoint: Endpoint) -> bool:
        """Whether an endpoint is on this host."""
        return endpoint.host == self.host

    def replace(self, objects: Iterable[Object]) -> Todo:
        """These are all objects there are."""
        new = {key_of(item): item for item in objects}
        old = [(kind, name) for kind, items in self._objects.items() for name in items]
        return self.apply(new.values(), [key for key in old if key not in new])

    def apply(self, put: Iterable[Object], removed: Iterable[Key]) -> Todo:
        """Objects are new or changed, others are gone; unknown ones among these are passed over."""
        changed: dict[Key, tuple[Object | None, Object | None]] = {}
        for key, item in [*((key, None) for key in removed), *((key_of(item), item) for item in put)]:
            old = self._objects[key[0]].get(key[1])
            if old != item:
                changed[key] = (changed.get(key, (old, None))[0], item)
                self._store(key, old, item)
        if any(kind is Kind.POLICY for kind, _ in changed):
            self._table = PolicyTable(self._of(Kind.POLICY, Policy).values())
        return self._consequences(changed)

    # ---- what concerns what -------------------------------------------------------------

    def _consequences(self, changed: Mapping[Key, tuple[Object | None, Object | None]]) -> Todo:
        todo = Todo()
        endpoints: set[str] = set()
        pairs: set[Pair] = set()
        for (kind, name), (old, new) in changed.items():
            match kind:
                case Kind.NETWORK:
                    _note(todo.networks, self._told.networks, name, self._network(name))
                    endpoints |= self._members.get(name, set())
                    pairs |= self._pairs_in(name)
                case Kind.HOST:
                    # Other tunnel ends here are other ways to everywhere.
                    names = self._objects[Kind.ENDPOINT].keys() if name == self.host else self._placed.get(name, set())
                    endpoints |= set(names)
                    pairs |= {pair for one in names for pair in self._pairs_of(one)}
                case Kind.ENDPOINT:
                    endpoints.add(name)
                    pairs |= self._pairs_of(name)
                    pairs |= self._filtered.get(name, set())
                    if old is not None:
                        key = (cast(Endpoint, old).network, name)
                        if new is None or cast(Endpoint, new).network != key[0]:
                            _note(todo.endpoints, self._told.endpoints, key, None)
                case Kind.POLICY:
                    for policy in (old, new):
                        if policy is not None:
                            pairs |= self._pairs_under(cast(Policy, policy))
                case Kind.TRUST_DOMAIN:
                    pass  # what shares memory is no affair of the overlay's
        for pair in pairs:
            rules = self._filter(*pair)
            _note(todo.filters, self._told.filters, pair, rules)
            for name in pair:
                if rules is None:
                    _drop(self._filtered, name, pair)
                else:
                    self._filtered.setdefault(name, set()).add(pair)
        # Whether anybody here may reach an endpoint by RDMA depends on the filters.
        endpoints |= {name for pair in todo.filters for name in pair}
        endpoints |= self._neighbours(changed.values())
        for name in endpoints:
            endpoint = self.endpoint(name)
            if endpoint is not None:
                _note(todo.endpoints, self._told.endpoints, (endpoint.network, name), self._endpoint(endpoint))
        return todo

    def _neighbours(self, changed: Iterable[tuple[Object | None, Object | None]]) -> set[str]:
        """The endpoints that others may reach than before, now that endpoints of this host have changed."""
        own = [e for pair in changed for e in pair if isinstance(e, Endpoint) and self.here(e)]
        found: set[str] = set()
        for network in {endpoint.network for endpoint in own}:
            members = self._members.get(network, set())
            is_here = not members.isdisjoint(self._placed.get(self.host, set()))
            # Without filters one is like another.
            if self._filtered or is_here != (network in self._networks_here):
                found |= members
            (self._networks_here.add if is_here else self._networks_here.discard)(network)
        return found

    def _pairs_of(self, name: str) -> set[Pair]:
        """The pairs that an endpoint is in, and that have an end on this host."""
        endpoint = self.endpoint(name)
        if endpoint is None:
            return set()
        members = self._members.get(endpoint.network, set())
        others = members if self.here(endpoint) else members & self._placed.get(self.host, set())
        return {pair for other in others if other != name for pair in ((name, other), (other, name))}

    def _pairs_in(self, network: str) -> set[Pair]:
        locals_ = self._members.get(network, set()) & self._placed.get(self.host, set())
        return {pair for name in locals_ for pair in self._pairs_of(name)}

    def _pairs_under(self, policy: Policy) -> set[Pair]:
        """The pairs that a policy is about, either way: its rules are for what comes back, too."""
        found: set[Pair] = set()
        for name in self._placed.get(self.host, set()):
            one = self.endpoint(name)
            for other_name in self._members.get(one.network, set()) if one is not None else ():
                other = self.endpoint(other_name)
                if one is None or other is None or one is other:
                    continue
                for source, destination in ((one, other), (other, one)):
                    if selects(policy.source, source) and selects(policy.destination, destination):
                        found |= {(name, other_name), (other_name, name)}
        return found

    # ---- what is wished -------------------------------------------------------------------

    def _network(self, name: str) -> NetworkWish | None:
        network = self._of(Kind.NETWORK, Network).get(name)
        return NetworkWish(network.vni, network.mtu) if network is not None else None

    def _endpoint(self, endpoint: Endpoint) -> EndpointWish | None:
        """None: it has no address yet, or its network is not known."""
        network = self._of(Kind.NETWORK, Network).get(endpoint.network)
        if network is None or not endpoint.mac:
            return None
        mac = bytes.fromhex(endpoint.mac.replace(":", ""))
        ips = tuple(ip.packed for ip in endpoint.ips)
        if self.here(endpoint):
            return EndpointWish(mac, ips, port=endpoint.port or endpoint.name)
        hosts = self._of(Kind.HOST, Host)
        here, there = hosts.get(self.host), hosts.get(endpoint.host)
        if here is None or there is None:
            return EndpointWish(mac, ips)
        wish = EndpointWish(mac, ips, host=endpoint.host)
        way = tunnel(here, there, network)
        if isinstance(way, Tunnel):
            wish = replace(wish, way=way, mtu=min(network.mtu, way.mtu))
        link = self._rdma(here, there, endpoint)
        return replace(wish, rdma=link, rdma_mtu=network.mtu) if link is not None else wish

    def _rdma(self, here: Host, there: Host, endpoint: Endpoint) -> RdmaLink | None:
        """How RDMA leads to an endpoint, if `decide` lets any endpoint of this host take it."""
        if HostState.LOST in (here.state, there.state):
            return None
        link = rdma_link(here, there)
        if not isinstance(link, RdmaLink):
            return None
        for name in self._members.get(endpoint.network, set()) & self._placed.get(self.host, set()):
            rules = self._told.filters.get((name, endpoint.name))
            if rules is None or rules.paths.rdma:
                return link
        return None

    def _filter(self, source: str, destination: str) -> PairFilter | None:
        """None: everything passes, or an end is not there."""
        one, other = self.endpoint(source), self.endpoint(destination)
        if one is None or other is None or one.network != other.network or not self._table.policies:
            return None
        if not (self.here(one) or self.here(other)):
            return None
        if not self._is_restricted(one, other):
            return None
        decision = decide(one, other, self.world)
        if decision.path is Path.NONE:
            return None  # there is no way, and the overlay says so
        carried = any(path in decision.usable for path in _CARRIED)
        scope = _scope(decision.rules + decision.back_rules) if carried else Scope.NOTHING
        paths = Paths(Path.RDMA in decision.usable, Path.VXLAN in decision.usable)
        return PairFilter(decision.rules, decision.back_rules, scope, carried, paths)

    def _is_restricted(self, one: Endpoint, other: Endpoint) -> bool:
        return any(
            selects(policy.source, source) and selects(policy.destination, destination)
            for policy in self._table.policies
            for source, destination in ((one, other), (other, one))
        )

    # ---- the objects -------------------------------------------------------------------------

    def _store(self, key: Key, old: Object | None, new: Object | None) -> None:
        kind, name = key
        if isinstance(old, Endpoint):
            _drop(self._members, old.network, name)
            _drop(self._placed, old.host, name)
        if isinstance(new, Endpoint):
            self._members.setdefault(new.network, set()).add(name)
            self._placed.setdefault(new.host, set()).add(name)
        if new is None:
            self._objects[kind].pop(name, None)
        else:
            self._objects[kind][name] = new

    def _of(self, kind: Kind, _cls: type[T]) -> dict[str, T]:
        return cast(dict[str, T], self._objects[kind])

    @property
    def _domains(self) -> dict[str, TrustDomain]:
        return self._of(Kind.TRUST_DOMAIN, TrustDomain)


def _scope(rules: Rules) -> Scope:
    """The least that has to be looked at to tell what passes."""
    if any(rule.ports is not None for rule in rules):
        return Scope.PORTS
    return Scope.NOTHING if all(rule.protocol is None for rule in rules) else Scope.PROTOCOL


def _note(todo: dict[K, V | None], told: dict[K, V | None], key: K, wish: V | None) -> None:
    """Note what is another one than was told before."""
    if told.get(key) == wish:
        return
    todo[key] = wish
    if wish is None:
        told.pop(key, None)
    else:
        told[key] = wish


def _drop(index: dict[str, set[K]], key: str, item: K) -> None:
    names = index.get(key, set())
    names.discard(item)
    if not names:
        index.pop(key, None)
