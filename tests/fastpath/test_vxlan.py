# SPDX-License-Identifier: Apache-2.0
"""VXLAN against scapy's: packed, unpacked, refused. The underlay is a front-end, so each bit of it is seen."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from tests.fastpath.frames import drop, flow, mirror, numbered, output
from tests.fastpath.offloads import HOST, NEEDS_CSUM, NONE, ROOMY, Header, Stream, done, noise, receive, send
from tests.fastpath.switch import Attached, Switch
from vswitch.slowpath.fastpath import FastPathError
from vswitch.slowpath.types import Action, ActionType, Drop, PortConfig, PortState, PortType, Remote, Uplink

VNI = 0xABCDE
OURS = {4: "192.0.2.1", 6: "2001:db8::1"}
PEER = {4: "192.0.2.2", 6: "2001:db8::2"}
OUR_MAC, HOP_MAC = "02:00:00:00:aa:01", "02:00:00:00:aa:02"
REMOTE = {4: 4, 6: 6}


def raw_mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def set_tunnel(remote: int) -> Action:
    return Action(ActionType.SET_TUNNEL, remote)


class Overlay:
    """A host, an uplink, a network with peers over IPv4 and IPv6, and a flow from and to the host."""

    def __init__(self, switch: Switch) -> None:
        self.switch = switch
        self.host = switch.add("host", mtu=9000, rx_ring=512, tx_ring=512)
        self.uplink = switch.add("uplink", mtu=9000, rx_ring=512, tx_ring=512, features=HOST)
        self.port = self.network("net", VNI)
        switch.fp.uplink_set(self.uplink.id, Uplink(ip_address(OURS[4]).packed, ip_address(OURS[6]).packed))
        for family, number in REMOTE.items():
            switch.fp.remote_set(number, self.remote(family))

    def network(self, name: str, vni: int) -> Attached:
        return self.switch.add_config(PortConfig(name, PortType.VXLAN, vni=vni, mtu=9000))

    def remote(self, family: int, **changes: Any) -> Remote:
        values: dict[str, Any] = {
            "uplink": self.uplink.id,
            "local_ip": ip_address(OURS[family]).packed,
            "remote_ip": ip_address(PEER[family]).packed,
            "local_mac": raw_mac(OUR_MAC),
            "next_hop_mac": raw_mac(HOP_MAC),
            "checksum": family == 6,
        }
        return Remote(**(values | changes))

    def send(self, *frames: bytes) -> list[Packet]:
        """Sends from the host; returns what came out of the uplink."""
        self.host.peer.send(list(frames))
        self.switch.settle()
        return [Ether(frame) for frame in self.uplink.peer.receive()]

    def arrive(self, *frames: Packet | bytes) -> list[bytes]:
        """Sends from the underlay; returns what came to the host."""
        self.uplink.peer.send([bytes(frame) for frame in frames])
        self.switch.settle()
        return self.host.peer.receive()

    def close(self) -> None:
        for number in REMOTE.values():
            self.switch.fp.remote_set(number, None)
        self.switch.fp.uplink_set(self.uplink.id, Uplink())


@pytest.fixture
def overlay(switch: Switch) -> Any:
    overlay = Overlay(switch)
    yield overlay
    overlay.close()


def outer(family: int, vni: int = VNI, tos: int = 0, **udp: Any) -> Packet:
    """The outer headers of a frame from the peer to us."""
    ether = Ether(src=HOP_MAC, dst=OUR_MAC)
    ports: dict[str, Any] = {"sport": 50000, "dport": 4789, "chksum": 0} | udp
    ip = IP(src=PEER[4], dst=OURS[4], tos=tos, flags="DF") if family == 4 else IPv6(src=PEER[6], dst=OURS[6], tc=tos)
    return ether / ip / UDP(**ports) / VXLAN(vni=vni, flags="Instance")


def ip_of(frame: Packet) -> Packet:
    return frame.payload


def test_a_network_port_tells_what_it_is(switch: Switch, overlay: Overlay) -> None:
    info = switch.fp.port_info(overlay.port.id)
    assert (info.driver, info.state, info.reason) == ("vxlan", PortState.READY, f"VNI {VNI}")


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("burst", [1, 32, 33, 257])
def test_unpacked(switch: Switch, overlay: Overlay, family: int, burst: int) -> None:
    switch.install(flow(output(overlay.host.id), in_port=overlay.port.id))
    frames = numbered(2, 1, burst, size=1400)
    assert overlay.arrive(*(outer(family) / frame for frame in frames)) == frames
    stats = switch.fp.port_stats(overlay.port.id)
    assert (stats.rx_packets, stats.rx_bytes) == (burst, sum(map(len, frames)))
    assert switch.fp.port_stats(overlay.uplink.id).decapsulated == burst


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("size", [60, 1400, 8000])
def test_packed(switch: Switch, overlay: Overlay, family: int, size: int) -> None:
    switch.install(flow((set_tunnel(REMOTE[family]), *output(overlay.port.id)), in_port=overlay.host.id))
    frames = numbered(1, 2, 33, size=size)
    sent = overlay.send(*frames)
    assert [bytes(frame[VXLAN].payload) for frame in sent] == frames
    for packed in sent:
        again = outer(family)
        again.src, again.dst = OUR_MAC, HOP_MAC
        ip_of(again).src, ip_of(again).dst = OURS[family], PEER[family]
        again[UDP].sport = packed[UDP].sport
        if family == 4:
            again[IP].id = 0
        else:
            del again[UDP].chksum  # scapy then works it out
        again = again / bytes(packed[VXLAN].payload)
        assert bytes(packed) == bytes(again)
    stats = switch.fp.port_stats(overlay.port.id)
    assert (stats.tx_packets, stats.tx_bytes) == (33, sum(map(len, frames)))
    assert switch.fp.port_stats(overlay.uplink.id).encapsulated == 33


def test_source_port_is_the_flows(switch: Switch, overlay: Overlay) -> None:
    """RFC 7348 section 5: a hash of the inner headers, within the dynamic range; one flow keeps its own."""
    switch.install(flow((set_tunnel(4), *output(overlay.port.id)), in_port=overlay.host.id))
    flows = [Ether(src="02::1") / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=n, dport=9) for n in range(1000, 1064)]
    first = [packed[UDP].sport for packed in overlay.send(*map(bytes, flows))]
    second = [packed[UDP].sport for packed in overlay.send(*map(bytes, flows))]
    assert first == second
    assert all(49152 <= port <= 65535 for port in first)
    assert len(set(first)) > 48


# RFC 6040 figure 4: (inner, outer) → inner afterwards, None: dropped. Not-ECT 0, ECT(1) 1, ECT(0) 2, CE 3.
ECN = {
    (0, 0): 0, (0, 1): 0, (0, 2): 0, (0, 3): None,
    (1, 0): 1, (1, 1): 1, (1, 2): 1, (1, 3): 3,
    (2, 0): 2, (2, 1): 1, (2, 2): 2, (2, 3): 3,
    (3, 0): 3, (3, 1): 3, (3, 2): 3, (3, 3): 3,
}  # fmt: skip


@pytest.mark.parametrize("outside", [4, 6])
@pytest.mark.parametrize("inside", ["IPv4", "IPv6", "IPv4 in a VLAN"])
def test_congestion_marks(switch: Switch, overlay: Overlay, outside: int, inside: str) -> None:
    switch.install(flow(output(overlay.host.id), in_port=overlay.port.id))
    switch.install(flow((set_tunnel(REMOTE[outside]), *output(overlay.port.id)), in_port=overlay.host.id))

    def frame(tos: int) -> bytes:
        ether = Ether(src="02::2", dst="02::1")
        if inside == "IPv6":
            return bytes(ether / IPv6(src="fd00::2", dst="fd00::1", tc=tos, fl=0x12345) / UDP() / Raw(b"x" * 40))
        if inside == "IPv4 in a VLAN":
            ether /= Dot1Q(vlan=7)
        return bytes(ether / IP(src="10.0.0.2", dst="10.0.0.1", tos=tos) / UDP() / Raw(b"x" * 40))

    dscp = 0x2E << 2
    for (inner, mark), after in ECN.items():
        got = overlay.arrive(outer(outside, tos=mark) / frame(dscp | inner))
        assert got == ([] if after is None else [frame(dscp | after)]), (inner, mark)
    assert switch.drops(overlay.uplink) == {Drop.TUNNEL_ECN: 1}
    for mark in range(4):
        (packed,) = overlay.send(frame(dscp | mark))
        ip = ip_of(packed)
        assert (ip.tc if outside == 6 else ip.tos) == mark  # section 4.1, normal mode; DSCP stays inside


def test_other_frames_are_left_to_the_flows(switch: Switch, overlay: Overlay) -> None:
    """What an uplink receives that is not for its tunnel end misses or hits the table as on any port."""
    switch.install(flow((drop(Drop.NOT_TUNNEL),), in_port=overlay.uplink.id))
    inner = numbered(2, 1, 1)[0]
    others = [
        Ether(src=HOP_MAC) / ARP(),
        Ether(src=HOP_MAC, dst=OUR_MAC) / IP(src=PEER[4], dst="192.0.2.9") / UDP(dport=4789) / VXLAN(vni=VNI) / inner,
        Ether(src=HOP_MAC, dst=OUR_MAC) / IP(src=PEER[4], dst=OURS[4]) / UDP(dport=4788) / Raw(b"x" * 30),
        Ether(src=HOP_MAC, dst=OUR_MAC) / IP(src=PEER[4], dst=OURS[4]) / TCP(dport=4789),
        Ether(src=HOP_MAC, dst=OUR_MAC) / IPv6(src=PEER[6], dst=OURS[6]) / TCP(dport=4789),
        Ether(src=HOP_MAC, dst=OUR_MAC)
        / IP(src=PEER[4], dst=OURS[4], flags="MF")
        / UDP(dport=4789, len=8)
        / VXLAN(vni=VNI)
        / inner,
    ]
    assert not overlay.arrive(*others)
    dropped = switch.drops(overlay.uplink)
    assert dropped[Drop.NOT_TUNNEL] >= 5 and sum(dropped.values()) == 6
    assert switch.fp.port_stats(overlay.uplink.id).decapsulated == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p[VXLAN].setfieldval("flags", 0), Drop.TUNNEL_MALFORMED),
        (lambda p: p[VXLAN].fields.update(flags=0, vni=0), Drop.RDMA_EPOCH),  # a barrier of nobody's
        (lambda p: p[UDP].setfieldval("len", 15), Drop.TUNNEL_MALFORMED),
        (lambda p: p[UDP].setfieldval("len", 29), Drop.TUNNEL_MALFORMED),
        (lambda p: p[UDP].setfieldval("len", 3000), Drop.TUNNEL_MALFORMED),
        (lambda p: p[VXLAN].setfieldval("vni", 7), Drop.TUNNEL_VNI),
        (lambda p: ip_of(p).setfieldval("src", "192.0.2.77" if p.type == 0x0800 else "2001:db8::77"), Drop.TUNNEL_PEER),
    ],
)
@pytest.mark.parametrize("family", [4, 6])
def test_refused(switch: Switch, overlay: Overlay, family: int, change: Any, reason: Drop) -> None:
    switch.install(flow(output(overlay.host.id), in_port=overlay.port.id))
    good = outer(family) / Ether(numbered(2, 1, 1)[0])
    bad = good.copy()
    # an inner Ethernet of scapy's would share the layer names that `change` looks for
    bad[VXLAN].remove_payload()
    change(bad)
    bad = bad / numbered(2, 1, 1)[0]
    assert overlay.arrive(bad, good) == numbered(2, 1, 1)
    assert switch.drops(overlay.uplink) == {reason: 1}


def test_padding_behind_the_datagram_is_not_passed_on(switch: Switch, overlay: Overlay) -> None:
    switch.install(flow(output(overlay.host.id), in_port=overlay.port.id))
    frames = numbered(2, 1, 2)
    assert overlay.arrive(*(bytes(outer(4) / frame) + bytes(9) for frame in frames)) == frames


@pytest.mark.parametrize("family", [4, 6])
def test_offloads_are_done_before_packing(switch: Switch, overlay: Overlay, family: int) -> None:
    """A length check, too, is about the segments."""
    able, plain = switch.add("able", features=HOST), switch.add("plain", **ROOMY)
    check = Action(ActionType.CHECK_LEN, 1454)
    actions = [check, set_tunnel(REMOTE[family]), *output(overlay.port.id, plain.id)]
    switch.install(flow(actions, in_port=able.id))
    for stream, size in ((Stream(noise(50000)), 1400), (Stream(noise(999), udp=True), 0)):
        frames = stream.segments(size) if size else [stream.complete()]
        send(able, stream, stream.request(size))
        assert receive(switch, plain) == done(plain, frames)
        packed = [Ether(frame) for frame in overlay.uplink.peer.receive()]
        assert [bytes(frame[VXLAN].payload) for frame in packed] == frames
    send(able, Stream(noise(50000)), Stream(b"").request(1401))
    switch.settle(parked=1)
    (upcall,) = switch.wait_upcalls(1)
    switch.finish(upcall, [])


def test_a_request_about_the_outer_headers_ends_with_them(switch: Switch, overlay: Overlay) -> None:
    switch.install(flow(output(overlay.host.id), in_port=overlay.port.id))
    (frame,) = numbered(2, 1, 1, size=1000)
    overlay.uplink.peer.send([bytes(outer(4) / frame)], header=Header(NEEDS_CSUM, 0, 0, 0, 34, 6).pack())
    assert receive(switch, overlay.host) == [(NONE, frame)]


def test_networks_are_apart(switch: Switch, overlay: Overlay) -> None:
    """Frames of several VNIs in one burst come out of their own ports, each in its order."""
    other = overlay.network("other", 7)
    peer = switch.add("peer", rx_ring=512)
    switch.install(flow(output(overlay.host.id), in_port=overlay.port.id), flow(output(peer.id), in_port=other.id))
    frames = numbered(2, 1, 64)
    got = overlay.arrive(*(outer(4, vni=7 if n % 3 else VNI) / frame for n, frame in enumerate(frames)))
    assert got == [frame for n, frame in enumerate(frames) if n % 3 == 0]
    assert peer.peer.receive() == [frame for n, frame in enumerate(frames) if n % 3]
    with pytest.raises(FastPathError, match="VNI 7 is that of another port"):
        overlay.network("twice", 7)
    switch.delete(other)
    assert not overlay.arrive(outer(4, vni=7) / frames[0])
    assert switch.drops(overlay.uplink) == {Drop.TUNNEL_VNI: 1}


def test_copies_do_not_share_their_headers(switch: Switch, overlay: Overlay) -> None:
    """One frame to two tunnel ends, a mirror and a port of this host."""
    tap, local = switch.add("tap", rx_ring=512), switch.add("local", rx_ring=512)
    actions = (
        mirror(tap.id),
        set_tunnel(4),
        *output(overlay.port.id),
        set_tunnel(6),
        *output(overlay.port.id, local.id),
    )
    switch.install(flow(actions, in_port=overlay.host.id))
    frames = numbered(1, 2, 40)
    sent = overlay.send(*frames)
    assert [bytes(packed[VXLAN].payload) for packed in sent if packed.type == 0x0800] == frames
    assert [bytes(packed[VXLAN].payload) for packed in sent if packed.type == 0x86DD] == frames
    assert tap.peer.receive() == frames
    assert local.peer.receive() == frames


def test_no_way_to_the_tunnel_end(switch: Switch, overlay: Overlay) -> None:
    switch.install(flow((set_tunnel(4), *output(overlay.port.id)), in_port=overlay.host.id))
    switch.fp.remote_set(4, overlay.remote(4, next_hop_mac=b""))
    assert overlay.send(*numbered(1, 2, 3)) == []
    switch.fp.remote_set(4, None)
    assert overlay.send(*numbered(1, 2, 3)) == []
    assert switch.drops(overlay.port) == {Drop.TUNNEL_DOWN: 6}
    switch.fp.remote_set(4, overlay.remote(4))
    assert len(overlay.send(*numbered(1, 2, 3))) == 3


def test_a_peer_counts_as_long_as_one_remote_has_its_address(switch: Switch, overlay: Overlay) -> None:
    switch.install(flow(output(overlay.host.id), in_port=overlay.port.id))
    frame = outer(4) / numbered(2, 1, 1)[0]
    switch.fp.remote_set(9, overlay.remote(4))
    switch.fp.remote_set(4, None)
    assert len(overlay.arrive(frame)) == 1
    switch.fp.remote_set(9, None)
    assert overlay.arrive(frame) == []
    assert switch.drops(overlay.uplink) == {Drop.TUNNEL_PEER: 1}


def test_too_long_frames_go_up(switch: Switch, overlay: Overlay) -> None:
    """CHECK_LEN sends nothing of a frame that is too long, not even to mirrors."""
    tap = switch.add("tap", rx_ring=512)
    check = Action(ActionType.CHECK_LEN, 1000)
    actions = (mirror(tap.id), check, set_tunnel(4), *output(overlay.port.id))
    switch.install(flow(actions, in_port=overlay.host.id))
    fits, too_long = numbered(1, 2, 1, size=1000), numbered(1, 3, 1, size=1001)
    overlay.host.peer.send(too_long + fits)
    (upcall,) = switch.wait_upcalls(1)
    assert upcall.frame_len == 1001
    switch.finish(upcall, [drop(Drop.TUNNEL_MTU)])
    switch.settle()
    assert [bytes(Ether(frame)[VXLAN].payload) for frame in overlay.uplink.peer.receive()] == fits
    assert tap.peer.receive() == fits
    assert switch.drops(overlay.host) == {Drop.TUNNEL_MTU: 1}


def test_frames_of_the_slow_path(switch: Switch) -> None:
    a, b = switch.add_hosts(2)
    frames = numbered(1, 2, 5, size=900)
    for frame in frames:
        switch.fp.packet_out(b.id, frame)
    switch.wait(lambda: switch.sent(b) == 5, lambda: "the frames to be sent")
    assert b.peer.receive() == frames
    switch.assert_silent([a])
    with pytest.raises(FastPathError, match="no frame can be sent to port 77"):
        switch.fp.packet_out(77, frames[0])
    with pytest.raises(FastPathError):
        switch.fp.packet_out(b.id, b"short")


def test_damaged_frames_meet_a_fate(switch: Switch, overlay: Overlay) -> None:
    """Whatever is cut off or changed: each frame is counted once (settle checks the law)."""
    switch.install(flow(output(overlay.host.id), in_port=overlay.port.id))
    switch.install(flow((drop(Drop.NOT_TUNNEL),), in_port=overlay.uplink.id))
    flips = st.lists(st.tuples(st.integers(0, 89), st.integers(1, 255)), max_size=4)

    @settings(max_examples=200, deadline=None)
    @given(cut=st.integers(0, 130), flips=flips, family=st.sampled_from([4, 6]))
    def damage(cut: int, flips: list[tuple[int, int]], family: int) -> None:
        frame = bytearray(bytes(outer(family) / numbered(2, 1, 1)[0]))
        for at, change in flips:
            frame[at] ^= change
        overlay.arrive(bytes(frame[: max(1, len(frame) - cut)]))

    damage()
