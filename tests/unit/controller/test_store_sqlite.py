# SPDX-License-Identifier: Apache-2.0
"""The SQLite store: the common suite, and what only a file can do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from controller.store.base import (
    Compacted,
    LeaseLost,
    Put,
    Store,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    StoreUncertain,
)
from controller.store.sqlite import SqliteStore
from controller.store.sqlite_log import LogWriter
from tests.store_suite import StoreSuite, fill, put, soon

ROOT = Path(__file__).resolve().parents[3]

# Writes until it is killed: one line for each acknowledged put, and many puts under way at once.
WRITER = """
import asyncio, sys
from pathlib import Path
from controller.store.base import Put
from controller.store.sqlite import SqliteStore

async def write(store, name):
    for number in range(10**9):
        await store.txn([], [Put(f"{name}/{number:09d}", b"v" * 100), Put(f"{name}/last", b"%d" % number)])
        print(name, number, flush=True)

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    await asyncio.gather(*(write(store, f"w{index}") for index in range(8)))

asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


class TestSqlite(StoreSuite):
    @pytest_asyncio.fixture
    async def store(self, path: Path) -> AsyncIterator[Store]:
        async with SqliteStore(path) as store:
            yield store


@pytest.mark.parametrize("lines", [1, 200, 1000])
async def test_kill_loses_nothing_acknowledged(path: Path, lines: int) -> None:
    """kill -9 in the middle of writes: what was acknowledged is there, transactions are whole, the file opens."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, str(path), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    output = b""
    try:
        for _ in range(lines):
            output += await soon(process.stdout.readline())
    finally:
        process.kill()
    output += await process.stdout.read()
    assert await process.wait() == -signal.SIGKILL
    acknowledged = [line.split() for line in output.decode().splitlines(keepends=True) if line.endswith("\n")]
    assert len(acknowledged) >= lines
    async with SqliteStore(path) as store:
        listed = await store.range("")
        found = {item.key: item for item in listed.items}
        for name, number in acknowledged:
            assert f"{name}/{int(number):09d}" in found
        for index in range(8):
            numbers = [key for key in found if key.startswith(f"w{index}/") and not key.endswith("last")]
            last = found.get(f"w{index}/last")
            assert len(numbers) == (int(last.value) + 1 if last else 0)
        assert listed.revision == max(item.mod_revision for item in listed.items)
        assert await put(store, "next") == listed.revision + 1
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_everything_survives_a_restart(path: Path) -> None:
    async with SqliteStore(path) as store:
        await put(store, "k", b"1")
        old = await put(store, "k", b"2")
        await store.compact(old - 1)
        before = await store.range("")
    async with SqliteStore(path) as store:
        assert await store.range("") == before
        async with store.watch("", old) as watch:
            batch = await soon(anext(watch))
        assert [event.item for event in batch.events] == list(before.items)


async def test_a_file_without_the_index_of_what_is_over_gets_it(path: Path) -> None:
    async with SqliteStore(path) as store:
        await put(store, "k", b"1")
        newest = await put(store, "k", b"2")
    sqlite(path, "DROP INDEX log_superseded")
    async with SqliteStore(path) as store:
        await store.compact(newest)
        assert [item.value for item in (await store.range("")).items] == [b"2"]
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM log").fetchone() == (1,)
        assert db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'log_superseded'").fetchone() == (1,)


async def test_leases_have_their_full_time_after_a_restart(path: Path) -> None:
    now = 1000.0
    async with SqliteStore(path, lambda: now) as store:
        lease = await store.grant(10)
        await put(store, "k", lease=lease)
        now += 9
    # The clock of the next boot begins somewhere else.
    now = 5.0
    async with SqliteStore(path, lambda: now) as store:
        now += 9
        await put(store, "other")
        assert await store.get("k") is not None
        now += 1
        with pytest.raises(LeaseLost):
            await store.keepalive(lease)
        assert await store.get("k") is None
    async with SqliteStore(path, lambda: now) as store:
        with pytest.raises(LeaseLost):
            await store.keepalive(lease)


async def test_the_file_belongs_to_one_process(path: Path) -> None:
    async with SqliteStore(path) as store:
        with pytest.raises(StoreRefused, match=rf"another controller \(pid {os.getpid()}\) has .*store.db open"):
            SqliteStore(path)
        await put(store, "k")
    async with SqliteStore(path) as store:
        assert await store.get("k") is not None


def sqlite(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(statement)


def garbage(path: Path) -> None:
    path.write_bytes(b"something else" * 100)


def other_program(path: Path) -> None:
    sqlite(path, "CREATE TABLE other (x)")


def newer_version(path: Path) -> None:
    asyncio.run(_make_and_close(path))
    sqlite(path, "PRAGMA user_version = 99")


def directory(path: Path) -> None:
    path.mkdir()


async def _make_and_close(path: Path) -> None:
    await SqliteStore(path).close()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (garbage, StoreRefused, "store.db is not a store: file is not a database: mend it, or move it away"),
        (other_program, StoreRefused, "store.db is another program's SQLite file: give another path"),
        (newer_version, StoreRefused, "store.db has version 99, this controller reads 1"),
        (directory, StoreUnavailable, "store.db: unable to open database file"),
    ],
)
def test_files_that_are_no_stores(
    path: Path, make: Callable[[Path], None], error: type[StoreError], message: str
) -> None:
    make(path)
    for _ in range(2):  # the refusal lets go of the lock, and leaves the file as it is
        with pytest.raises(error, match=re.escape(message)):
            asyncio.run(_make_and_close(path))


def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="No such file or directory"):
        asyncio.run(_make_and_close(tmp_path / "missing" / "store.db"))


async def test_a_write_that_fails_is_told_and_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise sqlite3.OperationalError("database or disk is full")

    async with SqliteStore(path) as store:
        lease = await store.grant(60)
        start = await put(store, "k", b"before", lease)
        for method, error in (("begin", StoreUnavailable), ("txn", StoreUnavailable), ("commit", StoreUncertain)):
            with monkeypatch.context() as patch:
                patch.setattr(LogWriter, method, full)
                with pytest.raises(error, match=r"store.db: database or disk is full"):
                    await put(store, "k", b"failed")
                if method != "txn":
                    with pytest.raises(error):
                        await store.revoke(lease)
            assert [item.value for item in (await store.range("")).items] == [b"before"]
        assert await store.keepalive(lease) == 60
        assert await put(store, "k", b"after") == start + 1


async def test_a_closed_store(path: Path) -> None:
    store = SqliteStore(path)
    waiting = asyncio.create_task(anext(store.watch("", 2)))
    written = [asyncio.create_task(put(store, f"k{index}")) for index in range(50)]
    assert not (await asyncio.wait([waiting], timeout=0))[0]
    await store.close()
    await store.close()
    # What was asked for before is done.
    assert sorted(await asyncio.gather(*written)) == list(range(2, 52))
    with pytest.raises(StopAsyncIteration):
        await soon(waiting)
    for call in (put(store, "k"), store.get("k"), store.keepalive(1)):
        with pytest.raises(StoreUnavailable, match="closed"):
            await call


async def test_a_slow_watch_meets_compaction(path: Path) -> None:
    """It holds no events in memory: what it has not read when they are forgotten it cannot get."""
    async with SqliteStore(path) as store:
        start = await fill(store, "k/", 3000)
        async with store.watch("k/", start) as watch:
            first = await soon(anext(watch))
            assert first.revision < await store.revision()
            await store.txn([], [Put("k/new", b"")])
            await store.compact(await store.revision())
            with pytest.raises(Compacted):
                await soon(anext(watch))
            with pytest.raises(StopAsyncIteration):
                await soon(anext(watch))
