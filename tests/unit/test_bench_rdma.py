# SPDX-License-Identifier: Apache-2.0
"""`make bench-rdma`: what perftest says, and ratios within a round."""

from __future__ import annotations

import pytest

from tests.bench.errors import BenchError
from tests.bench.peers.rdma import SIZES, Reading, send_bw
from tests.bench.rdma import EVENTS, KERNEL, POLLING, RDMA, VXLAN, Found

OUTPUT = """
 #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]
 1464       1976             9.00               7.50                 0.005372
---------------------------------------------------------------------------------------
"""


def test_send_bw() -> None:
    """The average, in messages a second; MB are of 2^20 bytes."""
    assert send_bw(OUTPUT, 1464) == pytest.approx(7.5 * 2**20 / 1464)
    with pytest.raises(BenchError, match="ib_send_bw says nothing of 64 bytes: "):
        send_bw(OUTPUT, 64)


def test_ratios() -> None:
    """Of ib_send_bw the better in each round."""
    rates = {POLLING: (4.0, 10.0), EVENTS: (8.0, 5.0), RDMA: (4.0, 5.0), VXLAN: (1.0, 10.0), KERNEL: (2.0, 5.0)}
    found = Found({
        (name, size): [Reading(rate, 1.0, 0.1 if name == KERNEL else 0.0) for rate in values]
        for name, values in rates.items()
        for size in SIZES
    })  # fmt: skip
    ratios = found.ratios()
    assert len(ratios) == 3 * len(SIZES)
    spreads = {name: (ratio.spread.minimum, ratio.spread.maximum) for name, ratio in ratios.items()}
    assert spreads["vs_send_bw_1500"] == (0.5, 0.5)
    assert spreads["vs_vxlan_64k"] == (0.5, 4.0)
    assert spreads["vs_kernel_64k"] == (1.0, 2.0)
    assert (ratios["vs_kernel_1500"].others, ratios["vs_vxlan_1500"].others) == (0.1, 0.0)
