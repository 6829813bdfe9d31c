# SPDX-License-Identifier: Apache-2.0
"""Controllers as processes over one etcd cluster, and hosts with the daemon's own session but without a switch."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from controller.model import Endpoint, Key, Kind, Object, key_of
from controller.proto import ffswitch_pb2 as pb
from controller.proto.ffswitch_pb2_grpc import AdminStub
from controller.security.authority import KeyPair, host_uri, key_pem, new_key, signing_request
from controller.security.client import secure_channel
from controller.security.files import ADMIN, HOST, Identity, initialise, load_authority, load_identity, save_identity
from vswitch.slowpath.agent.kept import read_object
from vswitch.slowpath.agent.session import CONTROLLERS, Refusal, Session, Target

DEADLINE = 90.0
_RUN = "import sys; from controller.cli.{0} import main; sys.exit(main())"


class Controllers:
    """Controllers c0 and on, each with its directory, address and log. End them with `stop`."""

    def __init__(self, directory: Path, stores: Sequence[Sequence[str]]) -> None:
        """None of them runs yet. `stores`: the members of etcd that each knows."""
        self.directory = directory
        self.targets: list[Target] = []
        self._stores = ["etcd:" + ",".join(endpoints) for endpoints in stores]
        self._processes: list[Process | None] = [None] * len(stores)
        initialise(directory / "c0", datetime.now(UTC))
        for index in range(len(stores)):
            self.targets.append(_lasting_target(self.targets))
            if index:
                shutil.copytree(directory / "c0", directory / f"c{index}")

    async def start(self, *indices: int) -> None:
        """Start these, all of them at once; returns when they listen."""
        await asyncio.gather(*(self._start(index) for index in indices))

    async def _start(self, index: int) -> None:
        host, port = self.targets[index]
        options = ["--state-dir", str(self.directory / f"c{index}"), "--listen", f"{host}:{port}", "--heartbeat", "1"]
        options += ["--store", self._stores[index], "--name", f"c{index}", "-v"]
        with (self.directory / f"c{index}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *_command("ffcontroller", "run", *options), stdout=PIPE, stderr=log
            )
        self._processes[index] = process
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            line = await process.stdout.readline()
        assert b"joining at" in line, self.log(index)

    async def kill(self, index: int) -> None:
        """kill -9, and wait for its end."""
        process = self._processes[index]
        assert process is not None and process.returncode is None, self.log(index)
        process.kill()
        await process.wait()
        self._processes[index] = None

    def pause(self, index: int) -> None:
        """It stands still, and its connections stay."""
        self._process(index).send_signal(signal.SIGSTOP)

    def resume(self, index: int) -> None:
        """It goes on, as if no time had passed."""
        self._process(index).send_signal(signal.SIGCONT)

    async def stop(self) -> None:
        """Kill what runs."""
        for index, process in enumerate(self._processes):
            if process is not None:
                if process.returncode is None:
                    process.kill()
                await process.wait()
                self._processes[index] = None

    def log(self, index: int) -> str:
        """What a controller logged."""
        return (self.directory / f"c{index}.log").read_text()

    async def ctl(self, index: int, *words: str, stdin: str = "") -> tuple[int, str, str]:
        """Run ffctl on one controller: exit code, output, errors."""
        host, port = self.targets[index]
        options = ["--controller", f"{host}:{port}", "--credentials", str(self.directory / "c0")]
        process = await asyncio.create_subprocess_exec(
            *_command("ffctl", *options, *words), stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        try:
            async with asyncio.timeout(DEADLINE):
                out, err = await process.communicate(stdin.encode())
        except BaseException:
            process.kill()
            await process.wait()
            raise
        return cast(int, process.returncode), out.decode(), err.decode()

    async def apply(self, index: int, manifest: str) -> None:
        """Apply a manifest, which has to succeed."""
        code, _, errors = await self.ctl(index, "apply", "-f", "-", stdin=manifest)
        assert code == 0, errors

    async def status(self, index: int) -> pb.StatusReply:
        """What a controller says of itself and the others."""
        identity = load_identity(self.directory / "c0", ADMIN, datetime.now(UTC))
        async with secure_channel(self.targets[index], identity) as channel:
            return await AdminStub(channel).Status(pb.StatusRequest(), timeout=DEADLINE, wait_for_ready=True)

    def identity(self, host: str) -> Identity:
        """A host's certificate."""
        authority, key = load_authority(self.directory / "c0"), new_key()
        chain = authority.issue_host(signing_request(key, host_uri(host)), host, datetime.now(UTC))
        return Identity(KeyPair(chain, key_pem(key)), authority.certificate)

    def _process(self, index: int) -> Process:
        process = self._processes[index]
        assert process is not None and process.returncode is None, self.log(index)
        return process


