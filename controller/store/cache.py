# SPDX-License-Identifier: Apache-2.0
"""A copy of a part of the store that follows it: list, watch, and when the watch ends list again and compare."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass

from controller.store.base import (
    Batch,
    Compacted,
    KeyValue,
    RangeResult,
    Store,
    StoreError,
    StoreUnavailable,
    WatchLost,
)

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one key: `old` None is a new key, `new` None a deleted one, never both."""

    key: str
    old: KeyValue | None
    new: KeyValue | None


@dataclass(frozen=True, slots=True)
class Update:
    """The copy is at `revision` now, and these changes brought it there: at most one for each key, maybe none.

    They sum up what happened from revision `first` on, so what came and went in between is not among them.
    """

    first: int
    revision: int
    changes: tuple[Change, ...]


class Mirror:
    """The keys under a prefix: `items` as of `revision`, or older while `connected` is False.

    For one consumer: `async for update in mirror.updates()`. Nothing is missed and nothing goes back: after each update
    `items` is the store's state at `revision`, which only grows.
    """

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._items: dict[str, KeyValue] = {}
        self.revision = 0
        self.connected = False

    @property
    def items(self) -> Mapping[str, KeyValue]:
        """By key; read it, and do not hold on to it across an await."""
        return self._items

    async def updates(self) -> AsyncGenerator[Update, None]:
        """The first update is the whole state; after it, what changed. Endless; while the store is away it waits.

        Close the iterator when it is left early (`contextlib.aclosing`). Raises StoreError when the store refuses, or
        is not the store it was (its revision went back).
        """
        pause = FIRST_PAUSE
        while True:
            try:
                update = self._listed(await self._store.range(self._prefix))
            except StoreUnavailable as error:
                self._lost(error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            self.connected = True
            yield update
            try:
                async with self._store.watch(self._prefix, self.revision + 1) as watch:
                    async for batch in watch:
                        if batch.events:
                            yield self._followed(batch)
                return  # the store was closed
            except (Compacted, WatchLost, StoreUnavailable) as error:
                self._lost(error)

    def _listed(self, listed: RangeResult) -> Update:
        if listed.revision < self.revision:
            raise StoreError(
                f"the store went back from revision {self.revision} to {listed.revision}: was it replaced? Restart"
            )
        update = Update(self.revision + 1, listed.revision, diff(self._items, listed.items))
        self._items = {item.key: item for item in listed.items}
        self.revision = listed.revision
        return update

    def _followed(self, batch: Batch) -> Update:
        olds: dict[str, KeyValue | None] = {}
        for event in batch.events:
            olds.setdefault(event.key, self._items.get(event.key))
            if event.item is None:
                self._items.pop(event.key, None)
            else:
                self._items[event.key] = event.item
        self.revision = batch.revision
        pairs = [Change(key, old, self._items.get(key)) for key, old in olds.items()]
        # A key that came and went within the batch was never there for the consumer.
        changes = tuple(change for change in pairs if change.old is not change.new)
        return Update(batch.events[0].revision, batch.revision, changes)

    def _lost(self, error: StoreError) -> None:
        if self.connected:
            log.warning("%s: %s", self._prefix, error)
        self.connected = False


def diff(old: Mapping[str, KeyValue], new: Iterable[KeyValue]) -> tuple[Change, ...]:
    """What turns the state `old` into `new`, in order of keys. A key that was written again differs in any case."""
    after = {item.key: item for item in new}
    return tuple(
        Change(key, old.get(key), after.get(key))
        for key in sorted(old.keys() | after.keys())
        if old.get(key) != after.get(key)
    )
