# SPDX-License-Identifier: Apache-2.0
"""Two fast paths over a queue pair: all sizes, both ways, byte for byte; credits; failures, and the way back."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.rdma.bed import DEVICE, GID_INDEX, Bed
from tests.rdma.pair import Pair, running
from tests.rdma.relay import ROCE, VXLAN

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

LONGEST = 65557  # an MTU of 65535, an Ethernet header and two tags
SIZES = [14, 15, 60, 61, 127, 128, 129, 255, 256, 257, 1500, 1514, 4000, 9000, 16384, 32768, 65535, 65556, LONGEST]
SMALL = [60, 61, 1000, 1400, 14] * 8  # that VXLAN takes, too
CREDITS = 128


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fast_paths(booted_pair: Bed) -> AsyncIterator[Pair]:
    """Two fast paths for all tests."""
    async with running(booted_pair) as pair:
        yield pair


@pytest_asyncio.fixture(loop_scope="session")
async def started(fast_paths: Pair) -> AsyncIterator[Pair]:
    """They, without peers."""
    yield fast_paths
    await fast_paths.part()


async def test_frames_of_all_sizes(started: Pair) -> None:
    """All that the counters show went over the queue pair, and none over VXLAN; sleeping workers wake up."""
    await started.join()
    before = started.underlay(VXLAN)
    await started.exchange(SIZES, seed=1)
    for end in started.ends:
        await end.call("asleep")
    await started.exchange(SIZES[::-1] * 2, seed=3, burst=7)
    assert started.underlay(VXLAN) == before
    assert started.underlay(ROCE) > 0
    for end, peer in zip(started.ends, started.peers, strict=True):
        info = await end.call("peer", peer)
        assert info["state"] == "ACTIVE"
        stats = info["stats"]
        assert stats["tx_messages"] == stats["rx_messages"] == 3 * len(SIZES)
        assert stats["tx_bytes"] == stats["rx_bytes"] == 3 * sum(SIZES)
        assert stats["doorbells"] < stats["tx_messages"] + stats["controls"]
        assert stats["no_credit"] == stats["no_room"] == stats["uncertain"] == 0
        await end.call("balance")


async def test_more_messages_than_credits(started: Pair) -> None:
    """A receiver that stands still gets what it gave credits for; when it goes on, so does all else."""
    left, right = started.ends
    await started.join()
    await right.pause()
    await left.call("send", [60] * (CREDITS + 20), 1)
    await left.call("wait_drops", "device", "ring-full", 20)
    assert (await left.call("peer", started.peers[0]))["stats"]["no_credit"] == 20
    await right.resume()
    await right.call("expect", [60] * CREDITS, 1)
    for turn in range(CREDITS // len(SMALL) + 1):
        await started.exchange(SMALL, seed=41 + 2 * turn)
    stats = (await left.call("peer", started.peers[0]))["stats"]
    assert stats["no_credit"] == 20
    assert stats["tx_messages"] > 2 * CREDITS
    for end in started.ends:
        await end.call("balance")


async def test_planned_change(started: Pair) -> None:
    """Without a peer, with one, and without again: in order, and nothing is lost."""
    left = started.ends[0]
    before = started.underlay(VXLAN)
    await started.exchange(SMALL, seed=7)
    by_vxlan = started.underlay(VXLAN) - before
    assert by_vxlan == 2 * len(SMALL)
    await started.join()
    for turn in range(3):
        await started.exchange(SMALL, seed=11 + 2 * turn)
        assert started.underlay(VXLAN) == before + by_vxlan
        for end, peer in zip(started.ends, started.peers, strict=True):
            await end.call("drain", peer)
            await end.call("use", peer, 0)
        await started.exchange(SMALL, seed=21 + 2 * turn)
        by_vxlan += 2 * len(SMALL)
        assert started.underlay(VXLAN) == before + by_vxlan
        for end, peer in zip(started.ends, started.peers, strict=True):
            await end.call("use", peer)
    assert (await left.call("peer", started.peers[0]))["stats"]["uncertain"] == 0


async def test_queue_pair_that_breaks(started: Pair) -> None:
    """The other end's is gone: what was on its way is counted, all else goes by VXLAN, and a new one takes over."""
    left, right = started.ends
    await started.join(timeout=12, retries=2)
    await started.exchange(SMALL, seed=31)
    await right.call("delete", started.peers[1])
    await left.call("send", [60] * 5, 33)
    await left.call("event", started.peers[0], "FAILED")
    info = await left.call("peer", started.peers[0])
    assert info["state"] == "FAILED"
    assert info["reason"] == "transport retry counter exceeded"
    assert 5 <= info["stats"]["uncertain"] < 5 + 16
    before = started.underlay(VXLAN)
    await started.exchange(SMALL, seed=35)
    assert started.underlay(VXLAN) == before + 2 * len(SMALL)
    await left.call("delete", started.peers[0])
    await started.join()
    await started.exchange(SMALL, seed=37)
    assert started.underlay(VXLAN) == before + 2 * len(SMALL)
    for end in started.ends:
        await end.call("balance")


@pytest.mark.parametrize(
    ("device", "port", "gid_index", "line"),
    [
        ("rxe9", 1, GID_INDEX, f'no RDMA device is named "rxe9"; there is {DEVICE}'),
        (DEVICE, 2, GID_INDEX, f"{DEVICE}: there is no port 2"),
        (DEVICE, 1, 200, f"{DEVICE}: port 1 has no GID of index 200"),
    ],
)
async def test_devices_that_cannot_be_used(started: Pair, device: str, port: int, gid_index: int, line: str) -> None:
    """One line says what is wrong."""
    left = started.ends[0]
    await left.call("close_device")
    assert await left.refusal("open_device", device, port, gid_index) == f"FastPathError: {line}"
    await left.call("open_device", DEVICE, 1, GID_INDEX)
