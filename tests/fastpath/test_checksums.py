# SPDX-License-Identifier: Apache-2.0
"""What a device says of the checksums that it received: told to a front-end that can be told (virtio 1.2, 5.1.6.4).

net_tap looks at checksums as a network card does. What no driver here says, of tunnels, is asked of frame.h itself.
"""

from __future__ import annotations

import ctypes
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from socket import IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP
from typing import Any

import pytest
from scapy.layers.l2 import Ether

from tests.fastpath import wire
from tests.fastpath.frames import flow, mac, output, push
from tests.fastpath.offloads import ALL, GUEST, NONE, ROOMY, VALID, Header, Stream, noise, receive
from tests.fastpath.switch import Attached, Switch
from tests.fastpath.test_vxlan import HOP_MAC, OUR_MAC, OURS, PEER, VNI, outer, raw_mac
from tests.fastpath.wire import Wire
from vswitch.slowpath.pipeline import FRAG_ANY, FRAG_LATER
from vswitch.slowpath.types import PortConfig, PortType, Remote, Uplink

ROOT = Path(__file__).resolve().parents[2]
GOOD = Stream(noise(100))


def broken(stream: Stream) -> bytes:
    """The frame with another byte of payload than its checksum was made for."""
    frame = bytearray(stream.complete())
    frame[-1] ^= 1
    return bytes(frame)


@pytest.fixture
def card(switch: Switch) -> Iterator[tuple[Attached, Wire]]:
    switch.policy = lambda _: ((), ())  # for whatever else the kernel sends
    interface = wire.name()
    port = switch.add_pmd("card", f"net_tap0,iface={interface}")
    wire.up(interface)
    with Wire(interface) as peer:
        yield port, peer


def arrive(switch: Switch, card: Wire, host: Attached, *frames: bytes) -> list[tuple[Header, bytes]]:
    """Sends to the card; returns what comes to the host, with the headers."""
    before = switch.sent(host)
    card.send(list(frames))
    switch.wait(lambda: switch.sent(host) >= before + len(frames), lambda: "frames from the card")
    return receive(switch, host)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize(
    "stream",
    [GOOD, replace(GOOD, udp=True), replace(GOOD, v6=True), replace(GOOD, udp=True, v6=True), replace(GOOD, tags=(5,))],
    ids=["tcp4", "udp4", "tcp6", "udp6", "tagged"],
)
def test_only_a_good_checksum_is_told(
    switch: Switch, card: tuple[Attached, Wire], stream: Stream, packed: bool
) -> None:
    port, peer = card
    host = switch.add("host", features=GUEST, packed=packed)
    switch.install(flow(output(host.id), in_port=port.id, eth_src=mac(1)))
    got = arrive(switch, peer, host, stream.complete(), broken(stream), stream.complete())
    assert got == [(VALID, stream.complete()), (NONE, broken(stream)), (VALID, stream.complete())]


def test_who_cannot_be_told_is_not(switch: Switch, card: tuple[Attached, Wire]) -> None:
    port, peer = card
    told, untold = switch.add("told", features=GUEST), switch.add("untold")
    switch.install(flow(output(told.id, untold.id), in_port=port.id, eth_src=mac(1)))
    assert arrive(switch, peer, told, GOOD.complete(), broken(GOOD)) == [(VALID, GOOD.complete()), (NONE, broken(GOOD))]
    assert receive(switch, untold) == [(NONE, GOOD.complete()), (NONE, broken(GOOD))]


def test_a_frame_that_waits_for_a_verdict_keeps_its_own(switch: Switch, card: tuple[Attached, Wire]) -> None:
    """And the tags that it gets on its way change nothing."""
    _, peer = card
    host = switch.add("host", features=GUEST)
    switch.policy = lambda upcall: ((), [push(7), *output(host.id)] if upcall.key.eth_src == mac(1) else ())
    got = arrive(switch, peer, host, GOOD.complete(), broken(GOOD))
    assert [(header, frame[-50:]) for header, frame in got] == [
        (VALID, GOOD.complete()[-50:]),
        (NONE, broken(GOOD)[-50:]),
    ]


