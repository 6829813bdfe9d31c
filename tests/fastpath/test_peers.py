# SPDX-License-Identifier: Apache-2.0
"""Front-ends of all kinds: how they connect, fail and return, their rings and queues."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fastpath.frames import flow, mac, numbered, output
from tests.fastpath.switch import Switch
from tests.fastpath.traffic import traffic
from tests.frontend import FrontEnd, FrontEndError
from vswitch.slowpath.types import Drop, PortConfig, PortState

RINGS: dict[str, Any] = {"rx_ring": 1024, "tx_ring": 1024}


# ---- peers that go and come ----------------------------------------------------


def test_states_of_a_connection(switch: Switch) -> None:
    path = switch.run_dir / "a"
    with FrontEnd(path) as front:
        port = switch.add_config(PortConfig("a", socket=str(path)))
        switch.wait_state(port, PortState.WAITING)
        front.connect()
        for state in (PortState.NEGOTIATING, PortState.MEMORY_MAPPED, PortState.READY):
            switch.wait_state(port, state)
        info = switch.fp.port_info(port.id)
        assert (info.state, info.rx_queues, info.tx_queues) == (PortState.READY, 1, 1)
        assert info.features == int(front.features)
        front.kill()
        switch.wait_state(port, PortState.LOST)
        info = switch.fp.port_info(port.id)
        assert info.state == PortState.LOST
        assert info.reason


@pytest.mark.parametrize("clean", [False, True], ids=["killed", "closed"])
def test_a_peer_that_goes_and_comes_back(switch: Switch, clean: bool) -> None:
    a, b = switch.add_hosts(2)
    switch.install(flow(output(b.id), in_port=a.id), flow(output(a.id), in_port=b.id))
    a.peer.send(numbered(1, 2, 10))
    switch.settle()
    assert len(b.peer.receive()) == 10
    (b.peer.close if clean else b.peer.kill)()
    switch.wait_state(b, PortState.LOST)
    a.peer.send(numbered(1, 2, 5))
    switch.settle()
    assert switch.drops(b) == {Drop.PORT_DOWN: 5}
    switch.reconnect(b)
    frames = numbered(1, 2, 40)
    a.peer.send(frames)
    b.peer.send(numbered(2, 1, 40))
    switch.settle()
    assert b.peer.receive() == frames
    assert a.peer.receive() == numbered(2, 1, 40)


def test_a_peer_killed_under_traffic(switch: Switch) -> None:
    a, b, c = switch.add_hosts(3, **RINGS)
    switch.install(flow(output(b.id, c.id), in_port=a.id))
    for _ in range(5):
        with traffic(a, numbered(1, 2, 64)):
            switch.wait(lambda: len(b.peer.receive()) > 0, lambda: "b to receive")
            b.peer.kill()
            switch.wait_state(b, PortState.LOST)
            c.peer.receive()
            switch.reconnect(b)
        switch.settle()
        c.peer.receive()
    a.peer.send(numbered(1, 2, 10))
    switch.settle()
    assert len(b.peer.receive()) >= 10


def test_a_sender_killed_with_frames_parked(switch: Switch) -> None:
    a, b = switch.add_hosts(2)
    a.peer.send(numbered(1, 2, 10))
    (upcall,) = switch.wait_upcalls(1)
    switch.settle(parked=10)
    a.peer.kill()
    switch.wait_state(a, PortState.LOST)
    switch.install(flow(output(b.id), in_port=a.id))
    switch.finish(upcall, output(b.id))
    assert switch.settle() == (10, 0, 10, 0, 0)
    assert b.peer.receive() == numbered(1, 2, 10)


def test_a_returning_peer_with_fewer_queues(switch: Switch) -> None:
    """What the peer before had enabled is forgotten."""
    a = switch.add("a", **RINGS)
    b = switch.add("b", queues=4, **RINGS)
    switch.install(flow(output(b.id), in_port=a.id))
    assert switch.fp.port_info(b.id).tx_queues == 4
    b.peer.kill()
    switch.wait_state(b, PortState.LOST)
    switch.reconnect(b)
    assert switch.fp.port_info(b.id).tx_queues == 1
    frames = [frame for src in range(10, 42) for frame in numbered(src, 2, 4)]
    a.peer.send(frames)
    switch.settle()
    assert b.peer.receive() == frames


def test_a_peer_that_reconnects_with_the_same_rings(switch: Switch) -> None:
    """The port is removed and added again (as by a restarted switch): the front-end's rings go on."""
    a, b = switch.add_hosts(2)
    switch.install(flow(output(b.id), eth_dst=mac(2)))
    a.peer.send(numbered(1, 2, 300), burst=100)
    switch.settle()
    b.peer.receive()
    front, config = b.peer, b.config
    switch.fp.port_del(b.id)
    del switch.ports[b.id]
    front.wait_disconnected()
    again = switch.add_config(config)
    again.front = front
    again.sent_before = -front.stats.tx_packets
    front.connect()
    switch.wait_state(again, PortState.READY)
    switch.install(flow(output(again.id), eth_dst=mac(2)))
    frames = numbered(1, 2, 200)
    a.peer.send(frames)
    switch.settle()
    assert front.receive() == frames


