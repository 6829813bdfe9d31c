# SPDX-License-Identifier: Apache-2.0
"""How two hosts agree on queue pairs, by offers that the controller passes on. No I/O, no clock.

Each host has at most one peer for another host, with an id that is never used twice, and one offer: the id, what the
other end has to know, and the id of the peer there that it has joined, if any. Only an end's newest offer counts, so it
does no harm when others are lost, repeated or late: `next_step` looks at what there is, and comes to the same end. A
connection is one pair of ids. An end that sees another id than the one it has joined begins anew, and nobody joins an
end that is joined to somebody else: so it is never in doubt which connection a queue pair belongs to.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum, auto

from vswitch.slowpath.types import RdmaEnd

QUEUE_PAIRS_MAX = 16  # FF_RDMA_MAX_QPS
NOBODY = 0


@dataclass(frozen=True, slots=True)
class Offer:
    """What a host says of its peer for another host; `joined` is the id of the other's peer, or NOBODY."""

    id: int
    joined: int
    end: RdmaEnd


class Stage(Enum):
    """How far an own peer is."""

    NEW = auto()  # it has queue pairs
    JOINED = auto()  # to those of the other end
    PROBED = auto()  # a mark is on its way, to see whether the wire carries it
    USED = auto()  # the mark came back, and frames go over it


@dataclass(frozen=True, slots=True)
class Own:
    """This host's peer for the other host; `joined` is the id of the other's peer, or NOBODY."""

    id: int
    queue_pairs: int
    stage: Stage = Stage.NEW
    joined: int = NOBODY


class Step(Enum):
    """What is to be done next."""

    WAIT = auto()  # for the other host
    MAKE = auto()  # a peer with as many queue pairs as `queue_pairs` says; the one there is goes first
    JOIN = auto()  # the offered end
    PROBE = auto()


def next_step(own: Own | None, offer: Offer | None) -> Step:
    """What is to be done, with the own peer and the other host's newest offer as they are."""
    if own is None:
        return Step.MAKE
    if offer is None:
        return Step.WAIT
    theirs = len(offer.end.queue_pairs)
    if theirs > own.queue_pairs or own.joined not in (NOBODY, offer.id):
        return Step.MAKE
    if theirs < own.queue_pairs:
        return Step.WAIT  # it makes as many
    if own.joined == NOBODY:
        # One that is joined to an earlier peer of this host sees the new one, and begins anew.
        return Step.JOIN if offer.joined in (NOBODY, own.id) else Step.WAIT
    if own.stage is Stage.JOINED and offer.joined == own.id:
        return Step.PROBE
    return Step.WAIT


def queue_pairs(workers: int, offer: Offer | None) -> int:
    """How many a new peer takes: one for each worker of the host that has more of them."""
    return max(workers, len(offer.end.queue_pairs) if offer else 0)


def epoch(one: int, other: int) -> int:
    """The epoch of the connection of two peers, the same at both ends; never 0."""
    low, high = sorted((one, other))
    digest = hashlib.sha256(low.to_bytes(8, "big") + high.to_bytes(8, "big")).digest()
    return int.from_bytes(digest[:4], "big") or 1
