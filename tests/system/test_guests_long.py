# SPDX-License-Identifier: Apache-2.0
"""More of virtual machines, which takes minutes: each kind of ring and device, both roles, restarts again and again."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.system.containers import MACS, PEER_LOST
from tests.system.ffswitchd import Ffswitchd
from tests.system.guests import (
    configure,
    fetch_both_ways,
    make_guest,
    ping,
    start_endless_fetch,
    start_pair,
    state,
    until,
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

RESTARTS = 5
# Of virtio-net-pci, on the left; on the right stands the device as it comes.
DEVICES = {
    "legacy": ("disable-modern=on", "disable-legacy=off"),  # virtio 1.1, section 7.4: the header has 10 bytes
    "not-mergeable": ("mrg_rxbuf=off",),
    "not-mergeable-packed": ("mrg_rxbuf=off", "packed=on"),
    "direct": ("indirect_desc=off",),
    "direct-packed": ("indirect_desc=off", "packed=on"),
    "no-event-index": ("event_idx=off",),
    "no-event-index-packed": ("event_idx=off", "packed=on"),
    "long-rings": ("rx_queue_size=1024", "tx_queue_size=1024"),
}


@pytest.mark.parametrize("properties", DEVICES.values(), ids=DEVICES.keys())
async def test_devices(run_dir: Path, properties: tuple[str, ...]) -> None:
    with Ffswitchd(run_dir, may_log=PEER_LOST) as daemon:
        async with AsyncExitStack() as stack:
            left, right = await start_pair(stack, daemon, {"left": {"properties": properties}}, mtu=1500)
            for version in (4, 6):
                await ping(left, right, version=version)
                await fetch_both_ways(left, right, version=version)


async def test_qemu_as_client(run_dir: Path) -> None:
    """The switch listens; a guest that is killed comes back."""
    nics: dict[str, dict[str, Any]] = {port: {"client": True} for port in MACS}
    with Ffswitchd(run_dir, may_log=PEER_LOST) as daemon:
        async with AsyncExitStack() as stack:
            left, right = await start_pair(stack, daemon, nics, role="server")
            await fetch_both_ways(left, right)
            await right.kill()
            await until(lambda: state(daemon, "right") == "lost", "right lost")
            right = await stack.enter_async_context(make_guest(daemon, "right", client=True))
            await configure(right)
            await fetch_both_ways(left, right)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_restarts_again_and_again(run_dir: Path, packed: bool) -> None:
    """Resets in mid-transfer, of the guest that sends and of the one that receives, over several queues."""
    nics = {port: {"queues": 2, "properties": ("packed=on",) if packed else ()} for port in MACS}
    with Ffswitchd(run_dir, may_log=PEER_LOST) as daemon:
        async with AsyncExitStack() as stack:
            left, right = await start_pair(stack, daemon, nics, queues=2)
            for restart in range(RESTARTS):
                await start_endless_fetch(daemon, left, right)
                victim, other = (left, right) if restart % 2 else (right, left)
                victim.reset()
                await until(lambda port=victim.name: state(daemon, port) == "negotiating", "the device stopped")  # type: ignore[misc]
                assert state(daemon, other.name) == "ready"
                await configure(victim)
                if other is left:
                    await left.run("kill $endless")
                await fetch_both_ways(left, right)
            totals = daemon.call("stats")["totals"]
            assert totals["balanced"], totals
