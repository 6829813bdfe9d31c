# SPDX-License-Identifier: Apache-2.0
"""A client's way to a controller: joining with a token, channels with a certificate, renewal, and why one fails."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from controller.proto import ffswitch_pb2 as pb
from controller.proto import ffswitch_pb2_grpc
from controller.security.authority import (
    SERVER_NAME,
    KeyPair,
    SecurityError,
    check_times,
    clock_text,
    host_uri,
    key_pem,
    new_key,
    read_certificate,
    signed_by,
    signing_request,
)
from controller.security.files import Identity
from controller.security.tokens import read_token

DEFAULT_PORT = 7443
TIMEOUT = 10.0

OPTIONS = (
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.use_local_subchannel_pool", 1),
)


def parse_target(text: str) -> tuple[str, int]:
    """`HOST`, `HOST:PORT` or `[IPv6]:PORT`; raises ValueError with the problem as its text."""
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, port = text, str(DEFAULT_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host, int(port)


def target_text(target: tuple[str, int]) -> str:
    """A target as gRPC takes it."""
    host, port = target
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def joining(target: tuple[str, int]) -> tuple[str, int]:
    """Where a controller lets hosts join: the port after the one for sessions."""
    return target[0], target[1] + 1


def secure_channel(target: tuple[str, int], identity: Identity) -> grpc.aio.Channel:
    """A channel to a controller, for whoever has a certificate; close it when done."""
    return grpc.aio.secure_channel(target_text(target), identity.credentials(), OPTIONS)


async def join(target: tuple[str, int], host: str, token: str) -> Identity:
    """Buy a certificate for `host` from the controller whose sessions are at `target`.

    Raises SecurityError, which also says when the controller cannot be reached.
    """
    wanted = read_token(token)
    where = target_text(joining(target))
    leaf = await asyncio.to_thread(_leaf, joining(target))
    if not signed_by(leaf, wanted.authority):
        raise SecurityError(f"{where} is not the controller that made the token: check the address and the token")
    check_times(leaf, f"the certificate of the controller at {where}", datetime.now(UTC))
    key = new_key()
    request = pb.JoinRequest(token=wanted.secret, host=host, csr=signing_request(key, host_uri(host)))
    trusted = grpc.ssl_channel_credentials(leaf.public_bytes(serialization.Encoding.PEM))
    async with grpc.aio.secure_channel(where, trusted, OPTIONS) as channel:
        try:
            answer = await ffswitch_pb2_grpc.AgentsStub(channel).Join(request, timeout=TIMEOUT)
        except grpc.aio.AioRpcError as error:
            raise SecurityError(f"{where}: {error.details() or error.code().name}") from None
    return _accept(answer, key_pem(key), f"the certificate of host {host}")


async def renew(channel: grpc.aio.Channel, host: str) -> Identity:
    """A new certificate for `host`, by a channel that has its old one. Raises SecurityError and AioRpcError."""
    key = new_key()
    request = pb.RenewRequest(csr=signing_request(key, host_uri(host)))
    answer = await ffswitch_pb2_grpc.AgentsStub(channel).Renew(request, timeout=TIMEOUT)
    return _accept(answer, key_pem(key), f"the certificate of host {host}")


def _accept(answer: pb.Certificate, key: bytes, what: str) -> Identity:
    now = datetime.now(UTC)
    found = read_certificate(answer.chain, what)
    if not found.not_valid_before_utc <= now < found.not_valid_after_utc:
        theirs = clock_text(datetime.fromtimestamp(answer.time, UTC))
        raise SecurityError(
            f"{what} is not valid here: the controller's clock says {theirs}, this machine's {clock_text(now)}:"
            " set the clocks, then join with a new token"
        )
    return Identity(KeyPair(answer.chain, key), answer.authority)


async def why_unreachable(targets: Sequence[tuple[str, int]]) -> str:
    """One line for channels that do not come up: nobody there, or certificates that do not do."""
    lines = []
    for target in targets:
        where = target_text(target)
        try:
            leaf = await asyncio.to_thread(_leaf, joining(target))
            check_times(leaf, f"the certificate of the controller at {where}", datetime.now(UTC))
            lines.append(f"the controller at {where} refuses this certificate: is it of the same `ffcontroller init`?")
        except SecurityError as error:
            lines.append(str(error))
    return "; ".join(lines)


def _leaf(target: tuple[str, int]) -> x509.Certificate:
    """The certificate that a server shows, not checked. Blocks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    where = target_text(target)
    try:
        with (
            socket.create_connection(target, timeout=TIMEOUT) as plain,
            context.wrap_socket(plain, server_hostname=SERVER_NAME) as secured,
        ):
            shown = secured.getpeercert(binary_form=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SecurityError(f"no controller answers at {where} ({reason}): is ffcontroller running there?") from None
    if shown is None:
        raise SecurityError(f"{where} shows no certificate")
    return x509.load_der_x509_certificate(shown)
