# SPDX-License-Identifier: Apache-2.0
"""What must hold between objects: names that exist, numbers and addresses that are nobody else's."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from controller.codec import Field, nearest
from controller.model import Endpoint, Key, Kind, Network, Object, Policy

Objects = Mapping[Kind, Mapping[str, Object]]
_WHAT = {Kind.NETWORK: "network", Kind.TRUST_DOMAIN: "trust domain", Kind.HOST: "host"}


@dataclass(frozen=True, slots=True)
class Problem:
    """A field of an object does not go with another object."""

    key: Key
    field: Field
    problem: str


def check(objects: Objects, touched: Iterable[Key]) -> list[Problem]:
    """What is wrong with `objects` because of those that were changed or removed, `touched`; empty when all is well."""
    keys = set(touched)
    present = [key for key in sorted(keys) if key[1] in objects[key[0]]]
    problems: list[Problem] = []
    if any(kind is Kind.NETWORK for kind, _ in present):
        problems += _networks(cast(Mapping[str, Network], objects[Kind.NETWORK]), keys)
    for kind, name in present:
        match objects[kind][name]:
            case Policy() as policy:
                problems += _policy(policy, objects)
            case Endpoint() as endpoint:
                problems += _references(endpoint, objects)
    endpoints = cast(Mapping[str, Endpoint], objects[Kind.ENDPOINT])
    changed = [endpoints[name] for kind, name in present if kind is Kind.ENDPOINT]
    resized = {name for kind, name in present if kind is Kind.NETWORK}
    problems += _addresses(endpoints, changed, resized, objects)
    problems += _left_behind(keys - set(present), objects, keys)
    return problems


def _unknown(kind: Kind, name: str, objects: Objects) -> str:
    return f"there is no {_WHAT[kind]} {name}: {nearest(name, objects[kind])}"


def _references(endpoint: Endpoint, objects: Objects) -> Iterator[Problem]:
    named = (
        ("network", Kind.NETWORK, endpoint.network),
        ("trust_domain", Kind.TRUST_DOMAIN, endpoint.trust_domain),
        ("host", Kind.HOST, endpoint.host),
    )
    for field, kind, name in named:
        if name and name not in objects[kind]:
            yield Problem((Kind.ENDPOINT, endpoint.name), (field,), _unknown(kind, name, objects))


def _policy(policy: Policy, objects: Objects) -> Iterator[Problem]:
    """Endpoints may come later than the policies that name them; a network or trust domain may not."""
    for end, selector in (("from", policy.source), ("to", policy.destination)):
        lists = (
            ("networks", Kind.NETWORK, selector.networks),
            ("trust_domains", Kind.TRUST_DOMAIN, selector.trust_domains),
        )
        for field, kind, names in lists:
            for name in sorted(names - objects[kind].keys()):
                yield Problem((Kind.POLICY, policy.name), (end, field), _unknown(kind, name, objects))


def _networks(networks: Mapping[str, Network], touched: set[Key]) -> Iterator[Problem]:
    """One VNI a network; and no two subnets overlap: a container in both could not tell whom an address means."""
    by_vni: dict[int, str] = {}
    # A network that stood there before is named as the other one.
    ordered = sorted(networks.values(), key=lambda n: ((Kind.NETWORK, n.name) in touched, n.name))
    for network in ordered:
        other = by_vni.setdefault(network.vni, network.name)
        if other != network.name:
            yield Problem((Kind.NETWORK, network.name), ("vni",), f"{network.vni} is network {other}'s: choose another")
    position = {network.name: number for number, network in enumerate(ordered)}
    spans = sorted(
        (subnet.version, int(subnet.network_address), subnet.prefixlen, network.name, number)
        for network in ordered
        for number, subnet in enumerate(network.subnets)
    )
    open_spans: list[tuple[int, int, str, int]] = []
    for version, first, _, name, number in spans:
        open_spans = [span for span in open_spans if span[0] == version and span[1] >= first]
        for _, _, other, other_number in open_spans:
            if other != name:
                mine, theirs = (name, number), (other, other_number)
                late, early = sorted((mine, theirs), key=lambda one: position[one[0]], reverse=True)
                subnet, before = networks[late[0]].subnets[late[1]], networks[early[0]].subnets[early[1]]
                words = f"{subnet} overlaps {before} of network {early[0]}: choose another"
                yield Problem((Kind.NETWORK, late[0]), ("subnets", late[1]), words)
        open_spans.append((version, int(networks[name].subnets[number].broadcast_address), name, number))


def _addresses(
    endpoints: Mapping[str, Endpoint], changed: list[Endpoint], resized: set[str], objects: Objects
) -> Iterator[Problem]:
    """An endpoint's addresses lie in its network's subnets, and nobody else there has them or its MAC."""
    concerned = resized | {endpoint.network for endpoint in changed}
    if not concerned:
        return
    names = {endpoint.name for endpoint in changed}
    owners: dict[tuple[str, object], str] = {}
    members = [endpoint for endpoint in endpoints.values() if endpoint.network in concerned]
    for endpoint in sorted(members, key=lambda e: (e.name in names, e.name)):
        key = (Kind.ENDPOINT, endpoint.name)
        network = objects[Kind.NETWORK].get(endpoint.network)
        for number, ip in enumerate(endpoint.ips):
            subnets = cast(Network, network).subnets if network is not None else ()
            if network is not None and not any(ip in subnet for subnet in subnets):
                has = ", ".join(map(str, subnets)) or "it has no subnet"
                yield Problem(key, ("ips", number), f"{ip} is not in network {endpoint.network} ({has})")
            other = owners.setdefault((endpoint.network, ip), endpoint.name)
            if other != endpoint.name:
                yield Problem(
                    key, ("ips", number), f"{ip} is endpoint {other}'s in network {endpoint.network}: choose another"
                )
        other = owners.setdefault((endpoint.network, endpoint.mac), endpoint.name) if endpoint.mac else endpoint.name
        if other != endpoint.name:
            words = (
                f"{endpoint.mac} is endpoint {other}'s in network {endpoint.network}: choose another, or leave it out"
            )
            yield Problem(key, ("mac",), words)


def _left_behind(removed: set[Key], objects: Objects, touched: set[Key]) -> Iterator[Problem]:
    """What was removed must not be named any more; objects that were changed too have had their turn."""
    if not any(kind in _WHAT for kind, _ in removed):
        return
    problems: Iterator[Problem] = itertools.chain(
        *(_references(cast(Endpoint, endpoint), objects) for endpoint in objects[Kind.ENDPOINT].values()),
        *(_policy(cast(Policy, policy), objects) for policy in objects[Kind.POLICY].values()),
    )
    for problem in problems:
        if problem.key not in touched:
            yield problem
