# SPDX-License-Identifier: Apache-2.0
"""What a host reports becomes endpoints: created, changed, moved here, taken away.

A host says what it has, again and again; it is compared with what the store has. The newest report of a name wins it.
The host that lost it goes on reporting its port, so that it lost is kept in the store (`MOVED`) until it reports the
port gone: else the endpoint would move back with every reconnection, or come back when the new host has deleted it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, cast

from controller.codec import FieldError, from_json, nearest
from controller.ipam import PoolError
from controller.model import Endpoint, Host, Kind
from controller.service.draft import Clock, Draft
from controller.service.keys import MOVED, declared_key, moved_key
from controller.service.state import State, alive_key
from controller.store.base import Compare, Relation, StoreError, StoreUncertain, Target

_ATTEMPTS = 30
_CONTROLLERS_OWN = ("host", "generation")


class Superseded(Exception):
    """Another session of the host began, or this one's time is over: it may write nothing more."""


class PortRefused(Exception):
    """The host does not get what it asked for: one line."""


@dataclass(frozen=True, slots=True)
class Session:
    """A host's session, as long as its lease is that of the host's key in the store."""

    host: str
    lease: int

    def fence(self) -> Compare:
        """Holds while this is the host's newest session."""
        return Compare(alive_key(self.host), Target.LEASE, Relation.EQUAL, self.lease)


def parse_port(name: str, text: str) -> Endpoint:
    """What a host asks for a port; raises PortRefused."""
    try:
        fields: Any = json.loads(text)
        if isinstance(fields, dict):
            fields = {key: value for key, value in fields.items() if key not in _CONTROLLERS_OWN}
            fields.setdefault("name", name)
            fields.setdefault("port", name)
        endpoint = from_json(Endpoint, fields)
    except (FieldError, ValueError) as error:
        raise PortRefused(f"port {name}: {error}") from None
    if endpoint.name != name:
        raise PortRefused(f"port {name}: the endpoint is called {endpoint.name}: call both the same")
    return endpoint


class Placing:
    """Brings the store to what hosts report."""

    def __init__(self, state: State, clock: Clock) -> None:
        """`clock` gives seconds since 1970."""
        self._state = state
        self._clock = clock

    def settled(self, session: Session, name: str) -> bool:
        """Whether the endpoint is on the session's host, as far as this replica knows."""
        endpoint = self._state.view.endpoint(name)
        return endpoint is not None and endpoint.host == session.host

    def placed_on(self, host: str) -> set[str]:
        """The endpoints that the store has on a host, and those that it lost and may still report."""
        prefix = MOVED + host + "/"
        lost = self._state.moved.get(host, ())
        return {endpoint.name for endpoint in self._state.view.endpoints_on(host)} | {
            key.removeprefix(prefix) for key in lost
        }

    async def place(self, session: Session, wanted: Endpoint) -> None:
        """Give the endpoint to the session's host. Raises PortRefused, Superseded, StoreError."""
        await self._repeat(session, lambda draft: self._draft(draft, session.host, wanted))

    async def remove(self, session: Session, name: str) -> None:
        """The host has the port no more. Raises Superseded, StoreError."""
        await self._repeat(session, lambda draft: self._withdraw(draft, session.host, name))

    async def _repeat(self, session: Session, fill: Any) -> None:
        """Make the draft and write it until nobody is in between."""
        for _ in range(_ATTEMPTS):
            if (draft := self._filled(fill)) is None:
                return
            try:
                answer = await draft.commit(session.fence())
            except StoreUncertain:
                draft.rollback()
            except BaseException:
                draft.rollback()
                raise
            else:
                if answer.succeeded:
                    await self._state.reached(answer.revision)
                    return
                draft.rollback()
            await self._state.sync()
            self._check(session)
        raise StoreError(f"host {session.host}: others write the same endpoints all the time")

    def _filled(self, fill: Any) -> Draft | None:
        draft = Draft(self._state, self._clock())
        try:
            return draft if fill(draft) else None
        except PoolError as error:
            draft.rollback()
            raise PortRefused(str(error)) from None
        except BaseException:
            draft.rollback()
            raise

    def _check(self, session: Session) -> None:
        alive = self._state.find(alive_key(session.host))
        if alive is None or alive.lease != session.lease:
            raise Superseded(f"another session of host {session.host} began, or this one was not heard in time")

    def _draft(self, draft: Draft, host: str, asked: Endpoint) -> bool:
        """Whether there is something to write."""
        state, name = self._state, asked.name
        old = state.view.endpoint(name)
        self._check_left(draft, host, name, old)
        declared = state.find(declared_key((Kind.ENDPOINT, name))) is not None
        wanted = replace(_with_manifest(asked, old) if declared and old else asked, host=host)
        network = state.network(wanted.network)
        if network is None:
            near = nearest(wanted.network, state.view.objects[Kind.NETWORK])
            raise PortRefused(f"endpoint {name}: there is no network {wanted.network}: {near}")
        domains = state.view.objects[Kind.TRUST_DOMAIN]
        if wanted.trust_domain and wanted.trust_domain not in domains:
            near = nearest(wanted.trust_domain, domains)
            raise PortRefused(f"endpoint {name}: there is no trust domain {wanted.trust_domain}: {near}")
        if old is not None and old.host not in ("", host):
            self._move(draft, host, old)
        settled = draft.settle(wanted, old, network)
        if old is not None:
            settled = replace(settled, generation=old.generation)
            if settled == old:
                return False
        draft.put_object(replace(settled, generation=settled.generation + 1))
        return True

    def _move(self, draft: Draft, host: str, old: Endpoint) -> None:
        """The endpoint comes from another host."""
        there = cast(Host | None, self._state.object(Kind.HOST, old.host))
        if there is not None and there.agentless:
            raise PortRefused(f"endpoint {old.name} is on host {old.host}, by its manifest: choose another name")
        draft.put(moved_key(old.host, old.name), b"")

    def _check_left(self, draft: Draft, host: str, name: str, old: Endpoint | None) -> None:
        """The port is not what an endpoint left behind that went to another host."""
        marker = moved_key(host, name)
        draft.expect(marker)
        if self._state.find(marker) is not None:
            gone = f"moved to host {old.host}" if old is not None and old.host else "moved to another host and is gone"
            raise PortRefused(f"endpoint {name} has {gone}: delete the port here")

    def _withdraw(self, draft: Draft, host: str, name: str) -> bool:
        marker = moved_key(host, name)
        draft.expect(marker)
        found = self._state.find(marker) is not None
        draft.delete(marker)
        old = self._state.view.endpoint(name)
        if old is None or old.host != host:
            return found
        if self._state.find(declared_key((Kind.ENDPOINT, name))) is not None:
            # A manifest has it: it stays, with its addresses, on no host.
            draft.put_object(replace(old, host="", port="", generation=old.generation + 1))
        else:
            draft.release(old)
            draft.delete_object((Kind.ENDPOINT, name))
        return True


def _with_manifest(asked: Endpoint, old: Endpoint) -> Endpoint:
    """What a manifest says of an endpoint goes before what the host says; PortRefused where both say something else."""
    for field in ("network", "trust_domain"):
        mine, theirs = getattr(old, field), getattr(asked, field)
        if mine and theirs and mine != theirs:
            raise PortRefused(f"endpoint {old.name}: its {field} is {mine}, by its manifest, not {theirs}")
    return replace(
        asked,
        network=old.network,
        trust_domain=old.trust_domain or asked.trust_domain,
        labels=old.labels or asked.labels,
        ips=asked.ips or old.ips,
        mac=asked.mac or old.mac,
    )
