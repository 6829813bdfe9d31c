# SPDX-License-Identifier: Apache-2.0
"""The driver's beginning and end: arguments, the greeting, start, stop, reconnection."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.endpoint.bench import POOL, Bench
from tests.endpoint.switchside import Port


@pytest.mark.parametrize(
    ("device", "line"),
    [
        ("path=/nowhere/ff.sock", "cannot connect to /nowhere/ff.sock: No such file or directory"),
        ("mac=02:00:00:00:00:01", "give it the port's socket: path=/run/ffswitch/ports/NAME/ff.sock"),
        ("path=/x,queues=3", "unknown argument in 'path=/x,queues=3': there are path= and mac="),
        ("path=/x,mac=ff:ff:ff:ff:ff:ff", "mac=ff:ff:ff:ff:ff:ff is no unicast MAC address"),
        (f"path=/{'x' * 120}", "path= takes a socket of at most 107 bytes"),
    ],
)
def test_bad_arguments_get_one_line(bench: Bench, device: str, line: str) -> None:
    log = bench.application(device).end()
    assert log.count("net_ff0: ") == 1
    assert f"net_ff0: {line}" in log


def test_a_refusal_is_told(bench: Bench, tmp_path: Path) -> None:
    port = Port(tmp_path, "web0", "02:00:00:00:00:01")
    app = bench.application(f"path={port.path}")
    port.refuse("port web0 has a container already")
    assert f"net_ff0: cannot connect to {port.path}: port web0 has a container already;" in app.end()


def test_the_start_is_refused(bench: Bench, tmp_path: Path) -> None:
    port = Port(tmp_path, "web0", "02:00:00:00:00:01")
    app = bench.application(f"path={port.path}")
    port.welcome()
    app.hear("ready")
    app.do("setup")
    app.say("start")
    port.refuse_start("no memory for its rings")
    assert app.hear("start") != "0"
    assert "net_ff0: the switch does not start port web0: no memory for its rings" in app.log
    app.say("start")
    port.start(1)
    assert app.hear("start") == "0"


def test_stop_and_start_again(bench: Bench) -> None:
    a = bench.container("a")
    for _ in range(3):
        a.send(a, 0, 10)
        assert len(a.port.take()) == 10
        a.stop()
        assert a.available() == POOL
        a.start()
    a.stop()
    assert a.app.do("close") == "0"
    a.app.say("quit")
    a.app.end()
    assert a.app.process.returncode == 0


def test_the_switch_comes_back(bench: Bench) -> None:
    a = bench.container("a")
    a.send(a, 0, 10)
    a.port.hang_up()
    assert a.app.do("link 0") == "0"
    assert a.app.do(f"tx {a.mac} 0 1 100", "sent") == "0"
    a.port.welcome()
    a.port.start(50)
    assert a.app.do("link 1") == "1"
    a.send(a, 20, 3)
    frames = a.port.take()
    assert len(frames) == 3
    a.port.give(bytes(frames[0]))
    assert a.numbers(1) == [20]
    a.stop()
    assert a.available() == POOL


def test_frames_by_the_switch(bench: Bench) -> None:
    a = bench.container("a")
    for length in (64, 1500, 9000):
        for segments in (1, 3, 5):
            if length > 2000 * segments:
                continue
            a.send(a, length, 10, length, f"{segments} plain")
            frames = a.port.take()
            assert [len(frame) for frame in frames] == [length] * 10
            for frame in frames:
                a.port.give(bytes(frame), piece=1000)
                expected = (length, -(-length // 1000))
                assert [(n, s) for _, n, s, _ in a.receive(1)] == [expected]


def test_full_rings_hold_frames_back(bench: Bench) -> None:
    a = bench.container("a")
    assert a.app.do(f"tx {a.mac} 0 200 100", "sent") == "64"
    assert len(a.port.take()) == 64
    a.send(a, 64, 64)
    assert a.app.stats()["tx_ring_full"] == 1


def test_several_devices(bench: Bench, tmp_path: Path) -> None:
    ports = [Port(tmp_path, f"p{i}", f"02:00:00:00:00:0{i}") for i in range(3)]
    app = bench.application(*(f"path={port.path}" for port in ports))
    for port in ports:
        port.welcome()
    assert app.hear("ready") == "3"
    for i, port in enumerate(ports):
        app.do(f"port {i}")
        app.do("setup")
        app.say("start")
        port.start(10 * i)
        assert app.hear("start") == "0"
    for i, port in enumerate(ports):
        app.do(f"port {i}")
        assert app.do(f"tx {port.mac} 0 5 100", "sent") == "5"
        assert len(port.take()) == 5
        app.say("stop")
        port.stopped()
        assert (app.hear("stop"), app.do("close")) == ("0", "0")
    assert app.do("avail") == str(POOL)


def test_every_queue(bench: Bench) -> None:
    a = bench.container("a", "3 2 128")
    assert (a.port.n_rx, a.port.n_tx, a.port.ring_size) == (3, 2, 128)
    a.send(a, 7, 1)
    (frame,) = a.port.take()
    for queue in range(3):
        a.port.give(bytes(frame), queue)
    assert a.numbers(3) == [7, 7, 7]
