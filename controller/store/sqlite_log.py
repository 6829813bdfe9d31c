# SPDX-License-Identifier: Apache-2.0
"""The SQLite file: each change of a key is one row of the log, which is event log and state at once. Blocking calls.

A row lives from its revision until `superseded`, the revision that replaced it. So the state at revision r is what has
`revision <= r < superseded`, the events after r are the rows after r, and compaction drops what was superseded by then.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from controller.store.base import (
    Batch,
    Compacted,
    Compare,
    Delete,
    DeletePrefix,
    Event,
    Get,
    KeyValue,
    LeaseLost,
    Op,
    OpResult,
    Put,
    RangeResult,
    StoreRefused,
    TxnResult,
    holds,
    prefix_range,
)

VERSION = 1
APPLICATION_ID = 0x66667363  # "ffsc", see https://sqlite.org/pragma.html#pragma_application_id
LIVE = 2**63 - 1
# Rows of one batch of events; more when a single revision has more.
BATCH_ROWS = 1000

# A tombstone has value NULL and superseded = revision, so it is in no state and is compacted like what it deleted.
SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE log (
    revision INTEGER NOT NULL, key BLOB NOT NULL, value BLOB, create_revision INTEGER NOT NULL,
    version INTEGER NOT NULL, lease INTEGER NOT NULL, superseded INTEGER NOT NULL, PRIMARY KEY (revision, key)
) WITHOUT ROWID;
CREATE INDEX log_key ON log (key, superseded);
CREATE INDEX log_lease ON log (lease, superseded) WHERE lease != 0;
CREATE TABLE meta (revision INTEGER NOT NULL, compacted INTEGER NOT NULL);
CREATE TABLE lease (id INTEGER PRIMARY KEY, ttl INTEGER NOT NULL);
INSERT INTO meta VALUES (1, 0);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
COMMIT;
"""
# Compaction looks at what was superseded only. Files of before it was there get it as well.
_INDEX = f"CREATE INDEX IF NOT EXISTS log_superseded ON log (superseded) WHERE superseded < {LIVE}"

_COLUMNS = "key, value, create_revision, revision, version, lease"
_Row = tuple[bytes, bytes, int, int, int, int]


class LogReader:
    """Reads the file's committed state, each call in one snapshot. May live in another thread than the writer."""

    def __init__(self, path: Path) -> None:
        """Raises sqlite3.Error. The file must have been made by LogWriter."""
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    def close(self) -> None:
        self._db.close()

    def get(self, key: str) -> KeyValue | None:
        """The live row of `key`."""
        row = self._db.execute(
            f"SELECT {_COLUMNS} FROM log WHERE key = ? AND superseded = {LIVE}", (key.encode(),)
        ).fetchone()
        return _key_value(row) if row else None

    def range(self, prefix: str, revision: int) -> RangeResult:
        """`Store.range`."""
        first, end = prefix_range(prefix)
        with self._snapshot():
            newest, compacted = self._meta()
            if revision > newest:
                raise StoreRefused(f"revision {revision} is in the future, the store is at {newest}")
            if revision and revision < compacted:
                raise Compacted(revision)
            at = "superseded > ? AND revision <= ?" if 0 < revision < newest else f"superseded = {LIVE}"
            rows = self._db.execute(
                f"SELECT {_COLUMNS} FROM log INDEXED BY log_key WHERE key >= ? AND key < ? AND {at} ORDER BY key",
                (first, end, revision, revision) if 0 < revision < newest else (first, end),
            ).fetchall()
        return RangeResult(revision or newest, tuple(map(_key_value, rows)))

    def events(self, prefix: str, from_revision: int) -> Batch:
        """The next events from `from_revision` on; without events when there are none up to the batch's revision."""
        first, end = prefix_range(prefix)
        # The sign keeps SQLite off the index by key: these rows are wanted in order of revision.
        query = (
            f"SELECT {_COLUMNS} FROM log WHERE revision >= ? AND revision <= ? AND +key >= ? AND +key < ?"
            " ORDER BY revision, key LIMIT ?"
        )
        with self._snapshot():
            newest, compacted = self._meta()
            if from_revision <= compacted:
                raise Compacted(from_revision)
            rows = self._db.execute(query, (from_revision, newest, first, end, BATCH_ROWS)).fetchall()
            if len(rows) == BATCH_ROWS:
                # The last revision may go on after the limit.
                last = rows[-1][3]
                whole = [row for row in rows if row[3] < last]
                rows = whole or self._db.execute(query, (last, last, first, end, -1)).fetchall()
                newest = rows[-1][3]
        return Batch(newest, tuple(map(_event, rows)))

    def revision(self) -> int:
        return self._meta()[0]

    def _meta(self) -> tuple[int, int]:
        revision, compacted = self._db.execute("SELECT revision, compacted FROM meta").fetchone()
        return revision, compacted

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[None]:
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK")


