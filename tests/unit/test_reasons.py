# SPDX-License-Identifier: Apache-2.0
"""The sentences that explain a decision."""

from __future__ import annotations

import pytest

from tests.core_driver import BROADCAST, A, B, C, Driver, port, udp_frame
from vswitch.slowpath.core import SwitchCore
from vswitch.slowpath.overlay import Binding
from vswitch.slowpath.pipeline import parse
from vswitch.slowpath.types import Key, Port, PortConfig, PortType


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


def controlled() -> SwitchCore:
    """web on port 1, db on port 2, far on another host; port 9 is the tunnel."""
    core = SwitchCore()
    for number, kind in ((1, PortType.VHOST_USER), (2, PortType.VHOST_USER), (9, PortType.VXLAN)):
        core.port_added(Port(number, PortConfig(f"p{number}", kind, network="blue"), True), 0.0)
    core.set_network("blue", 9, 0.0)
    bindings = [
        Binding("blue", "web", bytes([2, 0, 0, 0, 0, 1]), (bytes([10, 0, 0, 1]),), port=1),
        Binding("blue", "db", bytes([2, 0, 0, 0, 0, 2]), port=2),
        Binding("blue", "far", bytes([2, 0, 0, 0, 0, 3]), remote=7, mtu=1450),
        Binding("blue", "lost", bytes([2, 0, 0, 0, 0, 4])),
    ]
    core.set_endpoints(bindings, 0.0)
    return core


@pytest.mark.parametrize(
    ("in_port", "src", "dst", "why"),
    [
        (1, 1, 2, "destination 02:00:00:00:00:02 is endpoint db, on p2"),
        (
            2,
            2,
            3,
            "far, on another host, by tunnel end 7; a packet of more than 1450 bytes is answered: too big",
        ),
        (2, 2, 4, "endpoint lost, on another host to which there is no way: dropped"),
        (1, 5, 2, "source 02:00:00:00:00:05 is not the address of p1's endpoint: dropped as forged"),
        (1, 2, 1, "that of endpoint db, which is not on p1: dropped as forged"),
        (9, 3, 5, "is no endpoint of this host in network blue: dropped"),
        (9, 3, 2, "source 02:00:00:00:00:03 is behind the tunnel: not learned"),
    ],
)
def test_the_overlay_says_why(in_port: int, src: int, dst: int, why: str) -> None:
    macs = [bytes([2, 0, 0, 0, 0, number]) for number in (src, dst)]
    ip = bytes([10, 0, 0, 1]) + bytes(12)
    key = Key(eth_src=macs[0], eth_dst=macs[1], eth_type=0x0800, in_port=in_port, ip_src=ip)
    assert any(why in reason for reason in controlled().decide(key, 0.0).reasons)


def test_an_endpoint_with_anothers_ip_is_told() -> None:
    key = Key(eth_src=bytes([2, 0, 0, 0, 0, 1]), eth_type=0x0800, in_port=1, ip_src=bytes([10, 0, 0, 9]) + bytes(12))
    assert "web sends from an IP address that is not its own" in controlled().decide(key, 0.0).reasons[-1]
