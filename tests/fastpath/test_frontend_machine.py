# SPDX-License-Identifier: Apache-2.0
"""Front-ends of every kind that send, stop, come back and break the rules in any order, against a model.

The model is short: what one front-end sends comes out of the other in order, once and unchanged, unless it was
dropped and counted; and a pair of ports beside them never notices. FFSWITCH_MACHINE=long makes it random and long.
"""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.fastpath.frames import flow, numbered, output
from tests.fastpath.hostile import DEEDS
from tests.fastpath.switch import Attached, Switch
from tests.frontend import Feature
from tests.frontend.packed import PackedRing
from tests.frontend.protocol import Request
from tests.frontend.vring import SplitRing
from vswitch.slowpath.fastpath import FastPath
from vswitch.slowpath.types import PortState

LONG = os.environ.get("FFSWITCH_MACHINE") == "long"
SETTINGS = settings(
    max_examples=200 if LONG else 10,
    stateful_step_count=30 if LONG else 14,
    derandomize=not LONG,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # each step takes real time, so that shrinking would take hours
    suppress_health_check=list(HealthCheck),
)
LIMIT = 3600 if LONG else 300  # seconds for pytest-timeout, on a machine that does other things too
QUEUES = 2
SIDES = st.integers(0, 1)
SIZES = st.lists(st.integers(60, 1514) | st.sampled_from([60, 128, 129, 1500, 1514, 1523, 1900]), max_size=24)

OPTIONS = st.fixed_dictionaries(
    {
        "packed": st.booleans(),
        "indirect": st.booleans(),
        "mergeable": st.booleans(),
        "modern": st.booleans(),
        "queues": st.integers(1, QUEUES),
        "features": st.sampled_from([Feature(0), Feature.IN_ORDER]),
        "rx_ring": st.sampled_from([64, 256]),
        "tx_ring": st.sampled_from([64, 256]),
        "segment": st.sampled_from([64, 200, 2048]),
        "rx_buffer": st.sampled_from([256, 1000, 2048]),
    }
)


