# SPDX-License-Identifier: Apache-2.0
"""Ports on poll mode drivers and on packet sockets, added while the switch runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from scapy.layers.l2 import Ether
from scapy.utils import PcapReader, wrpcap

from tests.fastpath import wire
from tests.fastpath.conftest import WORKERS
from tests.fastpath.frames import flow, mac, numbered, output
from tests.fastpath.switch import Attached, Switch
from tests.fastpath.wire import Wire
from vswitch.slowpath.fastpath import FastPathError
from vswitch.slowpath.types import Drop, PortConfig, PortState, PortType

ONE_TAG, TWO_TAGS = bytes.fromhex("81002005"), bytes.fromhex("88a8000681000007")
SIZES = (60, 61, 64, 65, 128, 1000, 1514)


class Device(NamedTuple):
    driver: str
    devargs: str
    interface: str  # where frames that the port sends come out
    kind: PortType = PortType.PMD


@pytest.fixture(params=["packet", "net_af_packet", "net_af_xdp", "net_pcap", "net_tap"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    driver: str = request.param
    if driver == "net_tap":
        interface = wire.name()
        yield Device(driver, f"net_tap0,iface={interface}", interface)
        return
    with wire.veth() as (ours, theirs):
        if driver == "packet":
            yield Device(driver, ours, theirs, PortType.PACKET)
        else:
            yield Device(driver, f"{driver}0,iface={ours}", theirs)


def start(switch: Switch, device: Device, stack: ExitStack) -> tuple[Attached, Wire]:
    switch.policy = lambda _: ((), ())  # for whatever else the kernel sends
    port = switch.add_pmd("wire", device.devargs, device.kind)
    if device.driver == "net_tap":
        wire.up(device.interface)
    return port, stack.enter_context(Wire(device.interface))


def mixed(src: int, dst: int, n: int) -> list[bytes]:
    return [numbered(src, dst, 1, size=SIZES[number % len(SIZES)], start=number)[0] for number in range(n)]


@pytest.mark.parametrize("burst", [1, 31, 32, 33, 257])
def test_frames_pass_both_ways(switch: Switch, device: Device, burst: int) -> None:
    with ExitStack() as stack:
        port, peer = start(switch, device, stack)
        host = switch.add("host", rx_ring=1024, tx_ring=1024)
        switch.install(flow(output(host.id), in_port=port.id, eth_src=mac(1)), flow(output(port.id), in_port=host.id))
        peer.send(mixed(1, 2, burst))
        switch.wait(lambda: host.peer.poll() >= burst, lambda: "frames from the wire")
        assert host.peer.receive() == mixed(1, 2, burst)
        host.peer.send(mixed(2, 1, burst))
        assert peer.receive(burst) == mixed(2, 1, burst)
        switch.settle()
        assert switch.sent(port) == burst


def test_the_device_is_described(switch: Switch, device: Device) -> None:
    with ExitStack() as stack:
        port, _ = start(switch, device, stack)
        info = switch.fp.port_info(port.id)
        assert info.driver == device.driver
        assert info.state == PortState.READY
        assert (info.rx_queues, info.tx_queues) == (1, WORKERS if device.kind is PortType.PACKET else 1)
        assert len(info.mac) == 17


def test_a_device_comes_and_goes(switch: Switch, device: Device) -> None:
    """Removed, it is free for another port, under the same name, and so are all its buffers."""
    for _ in range(6):
        with ExitStack() as stack:
            port, peer = start(switch, device, stack)
            switch.install(flow(output(port.id), in_port=port.id, eth_src=mac(1)))
            peer.send(numbered(1, 2, 5))
            assert peer.receive(5) == numbered(1, 2, 5)
            switch.delete(port)


@pytest.mark.parametrize("device", ["net_af_packet", "net_af_xdp", "net_pcap", "net_tap"], indirect=True)
def test_a_device_in_use_is_refused(switch: Switch, device: Device) -> None:
    with ExitStack() as stack:
        port, _ = start(switch, device, stack)
        with pytest.raises(FastPathError, match="in use"):
            switch.add_pmd("again", device.devargs)
        assert switch.fp.port_info(port.id).state == PortState.READY


def test_one_frame_to_a_device_and_to_hosts(switch: Switch, device: Device) -> None:
    """The same buffers go to drivers that keep them for a while and to some that copy at once."""
    with ExitStack() as stack:
        port, peer = start(switch, device, stack)
        a, b, c = switch.add_hosts(3)
        switch.install(flow(output(b.id, port.id, c.id), in_port=a.id))
        for round_ in range(20):
            frames = numbered(1, 2, 33, start=100 * round_)
            a.peer.send(frames)
            assert peer.receive(33) == frames
            switch.settle()
            assert b.peer.receive() == frames
            assert c.peer.receive() == frames


def test_pcap_files(switch: Switch, tmp_path: Path) -> None:
    """Frames from a file, and into one."""
    frames = mixed(1, 2, 300)
    wrpcap(str(tmp_path / "in.pcap"), [Ether(frame) for frame in frames])
    host = switch.add("host", rx_ring=1024)
    switch.policy = lambda _: ((), output(host.id))
    port = switch.add_pmd("file", f"net_pcap0,rx_pcap={tmp_path}/in.pcap,tx_pcap={tmp_path}/out.pcap")
    switch.fp.port_set_parked_max(port.id, 1000)
    switch.wait(lambda: switch.received(port) == 300, lambda: "the file to be read")
    switch.settle()
    assert len(host.peer.receive()) + sum(switch.drops(port).values()) == 300
    switch.policy = None
    switch.install(flow(output(port.id), in_port=host.id))
    host.peer.send(mixed(2, 1, 257), burst=100)
    switch.settle()
    switch.delete(port)
    with PcapReader(str(tmp_path / "out.pcap")) as reader:
        assert [bytes(packet) for packet in reader] == mixed(2, 1, 257)


def test_bad_devices_are_refused_with_one_line(switch: Switch, tmp_path: Path) -> None:
    """And leave nothing behind: the good device starts after them."""
    bad = [
        "net_nosuch0",
        "net_af_packet0",
        "net_af_packet0,iface=nosuch0",
        "net_af_xdp0,iface=nosuch0",
        f"net_pcap0,rx_pcap={tmp_path}/nosuch.pcap",
        "net_af_packet0,iface=lo,nosuch=1",
        "0000:ff:1f.7",
    ]
    for devargs in bad:
        with pytest.raises(FastPathError) as error:
            switch.fp.port_add(PortConfig("bad", type=PortType.PMD, devargs=devargs))
        assert str(error.value).strip(), devargs
        assert "\n" not in str(error.value)
    with pytest.raises(FastPathError, match="bad: kernel interface nosuch0: No such device"):
        switch.fp.port_add(PortConfig("bad", type=PortType.PACKET, devargs="nosuch0"))
    with wire.veth() as (ours, _):
        port = switch.add_pmd("good", f"net_af_packet0,iface={ours}")
        assert port.id == 1
        switch.delete(port)


@pytest.mark.parametrize("kind", [PortType.PMD, PortType.PACKET])
def test_the_interface_goes_away(switch: Switch, kind: PortType) -> None:
    """The kernel's interface is deleted under the port: the switch goes on, the port can be removed."""
    a, b = switch.add_hosts(2)
    switch.install(flow(output(b.id), in_port=a.id, eth_dst=mac(2)))
    with wire.veth() as (ours, _):
        devargs = ours if kind is PortType.PACKET else f"net_af_packet0,iface={ours}"
        port = switch.add_pmd("wire", devargs, kind)
        switch.install(flow(output(port.id), in_port=a.id, eth_dst=mac(3)))
    a.peer.send(numbered(1, 3, 10) + numbered(1, 2, 10))
    switch.settle()
    assert b.peer.receive() == numbered(1, 2, 10)
    switch.delete(port)


