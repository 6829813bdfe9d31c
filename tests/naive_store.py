# SPDX-License-Identifier: Apache-2.0
"""What a store is, in the fewest words: a list of all states that it ever had. Tests hold the real ones against it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from controller.store.base import (
    Compacted,
    Compare,
    Delete,
    DeletePrefix,
    Event,
    Get,
    KeyValue,
    LeaseLost,
    Op,
    OpResult,
    Put,
    RangeResult,
    Relation,
    StoreRefused,
    Target,
    TxnResult,
)


class NaiveStore:
    """Empty at `revision`, with everything up to it compacted. Leases end by `advance` and `revoke` only."""

    def __init__(self, revision: int) -> None:
        self.first = revision
        self.compacted = revision
        self.states: list[dict[str, KeyValue]] = [{}]
        self.leases: dict[int, tuple[int, int]] = {}
        self.now = 0

    @property
    def revision(self) -> int:
        return self.first + len(self.states) - 1

    def range(self, prefix: str, revision: int) -> RangeResult:
        at = revision or self.revision
        if at > self.revision:
            raise StoreRefused("future")
        if at < self.compacted:
            raise Compacted(at)
        state = self.states[at - self.first]
        return RangeResult(at, tuple(state[key] for key in sorted(state) if key.startswith(prefix)))

    def events(self, prefix: str, from_revision: int) -> list[Event]:
        """All events of the past from a revision on."""
        events = []
        for revision in range(max(from_revision, self.first + 1), self.revision + 1):
            before, after = self.states[revision - self.first - 1], self.states[revision - self.first]
            for key in sorted(before.keys() | after.keys()):
                if key.startswith(prefix) and before.get(key) != after.get(key):
                    events.append(Event(key, revision, after.get(key)))
        return events

    def txn(self, compares: Sequence[Compare], then: Sequence[Op], orelse: Sequence[Op]) -> TxnResult:
        succeeded = all(self._holds(compare) for compare in compares)
        ops = then if succeeded else orelse
        for op in ops:
            if isinstance(op, Put) and op.lease and op.lease not in self.leases:
                raise LeaseLost(op.lease)
        state = dict(self.states[-1])
        results = []
        for op in ops:
            match op:
                case Get(key):
                    results.append(OpResult(found=state.get(key)))
                case Put(key, value, lease):
                    old = state.get(key)
                    created, version = (old.create_revision, old.version) if old else (self.revision + 1, 0)
                    state[key] = KeyValue(key, value, created, self.revision + 1, version + 1, lease)
                    results.append(OpResult())
                case Delete(key):
                    results.append(OpResult(deleted=int(state.pop(key, None) is not None)))
                case DeletePrefix(prefix):
                    gone = [key for key in state if key.startswith(prefix)]
                    for key in gone:
                        del state[key]
                    results.append(OpResult(deleted=len(gone)))
        self._append(state)
        return TxnResult(succeeded, self.revision, tuple(results))

    def grant(self, lease: int, ttl: int) -> None:
        self.leases[lease] = (ttl, self.now + ttl)

    def keepalive(self, lease: int) -> int:
        if lease not in self.leases:
            raise LeaseLost(lease)
        ttl = self.leases[lease][0]
        self.grant(lease, ttl)
        return ttl

    def revoke(self, lease: int) -> None:
        self.leases.pop(lease, None)
        self._append({key: item for key, item in self.states[-1].items() if item.lease != lease})

    def advance(self, seconds: int) -> None:
        self.now += seconds
        for lease in [lease for lease, (_, deadline) in self.leases.items() if deadline <= self.now]:
            self.revoke(lease)

    def compact(self, revision: int) -> None:
        if revision > self.revision:
            raise StoreRefused("future")
        self.compacted = max(self.compacted, revision)

    def _append(self, state: dict[str, KeyValue]) -> None:
        if state != self.states[-1]:
            self.states.append(state)

    def _holds(self, compare: Compare) -> bool:
        item = self.states[-1].get(compare.key)
        if item is None and compare.target is Target.VALUE:
            return False
        value: Any = getattr(item, compare.target.value) if item else 0
        operand: Any = compare.operand
        match compare.relation:
            case Relation.EQUAL:
                return bool(value == operand)
            case Relation.NOT_EQUAL:
                return bool(value != operand)
            case Relation.GREATER:
                return bool(value > operand)
            case Relation.LESS:
                return bool(value < operand)
