# SPDX-License-Identifier: Apache-2.0
"""Which VLAN a frame is in, and in which form it leaves."""

from __future__ import annotations

import pytest

from vswitch.slowpath.types import Action, ActionType, PortConfig
from vswitch.slowpath.vlan import Egress, Tag, VlanPolicy, output_actions

UNTAGGED = Tag(0, 0)
PRIORITY = Tag(0x88A8, 0x6000)  # priority 3
IN_10 = Tag(0x8100, 10)
IN_20 = Tag(0x88A8, 20)

ACCESS_10 = VlanPolicy.of(PortConfig("p", tag=10))
TRUNK = VlanPolicy.of(PortConfig("p"))
TRUNK_10 = VlanPolicy.of(PortConfig("p", trunks=(10,)))
NATIVE_10 = VlanPolicy.of(PortConfig("p", native_vlan=10, trunks=(20,)))
NATIVE_10_ALL = VlanPolicy.of(PortConfig("p", native_vlan=10))


@pytest.mark.parametrize(
    ("policy", "tag", "vlan"),
    [
        (ACCESS_10, UNTAGGED, 10),
        (ACCESS_10, PRIORITY, 10),
        (ACCESS_10, IN_10, None),
        (ACCESS_10, IN_20, None),
        (TRUNK, UNTAGGED, 0),
        (TRUNK, PRIORITY, 0),
        (TRUNK, IN_10, 10),
        (TRUNK, IN_20, 20),
        (TRUNK_10, UNTAGGED, 0),
        (TRUNK_10, IN_10, 10),
        (TRUNK_10, IN_20, None),
        (NATIVE_10, UNTAGGED, 10),
        (NATIVE_10, PRIORITY, 10),
        (NATIVE_10, IN_10, 10),
        (NATIVE_10, IN_20, 20),
        (NATIVE_10, Tag(0x8100, 30), None),
    ],
)
def test_classify(policy: VlanPolicy, tag: Tag, vlan: int | None) -> None:
    assert policy.classify(tag) == vlan


@pytest.mark.parametrize(
    ("policy", "carried"),
    [
        (ACCESS_10, {10}),
        (TRUNK, {0, 10, 20, 4094}),
        (TRUNK_10, {0, 10}),
        (NATIVE_10, {10, 20}),
        (NATIVE_10_ALL, {10, 20, 4094}),
    ],
)
def test_carries(policy: VlanPolicy, carried: set[int]) -> None:
    assert {vlan for vlan in (0, 10, 20, 4094) if policy.carries(vlan)} == carried


@pytest.mark.parametrize(
    ("policy", "vlan", "tag", "form"),
    [
        (ACCESS_10, 10, UNTAGGED, Egress.AS_RECEIVED),
        (ACCESS_10, 10, PRIORITY, Egress.POPPED),
        (ACCESS_10, 10, IN_10, Egress.POPPED),
        (TRUNK, 0, UNTAGGED, Egress.AS_RECEIVED),
        (TRUNK, 0, PRIORITY, Egress.AS_RECEIVED),
        (TRUNK, 10, UNTAGGED, Egress.PUSHED),
        (TRUNK, 10, PRIORITY, Egress.PUSHED),
        (TRUNK, 10, IN_10, Egress.AS_RECEIVED),
        (NATIVE_10, 10, UNTAGGED, Egress.AS_RECEIVED),
        (NATIVE_10, 10, PRIORITY, Egress.AS_RECEIVED),
        (NATIVE_10, 10, IN_10, Egress.POPPED),
        (NATIVE_10, 20, UNTAGGED, Egress.PUSHED),
        (NATIVE_10, 20, IN_20, Egress.AS_RECEIVED),
    ],
)
def test_egress(policy: VlanPolicy, vlan: int, tag: Tag, form: Egress) -> None:
    assert policy.egress(vlan, tag) is form


PORTS = ((1, TRUNK), (2, ACCESS_10), (3, NATIVE_10), (4, TRUNK_10), (5, ACCESS_10))
POP = Action(ActionType.VLAN_POP)


def outputs(*ports: int) -> tuple[Action, ...]:
    return tuple(Action(ActionType.OUTPUT, port) for port in ports)


@pytest.mark.parametrize(
    ("tag", "actions"),
    [
        (UNTAGGED, (*outputs(2, 3, 5), Action(ActionType.VLAN_PUSH, 10, 0x8100), *outputs(1, 4))),
        (IN_10, (*outputs(1, 4), POP, *outputs(2, 3, 5))),
        (PRIORITY, (*outputs(3), POP, *outputs(2, 5), Action(ActionType.VLAN_PUSH, 0x600A, 0x88A8), *outputs(1, 4))),
    ],
    ids=["untagged", "tagged", "priority-tagged"],
)
def test_one_change_for_all_ports_that_want_it(tag: Tag, actions: tuple[Action, ...]) -> None:
    assert output_actions(10, tag, PORTS) == actions


def test_priority_tag_becomes_a_vlan_tag_where_no_port_wants_it_off() -> None:
    push = Action(ActionType.VLAN_PUSH, 0x600A, 0x88A8)
    assert output_actions(10, PRIORITY, [(1, TRUNK)]) == (POP, push, *outputs(1))
