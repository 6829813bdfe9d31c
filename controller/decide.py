# SPDX-License-Identifier: Apache-2.0
"""Which path two endpoints use, and why not a better one.

`decide` is a pure function of the objects, so every replica and every agent comes to the same answer. The path is the
same in both directions; what may be opened is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from controller.links import RdmaLink, Tunnel, rdma_link, tunnel
from controller.model import (
    LOCAL_PATHS,
    REMOTE_PATHS,
    SHARED_MEMORY,
    Endpoint,
    Feature,
    Host,
    HostState,
    Network,
    Path,
    PortType,
    TrustDomain,
    TrustMode,
)
from controller.policy import PolicyTable, Rules, allowed, any_allowed, denying, may_use, of_protocol
from controller.reasons import Code, Reason

_TCP = 6


@dataclass(frozen=True, slots=True)
class World:
    """All that a decision looks at besides the two endpoints."""

    hosts: Mapping[str, Host]
    networks: Mapping[str, Network]
    trust_domains: Mapping[str, TrustDomain]
    policies: PolicyTable = field(default_factory=PolicyTable)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A path that would be better than the one chosen, and everything that stands against it."""

    path: Path
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """What `decide` found for packets from `source` to `destination`.

    `usable` holds every path that may be used now, the best first: an agent falls back along it without asking. `path`
    is the first of them. `refused` are the better ones. `rules` say what `source` may open, `back_rules` what
    `destination` may. `mtu` is the largest IP packet that `path` carries, and what it may fall back
    to; 0: there is none.
    """

    source: str
    destination: str
    path: Path
    reasons: tuple[Reason, ...]
    usable: tuple[Path, ...] = ()
    refused: tuple[Refusal, ...] = ()
    rules: Rules = ()
    back_rules: Rules = ()
    mtu: int = 0
    mode: TrustMode | None = None
    rdma: RdmaLink | None = None
    tunnel: Tunnel | None = None

    def permits(self, protocol: int, source_port: int | None = None, destination_port: int | None = None) -> bool:
        """Whether a packet from `source` to `destination` passes: it opens, or it answers what was opened."""
        opens = allowed(self.rules, protocol, destination_port)
        return bool(self.usable) and (opens or allowed(self.back_rules, protocol, source_port))


def decide(source: Endpoint, destination: Endpoint, world: World) -> Decision:
    """The path from `source` to `destination`; total: every input has an answer, and the reasons say why."""
    obstacles = _obstacles(source, destination, world)
    if obstacles:
        return Decision(source.name, destination.name, Path.NONE, obstacles)
    rules = world.policies.rules(source, destination)
    back_rules = world.policies.rules(destination, source)
    if not any_allowed(rules + back_rules):
        reasons = tuple(_denied_by(rules + back_rules, Code.POLICY_DENIES))
        return Decision(source.name, destination.name, Path.DENIED, reasons, rules=rules, back_rules=back_rules)
    pair = _Pair(source, destination, world, rules, back_rules)
    return pair.on_one_host() if source.host == destination.host else pair.across_hosts()


def _obstacles(source: Endpoint, destination: Endpoint, world: World) -> tuple[Reason, ...]:
    """Why there is no path at all, whatever policies and capabilities say."""
    if source.name == destination.name:
        return (Reason(Code.SAME_ENDPOINT, f"endpoint {source.name}"),)
    if source.network != destination.network:
        return (Reason(Code.NETWORKS_DIFFER, f"{source.network} and {destination.network}"),)
    found = []
    if source.network not in world.networks:
        found.append(Reason(Code.NETWORK_UNKNOWN, f"network {source.network}"))
    for endpoint in (source, destination):
        if not endpoint.host:
            found.append(Reason(Code.NOT_PLACED, f"endpoint {endpoint.name}"))
        elif endpoint.host not in world.hosts:
            found.append(Reason(Code.HOST_UNKNOWN, f"host {endpoint.host}"))
    return tuple(dict.fromkeys(found))


def _denied_by(rules: Rules, code: Code) -> list[Reason]:
    return [Reason(code, f"policy {name}") for name in denying(rules)]


