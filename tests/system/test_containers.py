# SPDX-License-Identifier: Apache-2.0
"""dpdk-testpmd on virtio-user in real containers: every kind of ring and memory, podman, and sudden deaths."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from demo_traffic import Replay, read_frames
from testpmd import Testpmd

from tests.system.ffswitchd import Ffswitchd

SECONDS = 30.0
MACS = {"left": "02:00:00:00:00:0a", "right": "02:00:00:00:00:0b"}
FRAMES = 64  # to each queue
RING = 1024  # descriptors; all frames fit in one ring, so a busy machine loses none
VIRTIO_PORT, PCAP_PORT = 0, 1  # of testpmd, in the order of its command line
HUGEPAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
PEER_LOST = r"WARNING .*: lost \("


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A short path: a socket's holds 107 bytes."""
    path = Path(f"/run/ffswitch-test-{os.getpid()}")
    path.mkdir()
    yield path
    subprocess.run(["rm", "-r", path], check=True)


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def hugepages() -> Iterator[None]:
    """At least 128 free pages of 2 MB."""
    count = HUGEPAGES / "nr_hugepages"
    before = int(count.read_text())
    lacking = max(0, 128 - int((HUGEPAGES / "free_hugepages").read_text()))
    if lacking:
        count.write_text(str(before + lacking))
    yield
    if lacking:
        count.write_text(str(before))


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Looks again and again at a condition in other processes, until the deadline."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SECONDS:.0f} s: {what}"
        time.sleep(0.002)


def start(  # noqa: PLR0917
    cleanup: ExitStack, daemon: Ffswitchd, port: str, options: list[str], eal: list[str], app: list[str]
) -> Testpmd:
    name = f"{daemon.run_dir.name}-{port}"
    container = Testpmd(port, daemon.run_dir, name, options=["--mac", MACS[port], *options], eal=eal, app=app)
    cleanup.callback(container.close)
    return container


def add_ports(daemon: Ffswitchd, **config: object) -> None:
    for port, mac in MACS.items():
        daemon.call("port.add", name=port, mac=mac, **config)


def wait_ready(daemon: Ffswitchd, *containers: Testpmd) -> None:
    for container in containers:
        container.wait_ready(SECONDS)
        wait_for(lambda port=container.port: state(daemon, port)[0] == "ready", f"{container.port} ready")  # type: ignore[misc]


def state(daemon: Ffswitchd, port: str) -> tuple[str, str]:
    """(state, why)"""
    found = daemon.call("port.get", name=port)
    return found["state"], found["reason"]


def frames_for(queue: int, longest: int) -> list[bytes]:
    """Frames from left to right, of all lengths up to `longest`, each of its own content."""
    head = bytes.fromhex((MACS["right"] + MACS["left"]).replace(":", "")) + b"\x88\xb5"  # local experimental
    step = (longest - 60) // (FRAMES - 1)
    return [(head + bytes([queue, i]) * longest)[: 60 + i * step] for i in range(FRAMES)]


def swapped(frame: bytes) -> bytes:
    return frame[6:12] + frame[:6] + frame[12:]


@pytest.mark.parametrize("mergeable", [True, False], ids=["mergeable", "plain"])
@pytest.mark.parametrize("queues", [1, 4], ids=["1q", "4q"])
@pytest.mark.parametrize("ring", ["split", "packed"])
@pytest.mark.parametrize("memory", ["nohuge", "hugepages"])
def test_traffic_both_ways(  # noqa: PLR0917
    run_dir: Path, request: pytest.FixtureRequest, memory: str, ring: str, queues: int, mergeable: bool
) -> None:
    """Left replays a capture on each queue, right sends everything back with its addresses swapped."""
    virtio = f"packed_vq={int(ring == 'packed')},mrg_rxbuf={int(mergeable)},queue_size={RING}"
    options = ["--queues", str(queues), "--memory", "96", "--virtio", virtio]
    if memory == "hugepages":
        request.getfixturevalue("hugepages")
        options.append("--hugepages")
    app = [f"--rxq={queues}", f"--txq={queues}", f"--rxd={RING}", f"--txd={RING}", "--no-flush-rx"]
    # Frames of 4000 bytes, which take two of right's buffers. Left's net_pcap wants each in one.
    left_app, right_app, longest = [], [], 1514
    if mergeable:
        left_app = ["--max-pkt-len=4000", "--mbuf-size=4352", "--total-num-mbufs=8192"]
        right_app, longest = ["--max-pkt-len=4000", "--enable-scatter"], 4000

    data = run_dir / "pcaps"
    data.mkdir()
    sent = [frames_for(queue, longest) for queue in range(queues)]
    total = queues * FRAMES
    pcap = "".join(f",rx_pcap=/mnt/sent{q}.pcap,tx_pcap=/mnt/got{q}.pcap" for q in range(queues))
    with Ffswitchd(run_dir, may_log=PEER_LOST) as daemon:
        add_ports(daemon, queues=queues, mtu=9000)
        with ExitStack() as running:
            replays = [Replay(data / f"sent{queue}.pcap", frames) for queue, frames in enumerate(sent)]
            left = start(running, daemon, "left", [*options, "--mount", f"{data}:/mnt"], [f"--vdev=net_pcap0{pcap}"],
                         ["--forward-mode=io", *app, *left_app])  # fmt: skip
            for replay in replays:
                running.callback(replay.close)
            right = start(running, daemon, "right", options, [], ["--forward-mode=macswap", *app, *right_app])
            wait_ready(daemon, left, right)
            for replay in replays:
                replay.release()
            wait_for(lambda: left.counters(PCAP_PORT).sent >= total, f"{total} frames back at left")
            assert right.counters(VIRTIO_PORT) == (total, total)
            ports = daemon.call("stats")["ports"]
            for port in MACS:
                assert daemon.call("port.get", name=port)["rx_queues"] == queues
                assert (ports[port]["rx_packets"], ports[port]["tx_packets"]) == (total, total)
    got = [frame for queue in range(queues) for frame in read_frames(data / f"got{queue}.pcap")]
    assert sorted(got) == sorted(swapped(frame) for frames in sent for frame in frames)
