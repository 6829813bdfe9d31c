# SPDX-License-Identifier: Apache-2.0
"""What the tests with containers share: two ports, left and right, and testpmd on each."""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack

from testpmd import Testpmd

from tests.polling import until
from tests.system.ffswitchd import Ffswitchd

SECONDS = 30.0
MACS = {"left": "02:00:00:00:00:0a", "right": "02:00:00:00:00:0b"}
VIRTIO_PORT, PCAP_PORT = 0, 1  # of testpmd, in the order of its command line
# What the daemon may warn of when a container is not there yet, or goes.
PEER_LOST = (
    r"WARNING .*(: lost \(|failed to connect: (No such file or directory|Connection refused)"
    r"|recvmsg failed on fd \d+ \(Connection reset by peer\)|vhost read message failed)"
)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Looks again and again at a condition in other processes, until the deadline."""
    assert until(condition, SECONDS), f"not within {SECONDS:.0f} s: {what}"


def add_ports(daemon: Ffswitchd, **config: object) -> None:
    for port, mac in MACS.items():
        daemon.call("port.add", name=port, mac=mac, **config)


def start(  # noqa: PLR0917
    cleanup: ExitStack, daemon: Ffswitchd, port: str, options: list[str], eal: list[str], app: list[str]
) -> Testpmd:
    name = f"{daemon.run_dir.parent.name}-{port}"
    container = Testpmd(port, daemon.run_dir, name, options=["--mac", MACS[port], *options], eal=eal, app=app)
    cleanup.callback(container.close)
    return container


def state(daemon: Ffswitchd, port: str) -> tuple[str, str]:
    """(state, why)"""
    found = daemon.call("port.get", name=port)
    return found["state"], found["reason"]


def wait_ready(daemon: Ffswitchd, *containers: Testpmd) -> None:
    for container in containers:
        container.wait_ready(SECONDS)
    for container in containers:
        wait_for(lambda port=container.port: state(daemon, port)[0] == "ready", f"{container.port} ready")  # type: ignore[misc]


def read_until(process: subprocess.Popen[bytes], pattern: str) -> str:
    """Reads the process's standard output up to what `pattern` matches; returns all that was read."""
    assert process.stdout
    text = ""
    deadline = time.monotonic() + SECONDS
    while not re.search(pattern, text):
        readable, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        data = os.read(process.stdout.fileno(), 65536) if readable else b""
        assert data, f"no {pattern!r} in {text[-2000:]}"
        text += data.decode(errors="replace")
    return text
