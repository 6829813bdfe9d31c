# SPDX-License-Identifier: Apache-2.0
"""The agent of a host: its ports are reported, what the controller wants is done, and kept for when it is away."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.codec import FieldError, to_json
from controller.decide import Decision, decide
from controller.explain import decision_json
from controller.model import Capabilities, Endpoint, Key, Kind
from controller.proto import ffswitch_pb2 as pb
from controller.security.files import HOST
from vswitch import __version__
from vswitch.slowpath.agent import kept
from vswitch.slowpath.agent.apply import Applier
from vswitch.slowpath.agent.hostinfo import capabilities
from vswitch.slowpath.agent.offers import read_offer, write_offer
from vswitch.slowpath.agent.report import asked_for, is_endpoint
from vswitch.slowpath.agent.session import CONTROLLERS, Access, Refusal, Session, Target
from vswitch.slowpath.agent.world import HostWorld
from vswitch.slowpath.errors import StartError, SwitchError
from vswitch.slowpath.ports import told_mac
from vswitch.slowpath.rdma import NO_DEVICE, Discovery, discover, gid_text
from vswitch.slowpath.rdma_negotiation import Offer
from vswitch.slowpath.rdma_peers import RDMA_TIMEOUT_MS, RdmaPeers
from vswitch.slowpath.switch import PortEntry, Switch
from vswitch.slowpath.types import PortConfig
from vswitch.slowpath.uplinks import Uplinks

log = logging.getLogger(__name__)

_LOOK_S = 5.0  # how often RDMA devices are looked at: Linux logs each look at a port whose speed it does not know
_KEEP_AFTER_S = 1.0  # changes are written together: the file is as long as all that is known


@dataclass(frozen=True, slots=True)
class Placement:
    """What the controller says to a port: placed, waiting, refused, or away; `reason` is one line."""

    state: str
    reason: str = ""


class Agent:
    """One per daemon that has controllers."""

    def __init__(
        self,
        switch: Switch,
        uplinks: Uplinks,
        *,
        name: str,
        targets: Sequence[Target],
        state_dir: Path,
        token: str = "",
        rdma_timeout_ms: int = RDMA_TIMEOUT_MS,
        discover: Callable[[], Discovery] = discover,
        access: Access = CONTROLLERS,
    ) -> None:
        """Raises StartError when there is neither a certificate in `state_dir` nor a token."""
        if not token and not (state_dir / f"{HOST}.pem").exists():
            raise StartError(
                f"{state_dir} has no certificate of this host: give a --join-token of `ffctl token create`"
            )
        self.name = name
        self._switch, self._uplinks = switch, uplinks
        self._file = state_dir / "desired.json"
        self._world = HostWorld(name)
        self.rdma = RdmaPeers(switch, self._offer, rdma_timeout_ms)
        self._discover, self._found = discover, Discovery()
        self._looks = asyncio.Event()
        self._applier = Applier(switch, uplinks, self.rdma)
        self._session = Session(targets, name, state_dir, token, self, access=access)
        self._epoch, self._revision = 0, 0
        self._reported: dict[str, Endpoint] = {}
        self._refused: dict[str, str] = {}
        self._capabilities = Capabilities()
        self._told = asyncio.Event()
        self._unkept = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Go on with what was kept, and look for a controller. In the running loop, once the ports are there."""
        try:
            known = kept.load(self._file, self.name)
        except kept.KeptError as error:
            log.error("%s", error)
            known = kept.Kept()
        self._epoch, self._revision = known.epoch, known.revision
        self._look_at(self._discover())
        self._applier.apply(self._world.apply(known.objects, ()))
        self._switch.watchers.append(self._port_changed)
        self._switch.rules.controlled = self
        self._switch.shortcuts.changed()
        self._switch.event_hooks.append(self._looks.set)
        self._uplinks.changed.append(self._capabilities_changed)
        self._tasks = [
            asyncio.create_task(self._session.run()),
            asyncio.create_task(self._keep()),
            asyncio.create_task(self._look()),
        ]

    async def stop(self) -> None:
        """End the session; what the switch does stays."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.rdma.stop()
        if self._unkept.is_set():
            self._save()

    # ---- what the session asks and tells -----------------------------------------------------

    def hello(self) -> pb.Hello:
        """How the host introduces itself."""
        self._capabilities = self._capable()
        return pb.Hello(
            host=self.name,
            version=__version__,
            capabilities=json.dumps(to_json(self._capabilities)),
            epoch=self._epoch,
            revision=self._revision,
        )

    def observed(self) -> pb.Observed:
        """All ports that are to be endpoints."""
        self._refused.clear()
        self._reported = {
            name: asked_for(entry.config) for name, entry in self._switch.ports.items() if is_endpoint(entry.config)
        }
        return pb.Observed(full=True, ports=[_port(endpoint) for endpoint in self._reported.values()])

    def heartbeat(self) -> pb.Heartbeat:
        """A sign of life."""
        now = self._capable()
        changed = now != self._capabilities
        self._capabilities = now
        return pb.Heartbeat(revision=self._revision, capabilities=json.dumps(to_json(now)) if changed else "")

    def welcome(self, epoch: int) -> None:
        """A controller greets; Refusal when another one has taken its place meanwhile."""
        self._fence(epoch)

    def desired(self, desired: pb.Desired) -> None:
        """The host is to be as the controller says. Raises Refusal, and then nothing has changed."""
        self._fence(desired.epoch)
        try:
            put = [kept.read_object(item.kind, item.object) for item in desired.set]
            removed: list[Key] = [(Kind(key.kind), key.name) for key in desired.delete]
        except (ValueError, KeyError, FieldError) as error:
            raise Refusal(f"the controller said what this ffswitchd does not understand: {error}") from None
        self._applier.apply(self._world.replace(put) if desired.full else self._world.apply(put, removed))
        self._revision = desired.revision
        self._refused = {name: why for name, why in self._refused.items() if not self._is_placed(name)}
        self._unkept.set()
        self._tell()

    def refused(self, port: str, reason: str) -> None:
        """The controller does not want a port as an endpoint."""
        log.warning("port %s: the controller refuses it: %s", port, reason)
        self._refused[port] = reason
        self._tell()

    def _fence(self, epoch: int) -> None:
        if epoch < self._epoch:
            raise Refusal(f"a stale controller: its epoch is {epoch}, and {self._epoch} was seen already")
        if epoch > self._epoch:
            self._epoch = epoch
            self._unkept.set()

    # ---- what the switch tells -----------------------------------------------------------------

    def _port_changed(self, name: str) -> None:
        self._applier.port_changed(name)
        entry = self._switch.ports.get(name)
        endpoint = asked_for(entry.config) if entry is not None and is_endpoint(entry.config) else None
        if self._reported.get(name) == endpoint:
            return
        self._refused.pop(name, None)
        if endpoint is None:
            del self._reported[name]
            self._session.say(pb.AgentMessage(observed=pb.Observed(gone=[name])))
        else:
            self._reported[name] = endpoint
            self._session.say(pb.AgentMessage(observed=pb.Observed(ports=[_port(endpoint)])))

    def _capable(self) -> Capabilities:
        return capabilities(self._uplinks.views(), self._found)

    def _capabilities_changed(self) -> None:
        # A heartbeat that is not heard must not count as told.
        if self._session.speaking and self._capable() != self._capabilities:
            self._session.say(pb.AgentMessage(heartbeat=self.heartbeat()))

    # ---- RDMA ------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Look at the RDMA devices now and then, and when a port of the switch has changed."""
        while True:
            self._looks.clear()
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._looks.wait()
            except TimeoutError:
                pass
            self._look_at(await asyncio.to_thread(self._discover))

    def _look_at(self, found: Discovery) -> None:
        if found == self._found:
            return
        for port in found.ports:
            if port not in self._found.ports:
                gids = ", ".join(f"{gid.index}: {gid_text(gid.address)} ({gid.kind})" for gid in port.gids)
                log.info("RDMA port %s: %s, GIDs %s", port.label, port.state, gids or "none")
        for problem in found.problems:
            if problem not in self._found.problems:
                level = logging.INFO if problem == NO_DEVICE else logging.WARNING
                log.log(level, "RDMA: %s; other hosts are reached by VXLAN", problem)
        self._found = found
        self.rdma.discovered(found)
        self._capabilities_changed()

    def greeted(self) -> None:
        """A session begins: what others were offered is said again."""
        self.rdma.say_all()

    def offered(self, offer: pb.RdmaOffer) -> None:
        """What another host offers."""
        self.rdma.offered(offer.host, read_offer(offer), offer.revision)

    def _offer(self, host: str, offer: Offer) -> None:
        self._session.say(pb.AgentMessage(rdma=write_offer(host, offer)))

    # ---- for people -----------------------------------------------------------------------------

    def placement(self, entry: PortEntry) -> Placement | None:
        """What the controller says to a port; None: it is no affair of the controller's."""
        if not is_endpoint(entry.config):
            return None
        name = entry.config.name
        if name in self._refused:
            return Placement("refused", self._refused[name])
        if self._is_placed(name):
            return Placement("placed")
        if not self._session.connected:
            return Placement("away", f"the controller is away: {self._session.standing.why}")
        return Placement("waiting", "the controller has not answered yet")

    async def wait_placed(self, entry: PortEntry, seconds: float) -> Placement | None:
        """Wait until the controller has decided on a port, `seconds` at most."""
        deadline = time.monotonic() + seconds
        while (placement := self.placement(entry)) is not None and placement.state in ("waiting", "away"):
            left = deadline - time.monotonic()
            if left <= 0 or self._switch.ports.get(entry.config.name) is not entry:
                break
            try:
                async with asyncio.timeout(left):
                    await self._told.wait()
            except TimeoutError:
                break
        return placement

    async def until_session_changes(self) -> None:
        """Wait until the session stands otherwise than now, or fails for another reason."""
        await self._session.until_changed()

    def status(self) -> dict[str, Any]:
        """How the session stands."""
        standing, objects = self._session.standing, self._world.objects
        return {
            "host": self.name,
            "state": "connected" if standing.connected else "degraded",
            "controller": standing.controller,
            "since": round(standing.since, 3),
            "why": standing.why,
            "epoch": self._epoch,
            "revision": self._revision,
            "networks": len(objects[Kind.NETWORK]),
            "endpoints": len(objects[Kind.ENDPOINT]),
            "refused": dict(sorted(self._refused.items())),
        }

    @property
    def rdma_devices(self) -> Discovery:
        """The RDMA ports of this host as they were at the last look."""
        return self._found

    def explain(self, source: str, destination: str) -> dict[str, Any]:
        """The decision on a pair as this host knows it. Raises SwitchError."""
        known = [self._world.endpoint(name) for name in (source, destination)]
        for name, endpoint in zip((source, destination), known, strict=True):
            if endpoint is None:
                raise SwitchError(f"this host knows no endpoint {name}: it knows those of its own endpoints' networks")
        one, other = (endpoint for endpoint in known if endpoint is not None)
        decision = decide(one, other, self._world.world)
        host = other.host if self._world.here(one) else one.host
        why = self.rdma.why_not(host) if decision.rdma is not None else None
        return decision_json(decision) | {"fallback": why or ""}

    # ---- for shortcuts -------------------------------------------------------------------------

    @property
    def fresh(self) -> bool:
        """Whether the controller is heard now."""
        return self._session.connected

    def pair(self, one: PortConfig, other: PortConfig) -> Decision | None:
        """The decision on the endpoints behind two ports; None while one is not placed here as its port asks."""
        ends = [endpoint for config in (one, other) if (endpoint := self._of_port(config)) is not None]
        return decide(ends[0], ends[1], self._world.world) if len(ends) == 2 else None

    def _of_port(self, config: PortConfig) -> Endpoint | None:
        endpoint = self._world.endpoint(config.name)
        if endpoint is None or not self._world.here(endpoint) or endpoint.network != config.network:
            return None
        # What was asked for just now counts as little as what was asked for before, until the controller has said yes.
        return endpoint if config.trust_domain in ("", endpoint.trust_domain) else None

    # ---- within --------------------------------------------------------------------------------

    def _is_placed(self, name: str) -> bool:
        endpoint, entry = self._world.endpoint(name), self._switch.ports.get(name)
        if endpoint is None or entry is None or not self._world.here(endpoint) or not endpoint.mac:
            return False
        asked = self._reported.get(name)
        fits = endpoint.network == entry.config.network and told_mac(entry.config) == endpoint.mac
        return fits and (asked is None or set(asked.ips) <= set(endpoint.ips))

    def _tell(self) -> None:
        self._told.set()
        self._told = asyncio.Event()

    async def _keep(self) -> None:
        while True:
            await self._unkept.wait()
            await asyncio.sleep(_KEEP_AFTER_S)
            self._unkept.clear()
            self._save()

    def _save(self) -> None:
        try:
            kept.save(self._file, self.name, self._epoch, self._revision, self._world.all())
        except OSError as error:
            log.error("%s cannot be written: %s", self._file, error.strerror)


def _port(endpoint: Endpoint) -> pb.Port:
    return pb.Port(name=endpoint.name, endpoint=json.dumps(to_json(endpoint)))
