# SPDX-License-Identifier: Apache-2.0
"""The bed itself: RDMA between its hosts, ffswitch in one of them, an underlay that obeys."""

from __future__ import annotations

import pytest

from tests.rdma.bed import DEVICE, GID_INDEX, Bed
from tests.rdma.relay import ROCE

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(400)]

PINGPONG_PORT = 18515  # TCP, where its two ends tell each other their queue pairs
ROUNDS = 10


async def test_reliable_connection(pair: Bed) -> None:
    """libibverbs' own ping-pong over a queue pair, with RoCE v2 on the underlay."""
    left, right = pair.hosts
    command = f"ibv_rc_pingpong -d {DEVICE} -g {GID_INDEX} -n {ROUNDS}"
    async with right.guest.job(command) as server:
        await right.listening(PINGPONG_PORT)
        client = await left.guest.run(f"{command} {right.ipv4}")
        for output in (client, await server.wait()):
            assert f"{ROUNDS} iters" in output
    for wire in pair.relay.between(left.guest.name, right.guest.name):
        assert wire.frames[ROCE] >= ROUNDS