def test_the_switch_as_server(switch: Switch) -> None:
    a = switch.add("a", server=False)
    b = switch.add("b")
    switch.install(flow(output(b.id), in_port=a.id))
    a.peer.send(numbered(1, 2, 3))
    switch.settle()
    assert b.peer.receive() == numbered(1, 2, 3)
    second = FrontEnd(a.peer.path, server=False)
    with pytest.raises(FrontEndError):
        second.connect(2)
    second.kill()
    a.peer.send(numbered(1, 2, 3))
    switch.settle()
    assert b.peer.receive() == numbered(1, 2, 3), "the first peer must not suffer from the second"


# ---- front-end options ---------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "packed": {"packed": True},
    "indirect": {"indirect": True},
    "not-mergeable": {"mergeable": False},
    "legacy-header": {"mergeable": False, "modern": False},
    "packed-not-mergeable": {"packed": True, "mergeable": False},
    "chained": {"segment": 64, "rx_buffer": 2048, "rx_ring": 2048},
    "small-buffers": {"rx_buffer": 256, "segment": 256},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_kinds_of_rings(switch: Switch, options: dict[str, Any]) -> None:
    a, b = switch.add("a", **(RINGS | options)), switch.add("b", **(RINGS | options))
    switch.install(flow(output(b.id), in_port=a.id))
    frames = [frame for size in range(60, 1514, 17) for frame in numbered(1, 2, 1, size=size, start=size)]
    for start in range(0, len(frames), 20):
        a.peer.send(frames[start : start + 20])
        switch.settle()
        assert b.peer.receive() == frames[start : start + 20]


def test_queues(switch: Switch) -> None:
    """Frames come on any queue; those of one flow leave in order, flows spread over the peer's queues."""
    a, b = switch.add("a", queues=4, **RINGS), switch.add("b", queues=4, **RINGS)
    switch.install(flow(output(b.id), in_port=a.id))
    flows = {src: numbered(src, 2, 10) for src in range(10, 74)}
    for src, frames in flows.items():
        a.peer.send(frames, queue=src % 4)
    switch.settle()
    assert [queue.rx_packets for queue in switch.fp.port_stats(a.id).queues] == [160] * 4
    sent = [queue.tx_packets for queue in switch.fp.port_stats(b.id).queues]
    assert sum(sent) == 640
    assert all(sent), f"flows are not spread: {sent}"
    queues = [b.peer.receive(queue) for queue in range(4)]
    assert [len(queue) for queue in queues] == sent
    for src, frames in flows.items():
        got = [[frame for frame in queue if frame[6:12] == mac(src)] for queue in queues]
        assert sorted(got) == [[], [], [], frames]


def test_a_disabled_queue_gets_nothing(switch: Switch) -> None:
    # a queue for each worker, who all have transmit queues of their own
    a, b = switch.add("a", queues=switch.fp.n_workers, **RINGS), switch.add("b", queues=2, **RINGS)
    switch.install(flow(output(b.id), in_port=a.id))
    b.peer.enable(1, on=False)
    switch.wait(lambda: switch.fp.port_info(b.id).tx_queues == 1, lambda: "one queue left")
    frames = [frame for src in range(10, 42) for frame in numbered(src, 2, 4)]
    a.peer.send(frames)
    switch.settle()
    assert b.peer.receive(0) == frames
    b.peer.enable(1, on=True)
    switch.wait(lambda: switch.fp.port_info(b.id).tx_queues == 2, lambda: "two queues again")
    for queue in range(a.peer.queues):
        a.peer.send(frames, queue)
    switch.settle()
    assert len(b.peer.receive(1)) > 0


def test_more_queues_than_the_port_has(switch: Switch) -> None:
    path = switch.run_dir / "a"
    with FrontEnd(path, queues=3) as front:
        switch.add_config(PortConfig("a", socket=str(path), queues=2))
        with pytest.raises(FrontEndError, match="the back-end has 2"):
            front.connect()
