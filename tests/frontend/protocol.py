# SPDX-License-Identifier: Apache-2.0
"""vhost-user messages, as the front-end sends them.

"vhost-user doc" is QEMU's docs/interop/vhost-user.rst; "virtio" is the OASIS
Virtual I/O Device specification, version 1.2.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from typing import NamedTuple


class FrontEndError(Exception):
    """The back-end broke the protocol, refused a message, or went away."""


class Request(IntEnum):
    """vhost-user doc, "Front-end message types"."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_STATUS = 39
    GET_STATUS = 40


class Feature(IntFlag):
    """Virtio feature bits: virtio 5.1.3 (net), 6 (reserved), and the vhost-user doc's own bit 30."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    MTU = 1 << 3
    GSO = 1 << 6
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    GUEST_UFO = 1 << 10
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    HOST_UFO = 1 << 14
    MRG_RXBUF = 1 << 15
    MQ = 1 << 22
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35


class ProtocolFeature(IntFlag):
    """vhost-user doc, "Protocol features"."""

    MQ = 1 << 0
    REPLY_ACK = 1 << 3
    NET_MTU = 1 << 4
    STATUS = 1 << 16


# vhost-user doc, "Header": version in bits 0-1, then reply and need_reply.
VERSION = 0x1
FLAG_REPLY = 0x4
FLAG_NEED_REPLY = 0x8


HEADER = struct.Struct("<III")
U64 = struct.Struct("<Q")
VRING_STATE = struct.Struct("<II")
VRING_ADDR = struct.Struct("<IIQQQQ")
MEM_TABLE = struct.Struct("<II")
MEM_REGION = struct.Struct("<QQQQ")


class MemoryRegion(NamedTuple):
    """vhost-user doc, "Memory region description"; sizes and offsets in bytes."""

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int


class Channel:
    """The front-end's end of one vhost-user connection. Blocking, with a deadline for each reply."""

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self._sock = sock
        self.timeout = timeout
        self.reply_ack = False  # set once REPLY_ACK is negotiated

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = VERSION) -> None:
        """Sends one message, its descriptors as SCM_RIGHTS; waits for nothing."""
        message = HEADER.pack(request, flags, len(payload)) + payload
        try:
            # Descriptors go with the first byte (vhost-user doc, "Communication"); messages are far
            # smaller than the socket buffer, so a stream socket takes them whole.
            sent = socket.send_fds(self._sock, [message], list(fds))
        except OSError as error:
            raise FrontEndError(f"{_name(request)}: the back-end is gone: {error}") from error
        if sent != len(message):
            raise FrontEndError(f"{_name(request)}: only {sent} of {len(message)} bytes sent")

    def call(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """Sends a message that has a reply of its own; returns the reply's payload."""
        self.send(request, payload, fds)
        return self._reply(request)

    def get(self, request: int) -> int:
        """A request whose reply is one u64."""
        return int(U64.unpack(self.call(request))[0])

    def set(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Sends a message without a reply of its own; with REPLY_ACK, waits until it is done.

        Raises FrontEndError when the back-end says that it failed.
        """
        if not self.reply_ack:
            self.send(request, payload, fds)
            return
        # vhost-user doc, "VHOST_USER_PROTOCOL_F_REPLY_ACK": zero is success.
        self.send(request, payload, fds, VERSION | FLAG_NEED_REPLY)
        (status,) = U64.unpack(self._reply(request))
        if status:
            raise FrontEndError(f"{_name(request)}: refused by the back-end ({status})")

    def set_u64(self, request: int, value: int, fds: Sequence[int] = ()) -> None:
        self.set(request, U64.pack(value), fds)

    def set_vring(self, request: int, index: int, num: int) -> None:
        """A message whose payload is a vring state: index and a number."""
        self.set(request, VRING_STATE.pack(index, num))

    def _reply(self, request: int) -> bytes:
        deadline = time.monotonic() + self.timeout
        got, flags, size = HEADER.unpack(self._read(HEADER.size, request, deadline))
        if got != request or not flags & FLAG_REPLY or flags & 0x3 != VERSION:
            raise FrontEndError(f"{_name(request)}: reply to {_name(got)} with flags {flags:#x}")
        return self._read(size, request, deadline)

    def _read(self, size: int, request: int, deadline: float) -> bytes:
        data = b""
        while len(data) < size:
            self._sock.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                part = self._sock.recv(size - len(data))
            except TimeoutError as error:
                raise FrontEndError(f"{_name(request)}: no reply within {self.timeout} s") from error
            except OSError as error:
                raise FrontEndError(f"{_name(request)}: the back-end is gone: {error}") from error
            if not part:
                raise FrontEndError(f"{_name(request)}: the back-end closed the connection")
            data += part
        return data


def mem_table(regions: Sequence[MemoryRegion]) -> bytes:
    """Payload of SET_MEM_TABLE (vhost-user doc, "Memory regions description")."""
    return MEM_TABLE.pack(len(regions), 0) + b"".join(MEM_REGION.pack(*region) for region in regions)


def _name(request: int) -> str:
    return Request(request).name if request in Request._value2member_map_ else f"request {request}"