class Machine(RuleBasedStateMachine):
    def __init__(self, fastpath: FastPath, directory: Path) -> None:
        super().__init__()
        self.switch = Switch(fastpath, directory)
        self.ports: list[Attached] = []
        self.others: list[Attached] = []
        self.numbers = count()
        self.dropped = 0

    @initialize(options=st.tuples(OPTIONS, OPTIONS))
    def start(self, options: tuple[dict[str, Any], dict[str, Any]]) -> None:
        switch = self.switch
        # the port has all queues, whatever its first front-end has
        self.ports = [switch.add(f"p{n}", queues=QUEUES) for n in range(2)]
        self.others = switch.add_hosts(2)
        for one, other in (self.ports, self.ports[::-1], self.others):
            switch.install(flow(output(other.id), in_port=one.id))
        for side in range(2):
            self.come_back(side, options[side])

    # ---- what a front-end does --------------------------------------------

    @rule(side=SIDES, sizes=SIZES, queue=st.integers(0, QUEUES - 1), burst=st.integers(1, 24))
    def send(self, side: int, sizes: list[int], queue: int, burst: int) -> None:
        self.check(side, self.put(side, sizes, queue, burst))

    @rule(side=SIDES, sizes=SIZES)
    def send_both_ways(self, side: int, sizes: list[int]) -> None:
        there, back = self.put(side, sizes, 0, 4), self.put(1 - side, sizes[::-1], 0, 3)
        self.switch.settle()
        came = self.ports[1 - side].peer.receive(), self.ports[side].peer.receive()
        self.check_came([*zip(came, (there, back), strict=True)])

    @rule(side=SIDES, sizes=SIZES, receiver=st.booleans())
    def share_memory_under_traffic(self, side: int, sizes: list[int], receiver: bool) -> None:
        frames = self.put(side, sizes, 0, 8)
        self.ports[1 - side if receiver else side].peer.share_memory()
        self.check(side, frames)

    @rule(side=SIDES, sizes=SIZES, queue=st.integers(0, QUEUES - 1))
    def stop_receiving_for_a_while(self, side: int, sizes: list[int], queue: int) -> None:
        receiver = self.ports[1 - side].peer
        ring = 2 * (queue % receiver.queues)
        receiver.set_vring(Request.SET_VRING_ENABLE, ring, 0)
        self.check(side, self.put(side, sizes, 0, 8))
        receiver.set_vring(Request.SET_VRING_ENABLE, ring, 1)

    @rule(side=SIDES, sizes=SIZES, queue=st.integers(0, QUEUES - 1))
    def stop_sending_for_a_while(self, side: int, sizes: list[int], queue: int) -> None:
        """What is in the ring meanwhile is taken afterwards."""
        sender = self.ports[side].peer
        queue %= sender.queues
        self.switch.settle()
        sender.set_vring(Request.SET_VRING_ENABLE, 2 * queue + 1, 0)
        frames = self.put(side, sizes[:2], queue, 2)
        sender.set_vring(Request.SET_VRING_ENABLE, 2 * queue + 1, 1)
        self.check(side, frames)

    @rule(side=SIDES, options=OPTIONS, word=st.booleans())
    def come_back_as_another(self, side: int, options: dict[str, Any], word: bool) -> None:
        peer = self.ports[side].peer
        (peer.close if word else peer.kill)()
        self.switch.wait_state(self.ports[side], PortState.LOST)
        self.come_back(side, options)

    @rule(side=SIDES, deed=st.sampled_from([*DEEDS]), options=OPTIONS, sizes=SIZES)
    def break_a_rule(self, side: int, deed: str, options: dict[str, Any], sizes: list[int]) -> None:
        bad = self.ports[side]
        if isinstance(bad.peer.vrings[1].ring, SplitRing):
            DEEDS[deed](bad.peer)
            bad.peer.kick()
            self.suffer(side, deed.split(maxsplit=1)[0], options, sizes)

    @rule(side=SIDES, receive=st.booleans(), options=OPTIONS, sizes=SIZES)
    def lie_about_a_position(self, side: int, receive: bool, options: dict[str, Any], sizes: list[int]) -> None:
        bad = self.ports[side].peer
        if isinstance(bad.vrings[1].ring, PackedRing):
            bad.set_vring(Request.SET_VRING_BASE, 0 if receive else 1, 0x7FFF)
            self.suffer(side, "descriptor-index", options, sizes)

    # ---- inside -----------------------------------------------------------

    def suffer(self, side: int, fault: str, options: dict[str, Any], sizes: list[int]) -> None:
        """The port is lost, nobody else is, and it comes back."""
        bad = self.ports[side]
        self.switch.wait_state(bad, PortState.LOST)
        assert f"stopped: {fault}" in self.switch.fp.port_info(bad.id).reason
        self.beside()
        self.come_back(side, options)
        self.send(side, sizes, 0, 8)

    def come_back(self, side: int, options: dict[str, Any]) -> None:
        port = self.ports[side]
        port.peer.kill()
        self.switch.reconnect(port, **options)

    def put(self, side: int, sizes: list[int], queue: int, burst: int) -> list[bytes]:
        sender = self.ports[side].peer
        frames = [numbered(1, 2, 1, size=size, start=next(self.numbers))[0] for size in sizes]
        # a chain of small pieces may need half a ring
        sender.send(frames, queue % sender.queues, burst if sender.segment == 2048 else 1)
        return frames

    def check(self, side: int, frames: list[bytes]) -> None:
        self.switch.settle()
        self.check_came([(self.ports[1 - side].peer.receive(), frames)])

    def check_came(self, pairs: list[tuple[list[bytes], list[bytes]]]) -> None:
        """Of (received, sent): in order, once, unchanged; and what is missing was counted."""
        missing = 0
        for received, sent in pairs:
            rest = iter(sent)
            assert all(frame in rest for frame in received), "changed, doubled or out of order"
            missing += len(sent) - len(received)
        dropped = self.switch.fates().dropped
        assert missing == dropped - self.dropped
        self.dropped = dropped

    def beside(self) -> None:
        sender, receiver = self.others
        frames = numbered(3, 4, 5, start=next(self.numbers))
        sender.peer.send(frames)
        assert receiver.peer.wait_received(5) == frames, "the others must not feel it"

    def teardown(self) -> None:
        self.switch.close()


@pytest.mark.timeout(LIMIT)
def test_front_ends_in_any_order(fastpath: FastPath, tmp_path: Path) -> None:
    class Here(Machine):
        def __init__(self) -> None:
            super().__init__(fastpath, tmp_path)

    run_state_machine_as_test(Here, settings=SETTINGS)
