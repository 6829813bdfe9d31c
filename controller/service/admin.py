# SPDX-License-Identifier: Apache-2.0
"""The service that `ffctl` talks to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import grpc

from controller.checks import Problem
from controller.codec import FieldError, from_json, nearest
from controller.decide import decide
from controller.explain import decision_json
from controller.model import CLASSES, Endpoint, Host, Key, Kind, Object
from controller.proto import ffswitch_pb2 as pb
from controller.security.authority import Authority, SecurityError
from controller.security.peers import Context, require_admin
from controller.security.tokens import new_token, token_hash
from controller.service.applying import Applying, Outcome
from controller.service.keys import (
    LEADER,
    OBJECT,
    REPLICA,
    REVOKED,
    TOKEN,
    encode,
    object_key,
    split_object_key,
)
from controller.service.session import Replica
from controller.service.state import alive_key
from controller.service.waiting import applied_by, replica_of, wait_applied
from controller.store.base import Delete, Put, StoreError
from controller.store.cache import Update

_LONGEST_TTL = 30 * 86400.0
_MOST_WAIT = 3600.0


class AdminError(Exception):
    """A request that cannot be done as it was said: one line."""


class Admin:
    """Everything here takes the operator's certificate."""

    def __init__(self, replica: Replica, authority: Authority, store_text: str) -> None:
        self._replica = replica
        self._state = replica.state
        self._authority = authority
        self._store_text = store_text
        self._applying = Applying(replica)

    def handlers(self) -> grpc.GenericRpcHandler:
        """For the server."""
        single = grpc.unary_unary_rpc_method_handler
        return grpc.method_handlers_generic_handler(
            "ffswitch.v1.Admin",
            {
                "Apply": single(self.apply, pb.ApplyRequest.FromString, pb.ApplyReply.SerializeToString),
                "Get": single(self.get, pb.GetRequest.FromString, pb.GetReply.SerializeToString),
                "Explain": single(self.explain, pb.ExplainRequest.FromString, pb.ExplainReply.SerializeToString),
                "Watch": grpc.unary_stream_rpc_method_handler(
                    self.watch, pb.WatchRequest.FromString, pb.WatchEvent.SerializeToString
                ),
                "Wait": single(self.wait, pb.WaitRequest.FromString, pb.WaitReply.SerializeToString),
                "CreateToken": single(self.token, pb.CreateTokenRequest.FromString, pb.Token.SerializeToString),
                "Revoke": single(self.revoke, pb.RevokeRequest.FromString, pb.RevokeReply.SerializeToString),
                "Status": single(self.status, pb.StatusRequest.FromString, pb.StatusReply.SerializeToString),
            },
        )

    async def apply(self, request: pb.ApplyRequest, context: Context) -> pb.ApplyReply:
        """Bring the store to a manifest, or say what that would do."""
        await require_admin(context)
        try:
            objects = [_object(item) for item in request.objects]
            outcome = await self._applying.apply(objects, dry_run=request.dry_run, prune=request.prune)
        except AdminError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except StoreError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return _apply_reply(outcome)

    async def get(self, request: pb.GetRequest, context: Context) -> pb.GetReply:
        """One object, or all of a kind."""
        await require_admin(context)
        try:
            kind = _kind(request.kind)
            known = self._state.view.objects[kind]
            if request.name and request.name not in known:
                raise AdminError(f"there is no {kind.value} {request.name}: {nearest(request.name, known)}")
        except AdminError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        names = [request.name] if request.name else sorted(known)
        items = [pb.Item(kind=kind.value, object=self._text((kind, name))) for name in names]
        return pb.GetReply(revision=self._state.revision, objects=items)

    async def explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainReply:
        """The path of a pair, and why."""
        await require_admin(context)
        try:
            source, destination = self._endpoint(request.source), self._endpoint(request.destination)
        except AdminError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        found = decision_json(decide(source, destination, self._state.view.world))
        return pb.ExplainReply(revision=self._state.revision, decision=json.dumps(found))

    async def watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchEvent]:
        """Every change from now on."""
        await require_admin(context)
        try:
            kinds = {_kind(request.kind)} if request.kind else set(Kind)
        except AdminError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        events: asyncio.Queue[pb.WatchEvent] = asyncio.Queue()

        def look(update: Update) -> None:
            for change in update.changes:
                if not change.key.startswith(OBJECT):
                    continue
                kind, name = split_object_key(change.key)
                if kind in kinds:
                    text = change.new.value.decode() if change.new is not None else ""
                    events.put_nowait(pb.WatchEvent(revision=update.revision, kind=kind.value, name=name, object=text))

        with self._state.listen(look):
            # So that whoever watches knows from when on.
            await context.send_initial_metadata((("revision", str(self._state.revision)),))
            while True:
                yield await events.get()

    async def wait(self, request: pb.WaitRequest, context: Context) -> pb.WaitReply:
        """Wait for the hosts concerned."""
        await require_admin(context)
        try:
            revision = request.revision
            if request.kind and not revision:
                key = (_kind(request.kind), request.name)
                if self._state.object(*key) is None:
                    known = self._state.view.objects[key[0]]
                    raise AdminError(f"there is no {key[0].value} {request.name}: {nearest(request.name, known)}")
                revision = self._state.version(object_key(key))
            seconds = min(max(request.timeout, 0.0), _MOST_WAIT)
            waited = await wait_applied(self._state, revision or self._state.revision, seconds)
        except AdminError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except StoreError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return pb.WaitReply(revision=waited.revision, pending=waited.pending, lost=waited.lost)

    async def token(self, request: pb.CreateTokenRequest, context: Context) -> pb.Token:
        """A join token."""
        await require_admin(context)
        try:
            host = from_json(Host, {"name": request.host})
            if not 1 <= request.ttl <= _LONGEST_TTL:
                raise AdminError(f"a token lives from 1 s to {_LONGEST_TTL:.0f} s, not {request.ttl:g} s")
            token = new_token(self._authority.public_key())
            expires = self._replica.clock() + request.ttl
            put = Put(TOKEN + token_hash(token.secret), encode({"host": host.name, "expires": expires}))
            await self._state.store.txn([], [put])
        except (AdminError, FieldError, SecurityError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except StoreError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return pb.Token(token=str(token), expires=expires)

    async def revoke(self, request: pb.RevokeRequest, context: Context) -> pb.RevokeReply:
        """Shut out whoever has a host's certificates; it is lost at once, and its endpoints stay."""
        await require_admin(context)
        hosts = self._state.view.objects[Kind.HOST]
        known = self._state.host(request.host)
        if known is None:
            near = nearest(request.host, hosts)
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no Host {request.host}: {near}")
        if known.agentless:
            why = f"host {request.host} has no agent, and so no certificate"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, why)
        put = Put(REVOKED + request.host, encode(self._replica.clock()))
        try:
            answer = await self._state.store.txn([], [put, Delete(alive_key(request.host))])
        except StoreError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return pb.RevokeReply(revision=answer.revision)

    async def status(self, request: pb.StatusRequest, context: Context) -> pb.StatusReply:
        """The controllers, and their hosts."""
        await require_admin(context)
        state = self._state
        leader = state.find(LEADER)
        unfinished = state.unfinished()
        objects = state.view.objects
        return pb.StatusReply(
            replica=self._replica.name,
            leader=leader.value.decode() if leader is not None else "",
            epoch=state.epoch,
            revision=state.revision,
            store=self._store_text,
            connected=state.mirror.connected,
            replicas=sorted(key.removeprefix(REPLICA) for key in state.mirror.items if key.startswith(REPLICA)),
            hosts=[self._host(name) for name in sorted(objects[Kind.HOST])],
            counts=[pb.Count(kind=kind.value, number=len(objects[kind])) for kind in Kind],
            time=self._replica.clock(),
            unfinished=pb.Progress(done=unfinished[0], of=unfinished[1]) if unfinished else None,
        )

    def _host(self, name: str) -> pb.HostStatus:
        host = self._state.host(name) or Host(name)
        return pb.HostStatus(
            name=name,
            state=str(host.state),
            since=host.since,
            agentless=host.agentless,
            replica=replica_of(self._state, name),
            applied=applied_by(self._state, name),
            wanted=self._state.last_change(name),
            endpoints=self._state.view.count_on(name),
        )

    def _endpoint(self, name: str) -> Endpoint:
        found = self._state.view.endpoint(name)
        if found is None:
            raise AdminError(f"there is no endpoint {name}: {nearest(name, self._state.view.objects[Kind.ENDPOINT])}")
        return found

    def _text(self, key: Key) -> str:
        item = self._state.find(object_key(key))
        return item.value.decode() if item is not None else ""