def test_what_was_told_of_the_outer_packet_says_nothing_of_the_inner(
    switch: Switch, card: tuple[Attached, Wire]
) -> None:
    port, peer = card
    host = switch.add("host", features=ALL, **ROOMY)
    network = switch.add_config(PortConfig("net", PortType.VXLAN, vni=VNI, mtu=1400))
    local, remote = (ip_address(address).packed for address in (OURS[4], PEER[4]))
    switch.fp.uplink_set(port.id, Uplink(local, bytes(16)))
    switch.fp.remote_set(4, Remote(port.id, local, remote, raw_mac(OUR_MAC), raw_mac(HOP_MAC)))
    switch.install(flow(output(host.id), in_port=network.id))
    switch.install(flow(output(host.id), in_port=port.id, eth_src=mac(1)))
    packed = [outer(4, chksum=None) / Ether(frame) for frame in (GOOD.complete(), broken(GOOD))]
    try:
        got = arrive(switch, peer, host, *map(bytes, packed))
    finally:
        switch.fp.remote_set(4, None)
        switch.fp.uplink_set(port.id, Uplink())
    assert got == [(NONE, GOOD.complete()), (NONE, broken(GOOD))]


# ---- other cards --------------------------------------------------------------------

# rte_mbuf_core.h, rte_mbuf_ptype.h
CKSUM_GOOD, CKSUM_BAD = 1 << 8, 1 << 3
L4_UDP, TUNNEL_VXLAN, TUNNEL_GENEVE = 0x200, 0x3000, 0x5000
INNER_TCP, INNER_UDP, INNER_ICMP = 0x1000000, 0x2000000, 0x5000000
PLAIN, VXLAN, UNNAMED = 0x11 | L4_UDP, 0x11 | L4_UDP | TUNNEL_VXLAN, 0x11 | L4_UDP
OFF_VALID = 0x20


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    fastpath = ROOT / "vswitch/fastpath"
    path = tmp_path_factory.mktemp("verdict") / "verdict.so"
    pkg_config = ["pkg-config", "--cflags", "--libs", "libdpdk"]
    flags = subprocess.run(pkg_config, check=True, capture_output=True, text=True).stdout
    command: list[str | Path] = ["cc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-shared", "-fPIC", f"-I{fastpath}"]
    sources = [ROOT / "tests/fastpath/verdict.c", fastpath / "offload.c", fastpath / "frame.c"]
    subprocess.run([*command, "-o", path, *sources, *shlex.split(flags)], check=True)
    return ctypes.CDLL(str(path))


@pytest.mark.parametrize(
    ("flags", "packet_type", "outside", "inside"),
    [
        (CKSUM_GOOD, 0, True, False),
        (CKSUM_GOOD, PLAIN, True, False),
        (CKSUM_GOOD, VXLAN | INNER_TCP, False, True),
        (CKSUM_GOOD, VXLAN | INNER_UDP, False, True),
        (CKSUM_GOOD, UNNAMED | INNER_TCP, False, True),
        (CKSUM_GOOD, VXLAN | INNER_ICMP, False, False),
        (CKSUM_GOOD, VXLAN, False, False),
        (CKSUM_GOOD, PLAIN | TUNNEL_GENEVE | INNER_TCP, False, False),
        (CKSUM_BAD, PLAIN, False, False),
        (CKSUM_BAD, VXLAN | INNER_TCP, False, False),
        (CKSUM_BAD | CKSUM_GOOD, PLAIN, False, False),  # "none": there is no checksum yet
        (CKSUM_BAD | CKSUM_GOOD, VXLAN | INNER_TCP, False, False),
        (0, PLAIN, False, False),
        (0, VXLAN | INNER_TCP, False, False),
    ],
)
def test_which_packet_a_card_speaks_of(library: Any, flags: int, packet_type: int, outside: bool, inside: bool) -> None:
    for inner, good in ((False, outside), (True, inside)):
        found = library.verdict(ctypes.c_uint64(flags), ctypes.c_uint32(packet_type), inner)
        assert found == (OFF_VALID if good else 0)


@pytest.mark.parametrize(
    ("proto", "frag", "valid"),
    [
        (IPPROTO_TCP, 0, True),
        (IPPROTO_UDP, 0, True),
        (IPPROTO_UDP, FRAG_ANY, False),
        (IPPROTO_TCP, FRAG_ANY | FRAG_LATER, False),
        (IPPROTO_ICMP, 0, False),
        (0, 0, False),
    ],
)
def test_of_what_a_card_may_speak(library: Any, proto: int, frag: int, valid: bool) -> None:
    """Some drivers say it of whatever they find no fault in; a receiver would skip its own look at an ICMP checksum."""
    assert library.still_valid(proto, frag) == (OFF_VALID if valid else 0)
