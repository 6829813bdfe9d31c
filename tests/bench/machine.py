# SPDX-License-Identifier: Apache-2.0
"""The machine under the benchmarks: CPUs, CPU times, threads, huge pages."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.bench.errors import BenchError
from tests.bench.stats import Core

NR_HUGEPAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
FREE_HUGEPAGES = NR_HUGEPAGES.with_name("free_hugepages")
HUGEPAGE_MB = 2
HIGHEST_PRIORITY = -20  # sched(7), the nice value
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
# proc_pid_stat(5), counted from the field after the command's name: the CPU last run on.
_STAT_PROCESSOR = 36


@dataclass(frozen=True, slots=True)
class Cpus:
    """The CPUs in use: some for the switch's poll threads, the others for everything else."""

    switch: tuple[int, ...]
    generator: tuple[int, ...]

    @staticmethod
    def choose(allowed: Collection[int], each: int = 1) -> Cpus:
        """The last of the `allowed` CPUs: `each` for the switch and for the generator, or one where there are too few.

        Raises BenchError when there is one only.
        """
        if len(allowed) < 2:
            raise BenchError("the benchmark needs two CPUs: one for the switch, one for the traffic generator")
        count = each if len(allowed) >= 2 * each else 1
        last = sorted(allowed)[-2 * count :]
        return Cpus(switch=tuple(last[count:]), generator=tuple(last[:count]))

    @property
    def both(self) -> tuple[int, ...]:
        return self.switch + self.generator


def threads(pid: int) -> dict[int, str]:
    """Thread ids of a process and their names; empty when it is gone."""
    found = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found[int(task.name)] = (task / "comm").read_text().strip()
    return found


def poll_threads(pid: int, prefix: str, count: int) -> list[int]:
    """The `count` threads of a process whose names start with `prefix`. Raises BenchError."""
    found = sorted(tid for tid, name in threads(pid).items() if name.startswith(prefix))
    if len(found) != count:
        raise BenchError(f"process {pid} has {len(found)} threads named {prefix}*, expected {count}")
    return found


def pin(pids: Iterable[int], poll: Mapping[int, int], others_cpu: int) -> None:
    """Puts each poll thread on its CPU, and every other thread of these processes on `others_cpu`."""
    for pid in pids:
        for tid in threads(pid):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(tid, {poll.get(tid, others_cpu)})


@contextlib.contextmanager
def pinned_self(cpu: int) -> Iterator[None]:
    """Keeps this thread on `cpu`. Children would inherit it, so start none meanwhile that needs more."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def undisturbed(threads: Iterable[int], answering: Iterable[int] = ()) -> Iterator[None]:
    """Has these threads run in favour of all others, but for this one, which must look at the clock.

    Those on the same CPU take turns (SCHED_RR). The kernel leaves the others 5 %, in one piece of 50 ms a second
    (the scheduler's fair server). `answering`: those that this one talks to; they go before `threads`, else each
    command would wait for that piece, and what it starts would run in the midst of it. Without the right to do it
    nothing changes.
    """
    urgent = dict.fromkeys(threads, 1) | dict.fromkeys((*answering, 0), 2)
    normal = os.sched_param(0)
    try:
        for tid, priority in urgent.items():
            with contextlib.suppress(PermissionError):
                os.sched_setscheduler(tid, os.SCHED_RR, os.sched_param(priority))
        yield
    finally:
        for tid in urgent:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.sched_setscheduler(tid, os.SCHED_OTHER, normal)


@contextlib.contextmanager
def favoured() -> Iterator[None]:
    """Has all processes of this session go before those of others, where the kernel groups them (sched(7), autogroup).

    There a thread's nice value counts within its session only.
    """
    group = Path("/proc/self/autogroup")
    try:
        before = group.read_text().split()[-1]
        group.write_text(str(HIGHEST_PRIORITY))
    except OSError:
        yield
        return
    try:
        yield
    finally:
        group.write_text(before)


def go_first(threads: Iterable[int]) -> None:
    """Has these threads run before all others of their session, in the scheduler's ordinary turns. Raises OSError."""
    for tid in threads:
        os.setpriority(os.PRIO_PROCESS, tid, HIGHEST_PRIORITY)


def own_ns(pids: Iterable[int], cpus: Iterable[int]) -> dict[int, int]:
    """CPU time of all threads of these processes, by the CPU that each last ran on."""
    total = dict.fromkeys(cpus, 0)
    for pid in pids:
        for tid in threads(pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                task = Path(f"/proc/{pid}/task/{tid}")
                cpu = int((task / "stat").read_text().rpartition(")")[2].split()[_STAT_PROCESSOR])
                if cpu in total:
                    total[cpu] += int((task / "schedstat").read_text().split()[0])
    return total


def core_times(pids: Iterable[int], cpus: Collection[int]) -> dict[int, Core]:
    """The times of each CPU so far, those of the processes' threads as its own."""
    own, idle = own_ns(pids, cpus), idle_ns(cpus)
    return {cpu: Core(own[cpu], idle[cpu]) for cpu in cpus}


def cpu_ns(pid: int) -> int:
    """CPU time of all threads that a process has now."""
    total = 0
    for tid in threads(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += int(Path(f"/proc/{pid}/task/{tid}/schedstat").read_text().split()[0])
    return total


def waited_ns(tids: Iterable[int]) -> int:
    """For how long these threads, which run still, were ready to run but had no CPU."""
    return sum(int(Path(f"/proc/{tid}/schedstat").read_text().split()[1]) for tid in tids)


def idle_ns(cpus: Iterable[int]) -> dict[int, int]:
    """Idle time (with that spent waiting for I/O) of each CPU since boot."""
    wanted = {f"cpu{cpu}": cpu for cpu in cpus}
    idle = {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in wanted:
            idle[wanted[name]] = (int(fields[3]) + int(fields[4])) * _TICK_NS
    return idle


@contextlib.contextmanager
def huge_pages(megabytes: int) -> Iterator[bool]:
    """Sees to it that so much is free in 2 MB pages, and undoes that at the end; yields False when it cannot be had."""
    missing = max(0, -(-megabytes // HUGEPAGE_MB) - _read(FREE_HUGEPAGES))
    added = _add_huge_pages(missing)
    try:
        yield _read(FREE_HUGEPAGES) * HUGEPAGE_MB >= megabytes
    finally:
        # Not back to the number of before, which somebody else may have changed meanwhile.
        _add_huge_pages(-added)


def _read(path: Path) -> int:
    try:
        return int(path.read_text())
    except OSError:
        return 0


def _add_huge_pages(count: int) -> int:
    """By how many their number grew: less than `count` where memory, rights or the page size lack."""
    before = _read(NR_HUGEPAGES)
    if count:
        with contextlib.suppress(OSError):
            NR_HUGEPAGES.write_text(str(max(0, before + count)))
    return _read(NR_HUGEPAGES) - before
