# SPDX-License-Identifier: Apache-2.0
"""Ways to carry a stream from one guest to another over the same link; each says how many bytes of TCP payload arrive.

A frame is 54 bytes of headers and its payload. perftest's messages are of a frame's size, and count as frames.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.bench import machine
from tests.bench.errors import BenchError
from tests.bench.stats import Core, others_between
from tests.guest.guest import Job
from tests.rdma.bed import DEVICE, GID_INDEX, Host
from tests.rdma.pair import EPOCH, PROGRAM, Driven

HEADERS = 54
SEGMENT = 1410  # TCP payload of what VXLAN leaves of an MTU of 1500
MTU_INSIDE = 1450
SUPER = 46  # segments
SIZES = {"1500": HEADERS + SEGMENT, "64k": HEADERS + SUPER * SEGMENT}  # bytes of a frame
# Payload bytes on their way: half of the credits of a queue pair, and half of what may be unacknowledged.
WINDOWS = {"1500": 64 * SEGMENT, "64k": 15 * SUPER * SEGMENT}
FIRST_MESSAGES = 300
STARTED_FRAMES = 100  # by then it is as fast as it gets
START_NS = 10 * 10**9
MARGIN = 1  # seconds that a stream has to get going, and to end
PORT = 18515
TIMEOUT = 17  # 4.096 µs * 2^17 = 0.5 s for an acknowledgement: 67 ms, perftest's own, are too short under emulation
IPERF_PORT = 5201
VXLAN_PORT = 8472  # not ours
IP = "/bin/ip"  # the shell there has another one
NAMESPACE = "container"
SOCKET = "/tmp/crossing.sock"
CROSSING = (
    "rm -f /tmp/crossing.in /tmp/crossing.out; mkfifo /tmp/crossing.in /tmp/crossing.out; cp /shared/crossing /tmp;"
    " exec /tmp/crossing -l 0 --no-huge -m 96 --no-pci --no-shconf --no-telemetry --file-prefix crossing"
    f" --vdev=net_virtio_user0,path={SOCKET},server=1,queue_size=1024,mac={{mac}}"
    " <>/tmp/crossing.in 1<>/tmp/crossing.out"
)
MACS = ("02:00:00:01:00:00", "02:00:00:02:00:00")
OVERLAY = f"""(
set -e
{IP} netns add {NAMESPACE}
{IP} link add bridge0 type bridge
{IP} link add vxlan0 type vxlan id 9 dstport {VXLAN_PORT} local {{here}} remote {{there}} dev eth0
{IP} link add veth0 type veth peer name veth1 netns {NAMESPACE}
{IP} link set vxlan0 mtu {MTU_INSIDE} master bridge0 up
{IP} link set veth0 mtu {MTU_INSIDE} master bridge0 up
{IP} link set bridge0 up
{IP} -n {NAMESPACE} address add 10.9.0.{{number}}/24 dev veth1
{IP} -n {NAMESPACE} link set veth1 mtu {MTU_INSIDE} up
)"""
# One frame a packet of TCP, all the way.
OFFLOADS = f"for there in '{IP} netns exec {NAMESPACE} ethtool -K veth1' 'ethtool -K veth0' 'ethtool -K vxlan0'; do" \
    " $there tso {0} gso {0} gro {0}; done"  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reading:
    """One measurement. rate: payload bytes/s. cpu_ns: of both guests' QEMU, per payload byte. others: see stats.py."""

    rate: float
    cpu_ns: float
    others: float
    lost: float = 0.0  # share of the payload


class Way(Protocol):
    """What is measured."""

    async def measure(self, size: str, seconds: int) -> Reading:
        """A stream of frames of one of SIZES. Raises BenchError."""


class Meter:
    """CPU time of the machines, over some seconds in the middle of a stream."""

    def __init__(self, hosts: Sequence[Host], cpus: Sequence[int]) -> None:
        self._pids = [host.guest.pid for host in hosts]
        self._cpus = cpus

    async def over(self, seconds: float) -> tuple[float, float, float]:
        """Seconds that passed, CPU seconds of both machines, and the share of a core that others took."""
        cores, begun, used = self._read()
        await asyncio.sleep(seconds)
        cores_after, ended, used_after = self._read()
        wall = ended - begun
        return wall / 1e9, (used_after - used) / 1e9, others_between(cores, cores_after, wall)

    def _read(self) -> tuple[Core, int, int]:
        # the machines' threads go from CPU to CPU, so only the mean of all is right
        cores = Core.mean(list(machine.core_times([*self._pids, os.getpid()], self._cpus).values()))
        return cores, time.monotonic_ns(), sum(map(machine.cpu_ns, self._pids))


