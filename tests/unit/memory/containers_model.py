# SPDX-License-Identifier: Apache-2.0
"""Containers and a fast path as the shortcuts' core sees them: they check each thing that they are told.

A frame is a buffer of the container where it was born, with the chain of shortcuts by which it came to where it is;
each link is held until all behind it have let go, as in ff_shm.h.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from vswitch.slowpath.memory.core import ShortcutCore
from vswitch.slowpath.memory.words import (
    Ask,
    Close,
    Command,
    Cut,
    Disconnect,
    Free,
    Grant,
    MakeRings,
    Open,
    Peer,
    Release,
    Stage,
    Stopped,
    What,
)


class Table:
    """Rules that a test sets."""

    def __init__(self) -> None:
        self.domain: dict[int, str] = {}
        self.watched: set[int] = set()
        self.hidden: set[int] = set()
        self.refused: set[tuple[int, int]] = set()
        self.apart: set[tuple[int, int]] = set()  # one domain, and yet
        self.fresh = True
        self.limit = 3

    def refuses(self, sender: int, receiver: int, mac: bytes, *, new: bool) -> str:
        if {sender, receiver} & self.watched or (sender, receiver) in self.refused:
            return "watched"
        return self.hides(sender, receiver) or ("stale" if new and not self.fresh else "")

    def hides(self, owner: int, holder: int) -> str:
        if {(owner, holder), (holder, owner)} & self.apart:
            return "denied"
        return "" if self.domain.get(owner) and self.domain.get(owner) == self.domain.get(holder) else "untrusted"

    def read_only(self, owner: int, holder: int) -> bool:
        return owner in self.hidden

    def max_len(self, sender: int, receiver: int) -> int:
        return 1514

    def quota(self, port: int) -> int:
        return self.limit


@dataclass(eq=False)
class Frame:
    """Where it is: at the receiver of the last link, or still in that one's ring."""

    owner: int
    links: list[int]  # epochs


@dataclass
class Side:
    """A container."""

    peer: Peer
    mapped: set[tuple[int, int]] = field(default_factory=set)  # (owner, region)
    rings: set[int] = field(default_factory=set)  # epochs of shortcuts, either end
    granted: dict[int, set[int]] = field(default_factory=dict)  # owners by epoch
    to_do: list[Ask] = field(default_factory=list)


