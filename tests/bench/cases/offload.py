# SPDX-License-Identifier: Apache-2.0
"""A TCP stream in 64 KB frames that nobody segments, against the same in frames of 1500 bytes."""

from __future__ import annotations

import contextlib

from tests.bench.generator import Ends
from tests.bench.measure import Case
from tests.bench.peers.ffswitch import FfSwitch
from tests.bench.rounds import Contender, Group, Outcome, Run, interleave, start
from tests.bench.stats import ratio

HEADERS, SEGMENT = 54, 1460
SEGMENTS = 44  # the most whole ones that an IPv4 packet holds
PLAIN = Case(HEADERS + SEGMENT, stream=True)
LARGE = Case(HEADERS + SEGMENTS * SEGMENT, stream=True)
WITH, WITHOUT = f"{FfSwitch.name}, offloads", f"{FfSwitch.name}, no offloads"


def measure(run: Run) -> Outcome:
    """Two switches, one between ports with offloads and one between ports without. Raises BenchError."""
    with contextlib.ExitStack() as stack:
        _, offloads = start(stack, run, "offloads", FfSwitch, Ends(offload=True))
        _, plain = start(stack, run, "no-offloads", FfSwitch)
        results = interleave(run, [Contender(WITH, offloads, [LARGE]), Contender(WITHOUT, plain, [PLAIN])])
    # A large frame carries the bytes of SEGMENTS small ones.
    return Outcome({"tso_64k": ratio(results[WITHOUT, PLAIN], results[WITH, LARGE], scale=SEGMENTS)}, results)


GROUP = Group("offload", ("tso_64k",), measure)
