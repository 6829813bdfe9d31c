# SPDX-License-Identifier: Apache-2.0
"""Replays frames through a real switch, each source MAC from a port of its own, and compares with the model.

The model is the decision core behind a flow table and pipeline in plain Python
(`vswitch.slowpath.simulate`), fed one frame at a time.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

from tests.frontend import FrontEnd, wait_any
from tests.system.ffswitchd import Ffswitchd
from vswitch.slowpath.core import SwitchCore
from vswitch.slowpath.simulate import Fate, Simulator
from vswitch.slowpath.types import Drop, Port, PortConfig

MTU = 65535
BYSTANDERS = 2  # ports that send nothing
BUFFER = 2048
TIMEOUT = 30.0
TICK = 0.005

Drops = Counter[tuple[int, str]]  # by port id and reason


class Sent(NamedTuple):
    """A frame, the port that it goes in by, and what the model makes of it."""

    port: int
    frame: bytes
    fate: Fate


@dataclass(frozen=True, slots=True)
class Member:
    id: int
    name: str
    front: FrontEnd


def source(frame: bytes) -> bytes:
    """What decides which port a frame is sent from; frames too short for a MAC share one."""
    return frame[6:12]


def conversation(frame: bytes) -> bytes:
    """Frames of one conversation, the MACs and tags, stay in order."""
    end = 12
    while frame[end : end + 2] in {b"\x81\x00", b"\x88\xa8", b"\x91\x00"}:
        end += 4
    return frame[:end]


def n_ports(frames: Sequence[bytes]) -> int:
    """Ports that a replay needs: one for each source, and the bystanders."""
    return len(set(map(source, frames))) + BYSTANDERS


def model(frames: Sequence[bytes], port_ids: Sequence[int]) -> list[Sent]:
    """What the model makes of each frame, from a switch that has learned nothing yet."""
    core = SwitchCore()
    for port_id in port_ids:
        core.port_added(Port(port_id, PortConfig(f"r{port_id}", mtu=MTU), up=True), 0.0)
    simulator = Simulator(core)
    port_of = dict(zip(dict.fromkeys(map(source, frames)), port_ids, strict=False))
    return [Sent(port_of[source(frame)], frame, simulator.send(port_of[source(frame)], frame, 0.0)) for frame in frames]


class Replay:
    """The ports for a list of frames, on a running switch; `run` may be called several times."""

    def __init__(self, daemon: Ffswitchd, frames: Sequence[bytes], burst_max: int) -> None:
        self.daemon = daemon
        self.members: dict[int, Member] = {}
        ring = _ring(frames, burst_max)
        try:
            for number in range(n_ports(frames)):
                self._add(f"r{number}", daemon.run_dir.with_name(f"r{number}"), ring)
        except BaseException:
            self.close()
            raise
        self.sent = model(frames, list(self.members))

    def _add(self, name: str, path: Path, ring: int) -> None:
        front = FrontEnd(path, rx_ring=ring, tx_ring=ring)
        try:
            port = self.daemon.call("port.add", name=name, socket=str(path), mtu=MTU)
            front.connect()
        except BaseException:
            front.kill()
            raise
        self.members[port["id"]] = Member(port["id"], name, front)
        ready = self.daemon.call("port.add", name=name, socket=str(path), mtu=MTU, may_exist=True, wait_s=TIMEOUT)
        assert ready["state"] == "ready", ready

    def run(self, burst: int) -> None:
        """Replays everything, consecutive frames of one port as bursts of up to `burst`; asserts what comes of it."""
        self.daemon.call("fdb.flush")
        self.daemon.call("flow.flush")
        before = self._drops()
        expected: defaultdict[int, list[bytes]] = defaultdict(list)
        received: defaultdict[int, list[bytes]] = defaultdict(list)
        drops: Drops = Counter()
        for port, group in groupby(self.sent, key=lambda sent: sent.port):
            while batch := list(islice(group, burst)):
                for sent in batch:
                    for to, frame in sent.fate.outputs:
                        expected[to].append(frame)
                    drops.update((counted_on, drop.label) for counted_on, drop in sent.fate.drops)
                self.members[port].front.send([sent.frame for sent in batch])
                self.members[port].front.flush()
                touched = {to for sent in batch for to, _ in sent.fate.outputs}
                self._wait_received(touched, expected, received)
                if any(_decided(drop) for sent in batch for _, drop in sent.fate.drops):
                    self._wait_drops(port, drops, before)
        self._settle()
        for member in self.members.values():
            received[member.id] += member.front.receive()
        assert self._drops() - before == drops
        for member in self.members.values():
            _same(expected[member.id], received[member.id], member.name)

    def close(self) -> None:
        for member in self.members.values():
            self.daemon.call("port.del", name=member.name)
            member.front.kill()
        self.members.clear()

    # ---- waiting --------------------------------------------------------------

    def _wait_received(
        self, ports: set[int], expected: dict[int, list[bytes]], received: dict[int, list[bytes]]
    ) -> None:
        """Until each of these ports has as many frames as the model says."""
        deadline = time.monotonic() + TIMEOUT
        missing = ports
        while missing:
            for port in missing:
                received[port] += self.members[port].front.receive()
            missing = {port for port in missing if len(received[port]) < len(expected[port])}
            if missing:
                assert time.monotonic() < deadline, self._missing(missing, expected, received)
                wait_any([self.members[min(missing)].front], TICK)

    def _missing(self, ports: set[int], expected: dict[int, list[bytes]], received: dict[int, list[bytes]]) -> str:
        port = min(ports)
        lost = (Counter(expected[port]) - Counter(received[port])).most_common(3)
        return (
            f"{len(ports)} ports miss frames: {self.members[port].name} "
            f"has {len(received[port])} of {len(expected[port])}, "
            f"missing {[frame[:64].hex() for frame, _ in lost]}; {self.daemon.call('stats')['totals']}"
        )

    def _wait_drops(self, port: int, drops: Drops, before: Drops) -> None:
        """Until the drops that the slow path decided on have been counted: then it has also learned."""
        wanted = Counter({key: count for key, count in drops.items() if key[0] == port})
        deadline = time.monotonic() + TIMEOUT
        while (have := self._drops_of(port) - Counter({k: n for k, n in before.items() if k[0] == port})) != wanted:
            assert time.monotonic() < deadline, f"{self.members[port].name}: drops {have}, expected {wanted}"

    def _settle(self) -> None:
        """Until no packet is on its way any more."""
        deadline = time.monotonic() + TIMEOUT
        last = None
        while True:
            totals = self.daemon.call("stats")["totals"]
            if totals["balanced"] and totals["parked"] == 0 and totals == last:
                return
            assert time.monotonic() < deadline, totals
            last = totals

    def _drops_of(self, port: int) -> Drops:
        name = self.members[port].name
        drops = self.daemon.call("stats", port=name)["ports"][name]["drops"]
        return Counter({(port, reason): count for reason, count in drops.items()})

    def _drops(self) -> Drops:
        ports = self.daemon.call("stats")["ports"]
        return Counter(
            {
                (member.id, reason): count
                for member in self.members.values()
                for reason, count in ports[member.name]["drops"].items()
            }
        )


def _decided(drop: Drop) -> bool:
    """Whether the slow path (not the parser) drops for this reason, and so may have learned before."""
    return drop >= Drop.POLICY


def _ring(frames: Sequence[bytes], burst: int) -> int:
    """Descriptors enough for every burst as a whole, a power of two."""
    needed = 1
    for _, group in groupby(frames, key=source):
        while batch := list(islice(group, burst)):
            needed = max(needed, sum(-(-(len(frame) + 12) // BUFFER) for frame in batch))
    return max(256, 1 << (needed - 1).bit_length())


def _same(expected: list[bytes], received: list[bytes], name: str) -> None:
    """The same frames, and those of each conversation in the same order."""
    for title, surplus in (
        ("missing", Counter(expected) - Counter(received)),
        ("unexpected", Counter(received) - Counter(expected)),
    ):
        assert not surplus, (
            f"{name}: {surplus.total()} frames {title}: {[frame[:64].hex() for frame in list(surplus)[:3]]}"
        )
    assert _by_conversation(received) == _by_conversation(expected), (
        f"{name}: frames of a conversation are out of order"
    )


def _by_conversation(frames: list[bytes]) -> dict[bytes, list[bytes]]:
    ordered: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for frame in frames:
        ordered[conversation(frame)].append(frame)
    return ordered
