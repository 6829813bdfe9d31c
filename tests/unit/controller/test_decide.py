# SPDX-License-Identifier: Apache-2.0
"""Which path two endpoints use: what must hold for any world, and each row of the table of paths."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path as File
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller import model as m
from controller.decide import Decision, World, decide
from controller.links import RdmaLink
from controller.model import Path
from controller.policy import PolicyTable, rank, selects
from controller.reasons import EXPLANATIONS, Code, Reason, table
from controller.scalars import PortRange
from tests.unit.controller import worlds

# Better is higher; whether a policy or the lack of a way ends a pair is no difference in quality.
RANK = {
    Path.NONE: 0,
    Path.DENIED: 0,
    Path.VXLAN: 1,
    Path.RDMA: 2,
    Path.SWITCHED: 1,
    Path.SHM_STREAM: 2,
    Path.ZERO_COPY: 3,
}
Case = tuple[m.Endpoint, m.Endpoint, list[m.Object]]
PROBES = [(p, port) for p in (1, 6, 17, 58, 132, 250, 253) for port in (0, 1, 78, 79, 80, 81, 82, 443, 8080, 65535)]


def case(rng: Random) -> Case:
    """Two endpoints, and what may be known besides: some of it is missing."""
    made: list[m.Object] = [worlds.host(rng) for _ in range(5)]
    made += [worlds.network(rng) for _ in range(4)]
    made += [worlds.domain(rng) for _ in range(3)]
    made += [worlds.policy(rng) for _ in range(rng.randint(0, 4))]
    return worlds.endpoint(rng), worlds.endpoint(rng), list({m.key_of(o): o for o in made}.values())


CASES = worlds.seeded(case)


def world(objects: list[m.Object]) -> World:
    return World(
        {o.name: o for o in objects if isinstance(o, m.Host)},
        {o.name: o for o in objects if isinstance(o, m.Network)},
        {o.name: o for o in objects if isinstance(o, m.TrustDomain)},
        PolicyTable(o for o in objects if isinstance(o, m.Policy)),
    )


@settings(max_examples=250)
@given(CASES)
def test_shared_memory_only_within_a_trust_domain_and_a_host(
    drawn: Case,
) -> None:
    one, other, objects = drawn
    found = decide(one, other, world(objects))
    if not m.SHARED_MEMORY.isdisjoint(found.usable):
        assert one.trust_domain == other.trust_domain != ""
        assert one.host == other.host != ""
    if one.network != other.network:
        assert found.path is Path.NONE
        assert not found.usable
        assert not found.permits(6, 80, 80)


@settings(max_examples=250)
@given(CASES)
def test_every_answer_is_whole(drawn: Case) -> None:
    one, other, objects = drawn
    found = decide(one, other, world(objects))
    assert found.reasons
    assert all(str(reason) and reason.advice for reason in found.reasons)
    assert found.usable == tuple(p for p in found.usable if p in m.USABLE_PATHS)
    assert found.path is (found.usable[0] if found.usable else found.path)
    assert bool(found.usable) == (found.path in m.USABLE_PATHS)
    assert all(refusal.reasons for refusal in found.refused)
    order = [*m.LOCAL_PATHS, *m.REMOTE_PATHS]
    if found.usable:
        local = one.host == other.host
        assert [r.path for r in found.refused] == order[: order.index(found.path)]
        assert set(found.usable) <= set(m.LOCAL_PATHS if local else m.REMOTE_PATHS)
        assert 0 < found.mtu <= world(objects).networks[one.network].mtu
    assert (found.rdma is not None) == (Path.RDMA in found.usable)
    assert (found.tunnel is not None) == (Path.VXLAN in found.usable)
    assert (found.mode is not None) == (not m.SHARED_MEMORY.isdisjoint(found.usable))


@settings(max_examples=250)
@given(CASES, st.integers(0, 2**32))
def test_replicas_agree(drawn: Case, seed: int) -> None:
    one, other, objects = drawn
    shuffled = list(objects)
    Random(seed).shuffle(shuffled)
    assert decide(one, other, world(shuffled)) == decide(one, other, world(objects))


@settings(max_examples=250)
@given(CASES)
def test_both_ends_see_the_same_path(drawn: Case) -> None:
    one, other, objects = drawn
    there, back = decide(one, other, world(objects)), decide(other, one, world(objects))
    assert (there.path, there.usable, there.mtu, there.mode) == (back.path, back.usable, back.mtu, back.mode)
    assert (there.rules, there.back_rules) == (back.back_rules, back.rules)
    if there.tunnel and back.tunnel:
        assert (there.tunnel.local, there.tunnel.remote) == (back.tunnel.remote, back.tunnel.local)
    assert back.rdma == (RdmaLink(there.rdma.remote, there.rdma.local, there.rdma.mtu) if there.rdma else None)


def more_capable(rng: Random, objects: list[m.Object]) -> list[m.Object]:
    """The same world where one host can do more than before."""
    number, host = rng.choice([(n, o) for n, o in enumerate(objects) if isinstance(o, m.Host)])
    caps = host.capabilities
    match rng.choice(["up", "uplink", "mtu", "rdma", "active", "feature", "pmd"]):
        case "up":
            host = replace(host, state=m.HostState.UP)
        case "uplink":
            caps = replace(caps, uplinks=(*caps.uplinks, worlds.uplink(rng)))
        case "mtu":
            caps = replace(caps, uplinks=tuple(replace(u, mtu=min(u.mtu + 500, 65535)) for u in caps.uplinks))
        case "rdma":
            caps = replace(caps, rdma=(worlds.rdma_port(rng), *caps.rdma))
        case "active":
            caps = replace(caps, rdma=tuple(replace(p, state=m.RdmaState.ACTIVE) for p in caps.rdma))
        case "feature":
            caps = replace(caps, features=caps.features | {rng.choice(list(m.Feature))})
        case "pmd":
            caps = replace(caps, pmds=caps.pmds | {"mlx5"})
    return [replace(host, capabilities=caps) if n == number else o for n, o in enumerate(objects)]


@settings(max_examples=250)
@given(CASES, st.integers(0, 2**32))
def test_more_capabilities_are_never_worse(drawn: Case, seed: int) -> None:
    one, other, objects = drawn
    before = decide(one, other, world(objects))
    after = decide(one, other, world(more_capable(Random(seed), objects)))
    assert RANK[after.path] >= RANK[before.path]
    assert set(after.usable) >= set(before.usable)
    if after.path is before.path:
        assert after.mtu >= before.mtu


@settings(max_examples=250)
@given(CASES, worlds.seeded(worlds.denial))
def test_one_more_denial_is_never_better(drawn: Case, denial: m.Policy) -> None:
    one, other, objects = drawn
    before, after = decide(one, other, world(objects)), decide(one, other, world([*objects, denial]))
    assert RANK[after.path] <= RANK[before.path]
    assert set(after.usable) <= set(before.usable)
    for protocol, port in PROBES:
        for back in (None, 80):
            assert before.permits(protocol, back, port) or not after.permits(protocol, back, port)


@settings(max_examples=250)
@given(CASES)
def test_rules_say_what_the_first_policy_that_matches_says(drawn: Case) -> None:
    one, other, objects = drawn
    policies = sorted((o for o in objects if isinstance(o, m.Policy)), key=rank)
    rules = PolicyTable(policies).rules(one, other)
    for protocol, port in PROBES:
        fitting = [r for r in rules if r.protocol == protocol] or [r for r in rules if r.protocol is None]
        [rule] = [r for r in fitting if r.ports is None or r.ports.first <= port <= r.ports.last]
        first = next((p for p in policies if _decides(p, one, other, protocol, port)), None)
        assert (rule.policy, rule.action) == ((first.name, first.action) if first else ("", m.Action.ALLOW))


def _decides(policy: m.Policy, one: m.Endpoint, other: m.Endpoint, protocol: int, port: int) -> bool:
    if not (selects(policy.source, one) and selects(policy.destination, other)):
        return False
    return not policy.l4 or any(
        match.protocol == protocol and (not match.ports or any(r.first <= port <= r.last for r in match.ports))
        for match in policy.l4
    )


# ---- one world, in which web0 and db0 could do everything ----

RDMA = m.RdmaPort("mlx5_0", 1, IPv6Address("::ffff:192.0.2.1"), m.LinkLayer.ETHERNET, m.GidType.ROCE_V2)
UPLINK = m.Uplink("up0", (ip_address("192.0.2.1"),), mtu=9000)
CAPABLE = m.Capabilities(uplinks=(UPLINK,), rdma=(RDMA,), features=frozenset(m.Feature))
H1 = m.Host("h1", CAPABLE)
H2 = m.Host(
    "h2",
    replace(
        CAPABLE,
        uplinks=(replace(UPLINK, ips=(ip_address("192.0.2.2"),)),),
        rdma=(replace(RDMA, gid=IPv6Address("::ffff:192.0.2.2")),),
    ),
)
BLUE = m.Network("blue", 100, (ip_network("10.1.0.0/16"),))
APP = m.TrustDomain("app", m.TrustMode.READ_ONLY)
WEB = m.Endpoint("web0", "blue", trust_domain="app", host="h1", port_type=m.PortType.FF)
DB = replace(WEB, name="db0")
FAR = replace(DB, host="h2")


def path(one: m.Endpoint, other: m.Endpoint, *objects: m.Object) -> Decision:
    """What is decided when `objects` stand instead of those of the same name, or besides."""
    known: dict[m.Key, m.Object] = {m.key_of(o): o for o in (H1, H2, BLUE, APP, *objects)}
    return decide(one, other, world(list(known.values())))


def codes(found: Decision) -> dict[Path, list[Code]]:
    return {refusal.path: [reason.code for reason in refusal.reasons] for refusal in found.refused}


def without(host: m.Host, **fields: object) -> m.Host:
    return replace(host, capabilities=replace(host.capabilities, **fields))  # type: ignore[arg-type]


def test_trusted_neighbours_share_memory() -> None:
    found = path(WEB, DB)
    assert found.path is Path.ZERO_COPY
    assert found.usable == (Path.ZERO_COPY, Path.SWITCHED)
    assert found.reasons == (Reason(Code.BEST_POSSIBLE),)
    assert (found.refused, found.mtu, found.mode) == ((), 1500, m.TrustMode.READ_ONLY)


def test_kernel_sockets_of_trusted_neighbours_are_paired() -> None:
    found = path(replace(WEB, port_type=m.PortType.PMD), replace(DB, port_type=m.PortType.PMD))
    assert found.usable == (Path.SHM_STREAM, Path.SWITCHED)
    assert codes(found) == {Path.ZERO_COPY: [Code.NOT_FF_PORT, Code.NOT_FF_PORT]}


LOCAL: list[tuple[m.Endpoint, m.Endpoint, list[m.Object], Code]] = [
    (WEB, replace(DB, trust_domain=""), [], Code.NO_TRUST_DOMAIN),
    (WEB, replace(DB, trust_domain="db"), [m.TrustDomain("db")], Code.TRUST_DOMAINS_DIFFER),
    (replace(WEB, trust_domain="x"), replace(DB, trust_domain="x"), [], Code.TRUST_DOMAIN_UNKNOWN),
    (WEB, replace(DB, port_type=m.PortType.VHOST_USER), [], Code.NOT_FF_PORT),
    (WEB, DB, [without(H1, features=frozenset())], Code.HOST_LACKS_FF),
    (WEB, DB, [replace(H1, state=m.HostState.LOST)], Code.HOST_LOST),
    (WEB, DB, [m.Policy("p", m.Action.DENY, l4=(m.L4Match(6, (PortRange(22, 22),)),))], Code.POLICY_FILTERS),
    (WEB, DB, [m.Policy("p", m.Action.ALLOW, paths=frozenset({Path.SWITCHED}))], Code.POLICY_PATHS),
]


@pytest.mark.parametrize(("one", "other", "objects", "code"), LOCAL)
def test_neighbours_stay_switched(one: m.Endpoint, other: m.Endpoint, objects: list[m.Object], code: Code) -> None:
    found = path(one, other, *objects)
    assert found.usable == (Path.SWITCHED,)
    assert codes(found)[Path.ZERO_COPY] == [code]


def test_hosts_that_reach_each_other_by_rdma_use_it() -> None:
    found = path(WEB, FAR)
    assert found.usable == (Path.RDMA, Path.VXLAN)
    assert found.rdma is not None
    assert found.tunnel is not None
    assert (found.rdma.local, found.rdma.remote.gid) == (RDMA, IPv6Address("::ffff:192.0.2.2"))
    assert (str(found.tunnel.local), str(found.tunnel.remote), found.tunnel.uplink) == ("192.0.2.1", "192.0.2.2", "up0")
    assert codes(found) == {p: [Code.HOSTS_DIFFER] for p in m.LOCAL_PATHS}


def _rdma(host: m.Host, **fields: object) -> m.Host:
    return without(host, rdma=(replace(host.capabilities.rdma[0], **fields),))  # type: ignore[arg-type]


IB = {"link_layer": m.LinkLayer.INFINIBAND, "gid_type": m.GidType.IB_ROCE_V1}
NO_RDMA: list[tuple[list[m.Object], Code]] = [
    ([without(H2, rdma=())], Code.NO_RDMA_PORT),
    ([_rdma(H1, state=m.RdmaState.DOWN)], Code.RDMA_PORT_DOWN),
    ([_rdma(H1, **IB)], Code.RDMA_LINK_LAYERS_DIFFER),
    ([_rdma(H1, **IB, gid=IPv6Address("fe80:1::1")), _rdma(H2, **IB)], Code.RDMA_SUBNETS_DIFFER),
    ([_rdma(H1, gid_type=m.GidType.IB_ROCE_V1)], Code.RDMA_NO_ROCE_V2),
    ([_rdma(H1, gid=IPv6Address("fd00::1"))], Code.RDMA_FAMILIES_DIFFER),
    ([_rdma(H1, gid=IPv6Address("fe80::1")), _rdma(H2, gid=IPv6Address("fe80::2"))], Code.RDMA_FAMILIES_DIFFER),
    ([replace(H2, state=m.HostState.LOST)], Code.HOST_LOST),
    ([m.Policy("p", m.Action.ALLOW, paths=frozenset({Path.VXLAN}))], Code.POLICY_PATHS),
]


@pytest.mark.parametrize(("objects", "code"), NO_RDMA)
def test_hosts_without_rdma_between_them_tunnel(objects: list[m.Object], code: Code) -> None:
    found = path(WEB, FAR, *objects)
    assert found.usable == (Path.VXLAN,)
    assert codes(found)[Path.RDMA] == [code]


@pytest.mark.parametrize("prefix", ["fe80::", "fe80:0:0:1::"])
def test_infiniband_reaches_its_own_subnet(prefix: str) -> None:
    gids = [IPv6Address(f"{prefix}{n}") for n in (1, 2)]
    found = path(WEB, FAR, _rdma(H1, **IB, gid=gids[0], mtu=4096), _rdma(H2, **IB, gid=gids[1], mtu=2048))
    assert found.path is Path.RDMA
    assert found.rdma is not None
    assert found.rdma.mtu == 2048


def _uplink(host: m.Host, **fields: object) -> m.Host:
    return without(host, uplinks=(replace(host.capabilities.uplinks[0], **fields),), rdma=())  # type: ignore[arg-type]


NO_WAY: list[tuple[m.Host, Code]] = [
    (without(H1, uplinks=(), rdma=()), Code.NO_UPLINK),
    (_uplink(H1, ips=(ip_address("fe80::1"), ip_address("127.0.0.1"))), Code.UPLINK_NO_ADDRESS),
    (_uplink(H1, ips=(ip_address("fd00::1"),)), Code.UPLINK_FAMILIES_DIFFER),
    (_uplink(H1, ips=(ip_address("192.0.2.2"),)), Code.UPLINK_FAMILIES_DIFFER),
    (_uplink(H1, mtu=117), Code.UPLINK_MTU_TOO_SMALL),
]


@pytest.mark.parametrize(("host", "code"), NO_WAY)
def test_hosts_without_any_way_say_so(host: m.Host, code: Code) -> None:
    found = path(WEB, FAR, host)
    assert (found.path, found.usable, found.mtu) == (Path.NONE, (), 0)
    assert code in [reason.code for reason in found.reasons]
    assert code in codes(found)[Path.VXLAN]


def test_a_tunnel_takes_its_overhead_from_the_mtu() -> None:
    found = path(WEB, FAR, _uplink(H1, mtu=1500))
    assert (found.path, found.mtu) == (Path.VXLAN, 1450)
    assert Reason(Code.MTU_REDUCED, "1450 of 1500 bytes") in found.reasons
    six = [_uplink(host, mtu=1500, ips=(ip_address(f"fd00::{n}"),)) for n, host in enumerate((H1, H2), start=1)]
    assert path(WEB, FAR, *six).mtu == 1430
    assert path(WEB, FAR, _uplink(H1, mtu=118)).mtu == 68


def test_a_tunnel_prefers_whole_packets_then_speed() -> None:
    slow, fast, narrow = (
        m.Uplink("slow", (ip_address("192.0.2.7"),), 9000, 1000),
        m.Uplink("fast", (ip_address("192.0.2.8"),), 1600, 9000),
        m.Uplink("narrow", (ip_address("192.0.2.9"),), 1500, 90000),
    )
    fast_h2 = _uplink(H2, speed=100_000)
    found = path(WEB, FAR, without(H1, uplinks=(slow, narrow, fast), rdma=()), fast_h2)
    assert found.tunnel is not None
    assert found.tunnel.uplink == "fast"


NONE: list[tuple[m.Endpoint, m.Endpoint, Reason]] = [
    (WEB, WEB, Reason(Code.SAME_ENDPOINT, "endpoint web0")),
    (WEB, replace(DB, network="red"), Reason(Code.NETWORKS_DIFFER, "blue and red")),
    (replace(WEB, network="x"), replace(DB, network="x"), Reason(Code.NETWORK_UNKNOWN, "network x")),
    (WEB, replace(DB, host=""), Reason(Code.NOT_PLACED, "endpoint db0")),
    (WEB, replace(DB, host="h9"), Reason(Code.HOST_UNKNOWN, "host h9")),
]


@pytest.mark.parametrize(("one", "other", "reason"), NONE)
def test_no_path_whatever_the_capabilities(one: m.Endpoint, other: m.Endpoint, reason: Reason) -> None:
    found = path(one, other)
    assert (found.path, found.reasons) == (Path.NONE, (reason,))


def test_a_policy_cuts_a_pair() -> None:
    cut = m.Policy("cut", m.Action.DENY)
    assert path(WEB, DB, cut).reasons == (Reason(Code.POLICY_DENIES, "policy cut"),)
    assert path(WEB, DB, cut).path is Path.DENIED
    only_rdma = m.Policy("fast", m.Action.ALLOW, paths=frozenset({Path.RDMA}))
    found = path(WEB, DB, only_rdma)
    assert (found.path, found.reasons) == (Path.DENIED, (Reason(Code.POLICY_PATHS, "policy fast"),))


def test_one_way_policies_let_answers_back() -> None:
    policies = [
        m.Policy("none", m.Action.DENY, priority=0),
        m.Policy(
            "sql",
            m.Action.ALLOW,
            source=m.Selector(endpoints=frozenset({"web0"})),
            destination=m.Selector(endpoints=frozenset({"db0"})),
            l4=(m.L4Match(6, (PortRange(5432, 5432),)),),
        ),
    ]
    there, back = path(WEB, DB, *policies), path(DB, WEB, *policies)
    assert there.path is back.path is Path.SWITCHED
    assert there.permits(6, 40000, 5432)
    assert not there.permits(6, 40000, 22)
    assert not there.permits(17, 40000, 5432)
    assert back.permits(6, 5432, 40000)
    assert not back.permits(6, 40000, 5432)
    assert not back.permits(6)
    assert Reason(Code.OPENING_DENIED, "policy none") in back.reasons
    assert codes(there)[Path.SHM_STREAM] == [Code.NOT_KERNEL_PORT, Code.NOT_KERNEL_PORT]


def test_ranks_of_policies() -> None:
    web, app = m.Selector(endpoints=frozenset({"web0"})), m.Selector(trust_domains=frozenset({"app"}))
    ranked = [
        m.Policy("z-urgent", m.Action.ALLOW, 200),
        m.Policy("by-name", m.Action.ALLOW, source=web),
        m.Policy("by-label", m.Action.ALLOW, source=m.Selector(labels=(("a", "b"),))),
        m.Policy("by-trust", m.Action.ALLOW, destination=app),
        m.Policy("by-port", m.Action.ALLOW, l4=(m.L4Match(6, (PortRange(1, 1),)),)),
        m.Policy("by-protocol", m.Action.ALLOW, l4=(m.L4Match(6),)),
        m.Policy("z-denies", m.Action.DENY),
        m.Policy("a-allows", m.Action.ALLOW),
        m.Policy("b-allows", m.Action.ALLOW),
        m.Policy("a-last", m.Action.DENY, 0, source=web, destination=web),
    ]
    assert PolicyTable(reversed(ranked)).policies == tuple(ranked)


def test_tcp_that_is_denied_leaves_no_sockets_to_pair() -> None:
    kernel = [replace(e, port_type=m.PortType.PMD) for e in (WEB, DB)]
    no_tcp = m.Policy("no-tcp", m.Action.DENY, l4=(m.L4Match(6),))
    found = path(*kernel, no_tcp)
    assert found.path is Path.SWITCHED
    assert codes(found)[Path.SHM_STREAM] == [Code.POLICY_FILTERS]
    without_sockets = path(*kernel, without(H1, features=frozenset({m.Feature.FF_PORTS})))
    assert codes(without_sockets)[Path.SHM_STREAM] == [Code.HOST_LACKS_SOCKETS]


# ---- the table of reasons ----


def test_each_code_is_explained_and_documented() -> None:
    assert set(EXPLANATIONS) == set(Code)
    documented = (File(__file__).parents[3] / "docs" / "reasons.md").read_text(encoding="utf-8")
    assert table() in documented, "docs/reasons.md: paste what controller.reasons.table() returns"


def test_each_code_is_given_by_a_decision() -> None:
    """A code that no decision gives would be documentation of nothing."""
    deny = m.Policy("p", m.Action.DENY)
    one_way = m.Policy("p", m.Action.DENY, source=m.Selector(endpoints=frozenset({"web0"})))
    kernel = [replace(e, port_type=m.PortType.PMD) for e in (WEB, DB)]
    rows: list[tuple[m.Endpoint, m.Endpoint, list[m.Object]]] = [
        (WEB, DB, [deny]),
        (WEB, DB, [one_way]),
        (WEB, FAR, [_uplink(H1, mtu=1500)]),
        (kernel[0], kernel[1], [without(H1, features=frozenset())]),
    ]
    rows += [(one, other, objects) for one, other, objects, _ in LOCAL]
    rows += [(one, other, []) for one, other, _ in NONE]
    rows += [(WEB, FAR, objects) for objects, _ in NO_RDMA]
    rows += [(WEB, FAR, [host]) for host, _ in NO_WAY]
    found = [path(one, other, *objects) for one, other, objects in rows]
    given = {
        r.code for f in found for r in (*f.reasons, *(reason for refusal in f.refused for reason in refusal.reasons))
    }
    assert given == set(Code)
