# SPDX-License-Identifier: Apache-2.0
"""ffswitchd in a guest, and containers' worth of testpmd at its ports."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import AsyncIterator
from typing import Any

from tests.guest.guest import Job
from tests.rdma.bed import Host

MEMORY = "--no-huge --memory 160 --mbufs 8192"
# Frames go between its two ports, virtio-user and net_pcap. By default it throws away what waits when it starts.
# Without stdbuf, a file gets what it says only at its end.
TESTPMD = (
    "stdbuf -oL dpdk-testpmd --lcores '0@(0-1),1@(0-1)' --no-pci --no-huge -m 64"
    " --no-telemetry --no-shconf --file-prefix {port}"
    " --vdev=net_virtio_user0,path=/run/ffswitch/ports/{port}/vhost.sock,server=1,mac={mac}"
    " --vdev=net_pcap0,rx_pcap=/tmp/{port}.sent,tx_pcap=/tmp/{port}.got"
    " -- --no-mlockall --no-flush-rx --total-num-mbufs=4096 --auto-start"
)
# `ffswitch` would do, but under emulation its start takes seconds.
CALL = """
import socket, sys
with socket.socket(socket.AF_UNIX) as daemon:
    daemon.connect("/run/ffswitch/ffswitch.sock")
    daemon.sendall(sys.argv[1].encode() + b"\\n")
    print(daemon.makefile().readline())
"""


@contextlib.asynccontextmanager
async def start(host: Host, options: str = "") -> AsyncIterator[Job]:
    """Run ffswitchd until the end of the context; it must get ready and, unless it was killed, end well."""
    async with host.guest.job(f"exec ffswitchd {MEMORY} {options}") as daemon:
        await daemon.said(" ready: ")
        yield daemon
        if not daemon.killed:
            status, output = await daemon.stop()
            assert status == 0, output


async def call(host: Host, method: str, **params: Any) -> Any:
    """One JSON-RPC request to the daemon there; return its result."""
    request = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    answer = json.loads(await host.guest.run(f"/usr/bin/python3 -c {shlex.quote(CALL)} {shlex.quote(request)}"))
    assert "error" not in answer, answer
    return answer["result"]


@contextlib.asynccontextmanager
async def container(host: Host, port: str, mac: str) -> AsyncIterator[Job]:
    """testpmd at a port. What it receives goes to /tmp/PORT.got, and it sends once what `feed` gives it."""
    pipes = f"/tmp/{port}.sent /tmp/{port}.in"
    stale = f"/run/ffswitch/ports/{port}/vhost.sock"  # of one that was killed
    command = TESTPMD.format(port=port, mac=mac)
    # it ends when its standard input does
    async with host.guest.job(f"rm -f {stale} {pipes}; mkfifo {pipes}; exec {command} <>/tmp/{port}.in") as testpmd:
        yield testpmd


async def feed(host: Host, testpmd: Job, port: str, capture: str) -> None:
    """Let the container at a port begin, with the frames of a capture, a file in the guest's /shared.

    On return it takes frames. Its port is ready before that, but drops them ("ring-full"): there are no buffers yet.
    """
    await host.guest.run(f"cat /shared/{capture} >/tmp/{port}.sent")
    await testpmd.said("Press enter to exit")
