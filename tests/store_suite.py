# SPDX-License-Identifier: Apache-2.0
"""What each store, its mirrors and its elections must do, told one by one. Subclasses bring the fixture `store`."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import pytest

from controller.store.base import (
    MAX_TXN_OPS,
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
    Put,
    Relation,
    Store,
    StoreRefused,
    Target,
    Watch,
    WatchLost,
)
from controller.store.cache import Mirror, Update
from controller.store.election import Deposed, Leadership, campaign

TIMEOUT = 60.0

T = TypeVar("T")


async def soon(call: Awaitable[T]) -> T:
    """The result, or a failure of the test after TIMEOUT."""
    async with asyncio.timeout(TIMEOUT):
        return await call


async def put(store: Store, key: str, value: bytes = b"", lease: int = 0) -> int:
    """The revision of the put."""
    return (await store.txn([], [Put(key, value, lease)])).revision


async def gone(store: Store, key: str, from_revision: int) -> int:
    """Wait until a key is deleted; gives the revision."""
    async with store.watch(key, from_revision) as watch:
        async for batch in watch:
            for event in batch.events:
                if event.item is None:
                    return event.revision
    raise AssertionError("the watch ended")


class Replica:
    """What a consumer of a mirror knows, checked with each update."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.mirror = Mirror(store, prefix)
        self.state: dict[str, KeyValue] = {}
        self.updates = self.mirror.updates()
        self.revision = 0

    async def step(self) -> Update:
        update = await soon(anext(self.updates))
        assert update.revision >= self.revision
        self.revision = update.revision
        for change in update.changes:
            assert change.old == self.state.get(change.key)
            assert change.old != change.new
            if change.new is None:
                del self.state[change.key]
            else:
                self.state[change.key] = change.new
        assert self.state == self.mirror.items
        return update

    async def reach(self, revision: int) -> None:
        """There must be a change of the prefix at this revision or later."""
        while self.revision < revision:
            await self.step()

    async def close(self) -> None:
        await self.updates.aclose()