class SendBw:
    """perftest's ib_send_bw over a reliable connection; `options` are its own."""

    def __init__(self, hosts: Sequence[Host], meter: Meter, options: str = "") -> None:
        self._hosts, self._meter, self._options = hosts, meter, options
        self._rates: dict[str, float] = {}  # messages a second, as found last

    async def measure(self, size: str, seconds: int) -> Reading:
        # it cannot be given a time when it waits for events
        if size not in self._rates:
            await self._run(size, FIRST_MESSAGES, 0)
        wall, cpu, others = await self._run(size, int(self._rates[size] * (seconds + 2 * MARGIN)), seconds)
        rate = self._rates[size] * (SIZES[size] - HEADERS)
        return Reading(rate, 1e9 * cpu / (rate * wall), others)

    async def _run(self, size: str, messages: int, seconds: int) -> tuple[float, float, float]:
        left, right = self._hosts
        command = (
            f"ib_send_bw -d {DEVICE} -x {GID_INDEX} -c RC -F -s {SIZES[size]} -n {max(messages, FIRST_MESSAGES)}"
            f" -p {PORT} -u {TIMEOUT} {self._options}"
        )
        async with right.guest.job(command) as server:
            await right.listening(PORT)
            async with left.guest.job(f"{command} {right.ipv4}") as client:
                if seconds:
                    await flows(right)
                metered = await self._meter.over(seconds)
                output = await client.wait()
                await server.wait()
        self._rates[size] = send_bw(output, SIZES[size])
        return metered


def send_bw(output: str, size: int) -> float:
    """Messages a second of ib_send_bw's line for a size. Raises BenchError."""
    for line in output.splitlines():
        words = line.split()
        if len(words) == 5 and words[0] == str(size):
            return float(words[3]) * 2**20 / size  # its MB/s are of 2^20 bytes
    raise BenchError(f"ib_send_bw says nothing of {size} bytes: {output.strip()}")


class KernelTcp:
    """Linux's vxlan device and bridge, and TCP of iperf3 between namespaces. `prepare` comes first, once."""

    def __init__(self, hosts: Sequence[Host], meter: Meter) -> None:
        self._hosts, self._meter = hosts, meter

    async def prepare(self) -> None:
        left, right = self._hosts
        for number, (here, there) in enumerate(((left, right), (right, left)), 1):
            await here.guest.run("modprobe -a vxlan bridge veth")
            await here.guest.run(OVERLAY.format(here=here.ipv4, there=there.ipv4, number=number))
        await left.guest.until(f"{IP} netns exec {NAMESPACE} ping -c 1 -W 2 10.9.0.2")

    async def measure(self, size: str, seconds: int) -> Reading:
        left, right = self._hosts
        for host in self._hosts:
            await host.guest.run(OFFLOADS.format("on" if size == "64k" else "off"))
        enter = f"exec {IP} netns exec {NAMESPACE} iperf3"
        async with right.guest.job(f"{enter} -s -1 -p {IPERF_PORT}") as server:
            await right.guest.until(f"{IP} netns exec {NAMESPACE} ss -Hltn 'sport = :{IPERF_PORT}' | grep -q .")
            stream = f"{enter} -c 10.9.0.2 -p {IPERF_PORT} -O {MARGIN} -t {seconds + MARGIN} -J"
            async with left.guest.job(stream) as client:
                await flows(right)
                wall, cpu, others = await self._meter.over(seconds)
                output = await client.wait()
                await server.wait()
        rate = json.loads(output)["end"]["sum_received"]["bits_per_second"] / 8
        return Reading(rate, 1e9 * cpu / (rate * wall), others)


async def flows(host: Host) -> None:
    """Wait until a stream comes in at a host."""
    received = "$(cat /sys/class/net/eth0/statistics/rx_packets)"
    await host.guest.run(f"echo {received} >/tmp/packets")
    await host.guest.until(f"test {received} -gt $(($(cat /tmp/packets) + 100))")


