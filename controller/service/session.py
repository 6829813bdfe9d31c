# SPDX-License-Identifier: Apache-2.0
"""One agent's stream: what it says is written to the store, what concerns it is sent."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from controller.codec import FieldError, from_json
from controller.model import Capabilities, Endpoint, Host, HostState, Key, Kind
from controller.proto import ffswitch_pb2 as pb
from controller.security.authority import clock_text
from controller.service import wire
from controller.service.draft import Clock, Draft
from controller.service.keys import REVOKED, encode, object_key, rdma_key
from controller.service.placing import Placing, PortRefused, Session, Superseded, parse_port
from controller.service.state import State, Step, alive_key
from controller.store.base import LeaseLost, Put, StoreUncertain

log = logging.getLogger(__name__)

# Heartbeats without which a host is lost.
MISSED = 3
# Ports of one report that are written at the same time: the store commits them together.
AT_ONCE = 64
# Bytes of an offer of an RDMA connection.
OFFER_MAX = 1024
# Seconds that a replica may be behind what an agent has seen.
BEHIND = 5.0

Write = Callable[[bytes], Awaitable[None]]


class SessionEnds(Exception):
    """The session is over; the agent is told why in one line."""


@dataclass(frozen=True, slots=True)
class Replica:
    """What the sessions of one controller share. `name` tells it from the others, `heartbeat` is in seconds."""

    state: State
    name: str
    heartbeat: float
    clock: Clock

    @property
    def lease_ttl(self) -> int:
        """How long a host lives without a heartbeat: leases have whole seconds."""
        return max(1, math.ceil(MISSED * self.heartbeat))


class AgentSession:
    """From a Hello on. `run` returns or raises when it is over."""

    def __init__(self, replica: Replica, host: str, issued: float, write: Write) -> None:
        """`issued` is when the host's certificate was made, in seconds since 1970."""
        self.host = host
        self._issued = issued
        self.ended = asyncio.Event()
        self.reason = ""
        self._replica = replica
        self._state = replica.state
        self._placing = Placing(replica.state, replica.clock)
        self._write = write
        self._session = Session(host, 0)
        self._capabilities = Capabilities()
        self._steps: list[Step] = []
        self._replies: list[bytes] = []
        self._to_send = asyncio.Event()
        self._sending = True
        self._ports: dict[str, Endpoint] = {}
        self._refused: dict[str, str] = {}
        self._applied = 0
        self._reported = 0
        self._renewed = 0.0
        self._reporting = asyncio.Event()
        self._offers: dict[str, pb.RdmaOffer] = {}  # by for whom; not written yet
        self._offering = asyncio.Event()

    def end(self, reason: str) -> None:
        """Let it be over, as soon as may be."""
        self.reason = self.reason or reason
        self.ended.set()

    async def run(self, hello: pb.Hello, messages: Callable[[], Awaitable[pb.AgentMessage | None]]) -> None:
        """Serve the agent until it goes (`messages` gives None) or `end` is called.

        Raises SessionEnds, Superseded, StoreError, or a group of them.
        """
        await self._begin(hello)
        state = self._state
        first = state.initial(self.host, hello.revision)
        state.follow(self.host, self._follow)
        state.reporters.add(self._asked)
        state.offer_followers[self.host] = self._offered
        for other, item in state.offers.get(self.host, {}).items():
            self._offered(other, item.value, item.mod_revision)
        work: asyncio.Queue[pb.Observed | None] = asyncio.Queue()
        sending = asyncio.create_task(self._send(first))
        tasks = [
            asyncio.create_task(self._receive(messages, work)),
            asyncio.create_task(self._place(work)),
            asyncio.create_task(self._report()),
            asyncio.create_task(self._offer()),
            asyncio.create_task(self._ended()),
        ]
        try:
            done, _ = await asyncio.wait([sending, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            state.unfollow(self.host, self._follow)
            state.reporters.discard(self._asked)
            if state.offer_followers.get(self.host) == self._offered:
                del state.offer_followers[self.host]
            for task in tasks:
                task.cancel()
            # A write that is cancelled goes on in gRPC, and whatever is written next would break the stream.
            self._sending = False
            self._to_send.set()
            await asyncio.gather(sending, *tasks, return_exceptions=True)

    async def _ended(self) -> None:
        await self.ended.wait()
        raise SessionEnds(self.reason)

    # ---- the beginning ----

    async def _begin(self, hello: pb.Hello) -> None:
        """Make this the host's session, and the host up."""
        state = self._state
        self._capabilities = _capabilities(self.host, hello.capabilities)
        await state.epoch_of(hello.epoch, BEHIND)
        await state.reached(hello.revision, BEHIND)
        check_revoked(state, self.host, self._issued)
        lease = await state.store.grant(self._replica.lease_ttl)
        self._session = Session(self.host, lease)
        self._applied = self._reported = hello.revision
        while True:
            old = state.host(self.host)
            if old is not None and old.agentless:
                raise SessionEnds(f"host {self.host} has no agent, by its manifest: join with another name")
            draft = Draft(state, self._replica.clock())
            host = self._host(old)
            # Also where it stays as it is: the leader may be marking the host lost just now.
            draft.expect(object_key((Kind.HOST, self.host)))
            if host != old:
                draft.put_object(host)
            draft.put_leased(alive_key(self.host), self._alive(), lease)
            try:
                answer = await draft.commit()
            except StoreUncertain:
                await state.sync()
                continue
            if answer.succeeded:
                await state.reached(answer.revision)
                return
            await state.sync()

    def _host(self, old: Host | None) -> Host:
        if old is not None and old.state is HostState.UP:
            return replace(old, capabilities=self._capabilities)
        epoch = old.epoch + 1 if old is not None else 1
        return Host(self.host, self._capabilities, HostState.UP, self._replica.clock(), epoch)

    def _alive(self) -> bytes:
        return encode({"replica": self._replica.name, "applied": self._applied})

    # ---- what the agent says ----

    async def _receive(
        self,
        messages: Callable[[], Awaitable[pb.AgentMessage | None]],
        work: asyncio.Queue[pb.Observed | None],
    ) -> None:
        while (message := await messages()) is not None:
            match message.WhichOneof("message"):
                case "heartbeat":
                    if await self._heartbeat(message.heartbeat):
                        work.put_nowait(None)
                case "observed":
                    work.put_nowait(message.observed)
                case "rdma":
                    self._offers[message.rdma.host] = message.rdma
                    self._offering.set()
                case other:
                    raise SessionEnds(f"host {self.host} said {other or 'nothing'}: upgrade the older of the two")

    async def _heartbeat(self, heartbeat: pb.Heartbeat) -> bool:
        """Whether it is one of those that come at each interval."""
        self._applied = max(self._applied, heartbeat.revision)
        now = asyncio.get_running_loop().time()
        # Heartbeats that only say what was applied may come in quick succession.
        periodic = now - self._renewed > self._replica.heartbeat / 2
        if periodic:
            check_revoked(self._state, self.host, self._issued)
        if self._applied != self._reported and (periodic or self._state.waiting):
            self._reporting.set()
        if periodic:
            self._renewed = now
            try:
                await self._state.store.keepalive(self._session.lease)
            except LeaseLost:
                await self._state.sync()
                raise self._superseded() from None
        if heartbeat.capabilities:
            self._capabilities = _capabilities(self.host, heartbeat.capabilities)
        host = self._state.host(self.host) if periodic or heartbeat.capabilities else None
        if host is not None and host.capabilities != self._capabilities:
            draft = Draft(self._state, self._replica.clock())
            draft.put_object(replace(host, capabilities=self._capabilities))
            # After a conflict the next heartbeat finds the difference again.
            await draft.commit(self._session.fence())
        return periodic

    def _superseded(self) -> Superseded:
        check_revoked(self._state, self.host, self._issued)
        if self._state.find(alive_key(self.host)) is None:
            return Superseded(f"host {self.host} was not heard for {self._replica.lease_ttl} s")
        return Superseded(f"another session of host {self.host} began")

    def _asked(self) -> None:
        """Somebody waits for what the agent may have applied already."""
        if self._applied != self._reported:
            self._reporting.set()

    async def _report(self) -> None:
        """Tell the other replicas what the agent has applied."""
        while True:
            await self._reporting.wait()
            self._reporting.clear()
            applied = self._applied
            put = Put(alive_key(self.host), self._alive(), self._session.lease)
            answer = await self._state.store.txn([self._session.fence()], [put])
            if not answer.succeeded:
                await self._state.sync()
                raise self._superseded()
            self._reported = applied

    # ---- RDMA ----

    async def _offer(self) -> None:
        """Pass the host's offers on to others."""
        while True:
            await self._offering.wait()
            self._offering.clear()
            offers, self._offers = self._offers, {}
            puts = [
                Put(rdma_key(host, self.host), offer.SerializeToString(), self._session.lease)
                for host, offer in offers.items()
                if self._may_offer(host, offer)
            ]
            if not puts:
                continue
            for first in range(0, len(puts), AT_ONCE):
                answer = await self._state.store.txn([self._session.fence()], [*puts[first : first + AT_ONCE]])
                if not answer.succeeded:
                    await self._state.sync()
                    raise self._superseded()

    def _may_offer(self, host: str, offer: pb.RdmaOffer) -> bool:
        """Whether the two have a network in common, and the offer is not too long to be one."""
        view = self._state.view
        shares = not view.networks_of(self.host).isdisjoint(view.networks_of(host))
        return shares and host != self.host and offer.ByteSize() <= OFFER_MAX

    def _offered(self, host: str, value: bytes, revision: int) -> None:
        self._replies.append(wire.offer(host, value, revision))
        self._to_send.set()

    # ---- ports ----

    async def _place(self, work: asyncio.Queue[pb.Observed | None]) -> None:
        while True:
            observed = await work.get()
            if observed is None:
                # Nobody said anything new: what the store lacks, or refused, is tried again.
                await self._all(self._again(), self._place_one)
                continue
            gone = set(observed.gone)
            if observed.full:
                reported = {port.name for port in observed.ports}
                gone |= (self._placing.placed_on(self.host) | self._ports.keys()) - reported
            await self._all(sorted(gone), self._remove_one)
            for port in observed.ports:
                try:
                    self._ports[port.name] = parse_port(port.name, port.endpoint)
                except PortRefused as error:
                    self._ports.pop(port.name, None)
                    self._refuse(port.name, str(error))
            await self._all([port.name for port in observed.ports if port.name in self._ports], self._place_one)

    def _again(self) -> list[str]:
        return [name for name in self._ports if name in self._refused or not self._placing.settled(self._session, name)]

    async def _all(self, names: list[str], do: Callable[[str], Awaitable[None]]) -> None:
        for first in range(0, len(names), AT_ONCE):
            async with asyncio.TaskGroup() as group:
                for name in names[first : first + AT_ONCE]:
                    group.create_task(_coroutine(do(name)))

    async def _place_one(self, name: str) -> None:
        try:
            await self._placing.place(self._session, self._ports[name])
        except PortRefused as error:
            self._refuse(name, str(error))
        else:
            self._refused.pop(name, None)

    async def _remove_one(self, name: str) -> None:
        self._ports.pop(name, None)
        self._refused.pop(name, None)
        await self._placing.remove(self._session, name)

    def _refuse(self, port: str, reason: str) -> None:
        if self._refused.get(port) != reason:
            self._refused[port] = reason
            self._replies.append(wire.refused(port, reason))
            self._to_send.set()

    # ---- what the agent is told ----

    def _follow(self, step: Step) -> None:
        self._steps.append(step)
        self._to_send.set()

    async def _send(self, first: bytes) -> None:
        """Until the session is over, and then to the end of what is being written."""
        await self._write(wire.welcome(self._state.epoch, self._replica.heartbeat))
        await self._write(first)
        while await self._to_send.wait() and self._sending:
            self._to_send.clear()
            replies, self._replies = self._replies, []
            steps, self._steps = self._steps, []
            if len(steps) == 1:
                await self._write(steps[0].message)
            elif steps:
                # An agent that is slow to read gets all it missed at once.
                items: dict[Key, bytes | None] = {}
                for step in steps:
                    items.update(step.items)
                part = wire.encode_delta(items)
                await self._write(wire.desired(self._state.epoch, steps[-1].revision, full=False, parts=[part]))
            for reply in replies:
                await self._write(reply)


def check_revoked(state: State, host: str, issued: float) -> None:
    """Raises SessionEnds for a certificate of `host` that was made before it was revoked."""
    item = state.find(REVOKED + host)
    if item is not None and issued <= (revoked := json.loads(item.value)):
        when = clock_text(datetime.fromtimestamp(revoked, UTC))
        raise SessionEnds(
            f"the certificate of host {host} was revoked at {when}: remove its host.pem and join with a new token"
        )


async def _coroutine(awaitable: Awaitable[None]) -> None:
    await awaitable


def _capabilities(host: str, text: str) -> Capabilities:
    try:
        return from_json(Capabilities, json.loads(text or "{}"))
    except (FieldError, ValueError) as error:
        raise SessionEnds(f"host {host}: capabilities: {error}") from None
