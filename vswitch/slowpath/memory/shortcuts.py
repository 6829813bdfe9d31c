# SPDX-License-Identifier: Apache-2.0
"""Carries out what the core wants of containers and of the fast path, and tells it of flows, rings and rules."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from vswitch.slowpath.fastpath import FastPathError
from vswitch.slowpath.memory import wire
from vswitch.slowpath.memory.container import Container
from vswitch.slowpath.memory.core import ShortcutCore
from vswitch.slowpath.memory.files import Progress, ShortcutRings, for_reading
from vswitch.slowpath.memory.numbers import Epochs, RegionNumbers
from vswitch.slowpath.memory.rules import PairRules
from vswitch.slowpath.memory.wire import Message, MsgType
from vswitch.slowpath.memory.words import (
    Ask,
    Close,
    Command,
    Cut,
    Disconnect,
    Free,
    Grant,
    MakeRings,
    Notice,
    Open,
    Peer,
    Release,
    Stage,
    Stopped,
    What,
)
from vswitch.slowpath.types import ActionType, Flow, FlowStats, Shortcut

log = logging.getLogger(__name__)

_MSG_TYPES = {
    What.NEIGHBOUR: MsgType.NEIGHBOUR,
    What.UNMAP: MsgType.UNMAP,
    What.SHORTCUT: MsgType.SHORTCUT,
    What.DROP: MsgType.DROP,
    What.RECLAIM: MsgType.RECLAIM,
}

Wish = tuple[int, int, bytes]  # sender, receiver, destination MAC


class FastPathShortcuts(Protocol):
    """What is called of the fast path."""

    def shortcut_open(self, shortcut: Shortcut, /) -> None: ...
    def shortcut_close(self, shortcut: Shortcut, /) -> None: ...
    def shortcut_free(self, shortcut: Shortcut, /) -> None: ...


class Hearing(Protocol):
    """The decision core, told of addresses that the switch does not see."""

    def heard(self, port_id: int, now: float, mac: bytes | None = None) -> None: ...


@dataclass(slots=True)
class Traffic:
    """What went by shortcuts, as the senders say."""

    packets: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class ShortcutView:
    """A shortcut for people; `idle` seconds since anything went through, `took` seconds to get open."""

    epoch: int
    sender: int
    receiver: int
    mac: bytes
    stage: Stage
    ends: str
    packets: int
    bytes: int
    idle: float
    took: float


def wish_of(flow: Flow) -> Wish | None:
    """The shortcut that could take a flow's packets, if any could."""
    key, mask = flow.key, flow.mask
    tagless = mask.vlan_tpid[0] == 0xFFFF and key.vlan_tpid[0] == 0
    if not tagless or mask.eth_dst != b"\xff" * 6 or key.eth_dst[0] & 1 or len(flow.actions) != 1:
        return None
    action = flow.actions[0]
    return (key.in_port, action.arg, key.eth_dst) if action.type is ActionType.OUTPUT else None


