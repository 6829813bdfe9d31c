# SPDX-License-Identifier: Apache-2.0
"""One virtual machine under QEMU's emulation (no KVM needed), driven over its second serial port."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import socket
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from tests.guest import image

BOOT_SECONDS = 90.0  # of a guest on a busy machine; alone it takes 3
RUN_SECONDS = 90.0
STOP_SECONDS = 15.0
LOOK_SECONDS = 0.05  # between looks at a condition
OUTPUT_MAX = 1 << 20  # bytes of an answer
CONSOLE_LINES = 60  # what an error shows of the console
DISKS = ("vda", "vdb", "vdc")

# What Linux says when a driver or a device has gone wrong, also where it carries on.
T = TypeVar("T")

TROUBLE = re.compile(r"BUG:|WARNING:|Oops|Kernel panic|id \d+ (is not a head|out of range)|NETDEV WATCHDOG")
PANIC_TOLD = re.compile(r"end Kernel panic")  # after the trace
RESET_STATUS = 128 + 9  # as of what is killed
NO_OFFLOADS = ("csum", "guest_csum", "gso", *(f"{end}_{kind}" for end in ("guest", "host") for kind in
               ("tso4", "tso6", "ecn", "ufo")))  # fmt: skip


class GuestError(Exception):
    """A guest that failed: what, and the end of its console."""


class Interface(Protocol):
    """A network interface of a guest."""

    def arguments(self, name: str) -> list[str]:
        """QEMU's arguments for the interface."""

    def descriptors(self) -> Sequence[int]:
        """Those of them that are open files here, which QEMU has to have."""


@dataclass(frozen=True, slots=True)
class Nic:
    """A virtio-net interface on a vhost-user socket, where QEMU listens, or connects as a `client`.

    `properties` go to QEMU's virtio-net-pci as they are, such as "packed=on".
    """

    socket: Path
    mac: str
    queues: int = 1
    client: bool = False
    offloads: bool = True
    properties: Sequence[str] = ()

    def arguments(self, name: str) -> list[str]:
        """QEMU's arguments for the interface."""
        role = "reconnect=1" if self.client else "server=on,wait=off"
        # No MSI-X: with it, QEMU 7.2 crashes at the first interrupt that a vhost-user device enables without KVM. No
        # boot ROM, which would cost time.
        device = f"virtio-net-pci,netdev={name},mac={self.mac},vectors=0,romfile="
        if self.queues > 1:
            device += ",mq=on"
        if not self.offloads:
            device += "".join(f",{feature}=off" for feature in NO_OFFLOADS)
        return [
            *("-chardev", f"socket,id={name},path={self.socket},{role}"),
            *("-netdev", f"vhost-user,id={name},chardev={name},queues={self.queues}"),
            *("-device", ",".join([device, *self.properties])),
        ]

    def descriptors(self) -> Sequence[int]:
        """None: QEMU opens the socket."""
        return ()


@dataclass(frozen=True, slots=True)
class PluggedNic:
    """A virtio-net interface whose frames are datagrams on a connected socket."""

    socket: socket.socket
    mac: str

    def arguments(self, name: str) -> list[str]:
        """QEMU's arguments for the interface."""
        return [
            *("-netdev", f"dgram,id={name},local.type=fd,local.str={self.socket.fileno()}"),
            *("-device", f"virtio-net-pci,netdev={name},mac={self.mac},romfile="),
        ]

    def descriptors(self) -> Sequence[int]:
        """The socket's."""
        return (self.socket.fileno(),)


