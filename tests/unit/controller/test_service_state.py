# SPDX-License-Identifier: Apache-2.0
"""What a replica remembers for hosts that come to it from another one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controller.model import Endpoint, Host, Key, Kind, Object, key_of
from controller.proto import ffswitch_pb2 as pb
from controller.service.keys import ROOT, encode_object, object_key
from controller.service.state import State
from controller.store.base import Delete, Put, Store
from controller.store.cache import Update
from controller.store.sqlite import SqliteStore


class Replica(State):
    """Takes in what the store says when it is told to."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, ROOT)
        self._updates = self.mirror.updates()

    async def follow_store(self) -> Update:
        """Take in the next update."""
        update = await anext(self._updates)
        self._take(update)
        return update

    def told(self, host: str, revision: int) -> pb.Desired:
        """The first Desired of a host that knows `revision`."""
        return pb.ControllerMessage.FromString(self.initial(host, revision)).desired


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with SqliteStore(tmp_path / "store.db") as made:
        yield made


async def put(store: Store, *items: Object) -> int:
    return (await store.txn([], [Put(object_key(key_of(item)), encode_object(item)) for item in items])).revision


async def delete(store: Store, key: Key) -> int:
    return (await store.txn([], [Delete(object_key(key))])).revision


WEB0 = Endpoint("web0", network="blue", host="h1")
DB0 = Endpoint("db0", network="blue", host="h2")


async def test_a_host_that_knows_a_part_of_what_came_at_once_is_told_everything(store: Store) -> None:
    """It was at a replica that heard of each change; this one hears of a deletion and not of what it deleted."""
    await put(store, Host("h1"), Host("h2"), WEB0)
    replica = Replica(store)
    before = (await replica.follow_store()).revision
    came = await put(store, DB0)
    gone = await delete(store, (Kind.ENDPOINT, "db0"))
    update = await replica.follow_store()
    assert (update.first, update.revision, update.changes) == (came, gone, ())
    for revision in (before, gone):
        known = replica.told("h1", revision)
        assert not known.full and not known.set and not known.delete
    known = replica.told("h1", came)
    assert known.full and [item.kind for item in known.set] == ["Endpoint", "Host"]


async def test_a_host_is_told_what_it_missed_and_no_more(store: Store) -> None:
    await put(store, Host("h1"), Host("h2"), WEB0)
    replica = Replica(store)
    await replica.follow_store()
    first = await put(store, DB0)
    await replica.follow_store()
    second = await put(store, Endpoint("db1", network="blue", host="h2"))
    await replica.follow_store()
    await delete(store, (Kind.ENDPOINT, "db0"))
    await replica.follow_store()
    known = replica.told("h1", first)
    assert not known.full and [name.name for name in known.delete] == ["db0"]
    assert len(known.set) == 1 and '"db1"' in known.set[0].object
    known = replica.told("h1", second)
    assert not known.full and [name.name for name in known.delete] == ["db0"] and not known.set


async def test_who_follows_no_more_is_told_no_more(store: Store) -> None:
    await put(store, Host("h1"), WEB0)
    replica = Replica(store)
    await replica.follow_store()

    class Session:
        told = 0

        def follow(self, step: object) -> None:
            self.told += 1

    one, other = Session(), Session()
    replica.follow("h1", one.follow)
    replica.follow("h1", other.follow)
    replica.unfollow("h1", one.follow)
    await put(store, DB0)
    await replica.follow_store()
    assert (one.told, other.told) == (0, 1)
    replica.unfollow("h1", other.follow)
    await delete(store, (Kind.ENDPOINT, "db0"))
    await replica.follow_store()
    assert (one.told, other.told) == (0, 1)
