# SPDX-License-Identifier: Apache-2.0
"""Containers at the socket of a memory port: set-up, use, tear-down, and what is left of them when they go."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import mmap
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from tests.unit.memory.scripted import DEADLINE, PAGE, Bench, Scripted, held, tick
from vswitch.slowpath.memory import files, wire
from vswitch.slowpath.memory.wire import MsgType
from vswitch.slowpath.types import PortState


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()
    await settle()
    assert held() == bench.before


async def settle() -> None:
    for _ in range(20):
        await tick()


@pytest.fixture
def connect(bench: Bench) -> Callable[[str], Scripted]:
    return lambda name: Scripted(bench.entry(name).config.socket)


Connect = Callable[[str], Scripted]


async def both(bench: Bench, connect: Connect) -> tuple[Scripted, Scripted]:
    """Two containers that run."""
    for name in ("a", "b"):
        bench.add(name)
    ends = connect("a"), connect("b")
    for end in ends:
        await end.start()
    bench.switch.on_events()
    return ends


async def shortcut(bench: Bench, connect: Connect) -> tuple[Scripted, Scripted]:
    """And with a shortcut from the first to the second."""
    a, b = await both(bench, connect)
    bench.promote("a", "b")
    await b.answer(MsgType.NEIGHBOUR)
    await asyncio.gather(b.answer(MsgType.SHORTCUT), a.answer(MsgType.SHORTCUT))
    await bench.fake.until(lambda: "open" in bench.fake.shortcuts.values())
    return a, b


# ---- set-up ---------------------------------------------------------------------


async def test_states(bench: Bench, connect: Connect) -> None:
    entry = bench.add("a", mtu=9000, queues=2)
    assert (entry.state, entry.config.socket) == (PortState.WAITING, str(bench.run_dir / "ports/a/ff.sock"))
    assert os.stat(entry.config.socket).st_mode & 0o777 == 0o660  # noqa: PTH116
    assert Path(entry.config.socket).parent.stat().st_mode & 0o7777 == 0o2770
    a = connect("a")
    welcome = await a.hello()
    assert (welcome.mac, welcome.mtu, welcome.queues, welcome.text) == (bench.mac("a"), 9000, 2, "a")
    assert entry.state is PortState.NEGOTIATING
    assert entry.reason.startswith(f"app (process {os.getpid()}")
    a.region(0)
    await bench.until("memory-mapped", "a")
    a.region(1)
    a.send(MsgType.START, rx_queues=2, tx_queues=1, ring_size=128)
    received = await a.receive()
    assert received is not None
    rings, fds = received
    assert (rings.type, len(fds)) == (MsgType.RINGS, 3)
    conf = bench.fake.attached[entry.id]
    assert (len(conf.regions), conf.first_region, conf.rx_queues, conf.tx_queues) == (2, rings.region, 2, 1)
    assert os.fstat(fds[0]).st_size == 2 * 2 * files.ring_bytes(128)
    assert fcntl.fcntl(fds[0], fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    with pytest.raises(PermissionError):
        mmap.mmap(fds[1], 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    bench.switch.on_events()
    assert entry.up
    assert bench.core.fdb()[0].mac == bench.mac("a")  # it never sent anything
    a.close()
    await bench.until("lost", "a")
    assert entry.reason == "the container has left"
    assert not bench.fake.attached
    again = connect("a")
    await again.start()
    await bench.until("ready", "a")
    again.close()


async def test_stop_and_start(bench: Bench, connect: Connect) -> None:
    a, b = await shortcut(bench, connect)
    a.send(MsgType.STOP, serial=77)
    drop = await a.answer(MsgType.DROP)
    assert drop.flags == wire.OUT
    await b.answer(MsgType.DROP)
    await b.answer(MsgType.UNMAP)
    assert (await a.expect(MsgType.DONE)).serial == 77
    assert list(bench.fake.attached) == [bench.entry("b").id]
    assert not bench.fake.shortcuts
    a.region(0)
    a.send(MsgType.START, rx_queues=1, tx_queues=1, ring_size=64)
    await a.expect(MsgType.RINGS)
    for end in (a, b):
        end.close()


async def test_one_at_a_time(bench: Bench, connect: Connect) -> None:
    bench.add("a")
    first, second = connect("a"), connect("a")
    await first.hello()
    assert await second.hung_up() == "another container has this port"
    for end in (first, second):
        end.close()


@pytest.mark.parametrize(
    ("region", "why"),
    [
        ({"size": 0}, "memory that begins at no page"),
        ({"offset": 5}, "memory that begins at no page"),
        ({"offset": 4 * PAGE}, "memory beyond the end of its file"),
        ({"size": 8 * PAGE}, "memory beyond the end of its file"),
        ({"size": 2**64 - PAGE, "offset": 2 * PAGE}, "a region of 18446744073709547520 bytes"),
        ({"number": 3}, "it sent region 3 after 0 others"),
    ],
)
async def test_bad_memory(bench: Bench, connect: Connect, region: dict[str, int], why: str) -> None:
    bench.add("a")
    a = connect("a")
    await a.hello()
    a.region(**region)
    assert why in await a.hung_up()
    assert why in bench.entry("a").reason
    a.close()


async def test_too_many_regions(bench: Bench, connect: Connect) -> None:
    bench.add("a")
    a = connect("a")
    await a.hello()
    for number in range(wire.REGIONS_MAX):
        a.region(number)
        await tick()
    a.region(wire.REGIONS_MAX)
    assert "--single-file-segments" in await a.hung_up()
    a.close()


async def test_memory_that_is_no_file(bench: Bench, connect: Connect) -> None:
    bench.add("a")
    a = connect("a")
    await a.hello()
    read, write = os.pipe()
    a.send(MsgType.REGION, [read], size=PAGE)
    assert "memory that is no file" in await a.hung_up()
    for fd in (read, write):
        os.close(fd)
    a.close()


def _hello_again(a: Scripted) -> None:
    a.send(MsgType.HELLO, version=wire.VERSION)


def _unknown_type(a: Scripted) -> None:
    a.sock.send(b"\xff" * wire.SIZE)


def _short(a: Scripted) -> None:
    a.sock.send(b"\1\0")


def _long(a: Scripted) -> None:
    a.sock.send(bytes(1) + bytes(100_000))


def _ours(a: Scripted) -> None:
    a.send(MsgType.SHORTCUT)


def _unasked(a: Scripted) -> None:
    a.send(MsgType.DONE, serial=5)


def _start_without_memory(a: Scripted) -> None:
    a.send(MsgType.START, rx_queues=1, tx_queues=1, ring_size=64)


def _many_descriptors(a: Scripted) -> None:
    fds = [os.dup(0) for _ in range(40)]
    a.send(MsgType.REGION, fds)
    for fd in fds:
        os.close(fd)


def _descriptors_with_start(a: Scripted) -> None:
    a.send(MsgType.START, [0], rx_queues=1, tx_queues=1, ring_size=64)


@pytest.mark.parametrize(
    ("nonsense", "why"),
    [
        (_hello_again, "it sent HELLO while set-up"),
        (_unknown_type, "a message of unknown type 65535"),
        (_short, "a message of 2 bytes"),
        (_long, "a message of"),
        (_ours, "which is the switch's to send"),
        (_unasked, "it sent DONE to nothing that it was asked"),
        (_start_without_memory, "it shares no memory"),
        (_many_descriptors, "more than 18 file descriptors"),
        (_descriptors_with_start, "file descriptors with START"),
    ],
)
async def test_nonsense(
    bench: Bench,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    nonsense: Callable[[Scripted], None],
    why: str,
) -> None:
    bench.add("a")
    a = connect("a")
    await a.hello()
    with caplog.at_level(logging.INFO):
        nonsense(a)
        await a.hung_up()
        await bench.until("lost", "a")
    assert [why in record.message for record in caplog.records] == [True]
    a.close()


async def test_wrong_version(bench: Bench, connect: Connect) -> None:
    bench.add("a")
    a = connect("a")
    a.send(MsgType.HELLO, version=99)
    assert "version 99" in await a.hung_up()
    a.close()


async def test_after_nonsense_it_waits(bench: Bench, connect: Connect) -> None:
    bench.add("a")
    a = connect("a")
    _unasked(a)
    await a.hung_up()
    a.close()
    again = connect("a")
    await again.start()  # a second later
    again.close()


async def test_memory_refused_by_the_fast_path(bench: Bench, connect: Connect) -> None:
    bench.add("a")
    bench.fake.refuse_memory = "region 0: Cannot allocate memory"
    a = connect("a")
    await a.hello()
    a.region()
    a.send(MsgType.START, rx_queues=1, tx_queues=1, ring_size=64)
    assert await a.hung_up() == "its memory cannot be used: region 0: Cannot allocate memory"
    a.close()


# ---- shortcuts --------------------------------------------------------------------


async def test_a_shortcut(bench: Bench, connect: Connect) -> None:
    a, b = await both(bench, connect)
    bench.promote("a", "b")
    neighbour = await b.answer(MsgType.NEIGHBOUR)
    assert (neighbour.region, neighbour.size, neighbour.flags) == (1, 4 * PAGE, 0)
    incoming = await b.answer(MsgType.SHORTCUT)
    assert not bench.fake.shortcuts
    outgoing = await a.answer(MsgType.SHORTCUT)
    assert (incoming.flags, outgoing.flags, incoming.epoch) == (0, wire.OUT, outgoing.epoch)
    await bench.fake.until(lambda: bool(bench.fake.shortcuts))
    (_, opened), *_ = bench.fake.shortcut_calls
    assert (opened.mac, opened.max_len, opened.queues) == (bench.mac("b"), 1514, 1)
    for end in (a, b):
        end.close()


async def test_trust_taken_back(bench: Bench, connect: Connect) -> None:
    a, b = await shortcut(bench, connect)
    bench.switch.change("b", {"trust_domain": "blue"})
    assert list(bench.fake.shortcuts.values()) == ["closed"]  # when the call returns
    await a.answer(MsgType.DROP)
    await b.answer(MsgType.DROP)
    await b.answer(MsgType.UNMAP)
    await bench.fake.until(lambda: not bench.fake.shortcuts)
    bench.promote("a", "b")
    assert not bench.switch.shortcuts.core.cuts
    for end in (a, b):
        end.close()


async def test_read_only(bench: Bench, connect: Connect) -> None:
    a, b = await both(bench, connect)
    bench.switch.change("a", {"memory": "read-only"})
    bench.promote("a", "b")
    received = await b.receive()
    assert received is not None
    message, (fd,) = received
    assert (message.type, message.flags) == (MsgType.NEIGHBOUR, wire.READ_ONLY)
    with pytest.raises(PermissionError):
        mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    with mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ):
        pass
    assert os.fstat(fd).st_mode & 0o777 == 0
    for end in (a, b):
        end.close()


@pytest.mark.parametrize("step", range(7))
@pytest.mark.parametrize("victim", ["a", "b"])
async def test_death_at_each_step(bench: Bench, connect: Connect, victim: str, step: int) -> None:
    a, b = await both(bench, connect)
    ends = {"a": a, "b": b}
    bench.promote("a", "b")
    steps = [
        (b, MsgType.NEIGHBOUR),
        (b, MsgType.SHORTCUT),
        (a, MsgType.SHORTCUT),
        None,
        (a, MsgType.DROP),
        (b, MsgType.DROP),
    ]
    for item in steps[:step]:
        if item is None:
            await bench.fake.until(lambda: bool(bench.fake.shortcuts))
            bench.switch.change("a", {"trust_domain": "blue"})
        else:
            await item[0].answer(item[1])
    ends.pop(victim).close()
    await bench.until("lost", victim)
    assert bench.entry(victim).id not in bench.fake.attached
    (other,) = ends.values()
    async with asyncio.timeout(DEADLINE):
        while bench.switch.shortcuts.core.cuts or any(c.sid for c in bench.switch.shortcuts.core._unreleased.values()):
            try:
                async with asyncio.timeout(0.2):
                    received = await other.receive()
            except TimeoutError:
                continue
            assert received is not None
            if received[0].serial:
                other.send(MsgType.DONE, serial=received[0].serial)
    assert not bench.fake.shortcuts
    other.close()


async def test_port_deleted_under_a_shortcut(bench: Bench, connect: Connect) -> None:
    a, b = await shortcut(bench, connect)
    bench.switch.remove("b")
    assert "the port was deleted" in await b.hung_up()
    assert list(bench.fake.shortcuts.values()) == ["closed"]
    await a.answer(MsgType.DROP)
    await a.answer(MsgType.RECLAIM)
    await bench.fake.until(lambda: not bench.fake.shortcuts)
    for end in (a, b):
        end.close()


async def test_the_fast_path_stops_a_port(bench: Bench, connect: Connect) -> None:
    a, b = await shortcut(bench, connect)
    bench.fake.set_state(bench.entry("a").id, PortState.LOST, "a bad slot")
    bench.switch.on_events()
    assert (bench.entry("a").state, bench.entry("a").reason) == (PortState.LOST, "a bad slot")
    assert await a.hung_up() == "a bad slot"
    assert bench.entry("b").up
    for end in (a, b):
        end.close()


async def test_refused_for_some_time(bench: Bench, connect: Connect) -> None:
    a, b = await both(bench, connect)
    bench.promote("a", "b")
    await b.answer(MsgType.NEIGHBOUR, error="no room")
    await settle()
    bench.promote("a", "b")
    assert not bench.switch.shortcuts.core.cuts
    bench.now += 1
    bench.promote("a", "b")
    assert len(bench.switch.shortcuts.core.cuts) == 1
    for end in (a, b):
        end.close()


async def test_a_reader_that_does_not_read(bench: Bench, connect: Connect) -> None:
    a, b = await both(bench, connect)
    container = next(iter(bench.switch.shortcuts._containers.values()))
    for mtu in range(10_000):
        container.send(wire.Message(MsgType.LINK, mtu=mtu))
    await bench.until("lost", "a")
    assert bench.entry("a").reason == "it takes no messages"
    for end in (a, b):
        end.close()
