# SPDX-License-Identifier: Apache-2.0
"""Checksum and segmentation offload: passed through, done in software, refused."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.utils import PcapReader

from tests.fastpath.frames import POP, flow, mirror, output, push, tagged
from tests.fastpath.offloads import (
    ACK,
    ALL,
    CWR,
    DATA_VALID,
    GUEST,
    HOST,
    NONE,
    PSH,
    ROOMY,
    STREAMS,
    Header,
    Stream,
    done,
    noise,
    receive,
    send,
)
from tests.fastpath.switch import Switch
from tests.frontend import Feature, FrontEnd, FrontEndError
from vswitch.slowpath.fastpath import TAP_RX, TAP_TX
from vswitch.slowpath.types import Drop, PortConfig

BIG = 64000
RINGS: dict[str, dict[str, Any]] = {
    "split": {},
    "packed": {"packed": True},
    "indirect": {"indirect": True},
    "packed-indirect": {"packed": True, "indirect": True},
}


@pytest.fixture(params=[False, True], ids=["v4", "v6"])
def v6(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


# ---- what is offered ---------------------------------------------------------------


def test_what_is_offered(switch: Switch) -> None:
    port = switch.add("a", features=ALL)
    assert Feature(switch.fp.port_info(port.id).features) & ALL == ALL


@pytest.mark.parametrize("feature", [Feature.HOST_UFO, Feature.GUEST_UFO, Feature.GSO])
def test_what_is_not_offered(switch: Switch, feature: Feature) -> None:
    path = switch.run_dir / "a"
    with FrontEnd(path, features=ALL | feature) as front:
        switch.add_config(PortConfig("a", socket=str(path)))
        with pytest.raises(FrontEndError, match="does not offer"):
            front.connect()


# ---- both ends can -----------------------------------------------------------------


@pytest.mark.parametrize("mergeable", [True, False], ids=["mergeable", "big-buffers"])
@pytest.mark.parametrize("ring", RINGS)
def test_requests_pass_both_ways(switch: Switch, ring: str, mergeable: bool) -> None:
    options = RINGS[ring] | ROOMY | {"mergeable": mergeable, "features": ALL, "rx_buffer": 2048 if mergeable else 66000}
    if not mergeable:
        options |= {"rx_ring": 256}
    a, b = switch.add_hosts(2, **options)
    switch.install(flow(output(b.id), in_port=a.id), flow(output(a.id), in_port=b.id))
    requests = [
        (Stream(noise(BIG)), 1448, False),
        (Stream(noise(BIG), v6=True, tags=(7,)), 1440, True),
        (Stream(noise(1000), udp=True), 0, False),
        (Stream(noise(1000), v6=True), 0, False),
        (Stream(noise(0), tags=(1, 2)), 0, False),
    ]
    for sender, receiver in ((a, b), (b, a)):
        for stream, size, ecn in requests:
            header = stream.request(size, ecn)
            # what the sender says of its headers' length is for nobody to trust
            for told in (0, header.hdr_len, 0xFFFF):
                send(sender, stream, header._replace(hdr_len=told))
                assert receive(switch, receiver) == [(header, stream.partial())]
    assert switch.fates().replicated == 0


def test_a_plain_header_stays_plain(switch: Switch) -> None:
    """Also with bits that are a device's to set, and fields that mean nothing without a request."""
    a, b = switch.add_hosts(2, features=ALL)
    switch.install(flow(output(b.id), in_port=a.id))
    stream = Stream(noise(100))
    for header in (NONE, Header(DATA_VALID), Header(0, 0, 9, 9, 9, 9), Header(4)):
        a.peer.send([stream.complete()], header=header.pack())
        assert receive(switch, b) == [(NONE, stream.complete())]


def test_a_header_means_nothing_without_the_features(switch: Switch) -> None:
    a, b = switch.add("a"), switch.add("b", features=ALL)
    switch.install(flow(output(b.id), in_port=a.id))
    stream = Stream(noise(100))
    a.peer.send([stream.complete()], header=b"\xff" * 10 + bytes(2))
    assert receive(switch, b) == [(NONE, stream.complete())]


# ---- software ----------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True], ids=["modern", "legacy"])
@pytest.mark.parametrize("udp", [False, True], ids=["tcp", "udp"])
def test_checksums(switch: Switch, v6: bool, udp: bool, legacy: bool) -> None:
    a = switch.add("a", features=HOST, mergeable=not legacy, modern=not legacy, tx_ring=256)
    b = switch.add("b", mergeable=not legacy, modern=not legacy, **ROOMY)
    switch.install(flow(output(b.id), in_port=a.id))
    for stream in [
        *(Stream(noise(size, size), v6, udp) for size in (0, 1, 2, 77, 78, 79, 500, 1441)),
        Stream(noise(99), v6, udp, tags=(5,)),
        Stream(noise(99), v6, udp, tags=(5, 6)),
        Stream(noise(333), v6, udp, extension=v6),
    ]:
        send(a, stream, stream.request())
        assert receive(switch, b) == [(NONE, stream.complete())]


