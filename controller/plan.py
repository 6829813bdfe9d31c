# SPDX-License-Identifier: Apache-2.0
"""What `ffctl apply` would change, in which order, and what that means for pairs that talk now."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import cast

from controller.codec import to_json
from controller.decide import decide
from controller.model import Endpoint, Host, HostState, Key, Kind, Object, Path, Policy, Selector, key_of
from controller.policy import narrowed_by, subjects
from controller.reasons import Code, Reason
from controller.scalars import Address
from controller.view import Change, ClusterView

# What others refer to comes first; policies stand before the endpoints that they are to hold back.
_ORDER = {kind: number for number, kind in enumerate(Kind)}
MOST_PAIRS = 20_000


class Operation(StrEnum):
    """What happens to an object."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Step:
    """One object's change; `fields` are the JSON names of those that differ, in the order of the class."""

    operation: Operation
    change: Change
    fields: tuple[str, ...] = ()

    def __str__(self) -> str:
        kind, name = self.change.key
        fields = f" ({', '.join(self.fields)})" if self.fields else ""
        return f"{self.operation} {kind} {name}{fields}"


@dataclass(frozen=True, slots=True)
class Effect:
    """What becomes of a pair that talks now: another path, less that may be opened, or nothing at all."""

    source: str
    destination: str
    before: Path
    after: Path
    reasons: tuple[Reason, ...]

    def __str__(self) -> str:
        pair = f"{self.source} ↔ {self.destination} (live)"
        cause = "; ".join(dict.fromkeys(reason.about for reason in self.reasons if reason.about))
        if self.after in (Path.DENIED, Path.NONE):
            return f"{cause} would cut {pair}" if self.after is Path.DENIED else f"{pair} would lose its path: {cause}"
        if self.after is self.before:
            return f"{cause} would filter {pair}"
        return f"{pair} would go from {self.before} to {self.after}"


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps in the order in which to take them. `after` is what all objects would be.

    `effects` are sorted by pair; `complete` is false when there were too many pairs to look at all of them.
    """

    steps: tuple[Step, ...]
    after: ClusterView
    effects: tuple[Effect, ...] = ()
    complete: bool = True


def plan(
    current: ClusterView,
    desired: Iterable[Object],
    *,
    prune: bool = False,
    keep: Container[Key] = frozenset(),
    most_pairs: int = MOST_PAIRS,
) -> Plan:
    """The way from `current` to `desired`; `prune` deletes what `desired` does not name, except hosts with an agent.

    What stands in `keep` is not pruned: agents made it. `current` is only read. Fields that agents and IPAM fill in
    stay as they are where `desired` leaves them empty.
    """
    settled = {key_of(item): _settle(item, current) for item in desired}
    steps = [step for key, item in settled.items() if (step := _step(key, item, current)) is not None]
    if prune:
        known = [(key_of(item), item) for items in current.objects.values() for item in items.values()]
        steps += [
            Step(Operation.DELETE, Change(key, None))
            for key, item in known
            if key not in settled and key not in keep and (not isinstance(item, Host) or item.agentless)
        ]
    steps.sort(key=_place)
    after = ClusterView(item for items in current.objects.values() for item in items.values())
    for step in steps:
        after.apply(step.change)
    pairs = list(itertools.islice(_pairs(steps, current, after), most_pairs + 1))
    effects = [effect for one, other in pairs[:most_pairs] if (effect := _effect(one, other, current, after))]
    effects.sort(key=lambda effect: (effect.source, effect.destination))
    return Plan(tuple(steps), after, tuple(effects), len(pairs) <= most_pairs)


def _place(step: Step) -> tuple[bool, int, str]:
    kind, name = step.change.key
    gone = step.operation is Operation.DELETE
    return gone, -_ORDER[kind] if gone else _ORDER[kind], name


def _settle(item: Object, current: ClusterView) -> Object:
    """`item` with what is not for a manifest to say."""
    old = current.objects[key_of(item)[0]].get(item.name)
    if isinstance(item, Host) and not item.agentless:
        # A host that never registered has not been heard.
        kept_host = isinstance(old, Host) and not old.agentless
        return cast(Host, old) if kept_host else replace(item, state=HostState.LOST)
    if not isinstance(item, Endpoint) or not isinstance(old, Endpoint):
        return item
    kept = replace(
        item,
        mac=item.mac or (old.mac if item.network == old.network else ""),
        ips=item.ips + _others(item, old),
        host=item.host or old.host,
        port=item.port or old.port,
        generation=old.generation,
    )
    return old if kept == old else replace(kept, generation=old.generation + 1)


def _others(item: Endpoint, old: Endpoint) -> tuple[Address, ...]:
    """The addresses that the endpoint has of the families that `item` names none of."""
    named = {address.version for address in item.ips}
    return tuple(ip for ip in old.ips if ip.version not in named) if item.network == old.network else ()


def _step(key: Key, item: Object, current: ClusterView) -> Step | None:
    old = current.objects[key[0]].get(key[1])
    if old is None:
        return Step(Operation.CREATE, Change.put(item))
    if old == item:
        return None
    before, now = to_json(old), to_json(item)
    fields = tuple(field for field in now if now[field] != before[field] and field != "generation")
    return Step(Operation.UPDATE, Change.put(item), fields)


def _pairs(steps: list[Step], before: ClusterView, after: ClusterView) -> Iterator[tuple[Endpoint, Endpoint]]:
    """The pairs, as they are now, that the steps may make a difference to; each once."""
    seen: set[tuple[str, str]] = set()
    for step in steps:
        for one, other in _pairs_of(step.change, before, after):
            pair = (min(one.name, other.name), max(one.name, other.name))
            if one.name != other.name and pair not in seen:
                seen.add(pair)
                yield one, other


def _pairs_of(change: Change, before: ClusterView, after: ClusterView) -> Iterator[tuple[Endpoint, Endpoint]]:
    kind, name = change.key
    if kind is Kind.POLICY:
        for view in (before, after):
            policy = view.objects[kind].get(name)
            ends = subjects(cast(Policy, policy)) if policy is not None else ()
            if ends:
                sides = [before.selected_by(end) for end in ends]
                by_network: dict[str, list[Endpoint]] = {}
                for endpoint in sides[1]:
                    by_network.setdefault(endpoint.network, []).append(endpoint)
                yield from ((one, other) for one in sides[0] for other in by_network.get(one.network, ()))
        return
    everybody = before.selected_by(Selector())
    match kind:
        case Kind.ENDPOINT:
            found = before.endpoint(name)
            touched = [found] if found is not None else []
        case Kind.NETWORK:
            touched = before.endpoints_of(name)
        case Kind.HOST:
            touched = [endpoint for endpoint in everybody if endpoint.host == name]
        case Kind.TRUST_DOMAIN:
            touched = [endpoint for endpoint in everybody if endpoint.trust_domain == name]
    yield from ((one, other) for one in touched for other in before.endpoints_of(one.network))


def _effect(one: Endpoint, other: Endpoint, before: ClusterView, after: ClusterView) -> Effect | None:
    """What the plan does to a pair that talks now; None when nothing, or when one of the two is deleted."""
    source, destination = sorted((one, other), key=lambda endpoint: endpoint.name)
    hosts = before.world.hosts
    if any(e.host not in hosts or hosts[e.host].state is HostState.LOST for e in (source, destination)):
        return None
    was = decide(source, destination, before.world)
    new_source, new_destination = after.endpoint(source.name), after.endpoint(destination.name)
    if not was.usable or new_source is None or new_destination is None:
        return None
    now = decide(new_source, new_destination, after.world)
    reasons = now.reasons
    if now.path is was.path:
        narrowing = {*narrowed_by(was.rules, now.rules), *narrowed_by(was.back_rules, now.back_rules)}
        if not narrowing:
            return None
        reasons = tuple(Reason(Code.POLICY_FILTERS, f"policy {policy}") for policy in sorted(narrowing))
    return Effect(source.name, destination.name, was.path, now.path, reasons)
