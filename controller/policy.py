# SPDX-License-Identifier: Apache-2.0
"""Which policy decides what one endpoint may open to another.

Policies are ranked: the higher priority goes first, then the more specific one, then the one that denies, then the
name. More specific is: endpoints named on more sides, then more labels, then trust domains, then networks, then ports
or at least a protocol. The first that matches decides; where none matches, a network's endpoints may talk.

A policy speaks of who *opens*: `from` opens to `to`, at the destination ports of `l4`. Answers always pass, and are
told from what opens without keeping state: what goes back has the opened port as its source port.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from controller.model import Action, Endpoint, Path, Policy, Selector
from controller.scalars import PORT_MAX, PortRange

ALL_PORTS = PortRange(0, PORT_MAX)
_PROTOCOL_COUNT = 256


@dataclass(frozen=True, slots=True)
class L4Rule:
    """One part of what may be opened: a protocol (None: all others), its destination ports (None: all), the verdict.

    `policy` names the policy that decided, and is empty where none matched.
    """

    protocol: int | None
    ports: PortRange | None
    action: Action
    policy: str


Rules = tuple[L4Rule, ...]


def selects(selector: Selector, endpoint: Endpoint) -> bool:
    """Whether `endpoint` fits every field of `selector` that is given."""
    return (
        (not selector.networks or endpoint.network in selector.networks)
        and (not selector.trust_domains or endpoint.trust_domain in selector.trust_domains)
        and (not selector.endpoints or endpoint.name in selector.endpoints)
        and (not selector.labels or all(pair in endpoint.labels for pair in selector.labels))
    )


def subjects(policy: Policy) -> tuple[Selector, ...]:
    """Selectors of the endpoints that `policy` can be about: its ends, each narrowed to the other's networks.

    Both ends of a pair are in one network, so one that names none takes those of the other.
    """
    ends = (policy.source, policy.destination)
    named = [end.networks for end in ends if end.networks]
    networks = frozenset.intersection(*named) if named else frozenset()
    return () if named and not networks else tuple(replace(end, networks=networks) for end in ends)


def _specificity(policy: Policy) -> tuple[int, ...]:
    sides = (policy.source, policy.destination)
    l4 = 0 if not policy.l4 else 2 if all(match.ports for match in policy.l4) else 1
    return (
        sum(bool(side.endpoints) for side in sides),
        sum(len(side.labels) for side in sides),
        sum(bool(side.trust_domains) for side in sides),
        sum(bool(side.networks) for side in sides),
        l4,
    )


def rank(policy: Policy) -> tuple[int, tuple[int, ...], bool, str]:
    """The key by which policies are sorted, the one that decides first."""
    specificity = tuple(-part for part in _specificity(policy))
    return (-policy.priority, specificity, policy.action is not Action.DENY, policy.name)


class PolicyTable:
    """Policies in the order in which they decide; the order in which they are given does not matter."""

    def __init__(self, policies: Iterable[Policy] = ()) -> None:
        self.policies = tuple(sorted(policies, key=rank))

    def rules(self, source: Endpoint, destination: Endpoint) -> Rules:
        """What `source` may open to `destination`: rules that do not overlap and that cover everything.

        Sorted by protocol and port; the rule for all other protocols is the last.
        """
        ranked = [p for p in self.policies if selects(p.source, source) and selects(p.destination, destination)]
        named = sorted({match.protocol for policy in ranked for match in policy.l4})
        others = next((p for p in ranked if not p.l4), None)
        last = _rule(None, None, others)
        rules = [rule for protocol in named for rule in _rules_of(protocol, ranked, last)]
        if len(named) < _PROTOCOL_COUNT:
            rules.append(last)
        return tuple(rules)

    def paths(self, one: Endpoint, other: Endpoint) -> Policy | None:
        """The policy that says which paths the pair may use: the first with such a list that matches either way."""
        for policy in self.policies:
            if policy.paths is None:
                continue
            there = selects(policy.source, one) and selects(policy.destination, other)
            if there or (selects(policy.source, other) and selects(policy.destination, one)):
                return policy
        return None


def _rule(protocol: int | None, ports: PortRange | None, policy: Policy | None) -> L4Rule:
    return L4Rule(protocol, ports, policy.action if policy else Action.ALLOW, policy.name if policy else "")


def _rules_of(protocol: int, ranked: list[Policy], last: L4Rule) -> list[L4Rule]:
    """The rules of one protocol: each policy takes the ports that those before it left."""
    free = [ALL_PORTS]
    taken: list[tuple[PortRange, Policy | None]] = []
    for policy in ranked:
        for ports in _ports_of(policy, protocol):
            taken += [(part, policy) for part in _overlap(free, ports)]
            free = _without(free, ports)
    taken += [(part, None) for part in free]
    taken.sort(key=lambda item: item[0])
    if all(_rule(None, None, policy) == last for _, policy in taken):
        return []
    merged = [taken[0]]
    for part, owner in taken[1:]:
        before, last_owner = merged[-1]
        if owner is last_owner:
            merged[-1] = (PortRange(before.first, part.last), owner)
        else:
            merged.append((part, owner))
    return [_rule(protocol, None if part == ALL_PORTS else part, policy) for part, policy in merged]


def _ports_of(policy: Policy, protocol: int) -> list[PortRange]:
    if not policy.l4:
        return [ALL_PORTS]
    matches = [match for match in policy.l4 if match.protocol == protocol]
    return [ports for match in matches for ports in (match.ports or (ALL_PORTS,))]


def _overlap(free: list[PortRange], ports: PortRange) -> list[PortRange]:
    parts = [PortRange(max(part.first, ports.first), min(part.last, ports.last)) for part in free]
    return [part for part in parts if part.first <= part.last]


def _without(free: list[PortRange], ports: PortRange) -> list[PortRange]:
    left = []
    for part in free:
        left.append(PortRange(part.first, min(part.last, ports.first - 1)))
        left.append(PortRange(max(part.first, ports.last + 1), part.last))
    # A part that lies beside `ports` gives itself once and an empty or reversed range once.
    return [part for part in left if part.first <= part.last]


def of_protocol(rules: Rules, protocol: int) -> Rules:
    """The part of `rules` that is about `protocol`."""
    return tuple(r for r in rules if r.protocol == protocol) or tuple(r for r in rules if r.protocol is None)


def any_allowed(rules: Rules) -> bool:
    """Whether `rules` let anything open."""
    return any(rule.action is Action.ALLOW for rule in rules)


def denying(rules: Rules) -> tuple[str, ...]:
    """The policies that deny something in `rules`."""
    return tuple(dict.fromkeys(rule.policy for rule in rules if rule.action is Action.DENY))


def allowed(rules: Rules, protocol: int, port: int | None) -> bool:
    """Whether `rules` let a packet of `protocol` to destination `port` open.

    None is the port of a packet that shows none, such as a later fragment: it passes where every port does.
    """
    mine = of_protocol(rules, protocol)
    if port is not None:
        mine = tuple(r for r in mine if r.ports is None or r.ports.first <= port <= r.ports.last)
    return all(rule.action is Action.ALLOW for rule in mine)


def may_use(policy: Policy | None, path: Path) -> bool:
    """Whether a policy found by `PolicyTable.paths` leaves `path`."""
    return policy is None or policy.paths is None or path in policy.paths


def narrowed_by(before: Rules, after: Rules) -> tuple[str, ...]:
    """The policies that deny in `after` something that `before` allowed."""
    both = before + after
    # Verdicts change at the ends of ranges only; any protocol that no rule names stands for all of those.
    named = {rule.protocol for rule in both if rule.protocol is not None}
    unnamed = next((number for number in range(_PROTOCOL_COUNT) if number not in named), None)
    ranges = [rule.ports for rule in both if rule.ports is not None]
    ports = {0, *(r.first for r in ranges), *(r.last + 1 for r in ranges if r.last < PORT_MAX)}
    found = set()
    for protocol in named if unnamed is None else named | {unnamed}:
        for port in ports:
            rule = _rule_at(after, protocol, port)
            if rule.action is Action.DENY and _rule_at(before, protocol, port).action is Action.ALLOW:
                found.add(rule.policy)
    return tuple(sorted(found))


def _rule_at(rules: Rules, protocol: int, port: int) -> L4Rule:
    fitting = of_protocol(rules, protocol)
    return next(rule for rule in fitting if rule.ports is None or rule.ports.first <= port <= rule.ports.last)
