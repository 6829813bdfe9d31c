# SPDX-License-Identifier: Apache-2.0
"""What operators do, and what one controller does for all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from controller.model import Host, HostState, Kind
from controller.proto import ffswitch_pb2 as pb
from controller.service.keys import ADDRESS, CONFIG, LEADER, MAC, encode_object, object_key
from controller.service.leader import Leader
from controller.store.base import Compare, Delete, Op, Put, StoreUnavailable, TxnResult
from controller.store.election import Deposed, campaign
from tests.agents import DEADLINE
from tests.unit.controller.cluster import BLUE, Cluster, cluster, eventually

IN_BLUE = {"network": "blue"}
DENY = "---\nkind: Policy\nname: no-db\naction: deny\nfrom: {endpoints: [web0]}\nto: {endpoints: [db0]}\n" + (
    "---\nkind: Policy\nname: no-web\naction: deny\nfrom: {endpoints: [db0]}\nto: {endpoints: [web0]}\n"
)


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as found:
        yield found


async def test_a_dry_run_says_what_would_be_cut_and_changes_nothing(made: Cluster) -> None:
    controller = await made.start()
    await made.apply(controller, BLUE)
    uplink = '{"uplinks": [{"name": "up0", "ips": ["192.0.2.%d"]}]}'
    async with (
        made.agent(controller, "h1", capabilities=uplink % 1) as h1,
        made.agent(controller, "h2", capabilities=uplink % 2) as h2,
    ):
        await h1.observe({"web0": IN_BLUE}, full=True)
        await h2.observe({"db0": IN_BLUE}, full=True)
        await h1.endpoint("db0")
        await h2.endpoint("web0")
        reply = await made.apply(controller, BLUE + DENY, dry_run=True)
        assert [step.name for step in reply.steps] == ["no-db", "no-web"]
        assert "would cut db0 ↔ web0 (live)" in reply.effects[0].text
        assert not controller.state.view.objects[Kind.POLICY]
        assert not (await made.apply(controller, BLUE + DENY)).problems
        await h1.until(lambda agent: ("Policy", "no-db") in agent.known)


MANY = BLUE + "".join(f"---\nkind: Endpoint\nname: e{number}\nnetwork: blue\n" for number in range(100))


async def test_an_apply_of_several_transactions_that_is_cut_off_says_how_far_it_came(
    made: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = await made.start()
    real, lives = made.store.txn, 2

    async def txn(compares: Sequence[Compare], then: Sequence[Op], orelse: Sequence[Op] = ()) -> TxnResult:
        nonlocal lives
        if any(isinstance(op, Put) and op.key == CONFIG for op in then):
            if not lives:
                raise StoreUnavailable("the store is away")
            lives -= 1
        return await real(compares, then, orelse)

    monkeypatch.setattr(made.store, "txn", txn)
    with pytest.raises(
        grpc.aio.AioRpcError, match=r"the store is away: \d+ of 101 changes are done: apply again"
    ) as error:
        await made.apply(controller, MANY)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    stub = await made.admin(controller)
    found = (await stub.Status(pb.StatusRequest(), timeout=DEADLINE)).unfinished
    done = len(controller.state.view.objects[Kind.ENDPOINT]) + 1
    assert 1 < done < 101 and (found.done, found.of) == (done, 101)
    lives = 100
    reply = await made.apply(controller, MANY)
    assert len(reply.steps) == 101 - done
    assert len(controller.state.view.objects[Kind.ENDPOINT]) == 100
    assert not (await stub.Status(pb.StatusRequest(), timeout=DEADLINE)).HasField("unfinished")


async def test_nothing_of_a_large_apply_is_written_when_its_last_object_gets_no_address(made: Cluster) -> None:
    controller = await made.start()
    reply = await made.apply(controller, MANY.replace("/24", "/26"))
    assert "no IPv4 address left" in reply.problems[0].problem
    assert not any(controller.state.view.objects.values())
    assert not [key for key in controller.state.mirror.items if key.startswith((ADDRESS, MAC, CONFIG))]


async def test_what_does_not_go_together_is_not_applied(made: Cluster) -> None:
    controller = await made.start()
    await made.apply(controller, BLUE)
    overlap = "kind: Network\nname: red\nvni: 101\nsubnets: [10.1.0.128/25]\n"
    problem = (await made.apply(controller, overlap)).problems[0]
    assert (problem.name, list(problem.field)) == ("red", ["subnets", "0"])
    assert "10.1.0.128/25 overlaps 10.1.0.0/24 of network blue" in problem.problem
    tiny = "kind: Network\nname: tiny\nvni: 102\nsubnets: [10.2.0.0/30]\n"
    many = tiny + "".join(f"---\nkind: Endpoint\nname: t{n}\nnetwork: tiny\n" for n in range(3))
    for dry_run in (True, False):
        problem = (await made.apply(controller, many, dry_run=dry_run)).problems[0]
        assert problem.name == "t2" and "no IPv4 address left, 2 are in use" in problem.problem
    assert set(controller.state.view.objects[Kind.NETWORK]) == {"blue"}
    assert not (await made.apply(controller, many.rsplit("---", 1)[0])).problems


async def test_an_apply_larger_than_a_transaction_is_whole(made: Cluster) -> None:
    controller = await made.start()
    many = BLUE + "".join(f"---\nkind: Endpoint\nname: e{number}\nnetwork: blue\n" for number in range(200))
    assert len((await made.apply(controller, many)).steps) == 201
    assert not (await made.apply(controller, many)).steps
    ips = {e.ips for e in controller.state.view.endpoints_of("blue")}
    assert len(ips) == 200
    assert len((await made.apply(controller, BLUE, prune=True)).steps) == 200


async def test_waiting_ends_when_hosts_of_all_replicas_have_applied(made: Cluster) -> None:
    one, two = await made.start(), await made.start()
    await made.apply(one, BLUE)
    async with made.agent(one, "h1") as h1, made.agent(two, "h2") as h2:
        await h1.observe({"a": IN_BLUE}, full=True)
        await h2.observe({"b": IN_BLUE}, full=True)
        await h1.endpoint("b")
        await h2.endpoint("a")
        stub = await made.admin(one)
        reply = await stub.Wait(pb.WaitRequest(kind="endpoint", name="b", timeout=DEADLINE), timeout=DEADLINE)
        assert not reply.pending and not reply.lost
        h2.beating = False
        revision = (await made.apply(one, BLUE.replace("100", "101"))).revision
        await h2.until(lambda agent: agent.known["Network", "blue"]["vni"] == 101)
        short = await stub.Wait(pb.WaitRequest(revision=revision, timeout=0.2), timeout=DEADLINE)
        assert "h2" in short.pending
        h2.beating = True
        await h2.beat()
        reply = await stub.Wait(pb.WaitRequest(revision=revision, timeout=DEADLINE), timeout=DEADLINE)
        assert not reply.pending


async def test_a_deposed_leader_writes_nothing(made: Cluster) -> None:
    controller = await made.start()
    await eventually(controller, lambda state: state.epoch)
    state, store = controller.state, made.store
    host = Host("h9", epoch=1)
    await store.txn([], [Put(object_key((Kind.HOST, "h9")), encode_object(host))])
    # Its key goes as if its lease had ended while it stood still; another one leads.
    await store.txn([], [Delete(LEADER)])
    stale = await campaign(store, "ffswitch/elsewhere", "stale", 60)
    stale._key, before = LEADER, state.epoch
    await eventually(controller, lambda state: state.epoch > before and state.host("h9"))
    try:
        with pytest.raises(Deposed):
            await Leader(controller.replica, stale).mark_lost()
        assert state.host("h9") == replace(host, state=HostState.UP)
    finally:
        await stale.resign()


async def test_a_replica_that_is_behind_an_agent_does_not_serve_it(
    made: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.service.session.BEHIND", 0.1)
    controller = await made.start()
    await eventually(controller, lambda state: state.epoch)
    for hello in ({"epoch": controller.state.epoch + 1}, {"revision": controller.state.revision + 1000}):
        async with made.agent(controller, "h1", **hello) as agent:
            assert "behind its store" in await agent.until(lambda agent: agent.ended)
            assert not agent.desired


async def test_changes_are_watched_and_the_rest_is_found(made: Cluster) -> None:
    controller = await made.start()
    stub = await made.admin(controller)
    stream = stub.Watch(pb.WatchRequest(kind="networks"))
    await stream.initial_metadata()
    await made.apply(controller, BLUE)
    event = await stream.read()
    assert (event.kind, event.name) == ("Network", "blue")
    stream.cancel()
    with pytest.raises(grpc.aio.AioRpcError, match="did you mean blue"):
        await stub.Get(pb.GetRequest(kind="network", name="blu"), timeout=DEADLINE)
    status = await stub.Status(pb.StatusRequest(), timeout=DEADLINE)
    assert status.connected and list(status.replicas) == ["c1"]
