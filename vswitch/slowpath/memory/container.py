# SPDX-License-Identifier: Apache-2.0
"""One container behind a memory port, from its HELLO to its end. See MESSAGES in ff_shm.h."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from vswitch.slowpath.fastpath import FastPathError
from vswitch.slowpath.memory import files, wire
from vswitch.slowpath.memory.channel import Channel, close_all
from vswitch.slowpath.memory.wire import Message, MsgType
from vswitch.slowpath.ports import told_mac
from vswitch.slowpath.types import MemConf, MemFile, PortConfig, PortState

log = logging.getLogger(__name__)

# A process that connects says hello at once.
_HELLO_S = 5.0
# A container that stops gets back what it lent meanwhile.
_STOP_S = 2.0
# About neighbours, in its life.
_COMPLAINTS_MAX = 1000


class Stage(Enum):
    """How far a container is."""

    GREETING = auto()
    SET_UP = auto()  # it was welcomed; it sends its regions
    RUNNING = auto()
    STOPPING = auto()  # its shortcuts are on their way down
    CLOSED = auto()


class Host(Protocol):
    """What a container needs of the switch."""

    def take_regions(self, container: Container, count: int) -> int:
        """Numbers for `count` regions: the first; FastPathError when all are in use."""

    def attach(self, container: Container, conf: MemConf) -> None:
        """Map all that is shared, and poll; FastPathError."""

    def running(self, container: Container) -> None:
        """It may have shortcuts from now on."""

    def stop(self, container: Container) -> None:
        """It asks to stop: `finish_stop` is to be called when its shortcuts are gone."""

    def detach(self, container: Container) -> None:
        """It is gone, or has stopped: close its shortcuts, unmap what it shared."""

    def answered(self, container: Container, message: Message) -> None:
        """DONE or ERROR to what was asked, maybe too late to matter."""

    def complained(self, container: Container, message: Message) -> None:
        """ERROR about a neighbour: its region, or the number of an incoming shortcut."""

    def state(self, container: Container, state: PortState, reason: str) -> None:
        """How far it is, for people."""

    def ended(self, container: Container, why: str, *, misbehaved: bool) -> None:
        """The connection has ended, and nothing of it is left."""


class _Misbehaved(Exception):
    pass


@dataclass(slots=True)
class _Shared:
    """What a running container and the switch share; the file descriptors are its own."""

    rings_fd: int = -1
    table_fd: int = -1
    kick_fds: list[int] = field(default_factory=list)

    def close(self) -> None:
        close_all([fd for fd in (self.rings_fd, self.table_fd, *self.kick_fds) if fd >= 0])


class Container:
    """Speaks with one container; `host` is told what follows for the switch."""

    def __init__(self, sock: socket.socket, port_id: int, config: PortConfig, host: Host) -> None:
        """Takes `sock` over."""
        self.port_id, self.config = port_id, config
        self.mac = bytes(6)
        self.first_region = 0
        self.rx_queues = self.tx_queues = self.ring_size = 0
        self._stage = Stage.GREETING
        self._host = host
        self._regions: list[MemFile] = []
        self._shared: _Shared | None = None
        self._stop_serial = 0
        self._asked: set[int] = set()
        self._complaints = 0
        self._who = ""
        self._channel = Channel(sock, self._received, self._left)
        self._timer: asyncio.TimerHandle | None = None
        self._start_timer(_HELLO_S, lambda: self.end(f"it said no hello for {_HELLO_S:g} s", misbehaved=True))

    # ---- for the switch ----------------------------------------------------------

    @property
    def regions(self) -> Sequence[MemFile]:
        """The packet memory of a running container; the file descriptors stay its own."""
        return self._regions

    @property
    def running(self) -> bool:
        """Whether packets flow."""
        return self._stage in (Stage.RUNNING, Stage.STOPPING)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Put a message on its way, with duplicates of `fds`."""
        self._channel.send(message, fds)

    def ask(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a request that is answered with its serial."""
        self._asked.add(message.serial)
        self._channel.send(message, fds)

    def finish_stop(self) -> None:
        """All shortcuts of a stopping container are gone."""
        if self._stage is not Stage.STOPPING:
            return
        self._stop_timer()
        self._stop_sharing()
        self._stage = Stage.SET_UP
        self._host.state(self, PortState.NEGOTIATING, f"{self._who} has stopped its port")
        self.send(Message(MsgType.DONE, serial=self._stop_serial))

    def end(self, why: str, *, misbehaved: bool = False, tell: bool = True) -> None:
        """End the connection and give back all that belongs to it; `tell` the container why."""
        if self._stage is Stage.CLOSED:
            return
        if tell and why:
            self.send(Message(MsgType.ERROR, text=why))
        self._stop_timer()
        self._channel.close()
        self._stop_sharing()
        self._stage = Stage.CLOSED
        self._host.ended(self, why, misbehaved=misbehaved)

    # ---- what comes -----------------------------------------------------------------

    def _left(self, why: str) -> None:
        self.end(why or "the container has left", misbehaved=bool(why), tell=False)

    def _received(self, message: Message, fds: list[int]) -> None:
        try:
            if fds and message.type is not MsgType.REGION:
                raise _Misbehaved(f"it sent file descriptors with {message.type.name}")
            match message.type:
                case MsgType.HELLO:
                    self._hello(message)
                case MsgType.REGION:
                    self._region(message, fds)
                case MsgType.START:
                    self._start(message)
                case MsgType.STOP:
                    self._stop(message)
                case MsgType.DONE | MsgType.ERROR:
                    self._answer(message)
                case _:
                    raise _Misbehaved(f"it sent {message.type.name}, which is the switch's to send")
        except _Misbehaved as error:
            self.end(str(error), misbehaved=True)
        finally:
            close_all(fds)  # what is kept is no longer in it

    def _expect(self, message: Message, stage: Stage) -> None:
        if self._stage is not stage:
            raise _Misbehaved(f"it sent {message.type.name} while {self._stage.name.lower().replace('_', '-')}")

    def _hello(self, message: Message) -> None:
        self._expect(message, Stage.GREETING)
        if message.version != wire.VERSION:
            raise _Misbehaved(f"it speaks version {message.version} of ff_shm.h, this switch {wire.VERSION}")
        self._stop_timer()
        name = "".join(c for c in message.text if c.isprintable())
        self._who = f"{name} ({self._channel.peer()})" if name else self._channel.peer()
        self._stage = Stage.SET_UP
        self._host.state(self, PortState.NEGOTIATING, f"{self._who} has not shared its memory yet")
        config = self.config
        own = message.mac if any(message.mac) and not message.mac[0] & 1 and not config.assigned_mac else b""
        self.mac = own or bytes.fromhex(told_mac(config).replace(":", ""))
        welcome = Message(
            MsgType.WELCOME,
            serial=message.serial,
            version=wire.VERSION,
            mac=self.mac,
            mtu=config.mtu,
            queues=config.queues,
            text=config.name,
        )
        self.send(welcome)

    def _region(self, message: Message, fds: list[int]) -> None:
        self._expect(message, Stage.SET_UP)
        count = len(self._regions)
        if len(fds) != 1:
            raise _Misbehaved(f"it sent a region with {len(fds)} file descriptors")
        if count == wire.REGIONS_MAX:
            raise _Misbehaved(f"it shares more than {count} regions: start it with --single-file-segments")
        if message.number != count:
            raise _Misbehaved(f"it sent region {message.number} after {count} others")
        region = MemFile(fds[0], message.offset, message.size)
        try:
            files.check_region(region)
        except files.FileError as error:
            raise _Misbehaved(f"it shares {error}") from None
        self._regions.append(region)
        fds.clear()
        if not count:
            self._host.state(self, PortState.MEMORY_MAPPED, f"{self._who} has not started its port yet")

    def _start(self, message: Message) -> None:
        self._expect(message, Stage.SET_UP)
        queues, size = self.config.queues, message.ring_size
        if not (1 <= message.rx_queues <= queues and 1 <= message.tx_queues <= queues):
            raise _Misbehaved(
                f"it has {message.rx_queues} receive and {message.tx_queues} transmit queues, the port {queues} of "
                f"each: delete the port and add it with --queues"
            )
        if not wire.RING_MIN <= size <= wire.RING_MAX or size & (size - 1):
            raise _Misbehaved(
                f"its rings have {size} descriptors: it takes a power of two from {wire.RING_MIN} to {wire.RING_MAX}"
            )
        if not self._regions:
            raise _Misbehaved("it shares no memory")
        self.rx_queues, self.tx_queues, self.ring_size = message.rx_queues, message.tx_queues, size
        try:
            self._share()
        except (OSError, FastPathError) as error:
            self._stop_sharing()
            self.end(f"its memory cannot be used: {error}")
            return
        assert self._shared is not None
        rings = Message(MsgType.RINGS, serial=message.serial, region=self.first_region)
        self.send(rings, [self._shared.rings_fd, self._shared.table_fd, *self._shared.kick_fds])
        self._stage = Stage.RUNNING
        log.info("port %s: %s is there", self.config.name, self._who)
        self._host.running(self)

    def _share(self) -> None:
        shared = self._shared = _Shared()
        self.first_region = self._host.take_regions(self, len(self._regions))
        shared.rings_fd = files.port_rings(max(self.rx_queues, self.tx_queues), self.ring_size)
        shared.table_fd = files.table()
        for _ in range(self.tx_queues):
            shared.kick_fds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        conf = MemConf(
            regions=tuple(self._regions),
            first_region=self.first_region,
            rx_queues=self.rx_queues,
            tx_queues=self.tx_queues,
            ring_size=self.ring_size,
            rings_fd=shared.rings_fd,
            table_fd=shared.table_fd,
            kick_fds=tuple(shared.kick_fds),
        )
        self._host.attach(self, conf)
        files.seal_table(shared.table_fd)

    def _stop(self, message: Message) -> None:
        self._expect(message, Stage.RUNNING)
        self._stage = Stage.STOPPING
        self._stop_serial = message.serial
        self._start_timer(_STOP_S, self.finish_stop)
        self._host.stop(self)

    def _answer(self, message: Message) -> None:
        if message.type is MsgType.ERROR and message.serial == 0:
            self._complaints += 1
            if not self.running or self._complaints > _COMPLAINTS_MAX:
                raise _Misbehaved("it gives up: " + "".join(c for c in message.text if c.isprintable()))
            self._host.complained(self, message)
            return
        if message.serial not in self._asked:
            raise _Misbehaved(f"it sent {message.type.name} to nothing that it was asked")
        self._asked.remove(message.serial)
        self._host.answered(self, message)

    # ---- within ------------------------------------------------------------------------

    def _stop_sharing(self) -> None:
        """Nothing is shared any more, and no descriptor of it is left; a container that goes on begins anew."""
        shared, self._shared = self._shared, None
        if shared is not None:
            self._host.detach(self)
            shared.close()
        close_all([region.fd for region in self._regions])
        self._regions.clear()

    def _start_timer(self, seconds: float, then: object) -> None:
        self._stop_timer()
        assert callable(then)
        self._timer = asyncio.get_running_loop().call_later(seconds, then)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
