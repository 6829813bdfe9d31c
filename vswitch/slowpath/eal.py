# SPDX-License-Identifier: Apache-2.0
"""What EAL is told: worker CPUs, memory, isolation from other DPDK processes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vswitch.slowpath.errors import StartError, one_line

MIN_DPDK = (22, 11, 11)
MAX_WORKERS = 16  # FF_MAX_WORKERS
DEFAULT_MBUFS = 65536
DEFAULT_MEMORY_MB = 512

# A packet buffer is 2048 bytes of data, 128 of headroom, 128 of struct rte_mbuf, and the pool's own header.
_MBUF_BYTES = 2432
# Rings, flow table and devices' queues, beside the packet pool.
_OTHER_MB = 128


@dataclass(frozen=True, slots=True)
class Memory:
    """huge: use huge pages. megabytes: what EAL reserves at start; 0 = as needed (huge pages only)."""

    huge: bool
    megabytes: int

    def __str__(self) -> str:
        size = f"{self.megabytes} MB of " if self.megabytes else ""
        return f"{size}huge pages" if self.huge else f"{size}memory without huge pages"


def parse_cpus(text: str) -> tuple[int, ...]:
    """CPU numbers of a list such as "2,4-6", ascending. Raises ValueError (one line)."""
    cpus: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        if not match:
            raise ValueError(f"{one_line(text)!r} is not a CPU list like 2,4-6")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"{one_line(part)!r} in the CPU list runs backwards")
        cpus.update(range(first, last + 1))
    return tuple(sorted(cpus))


def format_cpus(cpus: Iterable[int]) -> str:
    """The CPU list's text, "0-3,6"."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def worker_cpus(cpus: str, workers: int | None, allowed: Iterable[int]) -> tuple[int, ...]:
    """One CPU for each worker: those of the list `cpus`, or the last `workers` (default 1) of `allowed`.

    Raises ValueError (one line).
    """
    here = sorted(allowed)
    chosen = parse_cpus(cpus) if cpus else ()
    count = workers or len(chosen) or 1
    if count > MAX_WORKERS:
        raise ValueError(f"{count} workers are more than {MAX_WORKERS}")
    if not cpus:
        if count > len(here):
            raise ValueError(f"{count} workers need {count} CPUs, this process may use {format_cpus(here)}")
        return tuple(here[-count:])
    missing = [cpu for cpu in chosen if cpu not in here]
    if missing:
        raise ValueError(f"CPU {missing[0]} is not one that this process may use, {format_cpus(here)}")
    if len(chosen) != count:
        raise ValueError(f"{count} workers need {count} CPUs, the list {cpus} has {len(chosen)}")
    return chosen


def choose_memory(memory_mb: int | None, no_huge: bool | None, mbufs: int, huge_free_mb: int) -> Memory:
    """Huge pages when enough are free, unless told otherwise (`no_huge` True or False)."""
    needed = mbufs * _MBUF_BYTES // 2**20 + _OTHER_MB
    huge = huge_free_mb >= max(memory_mb or 0, needed) if no_huge is None else not no_huge
    if huge:
        return Memory(True, memory_mb or 0)
    return Memory(False, memory_mb or max(DEFAULT_MEMORY_MB, needed))


def eal_args(cpus: Sequence[int], allowed: Iterable[int], memory: Memory) -> list[str]:
    """The arguments for EAL, without argv[0]: control thread on all `allowed` CPUs, worker i on cpus[i]."""
    lcores = [f"0@({format_cpus(allowed)})"] + [f"{i}@({cpu})" for i, cpu in enumerate(cpus, start=1)]
    args = ["--lcores", ",".join(lcores), "--main-lcore", "0", "--no-telemetry"]
    # An allow-list that names no NIC: EAL must not take every PCI device that it finds; ports name theirs.
    args += ["-a", "0000:00:00.0"]
    if memory.huge:
        args += ["--in-memory", "--single-file-segments"]
    else:
        # --no-huge implies legacy memory, which --in-memory excludes. Without shared configuration nothing lies in
        # the run-time directory that the prefix names, so all daemons may use the same.
        args += ["--no-huge", "--no-shconf", "--file-prefix", "ffswitch"]
    if memory.megabytes:
        args += ["-m", str(memory.megabytes)]
    return args


def check_dpdk(version: str) -> None:
    """Raise StartError unless `version` ("DPDK 22.11.11") is at least MIN_DPDK."""
    match = re.search(r"(\d+)\.(\d+)\.(\d+)", version)
    wanted = ".".join(map(str, MIN_DPDK))
    if not match or tuple(map(int, match.groups())) < MIN_DPDK:
        raise StartError(f"{one_line(version)} is too old: ffswitch needs DPDK {wanted} or later: apt upgrade dpdk")


def free_huge_mb(sysfs: Path = Path("/sys/kernel/mm/hugepages")) -> int:
    """Megabytes of huge pages that nobody uses."""
    total = 0
    for size in sysfs.glob("hugepages-*kB"):
        kilobytes = int(size.name.removeprefix("hugepages-").removesuffix("kB"))
        try:
            total += int((size / "free_hugepages").read_text()) * kilobytes
        except (OSError, ValueError):
            continue
    return total // 1024
