# SPDX-License-Identifier: Apache-2.0
"""Child processes that never outlive the benchmark."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NoReturn, Self

from tests.bench.errors import BenchError
from tests.polling import until

STOP_SECONDS = 10.0
_COMPLAINT = re.compile(r"error|cannot|fail|unable", re.IGNORECASE)


def wait_for(what: str, ready: Callable[[], bool], seconds: float = 30.0, poll: float = 0.05) -> None:
    """Returns when `ready()` is true. Raises BenchError after `seconds`."""
    if not until(ready, seconds, poll):
        raise BenchError(f"{what}: not within {seconds:.0f} s")


def pass_time(seconds: float) -> None:
    """Load goes on, or an idle switch is left alone, for so long: nothing but time is to be waited for."""
    time.sleep(seconds)


class Process:
    """A child; what it says on stderr (and stdout, when not piped) goes to the file `log`."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        pipe_stdout: bool = False,
    ) -> None:
        self.name = name
        self.log = log
        # With --pdeathsig it goes with us even when we are killed; setpriv then becomes the program, so the pid is its.
        command = ["setpriv", "--pdeathsig", "KILL", *map(str, argv)]
        with log.open("wb") as out:
            try:
                self._child = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE if pipe_stdout else out,
                    stderr=out,
                    env=env,
                )
            except FileNotFoundError as error:
                raise BenchError(f"{error.filename} is not installed") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def stdout(self) -> IO[bytes]:
        assert self._child.stdout is not None
        return self._child.stdout

    def check(self) -> None:
        """Raises BenchError when it has ended."""
        if (code := self._child.poll()) is not None:
            raise BenchError(f"{self.name} ended with code {code}: {self.last_words()}")

    def ended(self, cause: BaseException | None = None) -> NoReturn:
        """Raises BenchError for a process that has closed its end of a pipe."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(STOP_SECONDS)
        self.check()
        raise BenchError(f"{self.name} closed its pipe and did not end: {self.last_words()}") from cause

    def last_words(self) -> str:
        """The last line of its log that complains, or else that says anything."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        complaints = [line for line in lines if _COMPLAINT.search(line)]
        return (complaints or lines or ["it said nothing"])[-1]

    def say(self, line: str) -> None:
        """Writes a line to its stdin. Raises BenchError when it has ended."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(line.encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError as error:
            self.ended(error)

    def wait_until(self, what: str, ready: Callable[[], bool], seconds: float = 30.0) -> None:
        """`wait_for`, cut short when the process ends."""

        def ready_or_dead() -> bool:
            self.check()
            return ready()

        wait_for(f"{self.name}: {what}", ready_or_dead, seconds)

    def stop(self) -> None:
        """Ends it: SIGTERM, then SIGKILL; returns when it is gone."""
        with contextlib.suppress(BrokenPipeError):
            if self._child.stdin is not None:
                self._child.stdin.close()
        self._child.terminate()
        self._child.send_signal(signal.SIGCONT)  # it may be paused
        try:
            self._child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()


def run(argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, seconds: float = 30.0) -> str:
    """Runs a command to its end and returns its stdout. Raises BenchError with what it said when it fails."""
    command = list(map(str, argv))
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise BenchError(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{' '.join(command[:3])} did not end within {seconds:.0f} s") from error
    if done.returncode != 0:
        words = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()] or ["it said nothing"]
        raise BenchError(f"{' '.join(command[:3])} failed with code {done.returncode}: {words[-1]}")
    return done.stdout
