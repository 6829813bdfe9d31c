# SPDX-License-Identifier: Apache-2.0
"""What each host has to know, and what changes there when an object changes.

A host knows: itself and the hosts it shares a network with, the networks of its endpoints with all their endpoints,
and the trust domains and policies that concern its own endpoints. That is what `decide` takes for every pair that has
an end there. A change costs in proportion to the hosts that it concerns.
"""

from __future__ import annotations

from collections.abc import Iterable, KeysView, Mapping
from dataclasses import dataclass
from typing import cast

from controller.decide import World
from controller.model import Endpoint, Host, Key, Kind, Network, Object, Policy, Selector, TrustDomain, key_of
from controller.policy import PolicyTable, selects, subjects
from controller.relation import Buckets, Relation, asked_by, facts_of


@dataclass(frozen=True, slots=True)
class Change:
    """An object as it is from now on; None when it is gone."""

    key: Key
    item: Object | None

    @classmethod
    def put(cls, item: Object) -> Change:
        """The change that creates or replaces `item`."""
        return cls(key_of(item), item)


@dataclass(frozen=True, slots=True)
class Delta:
    """What a host has to learn, and what it has to forget. Hosts that get the same share one Delta."""

    put: tuple[Object, ...] = ()
    removed: tuple[Key, ...] = ()

    def apply(self, desired: dict[Key, Object]) -> None:
        """Bring what a host knew up to date."""
        for key in self.removed:
            del desired[key]
        desired.update((key_of(item), item) for item in self.put)


_Candidates = set[tuple[str, Key]]


