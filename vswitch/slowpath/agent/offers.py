# SPDX-License-Identifier: Apache-2.0
"""Offers of RDMA connections as messages carry them. No I/O."""

from __future__ import annotations

from controller.proto import ffswitch_pb2 as pb
from vswitch.slowpath.rdma_negotiation import NOBODY, QUEUE_PAIRS_MAX, Offer
from vswitch.slowpath.types import RdmaEnd


def write_offer(host: str, offer: Offer) -> pb.RdmaOffer:
    """An offer for a host."""
    end = offer.end
    numbers = [number for number, _ in end.queue_pairs]
    psns = [psn for _, psn in end.queue_pairs]
    told = pb.RdmaEnd(gid=end.gid, lid=end.lid, mtu=end.mtu, credits=end.credits, qpn=numbers, psn=psns)
    return pb.RdmaOffer(host=host, id=offer.id, joined=offer.joined, end=told)


def read_offer(told: pb.RdmaOffer) -> Offer | None:
    """An offer of another host; None: there is none, or it is none that can be used."""
    end = told.end
    pairs = tuple(zip(end.qpn, end.psn, strict=False))
    if told.id == NOBODY:
        return Offer(NOBODY, NOBODY, RdmaEnd(bytes(16), 0, 0, 0, ())) if told.HasField("end") else None
    if len(end.gid) != 16 or not 1 <= len(pairs) <= QUEUE_PAIRS_MAX or max(end.lid, end.mtu, end.credits) > 0xFFFF:
        return None
    return Offer(told.id, told.joined, RdmaEnd(end.gid, end.lid, end.mtu, end.credits, pairs))
