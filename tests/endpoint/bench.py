# SPDX-License-Identifier: Apache-2.0
"""Containers side by side: each an application and the switch's side of its port."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.endpoint.application import NO_HUGE, Application
from tests.endpoint.switchside import Port, Shortcut, map_neighbour
from vswitch._ff import lib
from vswitch.slowpath.types import MemConf

POOL = 4095  # mbufs of an application


class Container:
    """An application with one device, and its port."""

    def __init__(
        self,
        directory: Path,
        name: str,
        number: int,
        queues: str = "1 1 64",
        *,
        eal: tuple[str, ...] = NO_HUGE,
        attach: Callable[[MemConf], None] | None = None,
    ) -> None:
        self.mac = f"02:00:00:00:00:{number:02x}"
        self.first_region = lib.FF_SHM_REGIONS * number
        self._attach = attach
        self.port = Port(directory, name, self.mac)
        self.app = Application(f"path={self.port.path}", eal=eal)
        self.port.welcome()
        self.app.hear("ready")
        assert self.app.do(f"setup {queues}") == "0"
        self.start()

    def start(self) -> None:
        """Start the device."""
        self.app.say("start")
        self.port.start(self.first_region, self._attach)
        assert self.app.hear("start") == "0"
        assert self.app.do("link 1") == "1"

    def stop(self) -> None:
        """Stop the device, which then holds no buffer."""
        self.app.say("stop")
        self.port.stopped()
        assert self.app.hear("stop") == "0"

    def send(self, to: Container, first: int, count: int, length: int = 100, rest: str = "1 plain") -> None:
        """Send numbered frames."""
        answer = self.app.do(f"tx {to.mac} {first} {count} {length} {rest}", "sent")
        assert answer == str(count), answer

    def receive(self, count: int, hold: bool = False) -> list[tuple[int, int, int, bool]]:
        """Return number, length, segments and whether they lie in another's memory, of frames that are as sent."""
        words = self.app.do(f"{'hold' if hold else 'rx'} {count}", "got").split()
        frames = [[int(field) for field in word.split(":")] for word in words]
        assert all(good for *_, good in frames), words
        return [(number, length, segs, bool(outside)) for number, length, segs, outside, _ in frames]

    def numbers(self, count: int) -> list[int]:
        """Receive frames; return their numbers."""
        return [number for number, *_ in self.receive(count)]

    def available(self) -> int:
        """Return how many mbufs of the application's pool are free."""
        return int(self.app.do("avail"))


class Bench:
    """What one test has running."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.containers: list[Container] = []
        self.applications: list[Application] = []

    def container(self, name: str, queues: str = "1 1 64", eal: tuple[str, ...] = NO_HUGE) -> Container:
        """Start a container: `queues` are receive queues, transmit queues, and descriptors."""
        return self.add(Container(self.directory, name, len(self.containers) + 1, queues, eal=eal))

    def add(self, container: Container) -> Container:
        """Kill it at the end."""
        self.containers.append(container)
        return container

    def application(self, *devices: str, eal: tuple[str, ...] = NO_HUGE) -> Application:
        """Start an application alone."""
        app = Application(*devices, eal=eal)
        self.applications.append(app)
        return app

    def close(self) -> None:
        """Kill what still runs."""
        for app in [*self.applications, *(c.app for c in self.containers)]:
            app.close()
        for container in self.containers:
            container.port.close()


def connect(sender: Container, receiver: Container, out: int = 0, into: int = 0) -> Shortcut:
    """Open a shortcut from one to the other, whose memory is mapped already; nothing is in flight."""
    shortcut = Shortcut(sender.port, receiver.port, out, into)
    shortcut.open()
    assert sender.app.do("poll 1") == "0"
    markers = sender.port.take()
    assert [(m.number, m.epoch) for m in markers if not isinstance(m, bytes)] == [(out, shortcut.epoch)]
    shortcut.marked()
    return shortcut


def introduce(*containers: Container) -> None:
    """Let each of them map the memory of all others."""
    for owner in containers:
        for other in containers:
            if other is not owner:
                map_neighbour(owner.port, other.port)


def grant(shortcut: Shortcut, sender: Container, owner: Container) -> None:
    """Tell a sender that its shortcut's receiver has mapped the owner's memory too."""
    for region in range(len(owner.port.regions)):
        sender.port.do(lib.FF_MSG_GRANT, number=shortcut.number_out, region=owner.first_region + region)
