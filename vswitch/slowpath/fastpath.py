# SPDX-License-Identifier: Apache-2.0
"""The binding to the C fast path: a thin, checked layer over `vswitch._ff`.

ff.h says what each call does; here only types change sides. All methods are
for one thread, asyncio's. Nothing here decides anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vswitch._ff import ffi, lib
from vswitch.slowpath.counters import PortStats, Rxq, WorkerStats, total, unpack_port_stats, unpack_worker_stats
from vswitch.slowpath.packing import pack_actions, pack_key, pack_mem_conf, pack_shortcut, unpack_key
from vswitch.slowpath.types import (
    Action,
    ActionType,
    Drop,
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

TAP_RX: int = lib.FF_TAP_RX
TAP_TX: int = lib.FF_TAP_TX
TAP_TRACE: int = lib.FF_TAP_TRACE

UPCALL_BATCH = 64
EVENT_BATCH = 64
TAP_BATCH = 256
RDMA_BATCH = 64
SUSPECTS_MAX = 4096
TAP_BYTES = 1 << 20

_PORT_TYPES = {
    PortType.VHOST_USER: lib.FF_PORT_VHOST_USER,
    PortType.PMD: lib.FF_PORT_PMD,
    PortType.PACKET: lib.FF_PORT_PACKET,
    PortType.VXLAN: lib.FF_PORT_VXLAN,
    PortType.FF: lib.FF_PORT_FF,
    PortType.RDMA: lib.FF_PORT_RDMA,
}


class FastPathError(Exception):
    """What the fast path could not do, in one line for people."""


@dataclass(frozen=True, slots=True)
class PortInfo:
    """A port as the fast path knows it; `mac` is the device's (PMD ports), else empty."""

    state: PortState
    rx_queues: int
    tx_queues: int
    features: int
    mac: str
    driver: str
    reason: str


class PortEvent(NamedTuple):
    port_id: int
    state: PortState
    reason: str


@dataclass(frozen=True, slots=True)
class TapRecord:
    """One tapped frame; `actions` are at most the first eight of `n_actions`."""

    time_ns: int
    port_id: int
    kind: int
    dropped: Drop
    frame_len: int
    frame: bytes
    flow_id: int
    n_actions: int
    actions: tuple[Action, ...]


def _text(chars: Any) -> str:
    return bytes(ffi.string(chars)).decode(errors="replace")


