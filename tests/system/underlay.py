# SPDX-License-Identifier: Apache-2.0
"""Hosts as network namespaces on a common link, with a controller among them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Self

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.frontend import FrontEnd
from tests.system.ffswitchd import ROOT, Ffswitchd

CONTROLLER_PORT = 7443
START_TIMEOUT = 60.0
DEADLINE = 60.0
_numbers = count()


def ip(*words: str, netns: str = "") -> None:
    """`ip WORDS` in a namespace."""
    subprocess.run(["ip", *(["-n", netns] if netns else []), *words], check=True, capture_output=True)


def run(netns: str, *command: str, given: str = "") -> str:
    """What a command in a namespace prints."""
    words = ["ip", "netns", "exec", netns, *command]
    done = subprocess.run(words, cwd=ROOT, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def joined() -> Iterator[tuple[str, str]]:
    """Two namespaces with a veth `eth0` each: 192.0.2.1 and .2, 2001:db8::1 and ::2. Offloads are off: what a raw
    socket sees has its checksums."""
    names = (f"ffa{os.getpid()}x{next(_numbers)}", f"ffb{os.getpid()}x{next(_numbers)}")
    try:
        for name in names:
            ip("netns", "add", name)
            ip("link", "set", "lo", "up", netns=name)
        ip("link", "add", "name", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for number, name in enumerate(names, start=1):
            run(name, "ethtool", "-K", "eth0", "tx", "off")
            ip("addr", "add", f"192.0.2.{number}/24", "dev", "eth0", netns=name)
            ip("addr", "add", f"2001:db8::{number}/64", "dev", "eth0", "nodad", netns=name)
        for name in names:
            ip("link", "set", "eth0", "up", netns=name)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@contextlib.contextmanager
def on_a_bridge(number: int) -> Iterator[list[str]]:
    """Namespaces with an `eth0` each, 192.0.2.1 and on, on a bridge in a namespace of its own. Offloads are off."""
    *names, middle = (f"ff{os.getpid()}x{next(_numbers)}" for _ in range(number + 1))
    try:
        for name in (*names, middle):
            ip("netns", "add", name)
            ip("link", "set", "lo", "up", netns=name)
        ip("link", "add", "name", "br0", "type", "bridge", netns=middle)
        ip("link", "set", "br0", "up", netns=middle)
        for host, name in enumerate(names, start=1):
            ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", f"h{host}", "netns", middle)
            run(name, "ethtool", "-K", "eth0", "tx", "off")
            ip("addr", "add", f"192.0.2.{host}/24", "dev", "eth0", netns=name)
            ip("link", "set", f"h{host}", "master", "br0", "up", netns=middle)
            ip("link", "set", "eth0", "up", netns=name)
        yield names
    finally:
        for name in (*names, middle):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


class Controller:
    """An ffcontroller in a namespace, on 192.0.2.1; `ctl` is ffctl beside it."""

    def __init__(self, netns: str, directory: Path) -> None:
        self._netns, self._directory = netns, directory
        self._tool("ffcontroller", "init", "--state-dir", str(directory))
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        words = ["run", "--state-dir", str(self._directory), "--listen", f"0.0.0.0:{CONTROLLER_PORT}"]
        command = [*self._command("ffcontroller"), *words, "--name", "one", "--heartbeat", "1"]
        log = (self._directory / "log").open("ab")
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log)
        log.close()
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], START_TIMEOUT)[0], self.log
        assert process.stdout.readline().startswith(b"ffcontroller one"), self.log
        return process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.stop()

    @property
    def log(self) -> str:
        return (self._directory / "log").read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(START_TIMEOUT)

    def restart(self) -> None:
        self.process = self._start()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(START_TIMEOUT)

    def _command(self, tool: str) -> list[str]:
        code = f"import sys; from controller.cli.{tool} import main; sys.exit(main())"
        return ["ip", "netns", "exec", self._netns, sys.executable, "-c", code]

    def _try(self, tool: str, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        command = [*self._command(tool), *words]
        return subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True, check=False)

    def _tool(self, tool: str, *words: str, given: str = "") -> str:
        done = self._try(tool, *words, given=given)
        assert done.returncode == 0, f"{tool} {' '.join(words)}: {done.stdout}{done.stderr}{self.log}"
        return done.stdout

    def ctl(self, *words: str, given: str = "") -> str:
        """What an ffctl command prints."""
        return self._tool("ffctl", *self._where, *words, given=given)

    def refusal(self, *words: str, given: str = "") -> str:
        """What an ffctl command that fails says."""
        done = self._try("ffctl", *self._where, *words, given=given)
        assert done.returncode == 1, done.stdout
        return done.stderr

    def explain(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Any]:
        """`ffctl explain` of each pair, all in one process."""
        commands = [[*self._where, "explain", *pair, "-o", "json"] for pair in pairs]
        code = "import json, sys; from controller.cli.ffctl import main; "
        code += "sys.exit(any(main(words) for words in json.loads(sys.stdin.read())))"
        text = run(self._netns, sys.executable, "-c", code, given=json.dumps(commands))
        found = {}
        for pair in pairs:
            found[pair], end = json.JSONDecoder().raw_decode(text)
            text = text[end:].lstrip()
        return found

    @property
    def _where(self) -> tuple[str, ...]:
        return ("--controller", f"127.0.0.1:{CONTROLLER_PORT}", "--credentials", str(self._directory))

    def apply(self, *objects: dict[str, Any]) -> None:
        """`ffctl apply`, until the hosts concerned have it."""
        self.ctl("apply", "-f", "-", "--wait", "30", given="\n---\n".join(map(json.dumps, objects)))

    def options(self, host: str, state_dir: Path) -> list[str]:
        """What an ffswitchd is started with to join as `host`."""
        token = json.loads(self.ctl("token", "create", host, "-o", "json"))["token"]
        return [
            *("--controller", f"192.0.2.1:{CONTROLLER_PORT}", "--host-name", host),
            *("--join-token", token, "--state-dir", str(state_dir)),
        ]


def add_uplink(daemon: Ffswitchd, *ips: str, **values: str) -> None:
    """The namespace's eth0 becomes an uplink with these addresses."""
    daemon.call("port.add", name="up0", type="packet", devargs="eth0")
    daemon.call("port.set", name="up0", values={"uplink": list(ips)} | values)


