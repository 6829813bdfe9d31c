# SPDX-License-Identifier: Apache-2.0
"""The oracle: what the real switch must do with frames fed one at a time, in order."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from vswitch.slowpath.core import SwitchCore
from vswitch.slowpath.simulate import Fate, Simulator
from vswitch.slowpath.types import Command, Drop, Port


class Oracle:
    """A simulated switch with the fast path's counters; ports that are up unless told otherwise.

    Counters go by port id: `rx` received, `tx` sent, `replicated` copies beyond
    the first, `port_drops` by reason; `drops` sums the last over ports.
    """

    def __init__(self, ports: Iterable[Port], core: SwitchCore | None = None) -> None:
        self.now = 1000.0
        self.core = core or SwitchCore()
        self.simulator = Simulator(self.core)
        self.rx: Counter[int] = Counter()
        self.tx: Counter[int] = Counter()
        self.replicated: Counter[int] = Counter()
        self.upcalls: Counter[int] = Counter()
        self.port_drops: defaultdict[int, Counter[Drop]] = defaultdict(Counter)
        for port in ports:
            self.command(self.core.port_added(port, self.now))

    @property
    def drops(self) -> Counter[Drop]:
        """Frames and copies dropped, by reason."""
        return sum(self.port_drops.values(), Counter())

    def command(self, commands: Iterable[Command]) -> None:
        """Carries out what a call of the core returned."""
        self.simulator.command(commands)

    def advance(self, seconds: float) -> None:
        """Lets time pass."""
        self.now += seconds
        self.command(self.core.tick(self.now))

    def fate(self, port_id: int, frame: bytes) -> Fate:
        """Receives a frame on a port, and counts what becomes of it."""
        fate = self.simulator.send(port_id, frame, self.now)
        self.rx[port_id] += 1
        self.upcalls[port_id] += fate.missed
        self.replicated[port_id] += len(fate.outputs) + len(fate.drops) - 1
        for to, _ in fate.outputs:
            self.tx[to] += 1
        for counted_on, reason in fate.drops:
            self.port_drops[counted_on][reason] += 1
        return fate

    def send(self, port_id: int, frame: bytes) -> dict[int, list[bytes]]:
        """Receives a frame on a port; what each port sends of it. A port that is not named sends nothing."""
        sent: dict[int, list[bytes]] = {}
        for to, out in self.fate(port_id, frame).outputs:
            sent.setdefault(to, []).append(out)
        return sent
