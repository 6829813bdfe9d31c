# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D101, D102 (FastPath itself says what they are)
"""What the daemon needs of the fast path, so that its glue can be tested without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from vswitch.slowpath.types import (
    Action,
    Drop,
    Finish,
    Flow,
    FlowStats,
    Key,
    PortConfig,
    PortState,
    Upcall,
)


class FastPathError(Exception):
    """The fast path refused; str() is one line for people."""


@dataclass(frozen=True, slots=True)
class PortInfo:
    state: PortState
    rx_queues: int
    tx_queues: int
    features: int
    mac: str
    driver: str
    reason: str


@dataclass(frozen=True, slots=True)
class PortEvent:
    port_id: int
    state: PortState
    reason: str


@dataclass(frozen=True, slots=True)
class QueueStats:
    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int


@dataclass(frozen=True, slots=True)
class PortStats:
    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int
    replicated: int
    upcalls: int
    drops: Mapping[str, int]
    queues: Sequence[QueueStats]


@dataclass(frozen=True, slots=True)
class WorkerStats:
    cpu: int
    loops: int
    busy_loops: int
    sleeps: int
    busy_cycles: int
    packets: int
    hits: int
    misses: int
    parked: int


@dataclass(frozen=True, slots=True)
class TapRecord:
    time_ns: int
    port_id: int
    kind: int
    dropped: Drop
    frame_len: int
    frame: bytes
    flow_id: int
    actions: tuple[Action, ...]


class FastPathApi(Protocol):
    """The methods of FastPath that the daemon calls."""

    @property
    def event_fd(self) -> int: ...
    @property
    def upcall_fd(self) -> int: ...
    @property
    def tap_fd(self) -> int: ...
    @property
    def taps_lost(self) -> int: ...

    def stop(self) -> None: ...
    def port_add(self, config: PortConfig, /) -> int: ...
    def port_del(self, port_id: int, /) -> None: ...
    def port_set_mtu(self, port_id: int, mtu: int, /) -> None: ...
    def port_set_parked_max(self, port_id: int, n: int, /) -> None: ...
    def port_info(self, port_id: int, /) -> PortInfo: ...
    def events(self) -> Sequence[PortEvent]: ...
    def upcalls(self) -> Sequence[Upcall]: ...
    def finish(self, verdicts: Sequence[Finish], /) -> None: ...
    def flow_add(self, flows: Sequence[Flow], /) -> Sequence[int]: ...
    def flow_del(self, ids: Sequence[int], /) -> None: ...
    def flow_stats(self, ids: Sequence[int], /) -> Sequence[FlowStats]: ...
    def flow_lookup(self, key: Key, /) -> int: ...
    def port_stats(self, port_id: int, /) -> PortStats: ...
    def worker_stats(self) -> Sequence[WorkerStats]: ...
    def tap_set(self, port_id: int, kinds: int, snaplen: int, /) -> None: ...
    def taps(self) -> Sequence[TapRecord]: ...
    def idle_set(self, spin_us: int, sleep_us: int, /) -> None: ...
    def log_lines(self) -> Sequence[str]: ...