class World:
    """The containers behind one core."""

    def __init__(self) -> None:
        self.rules = Table()
        self.epochs = 0
        self.core = ShortcutCore(self.rules, self._epoch)
        self.sides: dict[int, Side] = {}  # alive
        self.known: dict[int, Peer] = {}  # all that ever were
        self.frames: list[Frame] = []
        self.state: dict[int, str] = {}  # of each shortcut at the fast path
        self.rings_made: set[int] = set()
        self.cuts: dict[int, Cut] = {}
        self.released: set[int] = set()
        self.numbers: dict[tuple[str, int, int], int] = {}
        self.now = 0.0
        self.sid = 0
        self.serials: set[int] = set()

    def _epoch(self) -> int:
        self.epochs += 1
        return self.epochs

    # ---- commands -------------------------------------------------------------------

    def run(self, commands: Iterable[Command]) -> None:
        for command in commands:
            match command:
                case Ask():
                    self._ask(command)
                case Grant(cut, owner):
                    self._grant(cut, owner)
                case MakeRings(cut):
                    self._number(cut)
                    self.cuts[cut.epoch] = cut
                    self.rings_made.add(cut.epoch)
                case Open(cut):
                    self._open(cut)
                case Close(cut):
                    assert self.state[cut.epoch] == "open"
                    self.state[cut.epoch] = "closed"
                case Free(cut):
                    self._free(cut)
                case Release(sid):
                    assert sid not in self.sides
                    assert sid not in self.released
                    assert all(owner != sid for side in self.sides.values() for owner, _ in side.mapped)
                    self.released.add(sid)
                case Stopped(sid):
                    assert not self.sides[sid].rings
                    assert not self.sides[sid].mapped
                    assert not any(sid in self._path(frame) for frame in self.frames)
                    self.down(sid)
                case Disconnect(sid, _):
                    raise AssertionError(f"nobody misbehaved: {command} {sid}")

    def _number(self, cut: Cut) -> None:
        for key in (("out", cut.sender.port, cut.out_number), ("in", cut.receiver.port, cut.in_number)):
            assert key not in self.numbers, "a number that is in use"
            assert key[2] < self.rules.limit
            self.numbers[key] = cut.epoch

    def _ask(self, ask: Ask) -> None:
        assert ask.serial not in self.serials
        self.serials.add(ask.serial)
        side = self.sides[ask.sid]
        if ask.what is What.NEIGHBOUR:
            assert ask.sid != ask.owner
            owner, holder = self.known[ask.owner], side.peer
            assert not self.rules.hides(owner.port, holder.port), "memory of another trust domain"
            assert ask.read_only == self.rules.read_only(owner.port, holder.port)
        side.to_do.append(ask)

    def _grant(self, cut: Cut, owner: int) -> None:
        side = self.sides[cut.sender.sid]
        assert self.state[cut.epoch] == "open"
        assert any(o == owner for o, _ in side.mapped)
        receiver = self.sides[cut.receiver.sid]
        assert owner == cut.receiver.sid or {(owner, r) for r in range(self.known[owner].regions)} <= receiver.mapped
        side.granted.setdefault(cut.epoch, set()).add(owner)

    def _open(self, cut: Cut) -> None:
        assert cut.epoch not in self.state, "opened once"
        a, b = self.sides[cut.sender.sid], self.sides[cut.receiver.sid]
        assert cut.epoch in a.rings and cut.epoch in b.rings, "both have said that they have the rings"
        assert {(a.peer.sid, r) for r in range(a.peer.regions)} <= b.mapped
        assert not self.rules.refuses(cut.sender.port, cut.receiver.port, cut.mac, new=False)
        self.state[cut.epoch] = "open"

    def _free(self, cut: Cut) -> None:
        assert self.state.pop(cut.epoch, "closed") == "closed", "closed before, and freed once"
        for sid in (cut.sender.sid, cut.receiver.sid):
            assert sid not in self.sides or cut.epoch not in self.sides[sid].rings, "a side still uses it"
        for frame in self.frames:
            alive = [sid for sid in self._path(frame) if sid in self.sides]
            assert cut.epoch not in frame.links or not alive, "a frame is still out"
        if cut.epoch in self.rings_made:
            self.rings_made.remove(cut.epoch)
            del self.numbers["out", cut.sender.port, cut.out_number]
            del self.numbers["in", cut.receiver.port, cut.in_number]

    def _path(self, frame: Frame) -> list[int]:
        """Who holds it: everybody on its way but the owner; the last one, too, while it is in the ring."""
        return [self.cuts[epoch].receiver.sid for epoch in frame.links]

    # ---- what containers do -------------------------------------------------------------

    def up(self, port: int, regions: int) -> None:
        self.sid += 1
        peer = Peer(self.sid, port, f"p{port}", regions)
        self.sides[peer.sid] = Side(peer)
        self.known[peer.sid] = peer
        self.run(self.core.peer_up(peer))

    def down(self, sid: int) -> None:
        """It is dead: what it held is held no more by anybody alive, and what it lent stays with others."""
        del self.sides[sid]
        self.run(self.core.peer_down(sid, self.now))

    def answer(self, sid: int, *, refuse: bool = False) -> bool:
        """Answer the first request that can be answered now; False when there is none."""
        side = self.sides[sid]
        for ask in side.to_do:
            if self._ready(side, ask):
                side.to_do.remove(ask)
                error = "no room" if refuse and ask.what in (What.NEIGHBOUR, What.SHORTCUT) else None
                if error is None:
                    self._do(side, ask)
                self.run(self.core.answered(sid, ask.serial, error, self.now))
                return True
        return False

    def _ready(self, side: Side, ask: Ask) -> bool:
        sid = side.peer.sid
        if ask.what is What.UNMAP:
            # At once, or the core takes it away too early.
            assert not any(f.owner == ask.owner and self._is_at(f, sid) for f in self.frames), "frames are still there"
            return True
        if ask.what is What.DROP and ask.cut is not None and ask.cut.receiver.sid == sid:
            return not any(ask.cut.epoch in frame.links for frame in self.frames)
        return True

    def _is_at(self, frame: Frame, sid: int) -> bool:
        return sid in self._path(frame) and all(s in self.sides for s in self._path(frame))

    def _do(self, side: Side, ask: Ask) -> None:
        cut = ask.cut
        match ask.what:
            case What.NEIGHBOUR:
                side.mapped.add((ask.owner, ask.region))
            case What.UNMAP:
                side.mapped.remove((ask.owner, ask.region))
                for granted in side.granted.values():
                    granted.discard(ask.owner)
            case What.SHORTCUT:
                assert cut is not None and cut.epoch in self.rings_made
                side.rings.add(cut.epoch)
            case What.DROP:
                assert cut is not None
                side.rings.remove(cut.epoch)
                side.granted.pop(cut.epoch, None)
            case What.RECLAIM:
                assert cut is not None and cut.sender.sid == side.peer.sid
                assert cut.receiver.sid not in self.sides, "a reclaim from one that lives"
                for frame in [f for f in self.frames if cut.epoch in f.links]:
                    behind = frame.links[frame.links.index(cut.epoch) :]
                    holders = [self.cuts[epoch].receiver.sid for epoch in behind]
                    assert not any(holder in self.sides for holder in holders), "somebody alive holds it"
                    del frame.links[frame.links.index(cut.epoch) :]
                    if not frame.links:
                        self.frames.remove(frame)

    def send(self, epoch: int) -> None:
        """The sender of an open shortcut puts a buffer of its own into it."""
        cut = self.cuts[epoch]
        self.frames.append(Frame(cut.sender.sid, [epoch]))

    def pass_on(self, frame: Frame, epoch: int) -> None:
        """Its last holder sends it on, without a copy where it may."""
        side = self.sides[self._path(frame)[-1]]
        if frame.owner in side.granted.get(epoch, ()):
            frame.links.append(epoch)

    def let_go(self, frame: Frame) -> None:
        """Its last holder frees it, and those before it then, too, up to one that is dead and cannot."""
        while frame.links and self._path(frame)[-1] in self.sides:
            frame.links.pop()
        if not frame.links:
            self.frames.remove(frame)

    def open_of(self, sid: int) -> list[int]:
        """Shortcuts by which it may send now; a closed one it has not been told to leave is as good to it."""
        return [e for e in sorted(self.sides[sid].rings) if self.cuts[e].sender.sid == sid and e in self.state]

    def settle(self) -> None:
        """Everybody lets go of all frames and answers everything."""
        for _ in range(1000):
            for frame in list(self.frames):
                path = self._path(frame)
                if path[-1] in self.sides:
                    self.let_go(frame)
            if not sum(self.answer(sid) for sid in list(self.sides) if sid in self.sides):
                break
        assert not any(side.to_do for side in self.sides.values())
        ending = [cut for cut in self.core.cuts.values() if cut.stage is not Stage.OPEN]
        assert not ending, f"stuck: {ending}"