def test_frames_too_large_for_a_device(switch: Switch, device: Device) -> None:
    with ExitStack() as stack:
        port, peer = start(switch, device, stack)
        host = switch.add("host", mtu=9000)
        switch.install(flow(output(port.id), in_port=host.id))
        host.peer.send(numbered(1, 2, 2, size=5000) + numbered(1, 2, 1))
        switch.wait(lambda: switch.sent(port) > 0, lambda: "the small frame to pass")
        assert peer.receive(1) == numbered(1, 2, 1)
        assert switch.drops(port) == {Drop.TX_OVERSIZE: 2}


def test_packet_sockets_give_tags_back(switch: Switch) -> None:
    """The kernel takes the outer tag off a frame before a packet socket sees it."""
    with wire.veth() as (ours, theirs), Wire(theirs) as peer:
        switch.policy = lambda _: ((), ())
        port, host = switch.add_pmd("wire", ours, PortType.PACKET), switch.add("host")
        switch.install(flow(output(host.id), in_port=port.id))
        tagged = [frame[:12] + tags + frame[12:] for frame in numbered(1, 2, 3) for tags in (ONE_TAG, TWO_TAGS)]
        peer.send(tagged)
        assert host.peer.wait_received(len(tagged)) == tagged


def test_packet_sockets_count_what_they_drop(switch: Switch) -> None:
    """Too long for the interface, on the way out; too long for the ring, on the way in; a link that is down."""
    with wire.veth() as (ours, theirs), Wire(theirs) as peer:
        switch.policy = lambda _: ((), ())
        port = switch.add_pmd("large", ours, PortType.PACKET, mtu=9000)
        host = switch.add("host", mtu=9000)
        switch.install(flow(output(port.id), in_port=host.id))
        host.peer.send(numbered(1, 2, 1) + numbered(1, 2, 2, size=5000) + numbered(1, 2, 3, start=1))
        assert peer.receive(4) == numbered(1, 2, 4)
        switch.settle()
        assert switch.drops(port) == {Drop.TX_OVERSIZE: 2}
        wire.down(theirs)
        host.peer.send(numbered(1, 2, 4))
        switch.settle()
        wire.down(ours)
        host.peer.send(numbered(1, 2, 4))
        switch.settle()
        # Without a carrier the kernel drops as if the device were full.
        assert switch.drops(port) == {Drop.TX_OVERSIZE: 2, Drop.RING_FULL: 4, Drop.PORT_DOWN: 4}
        switch.delete(port)
    with wire.veth() as (ours, theirs), Wire(theirs) as peer:
        for interface in (ours, theirs):
            wire.up(interface, mtu=9000)
        port = switch.add_pmd("small", ours, PortType.PACKET)
        switch.install(flow(output(host.id), in_port=port.id))
        peer.send(numbered(2, 1, 100, size=5000) + numbered(2, 1, 1))
        assert host.peer.wait_received(1) == numbered(2, 1, 1)
        assert switch.drops(port) == {Drop.OVERSIZE: 100}
