# SPDX-License-Identifier: Apache-2.0
"""Capture: tapped frames as a pcapng stream (draft-ietf-opsawg-pcapng) to one reader.

Written here, because the Python writers that exist keep time stamps as
floating-point seconds, which have no nanoseconds left, and take 25 µs a packet.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence

from vswitch import __version__
from vswitch.slowpath.fastpath import TAP_RX, TapRecord

SNAPLEN_MAX = 262144

# What may wait in the connection of a reader that does not keep up; past it, records are lost.
BACKLOG_MAX = 4 * 2**20

_SHB, _IDB, _ISB, _EPB = 0x0A0D0D0A, 1, 5, 6
_LINKTYPE_ETHERNET = 1
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_SECTION_LENGTH_UNKNOWN = -1

_END_OF_OPTIONS = b"\0\0\0\0"  # opt_endofopt
_SHB_USERAPPL = 4
_IF_NAME, _IF_TSRESOL = 2, 9
_EPB_FLAGS, _EPB_DROPCOUNT = 2, 4
_ISB_STARTTIME, _ISB_ENDTIME, _ISB_IFRECV, _ISB_IFDROP = 2, 3, 4, 5

_INBOUND, _OUTBOUND = 1, 2  # section 4.3.1, epb_flags bits 0-1


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("=HH", code, len(value)) + _padded(value)


def _block(kind: int, body: bytes) -> bytes:
    total = len(body) + 12
    return struct.pack("=II", kind, total) + body + struct.pack("=I", total)


def _time(time_ns: int) -> bytes:
    return struct.pack("=II", time_ns >> 32, time_ns & 0xFFFFFFFF)


def file_header(interface: str, snaplen: int) -> bytes:
    """Section Header (section 4.1) and the one Interface Description (4.2), time stamps in nanoseconds."""
    section = struct.pack("=IHHq", _BYTE_ORDER_MAGIC, 1, 0, _SECTION_LENGTH_UNKNOWN)
    section += _option(_SHB_USERAPPL, f"ffswitch {__version__}".encode()) + _END_OF_OPTIONS
    description = struct.pack("=HHI", _LINKTYPE_ETHERNET, 0, snaplen)
    description += _option(_IF_NAME, interface.encode()) + _option(_IF_TSRESOL, b"\x09") + _END_OF_OPTIONS
    return _block(_SHB, section) + _block(_IDB, description)


def packet(time_ns: int, frame: bytes, frame_len: int, *, inbound: bool, lost_before: int = 0) -> bytes:
    """Enhanced Packet (section 4.3). `frame_len` is the length on the wire, `lost_before` what is missing before it."""
    body = struct.pack("=I", 0) + _time(time_ns) + struct.pack("=II", len(frame), frame_len) + _padded(frame)
    body += _option(_EPB_FLAGS, struct.pack("=I", _INBOUND if inbound else _OUTBOUND))
    if lost_before:
        body += _option(_EPB_DROPCOUNT, struct.pack("=Q", lost_before))
    return _block(_EPB, body + _END_OF_OPTIONS)


def statistics(start_ns: int, end_ns: int, received: int, dropped: int) -> bytes:
    """Interface Statistics (section 4.6)."""
    body = struct.pack("=I", 0) + _time(end_ns)
    body += _option(_ISB_STARTTIME, _time(start_ns)) + _option(_ISB_ENDTIME, _time(end_ns))
    body += _option(_ISB_IFRECV, struct.pack("=Q", received)) + _option(_ISB_IFDROP, struct.pack("=Q", dropped))
    return _block(_ISB, body + _END_OF_OPTIONS)


class Capture:
    """One reader's capture. Never blocks and never holds more than BACKLOG_MAX: what does not fit is counted."""

    def __init__(
        self, write: Callable[[bytes], None], backlog: Callable[[], int], snaplen: int, lost: Callable[[], int]
    ) -> None:
        """`backlog`: bytes written and not yet taken; `lost`: records that the workers lost, ever growing."""
        self._write = write
        self._backlog = backlog
        self._snaplen = snaplen
        self._lost = lost
        self._lost_at_start = lost()
        self._received = 0
        self._dropped = 0
        self._dropped_told = 0
        self._start_ns = 0

    def begin(self, interface: str) -> None:
        """Write what a file starts with."""
        self._start_ns = time.time_ns()
        self._write(file_header(interface, self._snaplen))

    def records(self, records: Sequence[TapRecord]) -> None:
        """Write `records`, or count them as lost."""
        self._received += len(records)
        if self._backlog() > BACKLOG_MAX:
            self._dropped += len(records)
            return
        blocks = []
        for record in records:
            missing = self._dropped - self._dropped_told
            self._dropped_told = self._dropped
            frame = record.frame[: self._snaplen]
            inbound = record.kind == TAP_RX
            blocks.append(packet(record.time_ns, frame, record.frame_len, inbound=inbound, lost_before=missing))
        self._write(b"".join(blocks))

    def end(self) -> None:
        """Write what a file ends with: how much was seen, and how much of it is not there.

        Workers count lost records for all readers together, so the count may hold another reader's.
        """
        lost = self._lost() - self._lost_at_start
        self._write(statistics(self._start_ns, time.time_ns(), self._received + lost, self._dropped + lost))
