# SPDX-License-Identifier: Apache-2.0
"""Ends of RDMA connections go from host to host, by whatever replicas, and as long as their host's session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from controller.proto import ffswitch_pb2 as pb
from controller.service.keys import RDMA
from controller.service.session import OFFER_MAX
from tests.agents import FakeAgent
from tests.unit.controller.cluster import BLUE, Cluster, cluster, eventually

IN_BLUE = {"network": "blue"}


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as found:
        yield found


async def neighbours(h1: FakeAgent, h2: FakeAgent) -> None:
    """Both have an endpoint in one network, and know it."""
    await h1.observe({"web0": IN_BLUE}, full=True)
    await h2.observe({"db0": IN_BLUE}, full=True)
    await h1.until(lambda agent: ("Host", "h2") in agent.known)
    await h2.until(lambda agent: ("Host", "h1") in agent.known)


def offered(host: str, number: int, joined: int = 0) -> Callable[[FakeAgent], bool]:
    def holds(agent: FakeAgent) -> bool:
        found = agent.offers.get(host)
        return found is not None and (found.id, found.joined) == (number, joined)

    return holds


async def test_by_two_replicas(made: Cluster) -> None:
    replicas = [await made.start(), await made.start()]
    await made.apply(replicas[0], BLUE)
    async with made.agent(replicas[0], "h1") as h1, made.agent(replicas[1], "h2") as h2:
        await neighbours(h1, h2)
        await h1.offer("h2", 11)
        await h2.until(offered("h1", 11))
        first = h2.offers["h1"]
        assert (list(first.end.qpn), len(first.end.gid), first.end.credits) == ([11], 16, 64)
        await h2.offer("h1", 22, joined=11)
        await h1.until(offered("h2", 22, 11))
        await h1.offer("h2", 12)
        await h2.until(offered("h1", 12))
        assert h2.offers["h1"].revision > first.revision


async def test_a_host_that_comes_later_is_told(made: Cluster) -> None:
    controller = await made.start()
    await made.apply(controller, BLUE)
    async with made.agent(controller, "h1") as h1:
        async with made.agent(controller, "h2") as h2:
            await neighbours(h1, h2)
            await h1.offer("h2", 11)
            await h2.until(offered("h1", 11))
        async with made.agent(controller, "h2") as h2:
            await h2.until(offered("h1", 11))


async def test_offers_end_with_their_hosts_session(made: Cluster) -> None:
    controller = await made.start()
    await made.apply(controller, BLUE)
    async with made.agent(controller, "h2") as h2:
        async with made.agent(controller, "h1") as h1:
            await neighbours(h1, h2)
            await h1.offer("h2", 11)
            await h2.until(offered("h1", 11))
        await h2.until(lambda agent: agent.offers["h1"].id == 0 and not agent.offers["h1"].HasField("end"))
        assert not [key for key in controller.state.mirror.items if key.startswith(RDMA)]


async def test_a_new_session_says_them_again(made: Cluster) -> None:
    """They outlive the session that said them first."""
    replicas = [await made.start(), await made.start()]
    await made.apply(replicas[0], BLUE)
    async with made.agent(replicas[0], "h2") as h2, made.agent(replicas[0], "h1") as h1:
        await neighbours(h1, h2)
        await h1.offer("h2", 11)
        await h2.until(offered("h1", 11))
        async with made.agent(replicas[1], "h1") as again:
            await again.offer("h2", 11, joined=22)
            await h2.until(offered("h1", 11, 22))
            await h1.offer("h2", 99)
            await h1.until(lambda agent: agent.ended)
            await again.offer("h2", 12)
            await h2.until(offered("h1", 12))
            assert "session" in h1.ended


async def test_what_is_not_passed_on(made: Cluster) -> None:
    """To hosts that share no network with it, to itself, and what is too long."""
    controller = await made.start()
    await made.apply(controller, BLUE)
    async with made.agent(controller, "h1") as h1, made.agent(controller, "h2") as h2, made.agent(controller, "h3"):
        await neighbours(h1, h2)
        await h1.offer("h3", 11)
        await h1.offer("h1", 12)
        long = pb.RdmaOffer(host="h2", id=13, end=pb.RdmaEnd(gid=bytes(OFFER_MAX)))
        await h1._say(pb.AgentMessage(rdma=long))
        await h1.offer("h2", 14)
        await h2.until(lambda agent: "h1" in agent.offers)
        await eventually(controller, lambda state: [k for k in state.mirror.items if k.startswith(RDMA)])
        assert h2.offers["h1"].id == 14
        assert [key for key in controller.state.mirror.items if key.startswith(RDMA)] == [RDMA + "h2/h1"]
