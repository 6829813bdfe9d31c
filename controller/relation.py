# SPDX-License-Identifier: Apache-2.0
"""Indexes whose cost per change does not grow with all there is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, KeysView, Set
from typing import Generic, TypeVar

from controller.model import Endpoint, Selector

T = TypeVar("T")
# One fact about an endpoint that a selector can ask for: ("endpoint", name), ("network", name), ("label", key, value)…
Fact = tuple[str, ...]
_NOTHING: dict[str, int] = {}


class Relation:
    """Which things concern which hosts, each pair counted: it holds until it was dropped as often as it was added."""

    def __init__(self) -> None:
        self._hosts: dict[str, dict[str, int]] = defaultdict(dict)
        self._things: dict[str, dict[str, int]] = defaultdict(dict)

    def add(self, thing: str, host: str) -> None:
        """Count the pair once more."""
        self._set(thing, host, self.count(thing, host) + 1)

    def drop(self, thing: str, host: str) -> None:
        """Count the pair once less; it was added before."""
        self._set(thing, host, self.count(thing, host) - 1)

    def drop_all(self, thing: str) -> None:
        """Forget all pairs of `thing`."""
        for host in list(self.hosts(thing)):
            self._set(thing, host, 0)

    def _set(self, thing: str, host: str, count: int) -> None:
        for table, one, other in ((self._hosts, thing, host), (self._things, host, thing)):
            if count:
                table[one][other] = count
            else:
                del table[one][other]
                if not table[one]:
                    del table[one]

    def count(self, thing: str, host: str) -> int:
        """How often the pair was added, less how often it was dropped."""
        return self._hosts.get(thing, _NOTHING).get(host, 0)

    def hosts(self, thing: str) -> KeysView[str]:
        """The hosts that `thing` concerns."""
        return self._hosts.get(thing, _NOTHING).keys()

    def things(self, host: str) -> KeysView[str]:
        """What concerns `host`."""
        return self._things.get(host, _NOTHING).keys()


class Buckets(Generic[T]):
    """Things found by facts; each thing stands under the facts that it was added with."""

    def __init__(self) -> None:
        self._buckets: dict[Fact, set[T]] = {}

    def add(self, facts: Iterable[Fact], thing: T) -> None:
        """Put `thing` under each fact."""
        for fact in facts:
            self._buckets.setdefault(fact, set()).add(thing)

    def drop(self, facts: Iterable[Fact], thing: T) -> None:
        """Take `thing` from under each fact."""
        for fact in facts:
            bucket = self._buckets[fact]
            bucket.discard(thing)
            if not bucket:
                del self._buckets[fact]

    def under(self, fact: Fact) -> Set[T]:
        """What stands under `fact`; the caller does not keep it."""
        return self._buckets.get(fact, frozenset())


ANY: Fact = ("any",)


def facts_of(endpoint: Endpoint) -> list[Fact]:
    """Every fact about `endpoint` that `asked_by` can return, and its host."""
    facts: list[Fact] = [ANY, ("endpoint", endpoint.name), ("network", endpoint.network)]
    if endpoint.host:
        facts.append(("host", endpoint.host))
    if endpoint.trust_domain:
        facts.append(("domain", endpoint.trust_domain))
    return facts + [("label", key, value) for key, value in endpoint.labels]


def asked_by(selector: Selector) -> list[Fact]:
    """Facts of which each endpoint that `selector` selects has at least one; the most telling field is asked."""
    if selector.endpoints:
        return [("endpoint", name) for name in selector.endpoints]
    if selector.labels:
        return [("label", *selector.labels[0])]
    if selector.trust_domains:
        return [("domain", name) for name in selector.trust_domains]
    if selector.networks:
        return [("network", name) for name in selector.networks]
    return [ANY]
