# SPDX-License-Identifier: Apache-2.0
"""Offload requests that are too large, or make no sense: refused and counted, whatever they are."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fastpath.frames import flow, output
from tests.fastpath.offloads import (
    ALL,
    GSO_ECN,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP,
    GUEST,
    HOST,
    ROOMY,
    STREAMS,
    Header,
    Stream,
    noise,
    receive,
    send,
)
from tests.fastpath.switch import Switch
from tests.frontend import Feature
from vswitch.slowpath.types import Drop

# ---- sizes -----------------------------------------------------------------------------


def test_the_mtu_is_held_against_segments(switch: Switch) -> None:
    a, b = switch.add("a", features=HOST, mtu=1500), switch.add("b", features=GUEST, **ROOMY)
    small = switch.add("small", features=GUEST, mtu=1000, **ROOMY)
    switch.install(flow(output(b.id, small.id), in_port=a.id))
    stream = Stream(noise(20000))
    for size in (1000 - 40 + 8, 1000 - 40 + 9, 1500 - 40 + 8, 1500 - 40 + 9):
        send(a, stream, stream.request(size))
    assert [header.gso_size for header, _ in receive(switch, b)] == [968, 969, 1468]
    assert [header.gso_size for header, _ in receive(switch, small)] == [968]
    assert switch.drops(a) == {Drop.OVERSIZE: 1}
    assert switch.drops(small) == {Drop.TX_OVERSIZE: 2}


def test_a_frame_of_one_segment_is_judged_whole(switch: Switch) -> None:
    a, b = switch.add_hosts(2, features=ALL)
    switch.install(flow(output(b.id), in_port=a.id))
    stream = Stream(noise(3000))
    send(a, stream, stream.request(65535))
    switch.settle()
    assert switch.drops(a) == {Drop.OVERSIZE: 1}


def test_more_than_64_kilobytes(switch: Switch) -> None:
    a, b = switch.add_hosts(2, features=ALL)
    switch.install(flow(output(b.id), in_port=a.id))
    frame = bytearray(Stream(noise(1000)).partial())
    frame[16:18] = bytes(2)
    a.peer.send([bytes(frame) + bytes(65000)], header=Stream(b"").request(1000).pack())
    switch.settle()
    assert switch.drops(a) == {Drop.OVERSIZE: 1}


def test_buffers_too_small_for_what_was_negotiated(switch: Switch) -> None:
    """Not mergeable and of 2 KB: the driver broke its word (5.1.6.3.1), the frame is dropped and counted."""
    a, b = switch.add("a", features=HOST), switch.add("b", features=GUEST, mergeable=False)
    switch.install(flow(output(b.id), in_port=a.id))
    stream, short = Stream(noise(5000)), Stream(noise(100))
    send(a, stream, stream.request(1000))
    send(a, short, short.request())
    assert receive(switch, b) == [(short.request(), short.partial())]
    assert switch.drops(b) == {Drop.TX_OVERSIZE: 1}


# ---- requests that make no sense -------------------------------------------------------------

TCP4, TCP6 = Stream(noise(3000)), Stream(noise(3000), v6=True)
GOOD = TCP4.request(1000)
HOSTILE: dict[str, tuple[Stream, Header]] = {
    "csum_start beyond the frame": (TCP4, GOOD._replace(csum_start=0xFFFF)),
    "csum_start in the Ethernet header": (TCP4, GOOD._replace(csum_start=0)),
    "csum_start in the IP header": (TCP4, GOOD._replace(csum_start=14)),
    "csum_start in the TCP header": (TCP4, GOOD._replace(csum_start=36)),
    "csum_offset beyond the frame": (TCP4, GOOD._replace(csum_offset=0xFFFF)),
    "csum_offset of ports": (TCP4, TCP4.request()._replace(csum_offset=0)),
    "csum_offset of UDP in TCP": (TCP4, TCP4.request()._replace(csum_offset=6)),
    "csum_offset of TCP in UDP": (Stream(noise(9), udp=True), Stream(b"", udp=True).request()._replace(csum_offset=16)),
    "gso_size 0": (TCP4, GOOD._replace(gso_size=0)),
    "gso_size 1": (TCP4, GOOD._replace(gso_size=1)),
    "gso_size 47": (TCP4, GOOD._replace(gso_size=47)),
    "gso_type unknown": (TCP4, GOOD._replace(gso_type=2)),
    "gso_type 127": (TCP4, GOOD._replace(gso_type=0x7F)),
    "UDP fragmentation": (Stream(noise(3000), udp=True), Stream(b"", udp=True).request()._replace(gso_type=GSO_UDP)),
    "USO": (Stream(noise(3000), udp=True), Stream(b"", udp=True).request()._replace(gso_type=5, gso_size=1000)),
    "TSO of UDP": (Stream(noise(3000), udp=True), GOOD._replace(csum_offset=6)),
    "TSO4 on IPv6": (TCP6, TCP6.request(1000)._replace(gso_type=GSO_TCPV4)),
    "TSO6 on IPv4": (TCP4, GOOD._replace(gso_type=GSO_TCPV6)),
    "ECN without TSO": (TCP4, GOOD._replace(gso_type=GSO_ECN)),
    "TSO without checksum": (TCP4, GOOD._replace(flags=0)),
}


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("deed", HOSTILE, ids=lambda deed: deed.replace(" ", "-"))
def test_bad_requests(switch: Switch, deed: str, packed: bool) -> None:
    """Each is dropped and counted; the queue goes on."""
    a, b = switch.add("a", features=HOST, packed=packed), switch.add("b", features=GUEST, mtu=9000, **ROOMY)
    switch.fp.port_set_mtu(a.id, 9000)
    switch.install(flow(output(b.id), in_port=a.id))
    stream, header = HOSTILE[deed]
    send(a, stream, header)
    send(a, TCP4, GOOD)
    assert receive(switch, b) == [(GOOD, TCP4.partial())]
    assert switch.drops(a) == {Drop.BAD_OFFLOAD: 1}


@pytest.mark.parametrize(
    ("features", "stream", "header"),
    [
        (Feature.CSUM, TCP4, GOOD),
        (Feature.CSUM | Feature.HOST_TSO6, TCP4, GOOD),
        (Feature.CSUM | Feature.HOST_TSO4, TCP6, TCP6.request(1000)),
        (Feature.CSUM | Feature.HOST_TSO4, TCP4, TCP4.request(1000, ecn=True)),
    ],
)
def test_what_was_not_negotiated_is_refused(switch: Switch, features: Feature, stream: Stream, header: Header) -> None:
    a, b = switch.add("a", features=features), switch.add("b", features=GUEST)
    switch.install(flow(output(b.id), in_port=a.id))
    send(a, stream, header)
    switch.settle()
    assert switch.drops(a) == {Drop.BAD_OFFLOAD: 1}


@pytest.mark.parametrize("more", [0x2000, 0x0001], ids=["first", "later"])
def test_no_request_for_a_fragment(switch: Switch, more: int) -> None:
    a, b = switch.add("a", features=HOST), switch.add("b", features=GUEST)
    switch.install(flow(output(b.id), in_port=a.id))
    stream = Stream(noise(100))
    frame = bytearray(stream.partial())
    struct.pack_into("!H", frame, 20, more)
    a.peer.send([bytes(frame)], header=stream.request().pack())
    switch.settle()
    assert switch.drops(a) == {Drop.BAD_OFFLOAD: 1}


def test_no_request_whatever_crashes(switch: Switch) -> None:
    """Random headers on good and bad frames: everything is counted, and every segment is within the MTU."""
    a = switch.add("a", features=HOST, tx_ring=512, segment=97)
    able, plain = switch.add("able", features=GUEST, **ROOMY), switch.add("plain", rx_ring=512, mergeable=False)
    switch.install(flow(output(able.id, plain.id), in_port=a.id))
    near = st.sampled_from([0, 6, 16, 34, 54, 48, 500, 1460, 3000])
    fields = st.tuples(
        st.sampled_from([0, 1, 1, 1, 2, 255]),
        st.sampled_from([0, 1, 4, 0x81, 3, 255]),
        *[near | st.integers(0, 65535)] * 4,
    )

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        stream=STREAMS,
        fields=fields,
        right=st.booleans(),
        cut=st.integers(0, 200),
        flips=st.lists(st.tuples(st.integers(14, 80), st.integers(0, 255)), max_size=3),
    )
    def check(stream: Stream, fields: tuple[int, ...], right: bool, cut: int, flips: list[tuple[int, int]]) -> None:
        header = Header(*fields)
        if right:
            header = header._replace(csum_start=stream.l4_at, csum_offset=16, flags=1)
        frame = bytearray(stream.partial())[: -cut or None]
        for at, value in flips:
            if at < len(frame):
                frame[at] = value
        a.peer.send([bytes(frame)], header=header.pack())
        switch.settle()
        assert all(len(got) <= 1522 for got in plain.peer.receive())
        able.peer.receive()

    check()
