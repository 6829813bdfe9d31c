# SPDX-License-Identifier: Apache-2.0
"""A fast path without packets: tests say what it tells, and see what it was told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vswitch.slowpath.counters import PerfStats, PortStats, QueueStats, Rxq, WorkerStats
from vswitch.slowpath.fastpath import FastPathError, PortEvent, PortInfo, TapRecord
from vswitch.slowpath.types import (
    Action,
    Finish,
    Flow,
    FlowStats,
    Key,
    MemConf,
    PortConfig,
    PortState,
    PortType,
    RdmaChange,
    RdmaEnd,
    RdmaEvent,
    RdmaPeer,
    RdmaState,
    RdmaStats,
    RdmaWhat,
    Remote,
    Shortcut,
    Suspect,
    Upcall,
    Uplink,
)

NO_QUEUE = QueueStats(0, 0, 0, 0, 0, 0)


def port_stats(
    rx: int = 0,
    tx: int = 0,
    replicated: int = 0,
    drops: dict[str, int] | None = None,
    faults: dict[str, int] | None = None,
) -> PortStats:
    return PortStats(rx, 60 * rx, tx, 60 * tx, replicated, 0, drops or {}, faults or {}, (NO_QUEUE,))


@dataclass
class FakePeer:
    port_id: int
    end: RdmaEnd
    state: RdmaState = RdmaState.NEW
    other: RdmaEnd | None = None
    epoch: int = 0
    remotes: set[int] = field(default_factory=set)
    drains: int = 0
    changes: list[RdmaChange] = field(default_factory=list)
    reason: str = ""


class FakeFastPath:
    """Implements FastPathApi. PMD and vxlan ports are "ready" at once, the others wait for their peer."""

    event_fd = upcall_fd = tap_fd = -1
    tsc_hz = 1_000_000_000
    gid = bytes(16)  # of all RDMA ports

    def __init__(self) -> None:
        self.told = asyncio.Event()  # set by every call that changes ports or taps
        self.calls: list[str] = []  # flow_add, flow_del, finish, mem_*, shortcut_*: in their order
        self.ports: dict[int, PortConfig] = {}
        self.states: dict[int, PortState] = {}
        self.limits: dict[int, tuple[int, int]] = {}  # MTU, packets parked
        self.flows: dict[int, Flow] = {}
        self.counters: dict[int, FlowStats] = {}
        self.verdicts: dict[int, tuple[Action, ...]] = {}
        self.stats: dict[int, PortStats] = {}
        self.tapped: dict[int, tuple[int, int]] = {}  # kinds, snaplen
        self.tap_batch = 256
        self.n_workers = 1
        self.tsc_hz = 1000
        self.busy: dict[int, int] = {}  # cycles of each worker
        self.cycles: dict[tuple[int, int], int] = {}  # by port and queue
        self.placed: dict[tuple[int, int], int] = {}  # worker, 0 unless moved
        self.idle = (0, 0)
        self.loops = 10
        self.asleep = False
        self.suspected: list[Suspect] = []
        self.taps_lost = 0
        self.stopped = False
        self.sent: list[tuple[int, bytes, int]] = []  # packet_out
        self.uplinks: dict[int, Uplink] = {}
        self.remotes: dict[int, Remote] = {}
        self.attached: dict[int, MemConf] = {}
        self.shortcuts: dict[int, str] = {}  # by epoch: open, closed
        self.last_epoch = 0
        self.shortcut_calls: list[tuple[str, Shortcut]] = []
        self.refuse_memory = ""  # why mem_attach fails
        self.refuse_shortcuts = ""  # why shortcut_open fails
        self.peers: dict[int, FakePeer] = {}
        self.refuse_peers = ""  # why rdma_peer_add fails
        self._rdma_events: list[RdmaEvent] = []
        self._peer_ids = 0
        self.refuse_ports = ""  # why port_add fails
        self.refuse_flows: set[Flow] = set()
        self._flow_ids: dict[tuple[Key, Key], int] = {}
        self._events: list[PortEvent] = []
        self._upcalls: list[Upcall] = []
        self._taps: list[TapRecord] = []
        self._log: list[tuple[int, str]] = []

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a call has made `condition` true."""
        async with asyncio.timeout(20):
            while not condition():
                self.told.clear()
                await self.told.wait()

    # ---- what tests make it tell ----

    def set_state(self, port_id: int, state: PortState, reason: str = "") -> None:
        self.states[port_id] = state
        self._events.append(PortEvent(port_id, state, reason))

    def miss(self, upcall: Upcall) -> None:
        self._upcalls.append(upcall)

    def tap(self, *records: TapRecord) -> None:
        self._taps += records

    def say(self, level: int, line: str) -> None:
        self._log.append((level, line))

    # ---- FastPathApi ----

    def stop(self) -> None:
        self.stopped = True

    def port_add(self, config: PortConfig, /) -> int:
        if self.refuse_ports:
            raise FastPathError(f"{config.name}: {self.refuse_ports}")
        self.told.set()
        port_id = next(n for n in range(1, 1024) if n not in self.ports)
        self.ports[port_id] = config
        self.limits[port_id] = (config.mtu, config.upcall_budget)
        waits = config.type in (PortType.VHOST_USER, PortType.FF)
        self.states[port_id] = PortState.WAITING if waits else PortState.READY
        return port_id

    def port_del(self, port_id: int, /) -> None:
        assert port_id not in self.attached
        for table in (self.ports, self.states, self.limits):
            del table[port_id]
        self._events = [event for event in self._events if event.port_id != port_id]

    def port_set_mtu(self, port_id: int, mtu: int, /) -> None:
        self.limits[port_id] = (mtu, self.limits[port_id][1])

    def port_set_parked_max(self, port_id: int, n: int, /) -> None:
        self.limits[port_id] = (self.limits[port_id][0], n)

    def port_info(self, port_id: int, /) -> PortInfo:
        return PortInfo(self.states[port_id], 1, 1, 0, "", "fake", "so it is")

    def events(self) -> Sequence[PortEvent]:
        events, self._events = self._events, []
        return events

    def upcalls(self) -> Sequence[Upcall]:
        upcalls, self._upcalls = self._upcalls, []
        return upcalls

    def finish(self, verdicts: Sequence[Finish], /) -> None:
        self.calls.append("finish")
        for verdict in verdicts:
            assert verdict.upcall_id not in self.verdicts
            self.verdicts[verdict.upcall_id] = verdict.actions

    def flow_add(self, flows: Sequence[Flow], /) -> Sequence[int]:
        self.calls.append("flow_add")
        ids: list[int] = []
        for flow in flows:
            if flow in self.refuse_flows:
                raise FastPathError("no room", ids)
            flow_id = self._flow_ids.setdefault((flow.key, flow.mask), len(self._flow_ids) + 1)
            self.flows[flow_id] = flow
            ids.append(flow_id)
        return ids

    def flow_del(self, ids: Sequence[int], /) -> int:
        self.calls.append("flow_del")
        return sum(self.flows.pop(flow_id, None) is not None for flow_id in ids)

    def flow_stats(self, ids: Sequence[int], /) -> Sequence[FlowStats]:
        return [self.counters.get(flow_id, FlowStats(0, 0, 0.0)) for flow_id in ids]

    def flow_lookup(self, key: Key, /) -> int:
        return 0

    def packet_out(self, port_id: int, frame: bytes, remote: int = 0, /) -> None:
        self.sent.append((port_id, frame, remote))

    def uplink_set(self, port_id: int, uplink: Uplink, /) -> None:
        self.uplinks[port_id] = uplink

    def remote_set(self, number: int, remote: Remote | None, /) -> None:
        if remote is None:
            self.remotes.pop(number, None)
        else:
            self.remotes[number] = remote

    def port_stats(self, port_id: int, /) -> PortStats:
        return self.stats.get(port_id, port_stats())

    def worker_stats(self) -> Sequence[WorkerStats]:
        perf = PerfStats(bursts=4, sampled_packets=2, stage_cycles={"rx": 60}, verdicts=1, verdict_cycles=9)
        return [
            WorkerStats(1, self.loops, 5, 0, busy_cycles=busy, packets=0, hits=0, misses=0, parked=2, perf=perf)
            for busy in (self.busy.get(worker, 0) for worker in range(self.n_workers))
        ]

    def worker_asleep(self, worker: int, /) -> bool:
        return self.asleep

    def suspects(self) -> Sequence[Suspect]:
        return self.suspected

    def rxqs(self) -> Sequence[Rxq]:
        return [
            Rxq(port_id, queue, self.placed.get((port_id, queue), 0), 0, self.cycles.get((port_id, queue), 0))
            for port_id, config in self.ports.items()
            for queue in range(config.queues)
        ]

    def rxq_move(self, port_id: int, queue: int, worker: int, /) -> None:
        self.placed[port_id, queue] = worker

    def mem_attach(self, port_id: int, conf: MemConf, /) -> None:
        if self.refuse_memory:
            raise FastPathError(self.refuse_memory)
        assert self.ports[port_id].type is PortType.FF and port_id not in self.attached
        self.attached[port_id] = conf
        self.set_state(port_id, PortState.READY)

    def mem_detach(self, port_id: int, /) -> None:
        del self.attached[port_id]
        still = [s for _, s in self.shortcut_calls if self.shortcuts.get(s.epoch) == "open"]
        assert all(port_id not in (s.sender, s.receiver) for s in still), "its shortcuts must have been closed before"
        self.set_state(port_id, PortState.WAITING, "no container is connected")

    def shortcut_open(self, shortcut: Shortcut, /) -> None:
        if self.refuse_shortcuts:
            raise FastPathError(self.refuse_shortcuts)
        assert shortcut.epoch > self.last_epoch
        self.last_epoch = shortcut.epoch
        self.shortcuts[shortcut.epoch] = "open"
        self.shortcut_calls.append(("open", shortcut))
        self.told.set()

    def shortcut_close(self, shortcut: Shortcut, /) -> None:
        assert self.shortcuts[shortcut.epoch] == "open"
        self.shortcuts[shortcut.epoch] = "closed"
        self.shortcut_calls.append(("close", shortcut))
        self.told.set()

    def shortcut_free(self, shortcut: Shortcut, /) -> None:
        assert self.shortcuts.pop(shortcut.epoch) == "closed"
        self.shortcut_calls.append(("free", shortcut))
        self.told.set()

    # ---- RDMA: marks come back when a test calls `drained` ----

    def fail_peer(self, number: int, reason: str) -> None:
        self.peers[number].state, self.peers[number].reason = RdmaState.FAILED, reason
        self._rdma_events.append(RdmaEvent(number, RdmaWhat.FAILED))

    def drained(self, number: int) -> None:
        self._rdma_events.append(RdmaEvent(number, RdmaWhat.DRAINED))

    def rdma_peer_add(self, port_id: int, queue_pairs: int, /) -> tuple[int, RdmaEnd]:
        if self.refuse_peers:
            raise FastPathError(self.refuse_peers)
        assert self.ports[port_id].type is PortType.RDMA
        assert queue_pairs >= self.n_workers
        number = next(n for n in range(1, 65) if n not in self.peers)
        first = 100 + self._peer_ids
        self._peer_ids += queue_pairs
        pairs = tuple((first + i, first + i) for i in range(queue_pairs))
        self.peers[number] = FakePeer(port_id, RdmaEnd(self.gid, 0, 1024, 64, pairs))
        return number, self.peers[number].end

    def rdma_peer_connect(self, peer: int, remote: RdmaEnd, epoch: int, timeout: int, retries: int, /) -> None:
        found = self.peers[peer]
        assert found.state is RdmaState.NEW and len(remote.queue_pairs) == len(found.end.queue_pairs)
        assert epoch and 1 <= timeout <= 31 and 0 <= retries <= 7
        found.state, found.other, found.epoch = RdmaState.CONNECTED, remote, epoch

    def rdma_peer_use(self, peer: int, remote: int, /) -> None:
        found = self.peers[peer]
        if not remote:
            found.remotes.clear()
            return
        assert found.state in (RdmaState.CONNECTED, RdmaState.ACTIVE)
        assert not any(remote in other.remotes for other in self.peers.values()), "one peer for a tunnel end"
        found.state = RdmaState.ACTIVE
        found.remotes.add(remote)

    def rdma_peer_drain(self, peer: int, /) -> None:
        assert self.peers[peer].state in (RdmaState.CONNECTED, RdmaState.ACTIVE)
        self.peers[peer].drains += 1

    def rdma_peer_change(self, peer: int, change: RdmaChange, /) -> None:
        found = self.peers[peer]
        assert change is not RdmaChange.JOINING or (found.state is RdmaState.CONNECTED and not found.changes)
        found.changes.append(change)

    def rdma_peer_del(self, peer: int, /) -> None:
        del self.peers[peer]
        self._rdma_events = [event for event in self._rdma_events if event.peer != peer]

    def rdma_peer(self, peer: int, /) -> RdmaPeer:
        found = self.peers[peer]
        remote = next(iter(found.remotes), 0)
        pairs = len(found.end.queue_pairs)
        stats = RdmaStats(3, 300, 2, 200, 0, 0, 0, 1, 1, 0, 0)
        return RdmaPeer(found.state, found.port_id, remote, pairs, found.epoch, found.reason, stats)

    def rdma_events(self) -> Sequence[RdmaEvent]:
        events, self._rdma_events = self._rdma_events, []
        return events

    def rdma_device_fd(self, port_id: int, /) -> int:
        return -1

    def rdma_device_drain(self, port_id: int, /) -> None:
        pass

    def tap_set(self, port_id: int, kinds: int, snaplen: int, /) -> None:
        self.tapped[port_id] = (kinds, snaplen)
        self.told.set()

    def taps(self) -> Sequence[TapRecord]:
        records, self._taps = self._taps[: self.tap_batch], self._taps[self.tap_batch :]
        return records

    def idle_set(self, spin_us: int, sleep_us: int, /) -> None:
        self.idle = (spin_us, sleep_us)

    def log_lines(self) -> Sequence[tuple[int, str]]:
        lines, self._log = self._log, []
        return lines
