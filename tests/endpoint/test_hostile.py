# SPDX-License-Identifier: Apache-2.0
"""Neighbours that break the rules of their rings: it costs them the shortcut, and nobody anything else."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

from tests.endpoint.application import REPOSITORY
from tests.endpoint.bench import Bench, Container, connect, introduce
from tests.endpoint.switchside import Shortcut, ring_bytes
from vswitch._ff import lib

ROUNDS = int(os.environ.get("FFSWITCH_SCRIBBLES", "20000"))
SCRIBBLER = REPOSITORY / "build/endpoint/scribbler"


def desc(container: Container, **fields: Any) -> dict[str, Any]:
    """Return a descriptor that is right, but for the fields given."""
    good = {"offset": 1 << 20, "region": container.first_region, "len": 64, "before": 128, "behind": 128, "lap": 1}
    return good | fields


@pytest.mark.parametrize(
    ("fields", "tail", "fault"),
    [
        ({"region": 9999}, 1, "a buffer outside of the memory that is mapped"),
        ({"offset": 100}, 1, "a buffer outside of the memory that is mapped"),
        ({"offset": (64 << 20) - 100}, 1, "a buffer outside of the memory that is mapped"),
        ({"offset": 0xFFFFFFFF, "before": 0}, 1, "a buffer outside of the memory that is mapped"),
        ({"len": 0}, 1, "a buffer outside of the memory that is mapped"),
        ({"behind": 65535}, 1, "a buffer outside of the memory that is mapped"),
        ({"slot": 64}, 1, "a slot beyond the ring"),
        ({"lap": 2}, 1, "a slot out of its turn"),
        ({"flags": 1}, 1, "a frame without an end"),
        ({"flags": 2}, 1, "a frame without an end"),
        ({}, 65, "an index beyond the ring"),
        ({}, 0xFFFFFFFF, "an index beyond the ring"),
        ({}, 2, "a slot out of its turn"),
    ],
)
def test_a_broken_rule_ends_the_ring(bench: Bench, fields: dict[str, Any], tail: int, fault: str) -> None:
    a, b = bench.container("a"), bench.container("b")
    introduce(a, b)
    shortcut = connect(a, b)
    for i in range(2):
        descriptor = shortcut.rings.desc(0)[i]
        for name, value in desc(a, **fields).items():
            setattr(descriptor, name, value)
    shortcut.rings.head(0).tail = tail
    b.app.do("poll 10")
    assert b.port.told() == [f"shortcut 0 from a is not used any more: {fault}"]
    assert b.app.stats()["rx_invalid_descriptors"] == 1
    b.send(b, 0, 10)
    for frame in b.port.take():
        b.port.give(bytes(frame))
    assert b.numbers(10) == list(range(10))
    shortcut.close()
    shortcut.drop()


def test_the_switch_breaks_its_own_rule(bench: Bench) -> None:
    a = bench.container("a")
    a.port.rings.head(1).used_tail = 1000
    a.app.do("poll 5")
    with pytest.raises(ConnectionResetError):
        a.port.receive()
    a.port.hang_up()
    a.port.welcome()
    a.port.start(50)
    assert a.app.do("link 1") == "1"


def scribble(shortcut: Shortcut, seed: int) -> subprocess.Popen[bytes]:
    """Let another process write at random into the rings of a shortcut."""
    size = shortcut.sender.ring_size
    heads = [str(n * ring_bytes(size)) for n in range(shortcut.sender.n_tx)]
    fd = shortcut.rings.file.fd
    bytes_ = len(heads) * ring_bytes(size)
    return subprocess.Popen([SCRIBBLER, str(fd), str(bytes_), str(ROUNDS), str(seed), *heads], pass_fds=[fd])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_writes_harm_nobody_else(bench: Bench, seed: int) -> None:
    a, b = bench.container("a"), bench.container("b")
    introduce(a, b)
    forth, back = connect(a, b), connect(b, a)
    a.send(b, 0, 20)
    b.receive(5, hold=True)
    b.send(a, 0, 20)
    writers = [scribble(forth, seed), scribble(back, seed + 100)]
    running = True
    while running:
        running = any(writer.poll() is None for writer in writers)
        for at, to in ((a, b), (b, a)):
            at.app.do("poll 50")
            at.app.do(f"tx {to.mac} 0 20 1500 2", "sent")
            at.port.take()
    forth.rings.head(0).tail ^= 1 << 31  # should all that was written have been harmless
    b.app.do("poll 50")
    assert any(error.startswith("shortcut 0 from a is not used any more: ") for error in b.port.told())
    for at in (a, b):
        at.app.do("poll 50")
        assert at.port.sock
    for shortcut in (forth, back):
        shortcut.close()
        shortcut.sender.do(lib.FF_MSG_DROP, number=0, flags=lib.FF_MSG_OUT)
        shortcut.sender.do(lib.FF_MSG_RECLAIM, number=0)
    b.app.do("free", "freed")
    for at in (a, b):
        at.port.do(lib.FF_MSG_DROP, number=0)
        at.send(at, 0, 10)
        assert len(at.port.take()) >= 10
        at.stop()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_table_of_nonsense(bench: Bench, seed: int) -> None:
    a, b = bench.container("a"), bench.container("b")
    introduce(a, b)
    connect(a, b)
    for round_ in range(200):
        for port in (a.port, b.port):
            port.scribble_table(seed * 1000 + round_)
        a.app.do(f"tx {b.mac} 0 5 100", "sent")
        b.app.do("poll 3")
        a.port.take()
    for at in (a, b):
        at.stop()
