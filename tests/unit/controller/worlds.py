# SPDX-License-Identifier: Apache-2.0
"""The controller's objects at random: few names, so that they meet, and every form of each field.

Each is made from one seed, and hypothesis draws the seeds: drawing every field costs a hundred times as much.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import IPv6Address
from random import Random
from typing import TypeVar

from hypothesis import strategies as st

from controller import model as m
from controller.scalars import AddressRange, PortRange

T = TypeVar("T")

HOSTS = ("h1", "h2", "h3")
NETWORKS = ("blue", "red")
DOMAINS = ("app", "db")
ENDPOINTS = ("web0", "web1", "db0", "db1", "x.y-z_1")
POLICIES = ("p1", "p2", "p3", "p4")
ADDRESSES = [ipaddress.ip_address(a) for a in ("10.0.0.1", "10.0.0.2", "192.0.2.9", "fd00::1", "fd00::2", "fe80::1")]
GIDS = ["::ffff:10.0.0.1", "::ffff:10.0.0.2", "fd00::1", "fd00::2", "fe80::1", "fe80::2", "::"]
PORT_ENDS = (0, 1, 79, 80, 81, 443, 8080, 65535)


def seeded(make: Callable[[Random], T]) -> st.SearchStrategy[T]:
    """What `make` returns for any seed."""
    return st.integers(0, 2**32 - 1).map(lambda seed: make(Random(seed)))


def some(rng: Random, items: Sequence[T], most: int) -> list[T]:
    """Up to `most` of the items, each once."""
    return rng.sample(list(items), rng.randint(0, min(most, len(items))))


def unique(rng: Random, make: Callable[[Random], T], most: int) -> tuple[T, ...]:
    """Up to `most` different things."""
    return tuple(dict.fromkeys(make(rng) for _ in range(rng.randint(0, most))))


def labels(rng: Random) -> tuple[tuple[str, str], ...]:
    return tuple((key, rng.choice(["a", "b", ""])) for key in ("env", "tier") if rng.random() < 0.4)


def uplink(rng: Random) -> m.Uplink:
    return m.Uplink(
        name=rng.choice(["up0", "up1"]),
        ips=tuple(some(rng, ADDRESSES, 2)),
        mtu=rng.choice([68, 1280, 1350, 1500, 9000]),
        speed=rng.choice([0, 10_000, 100_000]),
    )


def rdma_port(rng: Random) -> m.RdmaPort:
    infiniband = rng.random() < 0.3
    return m.RdmaPort(
        device=rng.choice(["mlx5_0", "rxe0"]),
        port=rng.randint(1, 2),
        gid=IPv6Address(rng.choice(GIDS)),
        link_layer=m.LinkLayer.INFINIBAND if infiniband else m.LinkLayer.ETHERNET,
        gid_type=m.GidType.IB_ROCE_V1 if infiniband or rng.random() < 0.2 else m.GidType.ROCE_V2,
        state=rng.choice([m.RdmaState.ACTIVE, m.RdmaState.ACTIVE, m.RdmaState.DOWN]),
        mtu=rng.choice([256, 1024, 4096]),
    )


def host(rng: Random) -> m.Host:
    capabilities = m.Capabilities(
        cores=rng.randint(0, 64),
        memory=rng.randint(0, 2**40),
        uplinks=unique(rng, uplink, 2),
        rdma=unique(rng, rdma_port, 2),
        pmds=frozenset(some(rng, ["net_af_xdp", "net_tap"], 2)),
        features=frozenset(some(rng, list(m.Feature), 2)),
    )
    state = rng.choice([m.HostState.UP, m.HostState.UP, m.HostState.LOST])
    return m.Host(rng.choice(HOSTS), capabilities, state, rng.choice([0.0, 1.5, 1e9]), rng.randint(0, 3))


def network(rng: Random) -> m.Network:
    name = rng.choice(NETWORKS)
    number = NETWORKS.index(name) + 1
    v4, v6 = ipaddress.ip_network(f"10.{number}.0.0/16"), ipaddress.ip_network(f"fd00:{number}::/64")
    shape = rng.randint(0, 3)
    return m.Network(
        name=name,
        vni=100 + number,
        subnets=((), (v4,), (v6,), (v4, v6))[shape],
        gateways=((), (v4[1],), (), (v4[1], v6[1]))[shape],
        excluded=((), (AddressRange(v4[4], v4[9]),), (AddressRange(v6[7], v6[7]),), ())[shape],
        mtu=rng.choice([1280, 1500, 9000]),
    )


def domain(rng: Random) -> m.TrustDomain:
    return m.TrustDomain(rng.choice(DOMAINS), rng.choice(list(m.TrustMode)))


def endpoint(rng: Random) -> m.Endpoint:
    return m.Endpoint(
        name=rng.choice(ENDPOINTS),
        network=rng.choice(["blue", "blue", "blue", "red"]),
        mac=rng.choice(["", "02:00:00:00:00:01"]),
        ips=tuple(some(rng, ADDRESSES, 2)),
        trust_domain=rng.choice(["", "app", "app", "app", "db", "gone"]),
        host=rng.choice(["", "h1", "h1", "h2", "h2", "h3"]),
        port=rng.choice(["", "p1"]),
        port_type=rng.choice(list(m.PortType)),
        labels=labels(rng),
        generation=rng.randint(0, 3),
    )


def selector(rng: Random) -> m.Selector:
    if rng.random() < 0.3:
        return m.Selector()

    def names(known: Sequence[str]) -> frozenset[str]:
        return frozenset(some(rng, known, 2)) if rng.random() < 0.5 else frozenset()

    return m.Selector(names(NETWORKS), names(DOMAINS), names(ENDPOINTS), labels(rng) if rng.random() < 0.3 else ())


def port_range(rng: Random) -> PortRange:
    first, last = sorted(rng.choices(PORT_ENDS, k=2))
    return PortRange(first, last)


def l4_match(rng: Random) -> m.L4Match:
    protocol = rng.choice([1, 6, 6, 17, 58, 132, 253])
    return m.L4Match(protocol, unique(rng, port_range, 2) if protocol in (6, 17, 132) else ())


def policy(rng: Random) -> m.Policy:
    action = rng.choice(list(m.Action))
    l4 = unique(rng, l4_match, 2)
    with_paths = action is m.Action.ALLOW and not l4 and rng.random() < 0.5
    return m.Policy(
        name=rng.choice(POLICIES),
        action=action,
        priority=rng.choice([0, 100, 100, 200]),
        source=selector(rng),
        destination=selector(rng),
        l4=l4,
        paths=frozenset(some(rng, sorted(m.USABLE_PATHS), 4)) | {m.Path.SWITCHED} if with_paths else None,
    )


def denial(rng: Random) -> m.Policy:
    """One more policy, which denies."""
    return replace(policy(rng), name="more", action=m.Action.DENY, paths=None)


def any_object(rng: Random) -> m.Object:
    makers: list[Callable[[Random], m.Object]] = [host, network, domain, endpoint, policy]
    return rng.choice(makers)(rng)
