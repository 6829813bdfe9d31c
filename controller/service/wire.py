# SPDX-License-Identifier: Apache-2.0
"""Desired as bytes, made once for all hosts that get the same.

Serialised messages of one type that are put one after the other are their merger (protobuf's encoding: "last one wins",
repeated fields are concatenated), so a message is a head and parts that others share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from controller.model import Key, Kind
from controller.proto import ffswitch_pb2 as pb

# An object's bytes as the store has them; None: it is gone.
Items = Mapping[Key, bytes | None]

_DESIRED_TAG = pb.ControllerMessage.DESIRED_FIELD_NUMBER << 3 | 2


def encode_items(items: Iterable[tuple[Key, bytes]]) -> bytes:
    """The part of a Desired that sets objects."""
    return pb.Desired(
        set=[pb.Item(kind=kind.value, object=value.decode()) for (kind, _), value in items]
    ).SerializeToString()


def encode_delta(items: Items) -> bytes:
    """The part of a Desired that sets and deletes objects."""
    gone = [pb.Name(kind=kind.value, name=name) for (kind, name), value in items.items() if value is None]
    return encode_items((key, value) for key, value in items.items() if value is not None) + (
        pb.Desired(delete=gone).SerializeToString()
    )


def desired(epoch: int, revision: int, *, full: bool, parts: Iterable[bytes]) -> bytes:
    """A ControllerMessage with a Desired of these parts."""
    head = pb.Desired(epoch=epoch, revision=revision, full=full).SerializeToString()
    body = b"".join((head, *parts))
    return bytes([_DESIRED_TAG]) + _varint(len(body)) + body


def welcome(epoch: int, heartbeat: float) -> bytes:
    """A ControllerMessage with a Welcome."""
    return pb.ControllerMessage(welcome=pb.Welcome(epoch=epoch, heartbeat=heartbeat)).SerializeToString()


def refused(port: str, reason: str) -> bytes:
    """A ControllerMessage with a Refused; no port: the whole session."""
    line = " ".join(reason.split())
    return pb.ControllerMessage(refused=pb.Refused(port=port, reason=line)).SerializeToString()


def offer(host: str, value: bytes, revision: int) -> bytes:
    """A ControllerMessage with the offer of `host` that stands in the store; an empty value: it is gone."""
    told = pb.RdmaOffer.FromString(value)
    told.host, told.revision = host, revision
    return pb.ControllerMessage(rdma=told).SerializeToString()


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def is_network_part(key: Key) -> bool:
    """Whether hosts know the object through its network."""
    return key[0] in (Kind.NETWORK, Kind.ENDPOINT)
