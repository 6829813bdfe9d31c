# SPDX-License-Identifier: Apache-2.0
"""The comparison of two states, and a mirror whose store comes and goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.store import cache
from controller.store.base import Delete, KeyValue, RangeResult, StoreError, StoreUnavailable
from controller.store.cache import Mirror, diff
from controller.store.sqlite import SqliteStore
from tests.store_suite import Replica, put, soon

STATES = st.dictionaries(st.sampled_from("abcdef"), st.integers(min_value=2, max_value=5)).map(
    lambda revisions: {key: KeyValue(key, b"same", 2, revision, 1) for key, revision in revisions.items()}
)


@given(STATES, STATES)
def test_diff_is_what_turns_one_state_into_the_other(old: dict[str, KeyValue], new: dict[str, KeyValue]) -> None:
    changes = diff(old, new.values())
    state = dict(old)
    for change in changes:
        assert change.old == state.pop(change.key, None) and change.old != change.new
        if change.new is not None:
            state[change.key] = change.new
    assert state == new
    assert [change.key for change in changes] == sorted({change.key for change in changes})
    assert diff(new, new.values()) == ()


async def test_mirror_waits_for_a_store_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "FIRST_PAUSE", 0.001)
    async with SqliteStore(tmp_path / "store.db") as store:
        await put(store, "k")
        failures = 3
        real = store.range

        async def away(prefix: str, revision: int = 0) -> RangeResult:
            nonlocal failures
            if failures:
                failures -= 1
                assert not replica.mirror.connected
                raise StoreUnavailable("away")
            return await real(prefix, revision)

        monkeypatch.setattr(store, "range", away)
        replica = Replica(store, "")
        assert [change.key for change in (await replica.step()).changes] == ["k"]
        assert failures == 0 and replica.mirror.connected
        await replica.close()


async def test_mirror_refuses_a_store_that_went_back(tmp_path: Path) -> None:
    """A cluster that was restored from a backup has other objects under revisions that were seen before."""
    async with SqliteStore(tmp_path / "new.db") as new:
        for _ in range(3):
            await put(new, "k")
        mirror = Mirror(new, "")
        await anext(mirror.updates())
        async with SqliteStore(tmp_path / "old.db") as old:
            await put(old, "k")
            mirror._store = old
            with pytest.raises(StoreError, match="went back from revision 4 to 2"):
                await soon(anext(mirror.updates()))


async def test_what_came_and_went_at_once_is_no_change(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "store.db") as store:
        replica = Replica(store, "")
        assert (await replica.step()).changes == ()
        await put(store, "flash")
        await store.txn([], [Delete("flash")])
        kept = await put(store, "kept")
        update = await replica.step()
        assert [(change.key, change.old) for change in update.changes] == [("kept", None)]
        assert update.revision == kept
        await replica.close()
