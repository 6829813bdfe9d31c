# SPDX-License-Identifier: Apache-2.0
"""What the etcd store makes of answers that a real cluster seldom gives: servers here that give them on purpose."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from controller.proto import etcd_pb2, etcd_pb2_grpc
from controller.store import etcd_members
from controller.store.base import (
    Batch,
    Compacted,
    Get,
    LeaseLost,
    Put,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    StoreUncertain,
    WatchLost,
)
from controller.store.etcd import EtcdStore
from controller.store.etcd_members import Tls
from tests.store_suite import soon

Code = grpc.StatusCode
Failure = tuple[grpc.StatusCode, str]


class FakeEtcd:
    """One member: fails as often as told, then answers; counts what it was asked."""

    def __init__(self) -> None:
        self.server = grpc.aio.server()
        self.endpoint = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.asked: list[str] = []
        self.failures: list[Failure] = []
        self.watches: list[etcd_pb2.WatchCreateRequest] = []
        # What each watch stream sends, in order; the last one stays open.
        self.streams: list[list[etcd_pb2.WatchResponse]] = []
        etcd_pb2_grpc.add_KVServicer_to_server(_KV(self), self.server)
        etcd_pb2_grpc.add_WatchServicer_to_server(_Watch(self), self.server)
        etcd_pb2_grpc.add_LeaseServicer_to_server(_Lease(self), self.server)

    async def ask(self, name: str, context: Any) -> None:
        self.asked.append(name)
        if self.failures:
            await context.abort(*self.failures.pop(0))


class _KV(etcd_pb2_grpc.KVServicer):
    def __init__(self, fake: FakeEtcd) -> None:
        self._fake = fake

    async def Range(self, request: Any, context: Any) -> etcd_pb2.RangeResponse:
        await self._fake.ask("range", context)
        return etcd_pb2.RangeResponse(header=etcd_pb2.ResponseHeader(revision=7))

    async def Txn(self, request: Any, context: Any) -> etcd_pb2.TxnResponse:
        await self._fake.ask("txn", context)
        return etcd_pb2.TxnResponse(header=etcd_pb2.ResponseHeader(revision=8), succeeded=True)

    async def Compact(self, request: Any, context: Any) -> etcd_pb2.CompactionResponse:
        await self._fake.ask("compact", context)
        return etcd_pb2.CompactionResponse()


class _Watch(etcd_pb2_grpc.WatchServicer):
    def __init__(self, fake: FakeEtcd) -> None:
        self._fake = fake

    async def Watch(self, request_iterator: Any, context: Any) -> AsyncIterator[etcd_pb2.WatchResponse]:
        request = await anext(request_iterator)
        self._fake.watches.append(request.create_request)
        await self._fake.ask("watch", context)
        yield etcd_pb2.WatchResponse(created=True)
        for response in self._fake.streams.pop(0):
            yield response
        if not self._fake.streams:
            await asyncio.Event().wait()


class _Lease(etcd_pb2_grpc.LeaseServicer):
    def __init__(self, fake: FakeEtcd) -> None:
        self._fake = fake

    async def LeaseGrant(self, request: Any, context: Any) -> etcd_pb2.LeaseGrantResponse:
        await self._fake.ask(f"grant {request.ID}", context)
        return etcd_pb2.LeaseGrantResponse(ID=request.ID, TTL=request.TTL)

    async def LeaseRevoke(self, request: Any, context: Any) -> etcd_pb2.LeaseRevokeResponse:
        await self._fake.ask("revoke", context)
        return etcd_pb2.LeaseRevokeResponse()

    async def LeaseKeepAlive(
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[etcd_pb2.LeaseKeepAliveResponse]:
        request = await anext(request_iterator)
        await self._fake.ask("keepalive", context)
        yield etcd_pb2.LeaseKeepAliveResponse(ID=request.ID, TTL=0)


@contextlib.asynccontextmanager
async def members(count: int) -> AsyncIterator[tuple[EtcdStore, list[FakeEtcd]]]:
    """A store of so many fake members; the first is asked first."""
    fakes = [FakeEtcd() for _ in range(count)]
    for fake in fakes:
        await fake.server.start()
    try:
        async with EtcdStore([fake.endpoint for fake in fakes]) as store:
            await asyncio.gather(*(member.channel.channel_ready() for member in store._members._members))
            yield store, fakes
    finally:
        for fake in fakes:
            await fake.server.stop(None)


TIMED_OUT = (Code.UNAVAILABLE, "etcdserver: request timed out")
NO_LEADER = (Code.UNAVAILABLE, "etcdserver: no leader")
BUSY = (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests")
NO_SPACE = (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
DENIED = (Code.PERMISSION_DENIED, "etcdserver: permission denied")
STOPPED = (Code.UNAVAILABLE, "etcdserver: server stopped")
ODD = (Code.UNKNOWN, "raft proposal\ndropped")


@pytest.mark.parametrize("failure", [TIMED_OUT, STOPPED, ODD, (Code.DEADLINE_EXCEEDED, "late")])
async def test_a_write_without_an_answer_is_not_repeated(failure: Failure) -> None:
    async with members(2) as (store, (first, second)):
        first.failures = [failure]
        with pytest.raises(StoreUncertain, match=" ".join(failure[1].split())) as caught:
            await store.txn([], [Put("k", b"")])
        assert "\n" not in str(caught.value)
        assert first.asked == ["txn"] and second.asked == []
        # The other one is asked from now on.
        await store.txn([], [Put("k", b"")])
        assert first.asked == ["txn"] and second.asked == ["txn"]


@pytest.mark.parametrize("failure", [NO_LEADER, BUSY])
async def test_a_write_that_was_not_begun_goes_to_the_next(failure: Failure) -> None:
    async with members(2) as (store, (first, second)):
        first.failures = [failure]
        assert (await store.txn([], [Put("k", b"")])).revision == 8
        assert first.asked == ["txn"] and second.asked == ["txn"]


@pytest.mark.parametrize("failure", [TIMED_OUT, NO_LEADER, BUSY, ODD])
async def test_reads_go_to_the_next(failure: Failure) -> None:
    async with members(2) as (store, (first, second)):
        first.failures = [failure]
        assert await store.revision() == 7
        first.asked.clear()
        second.asked.clear()
        second.failures = [failure]
        assert (await store.txn([], [Get("k")])).succeeded
        assert (first.asked, second.asked) == (["txn"], ["txn"])


@pytest.mark.parametrize("failure", [NO_SPACE, DENIED])
async def test_a_refusal_is_final(failure: Failure) -> None:
    calls: list[Callable[[EtcdStore], object]] = [
        lambda store: store.txn([], [Put("k", b"")]),
        lambda store: store.range(""),
        lambda store: store.grant(5),
        lambda store: store.compact(3),
        lambda store: store.revoke(3),
    ]
    async with members(2) as (store, (first, second)):
        for call in calls:
            first.asked.clear()
            first.failures = [failure]
            with pytest.raises(StoreRefused, match=failure[1]):
                await call(store)  # type: ignore[misc]
            assert len(first.asked) == 1 and second.asked == []


async def test_a_repeated_grant_is_one_lease() -> None:
    async with members(1) as (store, (fake,)):
        fake.failures = [TIMED_OUT, (Code.FAILED_PRECONDITION, "etcdserver: lease already exists")]
        lease = await store.grant(5)
        assert fake.asked == [f"grant {lease}"] * 2
        with pytest.raises(LeaseLost):
            await store.keepalive(lease)


async def test_a_cluster_that_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_members, "DEADLINE", 0.3)
    async with members(1) as (store, (fake,)):
        fake.failures = [NO_LEADER] * 1000
        for call in (store.get("k"), store.txn([], [Put("k", b"")])):
            with pytest.raises(StoreUnavailable, match="no leader"):
                await call
        fake.failures.clear()
        fake.failures = [NO_LEADER] * 1000
        with pytest.raises(WatchLost, match="no leader"):
            await soon(anext(store.watch("k", 5)))
        await fake.server.stop(None)
        for write in (store.get("k"), store.txn([], [Put("k", b"")])):
            with pytest.raises(StoreError):
                await write
        with pytest.raises(StoreUnavailable, match="none of them can be reached"):
            await store.txn([], [Put("k", b"")])


def event(revision: int) -> etcd_pb2.Event:
    return etcd_pb2.Event(kv=etcd_pb2.KeyValue(key=b"k", mod_revision=revision, create_revision=2, version=1))


def events(*revisions: int) -> etcd_pb2.WatchResponse:
    return etcd_pb2.WatchResponse(events=map(event, revisions))


def progress(revision: int) -> etcd_pb2.WatchResponse:
    return etcd_pb2.WatchResponse(header=etcd_pb2.ResponseHeader(revision=revision))


async def test_a_watch_goes_on_where_its_stream_broke() -> None:
    """Each new stream begins one revision early (see `EtcdWatch`), and what comes twice is given once.

    What etcd says of progress loses no event that it sends later.
    """
    async with members(1) as (store, (fake,)):
        fake.streams = [[events(4, 5, 6)], [events(6), events(7)], [progress(20), events(9)]]
        async with store.watch("k", 5) as watch:
            batches: list[Batch] = [await soon(anext(watch)) for _ in range(3)]
        given = [(batch.revision, [event.revision for event in batch.events]) for batch in batches]
        assert given == [(6, [5, 6]), (7, [7]), (9, [9])]
        assert [create.start_revision for create in fake.watches] == [4, 6, 7]


async def test_a_watch_that_is_cancelled_by_the_server() -> None:
    for cancel, error in (
        (etcd_pb2.WatchResponse(canceled=True, compact_revision=9), Compacted),
        (etcd_pb2.WatchResponse(canceled=True, cancel_reason="permission denied"), WatchLost),
    ):
        async with members(1) as (store, (fake,)):
            fake.streams = [[events(5), cancel]]
            watch = store.watch("k", 5)
            await soon(anext(watch))
            with pytest.raises(error):
                await soon(anext(watch))
            with pytest.raises(StopAsyncIteration):
                await soon(anext(watch))


async def test_a_watch_that_is_closed_while_it_looks_for_a_member(monkeypatch: pytest.MonkeyPatch) -> None:
    async with members(1) as (store, (fake,)):
        watch, real = store.watch("k", 5), store._members.connected

        async def connected() -> etcd_members.Member:
            member = await real()
            await watch.close()
            return member

        monkeypatch.setattr(store._members, "connected", connected)
        with pytest.raises(StopAsyncIteration):
            await soon(anext(watch))
        assert not fake.watches


async def test_a_watch_that_is_closed_while_it_asks_a_member(monkeypatch: pytest.MonkeyPatch) -> None:
    async with members(1) as (store, _):
        watch = store.watch("k", 5)
        member = await store._members.connected()
        real = member.watch.Watch

        def opened(**options: Any) -> Any:
            call = real(**options)
            write = call.write

            async def written(request: Any) -> None:
                await write(request)
                await watch.close()

            monkeypatch.setattr(call, "write", written)
            return call

        monkeypatch.setattr(member.watch, "Watch", opened)
        with pytest.raises(StopAsyncIteration):
            await soon(anext(watch))


async def test_files_of_tls_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match=r"ca.pem: No such file or directory"):
        EtcdStore(["127.0.0.1:1"], Tls(tmp_path / "ca.pem"))