class ClusterView:
    """All objects, and per host what concerns it."""

    def __init__(self, objects: Iterable[Object] = ()) -> None:
        self._objects: dict[Kind, dict[str, Object]] = {kind: {} for kind in Kind}
        self._networks = Relation()  # counted by local endpoints
        self._domains = Relation()  # likewise
        self._policies = Relation()  # likewise: those that the policy can be about
        self._endpoints = Buckets[str]()
        self._selectors = Buckets[str]()
        self._table: PolicyTable | None = None
        for item in objects:
            self._replace(key_of(item), item)

    @property
    def objects(self) -> Mapping[Kind, Mapping[str, Object]]:
        """All objects by kind and name; read only."""
        return self._objects

    @property
    def world(self) -> World:
        """What `decide` looks at; it follows later changes, except in its policies."""
        if self._table is None:
            self._table = PolicyTable(cast(dict[str, Policy], self._objects[Kind.POLICY]).values())
        return World(
            cast(dict[str, Host], self._objects[Kind.HOST]),
            cast(dict[str, Network], self._objects[Kind.NETWORK]),
            cast(dict[str, TrustDomain], self._objects[Kind.TRUST_DOMAIN]),
            self._table,
        )

    def endpoint(self, name: str) -> Endpoint | None:
        """The endpoint of that name."""
        return cast(dict[str, Endpoint], self._objects[Kind.ENDPOINT]).get(name)

    def endpoints_of(self, network: str) -> list[Endpoint]:
        """The endpoints of a network, by name."""
        known = cast(dict[str, Endpoint], self._objects[Kind.ENDPOINT])
        return [known[name] for name in sorted(self._endpoints.under(("network", network)))]

    def endpoints_on(self, host: str) -> list[Endpoint]:
        """The endpoints that are placed on a host, by name."""
        known = cast(dict[str, Endpoint], self._objects[Kind.ENDPOINT])
        return [known[name] for name in sorted(self._endpoints.under(("host", host)))]

    def selected_by(self, selector: Selector) -> list[Endpoint]:
        """The endpoints that `selector` selects, by name."""
        known = cast(dict[str, Endpoint], self._objects[Kind.ENDPOINT])
        names = {name for fact in asked_by(selector) for name in self._endpoints.under(fact)}
        return [known[name] for name in sorted(names) if selects(selector, known[name])]

    def desired_for(self, host: str) -> dict[Key, Object]:
        """Everything that `host` has to know; a name that never registered is a host as well."""
        keys = self.besides_networks(host)
        for network in self.networks_of(host):
            keys += self.keys_of(network)
        return {key: self._objects[key[0]][key[1]] for key in sorted(keys)}

    def networks_of(self, host: str) -> KeysView[str]:
        """The networks that `host` has endpoints in, whether they exist or not."""
        return self._networks.things(host)

    def keys_of(self, network: str) -> list[Key]:
        """What a host with an endpoint in a network has to know of it: the network and its endpoints."""
        own = [(Kind.NETWORK, network)] if network in self._objects[Kind.NETWORK] else []
        return own + [(Kind.ENDPOINT, name) for name in self._endpoints.under(("network", network))]

    def besides_networks(self, host: str) -> list[Key]:
        """What `host` has to know besides `keys_of` its networks."""
        peers = {peer for network in self.networks_of(host) for peer in self._networks.hosts(network)} | {host}
        keys = [(Kind.TRUST_DOMAIN, name) for name in self._domains.things(host)]
        keys += [(Kind.HOST, name) for name in peers]
        keys += [(Kind.POLICY, name) for name in self._policies.things(host)]
        return [key for key in keys if key[1] in self._objects[key[0]]]

    def count_on(self, host: str) -> int:
        """How many endpoints are placed on a host."""
        return len(self._endpoints.under(("host", host)))

    def apply(self, change: Change) -> dict[str, Delta]:
        """Take in a change; returns the hosts concerned, each with what changes there."""
        old = self._objects[change.key[0]].get(change.key[1])
        if old == change.item:
            return {}
        candidates = self._candidates(change.key, old, change.item)
        before = {pair: self._known(*pair) for pair in candidates}
        self._replace(change.key, change.item)
        learned: dict[str, list[Key]] = {}
        forgotten: dict[str, list[Key]] = {}
        for (host, key), had in before.items():
            has = self._known(host, key)
            if has is None and had is not None:
                forgotten.setdefault(host, []).append(key)
            elif has is not None and has is not had:
                learned.setdefault(host, []).append(key)
        return self._shared(learned, forgotten)

    def _shared(self, learned: dict[str, list[Key]], forgotten: dict[str, list[Key]]) -> dict[str, Delta]:
        deltas: dict[tuple[tuple[Key, ...], tuple[Key, ...]], Delta] = {}
        result = {}
        for host in sorted(learned.keys() | forgotten.keys()):
            keys = tuple(sorted(learned.get(host, ()))), tuple(sorted(forgotten.get(host, ())))
            if keys not in deltas:
                deltas[keys] = Delta(tuple(self._objects[kind][name] for kind, name in keys[0]), keys[1])
            result[host] = deltas[keys]
        return result

    def _known(self, host: str, key: Key) -> Object | None:
        """The object, if it concerns `host`."""
        kind, name = key
        item = self._objects[kind].get(name)
        if item is None:
            return None
        match kind:
            case Kind.TRUST_DOMAIN:
                concerns = self._domains.count(name, host) > 0
            case Kind.NETWORK:
                concerns = self._networks.count(name, host) > 0
            case Kind.POLICY:
                concerns = self._policies.count(name, host) > 0
            case Kind.HOST:
                concerns = name == host or not self._networks.things(name).isdisjoint(self._networks.things(host))
            case Kind.ENDPOINT:
                concerns = self._networks.count(cast(Endpoint, item).network, host) > 0
        return item if concerns else None

    # ---- which hosts may be concerned: all that are, perhaps more ----

    def _candidates(self, key: Key, old: Object | None, new: Object | None) -> _Candidates:
        kind, name = key
        hosts: set[str] = set()
        match kind:
            case Kind.TRUST_DOMAIN:
                hosts.update(self._domains.hosts(name))
            case Kind.NETWORK:
                hosts.update(self._networks.hosts(name))
            case Kind.HOST:
                hosts.add(name)
                for network in self._networks.things(name):
                    hosts.update(self._networks.hosts(network))
            case Kind.POLICY:
                hosts.update(self._policies.hosts(name))
                if new is not None:
                    hosts.update(endpoint.host for endpoint in self._subjects(cast(Policy, new)) if endpoint.host)
            case Kind.ENDPOINT:
                return self._endpoint_candidates(cast(Endpoint | None, old), cast(Endpoint | None, new))
        return {(host, key) for host in hosts}

    def _endpoint_candidates(self, old: Endpoint | None, new: Endpoint | None) -> _Candidates:
        versions = [endpoint for endpoint in (old, new) if endpoint is not None]
        own = {endpoint.host for endpoint in versions if endpoint.host}
        concerned = set(own)
        found: _Candidates = set()
        for endpoint in versions:
            concerned.update(self._networks.hosts(endpoint.network))
            if not endpoint.host:
                continue
            keys = [(Kind.NETWORK, endpoint.network), (Kind.TRUST_DOMAIN, endpoint.trust_domain)]
            keys += [(Kind.POLICY, name) for name in self._policies_about(endpoint)]
            # The first of a network's endpoints on a host brings all the others and their hosts along, and brings its
            # own host to them; the last takes all that away.
            if self._networks.count(endpoint.network, endpoint.host) == (1 if endpoint is old else 0):
                members = self._endpoints.under(("network", endpoint.network))
                keys += [(Kind.ENDPOINT, name) for name in members]
                peers = self._networks.hosts(endpoint.network) | own
                keys += [(Kind.HOST, peer) for peer in peers]
                found.update((peer, (Kind.HOST, endpoint.host)) for peer in peers)
            found.update((endpoint.host, key) for key in keys)
        found.update((host, (Kind.ENDPOINT, versions[0].name)) for host in concerned)
        return found

    # ---- the indexes ----

    def _replace(self, key: Key, new: Object | None) -> None:
        kind, name = key
        old = self._objects[kind].get(name)
        if kind is Kind.ENDPOINT:
            self._index_endpoint(cast(Endpoint | None, old), cast(Endpoint | None, new))
        if new is None:
            self._objects[kind].pop(name, None)
        else:
            self._objects[kind][name] = new
        if kind is Kind.POLICY:
            self._index_policy(name, cast(Policy | None, old), cast(Policy | None, new))

    def _index_endpoint(self, old: Endpoint | None, new: Endpoint | None) -> None:
        for endpoint, count in ((old, Relation.drop), (new, Relation.add)):
            if endpoint is None or not endpoint.host:
                continue
            count(self._networks, endpoint.network, endpoint.host)
            if endpoint.trust_domain:
                count(self._domains, endpoint.trust_domain, endpoint.host)
            for name in self._policies_about(endpoint):
                count(self._policies, name, endpoint.host)
        if old is not None:
            self._endpoints.drop(facts_of(old), old.name)
        if new is not None:
            self._endpoints.add(facts_of(new), new.name)

    def _index_policy(self, name: str, old: Policy | None, new: Policy | None) -> None:
        self._table = None
        self._policies.drop_all(name)
        for policy, change in ((old, self._selectors.drop), (new, self._selectors.add)):
            if policy is not None:
                # Both ends may ask for the same fact, and a fact is dropped once.
                change({fact for end in subjects(policy) for fact in asked_by(end)}, name)
        for endpoint in self._subjects(new) if new is not None else ():
            if endpoint.host:
                self._policies.add(name, endpoint.host)

    def _subjects(self, policy: Policy) -> list[Endpoint]:
        """The endpoints that a policy is about, at either end."""
        return list({e.name: e for end in subjects(policy) for e in self.selected_by(end)}.values())

    def _policies_about(self, endpoint: Endpoint) -> list[str]:
        known = cast(dict[str, Policy], self._objects[Kind.POLICY])
        names = {name for fact in facts_of(endpoint) for name in self._selectors.under(fact)}
        return [name for name in names if any(selects(end, endpoint) for end in subjects(known[name]))]
