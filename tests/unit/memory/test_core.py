# SPDX-License-Identifier: Apache-2.0
"""Shortcuts, one story at a time; `World` checks each command."""

from __future__ import annotations

import itertools

import pytest

from tests.unit.memory.containers_model import Frame, World
from vswitch.slowpath.memory.words import Cut, Disconnect, Notice, Stage, What

MAC = bytes.fromhex("020000000001")


def mac(port: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, port])


@pytest.fixture
def world() -> World:
    world = World()
    for port in (1, 2, 3, 4):
        world.rules.domain[port] = "red"
        world.up(port, regions=2)
    return world


def sid(world: World, port: int) -> int:
    peer = world.core.peer(port)
    assert peer is not None
    return peer.sid


def promote(world: World, a: int, b: int) -> None:
    world.run(world.core.promote(a, b, mac(b), world.now))


def link(world: World, *chain: int) -> list[Cut]:
    """Shortcuts along a chain, open."""
    for a, b in itertools.pairwise(chain):
        promote(world, a, b)
        answer_all(world)
    found = [cut(world, a, b) for a, b in itertools.pairwise(chain)]
    assert all(one.stage is Stage.OPEN for one in found)
    return found


def answer_all(world: World) -> None:
    while sum(world.answer(one) for one in list(world.sides)):
        pass


def cut(world: World, a: int, b: int) -> Cut:
    return next(c for c in world.core.cuts.values() if (c.sender.port, c.receiver.port) == (a, b))


def recheck(world: World) -> None:
    world.run(world.core.recheck(world.now))


def refuse(world: World, a: int, b: int) -> None:
    world.rules.refused.add((a, b))
    recheck(world)


def asked(world: World, port: int) -> list[What]:
    return [ask.what for ask in world.sides[sid(world, port)].to_do]


def test_opens_when_both_have_it(world: World) -> None:
    promote(world, 1, 2)
    assert asked(world, 2) == [What.NEIGHBOUR, What.NEIGHBOUR]
    assert asked(world, 1) == []
    world.answer(sid(world, 2))
    assert cut(world, 1, 2).stage is Stage.MAPPING
    world.answer(sid(world, 2))
    assert (asked(world, 1), asked(world, 2)) == ([What.SHORTCUT], [What.SHORTCUT])
    world.answer(sid(world, 1))
    assert cut(world, 1, 2).stage is Stage.SHARING
    world.answer(sid(world, 2))
    assert cut(world, 1, 2).stage is Stage.OPEN


def test_ways_are_independent(world: World) -> None:
    link(world, 1, 2)
    link(world, 2, 1)
    world.rules.watched = {3}
    recheck(world)
    assert len(world.core.cuts) == 2
    refuse(world, 1, 2)
    assert cut(world, 2, 1).stage is Stage.OPEN


def test_sender_leaves_before_receiver_empties(world: World) -> None:
    (one,) = link(world, 1, 2)
    world.send(one.epoch)
    world.rules.watched = {1}
    recheck(world)
    assert world.state == {one.epoch: "closed"}
    assert (asked(world, 1), asked(world, 2)) == ([What.DROP], [])
    world.answer(sid(world, 1))
    assert asked(world, 2) == [What.DROP]
    assert not world.answer(sid(world, 2))  # it holds a frame
    world.let_go(world.frames[0])
    answer_all(world)
    assert not world.core.cuts
    assert not world.sides[sid(world, 2)].mapped


def test_a_chain_copies_nothing(world: World) -> None:
    _, second, third = link(world, 1, 2, 3, 4)
    assert second.granted == {sid(world, 1)}
    assert third.granted == {sid(world, 1), sid(world, 2)}
    assert {owner for owner, _ in world.sides[sid(world, 4)].mapped} == {sid(world, n) for n in (1, 2, 3)}


def test_loops_close_with_a_copy(world: World) -> None:
    first, _, _ = link(world, 1, 2, 3, 1)
    assert cut(world, 3, 1).granted == {sid(world, 2)}
    assert first.granted == {sid(world, 3)}
    (back,) = link(world, 3, 2)
    assert sid(world, 1) not in back.granted


