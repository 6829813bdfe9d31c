# SPDX-License-Identifier: Apache-2.0
"""The controller's store: what SQLite and etcd both are. The semantics are those of etcd v3."""

from __future__ import annotations

import abc
import enum
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

# etcd's default --max-txn-ops: compares, operations of either branch.
MAX_TXN_OPS = 128
# An empty store is at revision 1, at which nothing happened.
FIRST_CHANGE = 2
# etcd's MaxLeaseTTL, seconds.
MAX_TTL = 9_000_000_000


class StoreError(Exception):
    """What a store may raise: one line that says what, where and, if there is something, what to do."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or cannot work now: nothing happened, trying again later is safe."""


class StoreUncertain(StoreError):
    """The answer to a write was lost: it may have happened, or may still happen. Read before writing again."""


class StoreRefused(StoreError):
    """The store answered that it will not do this, and did nothing; trying again gives the same answer."""


class Compacted(StoreError):
    """What happened at `revision` is forgotten."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"revision {revision} is compacted: list again")
        self.revision = revision


class WatchLost(StoreError):
    """A watch ended and cannot be resumed: list again."""


class LeaseLost(StoreError):
    """There is no such lease (any more): it expired or was revoked."""

    def __init__(self, lease: int) -> None:
        super().__init__(f"lease {lease:x} does not exist: it expired or was revoked")
        self.lease = lease


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as of some revision. `version` counts its puts since `create_revision`; `lease` 0 is none."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


class Target(enum.Enum):
    """What of a key is compared. A key that does not exist has 0 for each number, and no value at all."""

    VERSION = "version"
    CREATE = "create_revision"
    MOD = "mod_revision"
    LEASE = "lease"
    VALUE = "value"


class Relation(enum.Enum):
    EQUAL = "="
    NOT_EQUAL = "!="
    GREATER = ">"
    LESS = "<"


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition of a transaction: `target` of `key` stands in `relation` to `operand` (bytes for VALUE, else int)."""

    key: str
    target: Target
    relation: Relation
    operand: int | bytes

    def __post_init__(self) -> None:
        check_key(self.key)
        if isinstance(self.operand, bytes) != (self.target is Target.VALUE):
            raise ValueError(f"compare {self.target.value} of {self.key} with {self.operand!r}: the wrong type")


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key. It belongs to `lease` from now on, or to none (0), whatever it belonged to before."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete one key; it need not exist."""

    key: str


@dataclass(frozen=True, slots=True)
class DeletePrefix:
    """Delete every key that begins with `prefix`; "" is all."""

    prefix: str


@dataclass(frozen=True, slots=True)
class Get:
    """Read one key as the operations before it in this transaction leave it."""

    key: str


Op = Put | Delete | DeletePrefix | Get


@dataclass(frozen=True, slots=True)
class OpResult:
    """What one operation gave: the key found (Get), the number of keys deleted (Delete, DeletePrefix)."""

    found: KeyValue | None = None
    deleted: int = 0


@dataclass(frozen=True, slots=True)
class TxnResult:
    """`succeeded`: all compares held, so `then` was done; `results` has one item for each operation done, in order.

    `revision` is the store's after the transaction: that of its writes, when it wrote.
    """

    succeeded: bool
    revision: int
    results: tuple[OpResult, ...]