class Crossing:
    """traffic/crossing.c in a guest."""

    def __init__(self, host: Host, job: Job) -> None:
        self._host, self._job = host, job

    async def signal(self, name: str) -> None:
        """Send a signal to it."""
        await self._host.guest.run(f"kill -{name} -{self._job.pid}")

    async def ask(self, words: str) -> dict[str, Any]:
        """The answer to a command. Raises BenchError."""
        answer = await self._host.guest.run(
            f"echo {words} >/tmp/crossing.in; read -r line </tmp/crossing.out; echo $line"
        )
        found: dict[str, Any] = json.loads(answer)
        if "error" in found:
            raise BenchError(f"crossing: {found['error']}: {words}")
        return found


class Switches:
    """ffswitch's fast paths in the guests, and a stream's two ends at their ports."""

    def __init__(self, ends: Sequence[Driven], crossings: Sequence[Crossing], meter: Meter) -> None:
        self._ends, self._crossings, self._meter = ends, crossings, meter
        self._peers: list[int] = []

    async def join(self) -> None:
        """A peer between the two."""
        told = []
        for end in self._ends:
            peer, one = await end.call("add", 1)
            self._peers.append(peer)
            told.append(one)
        for end, peer, other in zip(self._ends, self._peers, reversed(told), strict=True):
            await end.call("connect", peer, other, EPOCH, TIMEOUT)

    async def pause(self) -> None:
        """Nothing of them runs."""
        for end, crossing in zip(self._ends, self._crossings, strict=True):
            await end.pause()
            await crossing.signal("STOP")

    async def _counters(self) -> str:
        found = [
            await end.call("port", port) for end in self._ends for port in ("endpoint", "network", "uplink", "device")
        ]
        return json.dumps(found)

    async def stream(self, size: str, seconds: int, *, rdma: bool) -> Reading:
        """Send by RDMA, or by VXLAN."""
        for end, peer, crossing in zip(self._ends, self._peers, self._crossings, strict=True):
            await end.resume()
            await crossing.signal("CONT")
            await end.call("use", peer, *(() if rdma else (0,)))
        sender, sink = self._crossings
        went = await sender.ask("stats")
        start = await sink.ask("stats")
        await sender.ask(f"send {SIZES[size]} {WINDOWS[size]}")
        while (before := await sink.ask("stats"))["frames"] < start["frames"] + STARTED_FRAMES:
            if before["ns"] - start["ns"] > START_NS:
                raise BenchError(f"nothing came by {'RDMA' if rdma else 'VXLAN'}: {await self._counters()}")
        wall, cpu, others = await self._meter.over(seconds)
        after = await sink.ask("stats")
        await sender.ask("stop")
        gone = await sender.ask("stats")
        rate = (after["bytes"] - before["bytes"]) * 1e9 / (after["ns"] - before["ns"])
        last = await sink.ask("stats")
        lost = 1 - (last["bytes"] - start["bytes"]) / (gone["sent"] - went["sent"])
        return Reading(rate, 1e9 * cpu / (rate * wall), others, max(0.0, lost))


class Ours:
    """ffswitch, by one of its two paths; its processes run only meanwhile."""

    def __init__(self, switches: Switches, *, rdma: bool) -> None:
        self._switches, self._rdma = switches, rdma

    async def measure(self, size: str, seconds: int) -> Reading:
        try:
            return await self._switches.stream(size, seconds, rdma=self._rdma)
        finally:
            await self._switches.pause()


@contextlib.asynccontextmanager
async def switches(hosts: Sequence[Host], meter: Meter, crossing: Path) -> AsyncIterator[Switches]:
    """The two switches, joined and paused."""
    left, right = hosts
    ends, crossings = [], []
    async with contextlib.AsyncExitStack() as stack:
        for host, other, mac in ((left, right, MACS[0]), (right, left, MACS[1])):
            await asyncio.to_thread(shutil.copy, crossing, host.guest.shared)
            job = await stack.enter_async_context(host.guest.job(CROSSING.format(mac=mac)))
            crossings.append(Crossing(host, job))
            await host.guest.until(f"test -S {SOCKET}")
            path = await stack.enter_async_context(host.guest.job(PROGRAM))
            await path.said("ready")
            driven = Driven(host, path)
            await driven.call("open", [host.ipv4, host.mac], [other.ipv4, other.mac], 1, SOCKET)
            await driven.call("open_device", DEVICE, 1, GID_INDEX)
            await host.guest.run("read -r line </tmp/crossing.out; echo $line")  # that it is ready
            ends.append(driven)
        found = Switches(ends, crossings, meter)
        await found.join()
        await found.pause()
        yield found
