# SPDX-License-Identifier: Apache-2.0
"""DPDK applications on memory ports: ours (tests/endpoint/flow.c) and dpdk-testpmd."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.system.containers import read_until
from tests.system.ffswitchd import ROOT, Ffswitchd

PLUGIN = ROOT / "build/endpoint/librte_net_ff.so"
FLOW = ROOT / "build/endpoint/flow"
# What the daemon may warn of when containers are killed.
GONE = r"WARNING .*(no shortcut|still holds packets)"


class Endpoint:
    """One process on the memory port `name`; ends with `close`."""

    def __init__(self, daemon: Ffswitchd, name: str, program: Path | str, *arguments: str) -> None:
        socket = daemon.run_dir / "ports" / name / "ff.sock"
        eal = [
            "--no-pci",
            "--no-huge",
            "-m",
            "64",
            "--no-shconf",
            "--no-telemetry",
            f"--file-prefix={name}{os.getpid()}",
        ]
        command = [str(program), *eal, "-d", str(PLUGIN), f"--vdev=net_ff0,path={socket}", *arguments]
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
