# SPDX-License-Identifier: Apache-2.0
"""One leader at a time, and a fence around what it writes.

The leader's key is bound to a lease, and the key's create_revision is the leader's epoch: it grows from leader to
leader and never comes twice. Each write of a leader compares it, so the store itself refuses whoever was deposed,
however late the write arrives and whatever its clock says.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from controller.store.base import (
    Compacted,
    Compare,
    Get,
    KeyValue,
    LeaseLost,
    Op,
    Put,
    Relation,
    Store,
    StoreError,
    StoreUncertain,
    Target,
    TxnResult,
    WatchLost,
)

log = logging.getLogger(__name__)


class Deposed(StoreError):
    """This leader is none any more: the write was refused, nothing happened."""


@dataclass(frozen=True, slots=True)
class _Lease:
    """`ttl` in seconds; it may be over at `deadline`, by the event loop's clock."""

    number: int
    ttl: int
    deadline: float


class Leadership:
    """An epoch in which this process leads, from `campaign` until `resign` or until the lease is gone.

    `lost` is set as soon as it is known, or has to be assumed because the lease could not be renewed for as long as it
    lives, by this process's own monotonic clock.
    """

    def __init__(self, store: Store, key: str, epoch: int, lease: _Lease) -> None:
        """Use `campaign`. Renews the lease from now on."""
        self.epoch = epoch
        self.lost = asyncio.Event()
        self._store = store
        self._key = key
        self._lease = lease.number
        self._renewing = asyncio.create_task(self._renew(lease.ttl, lease.deadline))

    async def txn(self, compares: Sequence[Compare], then: Sequence[Op], orelse: Sequence[Op] = ()) -> TxnResult:
        """`Store.txn`, in this epoch only: raises Deposed when it is over. One compare and `orelse` fewer fit in."""
        fence = Compare(self._key, Target.CREATE, Relation.EQUAL, self.epoch)
        answer = await self._store.txn([fence, *compares], then, [*orelse, Get(self._key)])
        if answer.succeeded:
            return answer
        holder = answer.results[-1].found
        if holder is None or holder.create_revision != self.epoch:
            self.lost.set()
            raise Deposed(f"epoch {self.epoch} of {self._key} is over: {_who(holder)} leads")
        return TxnResult(False, answer.revision, answer.results[:-1])

    async def resign(self) -> None:
        """Let the next one lead at once."""
        self.lost.set()
        self._renewing.cancel()
        await asyncio.gather(self._renewing, return_exceptions=True)
        await _give_up(self._store, self._lease)

    async def _renew(self, ttl: int, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                await asyncio.sleep(ttl / 3)
                asked = loop.time()
                try:
                    async with asyncio.timeout_at(deadline):
                        ttl = await self._store.keepalive(self._lease)
                    deadline = asked + ttl
                except (LeaseLost, TimeoutError) as error:
                    log.warning("%s: epoch %d is over: %s", self._key, self.epoch, error or "the lease was not renewed")
                    return
                except StoreError as error:
                    log.warning("%s: %s", self._key, error)
        finally:
            self.lost.set()


async def campaign(store: Store, key: str, identity: str, ttl: int) -> Leadership:
    """Wait until nobody leads, then lead: `key` says `identity` while the lease of `ttl` seconds lives.

    Raises StoreError when the store fails; nothing that outlives the lease is left behind.
    """
    loop = asyncio.get_running_loop()
    while True:
        await _vacancy(store, key)
        deadline = loop.time() + ttl
        lease = await store.grant(ttl)
        epoch = None
        try:
            epoch = await _take(store, key, identity, lease)
        except LeaseLost:
            continue  # this process stood still for too long
        finally:
            if epoch is None:
                await asyncio.shield(_give_up(store, lease))
        if epoch is not None:
            return Leadership(store, key, epoch, _Lease(lease, ttl, deadline))


async def _vacancy(store: Store, key: str) -> None:
    """Returns when nobody holds the key."""
    while True:
        listed = await store.range(key)
        if all(item.key != key for item in listed.items):
            return
        with contextlib.suppress(Compacted, WatchLost):
            async with store.watch(key, listed.revision + 1) as watch:
                async for batch in watch:
                    if any(event.key == key for event in batch.events):
                        break


async def _take(store: Store, key: str, identity: str, lease: int) -> int | None:
    """The epoch that began for the holder of `lease`, or None if another one was quicker."""
    nobody = Compare(key, Target.VERSION, Relation.EQUAL, 0)
    while True:
        try:
            answer = await store.txn([nobody], [Put(key, identity.encode(), lease), Get(key)], [Get(key)])
        except StoreUncertain:
            # It may have been done, or be done later: then the next attempt finds the key, with our lease.
            continue
        holder = answer.results[-1].found
        if holder is not None:
            return holder.create_revision if holder.lease == lease else None


async def _give_up(store: Store, lease: int) -> None:
    """Without a store to tell, the lease ends by itself."""
    try:
        await store.revoke(lease)
    except StoreError as error:
        log.warning("%s", error)


def _who(holder: KeyValue | None) -> str:
    return holder.value.decode(errors="replace") if holder else "nobody"
