# SPDX-License-Identifier: Apache-2.0
"""kill -9 in mid-traffic, of a container and of the switch: the others live on, and traffic comes back by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from testpmd import Testpmd

from tests.system.containers import MACS, PEER_LOST, VIRTIO_PORT, add_ports, start, state, wait_for, wait_ready
from tests.system.ffswitchd import Ffswitchd

# Left sends as fast as it can and counts what comes back; right sends everything back.
FORWARDING = {"left": ["--forward-mode=flowgen"], "right": ["--forward-mode=macswap"]}


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start_traffic(cleanup: ExitStack, daemon: Ffswitchd) -> dict[str, Testpmd]:
    add_ports(daemon)
    containers = {port: start(cleanup, daemon, port, [], [], FORWARDING[port]) for port in MACS}
    wait_ready(daemon, *containers.values())
    wait_for(lambda: containers["left"].counters(VIRTIO_PORT).received > 0, "traffic both ways")
    return containers


def sent_to(daemon: Ffswitchd, port: str) -> int:
    return int(daemon.call("stats")["ports"][port]["tx_packets"])


def received_from(daemon: Ffswitchd, port: str) -> int:
    return int(daemon.call("stats")["ports"][port]["rx_packets"])


def report(capsys: pytest.CaptureFixture[str], who: str, seconds: float) -> None:
    with capsys.disabled():
        print(f"\nkill -9 of {who}: traffic is back after {seconds:.2f} s")


@pytest.mark.parametrize("victim", ["left", "right"])
def test_container_killed(run_dir: Path, cleanup: ExitStack, capsys: pytest.CaptureFixture[str], victim: str) -> None:
    other = "right" if victim == "left" else "left"
    with Ffswitchd(run_dir, may_log=PEER_LOST) as daemon:
        containers = start_traffic(cleanup, daemon)
        killed = time.monotonic()
        containers[victim].kill()
        wait_for(lambda: state(daemon, victim)[0] == "lost", f"{victim} lost")
        assert "closed" in state(daemon, victim)[1]
        assert state(daemon, other)[0] == "ready"
        if other == "left":  # it still sends
            before = received_from(daemon, "left")
            wait_for(lambda: received_from(daemon, "left") > before, "left's frames are taken")
        came_through = sent_to(daemon, "right")
        restarted = start(cleanup, daemon, victim, [], [], FORWARDING[victim])
        restarted.wait_ready(30)
        wait_for(lambda: sent_to(daemon, "right") > came_through, "traffic again")
        report(capsys, f"the container on {victim}, started again at once", time.monotonic() - killed)
        if victim == "right":
            wait_for(lambda: restarted.counters(VIRTIO_PORT).received > 0, "frames in the new container")
        cleanup.close()


def test_switch_killed(run_dir: Path, cleanup: ExitStack, capsys: pytest.CaptureFixture[str]) -> None:
    """The restarted daemon finds its ports in the state file, and the running containers carry on."""
    first = Ffswitchd(run_dir)
    containers = start_traffic(cleanup, first)
    first.kill()
    killed = time.monotonic()
    with Ffswitchd(run_dir, may_log=PEER_LOST) as daemon:
        wait_for(lambda: min(sent_to(daemon, port) for port in MACS) > 0, "traffic both ways again")
        report(capsys, "ffswitchd, started again at once", time.monotonic() - killed)
        for port, container in containers.items():
            before = container.counters(VIRTIO_PORT).received
            wait_for(lambda: container.counters(VIRTIO_PORT).received > before, f"frames in {port}'s container")  # noqa: B023
            assert state(daemon, port)[0] == "ready"
        cleanup.close()
