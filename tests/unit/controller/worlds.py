# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies for the controller's objects: few names, so that they meet, and every form of each field."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address

from hypothesis import strategies as st

from controller import model as m
from controller.scalars import AddressRange, PortRange

HOSTS = ["h1", "h2", "h3"]
NETWORKS = ["blue", "red"]
DOMAINS = ["app", "db"]
ENDPOINTS = ["web0", "web1", "db0", "db1", "x.y-z_1"]
LABELS = st.dictionaries(st.sampled_from(["tier", "env"]), st.sampled_from(["a", "b", ""])).map(
    lambda given: tuple(sorted(given.items()))
)


def addresses() -> st.SearchStrategy[IPv4Address | IPv6Address]:
    return st.sampled_from(
        [ipaddress.ip_address(a) for a in ("10.0.0.1", "10.0.0.2", "192.0.2.9", "fd00::1", "fd00::2", "fe80::1")]
    )


def uplinks() -> st.SearchStrategy[m.Uplink]:
    return st.builds(
        m.Uplink,
        name=st.sampled_from(["up0", "up1"]),
        ips=st.lists(addresses(), max_size=2, unique=True).map(tuple),
        mtu=st.sampled_from([68, 1280, 1350, 1500, 9000]),
        speed=st.sampled_from([0, 10_000, 100_000]),
    )


GIDS = ["::ffff:10.0.0.1", "::ffff:10.0.0.2", "fd00::1", "fd00::2", "fe80::1", "fe80::2", "::"]


@st.composite
def rdma_ports(draw: st.DrawFn) -> m.RdmaPort:
    layer = draw(st.sampled_from(m.LinkLayer))
    infiniband = layer is m.LinkLayer.INFINIBAND
    return m.RdmaPort(
        device=draw(st.sampled_from(["mlx5_0", "rxe0"])),
        port=draw(st.integers(1, 2)),
        gid=IPv6Address(draw(st.sampled_from(GIDS))),
        link_layer=layer,
        gid_type=m.GidType.IB_ROCE_V1 if infiniband else draw(st.sampled_from(m.GidType)),
        state=draw(st.sampled_from(m.RdmaState)),
        mtu=draw(st.sampled_from([256, 1024, 4096])),
    )


def capabilities() -> st.SearchStrategy[m.Capabilities]:
    return st.builds(
        m.Capabilities,
        cores=st.integers(0, 64),
        memory=st.integers(0, 2**40),
        uplinks=st.lists(uplinks(), max_size=2, unique=True).map(tuple),
        rdma=st.lists(rdma_ports(), max_size=2, unique=True).map(tuple),
        pmds=st.frozensets(st.sampled_from(["net_af_xdp", "net_tap"])),
        features=st.frozensets(st.sampled_from(m.Feature)),
    )


def hosts(names: list[str] = HOSTS) -> st.SearchStrategy[m.Host]:
    return st.builds(
        m.Host,
        name=st.sampled_from(names),
        capabilities=capabilities(),
        state=st.sampled_from(m.HostState),
        since=st.sampled_from([0.0, 1.5, 1e9]),
        epoch=st.integers(0, 3),
    )


def networks(names: list[str] = NETWORKS) -> st.SearchStrategy[m.Network]:
    def network(name: str, shape: int, mtu: int) -> m.Network:
        number = 1 + (["blue", "red"].index(name) if name in NETWORKS else 2)
        v4, v6 = ipaddress.ip_network(f"10.{number}.0.0/16"), ipaddress.ip_network(f"fd00:{number}::/64")
        return m.Network(
            name=name,
            vni=100 + number,
            subnets=((), (v4,), (v6,), (v4, v6))[shape],
            gateways=((), (v4[1],), (), (v4[1], v6[1]))[shape],
            excluded=((), (AddressRange(v4[4], v4[9]),), (AddressRange(v6[7], v6[7]),), ())[shape],
            mtu=mtu,
        )

    return st.builds(network, st.sampled_from(names), st.integers(0, 3), st.sampled_from([1280, 1500, 9000]))


def domains(names: list[str] = DOMAINS) -> st.SearchStrategy[m.TrustDomain]:
    return st.builds(m.TrustDomain, name=st.sampled_from(names), mode=st.sampled_from(m.TrustMode))


def endpoints(names: list[str] = ENDPOINTS) -> st.SearchStrategy[m.Endpoint]:
    return st.builds(
        m.Endpoint,
        name=st.sampled_from(names),
        network=st.sampled_from([*NETWORKS, "blue", "blue"]),
        mac=st.sampled_from(["", "02:00:00:00:00:01"]),
        ips=st.lists(addresses(), max_size=2, unique=True).map(tuple),
        trust_domain=st.sampled_from(["", *DOMAINS, "app", "gone"]),
        host=st.sampled_from(["", *HOSTS, "h1", "h2"]),
        port=st.sampled_from(["", "p1"]),
        port_type=st.sampled_from(m.PortType),
        labels=LABELS,
        generation=st.integers(0, 3),
    )


def _some(names: list[str]) -> st.SearchStrategy[frozenset[str]]:
    return st.just(frozenset[str]()) | st.frozensets(st.sampled_from(names), max_size=2)


def selectors() -> st.SearchStrategy[m.Selector]:
    return st.just(m.Selector()) | st.builds(
        m.Selector,
        networks=_some(NETWORKS),
        trust_domains=_some(DOMAINS),
        endpoints=_some(ENDPOINTS),
        labels=st.just(()) | LABELS,
    )


def port_ranges() -> st.SearchStrategy[PortRange]:
    numbers = st.sampled_from([0, 1, 79, 80, 81, 443, 8080, 65535])
    return st.tuples(numbers, numbers).map(lambda ends: PortRange(min(ends), max(ends)))


@st.composite
def l4_matches(draw: st.DrawFn) -> m.L4Match:
    protocol = draw(st.sampled_from([1, 6, 17, 6, 58, 132, 253]))
    ports = draw(st.lists(port_ranges(), max_size=2, unique=True)) if protocol in (6, 17, 132) else []
    return m.L4Match(protocol, tuple(ports))


@st.composite
def policies(draw: st.DrawFn, names: list[str] | None = None, action: m.Action | None = None) -> m.Policy:
    action = action or draw(st.sampled_from(m.Action))
    l4 = tuple(draw(st.lists(l4_matches(), max_size=2, unique=True)))
    with_paths = action is m.Action.ALLOW and not l4 and draw(st.booleans())
    paths = draw(st.frozensets(st.sampled_from(sorted(m.USABLE_PATHS)), min_size=1)) if with_paths else None
    return m.Policy(
        name=draw(st.sampled_from(names or ["p1", "p2", "p3", "p4"])),
        action=action,
        priority=draw(st.sampled_from([0, 100, 100, 200])),
        source=draw(selectors()),
        destination=draw(selectors()),
        l4=l4,
        paths=paths,
    )


def objects() -> st.SearchStrategy[m.Object]:
    return st.one_of(hosts(), networks(), domains(), endpoints(), policies())
