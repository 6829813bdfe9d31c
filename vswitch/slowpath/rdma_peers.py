# SPDX-License-Identifier: Apache-2.0
"""This host's RDMA peers: made, joined, used and ended as the hosts that are to be reached by RDMA come and go.

What to do next with a peer is decided in `rdma_negotiation`. A peer that fails is gone at once, and the fast path has
sent its flows by VXLAN before anybody here knows; a new one is made after a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address

from vswitch.slowpath.doctor import PORT_NAME_MAX
from vswitch.slowpath.errors import SwitchError
from vswitch.slowpath.fastpath import FastPathError
from vswitch.slowpath.ports import MTU_MAX
from vswitch.slowpath.rdma import Discovery, gid_text
from vswitch.slowpath.rdma_negotiation import (
    NOBODY,
    QUEUE_PAIRS_MAX,
    Offer,
    Own,
    Stage,
    Step,
    epoch,
    next_step,
    queue_pairs,
)
from vswitch.slowpath.switch import PortEntry, Switch
from vswitch.slowpath.types import PortConfig, PortType, RdmaChange, RdmaEnd, RdmaStats, RdmaWhat

log = logging.getLogger(__name__)

RDMA_TIMEOUT_MS = 100
QUEUE_PAIRS_QUOTA = 256  # of all peers together
_BACKOFF_S, _BACKOFF_MAX_S = 0.1, 1.0
# A peer that failed in use, again and again, loses frames each time: it is used more and more rarely.
_SETTLED_S = 10.0
# Who sends hears of a dead host by what is not acknowledged; who is silent for so long sends a mark.
_SILENT_S = 2.0
_UNSETTLED, _UNSETTLED_MAX_S = 3, 60.0
_UNIT_S = 4.096e-6  # InfiniBand specification, section 9.7.6.1.3: a timeout is this times a power of two
_RETRIES = 6  # Linux's rdma_rxe takes 7 for ever: a peer behind a dead link would never fail


@dataclass(frozen=True, slots=True)
class Local:
    """A port of an RDMA device, and which of its GIDs."""

    device: str
    port: int
    gid: IPv6Address


@dataclass(frozen=True, slots=True)
class Want:
    """Another host is to be reached by RDMA, from one port to one GID, for what goes to these tunnel ends."""

    local: Local
    gid: IPv6Address
    remotes: frozenset[int]


@dataclass(frozen=True, slots=True)
class PeerView:
    """How a host is reached by RDMA, for people; `why` is one line when it is not."""

    host: str
    device: str
    local: str
    remote: str
    state: str
    since: float
    why: str
    queue_pairs: int
    epoch: int
    stats: RdmaStats | None


@dataclass(eq=False, slots=True)
class _Host:
    """What is known of another host that is, or was, to be reached by RDMA."""

    want: Want | None = None
    offer: Offer | None = None
    revision: int = 0  # of the offer
    own: Own | None = None
    number: int = 0  # of the own peer in the fast path
    end: RdmaEnd | None = None
    told: Offer | None = None
    used: frozenset[int] = frozenset()
    why: str = "nothing was tried yet"
    since: float = field(default_factory=time.time)
    used_at: float = 0.0
    failures: int = 0  # since it was last in use
    unsettled: int = 0  # failures soon after it came into use
    timer: asyncio.TimerHandle | None = None
    sent: int = 0  # messages, at the last look
    watch: asyncio.TimerHandle | None = None  # the next look, while it is in use
    joining: asyncio.TimerHandle | None = None  # ends the change of path to the own peer


class RdmaPeers:
    """All peers of this host. `say` tells the controller an offer for a host, and may be called at any time."""

    def __init__(self, switch: Switch, say: Callable[[str, Offer], None], timeout_ms: int) -> None:
        self._switch, self._say = switch, say
        self._timeout = timeout_exponent(timeout_ms)
        self._joining_s = timeout_ms / 1000  # nor does VXLAN hold a frame for longer
        self._hosts: dict[str, _Host] = {}
        self._by_number: dict[int, str] = {}
        self._ports: dict[Local, PortEntry] = {}
        self._found = Discovery()
        switch.event_hooks.append(self._on_events)

    def stop(self) -> None:
        """No more is made; what is there goes with the fast path."""
        for host in self._hosts.values():
            _cancel(host)
            _unwatch(host)
            if host.joining is not None:
                host.joining.cancel()
        for entry in self._ports.values():
            asyncio.get_running_loop().remove_reader(self._switch.fast_path.rdma_device_fd(entry.id))

    # ---- what is to be ---------------------------------------------------------------

    def discovered(self, found: Discovery) -> None:
        """The devices are these now. Ports whose GID is gone are closed, and their peers with them."""
        if found == self._found:
            return
        self._found = found
        there = {Local(p.device, p.port, gid.address): gid.index for p in found.ports for gid in p.gids}
        for local in [local for local, e in self._ports.items() if there.get(local) != e.config.gid_index]:
            for name, host in self._hosts.items():
                if host.want is not None and host.want.local == local:
                    self._fail(name, host, f"{local.device} has no GID {gid_text(local.gid)} any more")
            self._close(local)
        self._advance_all()

    def want(self, name: str, want: Want | None) -> None:
        """A host is to be reached like this from now on; before this returns, all else has ended."""
        host = self._hosts.setdefault(name, _Host())
        before, host.want = host.want, want
        if before is not None and want is not None and (before.local, before.gid) == (want.local, want.gid):
            if host.own is not None and host.own.stage is Stage.USED and before != want:
                self._use(name, host)
            return
        self._end(host)
        self._withdraw(name, host)
        if want is None and host.offer is None:
            _cancel(host)
            del self._hosts[name]
            return
        _cancel(host)
        host.failures = host.unsettled = 0
        self._advance(name, host)

    def offered(self, name: str, offer: Offer | None, revision: int) -> None:
        """What another host offers, as of a revision of the store; None: nothing is known of an offer any more."""
        host = self._hosts.setdefault(name, _Host())
        if revision < host.revision:
            return
        host.offer, host.revision = offer, revision
        if offer is None and host.want is None:
            del self._hosts[name]
        self._advance(name, host)

    def say_all(self) -> None:
        """Tell a new session all that the controller was told."""
        for name, host in self._hosts.items():
            if host.told is not None:
                self._say(name, host.told)

    # ---- steps --------------------------------------------------------------------------

    def _advance_all(self) -> None:
        for name, host in list(self._hosts.items()):
            self._advance(name, host)

    def _advance(self, name: str, host: _Host) -> None:
        """Do all that can be done now."""
        if host.want is None or host.timer is not None:
            return
        entry = self._port(host.want.local)
        if isinstance(entry, str):
            self._end(host)
            self._withdraw(name, host)
            host.why = entry
            return
        try:
            while (step := next_step(host.own, host.offer)) is not Step.WAIT:
                match step:
                    case Step.MAKE:
                        self._make(name, host, entry)
                    case Step.JOIN:
                        self._join(name, host)
                    case Step.PROBE:
                        self._probe(host)
        except (FastPathError, SwitchError) as error:
            self._fail(name, host, str(error))

    def _make(self, name: str, host: _Host, entry: PortEntry) -> None:
        self._end(host)
        pairs = queue_pairs(self._switch.fast_path.n_workers, host.offer)
        if pairs > QUEUE_PAIRS_MAX:
            raise SwitchError(f"a host has more than {QUEUE_PAIRS_MAX} workers, which is what a peer can serve")
        taken = sum(other.own.queue_pairs for other in self._hosts.values() if other.own is not None)
        if taken + pairs > QUEUE_PAIRS_QUOTA:
            raise SwitchError(f"{taken} queue pairs are in use, and the quota is {QUEUE_PAIRS_QUOTA}")
        host.number, host.end = self._switch.fast_path.rdma_peer_add(entry.id, pairs)
        self._by_number[host.number] = name
        host.own = Own(secrets.randbits(63) + 1, pairs)
        host.since = time.time()
        host.why = f"host {name} has not answered yet"
        self._tell(name, host)

    def _join(self, name: str, host: _Host) -> None:
        assert host.want is not None and host.own is not None and host.offer is not None
        offer = host.offer
        if offer.end.gid != host.want.gid.packed:
            gid = gid_text(IPv6Address(offer.end.gid))
            raise SwitchError(f"host {name} offers GID {gid}, and the controller says {gid_text(host.want.gid)}")
        number = epoch(host.own.id, offer.id)
        self._switch.fast_path.rdma_peer_connect(host.number, offer.end, number, self._timeout, _RETRIES)
        host.own = replace(host.own, stage=Stage.JOINED, joined=offer.id)
        host.why = f"host {name} has not joined it yet"
        self._tell(name, host)

    def _probe(self, host: _Host) -> None:
        assert host.own is not None
        self._switch.fast_path.rdma_peer_drain(host.number)
        host.own = replace(host.own, stage=Stage.PROBED)
        host.why = "a first message is on its way"

    def _use(self, name: str, host: _Host) -> None:
        """Let frames for the wanted tunnel ends go over the peer, and no others."""
        assert host.want is not None and host.own is not None
        try:
            if host.own.stage is not Stage.USED:
                self._switch.fast_path.rdma_peer_change(host.number, RdmaChange.JOINING)
                host.joining = asyncio.get_running_loop().call_later(self._joining_s, self._joined, name, host)
            if host.used - host.want.remotes:
                self._switch.fast_path.rdma_peer_use(host.number, 0)
                host.used = frozenset()
            for remote in sorted(host.want.remotes - host.used):
                self._switch.fast_path.rdma_peer_use(host.number, remote)
                host.used |= {remote}
        except FastPathError as error:
            self._fail(name, host, str(error))
            return
        host.own = replace(host.own, stage=Stage.USED)
        host.why = ""

    def _joined(self, name: str, host: _Host) -> None:
        """What went by VXLAN has come."""
        host.joining = None
        try:
            self._switch.fast_path.rdma_peer_change(host.number, RdmaChange.SETTLED)
        except FastPathError as error:
            self._fail(name, host, str(error))

    # ---- what the fast path tells ----------------------------------------------------------

    def _on_events(self) -> None:
        for event in self._switch.fast_path.rdma_events():
            name = self._by_number.get(event.peer)
            if name is None:
                continue
            host = self._hosts[name]
            if event.what is RdmaWhat.FAILED:
                self._fail(name, host, self._switch.fast_path.rdma_peer(event.peer).reason)
            elif host.own is not None and host.own.stage is Stage.PROBED:
                self._use(name, host)
                if host.own is not None:
                    host.since, host.used_at, host.failures = time.time(), time.monotonic(), 0
                    self._watch(name, host)
                    log.info("host %s: reached by RDMA, from %s", name, self._label(host))
        for name, host in list(self._hosts.items()):
            if host.want is not None and host.own is None:
                self._advance(name, host)  # its port may be ready now

    def _fail(self, name: str, host: _Host, why: str) -> None:
        """End the peer, and make another one later."""
        was_used = host.own is not None and host.own.stage is Stage.USED
        if was_used:
            host.unsettled = 0 if time.monotonic() - host.used_at > _SETTLED_S else host.unsettled + 1
        if was_used or why != host.why:
            log.warning("host %s: not reached by RDMA: %s", name, why)
        self._end(host)
        self._withdraw(name, host)
        host.why, host.since = why, time.time()
        delay = backoff(host.failures, host.unsettled)
        host.failures += 1
        _cancel(host)
        host.timer = asyncio.get_running_loop().call_later(delay, self._again, name)

    def _again(self, name: str) -> None:
        host = self._hosts.get(name)
        if host is not None:
            host.timer = None
            self._advance(name, host)

    def _watch(self, name: str, host: _Host) -> None:
        host.watch = asyncio.get_running_loop().call_later(_SILENT_S, self._look, name)

    def _look(self, name: str) -> None:
        """Send a mark where nothing else was sent since the last look: the peer fails unless it is acknowledged."""
        host = self._hosts[name]
        sent = self._switch.fast_path.rdma_peer(host.number).stats.tx_messages
        if sent == host.sent:
            with contextlib.suppress(FastPathError):  # one is on its way, or the peer has failed: an event will tell
                self._switch.fast_path.rdma_peer_drain(host.number)
        host.sent = sent
        self._watch(name, host)

    def _end(self, host: _Host) -> None:
        _unwatch(host)
        if host.own is None:
            return
        if host.joining is not None:
            host.joining.cancel()
            host.joining = None
        del self._by_number[host.number]
        self._switch.fast_path.rdma_peer_del(host.number)
        host.own, host.end, host.number, host.used = None, None, 0, frozenset()

    # ---- what the other host is told -----------------------------------------------------------

    def _tell(self, name: str, host: _Host) -> None:
        assert host.own is not None and host.end is not None
        host.told = Offer(host.own.id, host.own.joined, host.end)
        self._say(name, host.told)

    def _withdraw(self, name: str, host: _Host) -> None:
        if host.told is not None and host.told.id != NOBODY:
            host.told = Offer(NOBODY, NOBODY, RdmaEnd(bytes(16), 0, 0, 0, ()))
            self._say(name, host.told)

    # ---- ports -------------------------------------------------------------------------------

    def _port(self, local: Local) -> PortEntry | str:
        """The switch's port for it, ready, or why there is none."""
        entry = self._ports.get(local)
        if entry is None:
            found = self._open(local)
            if isinstance(found, str):
                return found
            entry = self._ports[local] = found
        return entry if entry.up else f"{local.device} port {local.port}: {entry.reason or entry.state.label}"

    def _open(self, local: Local) -> PortEntry | str:
        for port in self._found.ports:
            for gid in port.gids:
                if (port.device, port.port, gid.address) == (local.device, local.port, local.gid):
                    return self._add(local, gid.index)
        return f"{local.device} port {local.port} has no GID {gid_text(local.gid)}"

    def _add(self, local: Local, index: int) -> PortEntry | str:
        name = f"{local.device}.{local.port}.{index}"[-PORT_NAME_MAX:]
        config = PortConfig(
            name, PortType.RDMA, devargs=local.device, rdma_port=local.port, gid_index=index, network="", mtu=MTU_MAX
        )
        try:
            entry = self._switch.add_own(config)
        except SwitchError as error:
            return str(error)
        fd = self._switch.fast_path.rdma_device_fd(entry.id)
        if fd >= 0:
            asyncio.get_running_loop().add_reader(fd, self._switch.fast_path.rdma_device_drain, entry.id)
        return entry

    def _close(self, local: Local) -> None:
        entry = self._ports.pop(local)
        fd = self._switch.fast_path.rdma_device_fd(entry.id)
        if fd >= 0:
            asyncio.get_running_loop().remove_reader(fd)
        self._switch.remove_own(entry)

    # ---- for people -----------------------------------------------------------------------------

    def views(self) -> list[PeerView]:
        """The hosts that are to be reached by RDMA, by name."""
        return [self._view(name, host, host.want) for name, host in sorted(self._hosts.items()) if host.want]

    def carries(self, remote: int) -> bool:
        """Whether flows to a tunnel end that may go by RDMA do so now."""
        return any(remote in host.used for host in self._hosts.values())

    def why_not(self, name: str) -> str | None:
        """Why flows to a host do not go by RDMA at this moment; "": they do; None: they are not to."""
        host = self._hosts.get(name)
        return host.why if host is not None and host.want is not None else None

    def _view(self, name: str, host: _Host, want: Want) -> PeerView:
        info = self._switch.fast_path.rdma_peer(host.number) if host.own is not None else None
        return PeerView(
            host=name,
            device=self._label(host),
            local=gid_text(want.local.gid),
            remote=gid_text(want.gid),
            state=info.state.name.lower() if info else "down",
            since=host.since,
            why=host.why,
            queue_pairs=info.queue_pairs if info else 0,
            epoch=info.epoch if info else 0,
            stats=info.stats if info else None,
        )

    def _label(self, host: _Host) -> str:
        return f"{host.want.local.device}/{host.want.local.port}" if host.want else ""


def backoff(failures: int, unsettled: int) -> float:
    """Seconds until the next try, after `failures` without success, and so many successes that did not last."""
    short = min(_BACKOFF_S * 2.0 ** min(failures, 16), _BACKOFF_MAX_S)
    return max(short, min(2.0 ** (unsettled - _UNSETTLED), _UNSETTLED_MAX_S) if unsettled > _UNSETTLED else 0.0)


def timeout_exponent(milliseconds: int) -> int:
    """The `timeout` of queue pairs with which a message fails after about so long, with all its repetitions."""
    each = milliseconds / 1000 / (_RETRIES + 1)
    return max(exponent for exponent in range(1, 32) if exponent == 1 or _UNIT_S * 2**exponent <= each)


def _cancel(host: _Host) -> None:
    if host.timer is not None:
        host.timer.cancel()
        host.timer = None


def _unwatch(host: _Host) -> None:
    if host.watch is not None:
        host.watch.cancel()
        host.watch = None
    host.sent = 0
