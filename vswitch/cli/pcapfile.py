# SPDX-License-Identifier: Apache-2.0
"""Reading the frames of pcap and pcapng files, and cutting a pcapng stream into its blocks.

Sections cited: draft-ietf-opsawg-pcap ("pcap") and draft-ietf-opsawg-pcapng ("pcapng").
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

ETHERNET = 1  # LINKTYPE_ETHERNET
SECTION_HEADER, INTERFACE, OLD_PACKET, SIMPLE_PACKET, ENHANCED_PACKET = 0x0A0D0D0A, 1, 2, 3, 6
MAX_BLOCK = 1 << 24  # 64 times the largest packet; beyond it a length is nonsense

# pcap section 4: the magic number tells the byte order; microseconds or nanoseconds do not matter here.
_PCAP_ORDERS = {b"\xd4\xc3\xb2\xa1": "<", b"\x4d\x3c\xb2\xa1": "<", b"\xa1\xb2\xc3\xd4": ">", b"\xa1\xb2\x3c\x4d": ">"}
_BYTE_ORDER_MAGIC = 0x1A2B3C4D


class CaptureError(ValueError):
    """A capture that cannot be read; the text is a part of a line for people."""


def read_frames(path: Path) -> Iterator[bytes]:
    """Yield the Ethernet frames of a capture file. Raises CaptureError and OSError."""
    with path.open("rb") as file:
        magic = file.read(4)
        if magic in _PCAP_ORDERS:
            yield from _read_pcap(file, _PCAP_ORDERS[magic])
        elif magic == struct.pack("<I", SECTION_HEADER):
            file.seek(0)
            yield from _read_pcapng(file)
        else:
            raise CaptureError("it is neither a pcap nor a pcapng file" if magic else "the file is empty")


def _read_pcap(file: BinaryIO, order: str) -> Iterator[bytes]:
    header = file.read(20)
    if len(header) < 20:
        raise CaptureError("it ends within the file header")
    # The upper bits of the link type say whether frames end with an FCS (pcap section 4).
    _check_link_type(struct.unpack(order + "I", header[16:])[0] & 0xFFFF)
    number = 0
    while record := file.read(16):
        number += 1
        length = struct.unpack(order + "8xI4x", record)[0] if len(record) == 16 else 0
        if length > MAX_BLOCK:
            raise CaptureError(f"packet {number} claims {length} bytes")
        frame = file.read(length)
        if len(record) < 16 or len(frame) < length:
            raise CaptureError(f"it ends within packet {number}")
        yield frame


def _check_link_type(link_type: int) -> None:
    if link_type != ETHERNET:
        raise CaptureError(f"its link type is {link_type}, and only Ethernet (1) can be traced")


def _read_pcapng(file: BinaryIO) -> Iterator[bytes]:
    order, link_types = "<", list[int]()
    number = 0
    while head := file.read(8):
        number += 1
        try:
            if head[:4] == struct.pack("<I", SECTION_HEADER):
                head += file.read(4)
                order, link_types = _byte_order(head), []
            kind, length = struct.unpack(order + "II", head[:8])
            if not 12 <= length <= MAX_BLOCK or length % 4:
                raise CaptureError(f"block {number} claims {length} bytes")
            body = head[8:] + file.read(length - len(head))
            if len(body) < length - 8:
                raise CaptureError(f"it ends within block {number}")
            if kind == INTERFACE:
                link_types.append(struct.unpack_from(order + "H", body)[0])
            elif kind in (OLD_PACKET, SIMPLE_PACKET, ENHANCED_PACKET):
                yield _packet(order, kind, body[:-4], link_types)
        except (struct.error, IndexError):
            raise CaptureError(f"block {number} is malformed") from None


def _byte_order(head: bytes) -> str:
    for order in "<>":
        if head[8:] == struct.pack(order + "I", _BYTE_ORDER_MAGIC):
            return order
    raise CaptureError("a section header has no byte-order magic")


def _packet(order: str, kind: int, body: bytes, link_types: list[int]) -> bytes:
    """pcapng sections 4.3, 4.4 and the obsolete appendix A."""
    if kind == SIMPLE_PACKET:
        interface, start = 0, 4
        length = min(struct.unpack_from(order + "I", body)[0], len(body) - start)
    else:
        interface, length = struct.unpack_from(order + ("I8xI" if kind == ENHANCED_PACKET else "H10xI"), body)
        start = 20
    if start + length > len(body):
        raise IndexError
    _check_link_type(link_types[interface])
    return body[start : start + length]


class BlockCutter:
    """Cut a little-endian pcapng stream, which comes in pieces of any size, into whole blocks."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield (block type, block) for each block that `data` completes. Raises CaptureError."""
        self._rest += data
        while len(self._rest) >= 8:
            kind, length = struct.unpack_from("<II", self._rest)
            if not 12 <= length <= MAX_BLOCK or length % 4:
                raise CaptureError(f"a block claims {length} bytes")
            if len(self._rest) < length:
                return
            block = bytes(self._rest[:length])
            del self._rest[:length]
            yield kind, block
