# SPDX-License-Identifier: Apache-2.0
"""The etcd store on a real cluster of three: the common suite, and members that die, stand still and come back."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from controller.store import etcd, etcd_members
from controller.store.base import (
    Batch,
    Put,
    Store,
    StoreError,
    StoreUnavailable,
    StoreUncertain,
    WatchLost,
)
from controller.store.etcd import EtcdStore
from controller.store.etcd_members import Tls
from tests.store_machine import StoreMachine
from tests.store_suite import Replica, StoreSuite, emptied, fill, next_events, put, soon
from tests.system.etcd import EtcdCluster, etcd_cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with etcd_cluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


class TestEtcd(StoreSuite):
    @pytest_asyncio.fixture
    async def store(self, cluster: EtcdCluster) -> AsyncIterator[Store]:
        async with emptied(lambda: EtcdStore(cluster.endpoints)) as store:
            yield store

    async def test_a_range_in_pages(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """All pages are of one revision, whatever is written meanwhile; compacted meanwhile, it begins again."""
        monkeypatch.setattr(etcd, "PAGE", 7)
        await fill(store, "k/", 20)
        old = await store.revision()
        real = EtcdStore._range
        pages = 0

        async def disturbed(self: EtcdStore, *request: object) -> object:
            nonlocal pages
            pages += 1
            if pages in {2, 3}:
                revision = await put(store, "k/000019", b"new")
                await store.txn([], [Put("k/000018", b"new"), Put(f"k/{pages}", b"")])
                if pages == 3:
                    await store.compact(revision)
            return await real(self, *request)  # type: ignore[arg-type]

        monkeypatch.setattr(EtcdStore, "_range", disturbed)
        listed = await store.range("k/")
        monkeypatch.setattr(EtcdStore, "_range", real)
        assert len(listed.items) == 22 and listed.revision > old and pages > 6
        assert await store.range("k/", listed.revision) == listed


def test_any_sequence(cluster: EtcdCluster) -> None:
    class EtcdMachine(StoreMachine):
        def make(self) -> Store:
            return EtcdStore(cluster.endpoints)

    run_state_machine_as_test(EtcdMachine, settings=settings(max_examples=10, stateful_step_count=30))


class Writers:
    """Tasks that write each a counter of its own, and remember what was acknowledged."""

    def __init__(self, store: Store, count: int) -> None:
        self._store = store
        self._changed = asyncio.Condition()
        self.acknowledged = [0] * count
        self.tried = [0] * count
        self._tasks = [asyncio.create_task(self._write(index)) for index in range(count)]

    async def more(self, count: int) -> None:
        """Wait until so many more writes were acknowledged."""
        wanted = sum(self.acknowledged) + count
        async with self._changed, asyncio.timeout(60):
            await self._changed.wait_for(lambda: sum(self.acknowledged) >= wanted or any(t.done() for t in self._tasks))
        assert not any(task.done() for task in self._tasks), self._tasks

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _write(self, index: int) -> None:
        while True:
            number = self.tried[index] = self.tried[index] + 1
            try:
                await put(self._store, f"k/{index}/{number:06d}")
            except (StoreUnavailable, StoreUncertain):
                continue
            async with self._changed:
                self.acknowledged[index] += 1
                self._changed.notify_all()


async def test_members_die_and_come_back(cluster: EtcdCluster) -> None:
    """Each in turn, so the leader too: writes go on, none is lost or done twice, the mirror misses nothing."""
    async with emptied(lambda: EtcdStore(cluster.endpoints)) as store:
        replica = Replica(store, "k/")
        await replica.step()
        writers = Writers(store, 4)
        for index in range(len(cluster.endpoints)):
            await writers.more(20)
            cluster.kill(index)
            await writers.more(20)
            cluster.start(index)
        await writers.more(20)
        await writers.stop()
        end = await put(store, "k/end")
        await replica.reach(end)
        listed = {item.key: item for item in (await store.range("k/")).items}
        assert replica.state == listed
        for index, acknowledged in enumerate(writers.acknowledged):
            found = [item for key, item in listed.items() if key.startswith(f"k/{index}/")]
            assert acknowledged <= len(found) <= writers.tried[index]
            assert all(item.version == 1 for item in found)
        await replica.close()


async def test_a_member_that_stands_still(cluster: EtcdCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection stays, and nothing comes out of it: a write there is uncertain, everything goes on elsewhere."""
    monkeypatch.setattr(etcd_members, "CALL_TIMEOUT", 2.0)
    monkeypatch.setattr(etcd, "CALL_TIMEOUT", 2.0)
    async with emptied(lambda: EtcdStore(cluster.endpoints)) as store:
        start = await put(store, "k")
        await asyncio.gather(*(member.channel.channel_ready() for member in store._members._members))  # type: ignore[attr-defined]
        async with store.watch("", start) as watch:
            await soon(next_events(watch))
            waiting = asyncio.create_task(next_events(watch))
            await put(store, "first")
            assert (await soon(waiting)).events[0].key == "first"
            waiting = asyncio.create_task(next_events(watch))
            cluster.pause(0)
            try:
                with pytest.raises(StoreUncertain):
                    await put(store, "lost")
                revision = await soon(until_written(store, "second"))
                assert await store.get("second") is not None
                batches = [await soon(waiting)]
                while batches[-1].revision < revision:
                    batches.append(await soon(next_events(watch)))
            finally:
                cluster.resume(0)
            assert revisions(batches) == sorted(set(revisions(batches)))
            assert "second" in [event.key for batch in batches for event in batch.events]
        found = await store.get("lost")
        assert found is None or found.version == 1


