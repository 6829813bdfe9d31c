# SPDX-License-Identifier: Apache-2.0
"""What counts as wedged, and when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vswitch.slowpath.progress import LATE_S, Counts, Kind, Progress, Subject, Watch, step
from vswitch.slowpath.types import Suspect

QUEUE = Subject(1, Kind.REFUSES, 0)
LIMIT = 5.0


def refusing(accepted: int, refused: int) -> Suspect:
    return Suspect(1, 0, False, False, accepted, refused)


def looks(counts: list[tuple[int, int]], elapsed: float = 1.0) -> list[bool]:
    """Whether it is wedged at each look, one every `elapsed` seconds."""
    watch = Watch(Counts(*counts[0]))
    wedged = [watch.wedged]
    for each in counts[1:]:
        watch = step(watch, Counts(*each), elapsed, LIMIT)
        wedged.append(watch.wedged)
    return wedged


def test_more_refused_and_nothing_accepted_for_five_seconds() -> None:
    # The first look only tells what there was before; the second begins the five seconds.
    assert looks([(7, n) for n in range(8)]) == [False] * 6 + [True] * 2


def test_one_that_accepts_is_not_wedged_and_recovers_at_once() -> None:
    assert not any(looks([(n, n) for n in range(20)]))
    assert looks([(7, n) for n in range(7)] + [(8, 7), (8, 8)])[-3:] == [True, False, False]


def test_one_of_which_nothing_is_asked_is_not_wedged() -> None:
    assert not any(looks([(7, 3)] * 20))
    assert not any(looks([(7, 3)] + [(7, 4)] * 20)), "one frame lost long ago is no evidence"
    assert looks([(7, 3)] + [(7, 4)] * 20 + [(7, 5)])[-1], "nothing accepted between two losses, 20 seconds apart, is"


def test_a_process_that_was_stopped_is_not_wedged() -> None:
    assert looks([(7, 0), (7, 1), (7, 2)], elapsed=3600) == [False] * 3
    assert min(kind.seconds for kind in Kind) > LATE_S


def test_counts_that_fell_are_of_another_port() -> None:
    assert looks([(7, n) for n in range(7)] + [(7, 2)])[-2:] == [True, False]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), max_size=30))
def test_wedged_means_nothing_done_since_the_limit(steps: list[tuple[int, int]]) -> None:
    counts = [(0, 0)]
    for done, asked in steps:
        counts.append((counts[-1][0] + done, counts[-1][1] + asked))
    for at, wedged in enumerate(looks(counts)):
        if wedged:
            same = [c for c in counts[: at + 1] if c[0] == counts[at][0]]
            assert len(same) > LIMIT + 1
            assert same[-1][1] > same[0][1]


def test_begins_and_ends_are_told_once() -> None:
    progress = Progress()
    told = [progress.look(float(n), [refusing(0, 1 + n)], [n]) for n in range(9)]
    assert [begun for begun, _ in told if begun] == [[QUEUE]]
    assert progress.wedged(1) == [QUEUE]
    assert progress.wedged(2) == []
    assert progress.look(9.0, [refusing(1, 10)], [9]) == ([], [QUEUE])
    assert progress.look(10.0, [], [10]) == ([], [])


def test_a_port_that_is_gone_is_wedged_no_more() -> None:
    progress = Progress()
    for n in range(9):
        progress.look(float(n), [refusing(0, 1 + n)], [n])
    assert progress.look(9.0, [], [9]) == ([], [QUEUE])


def test_vrings_that_never_start() -> None:
    progress = Progress()
    told = [progress.look(float(n), [Suspect(3, 1, True, True, 0, 0)], [n]) for n in range(9)]
    assert [begun for begun, _ in told if begun] == [
        [Subject(3, Kind.RECEIVE_UNSTARTED, 1), Subject(3, Kind.TRANSMIT_UNSTARTED, 1)]
    ]


def test_a_worker_that_hangs_and_one_that_sleeps() -> None:
    progress = Progress()
    told = [progress.look(float(n), [], [5, n, None]) for n in range(9)]
    assert [begun for begun, _ in told if begun] == [[Subject(0, Kind.HANGS, 0)]]
    assert "worker 0 makes no loops" in str(progress.wedged(0)[0])
    assert progress.look(9.0, [], [None, 9, None]) == ([], [Subject(0, Kind.HANGS, 0)])
