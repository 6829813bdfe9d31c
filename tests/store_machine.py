# SPDX-License-Identifier: Apache-2.0
"""Any sequence of calls gives what the naive store gives: the property that every store is tested with."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from controller.store.base import (
    Batch,
    Compacted,
    Compare,
    Delete,
    DeletePrefix,
    Event,
    Get,
    Op,
    Put,
    Relation,
    Store,
    StoreError,
    Target,
    check_txn,
)
from tests.naive_store import NaiveStore

# The last two are where the order of UTF-8 and that of UTF-16 differ.
KEYS = st.sampled_from(["a", "a/1", "a/2", "b", "b\0", "\uffff", "\U0010ffff"])
PREFIXES = st.sampled_from(["", "a", "a/", "b", "\uffff", "\U0010ffff", "none"])
VALUES = st.sampled_from([b"", b"x", b"y", b"\0\xff"])
TTLS = st.integers(min_value=100, max_value=1000)
# Revisions and leases are drawn as what they are relative to, since a store need not begin at 1.
BACK = st.integers(min_value=-1, max_value=8)
UNKNOWN_LEASE = 77
LEASE = st.integers(min_value=0, max_value=4)

TIMEOUT = 60.0

T = TypeVar("T")


class Follower:
    """A watch and all that it has given so far."""

    def __init__(self, store: Store, prefix: str, from_revision: int) -> None:
        self.prefix = prefix
        self.from_revision = from_revision
        self.events: list[Event] = []
        self._watch = store.watch(prefix, from_revision)
        self._revision = from_revision - 1

    async def reach(self, expected: list[Event]) -> None:
        """Read on until there are as many events as expected, which must be the same."""
        async with asyncio.timeout(TIMEOUT):
            while len(self.events) < len(expected):
                self._take(await anext(self._watch))
        assert self.events == expected

    async def close(self) -> None:
        await self._watch.close()

    def _take(self, batch: Batch) -> None:
        assert batch.revision >= self._revision
        assert all(self._revision < event.revision <= batch.revision for event in batch.events)
        self._revision = batch.revision
        self.events += batch.events


class StoreMachine(RuleBasedStateMachine):
    """Subclasses say what store; whatever it holds is deleted at the start of each example."""

    def make(self) -> Store:
        raise NotImplementedError

    def pass_time(self, seconds: int) -> bool:
        """Let leases age; False where that cannot be done."""
        return False

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = self.run(self._make())
        self.run(self.store.txn([], [DeletePrefix("")]))
        base = self.run(self.store.revision())
        self.run(self.store.compact(base))
        self.naive = NaiveStore(base)
        self.leases: list[int] = []
        self.followers: list[Follower] = []

    async def _make(self) -> Store:
        return self.make()

    def run(self, call: Awaitable[T]) -> T:
        async def with_deadline() -> T:
            async with asyncio.timeout(TIMEOUT):
                return await call

        return self.runner.run(with_deadline())

    def same(self, call: Awaitable[Any], naive: Callable[[], Any]) -> None:
        """Both give the same, or fail for the same reason."""
        try:
            expected = naive()
        except StoreError as error:
            try:
                found = self.run(call)
            except type(error):
                return
            raise AssertionError(f"{found}, where {error!r} was expected") from None
        assert self.run(call) == expected

    def lease(self, index: int) -> int:
        """0 is no lease."""
        return 0 if index == 0 else self.leases[-index] if index <= len(self.leases) else UNKNOWN_LEASE

    @rule(data=st.data())
    def txn(self, data: st.DataObject) -> None:
        ops = st.lists(self._op(), max_size=4)
        compares = data.draw(st.lists(self._compare(), max_size=2))
        then, orelse = data.draw(ops), data.draw(ops)
        try:
            check_txn(compares, then, orelse)
        except ValueError:
            return
        self.same(self.store.txn(compares, then, orelse), lambda: self.naive.txn(compares, then, orelse))

    @rule(key=KEYS, value=VALUES)
    def put(self, key: str, value: bytes) -> None:
        """Most of what happens to a store, so that there is a history to ask for."""
        self.same(self.store.txn([], [Put(key, value)]), lambda: self.naive.txn([], [Put(key, value)], []))

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        self.same(self.store.txn([], [Delete(key)]), lambda: self.naive.txn([], [Delete(key)], []))

    @rule(prefix=PREFIXES, back=BACK)
    def range(self, prefix: str, back: int) -> None:
        revision = max(1, self.naive.revision - back)
        self.same(self.store.range(prefix, revision), lambda: self.naive.range(prefix, revision))

    @rule(ttl=TTLS)
    def grant(self, ttl: int) -> None:
        lease = self.run(self.store.grant(ttl))
        self.naive.grant(lease, ttl)
        self.leases.append(lease)

    @rule(index=LEASE)
    def keepalive(self, index: int) -> None:
        lease = self.lease(index) or UNKNOWN_LEASE
        self.same(self.store.keepalive(lease), lambda: self.naive.keepalive(lease))

    @rule(index=LEASE)
    def revoke(self, index: int) -> None:
        lease = self.lease(index) or UNKNOWN_LEASE
        self.same(self.store.revoke(lease), lambda: self.naive.revoke(lease))

    @rule(seconds=st.integers(min_value=1, max_value=600))
    def advance(self, seconds: int) -> None:
        if self.pass_time(seconds):
            self.naive.advance(seconds)

    @rule(prefix=PREFIXES, back=BACK)
    @precondition(lambda self: len(self.followers) < 4)
    def watch(self, prefix: str, back: int) -> None:
        revision = max(1, self.naive.revision - back)
        follower = Follower(self.store, prefix, revision)
        if max(2, revision) <= self.naive.compacted:
            self.same(follower.reach([Event("", 0, None)]), lambda: _raise(Compacted(revision)))
        else:
            self.followers.append(follower)

    @rule()
    def follow(self) -> None:
        for follower in self.followers:
            self.run(follower.reach(self.naive.events(follower.prefix, follower.from_revision)))

    @rule(back=BACK)
    def compact(self, back: int) -> None:
        # A watch that has not read on may be ended by this, or not.
        self._end_followers()
        revision = max(1, self.naive.revision - back)
        self.same(self.store.compact(revision), lambda: self.naive.compact(revision))

    @invariant()
    def same_state(self) -> None:
        assert self.run(self.store.revision()) == self.naive.revision
        assert self.run(self.store.range("")) == self.naive.range("", 0)

    def teardown(self) -> None:
        try:
            self._end_followers()
            for revision in builtins.range(self.naive.compacted, self.naive.revision + 1):
                assert self.run(self.store.range("", revision)) == self.naive.range("", revision)
            for lease in self.leases:
                self.run(self.store.revoke(lease))
            self.run(self.store.close())
        finally:
            self.runner.close()

    def _end_followers(self) -> None:
        self.follow()
        for follower in self.followers:
            self.run(follower.close())
        self.followers.clear()

    def _op(self) -> st.SearchStrategy[Op]:
        return st.one_of(
            st.builds(Put, KEYS, VALUES, LEASE.map(self.lease)),
            st.builds(Put, KEYS, VALUES),
            st.builds(Get, KEYS),
            st.builds(Delete, KEYS),
            st.builds(DeletePrefix, PREFIXES),
        )

    def _compare(self) -> st.SearchStrategy[Compare]:
        def compares(target: Target, operand: st.SearchStrategy[Any]) -> st.SearchStrategy[Compare]:
            return st.builds(Compare, KEYS, st.just(target), st.sampled_from(list(Relation)), operand)

        revisions = st.one_of(st.just(0), BACK.map(lambda back: max(0, self.naive.revision - back)))
        return st.one_of(
            compares(Target.VERSION, st.integers(min_value=0, max_value=3)),
            compares(Target.CREATE, revisions),
            compares(Target.MOD, revisions),
            compares(Target.LEASE, LEASE.map(self.lease)),
            compares(Target.VALUE, VALUES),
        )


def _raise(error: Exception) -> None:
    raise error
