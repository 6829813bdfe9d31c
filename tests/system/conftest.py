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
    """A short path: a socket's holds 107 bytes."""
    path = Path(f"/run/ffswitch-test-{os.getpid()}")
    path.mkdir()
    yield path
    shutil.rmtree(path)
