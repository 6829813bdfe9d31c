# SPDX-License-Identifier: Apache-2.0
"""The wire format against an independent program, which keeps the rules or breaks them."""

from __future__ import annotations

import json
import shlex
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.guest.guest import Job
from tests.guest.root import ROOT
from tests.rdma.bed import DEVICE, GID_INDEX, Bed, Host
from tests.rdma.fastpath_host import SECOND, VNI, frames
from tests.rdma.pair import EPOCH, Driven, Pair, running

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

HEADER = struct.Struct("<4sBB10sIIII")
# as in speaker.py
PEER, TODO = "/tmp/speaker.peer", "/tmp/speaker.todo"
CREDITS = 16
FITS, TOO_LONG = 65600, 65700  # bytes: a receive buffer's, and more
TCP = bytes.fromhex(
    "0200000000bb0200000000aa0800"  # Ethernet
    "450003fc00010000400600000a0000010a000002"  # IPv4, 1020 bytes, its checksum to come
    "03e807d000000001000000005010ffff00000000"  # TCP
)


def data(frame: bytes, **changes: Any) -> bytes:
    """A data message, or what it becomes by changes to its fields."""
    fields = {"magic": b"FFRD", "version": 1, "kind": 1, "offload": bytes(10), "vni": VNI, "epoch": EPOCH,
              "length": len(frame), "limit": CREDITS}  # fmt: skip
    return HEADER.pack(*(fields | changes).values()) + frame


class Speaker:
    """The program, in the guest that it shares with the right fast path."""

    def __init__(self, host: Host, job: Job) -> None:
        self.host = host
        self.job = job

    async def meet(self, driven: Driven) -> int:
        """Connect to a fast path; the peer's number there."""
        told = json.loads((await self.job.said(r"\}")).splitlines()[0])
        peer, end = await driven.call("add", 1)
        await driven.call("connect", peer, told, EPOCH)
        await self._write(PEER, {"end": end, "epoch": EPOCH})
        await self.job.said("connected")
        return int(peer)

    async def do(self, messages: list[bytes], returns: int = 0) -> None:
        """Begin to send messages, then frames that come back to where they came from."""
        await self._write(TODO, [[message.hex() for message in messages], returns])

    async def _write(self, path: str, what: Any) -> None:
        file = self.host.guest.shared / "speaker.json"
        file.write_text(json.dumps(what), encoding="utf-8")
        await self.host.guest.run(f"cat /shared/speaker.json >{shlex.quote(path)}")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def started(booted_pair: Bed) -> AsyncIterator[Pair]:
    """Two fast paths, of which these tests take the left one."""
    async with running(booted_pair) as pair:
        yield pair


@pytest_asyncio.fixture(loop_scope="session")
async def speaker(booted_pair: Bed) -> AsyncIterator[Speaker]:
    """The program, not connected yet."""
    right = booted_pair.hosts[1]
    command = f"exec /usr/bin/python3 {ROOT}/tests/rdma/speaker.py {DEVICE} {GID_INDEX}"
    async with right.guest.job(command) as job:
        yield Speaker(right, job)


async def test_frames_come_back(started: Pair, speaker: Speaker) -> None:
    """More than there are credits, so that they go round; and a request for segmentation, as it was made."""
    left = started.ends[0]
    peer = await speaker.meet(left)
    await left.call("use", peer)
    sizes = [14, 60, 1500, 9000, 65557] * (CREDITS // 4)
    await speaker.do([], returns=len(sizes) + 1)
    for number in range(0, len(sizes), 10):
        await left.call("send", sizes[number : number + 10], number)
        await left.call("expect", sizes[number : number + 10], number)
    header = struct.pack("<BBHHHHH", 1, 1, 54, 100, 34, 16, 0)  # NEEDS_CSUM, GSO_TCPV4
    frame = TCP + bytes(range(250)) * 4
    frame = frame[: 14 + 1020]
    await left.call("send_request", frame.hex(), header.hex())
    ((back, same),) = await left.call("received")
    assert (back[:20], same) == (header[:10].hex(), frame.hex())
    await speaker.job.said("done")
    stats = (await left.call("peer", peer))["stats"]
    assert stats["tx_messages"] == stats["rx_messages"] == len(sizes) + 1
    assert stats["no_credit"] == 0
    await left.call("balance")
    await left.call("forget")


async def test_forged_messages(started: Pair, speaker: Speaker) -> None:
    """Each is counted by its reason and dropped; what is right between them goes through."""
    left = started.ends[0]
    peer = await speaker.meet(left)
    before = (await left.call("port", "device"))["drops"]
    right = frames([60], 1)
    await speaker.do([
        b"short",
        data(right[0])[:31],
        data(right[0], version=9),
        data(right[0], length=59),
        data(right[0], epoch=EPOCH - 1),
        data(bytes(FITS - HEADER.size)),
        data(right[0], vni=VNI + 1),
        data(right[0], offload=b"\x01\x01" + bytes(8)),
        data(right[0]),
    ])  # fmt: skip
    await speaker.job.said("done")
    await left.call("expect", [60], 1)
    after = (await left.call("port", "device"))["drops"]
    counted = {reason: n - before.get(reason, 0) for reason, n in after.items()}
    assert counted == {"rdma-malformed": 4, "rdma-epoch": 1, "rdma-oversize": 1, "tunnel-vni": 1}
    assert (await left.call("port", "network"))["drops"] == {"bad-offload": 1}
    assert (await left.call("peer", peer))["state"] == "CONNECTED"
    await left.call("balance")
    await left.call("forget")


async def test_longer_than_any_message(started: Pair, speaker: Speaker) -> None:
    """No buffer takes it: the queue pair breaks, and that is all."""
    left = started.ends[0]
    peer = await speaker.meet(left)
    before = (await left.call("port", "device"))["drops"].get("rdma-oversize", 0)
    await speaker.do([data(bytes(TOO_LONG - HEADER.size))])
    await left.call("event", peer, "FAILED")
    assert (await left.call("port", "device"))["drops"]["rdma-oversize"] == before + 1
    await left.call("balance")
    await left.call("forget")


async def test_credits_that_cannot_be(started: Pair, speaker: Speaker) -> None:
    """Who gives such loses the queue pair."""
    left = started.ends[0]
    peer = await speaker.meet(left)
    await speaker.do([data(frames([60], 1)[0], limit=CREDITS + 40000)])
    await left.call("event", peer, "FAILED")
    assert (await left.call("peer", peer))["reason"] == "the other end gives credits that cannot be"
    await left.call("balance")
    await left.call("forget")


async def test_one_that_takes_nothing_holds_up_nobody(started: Pair, speaker: Speaker) -> None:
    """It gives no credit: what is for it is dropped and counted; what is for others in the same bursts comes."""
    left, right = started.ends
    await started.join()
    await left.call("open_second")
    idle = await speaker.meet(left)
    await left.call("use", idle, SECOND)
    sizes = [60, 1500, 9000] * CREDITS
    for seed in range(3):
        await left.call("send_to_both", sizes, seed)
        await right.call("expect", sizes, seed)
    stats = (await left.call("peer", idle))["stats"]
    assert (stats["tx_messages"], stats["no_credit"]) == (CREDITS, 3 * len(sizes) - CREDITS)
    stats = (await left.call("peer", started.peers[0]))["stats"]
    assert (stats["tx_messages"], stats["no_credit"], stats["no_room"]) == (3 * len(sizes), 0, 0)
    await left.call("balance")
    await started.part()
