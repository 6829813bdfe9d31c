# SPDX-License-Identifier: Apache-2.0
"""Planned changes of path under load: between VXLAN and RDMA nothing is lost, repeated or reordered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.rdma.bed import Bed
from tests.rdma.pair import Pair, running
from tests.rdma.relay import ROCE, VXLAN

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

DELAY = 0.02  # by which VXLAN is slower: whatever does not wait overtakes
WINDOW = 64


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fast_paths(booted_pair: Bed) -> AsyncIterator[Pair]:
    """Two fast paths for all tests, on an underlay that carries RDMA faster than VXLAN."""
    async with running(booted_pair) as pair:
        booted_pair.relay.slow(VXLAN, DELAY)
        yield pair
        booted_pair.relay.heal()


@pytest.mark.parametrize("changes", [6, pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.parametrize("sender", [0, 1])
async def test_planned_changes_under_load(fast_paths: Pair, changes: int, sender: int) -> None:
    """To RDMA and back again, with a window of frames on their way all the time."""
    source, target = fast_paths.ends[sender], fast_paths.ends[1 - sender]
    await fast_paths.join(use=False)
    before = fast_paths.underlay(VXLAN), fast_paths.underlay(ROCE)
    sent, found = await asyncio.gather(
        source.call("changes", fast_paths.peers[sender], changes, WINDOW), target.call("receive_numbered")
    )
    stats = (await source.call("peer", fast_paths.peers[sender]))["stats"]
    assert found == {"reordered": 0, "duplicated": 0, "lost": 0, "received": sent}
    assert stats["unplanned"] == stats["no_credit"] == stats["no_room"] == 0
    assert stats["held"] >= changes
    assert 0 < stats["tx_messages"] < sent
    assert fast_paths.underlay(VXLAN) > before[0] and fast_paths.underlay(ROCE) > before[1]
    for end in fast_paths.ends:
        await end.call("balance")
    await fast_paths.part()
