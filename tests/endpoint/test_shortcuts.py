# SPDX-License-Identifier: Apache-2.0
"""Frames between two applications, in each other's memory."""

from __future__ import annotations

import os

import pytest

from tests.endpoint.bench import POOL, Bench, connect, grant, introduce
from tests.endpoint.switchside import Shortcut, map_neighbour
from vswitch._ff import lib


@pytest.mark.parametrize(("length", "segments"), [(64, 1), (1500, 1), (1500, 3), (9000, 5), (9000, 60)])
def test_both_directions(bench: Bench, length: int, segments: int) -> None:
    a, b = bench.container("a"), bench.container("b")
    introduce(a, b)
    connect(a, b)
    connect(b, a)
    for sender, receiver in ((a, b), (b, a)):
        for number in range(1, 100):
            sender.send(receiver, number, 1, length, f"{segments} plain")
            assert receiver.receive(1) == [(number, length, segments, True)]
        stats = sender.app.stats()
        assert (stats["tx_shortcut_packets"], stats["tx_copies"], stats["tx_switched_packets"]) == (99, 0, 0)
    assert a.port.take() == b.port.take() == []


@pytest.mark.parametrize("kind", ["shared", "outside", "clone"])
def test_what_cannot_be_lent_is_copied_once(bench: Bench, kind: str) -> None:
    a, b = bench.container("a"), bench.container("b")
    introduce(a, b)
    connect(a, b)
    a.send(b, 5, 20, 1500, f"1 {kind}")
    assert b.receive(20) == [(5 + i, 1500, 1, True) for i in range(20)]
    assert a.app.stats()["tx_copies"] == 20
    a.app.do("free", "freed")
    a.app.do("poll 2")
    assert a.available() == POOL - a.port.posted()


def test_what_the_table_leaves_out_goes_by_the_switch(bench: Bench) -> None:
    a, b = bench.container("a"), bench.container("b")
    introduce(a, b)
    shortcut = Shortcut(a.port, b.port, 0, 0)
    shortcut.open(max_len=1000)
    a.send(b, 1, 1, 1001)
    a.send(b, 2, 1, 1000, "1 vlan")
    a.send(a, 3, 1)
    marker, *frames = a.port.take()
    assert (marker, len(frames)) == ((0, shortcut.epoch), 3)
    a.send(b, 4, 1, 1000)
    assert a.port.take() == []


def test_headroom_and_tailroom_come_along(bench: Bench) -> None:
    a, b = bench.container("a"), bench.container("b")
    introduce(a, b)
    connect(a, b)
    a.send(b, 0, 10, 1000)
    b.receive(10, hold=True)
    assert b.app.do("grow", "grown") == "10"


def test_buffers_that_are_held_are_in_nobodys_way(bench: Bench) -> None:
    a, b = bench.container("a"), bench.container("b")
    introduce(a, b)
    connect(a, b)
    a.send(b, 0, 40)
    b.receive(40, hold=True)
    for number in range(200):
        a.send(b, number, 1)
        assert b.numbers(1) == [number]
    assert b.app.do("free elsewhere", "freed") == ""
    a.send(b, 0, 60)
    assert b.numbers(60) == list(range(60))


def test_a_chain_copies_nothing(bench: Bench) -> None:
    a, b, c = bench.container("a"), bench.container("b"), bench.container("c")
    introduce(a, b, c)
    connect(a, b)
    to_c = connect(b, c)
    grant(to_c, b, a)
    for number in range(200):
        a.send(b, number, 1, 1500, "2 plain")
        b.receive(1, hold=True)
        assert b.app.do(f"forward {c.mac}", "sent") == "1"
        assert c.receive(1) == [(number, 1500, 2, True)]
    assert b.app.stats()["tx_copies"] == 0


def test_a_chain_without_a_grant_copies(bench: Bench) -> None:
    a, b, c = bench.container("a"), bench.container("b"), bench.container("c")
    introduce(a, b)
    map_neighbour(b.port, c.port)
    connect(a, b)
    connect(b, c)
    a.send(b, 0, 30, 1500, "2 plain")
    b.receive(30, hold=True)
    assert b.app.do(f"forward {c.mac}", "sent") == "30"
    assert c.numbers(30) == list(range(30))
    assert b.app.stats()["tx_copies"] == 30


@pytest.mark.parametrize("kept", [0, 1])
def test_a_chain_gives_back_what_it_need_not_send_over(bench: Bench, kept: int) -> None:
    a, b, c = bench.container("a"), bench.container("b"), bench.container("c")
    introduce(a, b, c)
    connect(a, b)
    to_c = connect(b, c)
    grant(to_c, b, a)
    a.send(b, 0, 64)
    b.receive(64, hold=True)
    assert b.app.do(f"forward {c.mac}", "sent") == "64"
    if kept:
        c.receive(kept, hold=True)
    assert c.numbers(64 - kept) == list(range(kept, 64))
    # b has nothing to send: all that it does is to look for frames.
    assert b.app.do("listen 32") == "0"
    a.send(b, 64, 64 - kept)
    assert b.numbers(64 - kept) == list(range(64, 128 - kept))
    assert b.app.stats()["tx_copies"] == 0


