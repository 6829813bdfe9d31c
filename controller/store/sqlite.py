# SPDX-License-Identifier: Apache-2.0
"""The embedded store, for one controller: an SQLite file.

One thread writes. It takes all requests that wait, does them in one SQLite transaction and commits once for all of
them, so many small writes share the price of one fsync. Two more threads read, one of them for watches only, so that a
long range does not hold up events.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from controller.store.base import (
    FIRST_CHANGE,
    Batch,
    Compare,
    KeyValue,
    Op,
    RangeResult,
    Store,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    StoreUncertain,
    TxnResult,
    Watch,
    check_key,
    check_ttl,
    check_txn,
)
from controller.store.sqlite_log import LogReader, LogWriter

# Requests that share one commit at most, so that the first of them does not wait for too many others.
GROUP = 1000

T = TypeVar("T")


class SqliteStore(Store):
    """A store in the file `path`, which belongs to one process at a time (`path`.lock says which)."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Blocks for the opening of the file; made in a coroutine, since it belongs to the running event loop.

        Leases in the file get their full time from now on, by `clock` (seconds, monotonic). Raises StoreRefused when
        another process has the file or it is not such a file, StoreUnavailable when it cannot be opened.
        """
        self._path = path
        self._watches: set[_SqliteWatch] = set()
        self._closed = False
        with contextlib.ExitStack() as undo:
            try:
                self._lock = _lock(path)
                undo.callback(os.close, self._lock)
                writer = LogWriter(path, clock)
                undo.callback(writer.close)
                self.committed = writer.revision()
                self._reads = _Reader(path)
                undo.callback(self._reads.close)
                self._events = _Reader(path)
            except OSError as error:
                raise StoreUnavailable(f"{path}: {error.strerror}") from None
            except sqlite3.OperationalError as error:
                raise StoreUnavailable(f"{path}: {error}") from None
            except sqlite3.Error as error:
                raise StoreRefused(f"{path} is not a store: {error}: mend it, or move it away to start empty") from None
            undo.pop_all()
        self._writer = _Writer(path, writer, self._wake)

    async def get(self, key: str) -> KeyValue | None:
        check_key(key)
        return await self._reads.call(lambda log: log.get(key))

    async def range(self, prefix: str, revision: int = 0) -> RangeResult:
        return await self._reads.call(lambda log: log.range(prefix, revision))

    async def revision(self) -> int:
        return self.committed

    async def txn(self, compares: Sequence[Compare], then: Sequence[Op], orelse: Sequence[Op] = ()) -> TxnResult:
        check_txn(compares, then, orelse)
        return await self._writer.call(lambda log: log.txn(compares, then, orelse))

    def watch(self, prefix: str, from_revision: int) -> Watch:
        watch = _SqliteWatch(self, prefix, from_revision)
        self._watches.add(watch)
        return watch

    async def grant(self, ttl: int) -> int:
        check_ttl(ttl)
        return await self._writer.call(lambda log: log.grant(ttl))

    async def keepalive(self, lease: int) -> int:
        return await self._writer.call(lambda log: log.keepalive(lease), writes=False)

    async def revoke(self, lease: int) -> None:
        await self._writer.call(lambda log: log.revoke(lease))

    async def compact(self, revision: int) -> None:
        await self._writer.call(lambda log: log.compact(revision))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for watch in list(self._watches):
            await watch.close()
        self._writer.stop()
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._reads.close()
        self._events.close()
        self._writer.join()
        os.close(self._lock)

    def _wake(self, revision: int) -> None:
        if revision > self.committed:
            self.committed = revision
            for watch in self._watches:
                watch.wake.set()

    async def read_events(self, prefix: str, from_revision: int) -> Batch:
        """For the watches: `LogReader.events` in their thread."""
        return await self._events.call(lambda log: log.events(prefix, from_revision))

    def forget(self, watch: _SqliteWatch) -> None:
        """For a watch that ends."""
        self._watches.discard(watch)


class _SqliteWatch(Watch):
    """Reads the log from its own position on whenever something was committed; holds no events, so it may be slow."""

    def __init__(self, store: SqliteStore, prefix: str, from_revision: int) -> None:
        self.wake = asyncio.Event()
        self._store = store
        self._prefix = prefix
        self._next = max(FIRST_CHANGE, from_revision)
        self._open = True

    async def __anext__(self) -> Batch:
        while self._open:
            self.wake.clear()
            if self._next > self._store.committed:
                await self.wake.wait()
                continue
            try:
                batch = await self._store.read_events(self._prefix, self._next)
            except StoreError:
                await self.close()
                raise
            if not self._open:
                break
            self._next = batch.revision + 1
            if batch.events:
                return batch
        raise StopAsyncIteration

    async def close(self) -> None:
        self._open = False
        self._store.forget(self)
        self.wake.set()


class _Reader:
    """A thread that reads the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = LogReader(path)
        self._thread = ThreadPoolExecutor(1, "store-read")

    async def call(self, read: Callable[[LogReader], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, read, self._log)
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{self._path}: {error}") from None
        except RuntimeError:
            raise StoreUnavailable(f"{self._path}: the store is closed") from None

    def close(self) -> None:
        self._thread.shutdown()
        self._log.close()


@dataclass(frozen=True, slots=True)
class _Request:
    change: Callable[[LogWriter], Any]
    answer: asyncio.Future[Any]
    writes: bool


class _Writer:
    """The thread that writes: requests in, group commits, answers and the new revision back to the event loop."""

    def __init__(self, path: Path, log: LogWriter, committed: Callable[[int], None]) -> None:
        """Owns `log` from now on; `committed` is called in the event loop after each commit, with its revision."""
        self._path = path
        self._log = log
        self._committed = committed
        self._loop = asyncio.get_running_loop()
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="store-write", daemon=True)
        self._thread.start()

    async def call(self, change: Callable[[LogWriter], T], *, writes: bool = True) -> T:
        """What `change` returned or raised, once that is durable. Cancelling does not take the request back.

        One that does not write the file costs no transaction of SQLite.
        """
        if self._closing:
            raise StoreUnavailable(f"{self._path}: the store is closed")
        answer: asyncio.Future[T] = self._loop.create_future()
        self._requests.put(_Request(change, answer, writes))
        return await answer

    def stop(self) -> None:
        """Take no more requests; called in the event loop, so that none can come after the end mark."""
        self._closing = True
        self._requests.put(None)

    def join(self) -> None:
        """Wait until what was asked for before `stop` is done. Blocks."""
        self._thread.join()
        self._log.close()

    def _run(self) -> None:
        last = False
        while not last:
            group: list[_Request] = []
            with contextlib.suppress(queue.Empty):
                request = self._requests.get(timeout=self._log.next_expiry())
                while request is not None and len(group) < GROUP - 1:
                    group.append(request)
                    request = self._requests.get_nowait()
                if request is None:
                    last = True
                else:
                    group.append(request)
            self._commit(group)

    def _commit(self, group: list[_Request]) -> None:
        results: list[tuple[_Request, Any, Exception | None]] = []
        failure: type[StoreError] = StoreUnavailable
        try:
            if self._log.next_expiry() == 0.0 or any(request.writes for request in group):
                self._log.begin()
                self._log.expire()
            for request in group:
                try:
                    results.append((request, request.change(self._log), None))
                except StoreError as error:
                    results.append((request, None, error))
            # What a failed COMMIT left on the disk is known after the next start only.
            failure = StoreUncertain
            revision = self._log.commit()
        except Exception as error:  # whatever it is, it must reach those who wait, and this thread must go on
            what = failure(f"{self._path}: {error}")
            results = [(request, None, what) for request in group]
            revision = 0
            with contextlib.suppress(sqlite3.Error):
                self._log.rollback()
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._answer, results, revision)

    def _answer(self, results: list[tuple[_Request, Any, Exception | None]], revision: int) -> None:
        self._committed(revision)
        for request, result, error in results:
            if request.answer.done():
                continue
            if error is not None:
                request.answer.set_exception(error)
            else:
                request.answer.set_result(result)


def _lock(path: Path) -> int:
    """A descriptor that holds flock(2) on `path`.lock until it is closed.

    Not on the file itself: closing any descriptor of it would drop SQLite's own locks (POSIX).
    """
    lock = path.with_name(path.name + ".lock")
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
    except BlockingIOError:
        pid = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise StoreRefused(f"another controller (pid {pid}) has {path} open: stop it, or give another file") from None
    except OSError:
        os.close(fd)
        raise
    return fd
