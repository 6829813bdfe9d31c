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
# virtio 1.1, sections 5.1.3 and 6
MRG_RXBUF, INDIRECT_DESC, EVENT_IDX, VERSION_1, RING_PACKED = (1 << bit for bit in (15, 28, 29, 32, 34))
# Of virtio-net-pci on the left: properties, and the features that it then lacks. On the right it is as QEMU makes it.
DEVICES = {
    "legacy": ("disable-modern=on,disable-legacy=off", VERSION_1 | RING_PACKED),
    # the only one with a header of 10 bytes (section 5.1.6.1)
    "legacy-not-mergeable": (
        "disable-modern=on,disable-legacy=off,mrg_rxbuf=off",
        VERSION_1 | RING_PACKED | MRG_RXBUF,
    ),
    "not-mergeable": ("mrg_rxbuf=off", MRG_RXBUF | RING_PACKED),
    "not-mergeable-packed": ("mrg_rxbuf=off,packed=on", MRG_RXBUF),
    "direct": ("indirect_desc=off", INDIRECT_DESC | RING_PACKED),
    "direct-packed": ("indirect_desc=off,packed=on", INDIRECT_DESC),
    "no-event-index": ("event_idx=off", EVENT_IDX | RING_PACKED),
    "no-event-index-packed": ("event_idx=off,packed=on", EVENT_IDX),
    "long-rings": ("rx_queue_size=1024,tx_queue_size=1024", RING_PACKED),
}


@pytest.mark.parametrize(("properties", "lacks"), DEVICES.values(), ids=DEVICES.keys())
async def test_devices(run_dir: Path, properties: str, lacks: int) -> None:
    features = MRG_RXBUF | INDIRECT_DESC | EVENT_IDX | VERSION_1 | RING_PACKED
    with Ffswitchd(run_dir, may_log=PEER_LOST) as daemon:
        async with AsyncExitStack() as stack:
            left, right = await start_pair(stack, daemon, {"left": {"properties": [properties]}}, mtu=1500)
            assert daemon.call("port.get", name="left")["features"] & features == features & ~lacks
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
