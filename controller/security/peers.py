# SPDX-License-Identifier: Apache-2.0
"""Who makes a call, by the certificate that TLS has verified."""

from __future__ import annotations

from typing import Any

import grpc

from controller.security.authority import ADMIN, HOST_PREFIX, issue_time, read_certificate

Context = grpc.aio.ServicerContext[Any, Any]


def peer_uri(context: Context) -> str:
    """The URI of the caller's certificate; "" without one."""
    found = [value.decode(errors="replace") for value in context.auth_context().get("peer_uri", ())]
    return found[0] if len(found) == 1 else ""


async def require_host(context: Context) -> str:
    """The host that calls; anybody else's call ends here."""
    uri = peer_uri(context)
    if not uri.startswith(HOST_PREFIX):
        who = uri or "a caller without a certificate"
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{who} is no host: this is for ffswitchd")
    return uri.removeprefix(HOST_PREFIX)


def issued_at(context: Context) -> float:
    """When the caller's certificate was made, in whole seconds since 1970."""
    (text,) = context.auth_context()["x509_pem_cert"]
    return issue_time(read_certificate(text, "the caller's certificate")).timestamp()


async def require_admin(context: Context) -> None:
    """Anybody's but an operator's call ends here."""
    uri = peer_uri(context)
    if uri != ADMIN:
        who = uri or "a caller without a certificate"
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{who} is no operator: use the admin certificate")
