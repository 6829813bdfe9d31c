# SPDX-License-Identifier: Apache-2.0
"""Containers that break the rules of their rings: each costs its own queue, is named, and may come back."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.fastpath.frames import flow, numbered, output
from tests.fastpath.switch import Attached, Switch
from tests.memport import Container, Shape
from tests.memport.rings import LISTEN, MARKER, MORE, TAIL, USED_TAIL, Desc
from vswitch.slowpath.types import PortState, Shortcut

RING = 256


def desc(box: Container, **fields: int) -> Desc:
    """A descriptor that the switch would take, but for `fields`."""
    number, view = next(iter(box.mapped.items()))
    view[:60] = numbered(1, 2, 1)[0]
    return Desc(0, number, 60, lap=1)._replace(**fields)


def lend(*wanted: dict[str, int], tail: int | None = None) -> Callable[[Container], None]:
    """Offers descriptors of the first slots, one for each of `wanted`: what is special about it."""

    def act(box: Container) -> None:
        ring = box.tx[0].switch.ring
        for slot, fields in enumerate(wanted):
            ring.write(slot, desc(box, **{"slot": slot} | fields))
        ring.words[TAIL] = len(wanted) if tail is None else tail

    return act


def end_of(box: Container) -> int:
    return next(iter(box.mapped.values())).nbytes


def edge(beyond: int, **fields: int) -> Callable[[Container], None]:
    return lambda box: lend({"offset": end_of(box) - 60 + beyond} | fields)(box)


def truncate(box: Container) -> None:
    for fd, _ in box.regions:
        os.ftruncate(fd, 0)


def lend_and_truncate(box: Container) -> None:
    lend({}, tail=0)(box)
    truncate(box)
    box.tx[0].switch.ring.words[TAIL] = 1


SENT: dict[str, Callable[[Container], None]] = {
    "avail-jump": lend(tail=RING + 1),
    "avail-jump backwards": lend(tail=2**32 - 1),
    "descriptor-index": lend({"slot": RING}),
    "descriptor-index far": lend({"slot": 0xFFFF}),
    "slot-lap zero": lend({"lap": 0}),
    "slot-lap ahead": lend({"lap": 2}),
    "slot-lap in one burst": lend({}, {"slot": 0}),
    "slot-lap of a slot in hand": lend({}, {"slot": 0, "lap": 2}),
    "buffer-address no region": lend({"region": 65500}),
    "buffer-address region zero": lend({"region": 0}),
    "buffer-address beyond the end": edge(1),
    "buffer-address at the end": edge(60),
    "buffer-address that wraps": lend({"offset": 2**32 - 30}),
    "buffer-address behind it": edge(0, behind=1),
    "buffer-address before it": lend({"before": 1}),
    "buffer-address of nothing": lend({"len": 0}),
    "buffer-address in a chain": lend({"flags": MORE}, {"offset": 2**32 - 1}),
    "descriptor-chain without end": lend({"flags": MORE}),
    "descriptor-chain of the whole ring": lend(*[{"flags": MORE}] * RING),
    "descriptor-chain too long": lend(*[{"flags": MORE}] * 64, {}),
    "descriptor-chain with a marker": lend({"flags": MORE}, {"flags": MARKER}),
    "path-marker of none": lend({"flags": MARKER, "offset": 1, "region": 3}),
    "path-marker beyond the table": lend({"flags": MARKER, "offset": 1, "region": 256}),
    "path-marker without epoch": lend({"flags": MARKER, "offset": 0, "region": 3}),
    "path-marker that goes on": lend({"flags": MARKER | MORE, "offset": 1, "region": 3}, {}),
    "memory-truncated": lend_and_truncate,
}


def post(box: Container, **fields: int) -> None:
    ring = box.rx[0].ring
    ring.write(0, ring.read(0)._replace(**fields))


def post_short_and_bad(box: Container) -> None:
    post(box, len=1)
    box.rx[0].ring.write(1, Desc(0, 0, 2048))


POSTED: dict[str, Callable[[Container], None]] = {
    "avail-jump": lambda box: box.rx[0].ring.words.__setitem__(TAIL, RING + 1),
    "buffer-address no region": lambda box: post(box, region=65500),
    "buffer-address beyond the end": lambda box: post(box, offset=end_of(box) - 2047, len=2048),
    "buffer-address that wraps": lambda box: post(box, offset=2**32 - 1),
    "buffer-address of nothing": lambda box: post(box, len=0),
    "buffer-address behind a short one": post_short_and_bad,
}


def bystanders(switch: Switch) -> tuple[Attached, Attached]:
    left, right = switch.add_memory("left"), switch.add_memory("right")
    switch.install(flow(output(right.id), in_port=left.id))
    return left, right


def unharmed(left: Attached, right: Attached) -> None:
    left.box.send(numbered(2, 3, 20))
    assert right.box.wait_received(20) == numbered(2, 3, 20), "the others must not feel it"


def lost(switch: Switch, bad: Attached, direction: str, deed: str) -> None:
    fault = deed.split(maxsplit=1)[0]
    switch.wait_state(bad, PortState.LOST)
    assert switch.fp.port_info(bad.id).reason == f"{direction} queue 0 stopped: {fault}; reconnect"
    assert switch.fp.port_stats(bad.id).faults == {fault: 1}


@pytest.mark.parametrize("deed", SENT, ids=lambda deed: deed.replace(" ", "-"))
def test_a_broken_rule_of_a_lend_ring(switch: Switch, deed: str) -> None:
    left, right = bystanders(switch)
    bad = switch.add_memory("bad")
    switch.install(flow(output(right.id), in_port=bad.id))
    SENT[deed](bad.box)
    bad.box.kick()
    lost(switch, bad, "transmit", deed)
    right.box.receive()
    unharmed(left, right)
    switch.detach(bad)
    switch.attach(bad)
    bad.box.send(numbered(1, 3, 20))
    assert right.box.wait_received(20) == numbered(1, 3, 20), "it may come back"


@pytest.mark.parametrize("deed", POSTED, ids=lambda deed: deed.replace(" ", "-"))
def test_a_broken_rule_of_a_post_ring(switch: Switch, deed: str) -> None:
    left, right = bystanders(switch)
    bad = switch.add_memory("bad")
    switch.install(flow(output(bad.id, right.id), in_port=left.id), flow(output(left.id), in_port=bad.id))
    POSTED[deed](bad.box)
    unharmed(left, right)
    lost(switch, bad, "receive", deed)
    unharmed(left, right)
    bad.box.send(numbered(1, 2, 5))
    assert left.box.wait_received(5) == numbered(1, 2, 5), "its other queue goes on"
    switch.detach(bad)
    switch.attach(bad)
    unharmed(left, right)
    assert bad.box.wait_received(20) == numbered(2, 3, 20), "it may come back"


def test_a_second_marker_is_forged(switch: Switch) -> None:
    bad, victim = switch.add_memory("bad"), switch.add_memory("victim")
    switch.fp.shortcut_open(Shortcut(bad.id, victim.id, 3, 5, 77, bytes(6), 1500, 1))
    lend({"flags": MARKER, "offset": 77, "region": 3})(bad.box)
    bad.box.kick()
    switch.wait(lambda: victim.box.table.incoming(5).opened == 1, lambda: "the ring to open")
    lend({}, {"flags": MARKER, "offset": 77, "region": 3})(bad.box)
    bad.box.kick()
    lost(switch, bad, "transmit", "path-marker")


def test_a_marker_of_a_queue_that_has_no_ring(switch: Switch) -> None:
    bad, victim = switch.add_memory("bad", shape=Shape(tx_queues=2)), switch.add_memory("victim")
    switch.fp.shortcut_open(Shortcut(bad.id, victim.id, 3, 5, 77, bytes(6), 1500, 1))
    bad.box.tx[1].switch.put_marker(77, 3)
    bad.box.tx[1].switch.publish()
    bad.box.kick(1)
    switch.wait_state(bad, PortState.LOST)
    assert switch.fp.port_info(bad.id).reason == "transmit queue 1 stopped: path-marker; reconnect"
    assert victim.box.table.incoming(5).opened == 0


def test_what_the_container_may_scribble_on(switch: Switch) -> None:
    """The switch's own index, marks, used entries, heads, and `listen`: it does not read them again."""
    left, right = bystanders(switch)
    bad = switch.add_memory("bad")
    switch.install(flow(output(bad.id), in_port=left.id), flow(output(right.id), in_port=bad.id))
    for ring in (bad.box.tx[0].switch.ring, bad.box.rx[0].ring):
        ring.words[:4] = memoryview(bytes(16)).cast("I")
        ring.words[LISTEN] = 7
        ring.words[USED_TAIL] = 0xDEADBEEF
    left.box.send(numbered(2, 1, 20))
    switch.settle()
    assert bad.box.wait_received(20) == numbered(2, 1, 20)
    bad.box.kick()
    bad.box.send(numbered(1, 3, 20))
    bad.box.kick()
    assert right.box.wait_received(20) == numbered(1, 3, 20)


def test_memory_truncated_while_frames_come(switch: Switch) -> None:
    """The worker meets it in the middle of a copy; the sender must not notice."""
    left, right = bystanders(switch)
    bad = switch.add_memory("bad")
    switch.install(flow(output(bad.id, right.id), in_port=left.id))
    left.box.send(numbered(2, 3, 50, size=1500))
    truncate(bad.box)
    left.box.send(numbered(2, 3, 100, size=1500))
    assert right.box.wait_received(150)[50:] == numbered(2, 3, 100, size=1500)
    switch.wait_state(bad, PortState.LOST)
    assert "memory-truncated" in switch.fp.port_info(bad.id).reason
