# SPDX-License-Identifier: Apache-2.0
"""Kinds of packet memory: huge pages, more than 32-bit offsets reach, and that of another process."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.machine import huge_pages
from tests.endpoint.application import NO_HUGE
from tests.endpoint.bench import POOL, Bench, Container, connect, introduce
from tests.endpoint.switchside import Port
from vswitch._ff import lib

GB = 1 << 30
LENGTHS = (64, 1500, 9000)
ONE_FILE = ("--in-memory", "--single-file-segments")
FILE_PER_PAGE = ("--in-memory",)


@pytest.fixture
def pages(request: pytest.FixtureRequest) -> Iterator[None]:
    """As many MB of huge pages as the test asks for, which the machine has or gets for as long as the test runs."""
    with huge_pages(request.param) as enough:
        if not enough:
            pytest.skip(f"no {request.param} MB of huge pages are to be had")
        yield


def exchange(a: Container, b: Container) -> None:
    """Frames of all sizes by the switch, and by shortcuts in both directions, where they are not copied."""
    for length in LENGTHS:
        segments = -(-length // 2000)
        a.send(a, length, 10, length, f"{segments} plain")
        for number, frame in enumerate(a.port.take(), start=length):
            assert isinstance(frame, bytes)
            a.port.give(frame)
            assert a.numbers(1) == [number]
    introduce(a, b)
    for sender, receiver in ((a, b), (b, a)):
        shortcut = connect(sender, receiver)
        for number in range(0, 600, 20):  # from all over the pool
            sender.send(receiver, number, 20, 1500)
            got = receiver.receive(20)
            assert [(n, outside) for n, _, _, outside in got] == [(n, True) for n in range(number, number + 20)]
            sender.app.do("poll 1")
        shortcut.close()
        sender.app.do("poll 1")
        sender.port.take()
        shortcut.drop()
    for one in (a, b):
        one.stop()
        assert one.available() == POOL


@pytest.mark.parametrize("pages", [160], indirect=True)
def test_huge_pages_in_one_file(pages: None, bench: Bench) -> None:
    a, b = (bench.container(name, eal=ONE_FILE) for name in "ab")
    assert len(a.port.regions) == 1
    assert sum(size for *_, size in a.port.regions) >= 64 << 20
    exchange(a, b)


@pytest.mark.parametrize("pages", [160], indirect=True)
def test_huge_pages_in_a_file_each(pages: None, bench: Bench) -> None:
    a, b = (bench.container(name, eal=FILE_PER_PAGE) for name in "ab")
    assert {size for *_, size in a.port.regions} == {2 << 20}
    assert len(a.port.regions) >= 32
    exchange(a, b)


@pytest.mark.parametrize("pages", [300], indirect=True)
def test_more_files_than_a_port_takes(pages: None, bench: Bench, tmp_path: Path) -> None:
    port = Port(tmp_path, "web0", "02:00:00:00:00:01")
    app = bench.application(f"path={port.path}", eal=(*FILE_PER_PAGE, "-m", "256"))
    port.welcome()
    app.hear("ready")
    app.do("setup")
    assert app.do("start") != "0"
    advice = "start the application with --in-memory --single-file-segments, or with --no-huge"
    assert f"net_ff0: packet memory lies in more than {lib.FF_SHM_REGIONS} files: {advice}" in app.log


def test_more_than_offsets_reach(bench: Bench) -> None:
    """It is shared as several regions; where one ends and the next begins a buffer is copied."""
    a, b = (bench.container(name, eal=(*NO_HUGE, "-m", "4608")) for name in "ab")
    first, second = a.port.regions
    assert (first[1:], second[1:]) == ((0, 4 * GB), (4 * GB, 512 << 20))
    exchange(a, b)


def test_a_neighbour_with_more_than_offsets_reach(bench: Bench) -> None:
    a = bench.container("a")
    fd, _, _ = a.port.regions[0]
    with pytest.raises(AssertionError, match=r"region 999 has 4294967297 bytes: 32-bit offsets reach 4 GB"):
        a.port.do(lib.FF_MSG_NEIGHBOUR, [fd], region=999, size=4 * GB + 1)
    a.send(a, 0, 10)
    assert len(a.port.take()) == 10


@pytest.fixture
def huge_dir(tmp_path: Path) -> Iterator[Path]:
    """Processes that share memory need files of huge pages with names."""
    directory = tmp_path / "huge"
    directory.mkdir()
    subprocess.run(["mount", "-t", "hugetlbfs", "none", directory], check=True)
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)  # this process has some of it mapped


@pytest.mark.parametrize("pages", [80], indirect=True)
def test_a_secondary_process_is_refused(
    pages: None, huge_dir: Path, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    eal = ("--file-prefix", "shared", "--huge-dir", str(huge_dir), "--no-telemetry")
    port = Port(tmp_path, "web0", "02:00:00:00:00:01")
    primary = bench.application(f"path={port.path}", eal=eal)
    port.welcome()
    primary.hear("ready")
    log = bench.application(eal=(*eal, "--proc-type=secondary")).end()
    why = "is for primary processes only: start the application without --proc-type=secondary"
    assert [line for line in log.splitlines() if line.startswith("net_ff")] == [f"net_ff0: {why}"]
    primary.do("setup")
    primary.say("start")
    port.start(1)
    assert primary.hear("start") == "0"
