# SPDX-License-Identifier: Apache-2.0
"""One EAL for the whole test process (DPDK allows no second one), one `Switch` a test.

FFSWITCH_TEST_WORKERS says how many workers there are; `make test` runs with one, and some files with two.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fastpath.switch import Switch
from vswitch.slowpath.fastpath import FastPath

# Few enough that a leak of buffers stops the tests that send more frames than this.
MBUFS = 8192
PARKED_MAX = 64
WORKERS = int(os.environ.get("FFSWITCH_TEST_WORKERS", "1"))


@pytest.fixture(scope="session")
def fastpath() -> Iterator[FastPath]:
    cpus = sorted(os.sched_getaffinity(0))
    everywhere = ",".join(map(str, cpus))
    eal_args = ["--no-huge", "-m", "256", "--no-pci", "--no-shconf", "--no-telemetry"]
    prefix = f"ffswitch-test-{os.getpid()}"
    workers = [f"{number}@{cpus[-number % len(cpus)]}" for number in range(1, WORKERS + 1)]
    eal_args += [f"--file-prefix={prefix}", f"--lcores=0@({everywhere}),{','.join(workers)}"]
    running = FastPath.start(eal_args, MBUFS, PARKED_MAX)
    running.idle_set(50, 100)
    yield running
    running.stop()
    shutil.rmtree(Path("/var/run/dpdk") / prefix, ignore_errors=True)  # EAL leaves it behind


@pytest.fixture
def switch(fastpath: FastPath, tmp_path: Path) -> Iterator[Switch]:
    test_switch = Switch(fastpath, tmp_path)
    yield test_switch
    test_switch.close()
