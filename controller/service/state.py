# SPDX-License-Identifier: Apache-2.0
"""The store as this replica knows it, and what each host has to be told when it changes.

Nothing here is written by this process: every change, its own ones too, arrives through the mirror.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

from controller.codec import FieldError
from controller.model import Host, Key, Kind, Network, Object, key_of
from controller.service import wire
from controller.service.addresses import Addresses
from controller.service.keys import (
    ADDRESS,
    ALIVE,
    CONFIG,
    EPOCH,
    MOVED,
    OBJECT,
    RDMA,
    SYNC,
    WAIT,
    decode_object,
    object_key,
    split_object_key,
)
from controller.store.base import KeyValue, Put, Store, StoreError
from controller.store.cache import Mirror, Update
from controller.view import Change, ClusterView, Delta

log = logging.getLogger(__name__)

# How much is remembered for agents that come back: entries of (change, host).
HISTORY = 200_000
# Seconds for a write to come back through the mirror.
SYNC_TIMEOUT = 20.0


@dataclass(frozen=True, slots=True)
class Step:
    """What one update means for the hosts that share it: `items` to merge, `part` and `message` to send as they are."""

    revision: int
    items: wire.Items
    message: bytes


Follower = Callable[[Step], None]
Listener = Callable[[Update], None]


class State:
    """`view` is the objects as of `revision`. `follow` and `initial` are for sessions, `listen` for everybody else."""

    def __init__(self, store: Store, root: str) -> None:
        """Nothing happens until `run`."""
        self.store = store
        self.mirror = Mirror(store, root)
        self.view = ClusterView()
        self.addresses = Addresses(self.mirror)
        self.epoch = 0
        self.waiting: set[str] = set()  # keys of those who wait for hosts, on whatever replica
        self.reporters: set[Callable[[], None]] = set()  # called when somebody begins to wait
        self.moved: dict[str, set[str]] = {}  # keys under MOVED, by host
        self.offers: dict[str, dict[str, KeyValue]] = {}  # under RDMA: for whom, from whom
        self.offer_followers: dict[str, Callable[[str, bytes, int], None]] = {}  # told of each, by for whom
        self._followers: dict[str, Follower] = {}
        self._listeners: set[Listener] = set()
        # For each update its first and its last revision, and what hosts were told of it.
        self._history: deque[tuple[int, int, dict[str, Step]]] = deque()
        self._remembered = 0
        self._began = 0
        self._known_since = 0  # the history is whole after this revision
        self._changed: dict[str, int] = {}
        self._parts: dict[str, bytes] = {}
        self._moved_on = asyncio.Condition()
        self.ready = asyncio.Event()

    @property
    def revision(self) -> int:
        """Of the store, as far as this replica knows it."""
        return self.mirror.revision

    def find(self, key: str) -> KeyValue | None:
        """A key of the store."""
        return self.mirror.items.get(key)

    def version(self, key: str) -> int:
        """The mod_revision of a key, 0 when it does not exist."""
        item = self.mirror.items.get(key)
        return item.mod_revision if item is not None else 0

    def object(self, kind: Kind, name: str) -> Object | None:
        """An object by its key."""
        return self.view.objects[kind].get(name)

    def network(self, name: str) -> Network | None:
        """A network by its name."""
        return cast(Network | None, self.object(Kind.NETWORK, name))

    def host(self, name: str) -> Host | None:
        """A host by its name."""
        return cast(Host | None, self.object(Kind.HOST, name))

    def known_hosts(self) -> list[str]:
        """The names of all hosts."""
        return list(self.view.objects[Kind.HOST])

    def unfinished(self) -> tuple[int, int] | None:
        """Of an apply in several transactions that has not come to its end: changes done, and of how many."""
        item = self.find(CONFIG)
        if item is None or not item.value:
            return None
        progress = json.loads(item.value)
        return progress["done"], progress["of"]

    def last_change(self, host: str) -> int:
        """The revision of the last change that concerned `host`; this replica's start when there was none."""
        return self._changed.get(host, self._began)

    async def run(self) -> None:
        """Follow the store until it is closed. Raises StoreError when it cannot be followed any more."""
        async with contextlib.aclosing(self.mirror.updates()) as updates:
            async for update in updates:
                self._take(update)
                async with self._moved_on:
                    self._moved_on.notify_all()

    async def reached(self, revision: int, within: float = SYNC_TIMEOUT) -> None:
        """Returns once this replica knows `revision`; raises StoreError after `within` seconds."""
        await self._until(lambda: self.revision >= revision, within)

    async def sync(self) -> None:
        """Returns once this replica knows all that was written before the call. Raises StoreError."""
        # Of a store that others write to as well, only one's own write is sure to come through the mirror.
        await self.reached((await self.store.txn([], [Put(SYNC, b"")])).revision)

    async def epoch_of(self, epoch: int, within: float) -> None:
        """Returns once a leader of `epoch`, or later, is known, and some leader; StoreError after `within` seconds."""
        await self._until(lambda: self.epoch >= max(epoch, 1), within)

    async def _until(self, holds: Callable[[], bool], within: float) -> None:
        if holds():
            return
        try:
            async with asyncio.timeout(within), self._moved_on:
                await self._moved_on.wait_for(holds)
        except TimeoutError:
            raise StoreError(f"this controller is behind its store, at revision {self.revision}: try another") from None

    @contextlib.contextmanager
    def listen(self, listener: Listener) -> Iterator[None]:
        """`listener` is called with every update, after it was taken in."""
        self._listeners.add(listener)
        try:
            yield
        finally:
            self._listeners.discard(listener)

    # ---- what a host is told ----

    def follow(self, host: str, follower: Follower) -> None:
        """`follower` gets each step that concerns `host`, from now on; one per host."""
        self._followers[host] = follower

    def unfollow(self, host: str, follower: Follower) -> None:
        """End what `follow` began, unless another one follows by now."""
        if self._followers.get(host) == follower:
            del self._followers[host]

    def initial(self, host: str, revision: int) -> bytes:
        """The first Desired of a session: what changed since `revision`, or all when that is not known any more."""
        changed = self._changed_since(host, revision)
        if changed is not None:
            return wire.desired(self.epoch, self.revision, full=False, parts=[wire.encode_delta(changed)])
        parts = [self._network_part(network) for network in self.view.networks_of(host)]
        keys = self.view.besides_networks(host)
        parts.append(wire.encode_items((key, self._value(key)) for key in keys))
        return wire.desired(self.epoch, self.revision, full=True, parts=parts)

    def _changed_since(self, host: str, revision: int) -> dict[Key, bytes | None] | None:
        """What leads a host from its state at `revision` to that of now; None when that is not known."""
        if not revision or not self._known_since <= revision <= self.revision:
            return None
        missed: list[Step] = []
        for first, last, steps in reversed(self._history):
            if last <= revision:
                break
            if first <= revision:
                # Another replica told the host a part of what came to this one at once. If that made an object which
                # the rest took away again, this replica has never seen it, and would not say that it is gone.
                return None
            if host in steps:
                missed.append(steps[host])
        items: dict[Key, bytes | None] = {}
        for step in reversed(missed):
            items.update(step.items)
        return items

    def _network_part(self, network: str) -> bytes:
        part = self._parts.get(network)
        if part is None:
            part = wire.encode_items((key, self._value(key)) for key in self.view.keys_of(network))
            self._parts[network] = part
        return part

    def _value(self, key: Key) -> bytes:
        return self.mirror.items[object_key(key)].value

    # ---- what the store says ----

    def _take(self, update: Update) -> None:
        changes: list[Change] = []
        for change in update.changes:
            if change.key.startswith(OBJECT):
                if (decoded := _decode(change.key, change.new)) is not None:
                    changes.append(decoded)
            elif change.key.startswith(ADDRESS):
                self.addresses.changed(change.key, change.new)
            elif change.key.startswith(MOVED):
                keys = self.moved.setdefault(change.key.split("/")[2], set())
                (keys.add if change.new else keys.discard)(change.key)
            elif change.key.startswith(WAIT):
                (self.waiting.add if change.new else self.waiting.discard)(change.key)
                for report in self.reporters if change.new else ():
                    report()
            elif change.key.startswith(RDMA):
                self._take_offer(change.key, change.new, update.revision)
            elif change.key == EPOCH and change.new is not None:
                self.epoch = int(change.new.value)
        if not self.ready.is_set():
            self.view = ClusterView(change.item for change in changes if change.item is not None)
            self._began = self._known_since = update.revision
            self.ready.set()
        else:
            self._tell(update, changes)
        for listener in list(self._listeners):
            listener(update)

    def _take_offer(self, key: str, item: KeyValue | None, revision: int) -> None:
        to, host = key.removeprefix(RDMA).split("/")
        offers = self.offers.setdefault(to, {})
        if item is not None:
            offers[host] = item
        else:
            offers.pop(host, None)
            if not offers:
                del self.offers[to]
        if to in self.offer_followers:
            self.offer_followers[to](host, item.value if item is not None else b"", revision)

    def _tell(self, update: Update, changes: list[Change]) -> None:
        revision = update.revision
        deltas: dict[str, list[Delta]] = {}
        for change in changes:
            self._forget_parts(change)
            for host, delta in self.view.apply(change).items():
                deltas.setdefault(host, []).append(delta)
        steps: dict[tuple[int, ...], Step] = {}
        told: dict[str, Step] = {}
        for host, found in deltas.items():
            same = tuple(map(id, found))
            if same not in steps:
                steps[same] = self._step(revision, found)
            told[host] = steps[same]
            self._changed[host] = revision
            follower = self._followers.get(host)
            if follower is not None:
                follower(told[host])
        if told or update.first < revision:
            self._remember(update, told)

    def _step(self, revision: int, deltas: list[Delta]) -> Step:
        items: dict[Key, bytes | None] = {}
        for delta in deltas:
            items.update(dict.fromkeys(delta.removed))
            items.update((key, self._value(key)) for key in map(key_of, delta.put) if self._exists(key))
        part = wire.encode_delta(items)
        return Step(revision, items, wire.desired(self.epoch, revision, full=False, parts=[part]))

    def _exists(self, key: Key) -> bool:
        """An object that one change of an update put may be gone by a later one, which says so as well."""
        return object_key(key) in self.mirror.items

    def _remember(self, update: Update, told: dict[str, Step]) -> None:
        self._history.append((update.first, update.revision, told))
        self._remembered += max(1, len(told))
        while self._remembered > HISTORY:
            _, self._known_since, steps = self._history.popleft()
            self._remembered -= max(1, len(steps))

    def _forget_parts(self, change: Change) -> None:
        kind, name = change.key
        if kind is Kind.NETWORK:
            self._parts.pop(name, None)
            self.addresses.forget(name)
        elif kind is Kind.ENDPOINT:
            for endpoint in (self.view.endpoint(name), change.item):
                if endpoint is not None:
                    self._parts.pop(getattr(endpoint, "network", ""), None)


def _decode(key: str, item: KeyValue | None) -> Change | None:
    """The change of an object; None for one that this version cannot read, which is as if it were not there."""
    try:
        where = split_object_key(key)
        return Change(where, decode_object(where, item.value) if item is not None else None)
    except (FieldError, ValueError) as error:
        log.error("%s in the store: %s", key, error)
        return None


def alive_key(host: str) -> str:
    """Where a host's session stands."""
    return ALIVE + host
