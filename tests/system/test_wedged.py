# SPDX-License-Identifier: Apache-2.0
"""A front-end that stops taking frames: the switch says so, and when it is over."""

from __future__ import annotations

import time
from pathlib import Path

from tests.frontend import FrontEnd, wait_any
from tests.system.ffswitchd import Ffswitchd

TIMEOUT = 60.0
A, B = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
TO_B, TO_A = ((dst + src + b"\x88\xb5").ljust(60, b"\0") for src, dst in ((A, B), (B, A)))


def attach(daemon: Ffswitchd, name: str) -> FrontEnd:
    daemon.call("port.add", name=name)
    front = FrontEnd(daemon.run_dir / "ports" / name / "vhost.sock").connect(TIMEOUT)
    assert daemon.call("port.add", name=name, may_exist=True, wait_s=TIMEOUT)["state"] == "ready"
    return front


def warnings_with(daemon: Ffswitchd, sender: FrontEnd, wanted: bool) -> list[str]:
    """b's warnings, once there are (or are no more) any; frames for b go on."""
    deadline = time.monotonic() + TIMEOUT
    while bool(found := daemon.call("port.get", name="b")["warnings"]) is not wanted:
        assert time.monotonic() < deadline, daemon.log
        sender.send([TO_B])
        wait_any([sender], 0.05)  # nothing comes: it is the pace
    return list(found)


def test_a_front_end_that_takes_no_frames_is_named(tmp_path: Path) -> None:
    with (
        Ffswitchd(tmp_path / "run", may_log="receive queue 0 accepts no frame") as daemon,
        attach(daemon, "a") as one,
        attach(daemon, "b") as two,
    ):
        two.send([TO_A])
        one.wait_received(1, TIMEOUT)
        one.send([TO_B] * two.rx_ring, burst=32)

        (warning,) = warnings_with(daemon, one, wanted=True)
        assert warning.startswith("receive queue 0 accepts no frame")
        stats = daemon.call("stats")
        assert stats["warnings"] == [f"port b: {warning}"]
        assert stats["ports"]["b"]["queues"][0]["tx_full"] > 0

        assert len(two.receive()) >= two.rx_ring
        assert warnings_with(daemon, one, wanted=False) == []
        assert daemon.log.count(warning) == 2
        assert f"port b: over: {warning}" in daemon.log
