# SPDX-License-Identifier: Apache-2.0
"""A host's fast path without a slow path: a program for guests, driven by pair.py.

An endpoint (a front-end in the same process) is in the network VNI; all that it sends is for one tunnel end, which has
a way by VXLAN over eth0 and, once a test has made it, a peer over the RDMA device.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.frontend import Feature, FrontEnd
from tests.polling import until
from tests.rdma.load import Sender, receive
from vswitch.slowpath.fastpath import FastPath
from vswitch.slowpath.types import (
    EXACT,
    TUNNEL_RDMA,
    Action,
    ActionType,
    Drop,
    Flow,
    Key,
    PortConfig,
    PortType,
    RdmaChange,
    RdmaEnd,
    RdmaWhat,
    Remote,
    Uplink,
)

VNI = 0x123456
REMOTE, SECOND = 7, 8  # the tunnel ends' numbers
MTU = 65535  # frames of any length go to the vxlan port as they are
MACS = bytes.fromhex("0200000000bb0200000000aa")
SECOND_MAC = bytes.fromhex("0200000000cc")
OFFLOADS = Feature.CSUM | Feature.HOST_TSO4 | Feature.GUEST_CSUM | Feature.GUEST_TSO4
REQUESTS, ANSWERS = "/tmp/fastpath.requests", "/tmp/fastpath.answers"
SECONDS = 60.0
# A burst of super-frames is a thousand packets.
UPLINK = "net_af_packet0,iface=eth0,framecnt=2048,blocksz=65536"
LOAD_BURST = 4
LAST = 2**62
SLEEP_US = 5000  # net_af_packet is looked at so often: its looks are dear under emulation


def frames(sizes: Sequence[int], seed: int) -> list[bytes]:
    """Frames of these sizes that differ in each byte; the same for the same seed."""
    source = random.Random(seed)
    return [MACS + b"\x88\xb5" + source.randbytes(size - 14) for size in sizes]


def _raw(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _ipv4(text: str) -> bytes:
    return bytes(map(int, text.split(".")))


class FastPathHost:
    """What requests call. Bytes are hexadecimal."""

    def __init__(self) -> None:
        self.id: dict[str, int] = {}
        self.peers: set[int] = set()

    def open(self, here: Sequence[str], there: Sequence[str], workers: int, application: str = "") -> None:
        """Start with all ports but the device, and all flows. `here` and `there`: IPv4 address and MAC.

        The endpoint is an `application` that has this socket, else this process.
        """
        eal = ["--no-huge", "-m", "256", "--no-pci", "--no-shconf", "--no-telemetry"]
        lcores = ",".join(f"{number}@1" for number in range(1, workers + 1))
        self.fp = FastPath.start([*eal, f"--lcores=0@0,{lcores}"], 16384, 512)
        self.fp.idle_set(50, SLEEP_US)
        socket = application or str(Path(tempfile.mkdtemp()) / "socket")
        if not application:
            self.front = FrontEnd(socket, rx_ring=1024, tx_ring=1024, features=OFFLOADS)
        self._add(PortConfig("endpoint", socket=socket, mtu=MTU))
        if not application:
            self.front.connect()
        self._add(PortConfig("network", PortType.VXLAN, vni=VNI, mtu=MTU))
        self._add(PortConfig("uplink", PortType.PMD, devargs=UPLINK, mtu=1500))
        self.fp.uplink_set(self.id["uplink"], Uplink(_ipv4(here[0])))
        self.way = Remote(self.id["uplink"], _ipv4(here[0]), _ipv4(there[0]), _raw(here[1]), _raw(there[1]))
        self.fp.remote_set(REMOTE, self.way)
        to_endpoint = Action(ActionType.OUTPUT, self.id["endpoint"])
        self.endpoint_flows = self.fp.flow_add([self._flow("endpoint", *self._to_tunnel(REMOTE))])
        self.fp.flow_add([
            self._flow("network", to_endpoint),
            self._flow("uplink", Action(ActionType.DROP, Drop.NOT_TUNNEL)),
        ])  # fmt: skip
        self.wait_port("endpoint", "ready")

    def open_second(self) -> None:
        """Another tunnel end, with the same way: for frames to SECOND_MAC."""
        self.fp.remote_set(SECOND, self.way)
        self.fp.flow_del(self.endpoint_flows)
        mask = Key(in_port=EXACT.in_port, eth_dst=EXACT.eth_dst)
        self.endpoint_flows = self.fp.flow_add([
            Flow(Key(in_port=self.id["endpoint"], eth_dst=mac), mask, self._to_tunnel(remote))
            for mac, remote in ((MACS[:6], REMOTE), (SECOND_MAC, SECOND))
        ])  # fmt: skip

    def _to_tunnel(self, remote: int) -> tuple[Action, ...]:
        way = Action(ActionType.SET_TUNNEL, remote | TUNNEL_RDMA)
        return way, Action(ActionType.OUTPUT, self.id["network"])

    def _add(self, config: PortConfig) -> None:
        self.id[config.name] = self.fp.port_add(config)

    def _flow(self, port: str, *actions: Action) -> Flow:
        return Flow(Key(in_port=self.id[port]), Key(in_port=EXACT.in_port), actions)

    def open_device(self, device: str, rdma_port: int, gid_index: int) -> None:
        """Add the RDMA port."""
        self._add(PortConfig("device", PortType.RDMA, devargs=device, gid_index=gid_index, rdma_port=rdma_port))

    def close_device(self) -> None:
        """Remove the RDMA port, and its peers."""
        self.fp.port_del(self.id.pop("device"))
        self.peers.clear()

    def add(self, queue_pairs: int) -> list[Any]:
        """A new peer's number and its end."""
        number, end = self.fp.rdma_peer_add(self.id["device"], queue_pairs)
        self.peers.add(number)
        return [number, asdict(end) | {"gid": end.gid.hex()}]

    def connect(self, peer: int, end: dict[str, Any], epoch: int, timeout: int = 14, retries: int = 7) -> None:
        """Join a peer to the other end."""
        pairs = tuple((number, psn) for number, psn in end["queue_pairs"])
        there = RdmaEnd(bytes.fromhex(end["gid"]), end["lid"], end["mtu"], end["credits"], pairs)
        self.fp.rdma_peer_connect(peer, there, epoch, timeout, retries)

    def use(self, peer: int, remote: int = REMOTE) -> None:
        """Send over the peer; remote 0: no more."""
        self.fp.rdma_peer_use(peer, remote)

    def changes(self, peer: int, n: int, window: int) -> int:
        """Under load, n planned changes of path: to the peer, away from it, and so on. How many frames were sent."""
        sender = Sender(self.front, window)
        for _ in range(n // 2):
            sender.until(lambda: True)
            before = self.fp.rdma_peer(peer).stats.tx_messages
            self.fp.rdma_peer_change(peer, RdmaChange.JOINING)
            self.use(peer)
            sender.until(lambda: self.fp.rdma_peer(peer).stats.tx_messages >= before + 2 * window)  # noqa: B023
            self.fp.rdma_peer_change(peer, RdmaChange.SETTLED)
            self.fp.rdma_peer_change(peer, RdmaChange.LEAVING)
            sender.until(lambda: any(e.what is RdmaWhat.DRAINED for e in self._events()))
            self.use(peer, 0)
            self.fp.rdma_peer_change(peer, RdmaChange.SETTLED)
        sender.finish()
        return sender.sent

    def receive_numbered(self) -> dict[str, int]:
        """What was wrong with the frames of the other end's `changes`."""
        return receive(self.front)

    def delete(self, peer: int) -> None:
        """End the peer."""
        self.fp.rdma_peer_del(peer)
        self.peers.discard(peer)

    def forget(self) -> None:
        """End all peers, and take what has come to the endpoint."""
        for peer in list(self.peers):
            self.delete(peer)
        self.front.receive()

    def drain(self, peer: int) -> None:
        """Wait until the other end has passed on all that was sent."""
        self.fp.rdma_peer_drain(peer)
        self.event(peer, "DRAINED")

    def event(self, peer: int, what: str) -> None:
        """Wait for an event of the peer; others are forgotten."""
        self._wait(lambda: any(e.peer == peer and e.what.name == what for e in self._events()), f"{what} of {peer}")

    def peer(self, peer: int) -> dict[str, Any]:
        """State and counters."""
        info = self.fp.rdma_peer(peer)
        return asdict(info) | {"state": info.state.name}

    def port(self, name: str) -> dict[str, Any]:
        """State and counters."""
        stats, info = self.fp.port_stats(self.id[name]), self.fp.port_info(self.id[name])
        fields = ("rx_packets", "tx_packets", "encapsulated", "decapsulated", "drops")
        counts = {field: getattr(stats, field) for field in fields}
        return counts | {"state": info.state.label, "reason": info.reason}

    def balance(self) -> None:
        """Wait until the counters of all ports together balance."""

        def balanced() -> bool:
            stats = [self.fp.port_stats(number) for number in (0, *self.id.values())]
            came = sum(s.rx_packets + s.injected + s.encapsulated + s.replicated for s in stats)
            went = sum(s.tx_packets + s.decapsulated + sum(s.drops.values()) for s in stats)
            return came == went + sum(worker.parked for worker in self.fp.worker_stats())

        self._wait(balanced, "the counters to balance")

    def wait_port(self, name: str, state: str) -> None:
        """Wait for a port's state."""
        self._wait(lambda: self._heard().port_info(self.id[name]).state.label == state, f"{name} to be {state}")

    def wait_drops(self, name: str, reason: str, n: int) -> None:
        """Wait until so many frames were dropped."""
        self._wait(lambda: self.fp.port_stats(self.id[name]).drops.get(reason, 0) >= n, f"{n} {reason} of {name}")

    def asleep(self) -> None:
        """Wait until all workers sleep."""
        self._wait(lambda: all(map(self.fp.worker_asleep, range(self.fp.n_workers))), "the workers to sleep")

    def send(self, sizes: Sequence[int], seed: int, burst: int | None = None) -> None:
        """The endpoint sends `frames`."""
        self.front.send(frames(sizes, seed), burst=burst)
        self.front.flush()

    def send_to_both(self, sizes: Sequence[int], seed: int) -> None:
        """As `send`, with a copy of each frame for SECOND_MAC before it."""
        self.front.send([way for frame in frames(sizes, seed) for way in (SECOND_MAC + frame[6:], frame)])
        self.front.flush()

    def load(self) -> None:
        """Begin to send frames with numbers, a few at a time, until `unload`."""
        self.loaded, self.loading = 0, True
        self.thread = threading.Thread(target=self._load)
        self.thread.start()

    def unload(self) -> int:
        """End it; how many frames there were."""
        self.loading = False
        self.thread.join()
        return self.loaded

    def _load(self) -> None:
        while self.loading:
            self.send_numbered(LOAD_BURST)

    def send_numbered(self, n: int) -> None:
        """Send the next n frames with numbers."""
        numbers = range(self.loaded, self.loaded + n)
        self.front.send([MACS + b"\x88\xb5" + number.to_bytes(46) for number in numbers])
        self.front.flush()
        self.loaded += n

    def collect(self) -> None:
        """Begin to take frames with numbers."""
        self.numbers: list[int] = []
        self.thread = threading.Thread(target=self._collect)
        self.thread.start()

    def _collect(self) -> None:
        while not self.numbers or self.numbers[-1] != LAST:
            self.numbers += [int.from_bytes(frame[14:]) for frame in self.front.wait_received(1, SECONDS)]

    def collected(self) -> list[int]:
        """Their numbers, in the order in which they came; the one that `send_last` sent is awaited, and left out."""
        self.thread.join()
        return self.numbers[:-1]

    def send_last(self) -> None:
        """Send a frame after which no more comes."""
        self.loaded = LAST
        self.send_numbered(1)

    def send_request(self, frame: str, header: str) -> None:
        """The endpoint sends a frame with a virtio-net header."""
        self.front.send([bytes.fromhex(frame)], header=bytes.fromhex(header))

    def expect(self, sizes: Sequence[int], seed: int) -> None:
        """The endpoint receives exactly `frames`, in order."""
        wanted = frames(sizes, seed)
        got = self.front.wait_received(len(wanted), SECONDS)
        for number, (one, other) in enumerate(zip(got, wanted, strict=False)):
            assert one == other, f"frame {number}: {len(one)} bytes {one[:40].hex()} for {len(other)}"
        assert len(got) == len(wanted), (
            f"{len(got)} frames for {len(wanted)}: {got[-1][:40].hex()} {wanted[-1][:40].hex()}"
        )

    def received(self) -> list[list[str]]:
        """What has come to the endpoint, at least one: virtio-net headers and frames."""
        got = self.front.wait_received(1, SECONDS)
        headers = list(self.front.rx[0].headers)[-len(got) :]
        return [[bytes(header).hex(), frame.hex()] for header, frame in zip(headers, got, strict=True)]

    def _events(self) -> list[Any]:
        return self._heard().rdma_events()

    def _heard(self) -> FastPath:
        """The fast path, after its device has said what it had to say."""
        if "device" in self.id:
            self.fp.rdma_device_drain(self.id["device"])
        self.fp.events()
        return self.fp

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        assert until(condition, SECONDS), f"timed out waiting for {what}"


def main() -> None:
    """Answer requests until the process is ended."""
    host = FastPathHost()
    for path in (REQUESTS, ANSWERS):
        Path(path).unlink(missing_ok=True)
        os.mkfifo(path)
    print("ready", flush=True)
    while True:
        method, args = json.loads(Path(REQUESTS).read_text(encoding="utf-8"))
        try:
            answer = [True, getattr(host, method)(*args)]
        except Exception as error:
            answer = [False, f"{type(error).__name__}: {error}"]
        Path(ANSWERS).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
