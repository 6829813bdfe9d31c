# SPDX-License-Identifier: Apache-2.0
"""A real ffswitchd with two workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fastpath.frames import mac, numbered
from tests.frontend import FrontEnd
from tests.system import captures
from tests.system.ffswitchd import Ffswitchd, RpcError
from tests.system.replay import Replay

pytestmark = pytest.mark.timeout(600)
TIMEOUT = 30.0


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ffswitchd]:
    with Ffswitchd(tmp_path_factory.mktemp("sw") / "run", "--workers", "2", "--log-level", "warning") as running:
        running.call("switch.set", values={"auto_lb": False})
        yield running


class Hosts:
    """Ports h1 .. hn with front-ends, gone at the end of the test."""

    def __init__(self, daemon: Ffswitchd, stack: ExitStack, n: int, **options: Any) -> None:
        self.fronts: dict[str, FrontEnd] = {}
        for number in range(1, n + 1):
            name, path = f"h{number}", daemon.run_dir.with_name(f"h{number}")
            front = stack.enter_context(FrontEnd(path, **options))
            daemon.call("port.add", name=name, socket=str(path), queues=options.get("queues", 1))
            stack.callback(daemon.call, "port.del", name=name)
            front.connect()
            ready = daemon.call(
                "port.add", name=name, socket=str(path), queues=front.queues, may_exist=True, wait_s=TIMEOUT
            )
            assert ready["state"] == "ready", ready
            self.fronts[name] = front


def _ours(frames: list[bytes], host: str) -> list[bytes]:
    """Those that are for the host, and not floods."""
    return [frame for frame in frames if frame[:6] == mac(int(host[1]))]


def placement(daemon: Ffswitchd) -> dict[tuple[str, int], int]:
    return {(queue["port"], queue["queue"]): queue["worker"] for queue in daemon.call("workers")["queues"]}


@pytest.mark.parametrize("capture", sorted({captures.GENERATED, *captures.names()[1::6]}))
def test_a_capture_arrives_as_the_model_says(daemon: Ffswitchd, capture: str) -> None:
    replay = Replay(daemon, captures.load(capture), 33)
    try:
        replay.run(33)
        rows = daemon.call("workers")["queues"]
        assert {row["worker"] for row in rows} == {0, 1}
    finally:
        replay.close()


def test_rebalancing_under_traffic_keeps_every_frame_in_order(daemon: Ffswitchd) -> None:
    """Two busy ports on one worker: one of them moves, while the frames of both come in order, each once."""
    with ExitStack() as stack:
        fronts = Hosts(daemon, stack, 4, rx_ring=1024).fronts
        daemon.call("port.set", name="h1", values={"rxq_affinity": "0:0"})
        daemon.call("port.set", name="h2", values={"rxq_affinity": "0:0"})
        assert placement(daemon)["h1", 0] == placement(daemon)["h2", 0] == 0
        for name in ("h3", "h4"):  # so that nothing floods
            fronts[name].send(numbered(int(name[1]), 9, 1))
        daemon.call("port.set", name="h1", values={"rxq_affinity": ""})
        daemon.call("port.set", name="h2", values={"rxq_affinity": ""})
        pairs = {("h1", "h3"): list[bytes](), ("h2", "h4"): list[bytes]()}
        sent = 0

        def exchange() -> None:
            nonlocal sent
            for (source, sink), seen in pairs.items():
                fronts[source].send(numbered(int(source[1]), int(sink[1]), 32, start=sent))
                while sent - len(seen) > 900:  # of the 1024 that the receiver's ring holds
                    seen.extend(_ours(fronts[sink].wait_received(1), sink))
            sent += 32

        while placement(daemon)["h1", 0] == placement(daemon)["h2", 0]:  # until both have a load
            exchange()
            daemon.call("rebalance")
        for _ in range(100):
            exchange()
        for (source, sink), seen in pairs.items():
            while len(seen) < sent:
                seen.extend(_ours(fronts[sink].wait_received(1), sink))
            assert seen == numbered(int(source[1]), int(sink[1]), sent)


def test_affinity_stays_across_a_restart(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    options = ("--workers", "2", "--log-level", "warning")
    with Ffswitchd(run_dir, *options) as daemon:
        daemon.call("port.add", name="a", queues=2)
        daemon.call("port.set", name="a", values={"rxq_affinity": "0:1,1:1"})
        assert placement(daemon) == {("a", 0): 1, ("a", 1): 1}
    with Ffswitchd(run_dir, *options) as daemon:
        assert placement(daemon) == {("a", 0): 1, ("a", 1): 1}
    with Ffswitchd(run_dir, may_log="there is no worker 1: the switch has only 0") as daemon:
        assert placement(daemon) == {("a", 0): 0, ("a", 1): 0}


@pytest.mark.parametrize(
    ("affinity", "words"),
    [
        ("1:0", "rxq_affinity: there is no queue 1: h1 has only 0"),
        ("0:2", "rxq_affinity: there is no worker 2: the switch has 0 to 1"),
        ("0=1", "rxq_affinity: '0=1' is not QUEUE:WORKER, as in 0:1,1:0"),
    ],
)
def test_bad_affinity_changes_nothing(daemon: Ffswitchd, affinity: str, words: str) -> None:
    with ExitStack() as stack:
        Hosts(daemon, stack, 1)
        before = placement(daemon)
        with pytest.raises(RpcError) as refused:
            daemon.call("port.set", name="h1", values={"rxq_affinity": affinity})
        assert str(refused.value) == words
        assert daemon.call("port.get", name="h1")["rxq_affinity"] == ""
        assert placement(daemon) == before