class LogWriter(LogReader):
    """The one that writes: `begin`, any number of changes, `commit` or `rollback`. Leases live in its memory, too.

    A change that raises a StoreError has written nothing. After any other error the group must be rolled back.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        """Open or make the file; leases that it has live for their full time again, by `clock` (seconds, monotonic).

        Raises StoreRefused for a file that is something else, sqlite3.Error and OSError.
        """
        super().__init__(path)
        self._clock = clock
        self._deadlines: dict[int, tuple[int, float]] = {}
        self._earliest = 0.0  # no deadline is before it
        self._newest = self._compacted = 0
        self._stored = (0, 0)
        try:
            self._open(path)
            self._load()
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def commit(self) -> int:
        """Durable when it returns, if `begin` was called; gives the revision."""
        if (self._newest, self._compacted) != self._stored:
            self._db.execute("UPDATE meta SET revision = ?, compacted = ?", (self._newest, self._compacted))
        if self._db.in_transaction:
            self._db.execute("COMMIT")
        self._stored = (self._newest, self._compacted)
        return self._newest

    def rollback(self) -> None:
        """Back to what the file has. Leases end in a second at the earliest, so that a full disk is no busy loop."""
        soon = self._clock() + 1.0
        self._deadlines = {lease: (ttl, max(soon, deadline)) for lease, (ttl, deadline) in self._deadlines.items()}
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._load()

    def txn(self, compares: Sequence[Compare], then: Sequence[Op], orelse: Sequence[Op]) -> TxnResult:
        """`Store.txn`, of a transaction that `check_txn` let pass."""
        succeeded = all(holds(compare, self.get(compare.key)) for compare in compares)
        ops = then if succeeded else orelse
        for op in ops:
            if isinstance(op, Put) and op.lease and op.lease not in self._deadlines:
                raise LeaseLost(op.lease)
        revision = self._newest + 1
        before = self._db.total_changes
        results = tuple(self._do(op, revision) for op in ops)
        if self._db.total_changes != before:
            self._newest = revision
        return TxnResult(succeeded, self._newest, results)

    def compact(self, revision: int) -> None:
        """`Store.compact`."""
        if revision > self._newest:
            raise StoreRefused(f"revision {revision} is in the future, the store is at {self._newest}")
        if revision > self._compacted:
            # A row is superseded at its own revision or later. The second term is what the partial index asks for.
            self._db.execute(f"DELETE FROM log WHERE superseded <= ? AND superseded < {LIVE}", (revision,))
            self._compacted = revision

    def grant(self, ttl: int) -> int:
        """A new lease."""
        lease = secrets.randbelow(LIVE - 1) + 1
        self._db.execute("INSERT INTO lease VALUES (?, ?)", (lease, ttl))
        self._deadlines[lease] = (ttl, self._clock() + ttl)
        self._earliest = min(self._earliest, self._deadlines[lease][1])
        return lease

    def keepalive(self, lease: int) -> int:
        """`Store.keepalive`; writes nothing, since a restart gives each lease its full time anyway."""
        if lease not in self._deadlines:
            raise LeaseLost(lease)
        ttl = self._deadlines[lease][0]
        self._deadlines[lease] = (ttl, self._clock() + ttl)
        return ttl

    def revoke(self, lease: int) -> None:
        """`Store.revoke`."""
        if self._deadlines.pop(lease, None) is None:
            return
        self._db.execute("DELETE FROM lease WHERE id = ?", (lease,))
        rows = self._db.execute(
            f"SELECT key FROM log WHERE lease = ? AND lease != 0 AND superseded = {LIVE}", (lease,)
        ).fetchall()
        if rows:
            self._newest += 1
            for (key,) in rows:
                self._bury(key, self._newest)

    def expire(self) -> None:
        """Revoke the leases whose time is over."""
        now = self._clock()
        if now < self._earliest:
            return
        for lease in [lease for lease, (_, deadline) in self._deadlines.items() if deadline <= now]:
            self.revoke(lease)
        self._earliest = min((deadline for _, deadline in self._deadlines.values()), default=math.inf)

    def next_expiry(self) -> float | None:
        """Seconds until `expire` has to look, which may find nothing; None without leases."""
        return max(0.0, self._earliest - self._clock()) if self._deadlines else None

    def _open(self, path: Path) -> None:
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if tables and application != APPLICATION_ID:
            raise StoreRefused(f"{path} is another program's SQLite file: give another path")
        if tables and version != VERSION:
            raise StoreRefused(
                f"{path} has version {version}, this controller reads {VERSION}: use the one that wrote it"
            )
        (mode,) = self._db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StoreRefused(f"{path}: this file system cannot share memory (SQLite's WAL): use a local disk")
        # In WAL mode only FULL makes each commit durable: https://sqlite.org/pragma.html#pragma_synchronous
        self._db.execute("PRAGMA synchronous = FULL")
        if not tables:
            self._db.executescript(SCHEMA)
        self._db.execute(_INDEX)

    def _load(self) -> None:
        self._stored = self._meta()
        self._newest, self._compacted = self._stored
        now, known = self._clock(), self._deadlines
        rows = self._db.execute("SELECT id, ttl FROM lease")
        self._deadlines = {lease: known.get(lease, (ttl, now + ttl)) for lease, ttl in rows}
        self._earliest = min((deadline for _, deadline in self._deadlines.values()), default=math.inf)

    def _do(self, op: Op, revision: int) -> OpResult:
        match op:
            case Get(key):
                return OpResult(found=self.get(key))
            case Put():
                self._put(op, revision)
                return OpResult()
            case Delete(key):
                return OpResult(deleted=self._bury(key.encode(), revision))
            case DeletePrefix(prefix):
                rows = self._db.execute(
                    f"SELECT key FROM log INDEXED BY log_key WHERE key >= ? AND key < ? AND superseded = {LIVE}",
                    prefix_range(prefix),
                ).fetchall()
                return OpResult(deleted=sum(self._bury(key, revision) for (key,) in rows))

    def _put(self, op: Put, revision: int) -> None:
        key = op.key.encode()
        old = self._db.execute(
            f"UPDATE log SET superseded = ? WHERE key = ? AND superseded = {LIVE} RETURNING create_revision, version",
            (revision, key),
        ).fetchall()
        created, version = old[0] if old else (revision, 0)
        self._db.execute(
            "INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?)",
            (revision, key, op.value, created, version + 1, op.lease, LIVE),
        )

    def _bury(self, key: bytes, revision: int) -> int:
        """Delete a key at `revision`: 1 if it was there, else 0."""
        gone = self._db.execute(
            f"UPDATE log SET superseded = ? WHERE key = ? AND superseded = {LIVE}", (revision, key)
        ).rowcount
        if gone:
            self._db.execute("INSERT INTO log VALUES (?, ?, NULL, 0, 0, 0, ?)", (revision, key, revision))
        return gone


def _key_value(row: _Row) -> KeyValue:
    key, value, created, revision, version, lease = row
    return KeyValue(key.decode(), value, created, revision, version, lease)


def _event(row: _Row) -> Event:
    return Event(row[0].decode(), row[3], None if row[1] is None else _key_value(row))
