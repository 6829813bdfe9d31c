# SPDX-License-Identifier: Apache-2.0
"""What every process of one benchmark run shares."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench.machine import Cpus


@dataclass(frozen=True, slots=True)
class Environment:
    """directory: private, for sockets and logs. huge: all packets lie in 2 MB pages, else in 4 KB ones."""

    directory: Path
    cpus: Cpus
    huge: bool

    def part(self, name: str) -> Environment:
        """The same with a directory of its own, which is made."""
        directory = self.directory / name
        directory.mkdir()
        return replace(self, directory=directory)

    @property
    def env(self) -> dict[str, str]:
        """Environment variables of every process: EAL makes its run-time directory in ours."""
        return {**os.environ, "RUNTIME_DIRECTORY": str(self.directory)}

    def memory_args(self, megabytes: int, prefix: str) -> list[str]:
        """EAL's memory arguments; the same kind of memory for all, and nothing left behind in the file system."""
        isolation = ["--no-telemetry", "--no-pci", "--file-prefix", prefix]
        if self.huge:
            return [*isolation, "--in-memory", "--single-file-segments", "-m", str(megabytes)]
        # --no-huge implies legacy memory; OVS wants it said, or adds --in-memory, which excludes it.
        return [*isolation, "--no-huge", "--legacy-mem", "--no-shconf", "-m", str(megabytes)]

    def lcores(self, *poll_cpus: int) -> list[str]:
        """EAL's lcores: the main one beside the generator, a worker on each of `poll_cpus`."""
        workers = [f"{lcore}@{cpu}" for lcore, cpu in enumerate(poll_cpus, start=1)]
        return ["--lcores", ",".join([f"0@{self.cpus.generator[0]}", *workers])]

    def socket(self, index: int) -> Path:
        return self.directory / f"port{index}.sock"

    def sockets(self, pairs: int = 1) -> Sequence[Path]:
        """Two vhost-user sockets a pair of ports: the generator listens, the switch connects."""
        return [self.socket(index) for index in range(2 * pairs)]