@dataclass(frozen=True, slots=True)
class RangeResult:
    """All keys of a range, in order of their UTF-8, as of `revision`."""

    revision: int
    items: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """One change of a key at `revision`: `item` is what was put, None for a deletion."""

    key: str
    revision: int
    item: KeyValue | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Events in order of revision, then key. A revision is never split over two batches.

    Each event of the watch up to `revision` has been handed out with this batch or before it. A batch without events
    only says that.
    """

    revision: int
    events: tuple[Event, ...]


class _Closing(abc.ABC):
    """What `async with` closes."""

    @abc.abstractmethod
    async def close(self) -> None: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class Watch(_Closing):
    """An endless iterator of batches. Use as `async with` so that it ends with its consumer.

    It raises Compacted or WatchLost and is at its end then.
    """

    def __aiter__(self) -> Self:
        return self

    @abc.abstractmethod
    async def __anext__(self) -> Batch: ...

    @abc.abstractmethod
    async def close(self) -> None:
        """End it: a pending or later `__anext__` raises StopAsyncIteration. More than once does no harm."""


class Store(_Closing):
    """Keys (text, not empty) with values, versioned by one revision number for the whole store.

    An empty store is at revision 1; each transaction that changes something adds 1. Reads are linearizable. Each call
    may raise StoreUnavailable and StoreRefused, a call that writes also StoreUncertain. Safe for any number of tasks of
    one event loop; close it when done (`async with`).
    """

    @abc.abstractmethod
    async def get(self, key: str) -> KeyValue | None:
        """The key as it is now."""

    @abc.abstractmethod
    async def range(self, prefix: str, revision: int = 0) -> RangeResult:
        """All keys that begin with `prefix` ("" is all), as of `revision` (0 is now), all of one revision.

        Raises Compacted for a revision before the compacted one, StoreRefused for one in the future.
        """

    @abc.abstractmethod
    async def revision(self) -> int:
        """The store's revision now."""

    @abc.abstractmethod
    async def txn(self, compares: Sequence[Compare], then: Sequence[Op], orelse: Sequence[Op] = ()) -> TxnResult:
        """All of `then` if each compare holds, else all of `orelse`: atomic, durable when it returns.

        Raises LeaseLost when a Put names a lease that does not exist (nothing was written), ValueError when
        `check_txn` does.
        """

    @abc.abstractmethod
    def watch(self, prefix: str, from_revision: int) -> Watch:
        """Changes of keys that begin with `prefix`, from `from_revision` (>= 1) on, be it in the past or the future.

        The watch raises Compacted when `from_revision` is not after the compacted one: events may be missing then.
        """

    @abc.abstractmethod
    async def grant(self, ttl: int) -> int:
        """A new lease that lives for `ttl` seconds (>= 1; a store may make it longer) after each `keepalive`.

        When it ends its keys are deleted, in one revision.
        """

    @abc.abstractmethod
    async def keepalive(self, lease: int) -> int:
        """Renew the lease: the seconds that it lives from now on. Raises LeaseLost."""

    @abc.abstractmethod
    async def revoke(self, lease: int) -> None:
        """End the lease now; without effect when it has ended already."""

    @abc.abstractmethod
    async def compact(self, revision: int) -> None:
        """Forget what was overwritten or deleted up to `revision`; without effect when that is done already.

        Ranges at `revision` still work. Raises StoreRefused for a revision in the future.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Let go of everything; watches end. More than once does no harm."""


_RELATIONS: dict[Relation, Callable[[Any, Any], bool]] = {
    Relation.EQUAL: operator.eq,
    Relation.NOT_EQUAL: operator.ne,
    Relation.GREATER: operator.gt,
    Relation.LESS: operator.lt,
}


def holds(compare: Compare, found: KeyValue | None) -> bool:
    """Whether the compare holds for the key as it was found. On a missing key each compare of a value fails."""
    if found is None:
        return compare.target is not Target.VALUE and _RELATIONS[compare.relation](0, compare.operand)
    return _RELATIONS[compare.relation](getattr(found, compare.target.value), compare.operand)


def prefix_range(prefix: str) -> tuple[bytes, bytes]:
    """The keys that begin with `prefix` as UTF-8: from the first (included) to the second (not included)."""
    if not prefix:
        return b"\0", b"\xff"
    first = prefix.encode()
    # UTF-8 has no byte 0xff, so the last one can always be counted up.
    return first, first[:-1] + bytes([first[-1] + 1])


def check_key(key: str) -> None:
    """Raises ValueError for what cannot be a key: no text, or not UTF-8."""
    if not key:
        raise ValueError("a key is not empty")
    key.encode()


def check_ttl(ttl: int) -> None:
    """Raises ValueError for a time to live that etcd would not take."""
    if not 1 <= ttl <= MAX_TTL:
        raise ValueError(f"a lease of {ttl} seconds: it is from 1 to {MAX_TTL}")


def check_txn(compares: Sequence[Compare], then: Sequence[Op], orelse: Sequence[Op]) -> None:
    """Raises ValueError for a transaction that etcd would not take.

    More than MAX_TXN_OPS compares or operations; a key put twice, or put and deleted, in one branch.
    """
    for name, items in (("compares", compares), ("operations", then), ("operations", orelse)):
        if len(items) > MAX_TXN_OPS:
            raise ValueError(f"{len(items)} {name} in one transaction, {MAX_TXN_OPS} is the most")
    for ops in (then, orelse):
        puts: set[str] = set()
        for op in ops:
            if isinstance(op, DeletePrefix):
                op.prefix.encode()
            else:
                check_key(op.key)
            if isinstance(op, Put):
                if op.key in puts:
                    raise ValueError(f"{op.key} is put twice in one transaction")
                puts.add(op.key)
        for op in ops:
            if isinstance(op, Delete) and op.key in puts:
                raise ValueError(f"{op.key} is put and deleted in one transaction")
            if isinstance(op, DeletePrefix) and any(key.startswith(op.prefix) for key in puts):
                raise ValueError(f"a key under {op.prefix!r} is put and deleted in one transaction")
