# SPDX-License-Identifier: Apache-2.0
"""The switch is killed and started again under running containers, which carry on without a restart."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.fastpath.frames import numbered
from tests.frontend import FrontEnd
from tests.system.ffswitchd import Ffswitchd, wait_ready

TIMEOUT = 20.0


def _exchange(a: FrontEnd, b: FrontEnd, start: int) -> None:
    """Frames both ways; the first ones flood, the later ones hit flows."""
    for sender, receiver, hosts in ((a, b, (1, 2)), (b, a, (2, 1))):
        frames = numbered(*hosts, 64, start=start)
        sender.send(frames)
        assert receiver.wait_received(64, TIMEOUT) == frames


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_ports_come_back_with_the_switch(tmp_path: Path, how: str, packed: bool) -> None:
    run = tmp_path / "run"
    fronts = {name: FrontEnd(tmp_path / name, packed=packed) for name in ("a", "b")}
    first = Ffswitchd(run)
    for name, front in fronts.items():
        first.call("port.add", name=name, socket=str(front.path))
        front.connect(TIMEOUT)
        wait_ready(first, name)
    a, b = fronts.values()
    _exchange(a, b, 0)
    # What is in the ring when the switch goes is taken by the next one.
    waiting = numbered(1, 2, 32, start=1000)
    if how == "kill":
        first.kill()
        a.wait_disconnected(TIMEOUT)
        a.tx[0].put(waiting)
    else:
        first.stop()
        a.wait_disconnected(TIMEOUT)
        waiting = []
    with Ffswitchd(run) as second:
        assert [port["name"] for port in second.call("port.list")] == ["a", "b"]
        b.connect(TIMEOUT)
        wait_ready(second, "b")
        a.connect(TIMEOUT)
        wait_ready(second, "a")
        assert b.wait_received(len(waiting), TIMEOUT) == waiting
        _exchange(a, b, 2000)
        for name, front in fronts.items():
            second.call("port.del", name=name)
            front.close()


def test_a_container_killed_in_mid_traffic(tmp_path: Path) -> None:
    with Ffswitchd(
        tmp_path / "run", may_log=r"port b: lost|/b\) (failed to connect|recvmsg failed)|vhost read message failed"
    ) as daemon:
        a, b = FrontEnd(tmp_path / "a"), FrontEnd(tmp_path / "b")
        for name, front in (("a", a), ("b", b)):
            daemon.call("port.add", name=name, socket=str(front.path))
            front.connect(TIMEOUT)
            wait_ready(daemon, name)
        _exchange(a, b, 0)
        b.kill()
        a.send(numbered(1, 2, 100))
        a.flush()
        deadline = time.monotonic() + TIMEOUT
        while (port := daemon.call("port.get", name="b"))["state"] != "lost":
            assert time.monotonic() < deadline, port
        assert port["reason"]
        assert port["since"] > 0
        b = FrontEnd(tmp_path / "b")
        b.connect(TIMEOUT)
        wait_ready(daemon, "b")
        _exchange(a, b, 500)
        totals = daemon.call("stats")["totals"]
        assert totals["balanced"], totals
        for name, front in (("a", a), ("b", b)):
            daemon.call("port.del", name=name)
            front.close()
