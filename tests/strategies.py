# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies: well-formed frames of every kind the parser knows, and the same gone wrong."""

from __future__ import annotations

from hypothesis import strategies as st

from tests import packets

SMALL = st.binary(max_size=24)
PORTS = st.integers(0, 0xFFFF)
PROTOCOLS = st.sampled_from([1, 6, 17, 47, 50, 51, 58, 59, 132]) | st.integers(0, 255)
TPIDS = st.sampled_from([0x8100, 0x88A8, 0x9100])
# An unlucky byte or length is one of the ends of a field, or anything.
WORDS = st.sampled_from([0, 1, 5, 7, 8, 19, 20, 27, 28, 39, 40, 0x5FF, 0x600, 0x8100, 0xFFFF]) | st.integers(0, 0xFFFF)


def macs() -> st.SearchStrategy[bytes]:
    return st.sampled_from([packets.A, packets.B, packets.BROADCAST, bytes(6)]) | st.binary(min_size=6, max_size=6)


def words_of_4(most: int) -> st.SearchStrategy[bytes]:
    """Options: up to `most` words of 4 bytes."""
    return st.integers(0, most).flatmap(lambda n: st.binary(min_size=4 * n, max_size=4 * n))


@st.composite
def transport(draw: st.DrawFn, proto: int) -> bytes:
    """What a packet of this protocol carries."""
    match proto:
        case 6:
            return packets.tcp(
                draw(SMALL),
                sport=draw(PORTS),
                dport=draw(PORTS),
                flags=draw(st.integers(0, 255)),
                options=draw(words_of_4(10)),
            )
        case 17:
            return packets.udp(draw(SMALL), sport=draw(PORTS), dport=draw(PORTS))
        case 1 | 58:
            kind = draw(st.sampled_from([0, 8, 128, 133, 134, 135, 136]) | st.integers(0, 255))
            return packets.icmp(kind, draw(st.integers(0, 255)), draw(SMALL))
        case 132:
            return packets.be16(draw(PORTS)) + packets.be16(draw(PORTS)) + bytes(8) + draw(SMALL)
    return draw(SMALL)


@st.composite
def ipv4_packets(draw: st.DrawFn) -> bytes:
    proto = draw(PROTOCOLS)
    return packets.ipv4(
        draw(transport(proto)),
        proto=proto,
        src=draw(st.binary(min_size=4, max_size=4)),
        dst=draw(st.binary(min_size=4, max_size=4)),
        tos=draw(st.integers(0, 255)),
        frag=draw(st.sampled_from([0, 0, 0x4000, 0x2000, 0x2001, 0x0001, 0x1000, 0x1FFF, 0x8000])),
        options=draw(words_of_4(10)),
        total_len=draw(st.sampled_from([None, None, None, 0])),
    )


@st.composite
def ipv6_extensions(draw: st.DrawFn) -> tuple[int, bytes]:
    kind = draw(st.sampled_from([0, 43, 44, 51, 60, 135]))
    if kind == 44:
        return kind, packets.fragment(draw(st.sampled_from([0, 0, 1, 0x1FFF])), draw(st.booleans()))
    words = draw(st.integers(0, 4))
    length = 4 * words + 6 if kind == 51 else 8 * words + 6
    return kind, bytes([words]) + draw(st.binary(min_size=length, max_size=length))


@st.composite
def ipv6_packets(draw: st.DrawFn) -> bytes:
    proto = draw(PROTOCOLS)
    return packets.ipv6(
        draw(transport(proto)),
        proto=proto,
        extensions=tuple(draw(st.lists(ipv6_extensions(), max_size=3) | st.lists(ipv6_extensions(), max_size=10))),
        src=draw(st.binary(min_size=16, max_size=16)),
        dst=draw(st.binary(min_size=16, max_size=16)),
        tos=draw(st.integers(0, 255)),
        payload_len=draw(st.sampled_from([None, None, None, 0])),
    )


@st.composite
def arp_packets(draw: st.DrawFn) -> bytes:
    ip = st.binary(min_size=4, max_size=4)
    return packets.arp(spa=draw(ip), tpa=draw(ip), op=draw(st.integers(0, 0xFFFF)))


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A frame as some host may send it."""
    eth_type, payload = draw(
        st.tuples(st.just(0x0800), ipv4_packets())
        | st.tuples(st.just(0x86DD), ipv6_packets())
        | st.tuples(st.just(0x0806), arp_packets())
        | st.tuples(st.integers(0, 0xFFFF), SMALL)
    )
    return packets.ethernet(
        payload + bytes(draw(st.sampled_from([0, 0, 18]))),
        dst=draw(macs()),
        src=draw(macs()),
        tags=tuple(draw(st.lists(st.tuples(TPIDS, st.integers(0, 0xFFFF)), max_size=3))),
        eth_type=eth_type,
    )


@st.composite
def mutated_frames(draw: st.DrawFn) -> bytes:
    """A frame with a few bytes changed, lengths falsified, cut off or continued."""
    frame = bytearray(draw(frames()))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(places(frame))
        match draw(st.sampled_from(["byte", "bit", "word", "cut", "grow"])):
            case "byte":
                frame[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "bit" if at < len(frame):
                frame[at] ^= 1 << draw(st.integers(0, 7))
            case "word":
                frame[at : at + 2] = packets.be16(draw(WORDS))
            case "cut":
                del frame[draw(st.integers(0, len(frame))) :]
            case "grow":
                frame += draw(SMALL)
    return bytes(frame)


def places(frame: bytes | bytearray) -> st.SearchStrategy[int]:
    """Where to hurt a frame: anywhere in front, or at the first fields of the network header."""
    network = 14
    while frame[network - 2 : network] in (b"\x81\x00", b"\x88\xa8", b"\x91\x00"):
        network += 4
    return st.integers(0, max(0, min(len(frame) - 2, 90))) | st.sampled_from([network + i for i in (0, 2, 4, 6, 7, 9)])
