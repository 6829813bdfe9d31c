# SPDX-License-Identifier: Apache-2.0
"""The replay that `make bench-instructions` counts: it loses no packet, on either kind of ring."""

from __future__ import annotations

import pytest

from tests.bench.instructions import Case, build, replay
from tests.bench.process import run

BURST = 32


@pytest.mark.parametrize("case", [Case("split", 64, 1), Case("packed", 1500, 1000)], ids=lambda case: case.ring)
def test_every_packet_comes_through(case: Case) -> None:
    """More bursts than the rings have room for; the program itself fails when a frame is missing."""
    assert int(run(list(replay(build(), case, 40)))) == 40 * BURST
