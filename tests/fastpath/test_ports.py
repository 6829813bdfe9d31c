# SPDX-License-Identifier: Apache-2.0
"""Ports that come and go under traffic, their sizes and limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fastpath.conftest import MBUFS
from tests.fastpath.frames import POP, UPCALL, drop, flow, mac, mirror, numbered, output, push, tagged
from tests.fastpath.switch import Switch
from tests.fastpath.traffic import traffic
from vswitch.slowpath.fastpath import FastPathError
from vswitch.slowpath.types import Action, Drop, Flow, PortConfig, PortState

FRAME_OVERHEAD = 14 + 8  # of a frame over its MTU: Ethernet header and two tags
RINGS: dict[str, Any] = {"rx_ring": 1024, "tx_ring": 1024}


# ---- adding and deleting -------------------------------------------------------


def test_adding_and_deleting_under_traffic(switch: Switch) -> None:
    a, b = switch.add_hosts(2, **RINGS)
    switch.install(flow(output(b.id), in_port=a.id, eth_dst=mac(2)))
    with traffic(a, numbered(1, 2, 32)):
        for round_ in range(30):
            c = switch.add(f"c{round_}")
            switch.install(flow(output(c.id, b.id), in_port=a.id, eth_dst=mac(2)))
            switch.wait(lambda c=c: len(c.peer.receive()) > 0, lambda: "c to receive")  # type: ignore[misc]
            b.peer.receive()
            switch.delete(c)  # the flow still names it
    switch.install(flow(output(b.id), in_port=a.id, eth_dst=mac(2)))
    switch.settle()
    b.peer.receive()
    a.peer.send(numbered(1, 2, 20))
    switch.settle()
    assert b.peer.receive() == numbered(1, 2, 20)


def test_deleting_an_output_port_under_traffic(switch: Switch) -> None:
    """Again and again, so that it also goes between the choice of an output and the sending."""
    a, b = switch.add_hosts(2, **RINGS)
    path = switch.run_dir / "nobody"
    many = range(b.id + 1, b.id + 40)  # the port in question, and others that are not there
    switch.install(flow(output(*many), in_port=a.id))
    with traffic(a, numbered(1, 2, 256)):
        for _ in range(1000):
            switch.fp.port_del(switch.fp.port_add(PortConfig("nobody", socket=str(path))))
            switch.fp.events()
    switch.settle()
    switch.install(flow(output(b.id), in_port=a.id))
    a.peer.send(numbered(1, 2, 20))
    switch.settle()
    assert b.peer.receive() == numbered(1, 2, 20)


def test_deleting_the_sender_under_traffic(switch: Switch) -> None:
    """Deleting a port whose peer keeps sending, with packets parked of it too."""
    (b,) = switch.add_hosts(1, **RINGS)
    for round_ in range(10):
        a = switch.add(f"a{round_}", **RINGS)
        switch.install(flow(output(b.id), in_port=a.id, eth_src=mac(1)))
        frames = [frame for pair in zip(numbered(1, 2, 100), numbered(3, 2, 100), strict=True) for frame in pair]
        a.peer.send(frames)
        switch.delete(a)
        switch.upcalls.clear()
        switch.settle()
        got = b.peer.receive()
        assert got == numbered(1, 2, 100)[: len(got)]


def test_a_port_number_used_again_starts_from_zero(switch: Switch) -> None:
    a, b = switch.add_hosts(2)
    switch.install(flow(output(b.id), in_port=a.id))
    a.peer.send(numbered(1, 2, 10))
    switch.settle()
    switch.delete(b)
    c = switch.add("c")
    assert c.id == b.id
    assert (switch.sent(c), switch.drops(c)) == (0, {})
    assert switch.settle() == (10, 0, 10, 0, 0)


def test_256_idle_ports_but_one_pair(switch: Switch) -> None:
    ports = [switch.add(f"p{number}") for number in range(256)]
    a, b = ports[17], ports[201]
    switch.install(flow(output(b.id), in_port=a.id), flow(output(a.id), in_port=b.id))
    for burst in (1, 31, 32, 33, 200):
        a.peer.send(numbered(1, 2, burst))
        b.peer.send(numbered(2, 1, burst))
        switch.settle()
        assert b.peer.receive() == numbered(1, 2, burst)
        assert a.peer.receive() == numbered(2, 1, burst)
    switch.assert_silent(ports)


def test_flooding_256_ports(switch: Switch) -> None:
    ports = [switch.add(f"p{number}") for number in range(256)]
    frames = numbered(1, 2, 33)
    switch.install(flow(output(*(port.id for port in ports[1:])), in_port=ports[0].id))
    ports[0].peer.send(frames)
    assert switch.settle() == (33, 33 * 254, 33 * 255, 0, 0)
    for port in ports[1:]:
        assert port.peer.receive() == frames
    switch.assert_silent(ports[:1])


# ---- sizes ---------------------------------------------------------------------


@pytest.mark.parametrize("mtu", [68, 1500, 9000, 65535])
def test_mtu(switch: Switch, mtu: int) -> None:
    """The largest frame of an MTU has two tags; one byte more is refused, in and out."""
    largest = mtu + FRAME_OVERHEAD
    big: dict[str, Any] = {"rx_ring": 256, "tx_ring": 256}
    a, b = switch.add("a", mtu=mtu, **big), switch.add("b", mtu=mtu, **big)
    small = switch.add("small", mtu=67, **big)
    switch.install(flow(output(b.id, small.id), in_port=a.id))
    fits = mac(2) + mac(1) + b"\x88\xb5" + bytes(range(256)) * 300
    a.peer.send([fits[:largest], fits[: largest + 1], fits[:60]])
    switch.settle()
    assert b.peer.receive() == [fits[:largest], fits[:60]]
    assert switch.drops(a) == {Drop.OVERSIZE: 1}
    assert small.peer.receive() == [fits[:60]]
    assert switch.drops(small) == {Drop.TX_OVERSIZE: 1}


def test_changing_the_mtu(switch: Switch) -> None:
    a, b = switch.add_hosts(2)
    switch.install(flow(output(b.id), in_port=a.id))
    frames = numbered(1, 2, 1, size=3000)
    a.peer.send(frames)
    switch.settle()
    switch.fp.port_set_mtu(a.id, 9000)
    a.peer.send(frames)
    switch.settle()
    switch.fp.port_set_mtu(b.id, 9000)
    a.peer.send(frames)
    switch.settle()
    assert switch.drops(a) == {Drop.OVERSIZE: 1}
    assert switch.drops(b) == {Drop.TX_OVERSIZE: 1}
    assert b.peer.receive() == frames


def test_a_jumbogram_is_refused(switch: Switch) -> None:
    """65590 bytes: more than any MTU allows."""
    a, b = switch.add("a", mtu=65535), switch.add("b", mtu=65535)
    switch.install(flow(output(b.id), in_port=a.id))
    a.peer.send([mac(2) + mac(1) + b"\x86\xdd" + bytes(65576)])
    switch.settle()
    assert switch.drops(a) == {Drop.OVERSIZE: 1}
    switch.assert_silent([b])


@pytest.mark.parametrize("size", [2035, 2036, 2037, 4096, 9014, 65549])
def test_vlan_actions_on_large_frames(switch: Switch, size: int) -> None:
    """Frames of several buffers, shared between outputs, of which some change the tag."""
    a, b, c = (switch.add(name, mtu=65535) for name in "abc")
    switch.install(flow([*output(b.id), push(5), *output(c.id)], in_port=a.id, vlan_tpid=(0, 0)))
    switch.install(flow([*output(b.id), POP, *output(c.id)], in_port=a.id, vlan_tpid=(0x8100, 0)))
    (frame,) = numbered(1, 2, 1, size=size)
    a.peer.send([frame, tagged(frame, 9)])
    switch.settle()
    assert b.peer.receive() == [frame, tagged(frame, 9)]
    assert c.peer.receive() == [tagged(frame, 5), frame]


# ---- a peer that does not read -------------------------------------------------


def test_a_full_ring_drops_what_does_not_fit(switch: Switch) -> None:
    a = switch.add("a", tx_ring=1024)
    b, c = switch.add("b", rx_ring=64), switch.add("c", rx_ring=1024)
    switch.install(flow(output(b.id, c.id), in_port=a.id))
    frames = numbered(1, 2, 257)
    a.peer.send(frames)
    assert switch.settle() == (257, 257, 64 + 257, 193, 0)
    assert switch.drops(b) == {Drop.RING_FULL: 193}
    assert b.peer.receive() == frames[:64]
    assert c.peer.receive() == frames, "one slow reader must not cost another"
    a.peer.send(frames[:50])
    switch.settle()
    assert b.peer.receive() == frames[:50]


def test_a_large_frame_that_does_not_fit_is_dropped_whole(switch: Switch) -> None:
    a, b = switch.add("a", mtu=9000), switch.add("b", mtu=9000, rx_ring=8)
    switch.install(flow(output(b.id), in_port=a.id))
    large, small = numbered(1, 2, 1, size=9000)[0], numbered(1, 2, 1)[0]
    a.peer.send([large])
    switch.settle()
    a.peer.send([large])
    switch.settle()
    a.peer.send([small])
    switch.settle()
    assert b.peer.receive() == [large, small]
    assert switch.drops(b) == {Drop.RING_FULL: 1}


def test_a_frame_larger_than_a_buffer_of_a_peer_that_cannot_merge(switch: Switch) -> None:
    a, b = switch.add("a", mtu=9000), switch.add("b", mtu=9000, mergeable=False)
    switch.install(flow(output(b.id), in_port=a.id))
    large, small = numbered(1, 2, 1, size=5000)[0], numbered(1, 2, 1)[0]
    a.peer.send([large, small])
    switch.settle()
    assert switch.drops(b)[Drop.RING_FULL] >= 1
    a.peer.send([small])
    switch.settle()
    assert b.peer.receive()[-1:] == [small], "the ring must not stay stuck"


# ---- leaks ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "output",
        "several",
        "drop",
        "vlan",
        "mirror",
        "upcall",
        "budget",
        "malformed",
        "oversize",
        "down",
        "full",
        "gone",
    ],
)
def test_no_buffers_are_lost(switch: Switch, path: str) -> None:
    """More frames than there are buffers, by each way that a packet can go; then frames still pass."""
    a, b, c, d = switch.add_hosts(4, **RINGS)
    gone = switch.add("gone")
    actions: dict[str, list[Action]] = {
        "output": output(b.id),
        "several": output(b.id, c.id, d.id),
        "drop": [drop(Drop.POLICY)],
        "vlan": [*output(b.id), push(5), *output(c.id), POP, *output(d.id), push(7)],
        "mirror": [mirror(c.id), *output(b.id)],
        "upcall": [*output(b.id), UPCALL],
        "gone": output(gone.id, b.id),
        "down": output(b.id, d.id),
        "full": output(gone.id, b.id),
    }
    frames = numbered(1, 2, 256)
    if path == "malformed":
        frames = [bytes(13)] * 256
    elif path == "oversize":
        frames = [frame + bytes(6000) for frame in frames[:64]]
    if path == "gone":
        switch.delete(gone)
    elif path == "down":
        d.peer.kill()
        switch.wait_state(d, PortState.LOST)
    if path in actions:
        switch.install(flow(actions[path], in_port=a.id))
    if path == "upcall":
        switch.policy = lambda _: ((), ())
    elif path == "budget":
        switch.fp.port_set_parked_max(a.id, 0)
    for _ in range(0, 2 * MBUFS, len(frames)):
        a.peer.send(frames)
        switch.settle(parked=0)
        for port in (b, c, d)[: 2 if path == "down" else 3]:
            port.peer.receive()
    switch.install(Flow(*_exact(d.id), tuple(output(a.id))) if path != "down" else flow(output(a.id), in_port=b.id))
    sender = b if path == "down" else d
    sender.peer.send(numbered(9, 8, 100))
    switch.settle()
    assert a.peer.receive() == numbered(9, 8, 100)


def _exact(port_id: int) -> tuple[Any, Any]:
    wanted = flow([], in_port=port_id)
    return wanted.key, wanted.mask


# ---- refusals ------------------------------------------------------------------


def test_bad_ports_are_refused_with_one_line(switch: Switch, tmp_path: Path) -> None:
    bad = [
        PortConfig("long", socket="/tmp/" + "x" * 103),
        PortConfig("noplace", socket=str(tmp_path / "no" / "such" / "dir" / "sock"), role="server"),
        PortConfig("noqueues", socket=str(tmp_path / "q"), queues=0),
        PortConfig("manyqueues", socket=str(tmp_path / "q"), queues=17),
    ]
    for config in bad:
        with pytest.raises(FastPathError) as error:
            switch.fp.port_add(config)
        assert str(error.value).strip(), config
        assert "\n" not in str(error.value)
    # Nothing stays behind: the same socket can be used.
    a, b = switch.add_hosts(2)
    assert {a.id, b.id} == {1, 2}


def test_deleting_a_port_that_is_not_there(switch: Switch) -> None:
    with pytest.raises(FastPathError):
        switch.fp.port_del(77)


@pytest.mark.parametrize("role", ["client", "server"])
def test_a_socket_in_use_is_refused(switch: Switch, role: str) -> None:
    """And the port that has it does not suffer."""
    a, b = switch.add("a", server=role == "client"), switch.add("b")
    switch.install(flow(output(b.id), in_port=a.id))
    for _ in range(3):
        with pytest.raises(FastPathError, match="in use by port a"):
            switch.fp.port_add(PortConfig("again", socket=a.config.socket, role=role))
    a.peer.send(numbered(1, 2, 40))
    switch.settle()
    assert b.peer.receive() == numbered(1, 2, 40)
