# SPDX-License-Identifier: Apache-2.0
"""dpdk-testpmd on virtio-user in real containers: every kind of ring and memory; podman."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from demo_traffic import Replay, read_frames

from tests.system.containers import (
    MACS,
    PCAP_PORT,
    PEER_LOST,
    VIRTIO_PORT,
    add_ports,
    read_until,
    start,
    wait_for,
    wait_ready,
)
from tests.system.ffswitchd import ROOT, Ffswitchd

FRAMES = 64  # to each queue
RING = 1024  # descriptors; all frames fit in one ring, so a busy machine loses none
HUGEPAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")


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


@pytest.fixture
def image() -> Iterator[None]:
    """scripts/make-image's, which goes again unless it was there before."""
    name = "localhost/ffswitch-testpmd:latest"
    there = subprocess.run(["podman", "image", "exists", name], check=False).returncode == 0
    subprocess.run([ROOT / "scripts/make-image"], check=True)
    yield
    if not there:
        subprocess.run(["podman", "rmi", name], check=True, stdout=subprocess.DEVNULL)


def test_podman_line_as_printed(run_dir: Path, image: None) -> None:
    """The container of the line that add-port prints gets what another one sends."""
    port = f"podman-{os.getpid()}"  # also part of the name that the line gives its container
    data = run_dir / "pcaps"
    data.mkdir()
    sent = frames_for(0, 1514)
    with Ffswitchd(run_dir, may_log=PEER_LOST) as daemon:
        add_ports(daemon)
        daemon.call("port.add", name=port, mac=MACS["right"])
        daemon.call("port.del", name="right")
        ffswitch = [sys.executable, "-c", "from vswitch.cli.main import main; raise SystemExit(main())"]
        add_port = [*ffswitch, "--run-dir", str(run_dir), "add-port", port, "--mac", MACS["right"]]
        line = subprocess.run(
            [*add_port, "--may-exist", "-o", "podman"], check=True, capture_output=True, text=True, cwd=ROOT
        ).stdout
        with ExitStack() as running:
            replay = Replay(data / "sent.pcap", sent)
            left = start(running, daemon, "left", ["--mount", f"{data}:/mnt"],
                         ["--vdev=net_pcap0,rx_pcap=/mnt/sent.pcap,tx_pcap=/mnt/got.pcap"],
                         ["--forward-mode=io", "--no-flush-rx"])  # fmt: skip
            running.callback(replay.close)
            podman = subprocess.Popen(
                ["bash", "-c", line], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            running.callback(podman.wait)
            running.callback(subprocess.run, ["podman", "stop", "--ignore", f"ffswitch-{port}"], check=True)
            wait_ready(daemon, left)
            # Once testpmd reports, it has given the switch buffers.
            read_until(podman, "NIC statistics")
            replay.release()
            read_until(podman, rf"RX-packets: {len(sent)}\b")
            assert daemon.call("stats")["ports"][port]["tx_packets"] == len(sent)
