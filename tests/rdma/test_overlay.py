# SPDX-License-Identifier: Apache-2.0
"""Two hosts under a controller: containers talk by RDMA, and by VXLAN whenever they cannot."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests import captures, packets
from tests.rdma import overlay
from tests.rdma.bed import DEVICE, Bed
from tests.rdma.overlay import RDMA_TIMEOUT_MS, Overlay
from tests.rdma.relay import ROCE
from vswitch.slowpath.pipeline import EthType, parse
from vswitch.slowpath.types import Key

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

MACS = (packets.A.hex(":"), packets.B.hex(":"))
FRAME_MAX = 1464  # what fits VXLAN, too
BACK_S = 2 * RDMA_TIMEOUT_MS / 100  # 2 s with the 100 ms of ffswitchd
ONLY_VXLAN = {"kind": "Policy", "name": "no-rdma", "action": "allow", "paths": ["vxlan"]}


def conversation(source: bytes, destination: bytes) -> list[bytes]:
    """The frames of the capture that a network carries from one host to another."""
    found = []
    for frame in captures.frames(captures.GENERATED):
        key = parse(frame, 1)
        if not isinstance(key, Key) or (frame[6:12], frame[:6]) != (source, destination):
            continue
        # Neither who-has, which the switch answers, nor what it drops.
        if key.eth_type == EthType.IPV4 and key.l4_src and not key.vlan_tpid[0] and len(frame) <= FRAME_MAX:
            found.append(frame)
    assert len(found) > 15
    return found


THERE, BACK = conversation(packets.A, packets.B), conversation(packets.B, packets.A)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def started(booted_pair: Bed) -> AsyncIterator[Overlay]:
    """Both hosts reach each other by RDMA."""
    async with overlay.running(booted_pair, MACS) as found:
        yield found


async def test_a_capture_by_rdma(started: Overlay) -> None:
    """Byte for byte, in order, over the queue pair and not over VXLAN; and everything says so."""
    for sender, frames in enumerate((THERE, BACK)):
        before = [await peer(started, which) for which in (0, 1)]
        roce, vxlan = await started.replay(frames, sender=sender)
        assert roce >= len(frames)
        assert vxlan == 0
        after = [await peer(started, which) for which in (0, 1)]
        size = sum(map(len, frames))
        for end, way in ((sender, "tx"), (1 - sender, "rx")):
            for what, much in (("messages", len(frames)), ("bytes", size)):
                name = f"{way}_{what}"
                assert after[end]["stats"][name] - before[end]["stats"][name] == much
    async with started.sending(THERE):
        await started.until(0, ",rdma\\)", "dump-flows -o json")
    explained = await started.json(0, "explain web0 db0")
    assert (explained["path"], explained["fallback"]) == ("rdma", "")
    traced = await started.until(0, "by RDMA while a peer is active", "trace --packet /shared/sent.pcap --port web0")
    assert "endpoint db0" in traced


async def peer(started: Overlay, which: int) -> dict[str, Any]:
    """The only RDMA peer of a host."""
    (found,) = (await started.json(which, "status"))["rdma"]["peers"]
    return dict(found)


async def now(started: Overlay, which: int) -> int:
    """A host's clock, whole seconds."""
    return int(await started.hosts[which].guest.run("date +%s"))


@pytest.mark.long
async def test_a_policy_takes_rdma_away_and_gives_it_back(started: Overlay) -> None:
    await started.ctl("apply -f - --wait 60", ONLY_VXLAN)
    await started.until_vxlan("policy no-rdma")
    roce, vxlan = await started.replay(THERE)
    assert (roce, vxlan) == (0, len(THERE))
    await started.ctl("apply -f - --prune --wait 60", overlay.NETWORK)
    await started.until_rdma()
    roce, vxlan = await started.replay(THERE)
    assert vxlan == 0 and roce >= len(THERE)


