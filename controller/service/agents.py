# SPDX-License-Identifier: Apache-2.0
"""The service that hosts talk to."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import grpc

from controller.proto import ffswitch_pb2 as pb
from controller.security.authority import Authority, SecurityError, clock_text
from controller.security.peers import Context, issued_at, require_host
from controller.security.tokens import token_hash
from controller.service import wire
from controller.service.draft import unchanged
from controller.service.keys import TOKEN
from controller.service.placing import Superseded
from controller.service.session import AgentSession, Replica, SessionEnds, check_revoked
from controller.store.base import Delete, LeaseLost, StoreError

log = logging.getLogger(__name__)

_SERVICE = "ffswitch.v1.Agents"


class Agents:
    """Sessions, and certificates for them."""

    def __init__(self, replica: Replica, authority: Authority) -> None:
        self._replica = replica
        self._authority = authority
        self._sessions: dict[str, AgentSession] = {}

    def handlers(self) -> grpc.GenericRpcHandler:
        """What needs a certificate."""
        # Sessions send bytes that are serialised already, which generated code does not know.
        return grpc.method_handlers_generic_handler(
            _SERVICE,
            {
                "Renew": grpc.unary_unary_rpc_method_handler(
                    self.renew, pb.RenewRequest.FromString, pb.Certificate.SerializeToString
                ),
                "Session": grpc.stream_stream_rpc_method_handler(self.session, pb.AgentMessage.FromString, None),
            },
        )

    def joining(self) -> grpc.GenericRpcHandler:
        """What takes a token instead."""
        handler = grpc.unary_unary_rpc_method_handler(
            self.join, pb.JoinRequest.FromString, pb.Certificate.SerializeToString
        )
        return grpc.method_handlers_generic_handler(_SERVICE, {"Join": handler})

    def end_sessions(self, reason: str) -> None:
        """Send all agents away, to another replica."""
        for session in self._sessions.values():
            session.end(reason)

    async def join(self, request: pb.JoinRequest, context: Context) -> pb.Certificate:
        """A certificate for a token."""
        now = self._replica.clock()
        try:
            return await self._join(request, now)
        except SecurityError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        except StoreError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))

    async def _join(self, request: pb.JoinRequest, now: float) -> pb.Certificate:
        store = self._replica.state.store
        key = TOKEN + token_hash(request.token)
        found = await store.get(key)
        if found is None:
            raise SecurityError("there is no such token, or it was used: `ffctl token create` makes a new one")
        token = json.loads(found.value)
        if token["expires"] <= now:
            ended, clock = (clock_text(datetime.fromtimestamp(t, UTC)) for t in (token["expires"], now))
            raise SecurityError(
                f"the token for host {token['host']} ended at {ended}, and the controller's clock says {clock}:"
                " make a new one"
            )
        if token["host"] != request.host:
            raise SecurityError(f"the token is for host {token['host']}, not for {request.host}")
        certificate = self._certificate(request.csr, request.host, now)
        # A lost answer costs the token; what cannot be is that two get a certificate for it.
        if not (await store.txn([unchanged(key, found.mod_revision)], [Delete(key)])).succeeded:
            raise SecurityError("the token was used just now: `ffctl token create` makes a new one")
        log.info("host %s joined", request.host)
        return certificate

    async def renew(self, request: pb.RenewRequest, context: Context) -> pb.Certificate:
        """A new certificate for a host that has one."""
        host = await require_host(context)
        try:
            check_revoked(self._replica.state, host, issued_at(context))
            return self._certificate(request.csr, host, self._replica.clock())
        except (SecurityError, SessionEnds) as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))

    def _certificate(self, request: bytes, host: str, now: float) -> pb.Certificate:
        chain = self._authority.issue_host(request, host, datetime.fromtimestamp(now, UTC))
        return pb.Certificate(chain=chain, authority=self._authority.certificate, time=now)

    async def session(self, requests: AsyncIterator[pb.AgentMessage], context: Context) -> None:
        """One agent, until it goes or is sent away."""
        host = await require_host(context)

        async def read() -> pb.AgentMessage | None:
            return await anext(requests, None)

        first = await read()
        if first is None:
            return
        hello = first.hello
        try:
            if first.WhichOneof("message") != "hello":
                raise SessionEnds(f"host {host} did not begin with a Hello: upgrade the older of the two")
            if hello.host != host:
                raise SessionEnds(f"the certificate is host {host}'s, which cannot speak for host {hello.host}")
            await self._serve(AgentSession(self._replica, host, issued_at(context), context.write), hello, read)
        except (SessionEnds, Superseded) as error:
            await context.write(wire.refused("", str(error)))
        except (StoreError, LeaseLost) as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))

    async def _serve(self, session: AgentSession, hello: pb.Hello, read: Any) -> None:
        before = self._sessions.get(session.host)
        if before is not None:
            before.end(f"another session of host {session.host} began")
        self._sessions[session.host] = session
        log.info("host %s: session begins at revision %d", session.host, hello.revision)
        try:
            await session.run(hello, read)
        except ExceptionGroup as group:
            raise _single(group) from None
        except asyncio.CancelledError:
            log.info("host %s: session is cut off", session.host)
            raise
        finally:
            if self._sessions.get(session.host) is session:
                del self._sessions[session.host]


def _single(group: ExceptionGroup[Exception]) -> Exception:
    """What went wrong first, of tasks that went wrong together."""
    error: Exception = group
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