def test_a_loop_ends_in_a_copy(bench: Bench) -> None:
    a, b = bench.container("a"), bench.container("b")
    introduce(a, b)
    connect(a, b)
    back = connect(b, a)
    grant(back, b, a)
    forth = (a, b)
    a.send(b, 3, 1)
    for hop in range(1, lib.FF_SHM_HOPS + 2):
        at, to = forth[hop % 2], forth[(hop + 1) % 2]
        at.receive(1, hold=True)
        assert at.app.do(f"forward {to.mac}", "sent") == "1"
        copies = a.app.stats()["tx_copies"] + b.app.stats()["tx_copies"]
        assert copies == (1 if hop == lib.FF_SHM_HOPS + 1 else 0)


def test_read_only_memory_is_copied_on_receipt(bench: Bench) -> None:
    a, b = bench.container("a"), bench.container("b")
    map_neighbour(a.port, b.port, read_only=True)
    connect(a, b)
    for length, segments in ((64, 1), (1500, 3), (9000, 5)):
        a.send(b, 0, 10, length, f"{segments} plain")
        assert b.receive(10) == [(i, length, -(-length // 2048), False) for i in range(10)]
    assert b.app.stats()["rx_copies"] == 30


def test_a_dead_receivers_buffers_come_back(bench: Bench) -> None:
    a, b = bench.container("a"), bench.container("b")
    introduce(a, b)
    shortcut = connect(a, b)
    a.send(b, 0, 50)
    b.receive(20, hold=True)
    b.app.process.kill()
    b.app.process.wait()
    with pytest.raises(ConnectionResetError):
        b.port.receive()
    a.port.table.out[0].epoch = 0
    a.port.table.generation += 1
    a.port.do(lib.FF_MSG_DROP, number=shortcut.number_out, flags=lib.FF_MSG_OUT)
    assert a.available() == POOL - a.port.posted() - 50
    a.port.do(lib.FF_MSG_RECLAIM, number=shortcut.number_out)
    assert a.available() == POOL - a.port.posted()
    a.port.do(lib.FF_MSG_RECLAIM, number=shortcut.number_out)
    for region in range(len(b.port.regions)):
        a.port.do(lib.FF_MSG_UNMAP, region=b.first_region + region)
    a.send(b, 0, 10)
    assert len(a.port.take()) == 10


def test_a_dead_senders_memory_stays_while_it_is_used(bench: Bench) -> None:
    a, b = bench.container("a"), bench.container("b")
    introduce(a, b)
    shortcut = connect(a, b)
    a.send(b, 0, 30)
    b.receive(10, hold=True)
    a.app.process.kill()
    a.app.process.wait()
    shortcut.close()
    assert b.numbers(20) == list(range(10, 30))
    drop = b.port.ask(lib.FF_MSG_DROP, number=shortcut.number_in)
    unmap = b.port.ask(lib.FF_MSG_UNMAP, region=a.first_region)
    assert b.app.do("grow", "grown") == "10"
    assert b.port.answers() == []
    b.app.do("free", "freed")
    b.port.expect(lib.FF_MSG_DONE, drop)
    b.port.expect(lib.FF_MSG_DONE, unmap)


def test_an_application_that_closes_its_device_keeps_its_frames(bench: Bench) -> None:
    a, b = bench.container("a"), bench.container("b")
    introduce(a, b)
    connect(a, b)
    a.send(b, 0, 10, 1000)
    b.receive(10, hold=True)
    b.stop()
    assert b.app.do("close") == "0"
    assert b.app.do("grow", "grown") == "10"
    b.app.do("free", "freed")
    a.app.do("poll 2")
    assert a.available() == POOL - a.port.posted()
    assert b.available() == POOL


def test_memory_that_a_neighbour_takes_away(bench: Bench) -> None:
    a, b = bench.container("a"), bench.container("b")
    introduce(a, b)
    connect(a, b)
    a.send(b, 0, 30, 1000)
    b.receive(10, hold=True)
    for fd, _, _ in a.port.regions:
        os.ftruncate(fd, 0)
    words = b.app.do("rx 20", "got").split()
    assert len(words) == 20
    assert b.port.told() == [f"region {a.first_region} was taken away by its owner"]
    b.send(b, 0, 10)
    assert len(b.port.take()) == 10


def test_wrong_requests_are_refused(bench: Bench) -> None:
    a, b = bench.container("a"), bench.container("b")
    introduce(a, b)
    fd = a.port.regions[0][0]
    for reason, kind, fields in (
        ("region 64 is mapped already", lib.FF_MSG_NEIGHBOUR, {"region": a.first_region, "size": 4096}),
        ("region 99 is not in its file", lib.FF_MSG_NEIGHBOUR, {"region": 99, "size": 1 << 30}),
        ("no 1 rings of 100 in the file", lib.FF_MSG_SHORTCUT, {"ring_size": 100, "tx_queues": 1, "epoch": 1}),
        ("the head of ring 0 is another's", lib.FF_MSG_SHORTCUT, {"ring_size": 64, "tx_queues": 1, "epoch": 1}),
        ("message 77 is not for now", 77, {}),
    ):
        with pytest.raises(AssertionError, match=reason):
            b.port.do(kind, [fd], **fields)
