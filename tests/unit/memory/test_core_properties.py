# SPDX-License-Identifier: Apache-2.0
"""Shortcuts come and go at random, containers die, hold frames, pass them on, refuse: what must always hold, holds."""

from __future__ import annotations

import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.memory.containers_model import World
from vswitch.slowpath.memory.words import Stage

PORTS = (1, 2, 3, 4, 5)
TURNS = ("blue", "watched", "hidden", "refused", "apart", "stale")


class Shortcuts(RuleBasedStateMachine):
    """`World` checks each command; here is what happens, and what must be so in between."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        for port in PORTS:
            self.world.rules.domain[port] = "red"
            self.world.up(port, 1 + port % 2)

    def _alive(self, port: int) -> int | None:
        peer = self.world.core.peer(port)
        return peer.sid if peer is not None else None

    @rule(port=st.sampled_from(PORTS), regions=st.integers(1, 3))
    def comes(self, port: int, regions: int) -> None:
        if self._alive(port) is None:
            self.world.up(port, regions)

    @rule(port=st.sampled_from(PORTS))
    def dies(self, port: int) -> None:
        sid = self._alive(port)
        if sid is not None:
            self.world.down(sid)

    @rule(port=st.sampled_from(PORTS))
    def stops(self, port: int) -> None:
        sid = self._alive(port)
        if sid is not None:
            self.world.run(self.world.core.peer_stops(sid, self.world.now))

    @rule(a=st.sampled_from(PORTS), b=st.sampled_from(PORTS), mac=st.integers(0, 1))
    def promotes(self, a: int, b: int, mac: int) -> None:
        self.world.run(self.world.core.promote(a, b, bytes([2, 0, 0, 0, mac, b]), self.world.now))

    @rule(port=st.sampled_from(PORTS), refuse=st.booleans(), times=st.integers(1, 8))
    def answers(self, port: int, refuse: bool, times: int) -> None:
        for number in range(times):
            sid = self._alive(port)
            if sid is not None:
                self.world.answer(sid, refuse=refuse and number == 0)

    @rule(chain=st.lists(st.sampled_from(PORTS), min_size=2, max_size=4))
    def chains(self, chain: list[int]) -> None:
        """Shortcuts along a chain, and a frame that is passed on along it."""
        for a, b in itertools.pairwise(chain):
            self.promotes(a, b, 0)
        for port in PORTS * 8:
            if (sid := self._alive(port)) is not None:
                self.world.answer(sid)
        if self._alive(chain[0]) is None:
            return
        for number, (a, b) in enumerate(itertools.pairwise(chain)):
            cut = self._open(a, b)
            if cut is None:
                return
            if number == 0:
                self.world.send(cut)
            elif self.world._path(self.world.frames[-1])[-1] == self._alive(a):
                self.world.pass_on(self.world.frames[-1], cut)

    def _open(self, a: int, b: int) -> int | None:
        cuts = self.world.core.cuts.values()
        found = [c.epoch for c in cuts if (c.sender.port, c.receiver.port, c.stage) == (a, b, Stage.OPEN)]
        return found[0] if found else None

    @rule(port=st.sampled_from(PORTS), pick=st.integers(0, 9))
    def sends(self, port: int, pick: int) -> None:
        sid = self._alive(port)
        if sid is not None and (found := self.world.open_of(sid)):
            self.world.send(found[pick % len(found)])

    @precondition(lambda self: self.world.frames)
    @rule(frame=st.integers(0, 99), pick=st.integers(0, 9))
    def passes_on(self, frame: int, pick: int) -> None:
        found = self.world.frames[frame % len(self.world.frames)]
        holder = self.world._path(found)[-1]
        if holder in self.world.sides and (ways := self.world.open_of(holder)):
            self.world.pass_on(found, ways[pick % len(ways)])

    @precondition(lambda self: self.world.frames)
    @rule(frame=st.integers(0, 99))
    def lets_go(self, frame: int) -> None:
        self.world.let_go(self.world.frames[frame % len(self.world.frames)])

    @precondition(lambda self: any(len(frame.links) > 1 for frame in self.world.frames))
    @rule(data=st.data())
    def one_on_the_way_dies(self, data: st.DataObject) -> None:
        """Of those that have passed a frame on; the others do what they are asked, and keep the frame."""
        frame = data.draw(st.sampled_from([frame for frame in self.world.frames if len(frame.links) > 1]))
        alive = [sid for sid in self.world._path(frame)[:-1] if sid in self.world.sides]
        if alive:
            self.world.down(data.draw(st.sampled_from(alive)))
        for port in PORTS * 4:
            self.answers(port, refuse=False, times=4)

    @rule(port=st.sampled_from(PORTS), other=st.sampled_from(PORTS), what=st.sampled_from(TURNS))
    def turns(self, port: int, other: int, what: str) -> None:
        """The rules change for a port or a pair, to be as they were some time later."""
        rules = self.world.rules
        match what:
            case "blue":
                rules.domain[port] = "blue"
            case "watched":
                rules.watched ^= {port}
            case "hidden":
                rules.hidden ^= {port}
            case "refused":
                rules.refused ^= {(port, other)}
            case "apart":
                rules.apart ^= {(port, other)}
            case "stale":
                rules.fresh = not rules.fresh
        self._recheck()

    @rule()
    def calms(self) -> None:
        rules = self.world.rules
        rules.domain = dict.fromkeys(PORTS, "red")
        for exceptions in (rules.watched, rules.hidden, rules.refused, rules.apart):
            exceptions.clear()
        rules.fresh = True
        self._recheck()

    def _recheck(self) -> None:
        self.world.run(self.world.core.recheck(self.world.now))

    @rule(seconds=st.sampled_from([0.5, 3.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds
        for cut in list(self.world.core.cuts.values()):
            self.world.run(self.world.core.progress(cut.epoch, cut.counts, self.world.now))

    @rule()
    def all_settle(self) -> None:
        self.world.settle()
        alive = set(self.world.sides)
        assert self.world.released == set(self.world.known) - alive, "numbers of regions that nobody has mapped"
        assert self.world.rings_made == set(self.world.core.cuts), "rings of shortcuts that are no more"

    @invariant()
    def trust_holds(self) -> None:
        for cut in self.world.core.cuts.values():
            if cut.stage is Stage.OPEN:
                assert not self.world.rules.refuses(cut.sender.port, cut.receiver.port, cut.mac, new=False)
                for owner in cut.granted - {cut.receiver.sid}:
                    if owner in self.world.sides:
                        port = self.world.known[owner].port
                        assert not self.world.rules.hides(port, cut.receiver.port)

    @invariant()
    def states_agree(self) -> None:
        for epoch, state in self.world.state.items():
            assert (self.world.core.cuts[epoch].stage is Stage.OPEN) == (state == "open")

    def teardown(self) -> None:
        for sid in list(self.world.sides):
            if sid in self.world.sides:
                self.world.down(sid)
        assert not self.world.core.cuts
        assert not self.world.state
        assert not self.world.numbers
        assert self.world.released == set(self.world.known)


TestShortcuts = Shortcuts.TestCase
TestShortcuts.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
