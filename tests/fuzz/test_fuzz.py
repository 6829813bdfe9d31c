# SPDX-License-Identifier: Apache-2.0
"""A bounded slice of the fuzzing that `make fuzz` does: the corpora, and some rounds from a fixed seed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNS = {"vring": 40_000, "parser": 1_000_000, "memport": 100_000, "net_ff": 50_000}


def fuzz(name: str, *args: str | Path) -> None:
    command = [ROOT / "build/fuzz" / name, *args]
    done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stderr[-4000:]


def corpus(name: str) -> list[Path]:
    files = sorted((ROOT / "tests/fuzz/corpus" / name).iterdir())
    assert files
    return files


@pytest.mark.parametrize("name", RUNS)
def test_corpus(name: str, tmp_path: Path) -> None:
    """Each input once: those that found something, and those that together reach the most."""
    fuzz(name, f"-artifact_prefix={tmp_path}/", "-timeout=60", *corpus(name))


@pytest.mark.parametrize("name", RUNS)
def test_rounds(name: str, tmp_path: Path) -> None:
    found = tmp_path / "found"
    found.mkdir()
    limits = ["-seed=1", f"-runs={RUNS[name]}", "-max_len=600", "-entropic=0", "-timeout=60"]
    fuzz(name, *limits, f"-artifact_prefix={tmp_path}/", found, corpus(name)[0].parent)
