# SPDX-License-Identifier: Apache-2.0
"""Shares the fast path's one stream of tapped frames between captures and live traces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vswitch.slowpath.fastpath import TAP_TRACE, TapRecord
from vswitch.slowpath.interfaces import FastPathApi

# Taken before a port's readers are told of its end; other ports' frames come all the while.
_LAST_BATCHES = 16


@dataclass(eq=False, slots=True)
class Subscription:
    """What one reader wants; `kinds`: a union of TAP_*. `port_id` None: every port. `ended`: its port is gone."""

    port_id: int | None
    kinds: int
    snaplen: int
    deliver: Callable[[Sequence[TapRecord]], None]
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class TapHub:
    """Sets on each port the union of what its readers want, and hands each reader its own."""

    def __init__(self, fast_path: FastPathApi) -> None:
        self._fast_path = fast_path
        self._ports: set[int] = set()
        self._subscriptions: set[Subscription] = set()
        self.on_change: Callable[[], None] = lambda: None  # who looks at what is another than before

    @property
    def lost(self) -> int:
        """Records that workers could not store, since the switch started."""
        return self._fast_path.taps_lost

    def subscribe(
        self, port_id: int | None, kinds: int, snaplen: int, deliver: Callable[[Sequence[TapRecord]], None]
    ) -> Subscription:
        """Call `deliver` (which must not block) with every matching record from now on."""
        subscription = Subscription(port_id, kinds, snaplen, deliver)
        self._subscriptions.add(subscription)
        self._apply(subscription)
        self.on_change()
        return subscription

    def watched(self, port_id: int) -> str:
        """Who has a look at a port's frames, "" when nobody has."""
        kinds = {s.kinds for s in self._subscriptions if s.port_id in (None, port_id)}
        return ("a live trace" if kinds == {TAP_TRACE} else "a capture") if kinds else ""

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop; harmless when it has stopped already."""
        self._subscriptions.discard(subscription)
        self._apply(subscription)
        self.on_change()

    def port_added(self, port_id: int) -> None:
        """Tap a new port for those who want every port."""
        self._ports.add(port_id)
        if self._subscriptions:
            self._set(port_id)

    def port_removed(self, port_id: int) -> None:
        """End the subscriptions of a port that is about to go, after what is still on its way to them."""
        self._fast_path.tap_set(port_id, 0, 0)
        for _ in range(_LAST_BATCHES):
            if not self._hand_out():
                break
        self._ports.discard(port_id)
        self._end({s for s in self._subscriptions if s.port_id == port_id})

    def close(self) -> None:
        """End all subscriptions."""
        self._end(set(self._subscriptions))

    def _end(self, subscriptions: set[Subscription]) -> None:
        self._subscriptions -= subscriptions
        for subscription in subscriptions:
            subscription.ended.set()
        self.on_change()

    def on_readable(self) -> None:
        """Take what the workers stored, a batch of it, and hand it out."""
        self._hand_out()

    def _hand_out(self) -> int:
        records = self._fast_path.taps()
        for subscription in tuple(self._subscriptions):
            port_id, kinds = subscription.port_id, subscription.kinds
            wanted = [r for r in records if r.kind & kinds and port_id in (None, r.port_id)]
            if wanted:
                subscription.deliver(wanted)
        return len(records)

    def _apply(self, subscription: Subscription) -> None:
        for port_id in self._ports if subscription.port_id is None else {subscription.port_id} & self._ports:
            self._set(port_id)

    def _set(self, port_id: int) -> None:
        wanted = [s for s in self._subscriptions if s.port_id in (None, port_id)]
        kinds = 0
        for subscription in wanted:
            kinds |= subscription.kinds
        self._fast_path.tap_set(port_id, kinds, max((s.snaplen for s in wanted), default=0))