def test_padding_is_no_part_of_a_checksum(switch: Switch, v6: bool) -> None:
    a, b = switch.add("a", features=HOST), switch.add("b")
    switch.install(flow(output(b.id), in_port=a.id))
    stream = Stream(b"x", v6, udp=True)
    a.peer.send([stream.partial() + b"padding"], header=stream.request().pack())
    assert receive(switch, b) == [(NONE, stream.complete() + b"padding")]


def test_a_udp_checksum_of_zero_is_sent_as_ones(switch: Switch) -> None:
    a, b = switch.add("a", features=HOST), switch.add("b")
    switch.install(flow(output(b.id), in_port=a.id))
    plain = Stream(bytes(2), udp=True).complete()
    (checksum,) = struct.unpack_from("!H", plain, Stream(bytes(2), udp=True).checksum_at)
    stream = Stream(struct.pack("!H", checksum), udp=True)
    send(a, stream, stream.request())
    ((_, frame),) = receive(switch, b)
    assert frame[stream.checksum_at : stream.checksum_at + 2] == b"\xff\xff"
    assert frame == stream.complete()


def test_a_burst_of_all_kinds_keeps_its_order(switch: Switch) -> None:
    a, b = switch.add("a", features=HOST, tx_ring=1024), switch.add("b", **ROOMY)
    switch.install(flow(output(b.id), in_port=a.id))
    expected = []
    tx = a.peer.tx[0]
    for number in range(20):
        stream = Stream(noise(200 + number, number), udp=number % 2 == 0)
        big = Stream(noise(3000 + number, number), ip_id=number)
        tx.put([stream.complete()])
        tx.put([stream.partial()], stream.request().pack())
        tx.put([big.partial()], big.request(1000).pack())
        expected += [stream.complete(), stream.complete(), *big.segments(1000)]
    a.peer.kick()
    assert receive(switch, b) == done(b, expected)


SIZES = st.integers(48, 1448)


@pytest.mark.parametrize("segment", [61, 2048])
def test_segments(switch: Switch, segment: int) -> None:
    """Any frame, in whatever pieces it lies, becomes the segments that the reference cuts."""
    a = switch.add("a", features=HOST, tx_ring=512, segment=segment)
    b = switch.add("b", **ROOMY)
    switch.install(flow(output(b.id), in_port=a.id))

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(stream=STREAMS, size=SIZES)
    def check(stream: Stream, size: int) -> None:
        send(a, stream, stream.request(size))
        expected = stream.segments(size) or [stream.complete()]
        assert receive(switch, b) == done(b, expected)

    check()
    assert not switch.drops(a)
    assert not switch.drops(b)


def test_64_kilobytes(switch: Switch, v6: bool) -> None:
    a, b = switch.add("a", features=HOST), switch.add("b", **ROOMY)
    switch.install(flow(output(b.id), in_port=a.id))
    stream = Stream(noise(65535 - 60), v6)
    send(a, stream, stream.request(1400))
    assert receive(switch, b) == done(b, stream.segments(1400))
    fates = switch.fates()
    assert (fates.received, fates.replicated, fates.sent) == (1, 46, 47)


def test_an_ip_length_of_zero(switch: Switch, v6: bool) -> None:
    """Longer than the field can say: it means the rest of the frame."""
    a, b = switch.add("a", features=HOST), switch.add("b", **ROOMY)
    switch.install(flow(output(b.id), in_port=a.id))
    stream = Stream(noise(5000), v6)
    frame = bytearray(stream.partial())
    frame[18:20] = bytes(2)
    if not v6:
        frame[16:18] = frame[18:20]
        frame[18:20] = struct.pack("!H", stream.ip_id)
    a.peer.send([bytes(frame)], header=stream.request(1000).pack())
    assert receive(switch, b) == done(b, stream.segments(1000))


