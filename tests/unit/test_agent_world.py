# SPDX-License-Identifier: Apache-2.0
"""What follows for a switch from what its host was told: by changes, and all at once."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address, ip_address, ip_network
from random import Random
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st

from controller import model as m
from controller.decide import decide
from controller.model import Key, Kind, Object, key_of
from controller.scalars import PortRange
from tests.unit.controller import worlds
from vswitch.slowpath.agent.world import EndpointWish, HostWorld, NetworkWish, PairFilter, Todo
from vswitch.slowpath.overlay import Paths, Scope

BLUE = m.Network("blue", 100, (ip_network("10.0.0.0/24"),), mtu=1500)


def host(name: str, ip: str, mtu: int = 1500) -> m.Host:
    return m.Host(name, m.Capabilities(uplinks=(m.Uplink("up0", (ip_address(ip),), mtu),)))


def endpoint(name: str, where: str, number: int) -> m.Endpoint:
    return m.Endpoint(name, "blue", f"02:00:00:00:00:{number:02x}", (ip_address(f"10.0.0.{number}"),), host=where)


H1, H2 = host("h1", "192.0.2.1"), host("h2", "192.0.2.2")
WEB, DB, FAR = endpoint("web", "h1", 1), endpoint("db", "h1", 2), endpoint("far", "h2", 3)
ALL = (H1, H2, BLUE, WEB, DB, FAR)


K = TypeVar("K")
V = TypeVar("V")


def add(total: Todo, todo: Todo) -> None:
    _add(total.networks, todo.networks)
    _add(total.endpoints, todo.endpoints)
    _add(total.filters, todo.filters)


def _add(have: dict[K, V | None], new: dict[K, V | None]) -> None:
    for key, wish in new.items():
        if wish is None:
            assert have.pop(key, None) is not None, f"{key} was not there"
        else:
            have[key] = wish


def test_what_a_host_is_told() -> None:
    todo = HostWorld("h1").apply(ALL, ())
    assert todo.networks == {"blue": NetworkWish(100, 1500)}
    assert todo.endpoints["blue", "web"] == EndpointWish(bytes([2, 0, 0, 0, 0, 1]), (bytes([10, 0, 0, 1]),), port="web")
    far = todo.endpoints["blue", "far"]
    assert far is not None
    assert far.way is not None
    assert (str(far.way.local), str(far.way.remote), far.way.uplink, far.mtu) == ("192.0.2.1", "192.0.2.2", "up0", 1450)
    assert todo.filters == {}


def test_a_move_takes_the_port_away() -> None:
    world = HostWorld("h1")
    world.apply(ALL, ())
    todo = world.apply([replace(WEB, host="h2")], ())
    moved = todo.endpoints["blue", "web"]
    assert moved is not None
    assert moved.port == ""
    assert moved.way is not None
    assert (todo.networks, todo.filters) == ({}, {})


def test_what_does_not_matter_changes_nothing() -> None:
    world = HostWorld("h1")
    world.apply(ALL, ())
    assert world.apply([replace(H2, since=7.0), replace(WEB, generation=9), WEB], [(Kind.ENDPOINT, "nobody")]) == Todo()


def test_a_host_without_a_way() -> None:
    world = HostWorld("h1")
    todo = world.apply([H1, BLUE, WEB, FAR], ())
    assert todo.endpoints["blue", "far"] == EndpointWish(bytes([2, 0, 0, 0, 0, 3]), (bytes([10, 0, 0, 3]),))
    assert world.apply([H2], ()).endpoints["blue", "far"] != todo.endpoints["blue", "far"]


def deny(protocol: int, *ports: int) -> m.Policy:
    match = m.L4Match(protocol, tuple(PortRange(port, port) for port in ports))
    return m.Policy("p", m.Action.DENY, l4=(match,), destination=m.Selector(endpoints=frozenset({"far"})))


def filter_of(*policies: m.Policy) -> PairFilter | None:
    return HostWorld("h1").apply([*ALL, *policies], ()).filters.get(("web", "far"))


def test_filters_look_at_the_least() -> None:
    assert filter_of() is None
    assert filter_of(replace(deny(6), destination=m.Selector(networks=frozenset({"red"})))) is None
    protocol, ports = filter_of(deny(6)), filter_of(deny(6, 80))
    both_ways = filter_of(deny(6, 80), m.Policy("q", m.Action.DENY, source=m.Selector(endpoints=frozenset({"far"}))))
    assert protocol is not None
    assert ports is not None
    assert both_ways is not None
    assert (protocol.scope, ports.scope) == (Scope.PROTOCOL, Scope.PORTS)
    assert not both_ways.permits(6, 5000, 80)
    assert ports.permits(17, 5000, 80)
    paths = m.Policy("only", m.Action.ALLOW, paths=frozenset({m.Path.RDMA}))
    nothing = filter_of(paths)
    assert nothing is not None
    assert (nothing.scope, nothing.permits(17, 1, 2)) == (Scope.NOTHING, False)


def test_a_policy_goes_with_its_filters() -> None:
    world = HostWorld("h1")
    world.apply([*ALL, deny(6)], ())
    assert set(world.apply((), [(Kind.POLICY, "p")]).filters.values()) == {None}


def change(rng: Random, known: dict[Key, Object]) -> tuple[list[Object], list[Key]]:
    """A few objects put, a few removed, as one message of a controller has them."""
    put = [worlds.any_object(rng) for _ in range(rng.randint(0, 4))]
    put = [
        replace(item, mac="02:00:00:00:00:01") if isinstance(item, m.Endpoint) and not item.mac else item
        for item in put
    ]
    put = list({key_of(item): item for item in put}.values())
    gone = [key for key in worlds.some(rng, sorted(known), 2) if all(key_of(item) != key for item in put)]
    return put, gone


@given(st.integers(0, 2**32 - 1))
def test_changes_add_up_to_the_state(seed: int) -> None:
    rng = Random(seed)
    world, total = HostWorld("h1"), Todo()
    known: dict[Key, Object] = {}
    for _ in range(rng.randint(1, 12)):
        put, gone = change(rng, known)
        for key in gone:
            known.pop(key)
        known.update({key_of(item): item for item in put})
        if rng.random() < 0.2:
            add(total, world.replace(list(known.values())))
        else:
            add(total, world.apply(put, gone))
        fresh = Todo()
        add(fresh, HostWorld("h1").apply(known.values(), ()))
        assert total == fresh
    assert {key_of(item) for item in world.all()} == known.keys()


def rdma_host(rng: Random, name: str, ip: str) -> m.Host:
    gid = ip_address(f"::ffff:{ip}")
    assert isinstance(gid, IPv6Address)
    state = rng.choice([m.RdmaState.ACTIVE, m.RdmaState.ACTIVE, m.RdmaState.DOWN])
    port = m.RdmaPort("rxe0", 1, gid, m.LinkLayer.ETHERNET, m.GidType.ROCE_V2, state)
    uplinks = (m.Uplink("up0", (ip_address(ip),)),) if rng.random() < 0.8 else ()
    capable = m.Capabilities(uplinks=uplinks, rdma=(port,) if rng.random() < 0.9 else ())
    return m.Host(name, capable, m.HostState.LOST if name == "h2" and rng.random() < 0.1 else m.HostState.UP)


def rdma_policy(rng: Random) -> m.Policy:
    names = [m.Selector(endpoints=frozenset(worlds.some(rng, ENDPOINTS, 2))) for _ in range(2)]
    source, destination = (selector if selector.endpoints else m.Selector() for selector in names)
    kind = rng.choice(["allow", "deny", "rdma", "vxlan"])
    paths = frozenset({m.Path(kind)}) if kind in ("rdma", "vxlan") else None
    action = m.Action.DENY if kind == "deny" else m.Action.ALLOW
    return m.Policy(f"p{rng.randint(1, 3)}", action, rng.randint(0, 3), source, destination, paths=paths)


ENDPOINTS = ["a", "b", "c", "d"]


def rdma_change(rng: Random, known: dict[Key, Object]) -> tuple[list[Object], list[Key]]:
    """As `change`, of two hosts that mostly reach each other by RDMA."""
    number = rng.randrange(4)
    some_endpoint = endpoint(ENDPOINTS[number], rng.choice(["h1", "h2"]), number + 1)
    put: list[Object] = [BLUE, rdma_policy(rng) if rng.random() < 0.5 else some_endpoint]
    for name, ip in (("h1", "192.0.2.1"), ("h2", "192.0.2.2")):
        if rng.random() < 0.3 or (Kind.HOST, name) not in known:
            put.append(rdma_host(rng, name, ip))
    gone = [key for key in worlds.some(rng, sorted(known), 1) if all(key_of(item) != key for item in put)]
    return put, gone if rng.random() < 0.3 else []


@given(st.integers(0, 2**32 - 1))
def test_rdma_and_vxlan_are_for_whom_decide_says(seed: int) -> None:
    """A flow has the ways that its pair's decision has, and no host gets a peer without such a pair."""
    rng = Random(seed)
    world, total = HostWorld("h1"), Todo()
    known: dict[Key, Object] = {}
    for _ in range(rng.randint(1, 15)):
        put, gone = rdma_change(rng, known)
        known = {key: item for key, item in known.items() if key not in gone}
        known.update({key_of(item): item for item in put})
        add(total, world.apply(put, gone))
    endpoints = [item for item in known.values() if isinstance(item, m.Endpoint)]
    for other in endpoints:
        wish = total.endpoints.get((other.network, other.name))
        if wish is None or other.host == "h1":
            continue
        by_rdma = False
        for one in endpoints:
            if one.host != "h1":
                continue
            decision = decide(one, other, world.world)
            rules = total.filters.get((one.name, other.name))
            carried, paths = (rules.carried, rules.paths) if rules is not None else (True, Paths())
            assert (carried and paths.rdma and wish.rdma is not None) == (decision.rdma is not None)
            assert (carried and paths.vxlan and wish.way is not None) == (decision.tunnel is not None)
            assert decision.rdma in (None, wish.rdma)
            by_rdma |= decision.rdma is not None
        assert by_rdma == (wish.rdma is not None)
