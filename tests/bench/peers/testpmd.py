# SPDX-License-Identifier: Apache-2.0
"""dpdk-testpmd in io mode on net_vhost: what librte_vhost's two copies cost with no switch in between."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.bench.environment import Environment
from tests.bench.process import Process
from tests.bench.stats import OwnCount

MEMORY_MB = 96
MBUFS = 16384
_CYCLES = re.compile(r"total cycles=(\d+) / total io packets=(\d+)")


class Testpmd:
    name = "testpmd-io"
    poll_prefix = "rte-worker"
    poll_count = 1

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._process: Process | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self._process.stop()

    def connect(self, sockets: Sequence[Path]) -> None:
        environment = self._environment
        # Its statistics go to a file, which stdio would buffer.
        argv = ["stdbuf", "-oL", "dpdk-testpmd", *environment.lcores(*environment.cpus.switch)]
        argv += environment.memory_args(MEMORY_MB, "testpmd")
        for index, path in enumerate(sockets):
            argv += ["--vdev", f"net_vhost{index},iface={path},client=1"]
        # --no-flush-rx: its flush at start waits for ports that have no peer yet.
        argv += ["--", "-i", "--auto-start", "--forward-mode=io", "--nb-cores=1", f"--total-num-mbufs={MBUFS}"]
        argv += ["--no-lsc-interrupt", "--no-flush-rx", "--record-core-cycles"]
        self._process = Process("dpdk-testpmd", argv, environment.directory / "testpmd.log", env=environment.env)

    @property
    def _running(self) -> Process:
        assert self._process is not None, "connect() first"
        return self._process

    @property
    def pids(self) -> Sequence[int]:
        return [self._running.pid]

    def check(self) -> None:
        self._running.check()

    def own_count(self) -> OwnCount:
        seen = len(self._counts())
        self._running.say("show fwd stats all")
        self._running.wait_until("no statistics", lambda: len(self._counts()) > seen)
        cycles, packets = self._counts()[-1]
        return OwnCount(float(cycles), float(packets))

    def _counts(self) -> list[tuple[str, str]]:
        return _CYCLES.findall(self._running.log.read_text(errors="replace"))