class SessionHost:
    """A host without a switch: `ports` are what it reports, `known` is what it was told.

    `wrong` collects what may never be seen, however often a controller or a member of the store dies.
    """

    def __init__(self, name: str, targets: Sequence[Target], controllers: Controllers, changed: asyncio.Event) -> None:
        """Sets `changed` whenever it is told something. `run` makes the session."""
        self.name = name
        self.ports: dict[str, str] = {}  # network by name
        self.left: set[str] = set()  # of these, the containers are on other hosts by now
        self.known: dict[Key, Object] = {}
        self.fulls = 0  # how often it was told everything
        self.wrong: list[str] = []
        self._acknowledged: dict[str, Endpoint] = {}
        self._epoch = self._revision = 0
        self._changed = changed
        directory = controllers.directory / name
        directory.mkdir()
        save_identity(directory, HOST, controllers.identity(name))
        self.session = Session(targets, name, directory, "", self, access=CONTROLLERS)

    def add(self, name: str, network: str) -> None:
        """A port comes."""
        self.ports[name] = network
        self.session.say(pb.AgentMessage(observed=pb.Observed(ports=[self._port(name)])))

    def remove(self, name: str) -> None:
        """A port goes."""
        del self.ports[name]
        self.left.discard(name)
        self._acknowledged.pop(name, None)
        self.session.say(pb.AgentMessage(observed=pb.Observed(gone=[name])))

    def endpoint(self, name: str) -> Endpoint | None:
        """An endpoint as this host knows it."""
        return cast(Endpoint | None, self.known.get((Kind.ENDPOINT, name)))

    def has(self, name: str) -> bool:
        """Whether an endpoint is here, and the host was told so."""
        found = self.endpoint(name)
        return name in self.ports and found is not None and found.host == self.name

    # ---- what the session asks and tells ----

    def hello(self) -> pb.Hello:
        return pb.Hello(host=self.name, epoch=self._epoch, revision=self._revision)

    def observed(self) -> pb.Observed:
        return pb.Observed(full=True, ports=[self._port(name) for name in self.ports])

    def heartbeat(self) -> pb.Heartbeat:
        return pb.Heartbeat(revision=self._revision)

    def welcome(self, epoch: int) -> None:
        self._fence(epoch)
        self._changed.set()

    def desired(self, desired: pb.Desired) -> None:
        self._fence(desired.epoch)
        if desired.revision < self._revision:
            self.wrong.append(f"{self.name}: revision {desired.revision} after {self._revision}")
        self._revision = desired.revision
        if desired.full:
            self.fulls += 1
            self.known.clear()
        for item in desired.set:
            read = read_object(item.kind, item.object)
            self.known[key_of(read)] = read
        for key in desired.delete:
            self.known.pop((Kind(key.kind), key.name), None)
        self._check()
        self._changed.set()

    def greeted(self) -> None:
        pass

    def offered(self, offer: pb.RdmaOffer) -> None:
        self.wrong.append(f"{self.name} has no RDMA, and was offered {offer}")

    def refused(self, port: str, reason: str) -> None:
        if port in self.ports.keys() - self.left:
            self.wrong.append(f"{self.name}: port {port} is refused: {reason}")
        self._changed.set()

    def _fence(self, epoch: int) -> None:
        if epoch < self._epoch:
            raise Refusal(f"a stale controller: its epoch is {epoch}, and {self._epoch} was seen already")
        self._epoch = epoch

    def _port(self, name: str) -> pb.Port:
        return pb.Port(name=name, endpoint=json.dumps({"network": self.ports[name]}))

    def _check(self) -> None:
        """No address is given twice; what was acknowledged stays as it was."""
        endpoints = [cast(Endpoint, item) for (kind, _), item in self.known.items() if kind is Kind.ENDPOINT]
        given = [(endpoint.network, ip) for endpoint in endpoints for ip in endpoint.ips]
        if len(given) != len(set(given)):
            self.wrong.append(f"{self.name}: an address was given twice at revision {self._revision}")
        for name, before in list(self._acknowledged.items()):
            now = self.endpoint(name)
            if name in self.left and (now is None or now.host != self.name):
                del self._acknowledged[name]
            elif now is None:
                self.wrong.append(f"{self.name}: endpoint {name} was lost at revision {self._revision}")
            elif (now.ips, now.mac) != (before.ips, before.mac):
                self.wrong.append(f"{self.name}: endpoint {name} was {before}, and is {now}")
            elif now.host != self.name:
                self.wrong.append(f"{self.name}: endpoint {name} went to {now.host} by itself")
        for endpoint in endpoints:
            if self.has(endpoint.name):
                self._acknowledged.setdefault(endpoint.name, endpoint)


@contextlib.asynccontextmanager
async def running(hosts: Sequence[SessionHost]) -> AsyncIterator[None]:
    """The hosts' sessions, for as long as the block."""
    tasks = [asyncio.create_task(host.session.run()) for host in hosts]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(changed: asyncio.Event, holds: Callable[[], bool], what: Callable[[], object] = str) -> None:
    """Wait until it holds, which is looked at whenever `changed` is set; `what` tells how things stand if not."""
    try:
        async with asyncio.timeout(DEADLINE):
            while not holds():
                changed.clear()
                await changed.wait()
    except TimeoutError:
        raise AssertionError(f"it never came to that: {what()}") from None


def _lasting_target(taken: Sequence[Target]) -> Target:
    """A loopback address with two free ports in a row that no outgoing connection gets while a controller is dead."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    # Not the same ones as other runs on this machine.
    for port in random.sample(range(10000, first - 1, 2), 1000):
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 1))
            if ("127.0.0.1", port) not in taken:
                return "127.0.0.1", port
    raise OSError("no two ports in a row are free")


def _command(program: str, *words: str) -> Iterator[str]:
    yield from (sys.executable, "-c", _RUN.format(program), *words)
