# SPDX-License-Identifier: Apache-2.0
"""A switch's side, and applications on its ports, for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.endpoint.bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Ports and applications; what a test leaves running is killed."""
    bench = Bench(tmp_path)
    yield bench
    bench.close()