class Guest:
    """A virtual machine, from `async with` on. It waits for the switch on each vhost-user interface, then boots.

    Interfaces are eth0, eth1, ... in the order of `nics`, and down. `layers` are the images that make up its root file
    system (see root.py), the uppermost first; what it writes there is in its memory. Without them it has busybox only.
    With them, its /shared is the directory `shared` here.
    """

    shared: Path

    def __init__(
        self, name: str, nics: Sequence[Interface], *, cpus: int = 1, memory_mb: int = 192, layers: Sequence[Path] = ()
    ) -> None:
        self.name = name
        self._nics = nics
        self._cpus = cpus
        self._memory_mb = memory_mb
        self._layers = layers
        self._cleanup = contextlib.ExitStack()
        self._console: deque[str] = deque(maxlen=CONSOLE_LINES)
        self._trouble: list[str] = []
        self._answers: dict[str, asyncio.Future[tuple[int, str]]] = {}
        self._starts: dict[str, asyncio.Future[int]] = {}
        self._requests = 0
        self._failure: GuestError | None = None
        self._booted: asyncio.Future[None]
        self._process: Process
        self._agent: asyncio.StreamWriter
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._booted = asyncio.get_running_loop().create_future()
        made = await asyncio.to_thread(image.prepare)
        if self._layers:
            self.shared = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix=f"{self.name}-")))
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *self._command(made, theirs.fileno()),
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=STDOUT,
                pass_fds=[theirs.fileno(), *(number for nic in self._nics for number in nic.descriptors())],
                start_new_session=True,  # an interrupt ends the test, which ends the guest
            )
        answers, self._agent = await asyncio.open_unix_connection(sock=ours, limit=OUTPUT_MAX)
        self._tasks = [asyncio.create_task(self._read_console()), asyncio.create_task(self._read_answers(answers))]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._process.returncode is None:
            await (self.stop() if kind is None else self.kill())
        self._cleanup.close()

    def _command(self, made: image.Image, agent: int) -> list[str]:
        # On a busy host timer interrupts come late: without no_timer_check Linux takes them for broken and panics.
        kernel_options = f"console=ttyS0 loglevel=5 nokaslr no_timer_check nowatchdog oops=panic hostname={self.name}"
        if self._layers:
            kernel_options += f" layers={','.join(DISKS[: len(self._layers)])}"
        command = [
            # It goes with us even when we are killed; setpriv becomes QEMU, so the pid is its.
            *(
                "setpriv",
                "--pdeathsig",
                "KILL",
                "qemu-system-x86_64",
                "-name",
                self.name,
                "-nodefaults",
                "-display",
                "none",
            ),
            *("-machine", "q35,accel=tcg,memory-backend=mem", "-cpu", "max", "-smp", str(self._cpus)),
            # A back-end maps the guest's memory, which therefore has to be a file.
            *("-object", f"memory-backend-memfd,id=mem,size={self._memory_mb}M,share=on", "-m", str(self._memory_mb)),
            *("-kernel", str(made.kernel), "-initrd", str(made.initrd), "-append", kernel_options),
            *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
            *("-chardev", f"socket,id=agent,fd={agent}", "-serial", "chardev:agent"),
        ]
        for layer in self._layers:
            command += ["-drive", f"file={layer},format=raw,if=virtio,readonly=on"]
        if self._layers:
            command += ["-virtfs", f"local,path={self.shared},mount_tag=shared,security_model=none"]
        return command + [word for i, nic in enumerate(self._nics) for word in nic.arguments(f"net{i}")]

    # ---- what a test does with it -----------------------------------------------

    async def booted(self, seconds: float = BOOT_SECONDS) -> None:
        """Wait until the guest takes commands; GuestError when it does not come up."""
        await self.wait(self._booted, seconds, "has not booted")

    async def run(self, commands: str, seconds: float = RUN_SECONDS) -> str:
        """Run lines of shell in the guest and return their output; GuestError when the status is not 0."""
        status, output = await self.status(commands, seconds)
        if status:
            raise GuestError(f"{self.name}: {commands!r} ended with {status}: {output.strip()}")
        return output

    async def status(self, commands: str, seconds: float = RUN_SECONDS) -> tuple[int, str]:
        """As `run`, but return the exit status and the output, whatever they are."""
        request, answer = self._send("run", commands)
        try:
            return await self.wait(answer, seconds, f"has not answered {commands!r}")
        finally:
            self._answers.pop(request, None)

    async def until(self, condition: str, seconds: float = RUN_SECONDS) -> None:
        """Run lines of shell again and again until their status is 0; GuestError when it is not in time."""
        deadline = asyncio.get_running_loop().time() + seconds
        while (last := await self.status(condition, seconds))[0]:
            if asyncio.get_running_loop().time() > deadline:
                output = last[1].strip()
                raise GuestError(f"{self.name}: {condition!r} is not so within {seconds:.0f} s: {output}{self._tail()}")
            await asyncio.sleep(LOOK_SECONDS)

    @property
    def pid(self) -> int:
        """QEMU's."""
        return self._process.pid

    @contextlib.asynccontextmanager
    async def job(self, commands: str) -> AsyncIterator[Job]:
        """Start lines of shell beside what `run` runs; they and all that they started end with the context."""
        request, answer = self._send("job", commands)
        pid = await self.wait(self._starts[request], RUN_SECONDS, f"has not started {commands!r}")
        job = Job(self, commands, pid, f"/tmp/output.{request}", answer)
        try:
            yield job
        finally:
            if self._failure is None:
                await job.stop("KILL")

    def reset(self) -> None:
        """Reset the machine at once, without a word to its devices' drivers; `booted` waits for the new start.

        What runs there ends with RESET_STATUS, jobs too.
        """
        self._booted = asyncio.get_running_loop().create_future()
        self._send("run", "echo b >/proc/sysrq-trigger")
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result((RESET_STATUS, f"{self.name} was reset"))
        self._answers.clear()

    async def stop(self) -> None:
        """End QEMU; GuestError when the kernel has complained meanwhile."""
        self._process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        finally:
            await self.kill()
        if self._trouble:
            raise GuestError(f"{self.name}: {self._trouble[0]}{self._tail()}")

    async def kill(self) -> None:
        """kill -9 of QEMU."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await asyncio.gather(*self._tasks)
        self._agent.close()

    # ---- its two serial ports ---------------------------------------------------

    def _send(self, how: str, commands: str) -> tuple[str, asyncio.Future[tuple[int, str]]]:
        self._requests += 1
        request = str(self._requests)
        self._answers[request] = answer = asyncio.get_running_loop().create_future()
        if how == "job":
            self._starts[request] = asyncio.get_running_loop().create_future()
        self._agent.write(f"{request} {how} {base64.b64encode(commands.encode()).decode()}\n".encode())
        return request, answer

    async def wait(self, event: asyncio.Future[T], seconds: float, what: str) -> T:
        """Return the event's result; GuestError, with `what` it `has not ...`, when it does not come."""
        if self._failure:
            raise self._failure
        try:
            async with asyncio.timeout(seconds):
                return await event
        except TimeoutError:
            raise GuestError(f"{self.name} {what} within {seconds:.0f} s{self._tail()}") from None

    async def _read_answers(self, answers: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionResetError):  # QEMU ended with a request unread
            async for line in answers:
                match line.decode().split():
                    case ["ready"]:
                        if not self._booted.done():
                            self._booted.set_result(None)
                    case [request, "pid", pid] if request in self._starts:
                        self._starts.pop(request).set_result(int(pid))
                    case [request, status, *output] if request in self._answers:
                        text = base64.b64decode("".join(output)).decode(errors="replace")
                        self._answers.pop(request).set_result((int(status), text))

    async def _read_console(self) -> None:
        assert self._process.stdout
        async for line in self._process.stdout:
            text = line.decode(errors="replace").rstrip()
            self._console.append(text)
            if TROUBLE.search(text):
                self._trouble.append(text)
            if PANIC_TOLD.search(text):
                self._fail("panicked")
        self._fail(f"ended with status {await self._process.wait()}")

    def _fail(self, what: str) -> None:
        """No event will come any more."""
        self._failure = self._failure or GuestError(f"{self.name} {what}{self._tail()}")
        events: list[asyncio.Future[Any]] = [self._booted, *self._answers.values(), *self._starts.values()]
        for event in events:
            if not event.done():
                event.set_exception(self._failure)
                event.exception()  # retrieved, as asyncio calls it: nobody has to wait for it
        self._answers.clear()
        self._starts.clear()

    def _tail(self) -> str:
        return "; its console:\n" + "\n".join(self._console) if self._console else "; its console is empty"


