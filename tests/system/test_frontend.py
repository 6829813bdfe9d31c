# SPDX-License-Identifier: Apache-2.0
"""The Python front-end against DPDK's own vhost back-end: testpmd, which passes frames from port to port unchanged."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.frontend import FrontEnd, FrontEndError, wait_any

TIMEOUT = 30.0
BURSTS = (1, 31, 32, 33, 257)
PROBE = bytes(60)


class TestPmd:
    """testpmd in io mode between two net_vhost ports, clients of our sockets. Ended by `stop` (or `kill`)."""

    __test__ = False

    def __init__(self, run_dir: Path, fronts: tuple[FrontEnd, FrontEnd]) -> None:
        self.fronts = fronts
        queues = fronts[0].queues
        devices = [f"--vdev=net_vhost{i},iface={front.path},client=1,queues={queues}" for i, front in enumerate(fronts)]
        name = f"ffswitch-test-{os.getpid()}"
        self._runtime_dir = Path("/var/run/dpdk") / name  # DPDK leaves it behind
        prefix = f"--file-prefix={name}"
        eal = ["--no-huge", "-m", "128", "--no-pci", "--no-telemetry", "--lcores=0,1", prefix, *devices]
        rings = [f"--rxq={queues}", f"--txq={queues}", "--max-pkt-len=9000", "--total-num-mbufs=8192"]
        self._log = (run_dir / "testpmd.log").open("wb")
        self._process = subprocess.Popen(
            ["dpdk-testpmd", *eal, "--", "--forward-mode=io", "--auto-start", *rings],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def connect(self) -> None:
        """Connects both front-ends, then waits until frames pass in both directions on every queue."""
        for front in self.fronts:
            front.connect(TIMEOUT)
        for sender, receiver in (self.fronts, self.fronts[::-1]):
            for queue in range(sender.queues):
                _probe(sender, receiver, queue)

    def stop(self) -> None:
        self._process.terminate()
        self._ended()

    def kill(self) -> None:
        self._process.kill()
        self._ended()

    def _ended(self) -> None:
        self._process.wait(TIMEOUT)
        self._log.close()
        shutil.rmtree(self._runtime_dir, ignore_errors=True)


def _probe(sender: FrontEnd, receiver: FrontEnd, queue: int) -> None:
    """testpmd drops frames until it has noticed that both links are up: sends probes until one passes."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        sender.send([PROBE], queue)
        sender.flush()
        # The probe has been read: it is here, dropped, or will be any moment.
        if receiver.receive() or (wait_any([receiver], 0.02) and receiver.receive()):
            return
        assert time.monotonic() < deadline, f"nothing passes on queue {queue}"


def _receive(front: FrontEnd, n: int) -> list[bytes]:
    """Waits for n frames that are not probes."""
    frames: list[bytes] = []
    while len(frames) < n:
        frames += [frame for frame in front.wait_received(1, TIMEOUT) if frame != PROBE]
    return frames


@pytest.fixture
def processes() -> Iterator[list[TestPmd]]:
    started: list[TestPmd] = []
    yield started
    for process in started:
        process.stop()


OPTIONS: dict[str, dict[str, Any]] = {
    "split": {},
    "split-indirect": {"indirect": True, "tx_buffers": 2048},
    "split-not-mergeable": {"mergeable": False, "rx_buffer": 9216},
    "split-legacy-header": {"mergeable": False, "modern": False},
    "split-chained": {"segment": 256, "rx_buffer": 1024},
    "packed": {"packed": True},
    "packed-indirect": {"packed": True, "indirect": True, "segment": 512, "rx_buffer": 2048},
    "packed-not-mergeable-4-queues": {"packed": True, "mergeable": False, "queues": 4},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_frames_pass_unchanged_and_in_order(options: dict[str, Any], tmp_path: Path, processes: list[TestPmd]) -> None:
    with (
        FrontEnd(tmp_path / "a", rx_ring=2048, tx_ring=2048, **options) as left,
        FrontEnd(tmp_path / "b", rx_ring=2048, tx_ring=2048, **options) as right,
    ):
        processes.append(TestPmd(tmp_path, (left, right)))
        processes[0].connect()
        rng = random.Random(1)
        for burst in BURSTS:
            for queue in range(left.queues):
                frames = [rng.randbytes(rng.randint(60, 1514)) for _ in range(burst)]
                left.send(frames, queue)
                assert _receive(right, burst) == frames
                right.send(frames, queue)
                assert _receive(left, burst) == frames


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_rings_wrap(packed: bool, tmp_path: Path, processes: list[TestPmd]) -> None:
    """More frames than the 16-bit index of a split ring counts, through a ring of 64."""
    options: dict[str, Any] = {"packed": packed, "rx_ring": 64, "tx_ring": 64}
    with FrontEnd(tmp_path / "a", **options) as left, FrontEnd(tmp_path / "b", **options) as right:
        processes.append(TestPmd(tmp_path, (left, right)))
        processes[0].connect()
        for start in range(0, 70000, 50):
            frames = [number.to_bytes(60, "big") for number in range(start + 1, start + 51)]
            left.send(frames)
            assert _receive(right, len(frames)) == frames


def test_large_frames_span_receive_buffers(tmp_path: Path, processes: list[TestPmd]) -> None:
    with FrontEnd(tmp_path / "a") as left, FrontEnd(tmp_path / "b") as right:
        processes.append(TestPmd(tmp_path, (left, right)))
        processes[0].connect()
        frames = [bytes([n]) * size for n, size in enumerate((2035, 2036, 2037, 4084, 4085, 9000))]
        left.send(frames)
        assert _receive(right, len(frames)) == frames


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_new_back_end_goes_on_where_the_old_one_stopped(
    packed: bool, tmp_path: Path, processes: list[TestPmd]
) -> None:
    with FrontEnd(tmp_path / "a", packed=packed) as left, FrontEnd(tmp_path / "b", packed=packed) as right:
        first = TestPmd(tmp_path, (left, right))
        try:
            first.connect()
        finally:
            first.kill()
        left.wait_disconnected()
        assert not left.connected
        processes.append(TestPmd(tmp_path, (left, right)))
        processes[0].connect()
        left.send([b"x" * 100])
        assert _receive(right, 1) == [b"x" * 100]


def test_a_burst_larger_than_the_ring_is_refused(tmp_path: Path, processes: list[TestPmd]) -> None:
    with FrontEnd(tmp_path / "a", tx_ring=32) as left, FrontEnd(tmp_path / "b") as right:
        processes.append(TestPmd(tmp_path, (left, right)))
        processes[0].connect()
        with pytest.raises(ValueError, match="33 descriptors"):
            left.send([PROBE] * 33)


def test_no_back_end_is_one_clear_error(tmp_path: Path) -> None:
    with FrontEnd(tmp_path / "a") as front, pytest.raises(FrontEndError, match="no back-end has connected"):
        front.connect(0.01)
    front = FrontEnd(tmp_path / "b", server=False)
    with pytest.raises(FrontEndError, match="no back-end listens"):
        front.connect(0.01)