class Shortcuts:
    """The shortcuts of a host. Runs in asyncio's thread; between two awaits nothing is half done."""

    def __init__(
        self,
        fast_path: FastPathShortcuts,
        rules: PairRules,
        hearing: Hearing,
        epochs: Epochs,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rate = 1000.0  # packets per second of a flow that gets a shortcut; 0: its first packet does
        self.regions = RegionNumbers()
        self._fast_path, self._rules, self._hearing, self._epochs, self._clock = (
            fast_path,
            rules,
            hearing,
            epochs,
            clock,
        )
        self.core = ShortcutCore(rules, self._next_epoch)
        self._containers: dict[int, Container] = {}
        self._firsts: dict[int, tuple[int, int]] = {}  # by sid: number of the first region, how many
        self._sids: dict[Container, int] = {}
        self._sid = 0
        self._rings: dict[int, ShortcutRings] = {}  # by epoch
        self._at_fast_path: dict[int, Shortcut] = {}
        self._sent: dict[int, Traffic] = {}  # by port, of shortcuts that are over
        self._received: dict[int, Traffic] = {}
        self._seen: dict[int, tuple[int, float]] = {}  # packets of a flow, and when
        self._rates: Counter[Wish] = Counter()
        self._last: dict[int, Progress] = {}
        self._todo: deque[Command] = deque()
        self._busy = False

    # ---- containers ------------------------------------------------------------------

    def up(self, container: Container) -> None:
        """A container runs."""
        self._sid += 1
        self._sids[container] = self._sid
        self._containers[self._sid] = container
        count = len(container.regions)
        self._firsts[self._sid] = (container.first_region, count)
        peer = Peer(
            self._sid, container.port_id, container.config.name, count, container.tx_queues, container.ring_size
        )
        self._run(self.core.peer_up(peer))

    def stopping(self, container: Container) -> None:
        """A container asks to stop."""
        self._run(self.core.peer_stops(self._sids[container], self._clock()))

    def down(self, container: Container) -> bool:
        """A container is gone: its shortcuts are closed when this returns. False: it was not up."""
        sid = self._sids.pop(container, None)
        if sid is None:
            return False
        del self._containers[sid]
        self._run(self.core.peer_down(sid, self._clock()))
        return True

    def answered(self, container: Container, message: Message) -> None:
        """What a container was asked, it has done, or refused."""
        sid = self._sids.get(container)
        if sid is not None:
            error = "".join(c for c in message.text if c.isprintable()) if message.type is MsgType.ERROR else None
            self._run(self.core.answered(sid, message.serial, error, self._clock()))

    def complained(self, container: Container, message: Message) -> None:
        """What a neighbour did to a container: to an incoming shortcut, or its memory is gone."""
        sid, now = self._sids.get(container), self._clock()
        text = "".join(c for c in message.text if c.isprintable())
        if sid is None:
            return
        if not message.region:
            self._run(self.core.complained(sid, message.number, text, now))
            return
        for owner, (first, count) in self._firsts.items():
            if first <= message.region < first + count:
                self._run(self.core.memory_lost(sid, owner, text, now))
                return

    # ---- what the switch tells ----------------------------------------------------------

    def changed(self) -> None:
        """Ports, addresses, policies, or who looks at packets: something has changed."""
        self._rules.changed()
        if self.core.cuts:
            self._run(self.core.recheck(self._clock()))

    def flow_added(self, flow: Flow) -> None:
        """A first packet has come up."""
        if self.rate == 0:
            self._promote(wish_of(flow))

    def flow_counted(self, handle: int, flow: Flow, stats: FlowStats) -> None:
        """A flow's counters, about once a second; then `second`."""
        if self.core.peer(flow.key.in_port) is None:
            return
        wish, now = wish_of(flow), self._clock()
        packets, before = self._seen.get(handle, (0, now - 1.0))
        self._seen[handle] = (stats.packets, now)
        if wish is not None and now > before:
            self._rates[wish] += (stats.packets - packets) / (now - before)  # type: ignore[assignment]

    def second(self, flows: Mapping[int, Flow]) -> None:
        """Once a second: fast flows get shortcuts, idle shortcuts go, addresses at both ends stay known."""
        rates, self._rates = self._rates, Counter()
        for handle in self._seen.keys() - flows.keys():
            del self._seen[handle]
        for wish, rate in rates.items():
            if rate > 0 and rate >= self.rate:
                self._promote(wish)
        now = self._clock()
        for epoch, rings in list(self._rings.items()):
            cut = self.core.cuts[epoch]
            if cut.stage is Stage.OPEN:
                self._look_at(cut, rings.progress(), now)
        for container in self._sids:
            # One that only receives would be forgotten.
            self._hearing.heard(container.port_id, now, container.mac)
        self._run(self.core.tick(now))

    def _look_at(self, cut: Cut, progress: Progress, now: float) -> None:
        before = self._last.get(cut.epoch)
        self._last[cut.epoch] = progress
        if before is None or progress.sent != before.sent:
            self._hearing.heard(cut.sender.port, now)
        if before is None or progress.taken != before.taken:
            self._hearing.heard(cut.receiver.port, now, cut.mac)
        self._run(self.core.progress(cut.epoch, (progress.sent, progress.taken), now))

    def _promote(self, wish: Wish | None) -> None:
        if wish is not None:
            self._run(self.core.promote(*wish, self._clock()))

    # ---- for people ------------------------------------------------------------------------

    def views(self) -> Iterable[ShortcutView]:
        """The shortcuts there are, those included that come or go."""
        now = self._clock()
        for cut in self.core.cuts.values():
            rings = self._rings.get(cut.epoch)
            told = rings.progress() if rings is not None else Progress(0, 0, 0, 0)
            ids = (cut.sender.port, cut.receiver.port)
            idle = max(0.0, now - cut.moved)
            yield ShortcutView(cut.epoch, *ids, cut.mac, cut.stage, cut.ends, told.packets, told.bytes, idle, cut.took)

    def traffic(self, port_id: int) -> tuple[Traffic, Traffic]:
        """What a port sent and received by shortcuts, those included that are over."""
        sent, received = (self._sum(table, port_id) for table in (self._sent, self._received))
        for view in self.views():
            for side, total in ((view.sender, sent), (view.receiver, received)):
                if side == port_id:
                    total.packets += view.packets
                    total.bytes += view.bytes
        return sent, received

    @staticmethod
    def _sum(table: Mapping[int, Traffic], port_id: int) -> Traffic:
        before = table.get(port_id, Traffic())
        return Traffic(before.packets, before.bytes)

    def count(self, port_id: int) -> int:
        """How many shortcuts a port has, both ways."""
        live = [cut for cut in self.core.cuts.values() if not cut.stage.ending]
        return sum(port_id in (cut.sender.port, cut.receiver.port) for cut in live)

    def why_not(self, sender: int, receiver: int, mac: bytes) -> str:
        """Why packets from one port to another do not take a shortcut now; "" when they do."""
        cuts = [cut for cut in self.core.cuts.values() if (cut.sender.port, cut.receiver.port) == (sender, receiver)]
        if any(cut.stage is Stage.OPEN for cut in cuts):
            return ""
        missing = [port for port in (sender, receiver) if self.core.peer(port) is None]
        if missing:
            return "a container is not there"
        why = self._rules.refuses(sender, receiver, mac, new=True)
        why = why or self.core.held_back(sender, receiver, self._clock())
        if why or not cuts:
            return why or f"no flow of at least {self.rate:g} packets/s"
        return "it is on its way" if any(not cut.stage.ending for cut in cuts) else "the last one is not quite over"

    def forget_port(self, port_id: int) -> None:
        """A port is deleted."""
        self._sent.pop(port_id, None)
        self._received.pop(port_id, None)

    # ---- carrying out --------------------------------------------------------------------------

    def _run(self, commands: Iterable[Command]) -> None:
        self._todo.extend(commands)
        if self._busy:
            return  # further up, somebody works this off
        self._busy = True
        try:
            while self._todo:
                self._do(self._todo.popleft())
        finally:
            self._busy = False

    def _do(self, command: Command) -> None:
        match command:
            case Ask():
                self._ask(command)
            case Grant(cut, owner):
                self._grant(cut, owner)
            case MakeRings(cut):
                self._make_rings(cut)
            case Open(cut):
                self._open(cut)
            case Close(cut):
                self._close(cut)
            case Free(cut):
                self._free(cut)
            case Release(sid):
                self.regions.give_back(self._firsts.pop(sid)[0])
            case Stopped(sid):
                # Not from here: it makes the container's end, and so further commands.
                asyncio.get_running_loop().call_soon(self._containers[sid].finish_stop)
            case Disconnect(sid, why):
                if container := self._containers.get(sid):
                    asyncio.get_running_loop().call_soon(lambda: container.end(why, misbehaved=True))
            case Notice(text, warning):
                log.log(logging.WARNING if warning else logging.INFO, "%s", text)

    def _ask(self, ask: Ask) -> None:
        container = self._containers.get(ask.sid)
        if container is None:
            return
        kind = _MSG_TYPES[ask.what]
        if ask.cut is None:
            self._ask_about_memory(container, ask, kind)
            return
        cut = ask.cut
        out = cut.sender.sid == ask.sid
        message = Message(
            kind,
            flags=wire.OUT if out else 0,
            serial=ask.serial,
            epoch=cut.epoch,
            number=cut.out_number if out else cut.in_number,
            tx_queues=cut.sender.tx_queues,
            ring_size=cut.sender.ring_size,
            text=(cut.receiver if out else cut.sender).name,
        )
        rings = self._rings.get(cut.epoch)
        if ask.what is not What.SHORTCUT:
            container.ask(message)
        elif rings is not None:  # else they could not be made, and the core knows
            container.ask(message, [rings.fd])

    def _ask_about_memory(self, container: Container, ask: Ask, kind: MsgType) -> None:
        first, _ = self._firsts[ask.owner]
        message = Message(kind, serial=ask.serial, region=first + ask.region)
        owner = self._containers.get(ask.owner)
        if ask.what is What.UNMAP:
            container.ask(message)
            return
        if owner is None:
            return  # it went just now
        region = owner.regions[ask.region]
        message = Message(
            kind,
            flags=wire.READ_ONLY if ask.read_only else 0,
            serial=ask.serial,
            region=first + ask.region,
            size=region.size,
            offset=region.offset,
            text=owner.config.name,
        )
        if not ask.read_only:
            container.ask(message, [region.fd])
            return
        with for_reading(region.fd) as fd:
            container.ask(message, [fd])

    def _grant(self, cut: Cut, owner: int) -> None:
        container = self._containers.get(cut.sender.sid)
        first, count = self._firsts[owner]
        for region in range(first, first + count) if container is not None else ():
            assert container is not None
            container.send(Message(MsgType.GRANT, epoch=cut.epoch, number=cut.out_number, region=region))

    def _make_rings(self, cut: Cut) -> None:
        try:
            rings = ShortcutRings(cut.sender.tx_queues, cut.sender.ring_size, cut.epoch)
        except OSError as error:
            self._run(self.core.failed(cut, f"no rings: {error.strerror}", self._clock()))
        else:
            self._rings[cut.epoch] = rings

    def _open(self, cut: Cut) -> None:
        shortcut = Shortcut(
            sender=cut.sender.port,
            receiver=cut.receiver.port,
            out_number=cut.out_number,
            in_number=cut.in_number,
            epoch=cut.epoch,
            mac=cut.mac,
            max_len=cut.max_len,
            queues=cut.sender.tx_queues,
        )
        try:
            self._fast_path.shortcut_open(shortcut)
        except FastPathError as error:
            self._run(self.core.failed(cut, str(error), self._clock()))
        else:
            self._at_fast_path[cut.epoch] = shortcut

    def _close(self, cut: Cut) -> None:
        if shortcut := self._at_fast_path.get(cut.epoch):
            try:
                self._fast_path.shortcut_close(shortcut)
            except FastPathError as error:
                log.error("shortcut %s → %s: %s", cut.sender.name, cut.receiver.name, error)

    def _free(self, cut: Cut) -> None:
        if shortcut := self._at_fast_path.pop(cut.epoch, None):
            try:
                self._fast_path.shortcut_free(shortcut)
            except FastPathError as error:
                log.error("shortcut %s → %s: %s", cut.sender.name, cut.receiver.name, error)
        self._last.pop(cut.epoch, None)
        if rings := self._rings.pop(cut.epoch, None):
            told = rings.progress()
            for table, port in ((self._sent, cut.sender.port), (self._received, cut.receiver.port)):
                total = table.setdefault(port, Traffic())
                total.packets += told.packets
                total.bytes += told.bytes
            rings.close()

    def _next_epoch(self) -> int:
        try:
            return self._epochs.take()
        except OSError as error:
            log.error("no new shortcut: its epoch cannot be written down: %s", error.strerror)
            return 0
