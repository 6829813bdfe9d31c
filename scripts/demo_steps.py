# SPDX-License-Identifier: Apache-2.0
"""The steps of `make demo`."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from demo_traffic import Replay, load, read_frames
from interrupts import Interrupts
from rich.console import Console
from rich.table import Table
from testpmd import Testpmd

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv/bin"
SECONDS = 30.0  # for any one step; all of them together take about three
RING = 1024  # descriptors: a whole direction of the capture fits, so a busy machine loses nothing
PCAP_PORT = 1  # of testpmd, which numbers its ports in the order of its command line: virtio-user, then pcap


class DemoError(Exception):
    """One line for people: what went wrong."""


class Demo:
    """What the demo starts and writes, all below one run directory; `cleanup` undoes it in reverse order."""

    def __init__(self, console: Console, interrupts: Interrupts, cleanup: ExitStack) -> None:
        self.console = console
        self.interrupts = interrupts
        self.cleanup = cleanup
        with interrupts.held():
            self.dir = Path(tempfile.mkdtemp(prefix="ffswitch-demo-", dir="/run"))
            cleanup.callback(shutil.rmtree, self.dir)
        self.environment = os.environ | {"FFSWITCH_RUN_DIR": str(self.dir)}

    def show_command(self, *command: str | Path) -> None:
        """Print a command line as a person would type it."""
        words = [str(word).removeprefix(f"{BIN}/").removeprefix(f"{ROOT}/") for word in command]
        self.console.print(f"\n[bold green]$[/] [bold]{shlex.join(words)}[/]", soft_wrap=True, highlight=False)

    def start_daemon(self) -> None:
        """Start ffswitchd and wait until it says that it is ready, as it would to systemd."""
        log, address = self.dir / "ffswitchd.log", self.dir / "notify.sock"
        command: list[str | Path] = [BIN / "ffswitchd", "--run-dir", self.dir, "--flow-idle", "60"]
        self.show_command(*command)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, log.open("wb") as output:
            notify.bind(str(address))
            with self.interrupts.held():
                daemon = subprocess.Popen(
                    command,
                    env=self.environment | {"NOTIFY_SOCKET": str(address)},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
                self.cleanup.callback(stop, daemon)
            ended = os.pidfd_open(daemon.pid)
            try:
                readable, _, _ = select.select([notify.fileno(), ended], [], [], SECONDS)
                ready = notify.fileno() in readable
            finally:
                os.close(ended)
        if not ready:
            words = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise DemoError(f"ffswitchd did not start: {words[-1]}")

    def ffswitch(self, *arguments: str) -> None:
        """Run one `ffswitch` command; it prints for itself."""
        self.show_command(BIN / "ffswitch", *arguments)
        self.run_ffswitch(*arguments)

    def run_ffswitch(self, *arguments: str, output: int | None = None) -> None:
        """Run one `ffswitch` command without showing the command line."""
        self.console.file.flush()
        # In a session of its own, where a terminal's Ctrl-C reaches the demo alone.
        done = subprocess.run(
            [BIN / "ffswitch", *arguments], env=self.environment, check=False, stdout=output, start_new_session=True
        )
        if done.returncode:
            raise DemoError(f"`ffswitch {shlex.join(arguments)}` failed")

    def start_container(self, port: str, mac: bytes, frames: list[bytes]) -> tuple[Testpmd, Replay]:
        """Start a container whose testpmd waits for the replay of `frames`, and keeps what arrives."""
        data = self.dir / f"{port}.pcaps"
        data.mkdir()
        options = ["--mac", mac.hex(":"), "--virtio", f"queue_size={RING}", "--mount", f"{data}:/mnt/pcaps"]
        eal = ["--vdev=net_pcap0,rx_pcap=/mnt/pcaps/sent.pcap,tx_pcap=/mnt/pcaps/received.pcap"]
        # testpmd would throw away what waits in its receive queues when it starts.
        app = ["--no-flush-rx", "--forward-mode=io", f"--rxd={RING}", f"--txd={RING}"]
        with self.interrupts.held():
            replay = Replay(data / "sent.pcap", frames)
            container = Testpmd(port, self.dir, f"{self.dir.name}-{port}", options=options, eal=eal, app=app)
            self.cleanup.callback(container.close)
            self.cleanup.callback(replay.close)  # first, since testpmd may be waiting in a read
        self.show_command(*container.command)
        return container, replay

    def received(self, port: str) -> list[bytes]:
        """Return what the container of `port` got; to be asked when it has ended and written its file."""
        return read_frames(self.dir / f"{port}.pcaps/received.pcap")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process, kindly at first."""
    process.terminate()
    try:
        process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def exchange(containers: dict[str, Testpmd], replays: list[Replay], expected: dict[str, int]) -> float:
    """Let both containers send, wait until each has got all frames that it should; return the seconds it took."""
    begin = time.monotonic()
    for replay in replays:
        replay.release()
    waiting = set(expected)
    while waiting:
        for port in list(waiting):
            got = containers[port].counters(PCAP_PORT).sent
            if got >= expected[port]:
                waiting.remove(port)
            elif time.monotonic() > begin + SECONDS:
                raise DemoError(f"{port} got {got} of {expected[port]} frames within {SECONDS:.0f} s")
        time.sleep(0.002)  # leaves the CPU to those who move the frames
    return time.monotonic() - begin


def compare(console: Console, sent: dict[str, list[bytes]], received: dict[str, list[bytes]]) -> bool:
    """Draw what went each way; return whether every frame arrived, byte for byte and in order."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("from")
    table.add_column("to")
    for heading in ("frames sent", "frames received", "bytes received"):
        table.add_column(heading, justify="right")
    table.add_column("compared")
    first, second = sent
    same = True
    for source, target in ((first, second), (second, first)):
        equal = received[target] == sent[source]
        same = same and equal
        verdict = "[green]every byte equal, in order[/]" if equal else "[bold red]different[/]"
        counts = (len(sent[source]), len(received[target]), sum(map(len, received[target])))
        table.add_row(source, target, *(f"{number:,}" for number in counts), verdict)
    console.print("\n[bold]What each container got[/]")
    console.print(table)
    return same


def run(demo: Demo) -> bool:
    """Do the demo's steps; return whether all frames arrived as they were sent."""
    traffic = load()
    macs = dict(zip(("client0", "web0"), traffic.macs, strict=True))
    sent = {port: traffic.of(mac) for port, mac in macs.items()}
    first, second = macs

    demo.start_daemon()
    for port, mac in macs.items():
        demo.ffswitch("add-port", port, "--mac", mac.hex(":"))
    containers, replays = {}, []
    for port, mac in macs.items():
        containers[port], replay = demo.start_container(port, mac, sent[port])
        replays.append(replay)
    for port, mac in macs.items():
        containers[port].wait_ready(SECONDS)
        wait = ("--mac", mac.hex(":"), "--may-exist", "--wait", f"{SECONDS:.0f}")
        demo.run_ffswitch("add-port", port, *wait, output=subprocess.DEVNULL)
    demo.console.print(f"\nBoth ports are ready. Replaying {traffic.title}, {len(traffic.frames)} frames ...")
    seconds = exchange(containers, replays, {first: len(sent[second]), second: len(sent[first])})
    for view in ("list-ports", "fdb", "dump-flows", "stats"):
        demo.ffswitch(view)
    for container in containers.values():
        container.close()
    same = compare(demo.console, sent, {port: demo.received(port) for port in macs})
    size = sum(map(len, traffic.frames))
    demo.console.print(f"\n{len(traffic.frames)} frames, {size:,} bytes in {seconds * 1000:.0f} ms.", end=" ")
    return same
