# SPDX-License-Identifier: Apache-2.0
"""TCP and UDP streams, the offload requests that a driver would make of them, and what they must become.

scapy makes every frame and its checksums; nothing here is computed as the switch does it.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Dot1Q
from scapy.packet import Packet, Raw

from tests.fastpath.frames import ETH_LEN, ether, ip
from tests.fastpath.switch import Attached, Switch
from tests.frontend import Feature

# virtio 1.1 section 5.1.6
NEEDS_CSUM = 1
DATA_VALID = 2
GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_ECN = 0, 1, 3, 4, 0x80

HOST = Feature.CSUM | Feature.HOST_TSO4 | Feature.HOST_TSO6 | Feature.HOST_ECN
GUEST = Feature.GUEST_CSUM | Feature.GUEST_TSO4 | Feature.GUEST_TSO6 | Feature.GUEST_ECN
ALL = HOST | GUEST

FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80


# A ring with room for the segments of a whole 64 KB frame.
ROOMY: dict[str, Any] = {"rx_ring": 1024, "tx_ring": 256}


class Header(NamedTuple):
    """struct virtio_net_hdr, without num_buffers."""

    flags: int = 0
    gso_type: int = GSO_NONE
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    def pack(self, length: int = 12) -> bytes:
        return struct.pack("<BBHHHH", *self) + bytes(length - 10)

    @classmethod
    def unpack(cls, data: bytes) -> Header:
        return cls(*struct.unpack("<BBHHHH", data[:10]))


@dataclass(frozen=True)
class Stream:
    """One TCP segment or UDP datagram, of any size, between host 1 and host 2. `options` are TCP's, `tags` VLAN ids."""

    payload: bytes
    v6: bool = False
    udp: bool = False
    tags: tuple[int, ...] = ()
    options: bytes = b""
    flags: int = ACK
    seq: int = 0xFFFF_F000
    ip_id: int = 0xFFF0
    extension: bool = False  # an IPv6 destination options header

    @property
    def l4_at(self) -> int:
        return ETH_LEN + 4 * len(self.tags) + (40 if self.v6 else 20) + (8 if self.extension else 0)

    @property
    def headers(self) -> int:
        """Bytes before the payload."""
        return self.l4_at + (8 if self.udp else 20 + len(self.options))

    @property
    def checksum_at(self) -> int:
        return self.l4_at + self.checksum_offset

    @property
    def checksum_offset(self) -> int:
        return 6 if self.udp else 16

    def complete(self) -> bytes:
        """The frame with nothing left to do."""
        layers: list[Packet] = [Dot1Q(vlan=vid) for vid in self.tags]
        if self.v6:
            layers.append(IPv6(src="fd00::1", dst="fd00::2"))
            layers += [IPv6ExtHdrDestOpt()] if self.extension else []
        else:
            layers.append(IP(src=ip(1), dst=ip(2), id=self.ip_id))
        if self.udp:
            layers.append(UDP(sport=1000, dport=2000))
        else:
            options = [(254, self.options[2:])] if self.options else []
            layers.append(TCP(sport=1000, dport=2000, seq=self.seq, flags=self.flags, options=options))
        return ether(1, 2, *layers, Raw(self.payload))

    def partial(self) -> bytes:
        """The frame as a driver leaves it to the device: the checksum is only the pseudo-header's sum (5.1.6.2)."""
        frame = bytearray(self.complete())
        addresses = frame[ETH_LEN + 4 * len(self.tags) :][slice(8, 40) if self.v6 else slice(12, 20)]
        pseudo = bytes(addresses) + struct.pack("!IHH", len(frame) - self.l4_at, 0, 17 if self.udp else 6)
        total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
        while total > 0xFFFF:
            total = (total >> 16) + (total & 0xFFFF)
        struct.pack_into("!H", frame, self.checksum_at, total)
        return bytes(frame)

    def request(self, gso_size: int = 0, ecn: bool = False) -> Header:
        """The header that goes with `partial`; its hdr_len is the right one."""
        if not gso_size:
            return Header(NEEDS_CSUM, csum_start=self.l4_at, csum_offset=self.checksum_offset)
        kind = (GSO_TCPV6 if self.v6 else GSO_TCPV4) | (GSO_ECN if ecn else 0)
        return Header(NEEDS_CSUM, kind, self.headers, gso_size, self.l4_at, self.checksum_offset)

    def segments(self, gso_size: int) -> list[bytes]:
        """The frames that it is to be cut into (RFC 9293; CWR: RFC 3168 section 6.1.2, on the first only)."""
        starts = range(0, len(self.payload), gso_size)
        return [
            replace(
                self,
                payload=self.payload[start : start + gso_size],
                seq=(self.seq + start) & 0xFFFF_FFFF,
                ip_id=(self.ip_id + number) & 0xFFFF,
                flags=self.flags & ~(0 if number == len(starts) - 1 else FIN | PSH) & ~(0 if number == 0 else CWR),
            ).complete()
            for number, start in enumerate(starts)
        ]


def noise(length: int, seed: int = 1) -> bytes:
    """Bytes that differ from place to place, so that nothing can be swapped unseen."""
    return random.Random(seed).randbytes(length)


STREAMS = st.builds(
    Stream,
    payload=st.builds(noise, st.integers(0, 9000), st.integers(0, 99)),
    v6=st.booleans(),
    tags=st.sampled_from([(), (1,), (1, 4095)]),
    options=st.sampled_from([b"", bytes(4), bytes(12), bytes(40)]),
    flags=st.sampled_from([ACK, ACK | PSH, ACK | FIN | PSH, ACK | CWR, 0xFF]),
    seq=st.sampled_from([0, 0x7FFF_FFFF, 0xFFFF_F000]),
    ip_id=st.sampled_from([0, 0xFFFF]),
)


VALID = Header(DATA_VALID)
NONE = Header()


def send(port: Attached, stream: Stream, header: Header) -> None:
    front = port.peer
    length = 12 if front.features & (Feature.VERSION_1 | Feature.MRG_RXBUF) else 10
    front.send([stream.partial()], header=header.pack(length))


def receive(switch: Switch, port: Attached) -> list[tuple[Header, bytes]]:
    """What has come, once all is settled, with the headers."""
    switch.settle()
    frames = port.peer.receive()
    headers = list(port.peer.rx[0].headers)[-len(frames) :] if frames else []
    return [(Header.unpack(header), frame) for header, frame in zip(headers, frames, strict=True)]


def done(port: Attached, frames: list[bytes]) -> list[tuple[Header, bytes]]:
    """Frames with nothing left to do, as this receiver gets them: it can be told that they are right, or not."""
    header = VALID if port.peer.features & Feature.GUEST_CSUM else NONE
    return [(header, frame) for frame in frames]