async def test_the_whole_cluster_restarts(cluster: EtcdCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async with emptied(lambda: EtcdStore(cluster.endpoints)) as store:
        start = await put(store, "k")
        replica = Replica(store, "k")
        await replica.step()
        for index in range(3):
            cluster.kill(index)
        with monkeypatch.context() as patch:
            patch.setattr(etcd_members, "DEADLINE", 0.5)
            for call in (store.get("k"), put(store, "k"), store.grant(5), store.compact(start)):
                with pytest.raises(StoreError):
                    await call
            with pytest.raises(StoreUnavailable, match="none of them can be reached"):
                await put(store, "k")
            with pytest.raises(WatchLost):
                await soon(anext(store.watch("k", start)))
        for index in range(3):
            cluster.start(index)
        revision = await soon(until_written(store, "k"))
        await replica.reach(revision)
        assert replica.state["k"].version == 2
        await replica.close()


async def test_tls(tmp_path: Path) -> None:
    """Both sides show certificates; without one of ours nothing is answered."""
    await asyncio.to_thread(make_certificates, tmp_path)
    options = ["--cert-file", f"{tmp_path}/etcd.pem", "--key-file", f"{tmp_path}/etcd.key"]
    options += ["--trusted-ca-file", f"{tmp_path}/ca.pem", "--client-cert-auth"]
    ca = tmp_path / "ca.pem"
    with etcd_cluster(tmp_path, 1, *options, scheme="https") as cluster, pytest.MonkeyPatch.context() as patch:
        async with EtcdStore(cluster.endpoints, Tls(ca, tmp_path / "client.pem", tmp_path / "client.key")) as store:
            assert await put(store, "k") == 2
        patch.setattr(etcd_members, "DEADLINE", 0.5)
        for tls in (None, Tls(ca)):
            async with EtcdStore(cluster.endpoints, tls) as store:
                with pytest.raises(StoreUnavailable):
                    await store.get("k")


async def until_written(store: Store, key: str) -> int:
    """Put a key as often as it takes."""
    while True:
        try:
            return await put(store, key)
        except (StoreUnavailable, StoreUncertain):
            if (found := await store.get(key)) is not None and found.value:
                return found.mod_revision


def revisions(batches: list[Batch]) -> list[int]:
    return [event.revision for batch in batches for event in batch.events]


def make_certificates(directory: Path) -> None:
    """A CA, and certificates `etcd` and `client` for 127.0.0.1."""
    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    new += " -subj /CN={0} -keyout {0}.key -out {0}.pem"
    signed = new + " -CA ca.pem -CAkey ca.key -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=CA:FALSE"
    for command in (new.format("ca"), signed.format("etcd"), signed.format("client")):
        subprocess.run(command.split(), cwd=directory, check=True, capture_output=True)
