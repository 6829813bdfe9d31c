# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests with a whole switch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A run directory with a short path, since a socket's path holds 107 bytes; the daemon's log lies beside it."""
    path = Path(f"/run/ffswitch-test-{os.getpid()}")
    (path / "run").mkdir(parents=True)
    yield path / "run"
    shutil.rmtree(path)