@pytest.mark.parametrize(
    ("features", "v6", "ecn", "passes"),
    [
        (Feature.GUEST_CSUM, False, False, False),
        (Feature.GUEST_CSUM | Feature.GUEST_TSO4, False, False, True),
        (Feature.GUEST_CSUM | Feature.GUEST_TSO4, True, False, False),
        (Feature.GUEST_CSUM | Feature.GUEST_TSO6, True, False, True),
        (Feature.GUEST_CSUM | Feature.GUEST_TSO4, False, True, False),
        (Feature.GUEST_CSUM | Feature.GUEST_TSO4 | Feature.GUEST_ECN, False, True, True),
        (Feature.GUEST_TSO4, False, False, False),
    ],
)
def test_a_receiver_with_some_of_it(switch: Switch, features: Feature, v6: bool, ecn: bool, passes: bool) -> None:
    a, b = switch.add("a", features=HOST), switch.add("b", features=features, **ROOMY)
    switch.install(flow(output(b.id), in_port=a.id))
    stream = Stream(noise(10000), v6, flags=ACK | CWR)
    header = stream.request(1400, ecn)
    send(a, stream, header)
    assert receive(switch, b) == ([(header, stream.partial())] if passes else done(b, stream.segments(1400)))


def test_one_segment_is_no_segmentation(switch: Switch) -> None:
    """As Linux takes it: such a frame only lacks its checksum."""
    a, b = switch.add_hosts(2, features=ALL)
    switch.install(flow(output(b.id), in_port=a.id))
    for size in (100, 1000, 65535):
        stream = Stream(noise(100))
        send(a, stream, stream.request(size))
        assert receive(switch, b) == [(stream.request(), stream.partial())]


def test_a_full_ring_in_the_midst_of_a_frame(switch: Switch) -> None:
    a, b = switch.add("a", features=HOST), switch.add("b", rx_ring=16)
    switch.install(flow(output(b.id), in_port=a.id))
    stream = Stream(noise(50000))
    send(a, stream, stream.request(500))
    assert receive(switch, b) == done(b, stream.segments(500)[:16])
    assert switch.drops(b) == {Drop.RING_FULL: 84}
    assert switch.fates().replicated == 99


def test_segments_are_spread_by_flow(switch: Switch) -> None:
    a, b = switch.add("a", features=HOST), switch.add("b", queues=4, **ROOMY)
    switch.install(flow(output(b.id), in_port=a.id))
    stream = Stream(noise(20000))
    send(a, stream, stream.request(1000))
    switch.settle()
    queues = [b.peer.receive(queue) for queue in range(4)]
    assert sorted(queues) == [[], [], [], stream.segments(1000)]


# ---- what happens to a frame on its way ------------------------------------------------


@pytest.mark.parametrize("size", [0, 1000], ids=["checksum", "segmentation"])
def test_vlan_actions(switch: Switch, size: int) -> None:
    """One frame, tagged and untagged, to ends that can and ends that cannot."""
    a = switch.add("a", features=HOST)
    able = [switch.add(f"able{number}", features=GUEST, **ROOMY) for number in range(3)]
    plain = [switch.add(f"plain{number}", **ROOMY) for number in range(3)]
    as_sent, pushed, popped = ([x.id, y.id] for x, y in zip(able, plain, strict=True))
    actions = [*output(*as_sent), push(5), *output(*pushed), POP, POP, *output(*popped)]
    switch.install(flow(actions, in_port=a.id))
    stream = Stream(noise(1400 if not size else 20000), tags=(9,))
    send(a, stream, stream.request(size))
    switch.settle()
    for index, tags in enumerate([(9,), (5, 9), ()]):
        sent = replace(stream, tags=tags)
        assert receive(switch, able[index]) == [(sent.request(size), sent.partial())]
        expected = sent.segments(size) if size else [sent.complete()]
        assert receive(switch, plain[index]) == done(plain[index], expected)


def test_a_third_tag(switch: Switch) -> None:
    """A tag that the parser would not look behind."""
    a, b, c = switch.add("a", features=HOST), switch.add("b", features=GUEST), switch.add("c", **ROOMY)
    switch.install(flow([push(3, 0x1234), *output(b.id, c.id)], in_port=a.id))
    stream = Stream(noise(3000), tags=(1, 2))
    send(a, stream, stream.request(1000))
    header = stream.request(1000)
    header = header._replace(hdr_len=header.hdr_len + 4, csum_start=header.csum_start + 4)
    assert receive(switch, b) == [(header, tagged(stream.partial(), 3, 0x1234))]
    assert receive(switch, c) == done(c, [tagged(frame, 3, 0x1234) for frame in stream.segments(1000)])