@pytest.mark.long
async def test_a_link_that_carries_no_rdma(started: Overlay, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is sent into it once that is known; when it heals, RDMA comes back by itself."""
    started.bed.relay.refuse(ROCE)
    try:
        async with started.sending(THERE):
            await started.until(0, "at this moment vxlan")
        _, vxlan = await started.replay(BACK, sender=1)
        assert vxlan == len(BACK)
    finally:
        healed = await now(started, 0)
        started.bed.relay.heal()
    await started.until_rdma()
    back = float((await peer(started, 0))["since"]) - healed
    with capsys.disabled():
        print(f"\nby RDMA again at most {back:.1f} s after the link had healed")
    assert back < BACK_S
    _, vxlan = await started.replay(THERE)
    assert vxlan == 0


@pytest.mark.long
async def test_a_device_is_taken_away_and_comes_back(started: Overlay) -> None:
    right = started.hosts[1].guest
    await right.run(f"rdma link delete {DEVICE}")
    await started.until_vxlan("a host has no RDMA port \\(host right: there is no RDMA device\\)")
    _, vxlan = await started.replay(THERE)
    assert vxlan == len(THERE)
    await right.run(f"rdma link add {DEVICE} type rxe netdev eth0")
    await started.until_rdma()
    _, vxlan = await started.replay(THERE)
    assert vxlan == 0


@pytest.mark.long
async def test_gids_that_do_not_reach_the_other_host(started: Overlay) -> None:
    """Without an address in common the controller sees it; with a wrong one, the first message does not come back."""
    right = started.hosts[1].guest
    await right.run(f"rdma link delete {DEVICE}; ip link add dummy0 type dummy; ip link set dummy0 up")
    try:
        await right.run(f"rdma link add {DEVICE} type rxe netdev dummy0")
        await started.until_vxlan("no address family in common")
        await right.run("ip address add 10.99.0.1/24 dev dummy0")
        await started.until(0, "at this moment vxlan")
        _, vxlan = await started.replay(THERE)
        assert vxlan == len(THERE)
    finally:
        await right.run(f"rdma link delete {DEVICE}; ip link delete dummy0")
        await right.run(f"rdma link add {DEVICE} type rxe netdev eth0")
    await started.until_rdma()


@pytest.mark.long
async def test_a_device_that_cannot_be_opened(started: Overlay) -> None:
    """That is one line, in `explain` of both hosts."""
    right = started.hosts[1].guest
    number = "$(tr : ' ' </sys/class/infiniband_verbs/uverbs0/dev)"
    # root may open everything, but nothing on a file system without devices
    await right.run(f"mount -t tmpfs -o nodev none /dev/infiniband && mknod /dev/infiniband/uverbs0 c {number}")
    try:
        await started.until_vxlan(f"host right: {DEVICE} cannot be used: Permission denied")
    finally:
        await right.run("umount /dev/infiniband")
    await started.until_rdma()


@pytest.mark.long
async def test_the_controller_is_killed(started: Overlay) -> None:
    """Frames go on by RDMA, and all is as before when there is one again."""
    assert started.controller is not None
    await started.controller.stop("KILL")
    for which in (0, 1):
        await started.until(which, "^host .*: degraded", "status")
    roce, vxlan = await started.replay(THERE)
    assert vxlan == 0 and roce >= len(THERE)
    epochs = [(await peer(started, which))["epoch"] for which in (0, 1)]
    await started.start_controller()
    for which in (0, 1):
        await started.until(which, "^host .*: connected", "status")
    assert [(await peer(started, which))["epoch"] for which in (0, 1)] == epochs
    roce, vxlan = await started.replay(BACK, sender=1)
    assert vxlan == 0 and roce >= len(BACK)


@pytest.mark.long
async def test_a_switch_is_killed_and_comes_back(started: Overlay) -> None:
    """The other host does not send to the queue pair that is gone; there is another one, with another epoch."""
    before = (await peer(started, 0))["epoch"]
    await started.agents[1].stop("KILL")
    await started.hosts[0].guest.until("! ffswitch status | grep -q ' active '", overlay.SECONDS)
    await started.start_agent(1)
    await started.until_rdma()
    assert (await peer(started, 0))["epoch"] == (await peer(started, 1))["epoch"] != before
    for sender, frames in enumerate((THERE, BACK)):
        roce, vxlan = await started.replay(frames, sender=sender)
        assert vxlan == 0 and roce >= len(frames)