class Job:
    """What runs in a guest beside other commands; made by Guest.job."""

    def __init__(
        self, guest: Guest, commands: str, pid: int, output: str, answer: asyncio.Future[tuple[int, str]]
    ) -> None:
        self.pid = pid  # in the guest; the leader of its session
        self.killed = False
        self._guest = guest
        self._commands = commands
        self._output = output
        self._answer = answer

    async def status(self, seconds: float = RUN_SECONDS) -> tuple[int, str]:
        """Wait for the end; return the exit status and the output, whatever they are."""
        return await self._guest.wait(asyncio.shield(self._answer), seconds, f"has not ended {self._commands!r}")

    async def wait(self, seconds: float = RUN_SECONDS) -> str:
        """Wait for the end and return the output; GuestError when the status is not 0."""
        status, output = await self.status(seconds)
        if status:
            raise GuestError(f"{self._guest.name}: {self._commands!r} ended with {status}: {output.strip()}")
        return output

    async def said(self, pattern: str, seconds: float = RUN_SECONDS) -> str:
        """Wait until a line of the output so far matches, and return it all; GuestError when it ends without."""
        try:
            await self._guest.until(f"grep -Eq '{pattern}' {self._output} || ! kill -0 {self.pid}", seconds)
        finally:
            output = await self._guest.run(f"cat {self._output}")
        if not re.search(pattern, output, re.MULTILINE):
            raise GuestError(f"{self._guest.name}: {self._commands!r} ended without {pattern!r}: {output.strip()}")
        return output

    async def stop(self, signal: str = "TERM") -> tuple[int, str]:
        """Send a signal to all of it that runs; return the exit status and the output."""
        self.killed = self.killed or signal == "KILL"
        if not self._answer.done():
            await self._guest.status(f"kill -{signal} -- -{self.pid}")
        return await self.status()
