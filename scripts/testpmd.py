# SPDX-License-Identifier: Apache-2.0
"""dpdk-testpmd in a container of scripts/run-container, driven through its command line."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

RUN_CONTAINER = Path(__file__).with_name("run-container")
PROMPT = "testpmd> "
STOP_SECONDS = 15.0  # run-container itself gives testpmd 5


class TestpmdError(Exception):
    """testpmd ended, or did not answer in time; with the last that it wrote."""


class Counters(NamedTuple):
    """Packets of one of testpmd's ports, since it started."""

    received: int
    sent: int


class Testpmd:
    """One container; its packet forwarding stands still until command("start")."""

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
        """Start run-container with its `options` and with more arguments for EAL and for testpmd itself.

        Returns at once. testpmd then waits for the switch, and wait_prompt() for both. `name` is the container's.
        """
        self.port = port
        self.name = name
        self._unread = ""
        # On a terminal testpmd writes each line as it comes; into a pipe, it would keep them back.
        self._terminal, inside = os.openpty()
        try:
            self._process = subprocess.Popen(
                [RUN_CONTAINER, port, "--run-dir", run_dir, "--name", name, *options, "--", *eal, "--", "-i", *app],
                stdin=inside,
                stdout=inside,
                stderr=inside,
                start_new_session=True,
            )
        except BaseException:
            os.close(self._terminal)
            raise
        finally:
            os.close(inside)

    def wait_prompt(self, deadline: float) -> str:
        """Return what testpmd writes up to its next prompt. `deadline` is of time.monotonic()."""
        while PROMPT not in self._unread:
            readable, _, _ = select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise TestpmdError(f"testpmd on {self.port} does not answer; its last words: {self._last_words()}")
            try:
                got = os.read(self._terminal, 65536)
            except OSError:  # the terminal's other side is closed
                got = b""
            if not got:
                raise TestpmdError(f"testpmd on {self.port} ended: {self._last_words()}")
            self._unread += got.decode(errors="replace").replace("\r", "")
        text, self._unread = self._unread.split(PROMPT, 1)
        return text

    def command(self, text: str, deadline: float) -> str:
        """Have testpmd do one command; return what it wrote, without the command's echo."""
        os.write(self._terminal, f"{text}\n".encode())
        return self.wait_prompt(deadline).removeprefix(text)

    def counters(self, port: int, deadline: float) -> Counters:
        """Return the counters of testpmd's own port number `port`."""
        text = self.command(f"show port stats {port}", deadline)
        found = re.search(r"RX-packets: (\d+).*TX-packets: (\d+)", text, re.DOTALL)
        if not found:
            raise TestpmdError(f"testpmd on {self.port} has no port {port}: {text.strip()}")
        return Counters(int(found[1]), int(found[2]))

    def kill(self) -> None:
        """End the container as a crash would. Its run-container notices and cleans up."""
        subprocess.run(["runc", "kill", self.name, "KILL"], check=True)
        self._process.wait(STOP_SECONDS)

    def close(self) -> None:
        """End testpmd, so that it writes its files, and wait until nothing of the container is left."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._terminal)

    def _last_words(self) -> str:
        lines = [line for line in self._unread.splitlines() if line.strip()]
        return " / ".join(lines[-3:]) or "none"
