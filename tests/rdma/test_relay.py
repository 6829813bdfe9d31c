# SPDX-License-Identifier: Apache-2.0
"""The underlay, without guests."""

from __future__ import annotations

import select
import socket

import pytest

from tests.rdma.relay import VXLAN, Relay, udp_port

SECONDS = 30.0
MACS = {name: f"02:00:00:00:00:0{number}" for number, name in enumerate("abc")}
BROADCAST = b"\xff" * 6
FRAMES = 200


def address(name: str) -> bytes:
    return bytes.fromhex(MACS[name].replace(":", ""))


def frame(destination: bytes, number: int = 0) -> bytes:
    return destination + address("a") + b"\x88\xb5" + number.to_bytes(4)


def receive(relay: Relay, name: str) -> bytes:
    plug = relay.plugs[name].socket
    assert select.select([plug], [], [], SECONDS)[0], f"nothing for {name}"
    return plug.recv(65536)


def send(relay: Relay, *frames: bytes) -> None:
    for each in frames:
        relay.plugs["a"].socket.send(each)


def numbers_until(relay: Relay, name: str, last: int) -> list[int]:
    """The numbers of the frames that come, up to and with `last`."""
    numbers = [-1]
    while numbers[-1] != last:
        numbers.append(int.from_bytes(receive(relay, name)[14:]))
    return numbers[1:]


def test_frames_go_where_their_address_is() -> None:
    with Relay(MACS) as relay:
        send(relay, frame(address("b"), 1), frame(BROADCAST, 2), frame(address("c"), 3))
        assert numbers_until(relay, "b", 2) == [1, 2]
        assert numbers_until(relay, "c", 3) == [2, 3]


@pytest.mark.parametrize("seed", [1, 2])
def test_loss_is_the_same_for_the_same_seed(seed: int) -> None:
    runs = []
    for _ in range(2):
        with Relay(MACS, seed) as relay:
            relay.wires["a", "b"].loss = 0.5
            send(relay, *(frame(address("b"), number) for number in range(FRAMES)))
            send(relay, frame(address("c"), FRAMES))
            receive(relay, "c")  # so the relay has dealt with all before
            relay.heal()
            send(relay, frame(address("b"), FRAMES))
            runs.append(numbers_until(relay, "b", FRAMES))
            assert relay.wires["a", "b"].lost == FRAMES + 1 - len(runs[-1])
    assert runs[0] == runs[1]
    assert FRAMES // 4 < len(runs[0]) < FRAMES * 3 // 4


def test_a_cut_holds_until_it_is_healed() -> None:
    with Relay(MACS) as relay:
        relay.cut("b")
        send(relay, frame(BROADCAST, 1))
        assert numbers_until(relay, "c", 1) == [1]
        relay.heal()
        send(relay, frame(BROADCAST, 2))
        assert numbers_until(relay, "b", 2) == [2]
        assert relay.wires["a", "b"].lost == 1


def test_no_frame_overtakes_when_the_delay_shrinks() -> None:
    with Relay(MACS) as relay:
        relay.impair(delay=0.2)
        send(relay, *(frame(BROADCAST, number) for number in range(3)))
        send(relay, frame(address("a")))  # never comes back to its sender
        while relay.wires["a", "c"].frames[0] < 3:
            select.select([], [], [], 0.001)
        relay.heal()
        send(relay, frame(BROADCAST, 3))
        assert numbers_until(relay, "b", 3) == [0, 1, 2, 3]


def test_a_guest_that_does_not_read_gets_all_later() -> None:
    with Relay(MACS) as relay:
        send(relay, *(frame(address("b"), number) for number in range(FRAMES)))
        send(relay, frame(address("c")))
        receive(relay, "c")
        assert numbers_until(relay, "b", FRAMES - 1) == list(range(FRAMES))


def test_udp_ports_are_told_apart() -> None:
    udp = bytes(2) + VXLAN.to_bytes(2)
    ipv4 = bytes(12) + b"\x08\x00\x45" + bytes(8) + bytes([socket.IPPROTO_UDP]) + bytes(10)
    ipv6 = bytes(12) + b"\x86\xdd\x60" + bytes(5) + bytes([socket.IPPROTO_UDP]) + bytes(33)
    assert udp_port(ipv4 + udp) == VXLAN
    assert udp_port(ipv6 + udp) == VXLAN
    assert udp_port(frame(BROADCAST)) == 0
