# SPDX-License-Identifier: Apache-2.0
"""`ffctl apply`: the way from what the store has to what a manifest says.

All applies of all replicas put one key and compare it, so that each is checked against what the one before it left. One
that is too large for a transaction of the store takes several, in the order of the plan: each object is written whole,
the key says how far it has come until it is done, and applying again goes on where it ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

from controller.checks import Problem, check
from controller.ipam import PoolError
from controller.model import Endpoint, Key, Kind, Network, Object, key_of
from controller.plan import Operation, Plan, Step, plan
from controller.service.draft import Draft
from controller.service.keys import CONFIG, DECLARED, USED, declared_key, encode, split_object_key
from controller.service.session import Replica
from controller.store.base import MAX_TXN_OPS, StoreError, StoreUncertain
from controller.view import ClusterView

_ATTEMPTS = 20
# What one object takes at most: itself, its mark, its addresses, its MAC, old and new.
_ONE_OBJECT = 16


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done, or would be; nothing was when there are problems. `revision` is that of the last write."""

    plan: Plan
    revision: int
    problems: tuple[Problem, ...] = ()


class _Conflict(Exception):
    """Somebody else wrote what the plan is about."""


class Applying:
    """Applies of one replica, one at a time."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._state = replica.state
        self._turn = asyncio.Lock()
        self._written = 0, 0  # changes done by the apply that has its turn, and of how many

    async def apply(self, desired: Sequence[Object], *, dry_run: bool, prune: bool) -> Outcome:
        """Bring the store to what `desired` says; `prune` deletes what was applied before and is not in it.

        Raises StoreError, which says how much was done.
        """
        async with self._turn:
            self._written = 0, 0
            try:
                return await self._apply(desired, prune, dry_run)
            except StoreError as error:
                raise self._cut_off(str(error)) from None

    async def _apply(self, desired: Sequence[Object], prune: bool, dry_run: bool) -> Outcome:
        for _ in range(_ATTEMPTS):
            await self._state.sync()
            planned = await self._plan(desired, prune)
            touched = [step.change.key for step in planned.steps]
            problems = check(planned.after.objects, touched)
            try:
                if problems:
                    outcome = Outcome(planned, self._state.revision, tuple(problems))
                else:
                    outcome = await self._write(planned, desired, dry_run)
            except (_Conflict, StoreUncertain):
                continue
            if outcome.problems and self._written[0]:
                kind, name = outcome.problems[0].key
                raise StoreError(f"others changed what it is about: {kind} {name}: {outcome.problems[0].problem}")
            return outcome
        raise StoreError("others change the same objects all the time")

    def _cut_off(self, why: str) -> StoreError:
        """What an apply that failed has done."""
        done, total = self._written
        if not done:
            return StoreError(f"{why}: apply again")
        return StoreError(f"{why}: {done} of {total} changes are done: apply again, and it goes on from there")

    async def _plan(self, desired: Sequence[Object], prune: bool) -> Plan:
        """In a thread, of a copy: it looks at everything there is, and agents are not to wait for that."""
        objects = [item for items in self._state.view.objects.values() for item in items.values()]
        declared = {split_object_key(key) for key in self._state.mirror.items if key.startswith(DECLARED)}
        keep = _Undeclared(declared)
        return await asyncio.to_thread(lambda: plan(ClusterView(objects), desired, prune=prune, keep=keep))

    async def _write(self, planned: Plan, desired: Sequence[Object], dry_run: bool) -> Outcome:
        """Nothing is written before every object has got its addresses."""
        trial: list[Draft] = []
        try:
            for draft, _, _ in self._drafts(planned, desired):
                trial.append(draft)
                await asyncio.sleep(0)
        except _Unsettled as error:
            return Outcome(planned, self._state.revision, (error.problem,))
        finally:
            for draft in trial:
                draft.rollback()
        if dry_run:
            return Outcome(planned, self._state.revision)
        revision = self._state.revision
        try:
            for draft, done, total in self._drafts(planned, desired):
                revision = await self._commit(draft)
                self._written = done, total
        except _Unsettled:
            raise _Conflict from None
        return Outcome(planned, revision)

    async def _commit(self, draft: Draft) -> int:
        """Returns the revision once this replica knows it."""
        try:
            answer = await draft.commit()
        except BaseException:
            draft.rollback()
            raise
        if not answer.succeeded:
            draft.rollback()
            raise _Conflict
        await self._state.reached(answer.revision)
        return answer.revision

    def _drafts(self, planned: Plan, desired: Sequence[Object]) -> Iterator[tuple[Draft, int, int]]:
        """The transactions in their order, with how many objects are done after each, and of how many.

        To write them, commit each before the next is asked for. Raises _Unsettled.
        """
        draft = self._draft()
        steps = {step.change.key: step for step in planned.steps}
        # What a manifest says is marked as such, also where it changes nothing.
        unchanged = [key for key in map(key_of, desired) if key not in steps and self._undeclared(key)]
        works: list[Step | Key] = [*planned.steps, *unchanged]
        for done, work in enumerate(works):
            if draft.size + _ONE_OBJECT > MAX_TXN_OPS:
                draft.put(CONFIG, encode({"done": done, "of": len(works)}))
                yield draft, done, len(works)
                draft = self._draft()
            try:
                if isinstance(work, Step):
                    self._step(draft, work, planned.after)
                else:
                    draft.put(declared_key(work), b"")
            except PoolError as error:
                draft.rollback()
                key = cast(Step, work).change.key
                raise _Unsettled(Problem(key, ("ips",), str(error))) from None
            except BaseException:
                draft.rollback()
                raise
        if works or self._state.unfinished() is not None:
            yield draft, len(works), len(works)

    def _draft(self) -> Draft:
        draft = Draft(self._state, self._replica.clock())
        draft.expect(CONFIG)
        draft.put(CONFIG, b"")
        return draft

    def _undeclared(self, key: Key) -> bool:
        return self._state.find(declared_key(key)) is None

    def _step(self, draft: Draft, step: Step, after: ClusterView) -> None:
        key, item = step.change.key, step.change.item
        old = self._state.object(*key)
        if key[0] is Kind.NETWORK and step.operation is not Operation.CREATE:
            # An endpoint that came to it since was not looked at.
            draft.expect(USED + key[1])
        if item is None:
            if isinstance(old, Endpoint):
                draft.release(old)
            draft.delete_object(key)
            draft.delete(declared_key(key))
            return
        if self._undeclared(key):
            draft.put(declared_key(key), b"")
        if isinstance(item, Endpoint):
            network = cast(Network, after.objects[Kind.NETWORK][item.network])
            item = draft.settle(item, cast(Endpoint | None, old), network)
            item = replace(item, generation=max(1, item.generation))
        draft.put_object(item)


class _Unsettled(Exception):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.problem)
        self.problem = problem


class _Undeclared(Container[Key]):
    """What no manifest has; hosts without an agent always have one."""

    def __init__(self, declared: set[Key]) -> None:
        self._declared = declared

    def __contains__(self, key: object) -> bool:
        return key not in self._declared
