# SPDX-License-Identifier: Apache-2.0
"""What hosts say becomes endpoints, and what they are told."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from controller.model import Endpoint, HostState, Kind
from controller.service.keys import ADDRESS, encode_object, object_key
from controller.service.state import State, alive_key
from controller.store.base import Compare, Op, Put, Store, TxnResult
from tests.agents import FakeAgent
from tests.unit.controller.cluster import BLUE, Cluster, cluster, eventually

IN_BLUE = {"network": "blue"}
HOST_KEY = object_key((Kind.HOST, "h1"))


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as found:
        yield found


def endpoints(state: State) -> dict[str, Endpoint]:
    return {name: item for name, item in state.view.objects[Kind.ENDPOINT].items() if isinstance(item, Endpoint)}


def meanwhile(monkeypatch: pytest.MonkeyPatch, store: Store, when: Callable[[Put], bool], op: Op) -> None:
    """Let somebody else do `op` just before the next transaction with such a Put."""
    real = store.txn

    async def txn(compares: Sequence[Compare], then: Sequence[Op], orelse: Sequence[Op] = ()) -> TxnResult:
        if any(isinstance(mine, Put) and when(mine) for mine in then):
            monkeypatch.setattr(store, "txn", real)
            await real([], [op])
        return await real(compares, then, orelse)

    monkeypatch.setattr(store, "txn", txn)


async def test_a_port_becomes_an_endpoint_that_its_peers_learn(made: Cluster) -> None:
    controller = await made.start()
    await made.apply(controller, BLUE)
    async with made.agent(controller, "h1") as h1, made.agent(controller, "h2") as h2:
        await h1.observe({"web0": IN_BLUE}, full=True)
        await h2.observe({"db0": {**IN_BLUE, "ips": ["10.1.0.9"], "labels": {"tier": "db"}}}, full=True)
        web0 = await h2.endpoint("web0", host="h1")
        db0 = await h1.endpoint("db0", host="h2")
        assert web0["ips"] == ["10.1.0.1"] and web0["mac"].startswith("02:")
        assert db0["ips"] == ["10.1.0.9"] and db0["labels"] == {"tier": "db"}
        assert h1.known["Host", "h2"]["state"] == "up" and ("Network", "blue") in h1.known
        await h2.observe({}, gone=["db0"])
        await h1.until(lambda agent: ("Endpoint", "db0") not in agent.known)
        assert ("Host", "h2") not in h1.known
        await h2.until(lambda agent: list(agent.known) == [("Host", "h2")])


async def test_no_address_is_given_twice_whatever_the_replica(made: Cluster) -> None:
    replicas = [await made.start(), await made.start()]
    await made.apply(replicas[0], BLUE.replace("/24", "/26"))
    agents = [made.agent(replicas[number % 2], f"h{number}") for number in range(6)]
    for agent in agents:
        await agent.__aenter__()
    try:
        # 62 addresses for 66 ports.
        ports = {agent: [f"p{agent.host}x{number}" for number in range(11)] for agent in agents}
        await asyncio.gather(*(agent.observe(dict.fromkeys(ports[agent], IN_BLUE), full=True) for agent in agents))

        def answered(agent: FakeAgent) -> bool:
            return all(("Endpoint", name) in agent.known or name in agent.refused for name in ports[agent])

        for agent in agents:
            await agent.until(answered)
        for replica in replicas:
            await replica.state.sync()
            ips = [ip for endpoint in endpoints(replica.state).values() for ip in endpoint.ips]
            assert len(ips) == len(set(ips)) == 62
            leases = [key for key in replica.state.mirror.items if key.startswith(ADDRESS)]
            assert len(leases) == 62
        refused = [reason for agent in agents for reason in agent.refused.values()]
        assert len(refused) == 4 and all("no IPv4 address left" in reason for reason in refused)
    finally:
        for agent in agents:
            await agent.__aexit__()


async def test_the_newest_report_of_a_name_wins_and_the_old_host_does_not_take_it_back(made: Cluster) -> None:
    controller = await made.start()
    await made.apply(controller, BLUE)
    async with made.agent(controller, "h1") as h1, made.agent(controller, "h2") as h2:
        await h1.observe({"web0": IN_BLUE, "stays": IN_BLUE}, full=True)
        before = await h1.endpoint("web0", host="h1")
        await h2.observe({"web0": IN_BLUE}, full=True)
        after = await h1.endpoint("web0", host="h2")
        assert after["ips"] == before["ips"] and after["mac"] == before["mac"]
        assert after["generation"] > before["generation"]
    async with made.agent(controller, "h1") as h1:
        await h1.observe({"web0": IN_BLUE, "stays": IN_BLUE}, full=True)
        assert "has moved to host h2" in await h1.until(lambda agent: agent.refused.get("web0"))
        assert h1.known["Endpoint", "web0"]["host"] == "h2"
        await h1.observe({}, gone=["web0"])
        await h1.observe({"web0": IN_BLUE})
        await h1.endpoint("web0", host="h1")


async def test_an_endpoint_that_was_deleted_does_not_go_back_to_where_it_was_left(made: Cluster) -> None:
    controller = await made.start()
    await made.apply(controller, BLUE)
    async with made.agent(controller, "h1") as h1, made.agent(controller, "h2") as h2:
        await h1.observe({"web0": IN_BLUE, "stays": IN_BLUE}, full=True)
        await h1.endpoint("web0", host="h1")
        await h2.observe({"web0": IN_BLUE}, full=True)
        await h1.endpoint("web0", host="h2")
        await h2.observe({}, gone=["web0"])
        await h1.until(lambda agent: ("Endpoint", "web0") not in agent.known)
        await h1.observe({"web0": IN_BLUE, "late": IN_BLUE})
        assert "moved to another host and is gone" in await h1.until(lambda agent: agent.refused.get("web0"))
        await h1.endpoint("late")
        assert ("Endpoint", "web0") not in h1.known
        await h1.observe({}, gone=["web0"])
        await h1.observe({"web0": IN_BLUE})
        await h1.endpoint("web0", host="h1")


async def test_a_full_report_takes_away_what_it_does_not_name(made: Cluster) -> None:
    controller = await made.start()
    await made.apply(controller, BLUE)
    async with made.agent(controller, "h1") as h1:
        await h1.observe({"a": IN_BLUE, "b": IN_BLUE}, full=True)
        await h1.endpoint("a")
        await h1.endpoint("b")
    async with made.agent(controller, "h1") as h1:
        await h1.observe({"b": IN_BLUE, "c": IN_BLUE}, full=True)
        await h1.until(lambda agent: ("Endpoint", "a") not in agent.known)
        # a's address waits for a; nobody else gets it at once.
        assert (await h1.endpoint("c"))["ips"] == ["10.1.0.3"]
        await h1.observe({"a": IN_BLUE})
        assert (await h1.endpoint("a"))["ips"] == ["10.1.0.1"]


async def test_what_is_refused_is_said_once_and_done_when_it_can_be(made: Cluster) -> None:
    controller = await made.start()
    async with made.agent(controller, "h1") as h1:
        await h1.observe({"web0": IN_BLUE, "odd": {"network": "blue", "colour": 1}}, full=True)
        await h1.until(lambda agent: len(agent.refused) == 2)
        assert h1.refused["web0"] == "endpoint web0: there is no network blue: there is none"
        assert "no such field" in h1.refused["odd"]
        await made.apply(controller, BLUE)
        await h1.endpoint("web0", host="h1")


async def test_static_addresses_are_checked(made: Cluster) -> None:
    controller = await made.start()
    await made.apply(controller, BLUE)
    async with made.agent(controller, "h1") as h1:
        await h1.observe({"a": {**IN_BLUE, "ips": ["10.1.0.7"]}}, full=True)
        mac = (await h1.endpoint("a"))["mac"]
        await h1.observe({"b": {**IN_BLUE, "ips": ["10.1.0.7"]}, "c": {**IN_BLUE, "ips": ["10.9.0.1"]}})
        await h1.observe({"d": {**IN_BLUE, "mac": mac}})
        await h1.until(lambda agent: len(agent.refused) == 3)
        assert "10.1.0.7 of network blue is a's" in h1.refused["b"]
        assert "10.9.0.1 is not in network blue" in h1.refused["c"]
        assert f"{mac} of network blue is a's" in h1.refused["d"]


async def test_an_agent_that_comes_back_gets_what_changed(made: Cluster) -> None:
    one, two = await made.start(), await made.start()
    await made.apply(one, BLUE)
    async with made.agent(one, "h1") as h1, made.agent(one, "h2") as h2:
        await h1.observe({"a": IN_BLUE}, full=True)
        await h2.observe({"b": IN_BLUE, "x": IN_BLUE}, full=True)
        await h1.endpoint("b")
        await h1.endpoint("x")
        # What the other replica learned in one piece ends here; in the midst of one it could not say what was missed.
        await two.state.reached(h1.revision)
        revision, epoch = two.state.revision, h1.desired[-1][0]
        await h1.__aexit__()
        await h2.observe({"c": IN_BLUE}, gone=["x"])
        await h2.until(lambda agent: ("Endpoint", "x") not in agent.known)
        await h2.endpoint("c")
        # To another replica, as an agent does whose controller died.
        async with made.agent(two, "h1", revision=revision, epoch=epoch) as again:
            again.known = h1.known
            await again.endpoint("c")
            assert again.desired[0][2] is False and ("Endpoint", "x") not in again.known
            await again.until(lambda agent: agent.known == h2.known)
    three = await made.start()
    async with made.agent(three, "h1", revision=revision, epoch=epoch) as again:
        await again.endpoint("c")
        assert again.desired[0][2] is True
        assert all(later[0] >= epoch for later in again.desired)


async def test_a_host_that_is_not_heard_is_lost_and_comes_back(made: Cluster) -> None:
    one, two = await made.start(), await made.start()
    await made.apply(one, BLUE)
    async with made.agent(one, "h1") as h1, made.agent(two, "h2") as h2:
        await h1.observe({"a": IN_BLUE}, full=True)
        await h2.observe({"b": IN_BLUE}, full=True)
        ips = (await h2.endpoint("a"))["ips"]
        h1.beating = False
        await h2.until(lambda agent: agent.known["Host", "h1"]["state"] == "lost")
        assert h2.known["Endpoint", "a"]["ips"] == ips
        await h1.beat()
        assert "was not heard" in await h1.until(lambda agent: agent.ended)
        async with made.agent(two, "h1") as again:
            await again.observe({"a": IN_BLUE}, full=True)
            await h2.until(lambda agent: agent.known["Host", "h1"]["state"] == "up")
            assert h2.known["Host", "h1"]["epoch"] == 2 and h2.known["Endpoint", "a"]["ips"] == ips


async def test_a_host_that_comes_back_while_it_is_marked_lost_is_up(
    made: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = await made.start()
    async with made.agent(controller, "h1") as h1:
        await h1.until(lambda agent: ("Host", "h1") in agent.known)
    host = controller.state.host("h1")
    assert host is not None and host.state is HostState.UP
    mark = Put(HOST_KEY, encode_object(replace(host, state=HostState.LOST)))
    alive = controller.state.find(alive_key("h1"))
    assert alive is not None
    meanwhile(monkeypatch, made.store, lambda put: put.key == alive.key and put.lease != alive.lease, mark)
    async with made.agent(controller, "h1") as h1:
        await h1.until(lambda agent: agent.known.get(("Host", "h1"), {}).get("state") == "up")
        assert h1.known["Host", "h1"]["epoch"] == 2


async def test_capabilities_are_written_though_the_host_changed_meanwhile(
    made: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = await made.start()
    async with made.agent(controller, "h1") as h1:
        await h1.until(lambda agent: ("Host", "h1") in agent.known)
        again = Put(HOST_KEY, json.dumps(h1.known["Host", "h1"]).encode())
        meanwhile(monkeypatch, made.store, lambda put: put.key == HOST_KEY, again)
        await h1.beat(capabilities='{"cores": 7}')
        await h1.until(lambda agent: agent.known["Host", "h1"]["capabilities"].get("cores") == 7)


async def test_a_newer_session_of_a_host_fences_the_older_one(made: Cluster) -> None:
    one, two = await made.start(), await made.start()
    await made.apply(one, BLUE)
    async with made.agent(one, "h1") as old, made.agent(two, "h1") as new:
        await new.until(lambda agent: agent.desired)
        await new.observe({"a": IN_BLUE}, full=True)
        await new.endpoint("a")
        # It may have been sent away by one of its heartbeats already.
        with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
            await old.observe({}, full=True)
        assert "another session" in await old.until(lambda agent: agent.ended)
        await two.state.sync()
        assert endpoints(two.state)["a"].host == "h1"


async def test_a_manifests_endpoint_stays_when_its_container_goes(made: Cluster) -> None:
    controller = await made.start()
    declared = BLUE + "---\nkind: Endpoint\nname: web0\nnetwork: blue\nlabels: {tier: web}\n"
    await made.apply(controller, declared)
    async with made.agent(controller, "h1") as h1:
        await h1.observe({"web0": {**IN_BLUE, "labels": {"tier": "mine"}}, "other": IN_BLUE}, full=True)
        placed = await h1.endpoint("web0", host="h1")
        assert placed["labels"] == {"tier": "web"}
        await h1.endpoint("other")
        await h1.observe({}, gone=["web0"])
        await h1.endpoint("web0", host="")
        await made.apply(controller, BLUE, prune=True)
        await h1.until(lambda agent: ("Endpoint", "web0") not in agent.known)
        assert ("Endpoint", "other") in h1.known


async def test_what_was_written_is_there_after_a_restart(made: Cluster) -> None:
    first = await made.start()
    await made.apply(first, BLUE)
    async with made.agent(first, "h1") as h1:
        await h1.observe({"a": IN_BLUE, "b": IN_BLUE}, full=True)
        await h1.endpoint("a")
        await h1.endpoint("b")
        await h1.observe({}, gone=["a"])
        await h1.until(lambda agent: ("Endpoint", "a") not in agent.known)
    await made.stop(first)
    second = await made.start()
    async with made.agent(second, "h2") as h2:
        await h2.observe({"c": IN_BLUE}, full=True)
        assert (await h2.endpoint("c"))["ips"] == ["10.1.0.3"]
        await h2.observe({"a": IN_BLUE})
        assert (await h2.endpoint("a"))["ips"] == ["10.1.0.1"]
        await eventually(second, lambda state: state.host("h1").state is HostState.LOST)