class StoreSuite:
    async def test_watch_waits_for_the_future(self, store: Store) -> None:
        start = await put(store, "x")
        async with store.watch("k", start + 2) as watch:
            await put(store, "k", b"too early")
            wanted = await put(store, "k", b"wanted")
            batch = await soon(next_events(watch))
        assert [(event.revision, event.item and event.item.value) for event in batch.events] == [(wanted, b"wanted")]

    async def test_watch_from_a_compacted_revision(self, store: Store) -> None:
        """Also from exactly that one, since the deletion there is forgotten."""
        await put(store, "k")
        deleted = (await store.txn([], [Delete("k")])).revision
        await store.compact(deleted)
        for revision in (deleted - 1, deleted):
            with pytest.raises(Compacted):
                await soon(anext(store.watch("k", revision)))
        async with store.watch("k", deleted + 1) as watch:
            again = await put(store, "k")
            assert (await soon(next_events(watch))).revision == again

    async def test_a_cancelled_wait_loses_nothing(self, store: Store) -> None:
        start = await store.revision()
        async with store.watch("k", start + 1) as watch:
            waiting = asyncio.create_task(next_events(watch))
            await put(store, "other")
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            revision = await put(store, "k")
            assert (await soon(next_events(watch))).revision == revision

    async def test_close_ends_a_waiting_watch(self, store: Store) -> None:
        watch = store.watch("k", await store.revision() + 1)
        waiting = asyncio.create_task(next_events(watch))
        await put(store, "other")
        await watch.close()
        with pytest.raises(StopAsyncIteration):
            await soon(waiting)
        with pytest.raises(StopAsyncIteration):
            await soon(anext(watch))

    async def test_a_revision_is_never_split(self, store: Store) -> None:
        start = await fill(store, "k/", 3000)
        deleted = (await store.txn([], [DeletePrefix("k/")])).revision
        async with store.watch("k/", start) as watch:
            batches: list[Batch] = []
            while not batches or batches[-1].revision < deleted:
                batches.append(await soon(next_events(watch)))
        events = [event for batch in batches for event in batch.events]
        assert len(events) == 6000
        last = [event for event in batches[-1].events if event.revision == deleted]
        assert last == [Event(f"k/{index:06d}", deleted, None) for index in range(3000)]

    async def test_counting_together(self, store: Store) -> None:
        """Compare and put, from many tasks at once: no step is lost, none counts twice."""

        async def add() -> None:
            while True:
                old = await store.get("n")
                count, seen = (int(old.value), old.mod_revision) if old else (0, 0)
                guard = Compare("n", Target.MOD, Relation.EQUAL, seen)
                if (await store.txn([guard], [Put("n", b"%d" % (count + 1))])).succeeded:
                    return

        await soon(asyncio.gather(*(add() for _ in range(20))))
        found = await store.get("n")
        assert found is not None and (found.value, found.version) == (b"20", 20)

    async def test_lease_ends_by_itself(self, store: Store) -> None:
        lease = await store.grant(1)
        assert await store.keepalive(lease) >= 1
        start = (await store.txn([], [Put("k/1", b"", lease), Put("k/2", b"", lease), Put("stays", b"")])).revision
        first, second = await soon(asyncio.gather(gone(store, "k/1", start), gone(store, "k/2", start)))
        assert first == second
        assert [item.key for item in (await store.range("")).items] == ["stays"]
        with pytest.raises(LeaseLost):
            await store.keepalive(lease)
        with pytest.raises(LeaseLost):
            await store.txn([], [Put("stays", b"changed"), Put("k", b"", lease)])
        found = await store.get("stays")
        assert found is not None and found.value == b""

    async def test_lease_lives_by_keepalive(self, store: Store) -> None:
        kept, other = await store.grant(2), await store.grant(2)
        start = await put(store, "kept", lease=kept)
        await put(store, "other", lease=other)
        ended = asyncio.create_task(gone(store, "other", start))
        async with asyncio.timeout(TIMEOUT):
            while not ended.done():
                await store.keepalive(kept)
                await asyncio.wait([ended], timeout=0.1)
        assert await store.get("kept") is not None
        await store.revoke(kept)
        assert await store.get("kept") is None

    async def test_what_is_refused(self, store: Store) -> None:
        refused: list[tuple[list[Compare], list[Op], str]] = [
            ([], [Put("k", b""), Put("k", b"")], "put twice"),
            ([], [Put("k", b""), Delete("k")], "put and deleted"),
            ([], [DeletePrefix("k"), Put("k/1", b"")], "put and deleted"),
            ([], [Get("")], "not empty"),
            ([], [Get(f"{index}") for index in range(MAX_TXN_OPS + 1)], "the most"),
        ]
        start = await store.revision()
        for compares, ops, message in refused:
            for then, orelse in ((ops, []), ([], ops)):
                with pytest.raises(ValueError, match=message):
                    await store.txn(compares, then, orelse)
        with pytest.raises(ValueError, match="wrong type"):
            Compare("k", Target.VALUE, Relation.EQUAL, 1)
        with pytest.raises(ValueError, match="lease of 0 seconds"):
            await store.grant(0)
        for call in (store.range("", start + 1), store.compact(start + 1)):
            with pytest.raises(StoreRefused, match="future"):
                await call
        assert await store.revision() == start

    async def test_mirror_follows(self, store: Store) -> None:
        await put(store, "k/before", b"1")
        replica = Replica(store, "k/")
        assert [change.key for change in (await replica.step()).changes] == ["k/before"]
        assert replica.mirror.connected
        await put(store, "other")
        await put(store, "k/new")
        revision = (await store.txn([], [Put("k/before", b"2"), Delete("k/new")])).revision
        await replica.reach(revision)
        assert [(item.key, item.value) for item in replica.mirror.items.values()] == [("k/before", b"2")]
        await replica.close()

    async def test_mirror_over_lost_watches(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """Watches that end at random, compaction past the mirror: it is always at one of the store's states."""
        dice = random.Random(4)
        real = store.watch
        monkeypatch.setattr(store, "watch", lambda prefix, revision: Unreliable(real(prefix, revision), dice))
        replica = Replica(store, "k/")
        await replica.step()
        for _ in range(60):
            revision = await put(store, "k/end")
            for _ in range(dice.randrange(4)):
                key = f"k/{dice.randrange(5)}"
                op: Op = Put(key, b"%d" % dice.randrange(3)) if dice.random() < 0.6 else Delete(key)
                await store.txn([], [op])
            if dice.random() < 0.3:
                await store.compact(await store.revision())
            await replica.reach(revision)
        await replica.reach(await put(store, "k/end"))
        assert replica.state == {item.key: item for item in (await store.range("k/")).items}
        await replica.close()

    async def test_election(self, store: Store) -> None:
        first = await soon(campaign(store, "leader", "one", 10))
        waiting = asyncio.create_task(campaign(store, "leader", "two", 10))
        answer = await first.txn([], [Put("k", b"one")])
        # Compaction does not hurry, nor hang, the one who waits.
        await store.compact(answer.revision)
        assert not first.lost.is_set() and not waiting.done()
        await first.resign()
        second = await soon(waiting)
        assert second.epoch > first.epoch
        with pytest.raises(Deposed, match="two leads"):
            await first.txn([], [Put("k", b"late")])
        assert (await second.txn([], [Get("k")])).results[0].found == KeyValue(
            "k", b"one", answer.revision, answer.revision, 1
        )
        await second.resign()

    async def test_the_leader_whose_lease_ended_is_refused(self, store: Store) -> None:
        """One that still thinks that it leads: what it writes is refused by the store, not by its own clock."""
        stale = await soon(campaign(store, "leader", "stale", 60))
        holder = await store.get("leader")
        assert holder is not None and holder.create_revision == stale.epoch
        start = await store.revision()
        await store.revoke(holder.lease)
        assert not stale.lost.is_set()
        with pytest.raises(Deposed, match="nobody leads"):
            await stale.txn([], [Put("k", b"stale")])
        assert stale.lost.is_set()
        fresh = await soon(campaign(store, "leader", "fresh", 60))
        with pytest.raises(Deposed, match="fresh leads"):
            await stale.txn([Compare("k", Target.VERSION, Relation.EQUAL, 0)], [Put("k", b"stale")], [Get("k")])
        assert await store.get("k") is None and fresh.epoch > start
        await stale.resign()
        assert not fresh.lost.is_set() and await store.get("leader") is not None
        await fresh.resign()

    async def test_a_refused_compare_is_no_deposition(self, store: Store) -> None:
        leader = await soon(campaign(store, "leader", "one", 60))
        answer = await leader.txn([Compare("k", Target.VERSION, Relation.GREATER, 0)], [], [Put("k", b""), Get("k")])
        assert not answer.succeeded and len(answer.results) == 2
        assert not leader.lost.is_set()
        await leader.resign()

    async def test_a_lease_that_cannot_be_renewed(self, store: Store) -> None:
        """The leader learns it by itself."""
        leader = await soon(campaign(store, "leader", "one", 2))
        holder = await store.get("leader")
        assert holder is not None
        await store.revoke(holder.lease)
        await soon(leader.lost.wait())
        await leader.resign()

    async def test_only_one_leads(self, store: Store) -> None:
        leaders: list[Leadership] = []

        async def run(name: str) -> None:
            leader = await campaign(store, "leader", name, 30)
            assert all(other.lost.is_set() for other in leaders)
            leaders.append(leader)
            await leader.txn([], [Put("k", name.encode())])
            await leader.resign()

        await soon(asyncio.gather(*(run(f"c{index}") for index in range(5))))
        epochs = [leader.epoch for leader in leaders]
        assert len(epochs) == 5 and epochs == sorted(set(epochs))


class Unreliable(Watch):
    """A watch that is lost now and then."""

    def __init__(self, watch: Watch, dice: random.Random) -> None:
        self._watch = watch
        self._dice = dice

    async def __anext__(self) -> Batch:
        if self._dice.random() < 0.3:
            raise WatchLost("on purpose")
        return await anext(self._watch)

    async def close(self) -> None:
        await self._watch.close()


async def next_events(watch: Watch) -> Batch:
    """The next batch that has events."""
    while True:
        batch = await anext(watch)
        if batch.events:
            return batch


async def fill(store: Store, prefix: str, count: int, value: bytes = b"") -> int:
    """Make `count` keys; gives the revision of the first ones. A few transactions at a time, as a client would."""
    gate = asyncio.Semaphore(8)

    async def some(first: int) -> int:
        numbers = range(first, min(first + MAX_TXN_OPS, count))
        async with gate:
            return (await store.txn([], [Put(f"{prefix}{number:06d}", value) for number in numbers])).revision

    return min(await asyncio.gather(*(some(first) for first in range(0, count, MAX_TXN_OPS))))


@contextlib.asynccontextmanager
async def emptied(make: Callable[[], Store]) -> AsyncIterator[Store]:
    """A store without keys."""
    async with make() as store:
        await store.txn([], [DeletePrefix("")])
        yield store