def test_mirror_and_flood(switch: Switch) -> None:
    a, b, c, d = (
        switch.add(name, features=features, **ROOMY) for name, features in zip("abcd", (HOST, GUEST, 0, 0), strict=True)
    )
    switch.install(flow([*output(c.id, b.id), push(1), *output(d.id), mirror(d.id)], in_port=a.id))
    stream = Stream(noise(30000), v6=True)
    send(a, stream, stream.request(1300))
    assert receive(switch, b) == [(stream.request(1300), stream.partial())]
    assert receive(switch, c) == done(c, stream.segments(1300))
    assert receive(switch, d) == done(d, [*stream.segments(1300), *replace(stream, tags=(1,)).segments(1300)])


def test_a_parked_frame_keeps_its_request(switch: Switch) -> None:
    a = switch.add("a", features=HOST)
    b, c = switch.add("b", features=GUEST, **ROOMY), switch.add("c", **ROOMY)
    stream, short = Stream(noise(BIG)), Stream(noise(50), udp=True)
    send(a, stream, stream.request(1400))
    send(a, short, short.request())
    switch.settle(parked=2)
    (upcall,) = switch.wait_upcalls(1)
    assert upcall.frame_len == len(stream.partial())
    both = [*output(c.id), push(8), *output(b.id)]
    switch.install(flow(both, in_port=a.id))
    switch.finish(upcall, both)
    switch.settle()
    sent = [replace(stream, tags=(8,)), replace(short, tags=(8,))]
    assert receive(switch, b) == [(sent[0].request(1400), sent[0].partial()), (sent[1].request(), sent[1].partial())]
    assert receive(switch, c) == done(c, [*stream.segments(1400), short.complete()])


def test_headers_beyond_the_private_head(switch: Switch) -> None:
    a, b, c = switch.add("a", features=HOST), switch.add("b", features=GUEST, **ROOMY), switch.add("c", **ROOMY)
    switch.install(flow(output(b.id, c.id), in_port=a.id))
    stream = Stream(noise(9000), v6=True, extension=True, tags=(1, 2), options=bytes(40))
    assert stream.headers > 128
    send(a, stream, stream.request(1000))
    assert receive(switch, b) == [(stream.request(1000), stream.partial())]
    assert receive(switch, c) == done(c, stream.segments(1000))


def test_a_capture_shows_what_was_sent_and_received(switch: Switch) -> None:
    a, b = switch.add("a", features=HOST), switch.add("b", **ROOMY)
    switch.install(flow(output(b.id), in_port=a.id))
    switch.fp.tap_set(a.id, TAP_RX, 65600)
    switch.fp.tap_set(b.id, TAP_TX, 65600)
    stream = Stream(noise(5000))
    send(a, stream, stream.request(1000))
    switch.settle()
    records = [record.frame for record in switch.fp.taps()]
    assert records == [stream.partial(), *stream.segments(1000)]


# ---- other kinds of ports ----------------------------------------------------------------------


def test_into_a_pcap_file(switch: Switch, tmp_path: Path) -> None:
    a = switch.add("a", features=HOST)
    port = switch.add_pmd("file", f"net_pcap0,tx_pcap={tmp_path}/out.pcap")
    switch.install(flow(output(port.id), in_port=a.id))
    streams = [Stream(noise(BIG), flags=ACK | PSH), Stream(noise(9999), v6=True, tags=(4,))]
    short = Stream(noise(1001), udp=True)
    for stream in streams:
        send(a, stream, stream.request(1440))
    send(a, short, short.request())
    switch.settle()
    switch.delete(port)
    with PcapReader(str(tmp_path / "out.pcap")) as reader:
        frames = [bytes(packet) for packet in reader]
    assert frames == [*streams[0].segments(1440), *streams[1].segments(1440), short.complete()]


def test_a_device_that_can(switch: Switch, tmp_path: Path) -> None:
    """virtio-user has the offloads: connected to another port of the switch, it hands requests on."""
    a, b = switch.add("a", features=HOST), switch.add("b", features=GUEST, **ROOMY)
    back = switch.add_config(PortConfig("back", socket=str(tmp_path / "back"), role="server"))
    device = switch.add_pmd("device", f"net_virtio_user0,path={tmp_path}/back,queue_size=1024")
    switch.install(flow(output(device.id), in_port=a.id), flow(output(b.id), in_port=back.id))
    for stream, size in [
        (Stream(noise(BIG)), 1448),
        (Stream(noise(BIG), v6=True), 1440),
        (Stream(noise(2000), tags=(1,), options=bytes(12)), 900),
        (Stream(noise(1000), udp=True), 0),
        (Stream(noise(1001), v6=True), 0),
    ]:
        send(a, stream, stream.request(size))
        switch.wait(lambda: b.peer.poll() > 0, lambda: "the frame")
        assert receive(switch, b) == [(stream.request(size), stream.partial())]
