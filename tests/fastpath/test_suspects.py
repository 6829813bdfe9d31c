# SPDX-License-Identifier: Apache-2.0
"""What the fast path tells of queues that may be wedged, and of workers that sleep."""

from __future__ import annotations

import pytest

from tests.fastpath.frames import flow, numbered, output
from tests.fastpath.switch import Switch
from tests.frontend import FrontEnd
from tests.frontend.frontend import Vring
from tests.frontend.protocol import Channel
from vswitch.slowpath.types import Drop, Suspect


def test_a_receiver_that_takes_nothing(switch: Switch) -> None:
    sender, receiver = switch.add_hosts(2)
    switch.install(flow(output(receiver.id), in_port=sender.id))
    assert switch.fp.suspects() == []
    ring = receiver.peer.rx_ring
    sender.peer.send(numbered(1, 2, ring + 44), burst=32)
    switch.settle()
    assert switch.drops(receiver) == {Drop.RING_FULL: 44}
    assert switch.fp.port_stats(receiver.id).queues[0].tx_full == 44
    assert switch.fp.suspects() == [Suspect(receiver.id, 0, False, False, ring, 44)]

    receiver.peer.receive()
    sender.peer.send(numbered(1, 2, 5))
    switch.settle()
    assert switch.fp.suspects() == [Suspect(receiver.id, 0, False, False, ring + 5, 44)]


def test_a_queue_that_is_enabled_and_not_set_up(switch: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    start = FrontEnd._start_vring

    def first_pair_only(front: FrontEnd, channel: Channel, index: int, vring: Vring) -> None:
        if index < 2:
            start(front, channel, index, vring)

    monkeypatch.setattr(FrontEnd, "_start_vring", first_pair_only)
    port = switch.add("h1", queues=2)
    expected = [Suspect(port.id, 1, True, True, 0, 0)]
    switch.wait(lambda: switch.fp.suspects() == expected, lambda: f"both rings to be enabled: {switch.fp.suspects()}")


def test_a_sleeping_worker_says_so(switch: Switch) -> None:
    switch.wait(lambda: switch.fp.worker_asleep(0), lambda: "the worker to sleep, which has nothing to do")
    assert not switch.fp.worker_asleep(99)
