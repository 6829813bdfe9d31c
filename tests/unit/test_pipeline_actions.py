# SPDX-License-Identifier: Apache-2.0
"""What actions do to a frame, and which packets a flow matches."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests import packets
from tests.strategies import frames
from vswitch.slowpath.pipeline import apply, masked, match, parse, vlan_pop, vlan_push
from vswitch.slowpath.types import Action, ActionType, Drop, Flow, Key

FRAME = packets.ethernet(packets.ipv4(packets.udp(b"data")))
TAGGED = packets.ethernet(packets.ipv4(packets.udp(b"data")), tags=((0x88A8, 0x600A), (0x8100, 20)))


def output(port: int) -> Action:
    return Action(ActionType.OUTPUT, port)


def mirror(port: int) -> Action:
    return Action(ActionType.MIRROR, port)


POP = Action(ActionType.VLAN_POP)
PUSH = Action(ActionType.VLAN_PUSH, 0x2005, 0x8100)


def test_outputs_in_order() -> None:
    assert apply((output(3), output(1), output(2)), FRAME) == [(3, FRAME), (1, FRAME), (2, FRAME)]


def test_vlan_actions_count_for_the_outputs_after_them() -> None:
    pushed = FRAME[:12] + bytes.fromhex("81002005") + FRAME[12:]
    assert apply((output(1), PUSH, output(2), POP, output(3)), FRAME) == [(1, FRAME), (2, pushed), (3, FRAME)]


def test_pop_takes_the_outer_tag() -> None:
    inner = TAGGED[:12] + TAGGED[16:]
    assert apply((POP, output(1), POP, output(2), POP, output(3)), TAGGED) == [(1, inner), (2, FRAME), (3, FRAME)]


def test_mirror_gets_the_frame_as_received() -> None:
    assert apply((POP, output(1), mirror(2)), TAGGED)[1] == (2, TAGGED)


def test_drop_and_upcall_end_the_list() -> None:
    drop, upcall = Action(ActionType.DROP, Drop.VLAN), Action(ActionType.UPCALL)
    assert apply((mirror(2), drop, output(1)), FRAME) == [(2, FRAME)]
    assert apply((output(1), upcall, output(2)), FRAME) == [(1, FRAME)]
    assert apply((), FRAME) == []


def test_pop_leaves_half_a_tag() -> None:
    assert vlan_pop(TAGGED[:17]) == TAGGED[:17]


@given(frames(), st.sampled_from([0x8100, 0x88A8, 0x9100]), st.integers(0, 0xFFFF))
def test_pop_undoes_push(frame: bytes, tpid: int, tci: int) -> None:
    pushed = vlan_push(frame, tpid, tci)
    key = parse(pushed, 1)
    assert vlan_pop(pushed) == frame
    assert isinstance(key, Drop) or (key.vlan_tpid[0], key.vlan_tci[0]) == (tpid, tci)


def bits(length: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=length, max_size=length) | st.sampled_from([bytes(length), b"\xff" * length])


KEYS = st.builds(
    Key,
    eth_dst=bits(6),
    eth_src=bits(6),
    eth_type=st.integers(0, 0xFFFF),
    in_port=st.integers(0, 0xFFFF),
    vlan_tpid=st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)),
    vlan_tci=st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)),
    ip_proto=st.integers(0, 255),
    ip_tos=st.integers(0, 255),
    ip_frag=st.integers(0, 3),
    tcp_flags=st.integers(0, 255),
    l4_src=st.integers(0, 0xFFFF),
    l4_dst=st.integers(0, 0xFFFF),
    ip_src=bits(16),
    ip_dst=bits(16),
)


def as_number(key: Key) -> int:
    """All 64 bytes of a key."""
    raw = b"".join(
        field
        if isinstance(field, bytes)
        else b"".join(packets.be16(n) for n in field)
        if isinstance(field, tuple)
        else packets.be16(field)
        for field in key
    )
    return int.from_bytes(raw)


@given(KEYS, KEYS)
def test_masked_is_bitwise_and(key: Key, mask: Key) -> None:
    assert as_number(masked(key, mask)) == as_number(key) & as_number(mask)


@given(KEYS, KEYS, KEYS)
def test_flow_matches_on_the_bits_of_its_mask(key: Key, mask: Key, other: Key) -> None:
    flow = Flow(masked(key, mask), mask, ())
    assert match(key, flow)
    same_bits = as_number(other) & as_number(mask) == as_number(key) & as_number(mask)
    assert match(other, flow) is same_bits
