# SPDX-License-Identifier: Apache-2.0
"""Sums over the fast path's counters."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from vswitch.slowpath.counters import PortStats, WorkerStats


@dataclass(slots=True)
class Counters:
    """Packets by fate, as in ff_packet.h; none is on its way when

    received + replicated + injected + encapsulated == sent + dropped + decapsulated + parked.
    """

    received: int = 0
    replicated: int = 0
    injected: int = 0
    encapsulated: int = 0
    sent: int = 0
    decapsulated: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def add(self, stats: PortStats) -> None:
        """Add one port's."""
        self.received += stats.rx_packets
        self.replicated += stats.replicated
        self.injected += stats.injected
        self.encapsulated += stats.encapsulated
        self.sent += stats.tx_packets
        self.decapsulated += stats.decapsulated
        self.dropped.update(stats.drops)

    def to_json(self, parked: int) -> dict[str, object]:
        """`parked`: packets that wait for a verdict now."""
        came = self.received + self.replicated + self.injected + self.encapsulated
        went = self.sent + self.dropped.total() + self.decapsulated + parked
        return {
            "received": self.received,
            "replicated": self.replicated,
            "injected": self.injected,
            "encapsulated": self.encapsulated,
            "sent": self.sent,
            "decapsulated": self.decapsulated,
            "dropped": dict(self.dropped),
            "parked": parked,
            "balanced": came == went,
        }


def port_to_json(stats: PortStats) -> dict[str, object]:
    """A port's counters, in all and of each worker; of its drop reasons and faults those that occurred."""
    return {
        "rx_packets": stats.rx_packets,
        "rx_bytes": stats.rx_bytes,
        "tx_packets": stats.tx_packets,
        "tx_bytes": stats.tx_bytes,
        "replicated": stats.replicated,
        "injected": stats.injected,
        "encapsulated": stats.encapsulated,
        "decapsulated": stats.decapsulated,
        "upcalls": stats.upcalls,
        "drops": stats.drops,
        "faults": stats.faults,
        "queues": [queue._asdict() for queue in stats.queues],
        "workers": [port_to_json(worker) for worker in stats.workers],
    }


def worker_to_json(stats: WorkerStats, load: float) -> dict[str, object]:
    """A worker's counters, and `load`, the share of its time that it spent with packets."""
    return stats._asdict() | {"busy_pct": percent(load), "perf": stats.perf._asdict()}


def percent(share: float) -> float:
    """A share of time, which clocks read one after the other may put above the whole."""
    return round(min(100.0 * share, 100.0), 1)


def traffic(stats: PortStats) -> dict[str, int]:
    """The few counters that go with a port wherever it is shown."""
    return {
        "rx_packets": stats.rx_packets,
        "rx_bytes": stats.rx_bytes,
        "tx_packets": stats.tx_packets,
        "tx_bytes": stats.tx_bytes,
        "dropped": sum(stats.drops.values()),
    }


NO_TRAFFIC = {"rx_packets": 0, "rx_bytes": 0, "tx_packets": 0, "tx_bytes": 0, "dropped": 0}
