# SPDX-License-Identifier: Apache-2.0
"""Linux's virtio-net driver at the switch's ports: virtual machines with Debian's kernel."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.system.containers import MACS, PEER_LOST
from tests.system.ffswitchd import Ffswitchd
from tests.system.guests import (
    DATA_MB,
    MB,
    MTU,
    address,
    configure,
    fetch,
    fetch_both_ways,
    make_guest,
    ping,
    start_endless_fetch,
    start_pair,
    state,
    traffic,
    until,
)

pytestmark = pytest.mark.timeout(400)

PACKED = 1 << 34  # virtio 1.1, section 6: VIRTIO_F_RING_PACKED
# Section 5.1.3: CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6
OFFLOADS = 1 << 0 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12
LONGEST_FRAME = 1514  # without segmentation offload
QUEUES = 2


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_traffic_both_ways(run_dir: Path, packed: bool) -> None:
    nics = {port: {"properties": ("packed=on",) if packed else ()} for port in MACS}
    with Ffswitchd(run_dir, may_log=PEER_LOST) as daemon:
        async with AsyncExitStack() as stack:
            left, right = await start_pair(stack, daemon, nics)
            for port in MACS:
                assert bool(daemon.call("port.get", name=port)["features"] & PACKED) == packed
            for network, version in (("eth0", 4), ("eth0", 6), ("eth0.7", 4)):
                await ping(left, right, network, version)
                await ping(right, left, network, version)
                await fetch_both_ways(left, right, network, version)
            before = traffic(daemon, "left")
            await ping(left, right, size=MTU - 28)  # the headers of IPv4 and ICMP
            after = traffic(daemon, "left")
            assert after["rx_bytes"] - before["rx_bytes"] >= 3 * MTU
            assert after["rx_packets"] - before["rx_packets"] < 2 * 3  # whole, not in fragments


async def test_two_queues(run_dir: Path) -> None:
    """Left has two CPUs, of which each sends on a queue of its own."""
    with Ffswitchd(run_dir, may_log=PEER_LOST) as daemon:
        async with AsyncExitStack() as stack:
            left, right = await start_pair(stack, daemon, {"left": {"queues": QUEUES}}, mtu=1500, queues=QUEUES)
            assert daemon.call("port.get", name="left")["tx_queues"] == QUEUES
            assert daemon.call("port.get", name="right")["tx_queues"] == 1
            for queue in range(QUEUES):
                before = traffic(daemon, "left")["queues"]
                await left.run(f"taskset -c {queue} ping -A -c 3 -W 30 {address(right)}")
                after = traffic(daemon, "left")["queues"]
                assert after[queue]["rx_packets"] - before[queue]["rx_packets"] >= 3
            await fetch_both_ways(left, right)


@pytest.mark.parametrize("offloads", [True, False], ids=["passed-through", "done-in-software"])
async def test_offloads(run_dir: Path, offloads: bool) -> None:
    """Right leaves checksums and segmentation to its device; left does, too, or understands none of it."""
    with Ffswitchd(run_dir, may_log=PEER_LOST) as daemon:
        async with AsyncExitStack() as stack:
            left, right = await start_pair(stack, daemon, {"left": {"offloads": offloads}}, mtu=1500)
            negotiated = {port: daemon.call("port.get", name=port)["features"] & OFFLOADS for port in MACS}
            assert negotiated == {"left": OFFLOADS if offloads else 0, "right": OFFLOADS}
            for version in (4, 6):
                before = {port: traffic(daemon, port) for port in MACS}
                await fetch(left, right, version=version)
                after = {port: traffic(daemon, port) for port in MACS}
                assert mean_length(before["right"], after["right"], "rx") > LONGEST_FRAME
                assert (mean_length(before["left"], after["left"], "tx") > LONGEST_FRAME) == offloads
                await fetch(right, left, version=version)


def mean_length(before: dict[str, Any], after: dict[str, Any], direction: str) -> float:
    """Bytes a frame."""
    frames, length = (after[f"{direction}_{unit}"] - before[f"{direction}_{unit}"] for unit in ("packets", "bytes"))
    return float(length / frames)


async def test_reset_in_mid_transfer(run_dir: Path) -> None:
    """A guest starts again as if by its reset button; its QEMU and the connection to the switch stay."""
    with Ffswitchd(run_dir, may_log=PEER_LOST) as daemon:
        async with AsyncExitStack() as stack:
            left, right = await start_pair(stack, daemon)
            await start_endless_fetch(daemon, left, right)
            right.reset()
            await until(lambda: state(daemon, "right") == "negotiating", "right's device stopped")
            assert state(daemon, "left") == "ready"
            await configure(right)
            await left.run("kill $endless")
            await ping(left, right)
            await fetch_both_ways(left, right)
            assert {state(daemon, port) for port in MACS} == {"ready"}


async def test_qemu_killed_in_mid_transfer(run_dir: Path) -> None:
    with Ffswitchd(run_dir, may_log=PEER_LOST) as daemon:
        async with AsyncExitStack() as stack:
            left, right = await start_pair(stack, daemon)
            await start_endless_fetch(daemon, left, right)
            await right.kill()
            await until(lambda: state(daemon, "right") == "lost", "right lost")
            assert state(daemon, "left") == "ready"
            right = await stack.enter_async_context(make_guest(daemon, "right"))
            await configure(right)
            await left.run("kill $endless")
            await ping(left, right)
            await fetch_both_ways(left, right)


async def test_switch_killed_in_mid_transfer(run_dir: Path) -> None:
    """The transfer carries on over the restarted switch, and every byte arrives."""
    copies = 8
    async with AsyncExitStack() as stack:
        first = Ffswitchd(run_dir)
        stack.callback(first.kill)
        left, right = await start_pair(stack, first)
        await right.run(f"for i in $(seq {copies}); do cat /srv/data; done >/srv/long")
        before = traffic(first, "left")["tx_bytes"]
        await left.run(f"wget -q -O - http://{address(right)}/long | sha256sum >/tmp/sum & long=$!")
        await until(lambda: traffic(first, "left")["tx_bytes"] > before + MB, "1 MB from right to left")
        assert traffic(first, "left")["tx_bytes"] < before + copies * DATA_MB * MB
        first.kill()
        with Ffswitchd(run_dir, may_log=PEER_LOST) as daemon:
            await until(lambda: {state(daemon, port) for port in MACS} == {"ready"}, "both ports ready again")
            assert await left.run("wait $long; cat /tmp/sum") == await right.run("sha256sum </srv/long")
            assert traffic(daemon, "left")["tx_bytes"] > 0
            await fetch_both_ways(left, right)
            await stack.aclose()
