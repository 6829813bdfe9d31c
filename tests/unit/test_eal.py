# SPDX-License-Identifier: Apache-2.0
"""What EAL is told."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vswitch.slowpath import eal
from vswitch.slowpath.errors import StartError


@pytest.mark.parametrize(
    ("text", "cpus"), [("3", (3,)), ("2,4-6", (2, 4, 5, 6)), (" 1 , 0", (0, 1)), ("1,1-2", (1, 2))]
)
def test_cpu_list(text: str, cpus: tuple[int, ...]) -> None:
    assert eal.parse_cpus(text) == cpus


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1,,2", "3-1", "1;2", "99999", "1\n2"])
def test_bad_cpu_list(text: str) -> None:
    with pytest.raises(ValueError, match="CPU list") as error:
        eal.parse_cpus(text)
    assert "\n" not in str(error.value)


@given(st.sets(st.integers(0, 300), min_size=1))
def test_cpu_list_there_and_back(cpus: set[int]) -> None:
    assert eal.parse_cpus(eal.format_cpus(cpus)) == tuple(sorted(cpus))


@pytest.mark.parametrize(
    ("cpus", "workers", "chosen"),
    [("", None, (3,)), ("", 2, (2, 3)), ("0", None, (0,)), ("1-2", None, (1, 2)), ("1-2", 2, (1, 2))],
)
def test_worker_cpus(cpus: str, workers: int | None, chosen: tuple[int, ...]) -> None:
    assert eal.worker_cpus(cpus, workers, range(4)) == chosen


@pytest.mark.parametrize(
    ("cpus", "workers", "words"),
    [
        ("", 5, "5 workers need 5 CPUs"),
        ("7", None, "CPU 7 is not one that this process may use, 0-3"),
        ("1", 2, "the list 1 has 1"),
        ("0-1", 1, "the list 0-1 has 2"),
        ("0-16", None, "more than 16"),
    ],
)
def test_worker_cpus_refused(cpus: str, workers: int | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        eal.worker_cpus(cpus, workers, range(4))


@pytest.mark.parametrize(
    ("memory_mb", "no_huge", "free", "chosen"),
    [
        (None, None, 4096, eal.Memory(True, 0)),
        (None, None, 100, eal.Memory(False, 512)),
        (1024, None, 1023, eal.Memory(False, 1024)),
        (1024, None, 1024, eal.Memory(True, 1024)),
        (None, True, 4096, eal.Memory(False, 512)),
        (300, True, 4096, eal.Memory(False, 300)),
    ],
)
def test_memory(memory_mb: int | None, no_huge: bool | None, free: int, chosen: eal.Memory) -> None:
    assert eal.choose_memory(memory_mb, no_huge, 65536, free) == chosen


def test_large_pool_gets_more_memory() -> None:
    assert eal.choose_memory(None, True, 500_000, 0).megabytes > 500_000 * 2300 / 2**20


def test_arguments_with_huge_pages() -> None:
    args = eal.eal_args((2, 3), {0, 1, 2, 3, 6}, eal.Memory(True, 0))
    assert args[:2] == ["--lcores", "0@(0-3,6),1@(2),2@(3)"]
    assert {"--in-memory", "--single-file-segments", "--no-telemetry"} <= set(args)
    assert not {"--no-huge", "-m"} & set(args)


def test_arguments_without_huge_pages() -> None:
    args = eal.eal_args((1,), {0, 1}, eal.Memory(False, 512))
    assert {"--no-huge", "--no-shconf", "--no-telemetry"} <= set(args)
    assert args[args.index("-m") + 1] == "512"
    assert "--in-memory" not in args


@pytest.mark.parametrize("version", ["DPDK 22.11.11", "DPDK 22.11.12-rc1", "DPDK 23.11.0"])
def test_dpdk_new_enough(version: str) -> None:
    eal.check_dpdk(version)


@pytest.mark.parametrize("version", ["DPDK 22.11.10", "DPDK 21.11.99", "DPDK", ""])
def test_dpdk_too_old(version: str) -> None:
    with pytest.raises(StartError, match=r"needs DPDK 22\.11\.11 or later"):
        eal.check_dpdk(version)


def test_free_huge_pages(tmp_path: Path) -> None:
    for name, free in (("hugepages-2048kB", "10\n"), ("hugepages-1048576kB", "1\n"), ("hugepages-64kB", "what")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "free_hugepages").write_text(free)
    assert eal.free_huge_mb(tmp_path) == 1044