def test_both_ends_of_a_chain_die(world: World) -> None:
    there, onward = link(world, 1, 2, 3)
    back, home = link(world, 3, 2, 1)
    for first, second in ((there, onward), (back, home)):
        world.send(first.epoch)
        world.pass_on(world.frames[-1], second.epoch)
    world.down(sid(world, 1))
    world.down(sid(world, 3))
    world.settle()
    assert not world.frames


def test_no_grant_to_whom_the_origin_may_not_share_with(world: World) -> None:
    world.rules.apart = {(1, 3)}
    _, second = link(world, 1, 2, 3)
    assert not second.granted
    assert {owner for owner, _ in world.sides[sid(world, 3)].mapped} == {sid(world, 2)}


def test_a_grant_that_is_not_due_any_more(world: World) -> None:
    first, second = link(world, 1, 2, 3)
    world.rules.apart = {(1, 3)}
    recheck(world)
    assert (first.stage is Stage.OPEN, second.stage.ending) == (True, True)
    world.settle()
    assert not any(owner == sid(world, 1) for owner, _ in world.sides[sid(world, 3)].mapped)
    link(world, 2, 3)
    assert not cut(world, 2, 3).granted


def test_nothing_held_is_reclaimed(world: World) -> None:
    first, second = link(world, 1, 2, 3)
    world.send(first.epoch)
    frame = world.frames[0]
    world.pass_on(frame, second.epoch)
    assert frame.links == [first.epoch, second.epoch]
    world.down(sid(world, 2))
    assert asked(world, 1) == [What.DROP]
    world.answer(sid(world, 1))
    assert asked(world, 1) == []  # 3 still reads what 1 had sent
    assert asked(world, 3) == [What.DROP]
    assert not world.answer(sid(world, 3))
    world.let_go(frame)
    world.answer(sid(world, 3))
    assert What.RECLAIM in asked(world, 1)
    answer_all(world)
    assert not world.core.cuts
    assert not world.frames


def test_two_dead_in_a_row(world: World) -> None:
    first, second, third = link(world, 1, 2, 3, 4)
    world.send(first.epoch)
    frame = world.frames[0]
    world.pass_on(frame, second.epoch)
    world.pass_on(frame, third.epoch)
    world.down(sid(world, 2))
    world.down(sid(world, 3))
    while world.answer(sid(world, 1)):
        pass
    assert asked(world, 1) == []
    world.let_go(frame)
    answer_all(world)
    assert not world.core.cuts
    assert not world.frames


def test_dead_in_a_ring(world: World) -> None:
    link(world, 1, 2)
    link(world, 2, 3)
    link(world, 3, 2)
    for port in (2, 3):
        world.down(sid(world, port))
    answer_all(world)
    assert not world.core.cuts


def test_memory_stays_while_it_may_come_another_way(world: World) -> None:
    link(world, 1, 2, 3)
    link(world, 1, 3)
    owner = sid(world, 1)
    refuse(world, 1, 3)
    answer_all(world)
    assert any(o == owner for o, _ in world.sides[sid(world, 3)].mapped)
    refuse(world, 1, 2)
    answer_all(world)
    assert not any(o == owner for side in world.sides.values() for o, _ in side.mapped)
    assert cut(world, 2, 3).granted == set()


def test_backs_off(world: World) -> None:
    for delay in (1.0, 2.0, 4.0):
        promote(world, 1, 2)
        world.answer(sid(world, 2), refuse=True)
        world.settle()
        assert world.core.held_back(1, 2, world.now).startswith("p2 refuses: no room")
        promote(world, 1, 2)
        assert not world.core.cuts
        world.now += delay
        assert world.core.held_back(1, 2, world.now) == ""
    link(world, 1, 2)
    world.now += 60
    world.run(world.core.progress(cut(world, 1, 2).epoch, (1, 0), world.now))
    assert world.core.held_back(1, 2, world.now - 63.9) == ""  # what went well for long enough makes up for it


def test_complaints(world: World) -> None:
    there, _ = link(world, 1, 2, 3)
    link(world, 2, 1)
    world.run(world.core.complained(sid(world, 2), 7, "no such number", world.now))
    world.run(world.core.complained(sid(world, 2), there.in_number, "a bad slot", world.now))
    assert (there.stage.ending, there.ends) == (True, "p2 says: a bad slot")
    assert [(c.sender.port, c.receiver.port) for c in world.core.cuts.values() if not c.stage.ending] == [
        (2, 3),
        (2, 1),
    ]
    assert "a bad slot" in world.core.held_back(1, 2, world.now)


