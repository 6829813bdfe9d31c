# SPDX-License-Identifier: Apache-2.0
"""ffswitch itself: the daemon with its default settings but for those given, driven over its control socket."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tests.bench.environment import Environment
from tests.bench.errors import BenchError
from tests.bench.process import Process, run
from tests.bench.stats import OwnCount
from vswitch.cli.client import Client, ClientError, RpcError

START_SECONDS = 30.0


def program(name: str) -> Path:
    """A console script of the environment that runs the benchmark."""
    return Path(sys.executable).with_name(name)


class FfSwitch:
    """options: further ones of ffswitchd's command line. netns: the network namespace that it runs in."""

    name = "ffswitch"
    poll_prefix = "rte-worker"

    def __init__(
        self, environment: Environment, *, workers: int = 1, options: Sequence[str] = (), netns: str = ""
    ) -> None:
        self.poll_count = workers
        self._environment = environment
        self._options = options
        self._enter = ["ip", "netns", "exec", netns] if netns else []
        self._directory = environment.directory / "run"
        self.env = environment.env | {"FFSWITCH_RUN_DIR": str(self._directory)}
        self._process: Process | None = None

    def __enter__(self) -> Self:
        environment = self._environment
        self._directory.mkdir()
        # Workers want a CPU each; where there are too few, they are moved together afterwards.
        cpus = ",".join(map(str, environment.cpus.both[: self.poll_count]))
        argv: list[str | Path] = [
            *self._enter,
            program("ffswitchd"),
            "--workers",
            str(self.poll_count),
            "--cpus",
            cpus,
            *self._options,
        ]
        if not environment.huge:
            argv.append("--no-huge")
        self._process = Process("ffswitchd", argv, environment.directory / "ffswitchd.log", env=self.env)
        try:
            self._process.wait_until("no control socket", (self._directory / "ffswitch.sock").exists, START_SECONDS)
        except BaseException:
            self._process.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._running.stop()

    def connect(self, sockets: Sequence[Path]) -> None:
        for index, path in enumerate(sockets, start=1):
            self.call("port.add", name=f"bench{index}", socket=str(path))

    def check(self) -> None:
        self._running.check()

    @property
    def pids(self) -> Sequence[int]:
        return [self._running.pid]

    def own_count(self) -> OwnCount:
        workers = self.call("stats")["workers"]
        return OwnCount(
            cycles=sum(float(worker["busy_cycles"]) for worker in workers),
            packets=sum(float(worker["packets"]) for worker in workers),
        )

    def call(self, method: str, **params: object) -> Any:
        """The result of one control call. Raises BenchError."""
        try:
            with Client(self._directory) as client:
                return client.call(method, params)
        except (ClientError, RpcError) as error:
            raise BenchError(f"{method}: {error}") from error

    def command(self, *words: str) -> None:
        """Runs one `ffswitch` command line. Raises BenchError."""
        run([program("ffswitch"), *words], env=self.env)

    @property
    def _running(self) -> Process:
        assert self._process is not None, "not started"
        return self._process
