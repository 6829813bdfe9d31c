# SPDX-License-Identifier: Apache-2.0
"""DPDK applications on memory ports: ours (tests/endpoint/flow.c), dpdk-testpmd, and l2fwd of DPDK's examples."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.system.containers import read_until
from tests.system.ffswitchd import ROOT, Ffswitchd

PLUGIN = ROOT / "build/endpoint/librte_net_ff.so"
FLOW = ROOT / "build/endpoint/flow"
L2FWD = ROOT / "build/endpoint/l2fwd"
# What the daemon may warn of when containers are killed.
GONE = r"WARNING .*(no shortcut|still holds packets)"


class Endpoint:
    """One process on the memory port `name`, and on `others`; ends with `close`."""

    def __init__(
        self, daemon: Ffswitchd, name: str, program: Path | str, *arguments: str, others: Sequence[str] = ()
    ) -> None:
        ports = [daemon.run_dir / "ports" / port / "ff.sock" for port in (name, *others)]
        eal = [
            "--no-pci",
            "--no-huge",
            "-m",
            "64",
            "--no-shconf",
            "--no-telemetry",
            f"--file-prefix={name}{os.getpid()}",
        ]
        vdevs = [f"--vdev=net_ff{number},path={socket}" for number, socket in enumerate(ports)]
        command = [str(program), *eal, "-d", str(PLUGIN), *vdevs, *arguments]
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def ask(self, word: str, pattern: str) -> str:
        """Say a word; what comes up to `pattern`."""
        assert self.process.stdin
        self.process.stdin.write(f"{word}\n".encode())
        self.process.stdin.flush()
        return read_until(self.process, pattern)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End it, if it has not ended."""
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()


class Flow(Endpoint):
    """Talks to `peer` at full speed, within a window."""

    def __init__(self, daemon: Ffswitchd, name: str, peer: str, length: int = 64) -> None:
        mac = daemon.call("port.get", name=peer)["mac"]
        super().__init__(daemon, name, FLOW, "-l", "0", "--", mac, str(length))

    def started(self) -> None:
        """Wait until it runs."""
        read_until(self.process, r"started\n")

    def go(self) -> None:
        """Begin; what is sent before the peer is ready would be lost."""
        assert self.process.stdin
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()

    def stop(self) -> int:
        """Send no more; how many frames went, all of them acknowledged."""
        text = self.ask("stop", r"stopped (\d+)\n")
        return int(text.split("stopped ")[1].split()[0])

    def report(self) -> dict[str, int]:
        """What came, and what of it is lost, or late."""
        text = self.ask("report", r"report .*\n").split("report ")[1].splitlines()[0]
        return {key: int(value) for key, value in (word.split("=") for word in text.split())}


class Forwarder(Endpoint):
    """testpmd: sends what it receives on to `peer`; without one, it only receives."""

    def __init__(self, daemon: Ffswitchd, name: str, peer: str = "") -> None:
        mode = ["--forward-mode=rxonly"]
        if peer:
            mac = daemon.call("port.get", name=peer)["mac"]
            mode = ["--forward-mode=mac", f"--eth-peer=0,{mac}", "--port-topology=loop"]
        common = ["--no-mlockall", "--total-num-mbufs=8192", "--stats-period=1", *mode]
        super().__init__(daemon, name, "dpdk-testpmd", "-l", "0,1", "--", *common)


class L2fwd(Endpoint):
    """DPDK's example: what comes by one port leaves by the other, to the address that it has made of its number."""

    SENDS_TO = ("02:00:00:00:00:00", "02:00:00:00:00:01")  # by the first port, and by the second

    def __init__(self, daemon: Ffswitchd, first: str, second: str) -> None:
        super().__init__(daemon, first, L2FWD, "-l", "0", "--", "-p", "3", "-q", "2", "-T", "0", others=[second])
        read_until(self.process, "entering main loop")