class _Pair:
    """Two endpoints of one network on known hosts, between which something is allowed."""

    def __init__(self, source: Endpoint, destination: Endpoint, world: World, rules: Rules, back_rules: Rules) -> None:
        self.source, self.destination, self.world = source, destination, world
        self.rules, self.back_rules = rules, back_rules
        self.network = world.networks[source.network]
        self.hosts = (world.hosts[source.host], world.hosts[destination.host])
        self.path_policy = world.policies.paths(source, destination)

    def on_one_host(self) -> Decision:
        against = {
            Path.ZERO_COPY: [*self._untrusted(), *self._no_zero_copy()],
            Path.SHM_STREAM: [*self._untrusted(), *self._no_sockets()],
            Path.SWITCHED: [],
        }
        return self._choose(LOCAL_PATHS, against, None, None)

    def across_hosts(self) -> Decision:
        link = rdma_link(*self.hosts)
        way = tunnel(*self.hosts, self.network)
        against = {path: [Reason(Code.HOSTS_DIFFER, " and ".join(h.name for h in self.hosts))] for path in LOCAL_PATHS}
        against[Path.RDMA] = [*self._lost(), *([link] if isinstance(link, Reason) else [])]
        against[Path.VXLAN] = [way] if isinstance(way, Reason) else []
        return self._choose(
            LOCAL_PATHS + REMOTE_PATHS,
            against,
            link if isinstance(link, RdmaLink) else None,
            way if isinstance(way, Tunnel) else None,
        )

    def _choose(
        self, candidates: tuple[Path, ...], against: dict[Path, list[Reason]], link: RdmaLink | None, way: Tunnel | None
    ) -> Decision:
        policy = self.path_policy
        forbidden = [path for path in candidates if not against[path] and not may_use(policy, path)]
        for path in candidates:
            if policy is not None and not may_use(policy, path):
                against[path].append(Reason(Code.POLICY_PATHS, f"policy {policy.name}"))
        usable = tuple(path for path in candidates if not against[path])
        if usable:
            path, reasons = usable[0], [Reason(Code.BEST_POSSIBLE)]
        elif forbidden and policy is not None:
            path, reasons = Path.DENIED, [Reason(Code.POLICY_PATHS, f"policy {policy.name}")]
        else:
            path, reasons = Path.NONE, list(dict.fromkeys(r for p in candidates for r in against[p]))
        better = candidates[: candidates.index(path)] if usable else candidates
        mtu = self._mtu(path, way if Path.VXLAN in usable else None)
        if usable:
            reasons += self._notes(path, mtu)
        return Decision(
            source=self.source.name,
            destination=self.destination.name,
            path=path,
            reasons=tuple(reasons),
            usable=usable,
            refused=tuple(Refusal(p, tuple(against[p])) for p in better),
            rules=self.rules,
            back_rules=self.back_rules,
            mtu=mtu,
            mode=self._mode() if not SHARED_MEMORY.isdisjoint(usable) else None,
            rdma=link if Path.RDMA in usable else None,
            tunnel=way if Path.VXLAN in usable else None,
        )

    def _mode(self) -> TrustMode:
        return self.world.trust_domains[self.source.trust_domain].mode

    def _mtu(self, path: Path, way: Tunnel | None) -> int:
        if path in (Path.DENIED, Path.NONE):
            return 0
        # `rdma` carries more, but its flows fall back to VXLAN at any time.
        return min(self.network.mtu, way.mtu) if way else self.network.mtu

    def _notes(self, path: Path, mtu: int) -> list[Reason]:
        """What somebody who looks at a chosen path should know besides."""
        notes = self._lost()
        if not any_allowed(self.rules):
            notes += _denied_by(self.rules, Code.OPENING_DENIED)
        if mtu < self.network.mtu:
            notes.append(Reason(Code.MTU_REDUCED, f"{mtu} of {self.network.mtu} bytes"))
        return notes

    def _lost(self) -> list[Reason]:
        hosts = dict.fromkeys(self.hosts)
        return [Reason(Code.HOST_LOST, f"host {host.name}") for host in hosts if host.state is HostState.LOST]

    def _untrusted(self) -> list[Reason]:
        """What stands against sharing memory, by whatever means."""
        one, other = self.source, self.destination
        found = [
            Reason(Code.NO_TRUST_DOMAIN, f"endpoint {endpoint.name}")
            for endpoint in (one, other)
            if not endpoint.trust_domain
        ]
        if not found and one.trust_domain != other.trust_domain:
            found = [Reason(Code.TRUST_DOMAINS_DIFFER, f"{one.trust_domain} and {other.trust_domain}")]
        elif not found and one.trust_domain not in self.world.trust_domains:
            found = [Reason(Code.TRUST_DOMAIN_UNKNOWN, f"trust domain {one.trust_domain}")]
        return found + self._lost()

    def _no_zero_copy(self) -> list[Reason]:
        found = [
            Reason(Code.NOT_FF_PORT, f"endpoint {endpoint.name} is on a {endpoint.port_type} port")
            for endpoint in (self.source, self.destination)
            if endpoint.port_type is not PortType.FF
        ]
        if Feature.FF_PORTS not in self.hosts[0].capabilities.features:
            found.append(Reason(Code.HOST_LACKS_FF, f"host {self.hosts[0].name}"))
        # The switch's core sees no packet of a shortcut, so nothing there could tell a denied port from another.
        return found + _denied_by(self.rules + self.back_rules, Code.POLICY_FILTERS)

    def _no_sockets(self) -> list[Reason]:
        found = [
            Reason(Code.NOT_KERNEL_PORT, f"endpoint {endpoint.name} is on a {endpoint.port_type} port")
            for endpoint in (self.source, self.destination)
            if endpoint.port_type is not PortType.PMD
        ]
        if Feature.SOCKETS not in self.hosts[0].capabilities.features:
            found.append(Reason(Code.HOST_LACKS_SOCKETS, f"host {self.hosts[0].name}"))
        # A TCP connection is opened through the switch, which checks its port: only TCP as a whole matters here.
        if not any_allowed(of_protocol(self.rules, _TCP) + of_protocol(self.back_rules, _TCP)):
            found += _denied_by(self.rules + self.back_rules, Code.POLICY_FILTERS)
        return found
