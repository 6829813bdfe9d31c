# SPDX-License-Identifier: Apache-2.0
"""What one controller does for all: marking hosts lost, and clearing away what is over.

Each write carries the leader's epoch (`store/election.py`). The epoch also stands under a key of its own, which stays
when no leader is there: it is what agents see, from whatever replica, and it never goes back.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace

from controller.model import Host, HostState, Kind
from controller.service.draft import unchanged
from controller.service.keys import ADDRESS, ALIVE, EPOCH, LEADER, TOKEN, decode_lease, encode_object, object_key
from controller.service.session import Replica
from controller.service.state import alive_key
from controller.store.base import MAX_TXN_OPS, Compare, Delete, Op, Put, StoreError
from controller.store.cache import Update
from controller.store.election import Deposed, Leadership, campaign

log = logging.getLogger(__name__)

LEADER_TTL = 5  # seconds without a leader when one dies
_PAUSE = 1.0
# Keys that a sweep looks at without letting others run.
_AT_ONCE = 1000
# Seconds: how often what is over is looked for, how long it stays after its end, how much history stays for watches.
SWEEP = 60.0
KEPT_TOKENS = 86400.0
KEPT_LEASES = 86400.0


async def lead(replica: Replica) -> None:
    """Lead whenever nobody else does, until cancelled."""
    while True:
        try:
            leadership = await campaign(replica.state.store, LEADER, replica.name, LEADER_TTL)
        except StoreError as error:
            log.warning("%s", error)
            await asyncio.sleep(_PAUSE)
            continue
        try:
            await Leader(replica, leadership).run()
        except (Deposed, StoreError) as error:
            log.warning("%s", error)
        finally:
            await leadership.resign()


class Leader:
    """One term."""

    def __init__(self, replica: Replica, leadership: Leadership) -> None:
        self._replica = replica
        self._state = replica.state
        self._leadership = leadership
        self._look = asyncio.Event()
        self._swept_revision = 0

    async def run(self) -> None:
        """Do the leader's work until the term is over. Raises Deposed and other StoreErrors."""
        state = self._state
        answer = await self._leadership.txn([], [Put(EPOCH, str(self._leadership.epoch).encode())])
        await state.reached(answer.revision)
        log.info("leads in epoch %d", self._leadership.epoch)
        loop = asyncio.get_running_loop()
        # Without a leader, and maybe without any controller, nobody could be heard: all get the time for it.
        grace = loop.time() + self._replica.lease_ttl
        sweep = grace
        with state.listen(self._changed):
            while not self._leadership.lost.is_set():
                if loop.time() >= grace:
                    await self.mark_lost()
                if loop.time() >= sweep:
                    await self.sweep()
                    sweep = loop.time() + SWEEP
                await self._wait(min(sweep, max(grace, loop.time() + self._replica.heartbeat)))

    def _changed(self, update: Update) -> None:
        if any(change.new is None and change.key.startswith(ALIVE) for change in update.changes):
            self._look.set()

    async def _wait(self, until: float) -> None:
        waits = [asyncio.create_task(event.wait()) for event in (self._look, self._leadership.lost)]
        try:
            delay = max(0.0, until - asyncio.get_running_loop().time())
            await asyncio.wait(waits, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        self._look.clear()

    async def mark_lost(self) -> None:
        """Hosts whose sessions have ended are lost. Raises Deposed."""
        for item in list(self._state.view.objects[Kind.HOST].values()):
            if isinstance(item, Host) and item.state is HostState.UP and not item.agentless:
                alive = alive_key(item.name)
                if self._state.find(alive) is None:
                    await self._mark(item, [unchanged(alive, 0)])

    async def _mark(self, host: Host, compares: list[Compare]) -> None:
        key = object_key((Kind.HOST, host.name))
        lost = replace(host, state=HostState.LOST, since=self._replica.clock())
        compares.append(unchanged(key, self._state.version(key)))
        answer = await self._leadership.txn(compares, [Put(key, encode_object(lost))])
        if answer.succeeded:
            log.warning("host %s is lost", host.name)
            await self._state.reached(answer.revision)

    async def sweep(self) -> None:
        """Forget tokens and released addresses that ended long ago, and the store's old revisions. Raises Deposed."""
        now = self._replica.clock()
        old: list[str] = []
        for number, key in enumerate(list(self._state.mirror.items)):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)  # hosts are told of changes in between
            item = self._state.find(key)
            if item is None:
                continue
            if key.startswith(TOKEN):
                if json.loads(item.value)["expires"] + KEPT_TOKENS < now:
                    old.append(key)
            elif key.startswith(ADDRESS) and b'"released":null' not in item.value:
                released = decode_lease(key, item.value).released
                if released is not None and released + KEPT_LEASES < now:
                    old.append(key)
        most = MAX_TXN_OPS // 2
        for first in range(0, len(old), most):
            group = old[first : first + most]
            ops: list[Op] = [Delete(key) for key in group]
            await self._leadership.txn([unchanged(key, self._state.version(key)) for key in group], ops)
        # What was the newest at the last sweep: watches have had SWEEP seconds to go past it.
        if self._swept_revision:
            await self._state.store.compact(self._swept_revision)
        answer = await self._leadership.txn([], [Put(EPOCH, str(self._leadership.epoch).encode())])
        self._swept_revision = answer.revision
