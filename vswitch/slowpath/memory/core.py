# SPDX-License-Identifier: Apache-2.0
"""The shortcuts of a host, from wish to end: events in, commands out, no I/O.

A shortcut of one direction, A to B, is made in these steps: B maps A's regions, both map the rings, the switch opens
it. And ended: the switch closes it; A says that it uses it no more, then B that it holds nothing of it any more; then
its numbers are free. Frames that B passes on without a copy lie in A's regions all the same, so whoever gets them maps
those too (a grant), and a buffer of A's is held along the whole chain until the last one gives it back. Hence: what
A lent to a B that died is reclaimed only when nobody alive holds anything that B had lent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vswitch.slowpath.memory.numbers import Numbers
from vswitch.slowpath.memory.reach import brings, held_by_living, led_to, reaches
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
    Rules,
    Stage,
    Stopped,
    What,
)

# A live container maps what it is told to map, or refuses, within this time.
ANSWER_S = 5.0
# An application may keep packets for as long as it likes; it is said once.
HELD_S = 10.0
_BACKOFF_MAX_S = 60.0


@dataclass(eq=False, slots=True)
class _Mapping:
    """The regions of `owner` at `holder`."""

    holder: int
    owner: int
    read_only: bool
    waits: set[int] = field(default_factory=set)
    have: list[int] = field(default_factory=list)  # regions that it said it has mapped
    failed: bool = False
    going: bool = False

    @property
    def there(self) -> bool:
        return not (self.waits or self.going or self.failed)


@dataclass(frozen=True, slots=True)
class _Asked:
    sid: int
    what: What
    at: float
    cut: Cut | None = None
    mapping: _Mapping | None = None
    region: int = 0


@dataclass(slots=True)
class _Backoff:
    until: float
    delay: float
    why: str


class ShortcutCore:
    """All shortcuts of a host. `now` is CLOCK_MONOTONIC seconds."""

    def __init__(self, rules: Rules, epoch: Callable[[], int], *, idle: float = 30.0) -> None:
        """`epoch` gives a number that no shortcut ever had, 0 when there is none."""
        self.idle = idle
        self._rules, self._epoch = rules, epoch
        self._peers: dict[int, Peer] = {}
        self._by_port: dict[int, Peer] = {}
        self._stopping: set[int] = set()
        self._cuts: dict[int, Cut] = {}
        self._moving: dict[int, Cut] = {}  # those that are not open: few of many
        self._shrunk = self._grown = False  # whether memory may be unmapped, or passed on, that could not before
        self._numbers = Numbers()
        self._mappings: dict[tuple[int, int], _Mapping] = {}  # (holder, owner)
        self._unreleased: dict[int, Peer] = {}  # gone, but others may have their regions mapped
        self._asked: dict[int, _Asked] = {}
        self._told_held: set[int] = set()
        self._serial = 0
        self._backoff: dict[tuple[int, int], _Backoff] = {}  # by ports
        self._out: list[Command] = []

    # ---- to look at ------------------------------------------------------------------

    @property
    def cuts(self) -> Mapping[int, Cut]:
        """The shortcuts by epoch; read only."""
        return self._cuts

    def peer(self, port: int) -> Peer | None:
        """The running container behind a port."""
        return self._by_port.get(port)

    def mapped(self, holder: int, owner: int) -> bool:
        """Whether one container has the other's regions mapped, or may have."""
        return (holder, owner) in self._mappings

    def held_back(self, sender: int, receiver: int, now: float) -> str:
        """Why no new shortcut is tried now between two ports, "" when one may be."""
        backoff = self._backoff.get((sender, receiver))
        return f"{backoff.why}; tried again soon" if backoff is not None and now < backoff.until else ""

    # ---- events ------------------------------------------------------------------------

    def peer_up(self, peer: Peer) -> list[Command]:
        """A container runs."""
        self._peers[peer.sid] = self._by_port[peer.port] = peer
        return self._take()

    def peer_stops(self, sid: int, now: float) -> list[Command]:
        """A container asks to stop: `Stopped` follows, unless it goes before."""
        self._stopping.add(sid)
        for cut in self._of(sid):
            self._end(cut, f"{self._peers[sid].name} stops", now)
        self._settle(now)
        return self._take()

    def peer_down(self, sid: int, now: float) -> list[Command]:
        """A container is gone; what it was asked is answered no more."""
        peer = self._peers.pop(sid, None)
        if peer is None:
            return []
        if self._by_port.get(peer.port) is peer:
            del self._by_port[peer.port]
        self._stopping.discard(sid)
        for serial in [serial for serial, asked in self._asked.items() if asked.sid == sid]:
            self._forget(serial)
        for mapping in [m for m in self._mappings.values() if m.holder == sid]:
            del self._mappings[mapping.holder, mapping.owner]
        self._unreleased[sid] = peer
        self._shrunk = True
        for cut in self._of(sid):
            self._end(cut, f"{peer.name} is gone", now)
        self._settle(now)
        return self._take()

    def promote(self, sender: int, receiver: int, mac: bytes, now: float) -> list[Command]:
        """A flow from one port to another, for `mac`, is worth a shortcut."""
        a, b = self._by_port.get(sender), self._by_port.get(receiver)
        if a is None or b is None or a is b or {a.sid, b.sid} & self._stopping:
            return []
        same = [cut for cut in self._cuts.values() if cut.sender is a and cut.mac == mac]
        if any(cut.receiver is b or not cut.stage.ending for cut in same):
            return []  # there, on its way, or not yet quite over
        if self._rules.refuses(sender, receiver, mac, new=True) or self.held_back(sender, receiver, now):
            return []
        quotas = (sender, self._rules.quota(sender)), (receiver, self._rules.quota(receiver))
        if self._numbers.full(*quotas):
            return []
        epoch = self._epoch()
        numbers = self._numbers.take(*quotas) if epoch else None
        if numbers is None:
            return []
        cut = Cut(epoch, a, b, mac, *numbers, self._rules.max_len(sender, receiver), since=now, moved=now)
        self._cuts[epoch] = self._moving[epoch] = cut
        self._settle(now)
        return self._take()

    def answered(self, sid: int, serial: int, error: str | None, now: float) -> list[Command]:
        """A container answered: DONE, or ERROR with its text."""
        asked = self._asked.get(serial)
        if asked is None or asked.sid != sid:
            return []
        self._forget(serial)
        if error is not None:
            self._refused(asked, error, now)
        elif asked.what is What.NEIGHBOUR and asked.mapping is not None:
            asked.mapping.have.append(asked.region)
            self._grown = self._shrunk = True
        elif asked.what is What.UNMAP and asked.mapping is not None and not asked.mapping.waits:
            self._mappings.pop((asked.mapping.holder, asked.mapping.owner), None)
        self._settle(now)
        return self._take()

    def complained(self, sid: int, number: int, text: str, now: float) -> list[Command]:
        """A container gave up an incoming shortcut: its sender broke the rules of its rings."""
        for cut in self._live():
            if cut.receiver.sid == sid and cut.in_number == number and cut.opened:
                self._give_up(cut, f"{cut.receiver.name} says: {text}", now)
        self._settle(now)
        return self._take()

    def memory_lost(self, sid: int, owner: int, text: str, now: float) -> list[Command]:
        """A container cannot use another one's memory any more."""
        a, b = self._peers.get(owner), self._peers.get(sid)
        for cut in self._live():
            if cut.receiver.sid == sid and brings(cut, owner):
                self._end(cut, f"{cut.receiver.name} says: {text}", now)
        if a is not None and b is not None:
            self._back_off(a, b, text, now)
        self._settle(now)
        return self._take()

    def failed(self, cut: Cut, why: str, now: float) -> list[Command]:
        """Its MakeRings, and then nobody was asked to map them, or its Open could not be carried out."""
        cut.opened = False
        if cut.stage is Stage.SHARING:
            cut.told.clear()
            for serial in list(cut.waits):
                self._forget(serial)
        self._give_up(cut, why, now)
        self._settle(now)
        return self._take()

    def recheck(self, now: float) -> list[Command]:
        """The rules may have changed: what they refuse now ends."""
        for cut in self._live():
            why = self._rules.refuses(cut.sender.port, cut.receiver.port, cut.mac, new=False)
            why = why or self._exposure(cut)
            if why:
                self._end(cut, why, now)
        self._settle(now)
        return self._take()

    def progress(self, epoch: int, counts: tuple[int, int], now: float) -> list[Command]:
        """How far sender and receiver of a shortcut are; free-running. One that stands still long enough ends."""
        cut = self._cuts.get(epoch)
        if cut is None or cut.stage is not Stage.OPEN:
            return []
        if counts != cut.counts:
            cut.counts, cut.moved = counts, now
            if now - cut.since >= _BACKOFF_MAX_S:
                self._backoff.pop((cut.sender.port, cut.receiver.port), None)
        elif now - cut.moved >= self.idle:
            self._end(cut, f"nothing was sent for {self.idle:g} s", now)
            self._settle(now)
        return self._take()

    def tick(self, now: float) -> list[Command]:
        """Once a second: who does not answer."""
        for serial, asked in list(self._asked.items()):
            if asked.what in (What.NEIGHBOUR, What.SHORTCUT) and now - asked.at >= ANSWER_S:
                self._out.append(Disconnect(asked.sid, f"it did not answer {asked.what.name} for {ANSWER_S:g} s"))
            elif now - asked.at >= HELD_S and serial not in self._told_held:
                self._told_held.add(serial)
                name = self._peers[asked.sid].name
                self._out.append(Notice(f"port {name}: it still holds packets of a shortcut that has ended", True))
        return self._take()

    # ---- ends ----------------------------------------------------------------------------

    def _end(self, cut: Cut, why: str, now: float) -> None:
        if cut.stage.ending:
            return
        cut.ends = why
        if cut.opened:
            self._out.append(Close(cut))
            self._out.append(Notice(f"shortcut {cut.sender.name} → {cut.receiver.name} ends: {why}"))
        cut.stage, cut.since = Stage.CLOSED, now
        self._moving[cut.epoch] = cut

    def _tell(self, cut: Cut, peer: Peer, now: float) -> None:
        """Tell one side to drop it, if it has it."""
        if peer.sid in cut.told and peer.sid in self._peers:
            self._ask(peer.sid, What.DROP, now, cut=cut)

    def _refused(self, asked: _Asked, error: str, now: float) -> None:
        name = self._peers[asked.sid].name
        why = f"{name} refuses: {error}"
        if asked.mapping is not None:
            if asked.what is What.UNMAP:
                self._out.append(Disconnect(asked.sid, f"it does not unmap what it was lent: {error}"))
                return
            # What it has mapped already is taken back before it is tried again.
            asked.mapping.failed = self._shrunk = True
            owner = self._peers.get(asked.mapping.owner)
            if owner is not None:
                self._back_off(owner, self._peers[asked.sid], why, now)
            for cut in [c for c in self._live() if c.receiver.sid == asked.sid and brings(c, asked.mapping.owner)]:
                self._end(cut, why, now)
        elif asked.cut is not None and asked.what is What.SHORTCUT:
            asked.cut.told.discard(asked.sid)
            self._give_up(asked.cut, why, now)
        else:
            self._out.append(Disconnect(asked.sid, f"it does not let go of a shortcut: {error}"))

    def _give_up(self, cut: Cut, why: str, now: float) -> None:
        self._back_off(cut.sender, cut.receiver, why, now)
        self._end(cut, why, now)

    def _back_off(self, sender: Peer, receiver: Peer, why: str, now: float) -> None:
        key = (sender.port, receiver.port)
        before = self._backoff.get(key)
        delay = min(2 * before.delay, _BACKOFF_MAX_S) if before is not None else 1.0
        self._backoff[key] = _Backoff(now + delay, delay, why)
        self._out.append(Notice(f"no shortcut {sender.name} → {receiver.name}: {why}", True))

    def _exposure(self, cut: Cut) -> str:
        """Why the receiver must not get what it may get through this shortcut, or not in this way."""
        holder = cut.receiver
        if self._rules.max_len(cut.sender.port, holder.port) != cut.max_len:
            return "the MTU has changed"
        for sid in (cut.sender.sid, *cut.granted):
            owner = self._peers.get(sid)
            if owner is None or owner is holder:
                continue
            why = self._rules.hides(owner.port, holder.port)
            if why:
                return f"it may bring packets of {owner.name}: {why}"
            mapping = self._mappings.get((holder.sid, sid))
            if mapping is not None and mapping.read_only != self._rules.read_only(owner.port, holder.port):
                return f"the memory of {owner.name} is mapped in another way from now on"
        return ""

    # ---- what follows ------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        """Take every step that can be taken."""
        moved = True
        while moved:
            moved = sum(self._step(cut, now) for cut in list(self._moving.values())) > 0
            if self._shrunk:
                self._shrunk = False
                moved |= self._unmap(now)
        while self._grown:
            self._grown = self._grant_all(now)
        for sid in [sid for sid in self._unreleased if all(m.owner != sid for m in self._mappings.values())]:
            if not any(sid in (c.sender.sid, *c.granted) for c in self._cuts.values()):
                del self._unreleased[sid]
                self._out.append(Release(sid))
        for sid in [sid for sid in self._stopping if not self._has_any(sid)]:
            self._stopping.remove(sid)
            self._out.append(Stopped(sid))

    def _has_any(self, sid: int) -> bool:
        return bool(self._of(sid)) or any(sid in (m.owner, m.holder) for m in self._mappings.values())

    def _step(self, cut: Cut, now: float) -> bool:
        """One step of a shortcut's way, if it is due."""
        before = cut.stage
        match before:
            case Stage.MAPPING:
                self._map_then_share(cut, now)
            case Stage.SHARING if not cut.waits:
                cut.stage, cut.opened, cut.took = Stage.OPEN, True, now - cut.since
                cut.since = cut.moved = now
                del self._moving[cut.epoch]
                self._grown = True
                self._out.append(Open(cut))
                self._out.append(Notice(f"shortcut {cut.sender.name} → {cut.receiver.name} is open"))
            case Stage.CLOSED if not cut.waits:
                cut.stage = Stage.LEAVING
                self._tell(cut, cut.sender, now)
            case Stage.LEAVING if not cut.waits:
                cut.stage = Stage.EMPTYING
                self._tell(cut, cut.receiver, now)
            case Stage.EMPTYING if cut.receiver.sid not in self._peers:
                cut.stage = Stage.HELD
            case Stage.EMPTYING if not cut.waits:
                cut.stage = Stage.FREE
            case Stage.HELD if not held_by_living(self._cuts.values(), cut, self._peers):
                cut.stage = Stage.RECLAIMING
                if cut.opened and cut.sender.sid in self._peers:
                    self._ask(cut.sender.sid, What.RECLAIM, now, cut=cut)
            case Stage.RECLAIMING if not cut.waits:
                cut.stage = Stage.FREE
        if cut.stage is Stage.FREE:
            del self._cuts[cut.epoch], self._moving[cut.epoch]
            self._shrunk = True
            self._numbers.give_back((cut.sender.port, cut.out_number), (cut.receiver.port, cut.in_number))
            self._out.append(Free(cut))
        return cut.stage is not before

    def _map_then_share(self, cut: Cut, now: float) -> None:
        mapping = self._mappings.get((cut.receiver.sid, cut.sender.sid))
        if mapping is None:
            mapping = self._map(cut.receiver, cut.sender, now)
        if not mapping.there:
            return
        cut.stage = Stage.SHARING
        self._out.append(MakeRings(cut))
        for peer in (cut.receiver, cut.sender):
            cut.told.add(peer.sid)
            self._ask(peer.sid, What.SHORTCUT, now, cut=cut)

    def _map(self, holder: Peer, owner: Peer, now: float) -> _Mapping:
        mapping = _Mapping(holder.sid, owner.sid, self._rules.read_only(owner.port, holder.port))
        self._mappings[holder.sid, owner.sid] = mapping
        for region in range(owner.regions):
            self._ask(holder.sid, What.NEIGHBOUR, now, mapping=mapping, region=region)
        return mapping

    def _unmap(self, now: float) -> bool:
        """Have memory unmapped that no shortcut brings frames of any more: none of it is in flight then."""
        done = False
        for mapping in list(self._mappings.values()):
            if mapping.waits or mapping.going:
                continue
            if not mapping.failed and reaches(self._cuts.values(), mapping.owner, mapping.holder):
                continue
            mapping.going = True
            done = True
            for cut in self._cuts.values():
                if cut.sender.sid == mapping.holder:
                    cut.granted.discard(mapping.owner)
            for region in mapping.have:
                self._ask(mapping.holder, What.UNMAP, now, mapping=mapping, region=region)
            if not mapping.have:
                del self._mappings[mapping.holder, mapping.owner]
        return done

    def _grant_all(self, now: float) -> bool:
        """Where a sender has the memory of a third mapped, and the receiver may have it too, nothing is copied."""
        done = False
        for cut in self._cuts.values():
            if cut.stage is Stage.OPEN:
                done |= sum(self._grant(cut, owner, now) for owner in self._mapped_by(cut.sender.sid)) > 0
        return done

    def _grant(self, cut: Cut, owner: Peer, now: float) -> bool:
        holder = cut.receiver
        own = self._mappings.get((cut.sender.sid, owner.sid))
        if owner.sid in cut.granted or own is None or not own.there or own.read_only:
            return False
        if self._rules.hides(owner.port, holder.port) or self.held_back(owner.port, holder.port, now):
            return False
        # A buffer that came back to one who holds it already could never be reclaimed when somebody on the way dies:
        # where a loop closes, frames are copied.
        if owner is holder or cut.sender.sid in led_to(self._cuts.values(), owner.sid, holder.sid):
            return False
        mapping = self._mappings.get((holder.sid, owner.sid))
        if mapping is None:
            self._map(holder, owner, now)
            return True
        if not mapping.there:
            return False
        cut.granted.add(owner.sid)
        self._out.append(Grant(cut, owner.sid))
        return True

    # ---- what is connected with what ------------------------------------------------------------

    def _live(self) -> list[Cut]:
        return [cut for cut in self._cuts.values() if not cut.stage.ending]

    def _of(self, sid: int) -> list[Cut]:
        return [cut for cut in self._cuts.values() if sid in (cut.sender.sid, cut.receiver.sid)]

    def _mapped_by(self, sid: int) -> list[Peer]:
        owners = [owner for holder, owner in self._mappings if holder == sid]
        return [self._peers[owner] for owner in owners if owner in self._peers]

    # ---- questions and answers --------------------------------------------------------------------

    def _ask(
        self,
        sid: int,
        what: What,
        now: float,
        *,
        cut: Cut | None = None,
        mapping: _Mapping | None = None,
        region: int = 0,
    ) -> None:
        self._serial = self._serial % 0xFFFFFFFF + 1
        serial = self._serial
        self._asked[serial] = _Asked(sid, what, now, cut, mapping, region)
        if cut is not None:
            cut.waits.add(serial)
            self._out.append(Ask(sid, serial, what, cut=cut))
        elif mapping is not None:
            mapping.waits.add(serial)
            ask = Ask(sid, serial, what, owner=mapping.owner, region=region, read_only=mapping.read_only)
            self._out.append(ask)

    def _forget(self, serial: int) -> None:
        asked = self._asked.pop(serial)
        self._told_held.discard(serial)
        if asked.cut is not None:
            asked.cut.waits.discard(serial)
        if asked.mapping is not None:
            asked.mapping.waits.discard(serial)

    def _take(self) -> list[Command]:
        out, self._out = self._out, []
        return out