def _kind(text: str) -> Kind:
    """A kind however it is written: `Network`, `network`, `networks`."""
    words = {kind.value.lower(): kind for kind in Kind}
    low = text.lower().replace("-", "").replace("_", "")
    for word in (low, low.removesuffix("s"), low.removesuffix("ies") + "y"):
        if word in words:
            return words[word]
    raise AdminError(f"{text} is no kind: {nearest(text, [kind.value for kind in Kind])}")


def _object(item: pb.Item) -> Object:
    try:
        return from_json(CLASSES[_kind(item.kind)], json.loads(item.object))
    except (FieldError, ValueError) as error:
        raise AdminError(f"{item.kind}: {error}") from None


def _apply_reply(outcome: Outcome) -> pb.ApplyReply:
    plan = outcome.plan
    return pb.ApplyReply(
        revision=outcome.revision,
        steps=[
            pb.Step(
                operation=str(step.operation),
                kind=step.change.key[0].value,
                name=step.change.key[1],
                fields=step.fields,
            )
            for step in plan.steps
        ],
        effects=[
            pb.Effect(
                source=effect.source,
                destination=effect.destination,
                before=str(effect.before),
                after=str(effect.after),
                text=str(effect),
            )
            for effect in plan.effects
        ],
        complete=plan.complete,
        problems=[_problem(problem) for problem in outcome.problems],
    )


def _problem(problem: Problem) -> pb.Problem:
    kind, name = problem.key
    return pb.Problem(kind=kind.value, name=name, field=map(str, problem.field), problem=problem.problem)