def until(daemon: Ffswitchd, what: str, true: Callable[[Any], bool], **params: Any) -> Any:
    """Ask the daemon until its answer is as it should be; each request waits for the one before."""
    deadline = time.monotonic() + DEADLINE
    while True:
        answer = daemon.call(what, **params)
        if true(answer):
            return answer
        assert time.monotonic() < deadline, json.dumps(answer, indent=1)


@dataclass
class Container:
    """A port and its front-end."""

    front: FrontEnd
    mac: str
    ips: list[str]

    @property
    def ip4(self) -> str:
        return next(ip for ip in self.ips if "." in ip)

    @property
    def ip6(self) -> str:
        return next(ip for ip in self.ips if ":" in ip)

    def to(self, other: Container, payload: bytes, sport: int = 1000) -> bytes:
        ether = Ether(src=self.mac, dst=other.mac)
        return bytes(ether / IP(src=self.ip4, dst=other.ip4) / UDP(sport=sport, dport=7) / Raw(payload))


def container(daemon: Ffswitchd, name: str, network: str = "blue", **params: Any) -> Container:
    """A port in a network, which the controller has placed, with its front-end."""
    port = daemon.call("port.add", name=name, network=network, **params)
    front = FrontEnd(port["socket"]).connect(DEADLINE)
    # A port that is ready stops for a moment at each message of its front-end.
    port = until(daemon, "port.get", lambda port: port["state"] == "ready" and _placed(port), name=name)
    return Container(front, port["mac"], port["ips"])


def _placed(port: Any) -> bool:
    return bool(port["endpoint"]["state"] == "placed")
