# SPDX-License-Identifier: Apache-2.0
"""The test application (app.c) as a process that answers line by line."""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path

SECONDS = 70.0
REPOSITORY = Path(__file__).resolve().parents[2]
BUILT = REPOSITORY / os.environ.get("FFSWITCH_ENDPOINT", "build/endpoint")  # `make asan` has another
PLUGIN = BUILT / "librte_net_ff.so"
PROGRAM = BUILT / "app"
NO_HUGE = ("--no-huge", "--no-shconf")  # EAL's arguments for memory


class Application:
    """One process; its devices are given as net_ff's arguments."""

    def __init__(self, *devices: str, eal: tuple[str, ...] = NO_HUGE, program: Path = PROGRAM) -> None:
        vdevs = [word for i, device in enumerate(devices) for word in ("--vdev", f"net_ff{i},{device}")]
        command: list[str | Path] = [
            program,
            "--no-pci",
            "-m",
            "64",
            "-l",
            "0",
            *eal,
            "-d",
            PLUGIN,
            *vdevs,
        ]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in os.environ.items() if name != "LD_PRELOAD"},  # of `make asan`
        )
        self.log: list[str] = []
        self._rest = b""

    def say(self, command: str) -> None:
        """Write a command, without waiting for what comes of it."""
        assert self.process.stdin
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()

    def hear(self, word: str) -> str:
        """Wait for the line that begins with a word; return the rest of it."""
        while True:
            line = self._line()
            if line is None:
                raise AssertionError(f"the application ended with {self.process.wait()}: {self.log}")
            self.log.append(line)
            if line.split(" ")[0] == word:
                return line[len(word) + 1 :]
            assert not line.startswith("error:"), line

    def do(self, command: str, word: str | None = None) -> str:
        """Give a command and wait for its answer."""
        self.say(command)
        return self.hear(word or command.split(maxsplit=1)[0])

    def spoke(self, seconds: float = 0) -> bool:
        """Return whether there is a line to hear, or comes within so long."""
        assert self.process.stdout
        return bool(self._rest) or bool(select.select([self.process.stdout], [], [], seconds)[0])

    def _line(self) -> str | None:
        assert self.process.stdout
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
            assert ready, f"no answer from the application; so far: {self.log}"
            data = self.process.stdout.read1(65536)  # type: ignore[attr-defined]
            if not data:
                return None
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode()

    def stats(self) -> dict[str, int]:
        """Return the device's extended statistics."""
        words = self.do("stats").split()
        return {name: int(value) for name, value in (word.split("=") for word in words)}

    def end(self) -> str:
        """Give it no more commands, and wait for its end; return all that it wrote."""
        assert self.process.stdin
        self.process.stdin.close()
        while (line := self._line()) is not None:
            self.log.append(line)
        self.process.wait(SECONDS)
        return "\n".join(self.log)

    def close(self) -> None:
        """Kill it, unless it has ended."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()
