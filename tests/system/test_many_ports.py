# SPDX-License-Identifier: Apache-2.0
"""256 ports on one worker, all idle but one pair."""

from __future__ import annotations

from pathlib import Path

from tests.fastpath.frames import numbered
from tests.system.ffswitchd import Ffswitchd
from tests.system.replay import Replay

PORTS = 256


def test_one_busy_pair_among_256_ports(tmp_path: Path) -> None:
    # One hello of each host, which floods; then bursts between two of them, which nobody else sees.
    hellos = [b"\xff" * 6 + numbered(host, 1, 1)[0][6:] for host in range(1, PORTS - 1)]
    pair = [
        frame
        for burst in (1, 31, 32, 33, 200)
        for frames in (numbered(18, 202, burst), numbered(202, 18, burst))
        for frame in frames
    ]
    with Ffswitchd(tmp_path / "run", "--log-level", "warning") as daemon:
        replay = Replay(daemon, [*hellos, *pair], 257)
        assert len(replay.members) == PORTS
        assert daemon.call("version")["workers"] == [{"cpu": daemon.call("version")["workers"][0]["cpu"]}]
        replay.run(257)
        totals = daemon.call("stats")["totals"]
        assert totals["sent"] == len(hellos) * (PORTS - 1) + len(pair)
        replay.close()
