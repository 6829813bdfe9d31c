# SPDX-License-Identifier: Apache-2.0
"""The sockets of the memory ports, and the containers that come to them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from vswitch.slowpath import portdir
from vswitch.slowpath.errors import SwitchError
from vswitch.slowpath.fastpath import FastPathError
from vswitch.slowpath.memory import wire
from vswitch.slowpath.memory.container import Container
from vswitch.slowpath.memory.shortcuts import Shortcuts
from vswitch.slowpath.memory.wire import Message, MsgType
from vswitch.slowpath.types import MemConf, PortConfig, PortState

log = logging.getLogger(__name__)

# After a container that broke the rules nobody is let in for so long, so that one which comes back at once neither
# fills the log nor takes the switch's time.
_PAUSE_S = 1.0
_ACCEPTED_AT_ONCE = 8


class FastPathMemory(Protocol):
    """What is called of the fast path."""

    def mem_attach(self, port_id: int, conf: MemConf, /) -> None: ...
    def mem_detach(self, port_id: int, /) -> None: ...


class _Listener:
    """The socket of one port, and who holds the port now."""

    def __init__(self, port_id: int, config: PortConfig, owner: MemoryPorts) -> None:
        """Raises SwitchError."""
        self.port_id, self.config = port_id, config
        self.container: Container | None = None
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._resume: asyncio.TimerHandle | None = None
        path = Path(config.socket)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._sock.setblocking(False)
            self._sock.bind(os.fspath(path))
            portdir.share(path)
            self._sock.listen()
        except OSError as error:
            self._sock.close()
            raise SwitchError(f"socket {path}: {error.strerror}") from None
        except SwitchError:
            self._sock.close()
            raise
        self._loop.add_reader(self._sock, self._readable)

    def _readable(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("port %s: a container cannot be let in: %s", self.config.name, error.strerror)
                self.pause()
                return
            if self.container is not None:
                _turn_away(sock)
                continue
            self.container = Container(sock, self.port_id, self.config, self._owner)

    def pause(self) -> None:
        """Let nobody in for a while."""
        self._loop.remove_reader(self._sock)
        if self._resume is not None:
            self._resume.cancel()
        self._resume = self._loop.call_later(_PAUSE_S, self._loop.add_reader, self._sock, self._readable)

    def close(self) -> None:
        """Nobody comes any more; who is there goes."""
        self._loop.remove_reader(self._sock)
        if self._resume is not None:
            self._resume.cancel()
        self._sock.close()
        if self.container is not None:
            self.container.end("the port was deleted, or ffswitchd ends")


def _turn_away(sock: socket.socket) -> None:
    with sock:
        sock.setblocking(False)
        why = wire.encode(Message(MsgType.ERROR, text="another container has this port"))
        with contextlib.suppress(OSError):  # it left already
            sock.send(why, socket.MSG_NOSIGNAL)


class MemoryPorts:
    """The memory ports of a switch: `container.Host` for their containers."""

    def __init__(
        self,
        fast_path: FastPathMemory,
        shortcuts: Shortcuts,
        tell: Callable[[int, PortState, str], None],
        announced: Callable[[int, bytes], None],
    ) -> None:
        """`tell` is told how far the container of a port is, as long as the fast path has nothing of it.

        `announced` is told which MAC address a running container has.
        """
        self._fast_path, self._shortcuts, self._tell, self._announced = fast_path, shortcuts, tell, announced
        self._listeners: dict[int, _Listener] = {}
        self._attached: set[Container] = set()
        self._numbered: set[Container] = set()

    # ---- ports -----------------------------------------------------------------------

    def open(self, port_id: int, config: PortConfig) -> None:
        """Listen for the container of a port. Raises SwitchError."""
        self._listeners[port_id] = _Listener(port_id, config, self)

    def change(self, port_id: int, config: PortConfig) -> None:
        """A port's settings have changed; its container is told what concerns it."""
        listener = self._listeners.get(port_id)
        if listener is None:
            return
        before, listener.config = listener.config, config
        container = listener.container
        if container is None:
            return
        container.config = config
        if before.mtu != config.mtu and container.running:
            container.send(Message(MsgType.LINK, flags=1, mtu=config.mtu))

    def announce(self, port_id: int) -> None:
        """A port is in another network or VLAN, perhaps: its container's address is there now."""
        listener = self._listeners.get(port_id)
        if listener is not None and listener.container is not None and listener.container.running:
            self._announced(port_id, listener.container.mac)

    def close(self, port_id: int) -> None:
        """Before a port goes: its container is sent away, and nothing of it is left. Unknown ones are passed over."""
        listener = self._listeners.pop(port_id, None)
        if listener is not None:
            listener.close()
            Path(listener.config.socket).unlink(missing_ok=True)
            self._shortcuts.forget_port(port_id)

    def close_all(self) -> None:
        """The daemon ends. Sockets stay where they are, for the next one to take over."""
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()

    def broken(self, port_id: int, why: str) -> None:
        """The fast path has stopped a port: its container broke a rule, or cut off its memory."""
        listener = self._listeners.get(port_id)
        if listener is not None and listener.container is not None:
            listener.container.end(why, misbehaved=True)

    # ---- container.Host ------------------------------------------------------------------

    def take_regions(self, container: Container, count: int) -> int:
        """See `container.Host`."""
        first = self._shortcuts.regions.take(count)
        if first is None:
            raise FastPathError("all numbers of regions are in use: delete ports that are not needed")
        self._numbered.add(container)
        return first

    def attach(self, container: Container, conf: MemConf) -> None:
        """See `container.Host`."""
        self._fast_path.mem_attach(container.port_id, conf)
        self._attached.add(container)

    def running(self, container: Container) -> None:
        """See `container.Host`."""
        self._shortcuts.up(container)
        self._announced(container.port_id, container.mac)

    def stop(self, container: Container) -> None:
        """See `container.Host`."""
        self._shortcuts.stopping(container)

    def detach(self, container: Container) -> None:
        """See `container.Host`."""
        was_up = self._shortcuts.down(container)
        if container in self._attached:
            self._attached.remove(container)
            self._fast_path.mem_detach(container.port_id)
        if container in self._numbered:
            self._numbered.remove(container)
            if not was_up:
                self._shortcuts.regions.give_back(container.first_region)

    def answered(self, container: Container, message: Message) -> None:
        """See `container.Host`."""
        self._shortcuts.answered(container, message)

    def complained(self, container: Container, message: Message) -> None:
        """See `container.Host`."""
        self._shortcuts.complained(container, message)

    def state(self, container: Container, state: PortState, reason: str) -> None:
        """See `container.Host`."""
        self._tell(container.port_id, state, reason)

    def ended(self, container: Container, why: str, *, misbehaved: bool) -> None:
        """See `container.Host`."""
        listener = self._listeners.get(container.port_id)
        if listener is None or listener.container is not container:
            return
        listener.container = None
        self._tell(container.port_id, PortState.LOST, why)
        if misbehaved:
            listener.pause()
