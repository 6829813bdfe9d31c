# SPDX-License-Identifier: Apache-2.0
"""The messages between the switch and a container behind a memory port: `struct ff_shm_msg` of ff_shm.h."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

from vswitch._ff import ffi, lib

VERSION: int = lib.FF_SHM_VERSION
QUEUES_MAX: int = lib.FF_SHM_QUEUES
SHORTCUTS_MAX: int = lib.FF_SHM_SHORTCUTS
REGIONS_MAX: int = lib.FF_SHM_REGIONS
RING_MIN: int = lib.FF_SHM_RING_MIN
RING_MAX: int = lib.FF_SHM_RING_MAX
TEXT_MAX: int = lib.FF_SHM_TEXT - 1
FDS_MAX: int = lib.FF_MSG_FDS
SIZE: int = ffi.sizeof("struct ff_shm_msg")

OUT: int = lib.FF_MSG_OUT
READ_ONLY: int = lib.FF_MSG_READ_ONLY


class MsgType(IntEnum):
    """`enum ff_shm_msg_type`."""

    HELLO = lib.FF_MSG_HELLO
    WELCOME = lib.FF_MSG_WELCOME
    REGION = lib.FF_MSG_REGION
    START = lib.FF_MSG_START
    RINGS = lib.FF_MSG_RINGS
    STOP = lib.FF_MSG_STOP
    NEIGHBOUR = lib.FF_MSG_NEIGHBOUR
    UNMAP = lib.FF_MSG_UNMAP
    SHORTCUT = lib.FF_MSG_SHORTCUT
    DROP = lib.FF_MSG_DROP
    RECLAIM = lib.FF_MSG_RECLAIM
    GRANT = lib.FF_MSG_GRANT
    LINK = lib.FF_MSG_LINK
    DONE = lib.FF_MSG_DONE
    ERROR = lib.FF_MSG_ERROR


@dataclass(frozen=True, slots=True)
class Message:
    """One message; the fields are those of the C struct, which says what each type uses."""

    type: MsgType
    flags: int = 0
    serial: int = 0
    version: int = 0
    epoch: int = 0
    number: int = 0
    region: int = 0
    rx_queues: int = 0
    tx_queues: int = 0
    queues: int = 0
    mac: bytes = bytes(6)
    ring_size: int = 0
    mtu: int = 0
    size: int = 0
    offset: int = 0
    text: str = ""


_NUMBERS = tuple(f.name for f in fields(Message) if f.name not in ("type", "mac", "text"))


class WireError(Exception):
    """A datagram is no message; str() says why in a few words."""


def encode(message: Message) -> bytes:
    """The message as it goes over the socket; its text is cut to what fits."""
    raw = ffi.new("struct ff_shm_msg *", {name: getattr(message, name) for name in _NUMBERS} | {"type": message.type})
    raw.mac = list(message.mac)
    raw.text = message.text.encode()[:TEXT_MAX].decode(errors="ignore").encode()
    return bytes(ffi.buffer(raw))


def decode(data: bytes) -> Message:
    """The message in a datagram. Raises WireError."""
    if len(data) != SIZE:
        raise WireError(f"a message of {len(data)} bytes instead of {SIZE}")
    raw = ffi.from_buffer("struct ff_shm_msg *", data)
    try:
        kind = MsgType(raw.type)
    except ValueError:
        raise WireError(f"a message of unknown type {raw.type}") from None
    text = bytes(ffi.buffer(raw.text)).split(b"\0", 1)[0].decode(errors="replace")
    return Message(kind, **{name: getattr(raw, name) for name in _NUMBERS}, mac=bytes(ffi.buffer(raw.mac)), text=text)
