# SPDX-License-Identifier: Apache-2.0
"""The bed itself: RDMA between its hosts, ffswitch in one of them, an underlay that obeys."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import PcapReader, wrpcap

from tests.rdma import bed, switch, verbs
from tests.rdma.bed import DEVICE, GID_INDEX, Bed, Host
from tests.rdma.relay import ROCE

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(400)]

PINGPONG_PORT = 18515  # TCP, where its two ends tell each other their queue pairs
ROUNDS = 10
ROCE_V2 = 2  # enum ibv_gid_type_sysfs and ibv_gid_type
ACTIVE = 4  # enum ibv_port_state
SUCCESS, RETRIES_EXCEEDED = 0, 12  # enum ibv_wc_status
MESSAGES = (1, 64, 1024, 1025, 32768)  # bytes; an MTU holds 1024
FRAMES = 40  # more than a burst
MACS = {"web0": "02:00:00:00:00:0a", "db0": "02:00:00:00:00:0b"}


async def ping_pong(client: Host, server: Host) -> None:
    """libibverbs' own ping-pong over a queue pair."""
    command = f"ibv_rc_pingpong -d {DEVICE} -g {GID_INDEX} -n {ROUNDS}"
    async with server.guest.job(command) as job:
        await server.listening(PINGPONG_PORT)
        outputs = [await client.guest.run(f"{command} {server.ipv4}"), await job.wait()]
    assert all(f"{ROUNDS} iters" in output for output in outputs), outputs


async def test_reliable_connection(pair: Bed) -> None:
    left, right = pair.hosts
    wires = pair.relay.between("left", "right")
    before = [wire.frames[ROCE] for wire in wires]
    await ping_pong(left, right)
    assert all(wire.frames[ROCE] - count >= ROUNDS for wire, count in zip(wires, before, strict=True))


async def test_pyverbs(pair: Bed) -> None:
    """Messages shorter and longer than a packet arrive; a cut link is an error at the sender, and heals."""
    random_bytes = random.Random(1)
    async with AsyncExitStack() as stack:
        left, right = [await stack.enter_async_context(verbs.start(host)) for host in pair.hosts]
        for end, host in ((left, pair.hosts[0]), (right, pair.hosts[1])):
            found = await end.call("describe")
            assert (found["device"], found["state"]) == (DEVICE, ACTIVE)
            gids = {gid["index"]: (gid["gid"], gid["type"]) for gid in found["gids"]}
            assert gids[GID_INDEX] == (ipv4_gid(host.ipv4), ROCE_V2)
        await verbs.connect(left, right)
        for length in MESSAGES:
            message = random_bytes.randbytes(length)
            assert await left.send(message) == SUCCESS
            assert await right.receive() == message
        pair.relay.cut()
        assert await left.send(b"into the void") == RETRIES_EXCEEDED
        assert sum(wire.lost for wire in pair.relay.between("left", "right")) > 0
    pair.relay.heal()
    await ping_pong(*pair.hosts)


def ipv4_gid(address: str) -> str:
    """The RoCE v2 GID of an IPv4 address as pyverbs prints it: ::ffff:a.b.c.d, with all zeros."""
    a, b, c, d = (int(part) for part in address.split("."))
    return f"0000:0000:0000:0000:0000:ffff:{a:02x}{b:02x}:{c:02x}{d:02x}"


async def test_lossy_link(pair: Bed) -> None:
    """A reliable connection makes up for what the link loses."""
    pair.relay.impair(loss=0.05, delay=0.001)
    await ping_pong(*pair.hosts)


async def test_ffswitch_with_two_containers(pair: Bed) -> None:
    """Frames from one testpmd to another, through ffswitchd in a guest: each once, in order, byte for byte."""
    host = pair.hosts[0]
    headers = Ether(src=MACS["web0"], dst=MACS["db0"]) / IP(src="10.1.0.1", dst="10.1.0.2") / UDP(sport=1, dport=9)
    sent = [bytes(headers / (bytes([number]) * (20 + 30 * number))) for number in range(FRAMES)]
    wrpcap(str(host.guest.shared / "sent.pcap"), [Ether(frame) for frame in sent])
    wrpcap(str(host.guest.shared / "none.pcap"), [], linktype=1)
    size = (host.guest.shared / "sent.pcap").stat().st_size
    async with switch.start(host) as daemon, AsyncExitStack() as stack:
        testpmds = {}
        for port, mac in MACS.items():
            await switch.call(host, "port.add", name=port, mac=mac)
            testpmds[port] = await stack.enter_async_context(switch.container(host, port, mac))
        for port in MACS:
            await daemon.said(f"port {port}: ready")
        await switch.feed(host, testpmds["db0"], "db0", "none.pcap")
        await switch.feed(host, testpmds["web0"], "web0", "sent.pcap")
        await host.guest.until(f"test $(stat -c %s /tmp/db0.got) -ge {size} && cp /tmp/db0.got /shared/got.pcap")
        stats = await switch.call(host, "stats")
        assert stats["ports"]["web0"]["rx_packets"] == stats["ports"]["db0"]["tx_packets"] == FRAMES
    with PcapReader(str(host.guest.shared / "got.pcap")) as got:
        assert [bytes(frame) for frame in got] == sent


@pytest.mark.long
async def test_three_hosts() -> None:
    """Each reaches each other; one that is cut off takes nothing from the others."""
    async with bed.start("a", "b", "c") as three:
        a, b, c = three.hosts
        await asyncio.gather(ping_pong(a, b), ping_pong(b, c), ping_pong(c, a))
        three.relay.cut("c")
        await ping_pong(a, b)
        status, _ = await c.guest.status(f"ping -c 1 -W 2 {a.ipv4}")
        assert status != 0
        three.relay.heal()
        await b.guest.until(f"ping -c 1 -W 2 {c.ipv4}")
        await ping_pong(b, c)
