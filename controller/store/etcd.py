# SPDX-License-Identifier: Apache-2.0
"""The store for several controllers: an etcd cluster, version 3.4 or later."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import grpc

from controller.proto import etcd_pb2
from controller.store.base import (
    Compacted,
    Compare,
    Delete,
    DeletePrefix,
    Get,
    KeyValue,
    LeaseLost,
    Op,
    OpResult,
    Put,
    RangeResult,
    Relation,
    Store,
    TxnResult,
    Watch,
    check_key,
    check_ttl,
    check_txn,
    prefix_range,
)
from controller.store.etcd_members import CALL_TIMEOUT, REQUIRE_LEADER, EtcdRefused, Member, Members, Tls
from controller.store.etcd_watch import EtcdWatch, key_value

# Keys of one answer to a range.
PAGE = 10_000

_RESULTS = {
    Relation.EQUAL: etcd_pb2.Compare.EQUAL,
    Relation.NOT_EQUAL: etcd_pb2.Compare.NOT_EQUAL,
    Relation.GREATER: etcd_pb2.Compare.GREATER,
    Relation.LESS: etcd_pb2.Compare.LESS,
}


class EtcdStore(Store):
    """A client of a cluster. Reads, leases and compaction are tried again on other members, transactions never."""

    def __init__(self, endpoints: Sequence[str], tls: Tls | None = None) -> None:
        """Endpoints are `host:port` of as many members as are known. Connects when it is first used.

        Made in a coroutine, since it belongs to the running event loop. Raises StoreRefused for unreadable TLS files.
        """
        self._members = Members(endpoints, tls)
        self._watches: set[EtcdWatch] = set()

    async def get(self, key: str) -> KeyValue | None:
        check_key(key)
        answer = await self._range(etcd_pb2.RangeRequest(key=key.encode()))
        return key_value(answer.kvs[0]) if answer.kvs else None

    async def range(self, prefix: str, revision: int = 0) -> RangeResult:
        while True:
            first, end = prefix_range(prefix)
            items: list[KeyValue] = []
            at, more = revision, True
            try:
                while more:
                    answer = await self._range(etcd_pb2.RangeRequest(key=first, range_end=end, revision=at, limit=PAGE))
                    at = at or answer.header.revision
                    items.extend(map(key_value, answer.kvs))
                    more = answer.more
                    if more:
                        first = answer.kvs[-1].key + b"\0"
                return RangeResult(at, tuple(items))
            except EtcdRefused as error:
                if error.code is not grpc.StatusCode.OUT_OF_RANGE or "future" in str(error):
                    raise
                if revision:
                    raise Compacted(revision) from None
                # Compacted between two pages: from the start, as of now.

    async def revision(self) -> int:
        answer = await self._range(etcd_pb2.RangeRequest(key=b"\0", count_only=True))
        return answer.header.revision

    async def txn(self, compares: Sequence[Compare], then: Sequence[Op], orelse: Sequence[Op] = ()) -> TxnResult:
        check_txn(compares, then, orelse)
        request = etcd_pb2.TxnRequest(
            compare=map(_compare, compares), success=map(_operation, then), failure=map(_operation, orelse)
        )

        async def call(member: Member) -> etcd_pb2.TxnResponse:
            return await member.kv.Txn(request, timeout=CALL_TIMEOUT, metadata=REQUIRE_LEADER)

        attempt = self._members.repeat if all(isinstance(op, Get) for op in (*then, *orelse)) else self._members.once
        try:
            answer = await attempt(call)
        except EtcdRefused as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                leases = {op.lease for op in (*then, *orelse) if isinstance(op, Put)} - {0}
                raise LeaseLost(min(leases)) from None
            raise
        return TxnResult(answer.succeeded, answer.header.revision, tuple(map(_result, answer.responses)))

    def watch(self, prefix: str, from_revision: int) -> Watch:
        watch = EtcdWatch(self._members, prefix, from_revision, self._watches.discard)
        self._watches.add(watch)
        return watch

    async def grant(self, ttl: int) -> int:
        check_ttl(ttl)
        # With an ID of our own a second attempt cannot make a second lease.
        request = etcd_pb2.LeaseGrantRequest(TTL=ttl, ID=secrets.randbelow(2**63 - 1) + 1)

        async def call(member: Member) -> etcd_pb2.LeaseGrantResponse:
            return await member.lease.LeaseGrant(request, timeout=CALL_TIMEOUT, metadata=REQUIRE_LEADER)

        try:
            await self._members.repeat(call)
        except EtcdRefused as error:
            if "already exists" not in str(error):
                raise
        return request.ID

    async def keepalive(self, lease: int) -> int:
        async def call(member: Member) -> int:
            stream = member.lease.LeaseKeepAlive(timeout=CALL_TIMEOUT, metadata=REQUIRE_LEADER)
            try:
                await stream.write(etcd_pb2.LeaseKeepAliveRequest(ID=lease))
                answer = await stream.read()
                if not isinstance(answer, etcd_pb2.LeaseKeepAliveResponse):
                    raise grpc.aio.AioRpcError(
                        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "no answer"
                    )
                return answer.TTL
            finally:
                stream.cancel()

        ttl = await self._members.repeat(call)
        if ttl <= 0:
            raise LeaseLost(lease)
        return ttl

    async def revoke(self, lease: int) -> None:
        async def call(member: Member) -> etcd_pb2.LeaseRevokeResponse:
            request = etcd_pb2.LeaseRevokeRequest(ID=lease)
            return await member.lease.LeaseRevoke(request, timeout=CALL_TIMEOUT, metadata=REQUIRE_LEADER)

        try:
            await self._members.repeat(call)
        except EtcdRefused as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise

    async def compact(self, revision: int) -> None:
        async def call(member: Member) -> etcd_pb2.CompactionResponse:
            request = etcd_pb2.CompactionRequest(revision=revision)
            return await member.kv.Compact(request, timeout=CALL_TIMEOUT, metadata=REQUIRE_LEADER)

        try:
            await self._members.repeat(call)
        except EtcdRefused as error:
            if "has been compacted" not in str(error):
                raise

    async def close(self) -> None:
        for watch in list(self._watches):
            await watch.close()
        await self._members.close()

    async def _range(self, request: etcd_pb2.RangeRequest) -> etcd_pb2.RangeResponse:
        async def call(member: Member) -> etcd_pb2.RangeResponse:
            return await member.kv.Range(request, timeout=CALL_TIMEOUT, metadata=REQUIRE_LEADER)

        return await self._members.repeat(call)


def _compare(compare: Compare) -> etcd_pb2.Compare:
    message = etcd_pb2.Compare(
        result=_RESULTS[compare.relation],
        target=etcd_pb2.Compare.CompareTarget.Value(compare.target.name),
        key=compare.key.encode(),
    )
    setattr(message, compare.target.value, compare.operand)
    return message


def _operation(op: Op) -> etcd_pb2.RequestOp:
    match op:
        case Get(key):
            return etcd_pb2.RequestOp(request_range=etcd_pb2.RangeRequest(key=key.encode()))
        case Put(key, value, lease):
            return etcd_pb2.RequestOp(request_put=etcd_pb2.PutRequest(key=key.encode(), value=value, lease=lease))
        case Delete(key):
            return etcd_pb2.RequestOp(request_delete_range=etcd_pb2.DeleteRangeRequest(key=key.encode()))
        case DeletePrefix(prefix):
            first, end = prefix_range(prefix)
            return etcd_pb2.RequestOp(request_delete_range=etcd_pb2.DeleteRangeRequest(key=first, range_end=end))


def _result(answer: etcd_pb2.ResponseOp) -> OpResult:
    found = answer.response_range.kvs
    return OpResult(key_value(found[0]) if found else None, answer.response_delete_range.deleted)
