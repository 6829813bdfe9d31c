# SPDX-License-Identifier: Apache-2.0
"""The flow table: masks, replacement, deletion, counters, all with packets on their way."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from tests.fastpath.frames import POP, drop, ether, flow, ip, mac, numbered, output, push, tagged
from tests.fastpath.switch import Switch
from vswitch.slowpath.fastpath import FastPath, FastPathError
from vswitch.slowpath.types import EXACT, Drop, Flow, Key

MAX_MASKS = 32  # FF_MAX_MASKS


def key_of(frame: bytes, in_port: int) -> Key:
    key = FastPath.parse(frame, in_port)
    assert isinstance(key, Key)
    return key


def test_exact_match(switch: Switch) -> None:
    a, b, c = switch.add_hosts(3)
    wanted, other = numbered(1, 2, 1)[0], numbered(1, 3, 1)[0]
    key = key_of(wanted, a.id)
    (flow_id,) = switch.install(Flow(key, EXACT, tuple(output(b.id))))
    assert switch.fp.flow_lookup(key) == flow_id
    assert switch.fp.flow_lookup(key_of(other, a.id)) == 0
    assert switch.fp.flow_lookup(key_of(wanted, c.id)) == 0
    a.peer.send([wanted, other])
    (upcall,) = switch.wait_upcalls(1)
    assert upcall.frame == other
    switch.finish(upcall, [])
    switch.settle()
    assert b.peer.receive() == [wanted]


# Each field with two values; a frame that has them is made from the key's own words below.
FIELDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "in_port": ({}, {"port": 1}),
    "eth_src": ({}, {"src": 7}),
    "eth_dst": ({}, {"dst": 7}),
    "eth_type": ({}, {"eth_type": 0x88B5}),
    "vlan_tpid": ({"vid": 5}, {"vid": 5, "tpid": 0x88A8}),
    "vlan_tci": ({"vid": 5}, {"vid": 6}),
    "ip_proto": ({}, {"proto": 132}),
    "ip_tos": ({}, {"tos": 4}),
    "ip_frag": ({}, {"frag": True}),
    "l4_src": ({}, {"sport": 9}),
    "l4_dst": ({}, {"dport": 9}),
    "ip_src": ({}, {"ip_src": 9}),
    "ip_dst": ({}, {"ip_dst": 9}),
}


def frame_with(**words: Any) -> bytes:
    packet = IP(
        src=ip(words.get("ip_src", 1)),
        dst=ip(words.get("ip_dst", 2)),
        tos=words.get("tos", 0),
        flags=1 if words.get("frag") else 0,
        proto=words.get("proto", 17),
    )
    packet /= UDP(sport=words.get("sport", 1000), dport=words.get("dport", 2000))
    frame = ether(words.get("src", 1), words.get("dst", 2), packet / Raw(bytes(22)))
    if "eth_type" in words:
        frame = frame[:12] + words["eth_type"].to_bytes(2, "big") + frame[14:]
    return tagged(frame, words["vid"], words.get("tpid", 0x8100)) if "vid" in words else frame


@pytest.mark.parametrize("field", FIELDS)
def test_a_mask_matches_its_field_and_no_other(switch: Switch, field: str) -> None:
    ports = switch.add_hosts(4)
    one, other = FIELDS[field]
    frames = [frame_with(**words) for words in (one, other)]
    senders = [ports[words.get("port", 0)] for words in (one, other)]
    for frame, sender, target in zip(frames, senders, ports[2:], strict=True):
        value = getattr(key_of(frame, sender.id), field)
        switch.install(flow(output(target.id), **{field: value}))
        sender.peer.send([frame])
    switch.settle()
    assert [target.peer.receive() for target in ports[2:]] == [[frame] for frame in frames]


def test_part_of_a_field(switch: Switch) -> None:
    """A mask may cover some bits: the VID without the priority, a subnet."""
    a, b, c = switch.add_hosts(3)
    switch.install(
        Flow(Key(vlan_tci=(5, 0)), Key(vlan_tci=(0xFFF, 0)), tuple(output(b.id))),
        Flow(Key(vlan_tci=(6, 0)), Key(vlan_tci=(0xFFF, 0)), tuple(output(c.id))),
    )
    plain = numbered(1, 2, 1)[0]
    a.peer.send([tagged(plain, 0x0005), tagged(plain, 0xE005), tagged(plain, 0x3006)])
    switch.settle()
    assert b.peer.receive() == [tagged(plain, 0x0005), tagged(plain, 0xE005)]
    assert c.peer.receive() == [tagged(plain, 0x3006)]


def test_bits_outside_the_mask_do_not_matter(switch: Switch) -> None:
    a, b = switch.add_hosts(2)
    switch.install(Flow(Key(eth_src=mac(9), in_port=a.id), Key(in_port=0xFFFF), tuple(output(b.id))))
    frames = numbered(1, 2, 3)
    a.peer.send(frames)
    switch.settle()
    assert b.peer.receive() == frames


def test_replacing_the_actions_keeps_id_and_counters(switch: Switch) -> None:
    a, b, c = switch.add_hosts(3)
    (flow_id,) = switch.install(flow(output(b.id), in_port=a.id))
    a.peer.send(numbered(1, 2, 10))
    switch.settle()
    assert switch.fp.flow_add([flow(output(c.id), in_port=a.id)]) == [flow_id]
    a.peer.send(numbered(1, 2, 5))
    switch.settle()
    assert (len(b.peer.receive()), len(c.peer.receive())) == (10, 5)
    (stats,) = switch.fp.flow_stats([flow_id])
    assert (stats.packets, stats.bytes) == (15, 15 * 60)
    assert stats.last_used > 0


def test_replacing_under_traffic_loses_nothing(switch: Switch) -> None:
    a, b, c = switch.add_hosts(3, rx_ring=1024, tx_ring=1024)
    switch.install(flow(output(b.id), in_port=a.id))
    frames = numbered(1, 2, 1000)
    got: dict[int, list[bytes]] = {b.id: [], c.id: []}
    for start in range(0, 1000, 10):
        a.peer.send(frames[start : start + 10])
        target = (b, c)[start // 10 % 2]
        switch.install(flow(output(target.id), in_port=a.id))
        for port in (b, c):
            got[port.id] += port.peer.receive()
    assert switch.settle() == (1000, 0, 1000, 0, 0)
    for port in (b, c):
        got[port.id] += port.peer.receive()
        assert got[port.id] == sorted(got[port.id]), "frames of one flow were reordered"
    assert sorted(got[b.id] + got[c.id]) == frames


def test_a_deleted_flow_no_longer_matches(switch: Switch) -> None:
    a, b = switch.add_hosts(2)
    first, second = switch.install(flow(output(b.id), eth_dst=mac(2)), flow(output(b.id), eth_dst=mac(3)))
    assert switch.fp.flow_del([first, 0, 0xFFFF_FFFF_FFFF]) == 1
    assert switch.fp.flow_del([first]) == 0
    assert switch.fp.flow_lookup(key_of(numbered(1, 2, 1)[0], a.id)) == 0
    assert switch.fp.flow_stats([first])[0].packets == 0
    a.peer.send(numbered(1, 2, 1) + numbered(1, 3, 1))
    (upcall,) = switch.wait_upcalls(1)
    assert upcall.key.eth_dst == mac(2)
    switch.finish(upcall, [])
    switch.settle()
    assert switch.fp.flow_stats([second])[0].packets == 1
    assert len(b.peer.receive()) == 1


def test_deleting_and_adding_under_traffic(switch: Switch) -> None:
    """A flow that comes and goes: each frame is forwarded or sent up, and order holds."""
    a, b = switch.add_hosts(2, rx_ring=1024, tx_ring=1024)
    switch.fp.port_set_parked_max(a.id, 1000)
    switch.policy = lambda _: ((), output(b.id))
    frames = numbered(1, 2, 1000)
    for start in range(0, 1000, 20):
        a.peer.send(frames[start : start + 10])
        (flow_id,) = switch.install(flow(output(b.id), in_port=a.id))
        a.peer.send(frames[start + 10 : start + 20])
        switch.fp.flow_del([flow_id])
    assert switch.settle() == (1000, 0, 1000, 0, 0)
    assert b.peer.receive() == frames


def test_counters_are_of_each_flow(switch: Switch) -> None:
    a, b = switch.add_hosts(2)
    ids = switch.install(*(flow(output(b.id), eth_dst=mac(n)) for n in range(10)))
    a.peer.send([frame for n in range(10) for frame in numbered(1, n, n, size=100 + n)])
    switch.settle()
    stats = switch.fp.flow_stats(ids)
    assert [(s.packets, s.bytes) for s in stats] == [(n, n * (100 + n)) for n in range(10)]
    assert stats[0].last_used == 0


def test_the_packet_that_made_a_flow_counts_in_it(switch: Switch) -> None:
    a, b = switch.add_hosts(2)
    a.peer.send(numbered(1, 2, 1))
    (upcall,) = switch.wait_upcalls(1)
    (flow_id,) = switch.install(flow(output(b.id), in_port=a.id))
    switch.finish(upcall, output(b.id))
    switch.settle()
    assert switch.fp.flow_stats([flow_id])[0].packets == 1


def test_as_many_masks_as_there_may_be(switch: Switch) -> None:
    a, b = switch.add_hosts(2)
    bits = [Key(l4_src=1 << bit & 0xFFFF, l4_dst=1 << bit >> 16) for bit in range(MAX_MASKS)]
    ids = switch.install(*(Flow(bit, bit, ()) for bit in bits))
    assert len(set(ids)) == MAX_MASKS
    with pytest.raises(FastPathError, match=r"\S"):
        switch.fp.flow_add([flow(output(b.id), eth_dst=mac(2))])
    # A mask without flows makes room for another.
    switch.fp.flow_del(ids[:1])
    switch.install(flow(output(b.id), eth_dst=mac(2)))
    frame = frame_with(sport=0, dport=0)
    a.peer.send([frame])
    switch.settle()
    assert b.peer.receive() == [frame]


def test_many_flows(switch: Switch) -> None:
    """Enough for the table to grow many times; every one is found, and counts its own packets."""
    a, b = switch.add_hosts(2)
    total = 20_000
    macs = [number.to_bytes(6, "big") for number in range(0x0200_0000_0000, 0x0200_0000_0000 + total)]
    ids = switch.install(*(flow(output(b.id), in_port=a.id, eth_dst=address) for address in macs))
    assert len(set(ids)) == total
    template = numbered(1, 2, 1)[0]
    keys = [key_of(address + template[6:], a.id) for address in macs[::97]]
    assert [switch.fp.flow_lookup(key) for key in keys] == ids[::97]
    assert switch.fp.flow_del(ids[1::2]) == total // 2
    assert [switch.fp.flow_lookup(key) for key in keys] == [
        flow_id if number % 2 == 0 else 0 for number, flow_id in list(enumerate(ids))[::97]
    ]
    sent = [address + template[6:] for address in macs[:2000:2]]
    for start in range(0, len(sent), 100):
        a.peer.send(sent[start : start + 100])
        switch.settle()
        assert b.peer.receive() == sent[start : start + 100]
    assert all(stats.packets == 1 for stats in switch.fp.flow_stats(ids[:2000:2]))


def test_bad_actions_are_refused(switch: Switch) -> None:
    a, b = switch.add_hosts(2)
    for actions in ([drop(Drop.POLICY), *output(b.id)], output(0), output(5000), [drop(Drop.NONE)]):
        with pytest.raises(FastPathError):
            switch.fp.flow_add([flow(actions, in_port=a.id)])
    assert switch.fp.flow_lookup(key_of(numbered(1, 2, 1)[0], a.id)) == 0


def test_as_many_tags_as_fit_before_a_frame(switch: Switch) -> None:
    """More at a time would overrun the memory of the frame before it."""
    a, b, c = switch.add_hosts(3)
    pushes = [push(number) for number in range(16)]
    again = [action for number in range(40) for action in (POP, push(number))]
    for too_many in ([*pushes, push(16)], [*pushes, *output(c.id), push(16)], [POP, *pushes, push(16)]):
        with pytest.raises(FastPathError, match="Invalid argument"):
            switch.fp.flow_add([flow([*too_many, *output(b.id)], in_port=a.id)])
    switch.install(flow([*pushes, *again, *output(b.id)], in_port=a.id))
    frames = numbered(1, 2, 33)
    a.peer.send(frames)
    switch.settle()
    expected = frames
    for tag in (*range(15), 39):
        expected = [tagged(frame, tag) for frame in expected]
    assert b.peer.receive() == expected


def test_an_action_on_a_port_that_is_gone(switch: Switch) -> None:
    a, b, c = switch.add_hosts(3)
    switch.install(flow(output(b.id, c.id), in_port=a.id))
    switch.delete(b)
    frames = numbered(1, 2, 40)
    a.peer.send(frames)
    assert switch.settle() == (40, 40, 40, 40, 0)
    assert switch.drops(a) == {Drop.PORT_GONE: 40}
    assert c.peer.receive() == frames
