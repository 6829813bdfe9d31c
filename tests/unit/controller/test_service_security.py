# SPDX-License-Identifier: Apache-2.0
"""Who gets in, as whom, and what the others are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from controller.proto import ffswitch_pb2 as pb
from controller.proto.ffswitch_pb2_grpc import AdminStub, AgentsStub
from controller.security import authority as ca
from controller.security import client, files, tokens
from tests.agents import DEADLINE, FakeAgent
from tests.unit.controller.cluster import BLUE, Cluster, cluster

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as found:
        yield found


async def token(made: Cluster, host: str, ttl: float = 60.0) -> tuple[str, tuple[str, int]]:
    controller = await made.start()
    stub = await made.admin(controller)
    answer = await stub.CreateToken(pb.CreateTokenRequest(host=host, ttl=ttl), timeout=DEADLINE)
    return answer.token, controller.target


async def test_a_token_buys_one_certificate(made: Cluster) -> None:
    text, target = await token(made, "h1")
    with pytest.raises(ca.SecurityError, match="for host h1, not for h2"):
        await client.join(target, "h2", text)
    identity = await client.join(target, "h1", text)
    async with FakeAgent(target, identity, "h1") as agent:
        await agent.until(lambda agent: agent.desired)
    with pytest.raises(ca.SecurityError, match="no such token, or it was used"):
        await client.join(target, "h1", text)


async def test_of_two_who_use_one_token_at_once_one_gets_a_certificate(made: Cluster) -> None:
    text, target = await token(made, "h1")
    results = await asyncio.gather(*(client.join(target, "h1", text) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(result, files.Identity) for result in results) == 1
    assert sum(isinstance(result, ca.SecurityError) for result in results) == 3


async def test_an_expired_token_names_both_clocks(made: Cluster) -> None:
    text, target = await token(made, "h1", ttl=60.0)
    made.clock.ahead = 61.0
    with pytest.raises(ca.SecurityError, match=r"ended at .* UTC, and the controller's clock says .* UTC"):
        await client.join(target, "h1", text)


async def test_a_host_says_its_token_to_its_own_controller_only(made: Cluster) -> None:
    text, target = await token(made, "h1")
    other, _ = ca.Authority.create(datetime.now(UTC))
    forged = tokens.JoinToken(tokens.read_token(text).secret, other.public_key())
    with pytest.raises(ca.SecurityError, match="is not the controller that made the token"):
        await client.join(target, "h1", str(forged))
    await client.join(target, "h1", text)


async def test_a_certificate_from_a_controller_whose_clock_is_ahead_is_not_taken(made: Cluster) -> None:
    text, target = await token(made, "h1", ttl=86400.0)
    made.clock.ahead = 3600.0
    with pytest.raises(ca.SecurityError, match=r"the controller's clock says .* UTC, this machine's .* UTC"):
        await client.join(target, "h1", text)


@pytest.mark.parametrize("text", ["", "abc", "abc.def", "a.b.c", "x." + "A" * 44])
def test_a_token_that_is_none(text: str) -> None:
    with pytest.raises(ca.SecurityError, match="copy the whole line"):
        tokens.read_token(text)


async def test_a_host_speaks_for_itself_only(made: Cluster) -> None:
    controller = await made.start()
    async with FakeAgent(controller.target, made.identity("h1"), "h2") as agent:
        why = await agent.until(lambda agent: agent.ended)
    assert why == "the certificate is host h1's, which cannot speak for host h2"
    assert controller.state.host("h2") is None
    async with client.secure_channel(controller.target, made.identity("h1")) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="use the admin certificate"):
            await AdminStub(channel).Status(pb.StatusRequest(), timeout=DEADLINE)
        request = pb.RenewRequest(csr=ca.signing_request(ca.new_key(), ca.host_uri("h2")))
        with pytest.raises(grpc.aio.AioRpcError, match="host/h2, not for ffswitch://host/h1"):
            await AgentsStub(channel).Renew(request, timeout=DEADLINE)
        renewed = await client.renew(channel, "h1")
    async with FakeAgent(controller.target, renewed, "h1") as agent:
        await agent.until(lambda agent: agent.desired)


async def test_a_revoked_host_is_shut_out_until_it_joins_again(made: Cluster) -> None:
    one, two = await made.start(), await made.start()
    await made.apply(one, BLUE)
    admin = await made.admin(one)
    identity = made.identity("h1")
    async with FakeAgent(two.target, identity, "h1") as h1, made.agent(one, "h2") as h2:
        await h1.observe({"web0": {"network": "blue"}}, full=True)
        await h2.observe({"db0": {"network": "blue"}}, full=True)
        await h2.endpoint("web0", host="h1")
        await admin.Revoke(pb.RevokeRequest(host="h1"), timeout=DEADLINE)
        await h2.until(lambda agent: agent.known["Host", "h1"]["state"] == "lost")
        assert h2.known["Endpoint", "web0"]["host"] == "h1"
        assert "was revoked at" in await h1.until(lambda agent: agent.ended)
        async with FakeAgent(one.target, identity, "h1") as again:
            why = await again.until(lambda agent: agent.ended)
        assert why.endswith("remove its host.pem and join with a new token")
        async with client.secure_channel(one.target, identity) as channel:
            with pytest.raises(grpc.aio.AioRpcError, match="was revoked at"):
                await client.renew(channel, "h1")
        # Certificates tell whole seconds.
        made.clock.ahead = 2.0
        answer = await admin.CreateToken(pb.CreateTokenRequest(host="h1", ttl=60.0), timeout=DEADLINE)
        joined = await client.join(one.target, "h1", answer.token)
        async with FakeAgent(one.target, joined, "h1"):
            await h2.until(lambda agent: agent.known["Host", "h1"]["state"] == "up")
    with pytest.raises(grpc.aio.AioRpcError, match="there is no Host h3"):
        await admin.Revoke(pb.RevokeRequest(host="h3"), timeout=DEADLINE)


async def test_a_forged_certificate_does_not_come_in(made: Cluster) -> None:
    controller = await made.start()
    other, _ = ca.Authority.create(datetime.now(UTC))
    key = ca.new_key()
    chain = other.issue_host(ca.signing_request(key, ca.host_uri("h1")), "h1", datetime.now(UTC))
    own = made.identity("h1")
    forged = files.Identity(ca.KeyPair(chain, ca.key_pem(key)), own.authority)
    async with client.secure_channel(controller.target, forged) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await AgentsStub(channel).Renew(pb.RenewRequest(), timeout=DEADLINE)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "refuses this certificate" in await client.why_unreachable([controller.target])


async def test_without_a_certificate_only_joining_is_possible(made: Cluster) -> None:
    controller = await made.start()
    trusted = grpc.ssl_channel_credentials(made.identity("h1").authority)
    where = client.target_text(controller.joining)
    async with grpc.aio.secure_channel(where, trusted, client.OPTIONS) as channel:
        for call in (AgentsStub(channel).Renew(pb.RenewRequest()), AdminStub(channel).Status(pb.StatusRequest())):
            with pytest.raises(grpc.aio.AioRpcError, match="without a certificate"):
                await call


async def test_a_hosts_certificate_makes_no_controller(made: Cluster) -> None:
    await made.start()
    host = made.identity("h1")
    server = grpc.aio.server()
    credentials = grpc.ssl_server_credentials([(host.pair.key, host.pair.certificate)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        async with client.secure_channel(("127.0.0.1", port), host) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await AgentsStub(channel).Renew(pb.RenewRequest(), timeout=DEADLINE)
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        await server.stop(None)


async def test_a_new_server_certificate_needs_no_restart(made: Cluster) -> None:
    controller = await made.start()
    await made.apply(controller, BLUE)
    async with made.agent(controller, "h1") as h1:
        await h1.until(lambda agent: agent.desired)
        # Another authority, which clients trust as well: nothing of the old certificate would do.
        old = (made.directory / "ca.crt").read_bytes()
        newer, pair = ca.Authority.create(datetime.now(UTC))
        both = old + pair.certificate
        files.save_identity(made.directory, files.SERVER, files.Identity(newer.issue_server(datetime.now(UTC)), both))
        only_new = files.Identity(made.identity("h2").pair, pair.certificate)
        async with FakeAgent(controller.target, only_new, "h2") as h2:
            await h2.until(lambda agent: agent.desired)
        await h1.observe({"a": {"network": "blue"}}, full=True)
        await h1.endpoint("a")


def test_times_that_are_off_name_both_clocks(tmp_path: Path) -> None:
    files.initialise(tmp_path, NOW)
    with pytest.raises(ca.SecurityError, match=r"issued at 2026-01-01 .* but this machine's clock says 2025-12-31"):
        files.load_identity(tmp_path, files.ADMIN, NOW - timedelta(hours=1))
    with pytest.raises(ca.SecurityError, match=r"ended at 2027-01-01 .* this machine's clock says 2027-"):
        files.load_identity(tmp_path, files.ADMIN, NOW + timedelta(days=400))
    # Clocks that differ a little do no harm.
    files.load_identity(tmp_path, files.ADMIN, NOW - timedelta(minutes=4))
    with pytest.raises(ca.SecurityError, match="has an authority already"):
        files.initialise(tmp_path, NOW)


def test_renewal_is_due_in_the_last_third(tmp_path: Path) -> None:
    files.initialise(tmp_path, NOW)
    identity = files.load_identity(tmp_path, files.ADMIN, NOW)
    assert not identity.renewal_due(NOW + ca.ADMIN_LIFE * 0.6)
    assert identity.renewal_due(NOW + ca.ADMIN_LIFE * 0.7)


def test_a_request_is_for_the_hosts_own_name(tmp_path: Path) -> None:
    made, _ = ca.Authority.create(NOW)
    for uri in (ca.ADMIN, ca.host_uri("h2"), ca.CONTROLLER):
        with pytest.raises(ca.SecurityError, match="ask for your own"):
            made.issue_host(ca.signing_request(ca.new_key(), uri), "h1", NOW)
    with pytest.raises(ca.SecurityError, match="no PKCS #10 PEM"):
        made.issue_host(b"nonsense", "h1", NOW)
