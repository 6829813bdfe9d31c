# SPDX-License-Identifier: Apache-2.0
"""What each host knows: deltas against the plain definition, written out once more without any index."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from controller import model as m
from controller.decide import World, decide
from controller.policy import PolicyTable, selects
from controller.view import Change, ClusterView, Delta
from tests.unit.controller import worlds


def change(rng: Random) -> Change:
    item = worlds.any_object(rng) if rng.random() < 0.5 else worlds.endpoint(rng)
    return Change.put(item) if rng.random() < 0.75 else Change(m.key_of(item), None)


def concerns(item: m.Object, host: str, objects: dict[m.Key, m.Object]) -> bool:
    """Whether `host` has to know `item`."""
    placed = [o for o in objects.values() if isinstance(o, m.Endpoint) and o.host]
    local = [e for e in placed if e.host == host]
    networks = {e.network for e in local}
    match item:
        case m.Endpoint():
            return item.network in networks
        case m.Network():
            return item.name in networks
        case m.TrustDomain():
            return any(e.trust_domain == item.name for e in local)
        case m.Host():
            return item.name == host or any(e.host == item.name and e.network in networks for e in placed)
        case m.Policy():
            ends = ((item.source, item.destination), (item.destination, item.source))
            return any(
                selects(one, e) and (not other.networks or e.network in other.networks)
                for e in local
                for one, other in ends
            )


@settings(max_examples=200)
@given(st.lists(worlds.seeded(change), max_size=40))
def test_deltas_lead_to_what_each_host_has_to_know(changes: list[Change]) -> None:
    view = ClusterView()
    objects: dict[m.Key, m.Object] = {}
    known: dict[str, dict[m.Key, m.Object]] = {host: {} for host in worlds.HOSTS}
    for made in changes:
        before = {host: dict(items) for host, items in known.items()}
        deltas = view.apply(made)
        if made.item is None:
            objects.pop(made.key, None)
        else:
            objects[made.key] = made.item
        for host, delta in deltas.items():
            delta.apply(known[host])
            assert known[host] != before[host], "a host was told what it knew"
            assert not {m.key_of(item) for item in delta.put} & set(delta.removed)
        for host in worlds.HOSTS:
            wanted = {key: item for key, item in objects.items() if concerns(item, host, objects)}
            assert known[host] == wanted
            assert view.desired_for(host) == wanted
    again = ClusterView(reversed(objects.values()))
    assert all(again.desired_for(host) == known[host] for host in worlds.HOSTS)


@settings(max_examples=100)
@given(st.lists(worlds.seeded(change), max_size=40))
def test_a_host_decides_as_the_controller_does(changes: list[Change]) -> None:
    view = ClusterView()
    for made in changes:
        view.apply(made)
    endpoints = [e for name in worlds.ENDPOINTS if (e := view.endpoint(name)) is not None]
    for source in endpoints:
        desired = view.desired_for(source.host).values() if source.host else []
        local = World(
            {o.name: o for o in desired if isinstance(o, m.Host)},
            {o.name: o for o in desired if isinstance(o, m.Network)},
            {o.name: o for o in desired if isinstance(o, m.TrustDomain)},
            PolicyTable(o for o in desired if isinstance(o, m.Policy)),
        )
        for destination in endpoints:
            if source.host and source.network == destination.network:
                assert decide(source, destination, local) == decide(source, destination, view.world)


def cluster(hosts: int, networks: int) -> list[m.Object]:
    """Each network on two hosts of its own, one endpoint on each."""
    made: list[m.Object] = [m.Host(f"h{n}") for n in range(hosts)]
    made += [m.Network(f"n{n}", n + 1) for n in range(networks)]
    ends = ((n, host) for n in range(networks) for host in (2 * n, 2 * n + 1))
    return made + [m.Endpoint(f"e{host}", f"n{n}", host=f"h{host % hosts}") for n, host in ends]


def test_a_move_concerns_only_the_hosts_of_its_network() -> None:
    view = ClusterView(cluster(40, 20))
    moved = view.endpoint("e0")
    assert moved is not None
    deltas = view.apply(Change.put(replace(moved, host="h39")))
    assert sorted(deltas) == ["h0", "h1", "h39"]
    assert deltas["h1"] == Delta((replace(moved, host="h39"), m.Host("h39")), ((m.Kind.HOST, "h0"),))
    assert deltas["h0"].removed == (
        (m.Kind.ENDPOINT, "e0"),
        (m.Kind.ENDPOINT, "e1"),
        (m.Kind.HOST, "h1"),
        (m.Kind.NETWORK, "n0"),
    )
    assert view.apply(Change.put(replace(moved, host="h39"))) == {}


def test_hosts_that_learn_the_same_share_a_delta() -> None:
    objects: list[m.Object] = [m.Network("n", 1), *(m.Endpoint(f"e{n}", "n", host=f"h{n}") for n in range(10))]
    deltas = ClusterView(objects).apply(Change.put(m.Endpoint("new", "n", host="h0")))
    assert len(deltas) == 10
    assert len({id(delta) for delta in deltas.values()}) == 1
