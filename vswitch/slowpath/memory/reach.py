# SPDX-License-Identifier: Apache-2.0
"""How far the frames of one container may get by shortcuts."""

from __future__ import annotations

from collections.abc import Callable, Collection

from vswitch.slowpath.memory.words import Cut, Stage


def brings(cut: Cut, owner: int) -> bool:
    """Whether frames of `owner` may come through it."""
    return cut.sender.sid == owner or owner in cut.granted


def reaches(cuts: Collection[Cut], owner: int, holder: int) -> bool:
    """Whether frames of `owner` may be at `holder`: each came by shortcuts that are not free yet.

    A mapping that a grant is to follow counts as one.
    """
    return holder in led_to(cuts, owner, owner, _may_bring)


def _may_bring(cut: Cut, owner: int) -> bool:
    return brings(cut, owner) or cut.stage is Stage.OPEN


def led_to(cuts: Collection[Cut], owner: int, start: int, through: Callable[[Cut, int], bool] = brings) -> set[int]:
    """Where frames of `owner` may get to from `start`, by the shortcuts that they go `through`."""
    seen, todo = {start}, [start]
    while todo:
        here = todo.pop()
        for cut in cuts:
            if cut.sender.sid == here and cut.receiver.sid not in seen and through(cut, owner):
                seen.add(cut.receiver.sid)
                todo.append(cut.receiver.sid)
    return seen


def held_by_living(cuts: Collection[Cut], cut: Cut, living: Collection[int]) -> bool:
    """Whether somebody alive may hold what came through a shortcut to a dead container, and was passed on by it."""
    todo = [(cut.receiver.sid, {cut.sender.sid, *cut.granted})]
    while todo:
        here, owners = todo.pop()
        for onward in cuts:
            passed = owners & onward.granted
            if onward.sender.sid != here or not passed or not onward.opened:
                continue
            if onward.receiver.sid in living:
                return True
            todo.append((onward.receiver.sid, passed))  # no loop: grants of one owner make none
    return False
