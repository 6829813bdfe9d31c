# SPDX-License-Identifier: Apache-2.0
"""The decision core by example: VLANs, mirrors, and ports that change."""

from __future__ import annotations

import pytest

from tests.core_driver import BROADCAST, A, B, C, Driver, drop, out, port
from vswitch.slowpath.types import (
    Action,
    ActionType,
    DelFlow,
    Drop,
)


@pytest.fixture
def switch() -> Driver:
    return Driver()


# ---- VLANs


def test_access_ports_of_two_vlans_do_not_meet() -> None:
    switch = Driver(port(1, tag=10), port(2, tag=10), port(3, tag=20), port(4, tag=20))
    assert switch.udp(1, A, B) == out(2)
    assert switch.udp(3, A, B) == out(4)
    assert [(entry.vlan, entry.port) for entry in switch.core.fdb()] == [(10, 1), (20, 3)]
    assert switch.udp(1, A, B, (0x8100, 20)) == drop(Drop.VLAN)


def test_a_refused_vlan_is_one_flow_for_all_addresses() -> None:
    switch = Driver(port(1, trunks=(10,)), port(2))
    switch.udp(1, A, B, (0x8100, 20))
    switch.udp(1, B, A, (0x8100, 20))
    assert len(switch.core.flows()) == 1
    assert switch.core.fdb() == []


def test_new_vlan_of_a_port_forgets_what_was_there() -> None:
    switch = Driver(port(1, tag=10), port(2, tag=10), port(3, tag=20))
    switch.udp(1, A, B)
    switch.udp(2, B, A)
    switch.core.port_changed(port(1, tag=20), switch.now)
    assert switch.where(A) is None
    assert switch.actions(1, A, B) is None, "A must be learned in its new VLAN"
    assert switch.actions(2, B, A) == drop(Drop.NO_DEST)


# ---- mirrors


def test_mirror_gets_what_its_port_sends_and_receives_once() -> None:
    switch = Driver(port(1, mirror="p3"), port(2, mirror="p3"), port(3), port(4))
    copy = Action(ActionType.MIRROR, 3)
    assert switch.udp(1, A, B) == (copy, *out(2, 4))
    assert switch.udp(2, B, A) == (copy, *out(1))
    assert switch.udp(4, C, A) == (copy, *out(1))


def test_mirror_gets_what_is_dropped() -> None:
    switch = Driver(port(1, mirror="p2", tag=10), port(2), port(3, tag=20))
    copy = Action(ActionType.MIRROR, 2)
    assert switch.udp(1, A, B, (0x8100, 20)) == (copy, *drop(Drop.VLAN))
    assert switch.udp(1, A, bytes.fromhex("0180c2000000")) == (copy, *drop(Drop.RESERVED_MAC))
    assert switch.udp(1, A, B) == (copy, *drop(Drop.NO_DEST))


def test_mirror_port_takes_no_part(switch: Driver) -> None:
    switch.udp(3, C, A)
    switch.udp(1, A, C)
    switch.core.port_changed(port(2, mirror="p3"), switch.now)
    assert switch.where(C) is None
    assert switch.actions(1, A, C) == (Action(ActionType.MIRROR, 3), *out(2))
    assert switch.udp(3, C, A) == drop(Drop.POLICY)
    assert switch.where(C) is None


def test_mirror_port_comes_and_goes() -> None:
    switch = Driver(port(1, mirror="p3"), port(2))
    switch.udp(1, A, B)
    assert switch.actions(1, A, B) == out(2)
    switch.core.port_added(port(3), switch.now)
    assert switch.actions(1, A, B) == (Action(ActionType.MIRROR, 3), *out(2))
    switch.core.port_changed(port(3, up=False), switch.now)
    assert switch.actions(1, A, B) == out(2)
    switch.core.port_changed(port(1), switch.now)
    switch.core.port_changed(port(3), switch.now)
    assert switch.actions(1, A, B) == out(2, 3)


# ---- ports


def test_floods_follow_the_ports(switch: Driver) -> None:
    switch.udp(1, A, B)
    steps = [
        (switch.core.port_added, port(4), out(2, 3, 4)),
        (switch.core.port_added, port(5, up=False), out(2, 3, 4)),
        (switch.core.port_changed, port(2, up=False), out(3, 4)),
        (switch.core.port_changed, port(5), out(3, 4, 5)),
        (switch.core.port_changed, port(4, tag=10), out(3, 5)),
    ]
    for event, changed, expected in steps:
        event(changed, switch.now)
        assert switch.actions(1, A, B) == expected
    switch.core.port_removed(3, switch.now)
    assert switch.actions(1, A, B) == out(5)


def test_known_destination_keeps_its_port_when_that_is_down(switch: Driver) -> None:
    switch.udp(2, B, A)
    switch.udp(1, A, B)
    assert switch.core.port_changed(port(2, up=False), switch.now) == []
    assert switch.actions(1, A, B) == out(2)


def test_removed_port_takes_flows_and_addresses_along(switch: Driver) -> None:
    switch.udp(1, A, B)
    switch.udp(2, B, A)
    switch.core.port_removed(2, switch.now)
    assert switch.where(B) is None
    assert switch.actions(2, B, A) is None
    assert switch.actions(1, A, B) == out(3)


def test_removed_mirror_port_leaves_no_flow(switch: Driver) -> None:
    """Its policy drop looks at in_port only, which says nothing of who has the id next."""
    switch.core.port_changed(port(1, mirror="p3"), switch.now)
    switch.udp(3, C, A)
    assert [type(command) for command in switch.core.port_removed(3, switch.now)] == [DelFlow]
    switch.core.port_added(port(3, tag=0), switch.now)
    assert not switch.core.flows()


def test_removed_port_frees_the_addresses_held_there() -> None:
    switch = Driver(port(1), port(2), port(3))
    for in_port in (1, 2, 1, 2, 1):
        switch.udp(in_port, A, B)
    switch.udp(2, A, B)
    switch.core.port_removed(1, switch.now)
    assert switch.actions(2, A, B) is None
    assert switch.udp(2, A, B) == out(3)


def test_flood_to_a_single_port_is_still_a_flood() -> None:
    """The actions are those towards a known address, and yet not what they depend on."""
    switch = Driver(port(1), port(2))
    switch.udp(2, B, BROADCAST)
    assert switch.udp(1, A, B) == out(2)
    assert [type(command) for command in switch.core.fdb_flush(switch.now, 2)] == [DelFlow]
    assert switch.actions(1, A, B) == out(2)
    switch.core.port_added(port(3), switch.now)
    assert switch.actions(1, A, B) == out(2, 3)


def test_port_ids_are_checked(switch: Driver) -> None:
    with pytest.raises(ValueError, match="1 is in use"):
        switch.core.port_added(port(1), switch.now)
    with pytest.raises(ValueError, match="no port has id 9"):
        switch.core.port_changed(port(9), switch.now)
    with pytest.raises(ValueError, match="no port has id 9"):
        switch.core.port_removed(9, switch.now)
