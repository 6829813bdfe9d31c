# SPDX-License-Identifier: Apache-2.0
"""Which bits a flow matches on, and how flows are found by what they depend on."""

from __future__ import annotations

from typing import Any

import pytest

from vswitch.slowpath.flows import MASK_DST, MASK_PORT, MASK_VLAN, Depends, FlowIndex, bridging_mask
from vswitch.slowpath.learning import Segment, Station
from vswitch.slowpath.types import Action, ActionType, Flow, Key

FULL_IP = b"\xff" * 16
ZERO, TEN = Segment("default", 0), Segment("default", 10)
S, D, E = Station(ZERO, b"\x02" + bytes(5)), Station(ZERO, b"\x04" + bytes(5)), Station(TEN, b"\x04" + bytes(5))
PASS = (Action(ActionType.OUTPUT, 2),)


@pytest.mark.parametrize(
    ("key", "extra"),
    [
        (Key(eth_type=0x0800, ip_proto=58, l4_src=135), {}),
        (Key(eth_type=0), {}),
        (Key(eth_type=0x0806, ip_proto=1), {"ip_src": FULL_IP}),
        (Key(eth_type=0x86DD, ip_proto=6), {"ip_proto": 0xFF}),
        (Key(eth_type=0x86DD, ip_proto=58, l4_src=128), {"ip_proto": 0xFF, "l4_src": 0xFFFF}),
        *(
            (Key(eth_type=0x86DD, ip_proto=58, l4_src=kind), {"ip_proto": 0xFF, "l4_src": 0xFFFF, "ip_src": FULL_IP})
            for kind in (133, 135, 136)
        ),
    ],
)
def test_bridging_mask(key: Key, extra: dict[str, Any]) -> None:
    plain = Key(
        eth_dst=b"\xff" * 6,
        eth_src=b"\xff" * 6,
        eth_type=0xFFFF,
        in_port=0xFFFF,
        vlan_tpid=(0xFFFF, 0),
        vlan_tci=(0x0FFF, 0),
    )
    assert bridging_mask(key, keeps_priority=False) == plain._replace(**extra)
    assert bridging_mask(key, keeps_priority=True) == plain._replace(**extra, vlan_tci=(0xFFFF, 0))


def test_masks_of_early_drops_are_wider_and_wider() -> None:
    fields = [
        [any(part) if isinstance(part, tuple | bytes) else bool(part) for part in mask]
        for mask in (MASK_PORT, MASK_VLAN, MASK_DST)
    ]
    assert [sum(looked_at) for looked_at in fields] == [1, 3, 4]


def test_found_by_what_it_depends_on() -> None:
    index = FlowIndex()
    flow = Flow(Key(in_port=1), MASK_PORT, PASS)
    handle = index.add(flow, Depends(S, D, flood=ZERO), now=5.0)
    assert index.find(flow.key, flow.mask) == handle
    assert index.all() == {handle: flow} and index.get(handle) == flow and len(index) == 1
    for found in (index.from_port(1), index.from_station(S), index.to_station(D), index.flooding(ZERO)):
        assert found == {handle}
    for empty in (index.from_port(2), index.from_station(D), index.to_station(S), index.flooding(TEN)):
        assert not empty


def test_replaced_flow_is_found_by_its_new_dependencies_only() -> None:
    index = FlowIndex()
    handle = index.add(Flow(Key(in_port=1), MASK_PORT, ()), Depends(S, D, flood=ZERO), now=5.0)
    assert index.replace(handle, PASS, Depends(S, E)) == Flow(Key(in_port=1), MASK_PORT, PASS)
    assert index.depends(handle) == Depends(S, E)
    assert index.to_station(E) == {handle} == index.from_station(S)
    assert not index.to_station(D) and not index.flooding(ZERO) and not index.flooded_segments()


def test_removed_flow_leaves_nothing() -> None:
    index = FlowIndex()
    flow = Flow(Key(in_port=1), MASK_PORT, PASS)
    first = index.add(flow, Depends(S, D, flood=ZERO), now=5.0)
    index.remove(first)
    assert index.get(first) is None and index.find(flow.key, flow.mask) is None and len(index) == 0
    assert not index.from_port(1) and not index.from_station(S) and not index.to_station(D)
    assert index.flooded_segments() == ()
    assert index.add(flow, Depends(), now=6.0) != first, "a handle is never used again"


def test_used_never_goes_back() -> None:
    index = FlowIndex()
    handle = index.add(Flow(Key(in_port=1), MASK_PORT, PASS), Depends(), now=5.0)
    assert index.used(handle, 0.0) == 5.0
    assert index.used(handle, 9.0) == 9.0
    assert index.used(handle, 7.0) == 9.0
