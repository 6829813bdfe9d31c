# SPDX-License-Identifier: Apache-2.0
"""`Switch`: the fast path in this process, with Python front-ends on its ports and a slow path as small as can be."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.frontend import FrontEnd
from tests.memport import Container, Shape
from vswitch.slowpath.fastpath import FastPath
from vswitch.slowpath.types import Action, Drop, Finish, Flow, PortConfig, PortState, PortType, Upcall

TIMEOUT = 30.0  # a loaded machine may stand still for 10 s
GONE = 0  # the port number under which the counters of removed ports go on
TICK_MS = 1  # how often counters, which signal nothing, are looked at

# Told of an upcall, returns the flows to install and what to do with the packet itself.
Policy = Callable[[Upcall], tuple[Sequence[Flow], Sequence[Action]]]


class Fates(NamedTuple):
    """What became of the packets since the test began, as in ff_packet.h."""

    received: int  # or made by the switch: injected, packed
    replicated: int
    sent: int  # or unpacked
    dropped: int
    parked: int

    @property
    def balanced(self) -> bool:
        return self.received + self.replicated == self.sent + self.dropped + self.parked


@dataclass
class Attached:
    """A port and what is behind it; `sent_before` is what earlier front-ends on the same port sent."""

    id: int
    config: PortConfig
    front: FrontEnd | None = None
    sent_before: int = 0
    container: Container | None = None

    @property
    def peer(self) -> FrontEnd:
        assert self.front is not None
        return self.front

    @property
    def box(self) -> Container:
        assert self.container is not None
        return self.container

    @property
    def all_sent(self) -> int | None:
        """Frames that what is behind it sent so far; None: it sends no more."""
        if self.container is not None:
            return self.sent_before + self.container.stats.tx_packets
        if self.front is not None and self.front.tx:
            return self.sent_before + self.front.stats.tx_packets
        return None


class Switch:
    def __init__(self, fastpath: FastPath, run_dir: Path) -> None:
        self.fp = fastpath
        self.run_dir = run_dir
        self.ports: dict[int, Attached] = {}
        self.policy: Policy | None = None
        self.upcalls: list[Upcall] = []  # without a policy: raised and not finished
        self._states: dict[int, list[PortState]] = {}
        self._flows: list[int] = []
        self._before = self._totals([GONE])
        self._poller = select.poll()
        for fd in (fastpath.event_fd, fastpath.upcall_fd):
            self._poller.register(fd, select.POLLIN)

    # ---- ports --------------------------------------------------------------

    def add(self, name: str, *, mtu: int = 1500, server: bool = True, **front_options: Any) -> Attached:
        """Adds a vhost-user port with a front-end, and waits until it is ready. `server`: the front-end listens."""
        path = self.run_dir / name
        front = FrontEnd(path, server, **front_options) if server else None
        queues = front_options.get("queues", 1)
        role = "client" if server else "server"
        port = self.add_config(PortConfig(name, socket=str(path), role=role, mtu=mtu, queues=queues))
        port.front = front or FrontEnd(path, server, **front_options)
        port.front.connect()
        self.wait_state(port, PortState.READY)
        return port

    def add_hosts(self, n: int, **options: Any) -> list[Attached]:
        """Ports h1 .. hn."""
        return [self.add(f"h{number}", **options) for number in range(1, n + 1)]

    def add_pmd(self, name: str, devargs: str, kind: PortType = PortType.PMD, **options: Any) -> Attached:
        port = self.add_config(PortConfig(name, kind, devargs=devargs, **options))
        self.wait_state(port, PortState.READY)
        return port

    def add_memory(self, name: str, *, mtu: int = 1500, shape: Shape | None = None, queues: int = 0) -> Attached:
        """Adds a memory port with a container, and waits until it is ready. `queues`: of the port, default: as many."""
        shape = shape or Shape()
        queues = queues or max(shape.rx_queues, shape.tx_queues)
        port = self.add_config(PortConfig(name, PortType.FF, mtu=mtu, queues=queues))
        self.wait_state(port, PortState.WAITING)
        self.attach(port, shape)
        return port

    def attach(self, port: Attached, shape: Shape | None = None) -> None:
        """Puts a container behind a memory port that has none."""
        port.container = Container(shape)
        self.fp.mem_attach(port.id, port.container.conf)
        port.container.start()
        self.wait_state(port, PortState.READY)

    def detach(self, port: Attached) -> None:
        """The container goes away."""
        port.sent_before = self.received(port)
        self.fp.mem_detach(port.id)
        self.wait_state(port, PortState.WAITING)
        port.box.close()
        port.container = None

    def add_config(self, config: PortConfig) -> Attached:
        port_id = self.fp.port_add(config)
        assert port_id not in self.ports
        self._states.setdefault(port_id, [])
        self.ports[port_id] = Attached(port_id, config)
        return self.ports[port_id]

    def delete(self, port: Attached) -> None:
        """Removes the port, then its front-end. Its counters stay in `fates`."""
        self.fp.port_del(port.id)
        del self.ports[port.id]
        self._states.pop(port.id, None)
        if port.front is not None:
            port.front.kill()
        if port.container is not None:
            port.container.close()

    def reconnect(self, port: Attached, **front_options: Any) -> None:
        """Puts a new front-end (like a restarted container) behind the port; the old one was killed."""
        old = port.peer
        port.sent_before += self.received(port) - port.sent_before
        port.front = FrontEnd(old.path, **front_options)
        port.front.connect()
        self.wait_state(port, PortState.READY)

    def wait_state(self, port: Attached, state: PortState) -> None:
        """Waits until the port has told of `state` since the last wait."""

        def reached() -> bool:
            seen = self._states[port.id]
            if state not in seen:
                return False
            del seen[: seen.index(state) + 1]
            return True

        self.wait(reached, lambda: f"{port.config.name} to become {state.label}: {self.fp.port_info(port.id)}")

    # ---- flows and upcalls --------------------------------------------------

    def install(self, *flows: Flow) -> list[int]:
        ids = self.fp.flow_add(flows)
        self._flows += ids
        return ids

    def wait_upcalls(self, n: int) -> list[Upcall]:
        """Waits for n unfinished upcalls; returns them all, oldest first."""
        self.wait(lambda: len(self.upcalls) >= n, lambda: f"{n} upcalls: {self.upcalls}")
        return self.upcalls

    def finish(self, upcall: Upcall, actions: Sequence[Action]) -> None:
        self.upcalls.remove(upcall)
        self.fp.finish([Finish(upcall.id, tuple(actions))])

    # ---- counters -----------------------------------------------------------

    def received(self, port: Attached) -> int:
        return self.fp.port_stats(port.id).rx_packets

    def sent(self, port: Attached) -> int:
        return self.fp.port_stats(port.id).tx_packets

    def drops(self, port: Attached) -> dict[Drop, int]:
        """Drops counted on the port, without zeros."""
        return {reason: n for reason in Drop if (n := self.fp.port_stats(port.id).drops.get(reason.label, 0))}

    def fates(self) -> Fates:
        now = self._totals([GONE, *self.ports])
        return Fates(*(after - before for after, before in zip(now, self._before, strict=True)))

    def settle(self, parked: int | None = 0) -> Fates:
        """Waits until every frame that the front-ends sent has met its fate, and `parked` of them
        (None: any number) wait for a verdict; returns the fates.

        Counters are read one by one while the workers go on, so only two equal, balanced
        readings in a row count.
        """
        last: Fates | None = None

        def settled() -> bool:
            nonlocal last
            before, last = last if self._all_taken() else None, self.fates()
            return last == before and last.balanced and parked in {None, last.parked}

        self.wait(settled, lambda: f"all packets to meet their fate: {last}, {self._report()}")
        assert last is not None
        return last

    def wait(self, condition: Callable[[], bool], what: Callable[[], str]) -> None:
        """Serves events and upcalls until `condition` holds."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < deadline, f"timed out waiting for {what()}"
            self._poller.poll(TICK_MS)
            self._serve()

    def assert_silent(self, ports: Iterable[Attached]) -> None:
        """No frame has come to any of these ports; call after `settle`."""
        for port in ports:
            assert not port.peer.receive(), f"{port.config.name} received something"

    def close(self) -> None:
        """Checks the law of the counters, then removes everything."""
        try:
            if self.ports:
                self.settle(parked=None)
        finally:
            self.policy = None
            for port in list(self.ports.values()):
                self.delete(port)
            self.fp.flow_del(self._flows)
            self._serve()

    # ---- inside -------------------------------------------------------------

    def _serve(self) -> None:
        for event in self.fp.events():
            self._states.setdefault(event.port_id, []).append(event.state)
        for upcall in self.fp.upcalls():
            if self.policy is None:
                self.upcalls.append(upcall)
                continue
            flows, actions = self.policy(upcall)
            self.install(*flows)
            self.fp.finish([Finish(upcall.id, tuple(actions))])

    def _totals(self, ids: Iterable[int]) -> Fates:
        stats = [self.fp.port_stats(port_id) for port_id in ids]
        return Fates(
            sum(port.rx_packets + port.injected + port.encapsulated for port in stats),
            sum(port.replicated for port in stats),
            sum(port.tx_packets + port.decapsulated for port in stats),
            sum(sum(port.drops.values()) for port in stats),
            sum(worker.parked for worker in self.fp.worker_stats()),
        )

    def _all_taken(self) -> bool:
        return all(port.all_sent in {None, self.received(port)} for port in self.ports.values())

    def _report(self) -> str:
        return ", ".join(
            f"{port.config.name} ({self.fp.port_info(port.id).reason}): "
            f"received {self.received(port)} sent {self.sent(port)} "
            + " ".join(f"{reason.label} {n}" for reason, n in self.drops(port).items())
            for port in self.ports.values()
        )
