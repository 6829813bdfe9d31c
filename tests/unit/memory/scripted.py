# SPDX-License-Identifier: Apache-2.0
"""A container that says what a test tells it to, over the real socket, with real memory files."""

from __future__ import annotations

import array
import asyncio
import mmap
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.unit.fake_fastpath import FakeFastPath
from vswitch.slowpath.core import SwitchCore
from vswitch.slowpath.drivers import check_devargs
from vswitch.slowpath.memory import wire
from vswitch.slowpath.memory.wire import Message, MsgType
from vswitch.slowpath.ports import read_port
from vswitch.slowpath.switch import PortEntry, Switch

DEADLINE = 20.0
PAGE = mmap.PAGESIZE
MAPPED = ("ff-shortcut", "ff-port", "ff-table", "packets")


class Bench:
    """A switch with memory ports on a fake fast path; its clock stands still."""

    def __init__(self, run_dir: Path) -> None:
        self.fake = FakeFastPath()
        self.now = 1000.0
        self.run_dir = run_dir
        self.core = SwitchCore()
        self.switch = Switch(self.fake, self.core, run_dir, check_devargs=check_devargs, clock=lambda: self.now)
        self.before = held()

    def add(self, name: str, **keys: Any) -> PortEntry:
        keys = {"type": "ff", "trust_domain": "red"} | keys
        return self.switch.add(read_port({"name": name} | keys, self.run_dir))

    def entry(self, name: str) -> PortEntry:
        return self.switch.port(name)

    def mac(self, name: str) -> bytes:
        return bytes.fromhex(self.entry(name).config.mac.replace(":", ""))

    def promote(self, a: str, b: str) -> None:
        self.switch.on_events()
        self.switch.shortcuts._promote((self.entry(a).id, self.entry(b).id, self.mac(b)))

    async def until(self, state: str, name: str) -> None:
        async with asyncio.timeout(DEADLINE):
            while self.entry(name).state.label != state:
                await tick()
                self.switch.on_events()

    def close(self) -> None:
        self.switch.memory.close_all()


def held() -> tuple[int, int]:
    """How many file descriptors this process has, and mappings of shared memory."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return len(list(Path("/proc/self/fd").iterdir())), sum(any(name in line for name in MAPPED) for line in maps)


async def tick() -> None:
    """Whatever is ready runs, once."""
    await asyncio.sleep(0)


async def readable(sock: socket.socket) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)


class Scripted:
    """One connection of a container."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.setblocking(False)
        self.sock.connect(path)
        self.fds: list[int] = []

    def send(self, kind: MsgType, fds: Sequence[int] = (), **fields: Any) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([wire.encode(Message(kind, **fields))], ancillary)

    async def receive(self) -> tuple[Message, list[int]] | None:
        """The next message with its descriptors (closed at the end), None when the switch has hung up."""
        async with asyncio.timeout(DEADLINE):
            while True:
                try:
                    data, ancillary, _, _ = self.sock.recvmsg(wire.SIZE + 1, 4096)
                except BlockingIOError:
                    await readable(self.sock)
                    continue
                except ConnectionError:
                    return None
                break
        fds = array.array("i")
        for _, _, value in ancillary:
            fds.frombytes(value)
        self.fds += fds
        return (wire.decode(data), fds.tolist()) if data else None

    async def expect(self, kind: MsgType) -> Message:
        received = await self.receive()
        assert received is not None, f"hung up instead of {kind.name}"
        assert received[0].type is kind, received[0]
        return received[0]

    async def hung_up(self) -> str:
        """What was said before the switch hung up."""
        said = ""
        while (received := await self.receive()) is not None:
            said = received[0].text
        return said

    async def hello(self) -> Message:
        self.send(MsgType.HELLO, version=wire.VERSION, text="app")
        return await self.expect(MsgType.WELCOME)

    def region(self, number: int = 0, size: int = 4 * PAGE, length: int = 4 * PAGE, **fields: Any) -> None:
        fd = os.memfd_create("packets")
        os.ftruncate(fd, length)
        self.send(MsgType.REGION, [fd], number=number, size=size, **fields)
        os.close(fd)

    async def start(self, regions: int = 1, queues: int = 1) -> Message:
        await self.hello()
        for number in range(regions):
            self.region(number)
        self.send(MsgType.START, rx_queues=queues, tx_queues=queues, ring_size=64)
        return await self.expect(MsgType.RINGS)

    async def answer(self, kind: MsgType, error: str = "") -> Message:
        """The request that must come now, answered."""
        message = await self.expect(kind)
        if error:
            self.send(MsgType.ERROR, serial=message.serial, text=error)
        else:
            self.send(MsgType.DONE, serial=message.serial)
        return message

    def close(self) -> None:
        self.sock.close()
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()
