# SPDX-License-Identifier: Apache-2.0
"""A watch on etcd: a stream that goes on where the last one ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc

from controller.proto import etcd_pb2
from controller.store.base import (
    FIRST_CHANGE,
    Batch,
    Compacted,
    Event,
    KeyValue,
    StoreError,
    StoreUnavailable,
    Watch,
    WatchLost,
    prefix_range,
)
from controller.store.etcd_members import REQUIRE_LEADER, Member, Members, Retry

_Call = grpc.aio.StreamStreamCall[etcd_pb2.WatchRequest, etcd_pb2.WatchResponse]


class EtcdWatch(Watch):
    """One stream at a time. A broken one is replaced, from the first revision that was not handed out.

    Cancelling `__anext__` loses nothing.
    """

    def __init__(self, members: Members, prefix: str, from_revision: int, forget: Callable[[EtcdWatch], None]) -> None:
        self._members = members
        self._first, self._end = prefix_range(prefix)
        self._next = max(FIRST_CHANGE, from_revision)
        self._forget = forget
        self._call: _Call | None = None
        self._member: Member | None = None
        self._open = True

    async def __anext__(self) -> Batch:
        retry = Retry()
        while self._open:
            try:
                call = self._call or await self._connect()
                response = await call.read()
                if isinstance(response, etcd_pb2.WatchResponse):
                    retry = Retry()
                    batch = self._batch(response)
                    if batch is not None:
                        return batch
                    continue
                why = "the stream ended"
            except grpc.aio.AioRpcError as error:
                why = error.details() or error.code().name
            except StoreUnavailable as error:
                await self.close()
                raise WatchLost(str(error)) from None
            except StoreError:
                await self.close()
                raise
            except asyncio.CancelledError:
                # grpc cancels the call when a read of it is cancelled, and the other way round.
                self._drop()
                task = asyncio.current_task()
                if self._open or (task is not None and task.cancelling()):
                    raise
                break
            self._drop()
            if self._member is not None:
                self._members.avoid(self._member)
            if self._open and not await retry.pause():
                await self.close()
                raise WatchLost(f"{self._members}: {why}")
        raise StopAsyncIteration

    async def close(self) -> None:
        self._open = False
        self._drop()
        self._forget(self)

    async def _connect(self) -> _Call:
        self._member = await self._members.connected()
        # etcd says "compacted" only for a start *before* the compacted revision, and 3.4 forgets a deletion at exactly
        # that one (etcd issue 19179). So ask for one revision more than is wanted.
        create = etcd_pb2.WatchCreateRequest(key=self._first, range_end=self._end, start_revision=self._next - 1)
        self._call = call = self._member.watch.Watch(metadata=REQUIRE_LEADER)
        if not self._open:
            self._drop()  # closed while it waited for a member: reading ends it
        else:
            await call.write(etcd_pb2.WatchRequest(create_request=create))
        return call

    def _drop(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _batch(self, response: etcd_pb2.WatchResponse) -> Batch | None:
        """None for an answer that says nothing new."""
        if response.canceled:
            if response.compact_revision:
                raise Compacted(self._next)
            raise WatchLost(f"{self._members}: {response.cancel_reason or 'the watch was cancelled'}")
        if response.created:
            return None
        # Only events say how far the watch has come: what etcd 3.4 tells of progress may be out of step with them
        # (etcd issues 15220 and 20221), and an event that is taken for a past one would be lost for good.
        events = tuple(_event(event) for event in response.events if event.kv.mod_revision >= self._next)
        if not events:
            return None
        self._next = events[-1].revision + 1
        return Batch(events[-1].revision, events)


def key_value(item: etcd_pb2.KeyValue) -> KeyValue:
    """etcd's message as ours."""
    return KeyValue(item.key.decode(), item.value, item.create_revision, item.mod_revision, item.version, item.lease)


def _event(event: etcd_pb2.Event) -> Event:
    deleted = event.type == etcd_pb2.Event.DELETE
    return Event(event.kv.key.decode(), event.kv.mod_revision, None if deleted else key_value(event.kv))
