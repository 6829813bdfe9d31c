# SPDX-License-Identifier: Apache-2.0
"""The sentences that explain a decision."""

from __future__ import annotations

import pytest

from tests.core_driver import BROADCAST, A, B, C, Driver, port, udp_frame
from vswitch.slowpath.pipeline import parse
from vswitch.slowpath.types import (
    Key,
)


def reasons(switch: Driver, in_port: int, frame: bytes) -> str:
    key = parse(frame, in_port)
    assert isinstance(key, Key)
    return "; ".join(switch.core.decide(key, switch.now).reasons)


def test_reasons_say_what_was_decided_in_order() -> None:
    switch = Driver(port(1), port(2, tag=10, mirror="p4"), port(3, up=False), port(4))
    switch.udp(2, B, BROADCAST)
    switch.udp(3, C, BROADCAST)
    switch.now += 7
    assert reasons(switch, 1, udp_frame(A, B, ((0x8100, 10),))) == (
        "tagged 10 on p1, a trunk: VLAN 10; "
        "source 02:00:00:00:00:01 is new: learned on p1; "
        "destination 02:00:00:00:00:02 is on p2, heard 7 s ago; "
        "copied to mirror port p4; "
        "the outer tag is taken off for p2"
    )
    assert reasons(switch, 1, udp_frame(A, C)) == (
        "untagged on p1, a trunk: VLAN 0; "
        "source 02:00:00:00:00:01 is new: learned on p1; "
        "destination 02:00:00:00:00:03 is on p3, heard 7 s ago; "
        "p3 is down: it will be lost there (port-down)"
    )
    assert reasons(switch, 2, udp_frame(B, A, ((0x8100, 20),))) == (
        "tagged 20 on p2, an access port of VLAN 10 that does not take this: dropped; copied to mirror port p4"
    )
    assert reasons(switch, 4, udp_frame(A, B)) == ("p4 is a mirror port, and what it sends is not bridged: dropped")
    assert reasons(switch, 9, udp_frame(A, B)) == "there is no port 9: dropped"
    assert reasons(switch, 2, udp_frame(B, bytes.fromhex("0180c2000002"))).endswith(
        "01:80:c2:00:00:02 never leaves its link (IEEE 802.1Q table 8-1): dropped; copied to mirror port p4"
    )
    assert reasons(switch, 2, udp_frame(B, BROADCAST)) == (
        "untagged on p2, an access port of VLAN 10: VLAN 10; "
        "source 02:00:00:00:00:02 is known on p2; "
        "destination ff:ff:ff:ff:ff:ff is a group: flooded in the VLAN; "
        "copied to mirror port p4; "
        "a tag is put on for p1"
    )


@pytest.mark.parametrize("step", range(8))
def test_reasons_of_sources(step: int) -> None:
    switch = Driver(port(1, mac_quota=1), port(2), port(3))
    switch.core.add_static(0, C, 3, switch.now)
    switch.udp(1, A, BROADCAST)
    in_port, src, dst, words = [
        (2, A, BROADCAST, "source 02:00:00:00:00:01 moves from p1 to p2"),
        (1, B, BROADCAST, "source 02:00:00:00:00:02 is not learned: p1 has as many addresses as it may"),
        (1, C, BROADCAST, "source 02:00:00:00:00:03 is static on p3"),
        (1, bytes(6), BROADCAST, "source 00:00:00:00:00:00 is nobody's address: not learned"),
        (1, A, A, "destination 02:00:00:00:00:01 is on p1, where the frame came from: dropped"),
        (1, A, C, "destination 02:00:00:00:00:03 is static on p3"),
        (1, A, B, "destination 02:00:00:00:00:02 is not known: flooded in the VLAN"),
        (2, A, BROADCAST, "source 02:00:00:00:00:01 moved too often and is held on p1 for 8 s more: dropped"),
    ][step]
    if step == 7:
        for moved_to in (2, 1, 2, 3):
            switch.udp(moved_to, A, BROADCAST)
        switch.now += 2
        words = words.replace("p1", "p3")
    assert words in reasons(switch, in_port, udp_frame(src, dst))