def test_lost_memory(world: World) -> None:
    first, second = link(world, 1, 2, 3)
    world.run(world.core.memory_lost(sid(world, 3), sid(world, 1), "it was cut off", world.now))
    assert (first.stage.ending, second.stage.ending) == (False, True)
    world.settle()
    link(world, 2, 3)
    assert not cut(world, 2, 3).granted


def test_fast_path_refuses(world: World) -> None:
    promote(world, 1, 2)
    one = cut(world, 1, 2)
    for port in (2, 2, 1):
        world.answer(sid(world, port))
    ask = world.sides[sid(world, 2)].to_do[0]
    world.sides[sid(world, 2)].rings.add(one.epoch)
    world.sides[sid(world, 2)].to_do.clear()
    commands = world.core.answered(sid(world, 2), ask.serial, None, world.now)
    assert [type(c).__name__ for c in commands][:1] == ["Open"]
    world.run(world.core.failed(one, "no such port", world.now))
    world.settle()
    assert not world.core.cuts


def test_rings_cannot_be_made(world: World) -> None:
    promote(world, 1, 2)
    one = cut(world, 1, 2)
    asks = list(world.sides[sid(world, 2)].to_do)
    for ask in asks:
        commands = world.core.answered(sid(world, 2), ask.serial, None, world.now)
    assert [type(c).__name__ for c in commands] == ["MakeRings", "Ask", "Ask"]
    after = world.core.failed(one, "no rings: Too many open files", world.now)
    assert next(type(c).__name__ for c in after if not isinstance(c, Notice)) == "Free"
    assert not world.core.cuts


def test_idle_ones_end(world: World) -> None:
    (one,) = link(world, 1, 2)
    world.run(world.core.progress(one.epoch, (5, 5), 29.0))
    world.run(world.core.progress(one.epoch, (5, 5), 58.9))
    assert one.stage is Stage.OPEN
    world.run(world.core.progress(one.epoch, (5, 5), 59.0))
    assert (one.stage.ending, one.ends) == (True, "nothing was sent for 30 s")


def test_fresh_trust_is_for_new_ones(world: World) -> None:
    (one,) = link(world, 1, 2)
    world.rules.fresh = False
    recheck(world)
    assert one.stage is Stage.OPEN
    promote(world, 3, 4)
    assert len(world.core.cuts) == 1


def test_quota(world: World) -> None:
    world.rules.limit = 1
    link(world, 1, 2)
    promote(world, 1, 3)
    promote(world, 3, 2)
    assert len(world.core.cuts) == 1


def test_who_does_not_answer_is_sent_away(world: World) -> None:
    promote(world, 1, 2)
    assert world.core.tick(4.9) == []
    ends = world.core.tick(5.0)
    assert {c.sid for c in ends if isinstance(c, Disconnect)} == {sid(world, 2)}


def test_who_holds_packets_is_named_once(world: World) -> None:
    (one,) = link(world, 1, 2)
    world.send(one.epoch)
    world.rules.watched = {1}
    recheck(world)
    world.answer(sid(world, 1))
    assert len(world.core.tick(10.0)) == 1
    assert world.core.tick(11.0) == []
    assert isinstance(world.frames[0], Frame)


def test_stop(world: World) -> None:
    (one,) = link(world, 1, 2)
    link(world, 2, 1)
    world.send(one.epoch)
    stopping = sid(world, 1)
    world.run(world.core.peer_stops(stopping, world.now))
    answer_all(world)
    assert stopping in world.sides
    promote(world, 1, 2)
    world.settle()
    assert stopping not in world.sides  # it was told Stopped
    assert not world.core.cuts


def test_read_only_from_now_on(world: World) -> None:
    (one,) = link(world, 1, 2)
    world.rules.hidden = {1}
    recheck(world)
    assert one.stage.ending
    world.settle()
    (again,) = link(world, 1, 2)
    assert again.stage is Stage.OPEN
    (_, passed) = (again, *link(world, 2, 3))
    assert not passed.granted  # 2 copies what it receives
