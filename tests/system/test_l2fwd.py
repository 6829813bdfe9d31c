# SPDX-License-Identifier: Apache-2.0
"""An application that this project did not write, DPDK's l2fwd, as it is: captures through two on a shortcut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from tests.frontend import FrontEnd
from tests.frontend.queues import chunks
from tests.system import captures
from tests.system.containers import state, wait_for
from tests.system.endpoints import GONE, L2fwd
from tests.system.ffswitchd import Ffswitchd
from tests.system.underlay import DEADLINE
from vswitch.slowpath.pipeline import parse
from vswitch.slowpath.types import Drop

WINDOW = 64  # frames on their way at most: less than any ring or burst holds
LONGEST = 1514
TAGS = {b"\x81\x00", b"\x88\xa8", b"\x91\x00"}
SOURCE = "02:00:00:00:00:aa"
# The first one's second port is the second one's: it sends to the address of that one's second port, and that one
# from its first port to the sink.
SECOND_IN, SINK = L2fwd.SENDS_TO[1], L2fwd.SENDS_TO[0]
FF = {"first-in": None, "first-out": None, "second-in": SECOND_IN, "second-out": None}


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


class Line:
    """source → l2fwd → l2fwd → sink; the switch is between all of them but, once there is a shortcut, the two."""

    def __init__(self, daemon: Ffswitchd, cleanup: ExitStack) -> None:
        self.daemon = daemon
        self.source, self.sink = (self._front(cleanup, name, mac) for name, mac in (("source", SOURCE), ("sink", SINK)))
        # The switch learns where these two are before l2fwd can send on what it floods.
        self._greet(self.source, SOURCE, self.sink, SINK)
        self._greet(self.sink, SINK, self.source, SOURCE)
        for name, mac in FF.items():
            daemon.call("port.add", name=name, type="ff", trust_domain="red", **({"mac": mac} if mac else {}))
        macs = {name: daemon.call("port.get", name=name)["mac"] for name in FF}
        self.head, self.tail = octets(macs["first-in"]) + octets(SOURCE), octets(SINK) + octets(macs["second-out"])
        cleanup.callback(L2fwd(daemon, "second-out", "second-in").close)
        cleanup.callback(L2fwd(daemon, "first-in", "first-out").close)
        for name in FF:
            wait_for(lambda name=name: state(daemon, name)[0] == "ready", f"{name} ready")  # type: ignore[misc]

    def _front(self, cleanup: ExitStack, name: str, mac: str) -> FrontEnd:
        port = self.daemon.call("port.add", name=name, mac=mac)
        front = FrontEnd(port["socket"]).connect(DEADLINE)
        cleanup.callback(front.close)
        wait_for(lambda: state(self.daemon, name)[0] == "ready", f"{name} ready")
        return front

    @staticmethod
    def _greet(sender: FrontEnd, mac: str, receiver: FrontEnd, to: str) -> None:
        frame = octets(to) + octets(mac) + b"\x88\xb5" + bytes(46)
        sender.send([frame])
        assert receiver.wait_received(1, DEADLINE) == [frame]

    def carry(self, bodies: Sequence[bytes]) -> None:
        """What is behind the addresses arrives as it was, in order, and nothing else does."""
        for window in chunks(bodies, WINDOW):
            self.source.send([self.head + body for body in window])
            assert self.sink.wait_received(len(window), DEADLINE) == [self.tail + body for body in window]
        assert not self.source.receive()

    def sent(self, name: str) -> tuple[int, int]:
        """Packets that a port sent: into the switch, and by shortcuts."""
        found = self.daemon.call("port.get", name=name)
        return found["stats"]["rx_packets"], found["shortcuts"]["rx_packets"]


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    run_dir = tmp_path_factory.mktemp("l2fwd") / "run"
    with Ffswitchd(run_dir, "--shortcut-rate", "0", may_log=GONE) as daemon, ExitStack() as cleanup:
        made = Line(daemon, cleanup)
        made.carry([b"\x88\xb5 the first one makes the shortcut".ljust(48, b".")])

        def opened() -> bool:
            forth, _ = daemon.call("explain", source="first-out", destination="second-in")["shortcuts"]
            return bool(forth["open"])

        wait_for(opened, "a shortcut from one to the other")
        made.carry([b"\x88\xb5 and the second one takes it".ljust(48, b".")])
        yield made


def fitting(frames: Sequence[bytes]) -> list[bytes]:
    """What is behind the addresses of those frames that no switch drops, and that may take a shortcut."""
    return [
        frame[12:]
        for frame in frames
        if len(frame) <= LONGEST and frame[12:14] not in TAGS and not isinstance(parse(frame, 1), Drop)
    ]


@pytest.mark.parametrize("name", captures.names())
def test_a_capture_through_two_l2fwd(line: Line, name: str) -> None:
    bodies = fitting(captures.load(name))
    if not bodies:
        pytest.skip("no frame without a tag")
    switched, by_shortcut = line.sent("first-out")
    line.carry(bodies)
    assert line.sent("first-out") == (switched, by_shortcut + len(bodies))
