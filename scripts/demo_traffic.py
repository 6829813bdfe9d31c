# SPDX-License-Identifier: Apache-2.0
"""What the demo sends: a capture of real web traffic or, without one, a made-up visit to a web site."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw
from scapy.utils import RawPcapReader, RawPcapWriter

CAPTURE = Path(__file__).resolve().parent.parent.parent / "shared/captures/http-website.pcap"
ETHERNET = 1  # LINKTYPE_ETHERNET
PIPE_BYTES = 1 << 20  # the most that Linux gives a pipe unless told otherwise (pipe-max-size)

CLIENT, SERVER = ("02:00:00:00:00:01", "192.0.2.1"), ("02:00:00:00:00:02", "192.0.2.80")
SEGMENT = 1460
OBJECT_SIZES = (12_000, 48_000, 3_100, 700, 96_000, 21_500)  # a page, and what it draws in


class Traffic(NamedTuple):
    """Frames in capture order, and the MAC addresses of the two hosts that sent them, the first sender first."""

    title: str
    frames: list[bytes]
    macs: tuple[bytes, bytes]

    def of(self, mac: bytes) -> list[bytes]:
        """Return the frames that `mac` sent."""
        return [frame for frame in self.frames if frame[6:12] == mac]


def load() -> Traffic:
    """Return the shared capture's frames, or generated ones where there is no such capture."""
    if CAPTURE.exists():
        title, frames = CAPTURE.name, read_frames(CAPTURE)
    else:
        title, frames = "a generated visit to a web site", list(website_visit())
    first, second = dict.fromkeys(frame[6:12] for frame in frames)
    return Traffic(title, frames, (first, second))


def read_frames(path: Path) -> list[bytes]:
    """Return the frames of a capture file as they are."""
    with RawPcapReader(str(path)) as reader:
        return [frame for frame, _ in reader]


class Replay:
    """A capture file as a named pipe, whose reader waits at the first frame until release() lets all of them go."""

    def __init__(self, path: Path, frames: Sequence[bytes]) -> None:
        self._frames = frames
        os.mkfifo(path)
        # Open for both, so that neither this nor the writing waits for the reader.
        self._file = os.fdopen(os.open(path, os.O_RDWR), "wb")
        fcntl.fcntl(self._file, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._writer = RawPcapWriter(self._file, linktype=ETHERNET, sync=True)
        self._writer.write_header(None)

    def release(self) -> None:
        """Write the frames, which must fit in PIPE_BYTES, and the end of the file; to be called with a reader there."""
        for frame in self._frames:
            self._writer.write_packet(frame)
        self.close()

    def close(self) -> None:
        """End the file, for its reader too."""
        self._file.close()


def website_visit() -> Iterator[bytes]:
    """Yield an address resolution, then one HTTP exchange for each object."""
    (client_mac, client_ip), (server_mac, server_ip) = CLIENT, SERVER
    ask = ARP(op="who-has", hwsrc=client_mac, psrc=client_ip, pdst=server_ip)
    answer = ARP(op="is-at", hwsrc=server_mac, psrc=server_ip, hwdst=client_mac, pdst=client_ip)
    yield bytes(Ether(src=client_mac, dst="ff:ff:ff:ff:ff:ff") / ask)
    yield bytes(Ether(src=server_mac, dst=client_mac) / answer)
    for number, size in enumerate(OBJECT_SIZES):
        yield from map(bytes, http_exchange(49152 + number, f"/object{number}", size))


def http_exchange(client_port: int, path: str, size: int) -> Iterator[Packet]:
    """Yield one TCP connection's packets: handshake, request, `size` bytes of answer, acknowledgements, close."""
    sent = {"client": 1000, "server": 5000}  # next sequence numbers

    def packet(sender: str, flags: str, payload: bytes = b"") -> Packet:
        (source, source_ip), (target, target_ip) = (CLIENT, SERVER) if sender == "client" else (SERVER, CLIENT)
        ports = (client_port, 80) if sender == "client" else (80, client_port)
        other = "server" if sender == "client" else "client"
        tcp = TCP(sport=ports[0], dport=ports[1], flags=flags, seq=sent[sender], ack=sent[other] if "A" in flags else 0)
        sent[sender] += len(payload) + ("S" in flags) + ("F" in flags)
        return Ether(src=source, dst=target) / IP(src=source_ip, dst=target_ip) / tcp / Raw(payload)

    yield packet("client", "S")
    yield packet("server", "SA")
    yield packet("client", "A")
    yield packet("client", "PA", f"GET {path} HTTP/1.1\r\nHost: www.example\r\n\r\n".encode())
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode()
    answer = head + bytes((client_port + i) & 0xFF for i in range(size))
    for number, offset in enumerate(range(0, len(answer), SEGMENT)):
        yield packet("server", "PA", answer[offset : offset + SEGMENT])
        if number % 2:
            yield packet("client", "A")
    yield packet("client", "FA")
    yield packet("server", "FA")
    yield packet("client", "A")
