# SPDX-License-Identifier: Apache-2.0
"""Finds what is wedged: queues that refuse all frames, vrings that never started, workers that hang.

One rule for all of them. Something has a count of what it did and a count of what was asked of it. It is wedged
when, for so many seconds, more was asked and nothing was done. No I/O: the caller says what the counts are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from vswitch.slowpath.types import Suspect

# What a look that comes late counts at most: a process that was stopped (SIGSTOP, a suspended machine) is not wedged.
LATE_S = 2.0


class Kind(Enum):
    """What may be wrong: how long that takes to be sure of, and what is said then. Queues are the front-end's."""

    REFUSES = (
        5.0,
        "receive queue {} accepts no frame, and those for it are dropped: its application has posted no buffers, "
        "or hangs",
    )
    RECEIVE_UNSTARTED = (5.0, "receive queue {} is enabled, but was never set up: no frame can go there")
    TRANSMIT_UNSTARTED = (5.0, "transmit queue {} is enabled, but was never set up: no frame can come from there")
    HANGS = (3.0, "worker {} makes no loops: something of higher priority has its CPU, or the switch is defective")

    def __init__(self, seconds: float, text: str) -> None:
        self.seconds = seconds
        self.text = text


class Subject(NamedTuple):
    """A queue of a port, or a worker (port_id 0)."""

    port_id: int
    kind: Kind
    number: int

    def __str__(self) -> str:
        return self.kind.text.format(self.number)


class Counts(NamedTuple):
    """Both only grow."""

    done: int
    asked: int


@dataclass(frozen=True, slots=True)
class Watch:
    """A subject at the last look: for how long nothing was done of what was `asked`, and whether that is too long."""

    counts: Counts
    asked: bool = False
    seconds: float = 0.0
    wedged: bool = False


def step(watch: Watch, counts: Counts, elapsed: float, limit: float) -> Watch:
    """The watch after another look, `elapsed` seconds after the last."""
    # An `asked` that fell is that of another port, which has the number now.
    if counts.done != watch.counts.done or counts.asked < watch.counts.asked:
        return Watch(counts)
    asked = counts.asked > watch.counts.asked
    seconds = watch.seconds + min(elapsed, LATE_S) if watch.asked else 0.0
    # It takes a new request: what nobody asks anything of may rest as long as it likes.
    wedged = watch.wedged or (asked and seconds >= limit)
    return replace(watch, counts=counts, asked=watch.asked or asked, seconds=seconds, wedged=wedged)


def counts_of(look: int, suspects: Iterable[Suspect], loops: Sequence[int | None]) -> dict[Subject, Counts]:
    """What there is to watch at the `look`-th look; `loops` of each worker, None of one that sleeps.

    A vring that has not started, and a worker, are asked for something all the time: `look` stands for that.
    """
    counts: dict[Subject, Counts] = {}
    for s in suspects:
        if s.receive_unstarted:
            counts[Subject(s.port_id, Kind.RECEIVE_UNSTARTED, s.queue)] = Counts(0, look)
        elif s.refused:
            counts[Subject(s.port_id, Kind.REFUSES, s.queue)] = Counts(s.accepted, s.refused)
        if s.transmit_unstarted:
            counts[Subject(s.port_id, Kind.TRANSMIT_UNSTARTED, s.queue)] = Counts(0, look)
    for number, made in enumerate(loops):
        if made is not None:
            counts[Subject(0, Kind.HANGS, number)] = Counts(made, look)
    return counts


class Progress:
    """The watches over all there is, from look to look."""

    def __init__(self) -> None:
        self._watches: dict[Subject, Watch] = {}
        self._looks = 0
        self._last = 0.0

    def look(
        self, now: float, suspects: Iterable[Suspect], loops: Sequence[int | None]
    ) -> tuple[list[Subject], list[Subject]]:
        """Look again, at the time `now` in seconds; returns what is wedged since the last look, and what no more is."""
        self._looks += 1
        before, elapsed = self._watches, now - self._last
        self._last = now
        self._watches = {
            subject: step(before[subject], counts, elapsed, subject.kind.seconds)
            if subject in before
            else Watch(counts)
            for subject, counts in counts_of(self._looks, suspects, loops).items()
        }
        was, wedged = _wedged(before), _wedged(self._watches)
        return [s for s in wedged if s not in was], [s for s in was if s not in wedged]

    def wedged(self, port_id: int) -> list[Subject]:
        """What is wedged of a port; 0: the workers that are."""
        return [subject for subject in _wedged(self._watches) if subject.port_id == port_id]


def _wedged(watches: Mapping[Subject, Watch]) -> list[Subject]:
    return [subject for subject, watch in watches.items() if watch.wedged]
