# SPDX-License-Identifier: Apache-2.0
"""Two hosts agree on queue pairs, whatever becomes of what they say to each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vswitch.slowpath.rdma_negotiation import (
    NOBODY,
    Offer,
    Own,
    Stage,
    Step,
    epoch,
    next_step,
    queue_pairs,
)
from vswitch.slowpath.types import RdmaEnd

NO_END = RdmaEnd(bytes(16), 0, 0, 0, ())


def end(first: int, pairs: int = 1) -> RdmaEnd:
    return RdmaEnd(bytes(16), 0, 1024, 64, tuple((first + i, first + i) for i in range(pairs)))


def offer(number: int, joined: int = NOBODY, pairs: int = 1) -> Offer:
    return Offer(number, joined, end(number, pairs))


@pytest.mark.parametrize(
    ("own", "theirs", "step"),
    [
        (None, None, Step.MAKE),
        (Own(1, 1), None, Step.WAIT),
        (Own(1, 1), offer(5), Step.JOIN),
        (Own(1, 1), offer(5, joined=1), Step.JOIN),
        (Own(1, 1), offer(5, joined=9), Step.WAIT),  # it is joined to what was there before 1
        (Own(1, 1), offer(5, pairs=2), Step.MAKE),
        (Own(1, 2), offer(5), Step.WAIT),
        (Own(1, 1), Offer(NOBODY, NOBODY, NO_END), Step.WAIT),
        (Own(1, 1, Stage.JOINED, 5), offer(5), Step.WAIT),
        (Own(1, 1, Stage.JOINED, 5), offer(5, joined=1), Step.PROBE),
        (Own(1, 1, Stage.PROBED, 5), offer(5, joined=1), Step.WAIT),
        (Own(1, 1, Stage.USED, 5), offer(5, joined=1), Step.WAIT),
        (Own(1, 1, Stage.USED, 5), None, Step.WAIT),  # the other's session ended, its queue pairs did not
        (Own(1, 1, Stage.USED, 5), offer(6), Step.MAKE),
        (Own(1, 1, Stage.USED, 5), Offer(NOBODY, NOBODY, NO_END), Step.MAKE),
    ],
)
def test_steps(own: Own | None, theirs: Offer | None, step: Step) -> None:
    assert next_step(own, theirs) is step


def test_queue_pairs() -> None:
    assert queue_pairs(2, None) == 2
    assert queue_pairs(2, offer(1, pairs=4)) == 4
    assert queue_pairs(4, offer(1, pairs=2)) == 4


def test_epochs() -> None:
    assert epoch(3, 4) == epoch(4, 3) != epoch(3, 5)
    assert 0 < epoch(2**63, 2**63 + 1) < 2**32


class Host:
    """An end as `rdma_peers` carries it out; `say` gets its offers."""

    def __init__(self, workers: int, ids: Callable[[], int], say: Callable[[Offer], None]) -> None:
        self.workers, self.ids, self.say = workers, ids, say
        self.own: Own | None = None
        self.offer: Offer | None = None

    def advance(self) -> None:
        for _ in range(10):
            step = next_step(self.own, self.offer)
            match step:
                case Step.WAIT:
                    return
                case Step.MAKE:
                    self.own = Own(self.ids(), queue_pairs(self.workers, self.offer))
                    self.tell()
                case Step.JOIN:
                    assert self.own and self.offer
                    self.own = Own(self.own.id, self.own.queue_pairs, Stage.JOINED, self.offer.id)
                    self.tell()
                case Step.PROBE:
                    assert self.own
                    self.own = Own(self.own.id, self.own.queue_pairs, Stage.PROBED, self.own.joined)
        raise AssertionError("it never waits")

    def tell(self) -> None:
        assert self.own
        self.say(offer(self.own.id, self.own.joined, self.own.queue_pairs))

    def fail(self) -> None:
        if self.own is not None:
            self.own = None
            self.say(Offer(NOBODY, NOBODY, NO_END))

    def restart(self) -> None:
        """It forgets all, also what it was offered, and nobody is told."""
        self.own = self.offer = None


class Negotiation(RuleBasedStateMachine):
    """What hosts say is late, repeated, overtaken and lost; once the newest arrives, they are connected."""

    @initialize(workers=st.tuples(st.integers(1, 3), st.integers(1, 3)))
    def begin(self, workers: tuple[int, int]) -> None:
        numbers = itertools.count(1)
        self.said: list[list[Offer]] = [[], []]  # by whom; all that was ever said
        self.hosts = [Host(workers[i], lambda: next(numbers), self.said[i].append) for i in (0, 1)]

    @rule(which=st.sampled_from([0, 1]))
    def advance(self, which: int) -> None:
        self.hosts[which].advance()

    @rule(which=st.sampled_from([0, 1]), age=st.integers(0, 3))
    def hear(self, which: int, age: int) -> None:
        """A host hears the newest that the other said, or something older."""
        said = self.said[1 - which]
        if said:
            self.hosts[which].offer = said[max(0, len(said) - 1 - age)]
            self.hosts[which].advance()

    @rule(which=st.sampled_from([0, 1]))
    def hear_that_it_is_gone(self, which: int) -> None:
        self.hosts[which].offer = None
        self.hosts[which].advance()

    @rule(which=st.sampled_from([0, 1]))
    def fail(self, which: int) -> None:
        self.hosts[which].fail()

    @rule(which=st.sampled_from([0, 1]))
    def restart(self, which: int) -> None:
        self.hosts[which].restart()

    @rule(which=st.sampled_from([0, 1]))
    def mark_comes_back(self, which: int) -> None:
        one, other = self.hosts[which].own, self.hosts[1 - which].own
        if one is None or other is None or one.stage is not Stage.PROBED:
            return
        if (other.id, other.joined) == (one.joined, one.id):
            self.hosts[which].own = Own(one.id, one.queue_pairs, Stage.USED, one.joined)

    @rule()
    def settle(self) -> None:
        """The newest arrives, again and again, at both: soon nobody has anything to do any more."""
        one, other = self.hosts
        for _ in range(12):
            before = (one.own, other.own)
            for host, said in ((one, self.said[1]), (other, self.said[0])):
                host.advance()
                if said:
                    host.offer = said[-1]
                host.advance()
            if before == (one.own, other.own):
                break
        assert one.own is not None and other.own is not None
        assert (one.own.joined, other.own.joined) == (other.own.id, one.own.id)
        assert one.own.queue_pairs == other.own.queue_pairs == max(one.workers, other.workers)
        assert {one.own.stage, other.own.stage} <= {Stage.PROBED, Stage.USED}

    @rule()
    def settle_at_the_same_time(self) -> None:
        """As `settle`, but what both say crosses on its way."""
        one, other = self.hosts
        for _ in range(12):
            for host in self.hosts:
                host.advance()
            newest = [said[-1] for said in self.said]
            for host, heard in ((one, newest[1]), (other, newest[0])):
                host.offer = heard
                host.advance()
        self.settle()

    @invariant()
    def who_probes_was_joined_by_the_other(self) -> None:
        if not hasattr(self, "hosts"):
            return
        for which, host in enumerate(self.hosts):
            own = host.own
            if own is not None and own.stage in (Stage.PROBED, Stage.USED):
                assert any((o.id, o.joined) == (own.joined, own.id) for o in self.said[1 - which])


TestNegotiation = Negotiation.TestCase
TestNegotiation.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
