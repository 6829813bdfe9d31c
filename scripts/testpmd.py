# SPDX-License-Identifier: Apache-2.0
"""dpdk-testpmd in a container of scripts/run-container, watched through DPDK's telemetry socket."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

RUN_CONTAINER = Path(__file__).with_name("run-container")
STOP_SECONDS = 15.0  # run-container gives testpmd 5 before it kills it
TELEMETRY_MAX = 16384  # bytes of one answer


class ContainerError(Exception):
    """The container ended by itself, or does not get ready; with the last line that it wrote."""


class Counters(NamedTuple):
    """Packets of one of testpmd's own ports, since it started."""

    received: int
    sent: int


class Testpmd:
    """One container. Not interactive: testpmd's command line would poll a whole CPU away."""

    __test__ = False  # not a test case of pytest's

    def __init__(
        self,
        port: str,
        run_dir: Path,
        name: str,
        *,
        options: Sequence[str] = (),
        eal: Sequence[str] = (),
        app: Sequence[str] = (),
    ) -> None:
        """Start run-container with its `options`, and with more arguments for EAL and for testpmd itself.

        Returns at once, while testpmd still waits for the switch. `name` is the container's; its log and its
        telemetry socket lie in `run_dir`.
        """
        self.port = port
        self.name = name
        self._log = run_dir / f"{port}.log"
        self._runtime = run_dir / f"{port}.dpdk"
        self._runtime.mkdir(exist_ok=True)
        self.command: list[str | Path] = [RUN_CONTAINER, port, "--run-dir", run_dir, "--name", name, *options]
        self.command += ["--mount", f"{self._runtime}:/run/dpdk", "--", *eal, "--", *app]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )

    def wait_ready(self, seconds: float) -> None:
        """Wait until testpmd's port 0, its virtio-user, is started: until then it has given the switch no buffers."""
        deadline = time.monotonic() + seconds
        while self._ask("/ethdev/link_status,0").get("status") != "UP":
            if self._process.poll() is not None:
                raise ContainerError(f"the container on {self.port} ended: {self.last_words()}")
            if time.monotonic() > deadline:
                raise ContainerError(f"testpmd on {self.port} is not ready after {seconds:.0f} s: {self.last_words()}")
            time.sleep(0.01)

    def counters(self, port: int) -> Counters:
        """Return the counters of testpmd's own port number `port`, or zeros as long as it does not answer."""
        stats = self._ask(f"/ethdev/stats,{port}")
        return Counters(stats.get("ipackets", 0), stats.get("opackets", 0))

    def _ask(self, question: str) -> dict[str, Any]:
        """Return telemetry's answer, {} when there is none."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as telemetry:
            try:
                telemetry.connect(str(self._runtime / "rte/dpdk_telemetry.v2"))
                telemetry.recv(TELEMETRY_MAX)  # its greeting
                telemetry.send(question.encode())
                answer = json.loads(telemetry.recv(TELEMETRY_MAX))
            except OSError:  # it has not begun yet, or has ended
                return {}
        return answer[question.split(",", maxsplit=1)[0]] or {}

    def last_words(self) -> str:
        """Return the first line of the container's log that speaks of a failure, else the last one."""
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        failures = [line for line in lines if re.search(r"fail|cannot|invalid", line, re.IGNORECASE)]
        return [*failures, *lines[-1:], "it said nothing"][0]

    def kill(self) -> None:
        """End the container as a crash would, and wait until run-container has cleaned up after it."""
        subprocess.run(["runc", "kill", self.name, "KILL"], check=True)
        self._process.wait(STOP_SECONDS)

    def close(self) -> None:
        """End testpmd, so that it writes its files out, and wait until nothing of the container is left.

        May be called again, as after an interrupt: run-container is killed only when it does not end.
        """
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdin
        self._process.stdin.close()
