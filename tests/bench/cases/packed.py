# SPDX-License-Identifier: Apache-2.0
"""Front-ends with packed rings that use their buffers in order."""

from __future__ import annotations

import contextlib

from tests.bench.generator import Ends
from tests.bench.measure import Case
from tests.bench.peers.ffswitch import FfSwitch
from tests.bench.peers.testpmd import Testpmd
from tests.bench.rounds import Contender, Group, Outcome, Run, interleave, start
from tests.bench.stats import ratio

SMALL = Case(64)
ENDS = Ends(packed=True)
IO, OURS = f"{Testpmd.name}, packed", f"{FfSwitch.name}, packed"


def measure(run: Run) -> Outcome:
    """ffswitch and testpmd, each with such a generator. Raises BenchError."""
    with contextlib.ExitStack() as stack:
        _, io = start(stack, run, "packed-testpmd", Testpmd, ENDS)
        _, ours = start(stack, run, "packed-ffswitch", FfSwitch, ENDS)
        results = interleave(run, [Contender(IO, io, [SMALL]), Contender(OURS, ours, [SMALL])])
    return Outcome({"packed_vs_io_64": ratio(results[IO, SMALL], results[OURS, SMALL])}, results)


GROUP = Group("packed", ("packed_vs_io_64",), measure)
