# SPDX-License-Identifier: Apache-2.0
"""Waiting until hosts have applied a revision, whatever replicas their agents are connected to."""

from __future__ import annotations

import asyncio
import json
import secrets
from dataclasses import dataclass

from controller.model import HostState
from controller.service.keys import ALIVE, WAIT
from controller.service.state import State, alive_key
from controller.store.base import Delete, Put
from controller.store.cache import Update


@dataclass(frozen=True, slots=True)
class Waited:
    """`pending` hosts had not applied it when the time was over; `lost` ones were not waited for."""

    revision: int
    pending: tuple[str, ...]
    lost: tuple[str, ...]


async def wait_applied(state: State, revision: int, seconds: float) -> Waited:
    """Wait until every host has applied all that concerned it up to `revision`. Raises StoreError.

    While somebody waits, replicas write down at once what their agents have applied.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    await state.reached(revision, seconds)
    wanted = {host: state.last_change(host) for host in state.known_hosts()}
    changed = asyncio.Event()

    def look(update: Update) -> None:
        if any(change.key.startswith(ALIVE) for change in update.changes):
            changed.set()

    key = WAIT + secrets.token_hex(8)
    lease = await state.store.grant(max(1, int(seconds) + 1))
    try:
        with state.listen(look):
            await state.store.txn([], [Put(key, b"", lease)])
            while (found := _split(state, wanted, revision)).pending and loop.time() < deadline:
                changed.clear()
                try:
                    async with asyncio.timeout_at(deadline):
                        await changed.wait()
                except TimeoutError:
                    break
        return found
    finally:
        await asyncio.shield(state.store.txn([], [Delete(key)]))


def _split(state: State, wanted: dict[str, int], revision: int) -> Waited:
    pending: list[str] = []
    lost: list[str] = []
    for name, needed in sorted(wanted.items()):
        host = state.host(name)
        if host is None or host.agentless or applied_by(state, name) >= needed:
            continue
        (lost if host.state is HostState.LOST else pending).append(name)
    return Waited(revision, tuple(pending), tuple(lost))


def applied_by(state: State, host: str) -> int:
    """The revision that the host's agent has applied; 0 when it is not there."""
    alive = state.find(alive_key(host))
    return int(json.loads(alive.value)["applied"]) if alive is not None else 0


def replica_of(state: State, host: str) -> str:
    """The controller that the host's agent is connected to; "" when it is not there."""
    alive = state.find(alive_key(host))
    return str(json.loads(alive.value)["replica"]) if alive is not None else ""