class FastPath:
    """The running fast path: EAL, workers, ports, flows. One per process, ever."""

    def __init__(self) -> None:
        self._err = ffi.new("char[]", lib.FF_ERR_LEN)
        self._upcalls = ffi.new("struct ff_upcall[]", UPCALL_BATCH)
        self._events = ffi.new("struct ff_event[]", EVENT_BATCH)
        self._taps = ffi.new("struct ff_tap_rec[]", TAP_BATCH)
        self._tap_bytes = ffi.new("uint8_t[]", TAP_BYTES)
        self._suspects = ffi.new("struct ff_suspect[]", SUSPECTS_MAX)
        self._rdma_events = ffi.new("struct ff_rdma_event[]", RDMA_BATCH)
        self._tap_lost = ffi.new("uint64_t *")
        self._log = ffi.new("char[]", 65537)
        self._queues: dict[int, int] = {}
        self._eal_argv: tuple[Any, ...] = ()  # EAL keeps pointers into its arguments

    @classmethod
    def start(cls, eal_args: Sequence[str], mbufs: int, parked_max: int) -> FastPath:
        """Starts EAL with `eal_args` (without argv[0]) and the workers; raises FastPathError."""
        self = cls()
        strings = [ffi.new("char[]", arg.encode()) for arg in ("ffswitchd", *eal_args)]
        argv = ffi.new("char *[]", strings)
        self._eal_argv = (strings, argv)
        conf = ffi.new("struct ff_conf *", (argv, len(strings), mbufs, parked_max))
        self._check(lib.ff_init(conf, self._err))
        return self

    def _check(self, rc: int, what: str = "") -> int:
        if rc < 0:
            raise FastPathError(f"{what}: {os.strerror(-rc)}" if what else _text(self._err) or f"error {-rc}")
        return rc

    def stop(self) -> None:
        """Removes all ports, ends the workers, leaves EAL."""
        lib.ff_stop()

    @staticmethod
    def dpdk_version() -> str:
        """DPDK's own version, "DPDK 22.11.11"."""
        return _text(lib.ff_dpdk_version())

    @staticmethod
    def parse(frame: bytes, in_port: int) -> Key | Drop:
        """What the parser makes of a frame; needs no EAL."""
        key = ffi.new("struct ff_key *")
        drop = Drop(lib.ff_parse(ffi.from_buffer(frame), len(frame), in_port, key))
        return unpack_key(key) if drop is Drop.NONE else drop

    @property
    def n_workers(self) -> int:
        return int(lib.ff_n_workers())

    @property
    def event_fd(self) -> int:
        return int(lib.ff_event_fd())

    @property
    def upcall_fd(self) -> int:
        return int(lib.ff_upcall_fd())

    @property
    def tap_fd(self) -> int:
        return int(lib.ff_tap_fd())

    # ---- ports ----

    def port_add(self, config: PortConfig) -> int:
        """Adds a port and returns its id; raises FastPathError with nothing left behind."""
        keep = [ffi.new("char[]", text.encode()) for text in (config.name, config.socket, config.devargs)]
        conf = ffi.new("struct ff_port_conf *")
        conf.name, conf.path, conf.devargs = keep
        conf.type = _PORT_TYPES[config.type]
        conf.vni = config.vni
        conf.rdma_port, conf.gid_index = config.rdma_port, config.gid_index
        conf.server = config.role == "server"
        conf.queues = config.queues
        conf.mtu = config.mtu
        port_id = ffi.new("uint16_t *")
        self._check(lib.ff_port_add(conf, port_id, self._err))
        # transmit queues, and so their counters, may be one a worker
        self._queues[port_id[0]] = min(max(config.queues, self.n_workers), lib.FF_MAX_QUEUES)
        self.port_set_parked_max(port_id[0], config.upcall_budget)
        return int(port_id[0])

    def port_del(self, port_id: int) -> None:
        """Removes a port; what it had parked is dropped and counted."""
        self._check(lib.ff_port_del(port_id, self._err))
        self._queues.pop(port_id, None)

    def port_set_mtu(self, port_id: int, mtu: int) -> None:
        lib.ff_port_set_mtu(port_id, mtu)

    def port_set_parked_max(self, port_id: int, n: int) -> None:
        lib.ff_port_set_parked_max(port_id, n)

    def port_info(self, port_id: int) -> PortInfo:
        """Raises FastPathError when there is no such port."""
        info = ffi.new("struct ff_port_info *")
        if lib.ff_port_info(port_id, info) < 0:
            raise FastPathError(f"no port has number {port_id}")
        mac = bytes(ffi.buffer(info.mac))
        return PortInfo(
            PortState(info.state),
            info.rx_queues,
            info.tx_queues,
            info.features,
            mac.hex(":") if any(mac) else "",
            _text(info.driver),
            _text(info.reason),
        )

    def events(self) -> list[PortEvent]:
        """Port states that changed since the last call, in order; call when event_fd is readable."""
        n = lib.ff_event_drain(self._events, EVENT_BATCH)
        return [PortEvent(e.port_id, PortState(e.state), _text(e.reason)) for e in self._events[0:n]]

    # ---- statistics ----

    def port_stats(self, port_id: int) -> PortStats:
        """Counters of a port; id 0 is the sum of all ports that are gone."""
        queues = self._queues.get(port_id, lib.FF_MAX_QUEUES)
        return total(tuple(unpack_port_stats(lib.ff_port_stats(i)[port_id], queues) for i in range(self.n_workers)))

    def worker_stats(self) -> list[WorkerStats]:
        return [unpack_worker_stats(lib.ff_worker_stats(i)) for i in range(self.n_workers)]

    def worker_asleep(self, worker: int) -> bool:
        """Whether a worker sleeps now, and therefore makes no loops."""
        return bool(lib.ff_worker_asleep(worker))

    def suspects(self) -> list[Suspect]:
        """Queues that may be wedged: that refused frames some time, or were enabled without having been set up."""
        n = lib.ff_suspects(self._suspects, SUSPECTS_MAX)
        return [
            Suspect(s.port_id, s.queue, bool(s.receive_unstarted), bool(s.transmit_unstarted), s.accepted, s.refused)
            for s in self._suspects[0:n]
        ]

    @property
    def tsc_hz(self) -> int:
        return int(lib.ff_tsc_hz())

    # ---- workers ----

    def rxqs(self) -> list[Rxq]:
        """The receive queues of all ports, by port and queue."""
        room = sum(self._queues.values())
        found = ffi.new("struct ff_rxq[]", max(room, 1))
        n = min(lib.ff_rxq_list(found, room), room)
        return [Rxq(r.port_id, r.queue, r.worker, r.packets, r.cycles, bool(r.bound)) for r in found[0:n]]

    def rxq_move(self, port_id: int, queue: int, worker: int) -> None:
        """Gives a receive queue to a worker; packets of one queue stay in order. Raises FastPathError."""
        rc = lib.ff_rxq_move(port_id, queue, worker)
        if rc < 0:
            raise FastPathError(f"queue {queue} cannot move to worker {worker}: {os.strerror(-rc)}")

    # ---- flows ----

    def flow_add(self, flows: Sequence[Flow]) -> list[int]:
        """Adds flows or replaces their actions; returns their ids. Raises FastPathError when not all could be.

        Flows before the one that failed stay installed; their ids are in the error's `args[1]`.
        """
        specs = ffi.new("struct ff_flow_spec[]", max(len(flows), 1))
        keep = []
        for spec, flow in zip(specs, flows, strict=False):
            ffi.buffer(ffi.addressof(spec, "key"))[:] = pack_key(flow.key)
            ffi.buffer(ffi.addressof(spec, "mask"))[:] = pack_key(flow.mask)
            actions = pack_actions(flow.actions)
            keep.append(actions)
            spec.actions, spec.n_actions = actions, len(flow.actions)
        ids = ffi.new("uint64_t[]", max(len(flows), 1))
        added = lib.ff_flow_add_many(specs, len(flows), ids, self._err)
        if added < len(flows):
            raise FastPathError(_text(self._err), list(ids[0:added]))
        return list(ids[0:added])

    def flow_del(self, ids: Sequence[int]) -> int:
        """Deletes flows; unknown ids are passed over. Returns how many were deleted."""
        return int(lib.ff_flow_del_many(ffi.new("uint64_t[]", list(ids) or [0]), len(ids)))

    def flow_stats(self, ids: Sequence[int]) -> list[FlowStats]:
        """Counters of the flows; zeros for an unknown id."""
        stats = ffi.new("struct ff_flow_stats[]", max(len(ids), 1))
        lib.ff_flow_stats_many(ffi.new("uint64_t[]", list(ids) or [0]), len(ids), stats)
        return [FlowStats(s.packets, s.bytes, float(s.last_used_s)) for s in stats[0 : len(ids)]]

    def flow_lookup(self, key: Key) -> int:
        """The id of the flow that a packet with this key would hit now, or 0."""
        c_key = ffi.new("struct ff_key *")
        ffi.buffer(c_key)[:] = pack_key(key)
        return int(lib.ff_flow_lookup(c_key))

    # ---- upcalls ----

    def upcalls(self) -> list[Upcall]:
        """Packets that wait for a verdict; call when upcall_fd is readable."""
        n = lib.ff_upcall_drain(self._upcalls, UPCALL_BATCH)
        return [
            Upcall(u.id, unpack_key(ffi.addressof(u, "key")), bytes(ffi.buffer(u.head, u.head_len)), u.frame_len)
            for u in self._upcalls[0:n]
        ]

    def finish(self, verdicts: Iterable[Finish]) -> None:
        """Gives the verdicts; those of packets that are gone are passed over."""
        todo = list(verdicts)
        c_verdicts = ffi.new("struct ff_verdict[]", max(len(todo), 1))
        keep = []
        for c_verdict, verdict in zip(c_verdicts, todo, strict=False):
            actions = pack_actions(verdict.actions)
            keep.append(actions)
            c_verdict.id, c_verdict.actions, c_verdict.n_actions = verdict.upcall_id, actions, len(verdict.actions)
        lib.ff_upcall_finish(c_verdicts, len(todo))

    def packet_out(self, port_id: int, frame: bytes, remote: int = 0) -> None:
        """Sends a frame to a port (of type vxlan: for tunnel end `remote`).

        Raises FastPathError when there is no such port, or no memory.
        """
        rc = lib.ff_packet_out(port_id, remote, ffi.from_buffer(frame), len(frame))
        if rc < 0:
            raise FastPathError(f"no frame can be sent to port {port_id}: {os.strerror(-rc)}")

    # ---- tunnels ----

    def uplink_set(self, port_id: int, uplink: Uplink) -> None:
        """Makes a port receive for tunnel ends; Uplink(): for none any more. Raises FastPathError."""
        conf = ffi.new("struct ff_uplink_conf *")
        ffi.buffer(conf.ip4)[: len(uplink.ip4)] = uplink.ip4
        ffi.buffer(conf.ip6)[: len(uplink.ip6)] = uplink.ip6
        conf.udp_port = uplink.udp_port
        rc = lib.ff_uplink_set(port_id, conf)
        if rc < 0:
            raise FastPathError(f"port {port_id} cannot be an uplink: {os.strerror(-rc)}")

    def remote_set(self, number: int, remote: Remote | None) -> None:
        """Sets or (None) deletes tunnel end `number`, 1 .. FF_MAX_REMOTES - 1. Raises FastPathError."""
        conf = ffi.NULL
        if remote is not None:
            conf = ffi.new("struct ff_remote_conf *")
            conf.uplink, conf.udp_port, conf.checksum = remote.uplink, remote.udp_port, remote.checksum
            conf.family = 6 if len(remote.remote_ip) == 16 else 4
            for field, value in (
                (conf.local_ip, remote.local_ip),
                (conf.remote_ip, remote.remote_ip),
                (conf.local_mac, remote.local_mac),
                (conf.next_hop_mac, remote.next_hop_mac),
            ):
                ffi.buffer(field)[: len(value)] = value
        rc = lib.ff_remote_set(number, conf)
        if rc < 0:
            raise FastPathError(f"tunnel end {number} cannot be set: {os.strerror(-rc)}")

    # ---- memory ports ----

    def mem_attach(self, port_id: int, conf: MemConf) -> None:
        """Maps what a container shares: the port becomes READY. Raises FastPathError with nothing left behind.

        `conf.kick_fds` has an entry for each of the container's transmit queues.
        """
        if len(conf.kick_fds) != conf.tx_queues:
            raise ValueError(f"{len(conf.kick_fds)} kick descriptors for {conf.tx_queues} transmit queues")
        packed, _keep = pack_mem_conf(conf)
        self._check(lib.ff_mem_attach(port_id, packed, self._err))

    def mem_detach(self, port_id: int) -> None:
        """Unmaps it: the port is WAITING; its shortcuts are closed. Raises FastPathError when it is no memory port."""
        self._check(lib.ff_mem_detach(port_id, self._err))

    def shortcut_open(self, shortcut: Shortcut) -> None:
        """Lets the sender go over to its shortcut. Raises FastPathError."""
        self._shortcut("opened", lib.ff_shortcut_open, shortcut)

    def shortcut_close(self, shortcut: Shortcut) -> None:
        """Lets the sender go back to the switch; one that is gone already is passed over."""
        self._shortcut("closed", lib.ff_shortcut_close, shortcut)

    def shortcut_free(self, shortcut: Shortcut) -> None:
        """Its numbers may be used again; one that is gone already is passed over. Raises FastPathError when open."""
        self._shortcut("freed", lib.ff_shortcut_free, shortcut)

    @staticmethod
    def _shortcut(done: str, call: Callable[[Any], int], shortcut: Shortcut) -> None:
        rc = call(pack_shortcut(shortcut))
        if rc < 0:
            ends = f"from port {shortcut.sender} to port {shortcut.receiver}"
            raise FastPathError(f"shortcut {shortcut.epoch} {ends} cannot be {done}: {os.strerror(-rc)}")

    # ---- RDMA peers: ff_rdma.h ----

    def rdma_peer_add(self, port_id: int, queue_pairs: int) -> tuple[int, RdmaEnd]:
        """Makes a peer on an RDMA port; its number, and what to tell the other end. Raises FastPathError."""
        number, end = ffi.new("uint16_t *"), ffi.new("struct ff_rdma_end *")
        self._check(lib.ff_rdma_peer_add(port_id, queue_pairs, number, end, self._err))
        pairs = tuple((end.qpn[i], end.psn[i]) for i in range(end.n_qps))
        return int(number[0]), RdmaEnd(bytes(ffi.buffer(end.gid)), end.lid, end.mtu, end.credits, pairs)

    def rdma_peer_connect(self, peer: int, remote: RdmaEnd, epoch: int, timeout: int, retries: int) -> None:
        """Joins a peer to its other end; both do before either uses it. Raises FastPathError."""
        conf = ffi.new("struct ff_rdma_connect *")
        conf.epoch, conf.timeout, conf.retries = epoch, timeout, retries
        end = conf.remote
        ffi.buffer(end.gid)[:] = remote.gid
        end.lid, end.mtu, end.credits, end.n_qps = remote.lid, remote.mtu, remote.credits, len(remote.queue_pairs)
        for i, (number, psn) in enumerate(remote.queue_pairs):
            end.qpn[i], end.psn[i] = number, psn
        self._check(lib.ff_rdma_peer_connect(peer, conf, self._err))

    def rdma_peer_use(self, peer: int, remote: int) -> None:
        """Sends frames for one more tunnel end over a connected peer; remote 0: for none. Raises FastPathError."""
        self._check(lib.ff_rdma_peer_use(peer, remote), f"peer {peer} cannot serve tunnel end {remote}")

    def rdma_peer_drain(self, peer: int) -> None:
        """Asks for an event when the other end has passed on all that was sent. Raises FastPathError."""
        self._check(lib.ff_rdma_peer_drain(peer), f"peer {peer} cannot be drained")

    def rdma_peer_change(self, peer: int, change: RdmaChange) -> None:
        """Begins or ends a planned change of path, as in ff_rdma.h. Raises FastPathError."""
        self._check(lib.ff_rdma_peer_change(peer, change), f"peer {peer} cannot be {change.name.lower()}")

    def rdma_peer_del(self, peer: int) -> None:
        """Ends a peer. Raises FastPathError when there is none."""
        if lib.ff_rdma_peer_del(peer) < 0:
            raise FastPathError(f"no peer has number {peer}")

    def rdma_peer(self, peer: int) -> RdmaPeer:
        """A peer's state and counters. Raises FastPathError when there is none."""
        info = ffi.new("struct ff_rdma_peer_info *")
        if lib.ff_rdma_peer_info(peer, info) < 0:
            raise FastPathError(f"no peer has number {peer}")
        stats = RdmaStats(*(getattr(info.stats, name) for name in RdmaStats.__slots__))
        state, reason = RdmaState(info.state), _text(info.reason)
        return RdmaPeer(state, info.port_id, info.remote, info.n_qps, info.epoch, reason, stats)

    def rdma_events(self) -> list[RdmaEvent]:
        """What became of peers since the last call; call when event_fd is readable, as `events`."""
        n = lib.ff_rdma_event_drain(self._rdma_events, RDMA_BATCH)
        return [RdmaEvent(e.peer, RdmaWhat(e.what)) for e in self._rdma_events[0:n]]

    def rdma_device_fd(self, port_id: int) -> int:
        """Readable when the device of an RDMA port has something to say: then call `rdma_device_drain`."""
        return int(lib.ff_rdma_device_fd(port_id))

    def rdma_device_drain(self, port_id: int) -> None:
        """Hears what a device says; its port and its peers change their states, and tell so as ever."""
        lib.ff_rdma_device_drain(port_id)

    # ---- taps ----

    def tap_set(self, port_id: int, kinds: int, snaplen: int) -> None:
        """What to tap on a port: a union of TAP_RX, TAP_TX, TAP_TRACE; 0 for nothing."""
        lib.ff_tap_set(port_id, kinds, snaplen)

    def taps(self) -> list[TapRecord]:
        """Tapped frames since the last call; call when tap_fd is readable."""
        n = lib.ff_tap_drain(self._taps, TAP_BATCH, self._tap_bytes, TAP_BYTES, self._tap_lost)
        return [
            TapRecord(
                r.time_ns,
                r.port_id,
                r.kind,
                Drop(r.dropped),
                r.frame_len,
                bytes(ffi.buffer(self._tap_bytes + r.offset, r.cap_len)),
                r.flow_id,
                r.n_actions,
                tuple(
                    Action(ActionType(a.type), a.arg, a.tpid)
                    for a in r.actions[0 : min(r.n_actions, lib.FF_TRACE_ACTIONS)]
                ),
            )
            for r in self._taps[0:n]
        ]

    @property
    def taps_lost(self) -> int:
        """Records that workers could not store, as of the last call of `taps`."""
        return int(self._tap_lost[0])

    # ---- settings and log ----

    def idle_set(self, spin_us: int, sleep_us: int) -> None:
        lib.ff_idle_set(spin_us, sleep_us)

    @staticmethod
    def log_level(level: int) -> None:
        """DPDK's log level: 1 (emergency) .. 8 (debug)."""
        lib.ff_log_level(level)

    def log_lines(self) -> list[tuple[int, str]]:
        """DPDK's log lines since the last call, each with its level: 1 (emergency) .. 8 (debug)."""
        lib.ff_log_drain(self._log, 65537)
        # The log may have been full in the middle of a line: what has no level has no text either.
        return [(int(line[0]), line[1:]) for line in _text(self._log).split("\n") if line[1:]]
