# SPDX-License-Identifier: Apache-2.0
"""An agent on a fake switch, and controllers that say what tests want."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from controller.codec import to_json
from controller.model import Kind, Object, kind_of
from controller.proto import ffswitch_pb2 as pb
from controller.proto import ffswitch_pb2_grpc
from controller.security.authority import Authority, host_uri, key_pem, new_key, signing_request
from controller.security.authority import KeyPair as Pair
from controller.security.files import HOST, Identity, save_identity
from tests.unit.switch_bench import Bench
from tests.unit.test_agent_world import BLUE, DB, FAR, H1, H2, WEB
from vswitch.slowpath.agent.agent import Agent
from vswitch.slowpath.agent.session import Access, Target
from vswitch.slowpath.errors import StartError, SwitchError
from vswitch.slowpath.types import PortType
from vswitch.slowpath.uplinks import Uplinks, UplinkView

DEADLINE = 30.0


def item(thing: Object) -> pb.Item:
    return pb.Item(kind=str(kind_of(thing)), object=json.dumps(to_json(thing)))


def desired(revision: int, *things: Object, epoch: int = 1, full: bool = True, gone: Sequence[Object] = ()) -> Any:
    names = [pb.Name(kind=str(kind_of(thing)), name=thing.name) for thing in gone]
    told = pb.Desired(epoch=epoch, revision=revision, full=full, set=[item(thing) for thing in things], delete=names)
    return pb.ControllerMessage(desired=told)


class FakeController(ffswitch_pb2_grpc.AgentsServicer):
    """Greets with `epoch`; what it hears and says is in queues."""

    def __init__(self, epoch: int = 1) -> None:
        self.epoch = epoch
        self.heard: asyncio.Queue[pb.AgentMessage] = asyncio.Queue()
        self.says: asyncio.Queue[pb.ControllerMessage | None] = asyncio.Queue()
        self.renewals = 0
        self.authority: Authority | None = None
        self._server = grpc.aio.server()
        ffswitch_pb2_grpc.add_AgentsServicer_to_server(self, self._server)
        self.target = ("127.0.0.1", self._server.add_insecure_port("127.0.0.1:0"))

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def Session(self, requests: Any, context: Any) -> AsyncIterator[pb.ControllerMessage]:
        hearing = asyncio.create_task(self._hear(requests))
        try:
            yield pb.ControllerMessage(welcome=pb.Welcome(epoch=self.epoch, heartbeat=0.2))
            while (message := await self.says.get()) is not None:
                yield message
        finally:
            hearing.cancel()

    async def _hear(self, requests: Any) -> None:
        async for message in requests:
            self.heard.put_nowait(message)

    async def Join(self, request: pb.JoinRequest, context: Any) -> pb.Certificate:
        raise NotImplementedError

    async def Renew(self, request: pb.RenewRequest, context: Any) -> pb.Certificate:
        self.renewals += 1
        assert self.authority is not None
        chain = self.authority.issue_host(request.csr, "h1", datetime.now(UTC))
        return pb.Certificate(chain=chain, authority=self.authority.certificate)

    async def hear(self, kind: str, fits: Callable[[Any], bool] = lambda _: True) -> Any:
        """The next message of that kind which fits."""
        async with asyncio.timeout(DEADLINE):
            while True:
                message = await self.heard.get()
                if message.WhichOneof("message") == kind and fits(getattr(message, kind)):
                    return getattr(message, kind)


def identity(directory: Path, life: float = 1.0) -> Authority:
    """A certificate for h1, of whose life the part `life` is left."""
    authority, _ = Authority.create(datetime.now(UTC))
    key = new_key()
    issued = datetime.now(UTC)
    chain = authority.issue_host(signing_request(key, host_uri("h1")), "h1", issued)
    if life < 1:
        chain = authority.issue_host(
            signing_request(key, host_uri("h1")), "h1", issued - timedelta(days=30 * (1 - life)), timedelta(days=30)
        )
    save_identity(directory, HOST, Identity(Pair(chain, key_pem(key)), authority.certificate))
    return authority


async def _why(targets: Sequence[Target]) -> str:
    return f"nobody at {targets[0][1]}"


def _plain(target: Target, _identity: Identity) -> grpc.aio.Channel:
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 100))
    return grpc.aio.insecure_channel(f"{target[0]}:{target[1]}", options)


@dataclass
class Stand:
    """An agent, its switch, and what runs with them."""

    bench: Bench
    state_dir: Path
    stack: contextlib.AsyncExitStack
    uplinks: list[Uplinks] = field(default_factory=list)

    async def controller(self, epoch: int = 1) -> FakeController:
        controller = FakeController(epoch)
        await controller.start()
        self.stack.push_async_callback(controller.stop)
        return controller

    def agent(self, *controllers: FakeController) -> Agent:
        targets = [controller.target for controller in controllers]
        access = Access(_plain, _why, 0.01)
        uplinks = Uplinks(self.bench.switch)
        self.uplinks.append(uplinks)
        agent = Agent(
            self.bench.switch, uplinks, name="h1", targets=targets, state_dir=self.state_dir, token="", access=access
        )
        agent.start()
        self.stack.push_async_callback(agent.stop)
        return agent

    def bindings(self) -> dict[str, tuple[int | None, int]]:
        overlay = self.bench.core.overlay
        found = [overlay.endpoint("blue", name) for name in ("web", "db", "far")]
        return {binding.name: (binding.port, binding.remote) for binding in found if binding is not None}


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    identity(tmp_path / "state")
    async with contextlib.AsyncExitStack() as stack:
        yield Stand(Bench(tmp_path / "run"), tmp_path / "state", stack)


def applied(revision: int) -> Callable[[Any], bool]:
    return lambda heartbeat: bool(heartbeat.revision == revision)


async def test_told_all_then_what_changes(stand: Stand) -> None:
    controller = await stand.controller()
    stand.bench.run_dir.mkdir()
    port = stand.bench.add("web", network="blue")
    stand.agent(controller)
    hello = await controller.hear("hello")
    assert (hello.host, hello.revision) == ("h1", 0)
    observed = await controller.hear("observed")
    assert observed.full
    assert [reported.name for reported in observed.ports] == ["web"]
    controller.says.put_nowait(desired(5, H1, H2, BLUE, WEB, FAR))
    await controller.hear("heartbeat", applied(5))
    assert stand.bindings() == {"web": (port, 0), "far": (None, 1)}
    tunnel = stand.bench.switch.ports["vxlan100"]
    assert (tunnel.config.type, tunnel.config.vni) == (PortType.VXLAN, 100)
    assert stand.bench.switch.ports["web"].config.assigned_mac == WEB.mac
    assert "vxlan100" not in stand.bench.saved
    with pytest.raises(SwitchError, match="comes and goes with network blue"):
        stand.bench.switch.remove("vxlan100")
    controller.says.put_nowait(desired(6, DB, full=False, gone=[FAR]))
    await controller.hear("heartbeat", applied(6))
    assert stand.bindings() == {"web": (port, 0), "db": (None, 0)}
    controller.says.put_nowait(desired(7, H1))
    await controller.hear("heartbeat", applied(7))
    assert stand.bindings() == {}
    assert "vxlan100" not in stand.bench.switch.ports
    assert stand.bench.switch.ports["web"].config.assigned_mac == ""


async def test_ports_that_come_and_go_are_told(stand: Stand) -> None:
    controller = await stand.controller()
    agent = stand.agent(controller)
    assert not (await controller.hear("observed")).ports
    entry = stand.bench.switch.add(stand.bench.config("web", network="blue", ips=["10.0.0.1"], labels=["tier=web"]))
    (told,) = (await controller.hear("observed")).ports
    asked = json.loads(told.endpoint)
    assert (asked["network"], asked["mac"], asked["ips"]) == ("blue", "", ["10.0.0.1"])
    assert asked["labels"] == {"tier": "web"}
    controller.says.put_nowait(pb.ControllerMessage(refused=pb.Refused(port="web", reason="10.0.0.1 is db's")))
    placement = await agent.wait_placed(entry, DEADLINE)
    assert placement is not None
    assert (placement.state, placement.reason) == ("refused", "10.0.0.1 is db's")
    stand.bench.switch.remove("web")
    assert list((await controller.hear("observed")).gone) == ["web"]
    assert agent.status()["refused"] == {}


async def test_the_next_controller_when_one_goes(stand: Stand) -> None:
    one, two = await stand.controller(), await stand.controller()
    agent = stand.agent(one, two)
    await one.hear("hello")
    one.says.put_nowait(desired(9, H1, BLUE, WEB))
    await one.hear("heartbeat", applied(9))
    await one.stop()
    hello = await two.hear("hello")
    assert (hello.epoch, hello.revision) == (1, 9)
    await two.hear("heartbeat")
    assert agent.status()["state"] == "connected"
    assert agent.status()["controller"].endswith(str(two.target[1]))


async def test_a_stale_controller_is_refused(stand: Stand) -> None:
    new, stale = await stand.controller(epoch=7), await stand.controller(epoch=6)
    agent = stand.agent(new, stale)
    await new.hear("hello")
    new.says.put_nowait(desired(9, H1, BLUE, WEB, epoch=7))
    await new.hear("heartbeat", applied(9))
    new.says.put_nowait(desired(10, H1, epoch=6))
    hello = await stale.hear("hello")
    assert (hello.epoch, hello.revision) == (7, 9)
    await new.hear("hello")
    assert set(stand.bindings()) == {"web"}
    assert agent.status()["epoch"] == 7


async def test_an_uplink_found_before_anybody_listens_is_told(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = await stand.controller()
    view = UplinkView("up0", ("192.0.2.1/24",), (), 1500, 0, "")
    agent = stand.agent(controller)
    agent.hello()
    monkeypatch.setattr(stand.uplinks[-1], "views", lambda: [view])
    stand.uplinks[-1].changed[-1]()
    heartbeat = agent.heartbeat()
    assert json.loads(heartbeat.capabilities)["uplinks"][0]["name"] == "up0"


async def test_nonsense_changes_nothing(stand: Stand) -> None:
    controller = await stand.controller()
    stand.agent(controller)
    controller.says.put_nowait(desired(2, H1, BLUE, WEB))
    await controller.hear("heartbeat", applied(2))
    nonsense = pb.Desired(epoch=1, revision=3, full=True, set=[pb.Item(kind=Kind.HOST, object="{}")])
    controller.says.put_nowait(pb.ControllerMessage(desired=nonsense))
    await controller.hear("hello", lambda hello: bool(hello.revision == 2))
    assert set(stand.bindings()) == {"web"}


async def test_what_was_told_outlives_the_daemon(stand: Stand, tmp_path: Path) -> None:
    controller = await stand.controller()
    agent = stand.agent(controller)
    controller.says.put_nowait(desired(4, H1, H2, BLUE, WEB, FAR))
    await controller.hear("heartbeat", applied(4))
    await agent.stop()
    await controller.stop()
    again = Stand(Bench(tmp_path / "again"), stand.state_dir, stand.stack)
    agent = again.agent(controller)
    assert again.bindings() == stand.bindings()
    async with asyncio.timeout(DEADLINE):
        while "nobody" not in agent.status()["why"]:
            await agent.until_session_changes()
    assert (agent.status()["state"], agent.status()["revision"]) == ("degraded", 4)
    assert agent.explain("web", "far")["path"] == "vxlan"


async def test_a_kept_file_that_is_damaged_is_passed_over(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    (stand.state_dir / "desired.json").write_text('{"version": 1')
    agent = stand.agent(await stand.controller())
    assert "cannot be read" in caplog.text
    assert agent.status()["revision"] == 0


async def test_the_certificate_is_renewed_in_time(stand: Stand) -> None:
    authority = identity(stand.state_dir, life=0.1)
    before = (stand.state_dir / "host.pem").read_bytes()
    controller = await stand.controller()
    controller.authority = authority
    stand.agent(controller)
    await controller.hear("heartbeat")
    await controller.hear("heartbeat")
    assert controller.renewals == 1
    assert (stand.state_dir / "host.pem").read_bytes() != before
    assert (stand.state_dir / "host.pem").stat().st_mode & 0o777 == 0o600


def test_neither_certificate_nor_token(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run")
    with pytest.raises(StartError, match="no certificate of this host: give a --join-token"):
        Agent(bench.switch, Uplinks(bench.switch), name="h1", targets=[("h", 1)], state_dir=tmp_path)
