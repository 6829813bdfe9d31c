# SPDX-License-Identifier: Apache-2.0
"""What an apply would change: the steps and their order, and what pairs that talk would notice."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st

from controller import model as m
from controller.decide import decide
from controller.model import Kind, Path
from controller.plan import Operation, plan
from controller.policy import allowed, narrowed_by
from controller.scalars import PortRange
from controller.view import ClusterView
from tests.unit.controller import worlds
from tests.unit.controller.test_decide import APP, BLUE, DB, FAR, H1, H2, PROBES, WEB

BASE: list[m.Object] = [H1, H2, BLUE, APP, WEB, DB, replace(FAR, name="far0")]


def lines(*desired: m.Object, prune: bool = False) -> tuple[list[str], list[str]]:
    """The steps and the effects of a plan, as people read them."""
    made = plan(ClusterView(BASE), desired, prune=prune)
    assert made.complete
    return [str(step) for step in made.steps], [str(effect) for effect in made.effects]


def test_nothing_to_do() -> None:
    assert lines(*BASE) == ([], [])


def test_steps_come_in_an_order_in_which_they_can_be_taken() -> None:
    made = plan(
        ClusterView(BASE),
        [
            m.Endpoint("new", "red"),
            m.Policy("p", m.Action.ALLOW),
            m.Host("h9"),
            m.Network("red", 7),
            m.TrustDomain("db"),
        ],
        prune=True,
    )
    assert [str(step) for step in made.steps] == [
        "create TrustDomain db",
        "create Network red",
        "create Host h9",
        "create Policy p",
        "create Endpoint new",
        "delete Endpoint db0",
        "delete Endpoint far0",
        "delete Endpoint web0",
        "delete Network blue",
        "delete TrustDomain app",
    ]
    host = made.after.objects[Kind.HOST]["h9"]
    assert isinstance(host, m.Host)
    assert host.state is m.HostState.LOST


def test_what_others_fill_in_stays() -> None:
    full = replace(WEB, mac="02:00:00:00:00:01", ips=(ip_address("10.1.0.7"),), port="p1", generation=4)
    current = ClusterView([*BASE, full])
    bare = m.Endpoint("web0", "blue", trust_domain="app", port_type=m.PortType.FF)
    assert plan(current, [bare]).steps == ()
    [step] = plan(current, [replace(bare, labels=(("a", "b"),))]).steps
    assert (step.operation, step.fields) == (Operation.UPDATE, ("labels",))
    assert step.change.item == replace(full, labels=(("a", "b"),), generation=5)
    [step] = plan(current, [replace(bare, network="red")]).steps
    assert step.change.item == replace(full, network="red", mac="", ips=(), generation=5)
    assert plan(current, [m.Host("h1")]).steps == ()


def test_a_policy_that_cuts_a_live_pair_is_told() -> None:
    cut = m.Policy("cut-db", m.Action.DENY, destination=m.Selector(endpoints=frozenset({"db0"})))
    back = m.Policy("back", m.Action.DENY, source=m.Selector(endpoints=frozenset({"db0"})))
    steps, effects = lines(cut, back)
    assert steps == ["create Policy back", "create Policy cut-db"]
    assert effects == [
        "policy back; policy cut-db would cut db0 ↔ far0 (live)",
        "policy back; policy cut-db would cut db0 ↔ web0 (live)",
    ]
    assert lines(m.Policy("all", m.Action.DENY))[1][2] == "policy all would cut far0 ↔ web0 (live)"


def test_a_path_that_changes_is_told() -> None:
    ssh = m.Policy("no-ssh", m.Action.DENY, l4=(m.L4Match(6, (PortRange(22, 22),)),))
    assert lines(ssh)[1] == [
        "policy no-ssh would filter db0 ↔ far0 (live)",
        "db0 ↔ web0 (live) would go from zero-copy to switched",
        "policy no-ssh would filter far0 ↔ web0 (live)",
    ]
    assert lines(replace(WEB, host="h2"))[1] == [
        "db0 ↔ web0 (live) would go from zero-copy to rdma",
        "far0 ↔ web0 (live) would go from rdma to zero-copy",
    ]
    assert lines(replace(WEB, network="red"), m.Network("red", 7))[1] == [
        "db0 ↔ web0 (live) would lose its path: blue and red",
        "far0 ↔ web0 (live) would lose its path: blue and red",
    ]
    assert lines(replace(WEB, labels=(("a", "b"),)))[1] == []


def test_pairs_that_do_not_talk_are_not_told() -> None:
    lost = ClusterView([*BASE, replace(H1, state=m.HostState.LOST)])
    assert plan(lost, [m.Policy("all", m.Action.DENY)]).effects == ()


def test_too_many_pairs_are_not_looked_at() -> None:
    made = plan(ClusterView(BASE), [m.Policy("all", m.Action.DENY)], most_pairs=2)
    assert (len(made.effects), made.complete) == (2, False)


@settings(max_examples=100)
@given(st.lists(worlds.seeded(worlds.any_object), max_size=12), st.lists(worlds.seeded(worlds.any_object), max_size=6))
def test_a_plan_leads_there_and_tells_every_pair(before: list[m.Object], desired: list[m.Object]) -> None:
    current = ClusterView(before)
    made = plan(current, desired, prune=True)
    again = plan(made.after, desired, prune=True)
    assert again.steps == ()
    wanted = {m.key_of(item) for item in desired}
    left = {(kind, name) for kind, items in made.after.objects.items() if kind is not Kind.HOST for name in items}
    assert left == {key for key in wanted if key[0] is not Kind.HOST}
    told = {(effect.source, effect.destination): effect for effect in made.effects}
    names = sorted(made.after.objects[Kind.ENDPOINT].keys() & current.objects[Kind.ENDPOINT].keys())
    for one, other in ((a, b) for a in names for b in names if a < b):
        old = [current.endpoint(one), current.endpoint(other)]
        new = [made.after.endpoint(one), made.after.endpoint(other)]
        assert old[0] and old[1] and new[0] and new[1]
        was, now = decide(old[0], old[1], current.world), decide(new[0], new[1], made.after.world)
        hosts = [current.world.hosts.get(end.host) for end in (old[0], old[1])]
        live = bool(was.usable) and all(host is not None and host.state is m.HostState.UP for host in hosts)
        if live and was.path is not now.path:
            assert (told[one, other].before, told[one, other].after) == (was.path, now.path)
        if not live:
            assert (one, other) not in told


@given(st.lists(worlds.seeded(worlds.policy), max_size=3), st.lists(worlds.seeded(worlds.policy), max_size=3))
def test_what_is_narrowed(before: list[m.Policy], after: list[m.Policy]) -> None:
    def rules(policies: list[m.Policy]) -> tuple[m.Policy, ...]:
        return tuple({p.name: replace(p, source=m.Selector(), destination=m.Selector()) for p in policies}.values())

    old = ClusterView([*BASE, *rules(before)]).world.policies.rules(WEB, DB)
    new = ClusterView([*BASE, *rules(after)]).world.policies.rules(WEB, DB)
    lost = [probe for probe in PROBES if allowed(old, *probe) and not allowed(new, *probe)]
    assert not lost or narrowed_by(old, new)
    assert narrowed_by(old, old) == ()


def test_paths_are_in_order() -> None:
    assert list(Path)[:5] == [*m.LOCAL_PATHS, *m.REMOTE_PATHS]
