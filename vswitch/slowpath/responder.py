# SPDX-License-Identifier: Apache-2.0
"""Which packets the switch answers itself: who-has for endpoints it knows, and what is too long for its tunnel."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from vswitch.slowpath import answers
from vswitch.slowpath.bridge import Bridge, Verdict
from vswitch.slowpath.learning import Station
from vswitch.slowpath.overlay import Way
from vswitch.slowpath.pipeline import EthType
from vswitch.slowpath.types import Action, ActionType, Drop, SendFrame, Upcall

# RFC 4443 section 2.4 (f) wants a limit: a sender learns from one message, and needs few more.
_TOLD_EACH: Final = 0.1  # seconds between two "too big" for one station
_TOLD_MAX: Final = 4096  # stations remembered


@dataclass(frozen=True, slots=True)
class Answer:
    """What becomes of an answered packet, and the answer."""

    actions: tuple[Action, ...]
    frames: tuple[SendFrame, ...]


class Responder:
    """Answers for a bridge."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._told: OrderedDict[Station, float] = OrderedDict()

    def answer(self, upcall: Upcall, verdict: Verdict, now: float) -> Answer | None:
        """The switch's own answer to a packet; None: the verdict on it stands."""
        if verdict.asks and verdict.drop not in (Drop.MOVE_HOLD, Drop.NOT_TUNNEL):
            return self._resolve(upcall, verdict)
        for action in verdict.actions:
            if action.type is ActionType.CHECK_LEN and upcall.frame_len > action.arg:
                return self._too_big(upcall, verdict, now)
        return None

    def _resolve(self, upcall: Upcall, verdict: Verdict) -> Answer | None:
        """An answer to an ARP request or neighbour solicitation for an endpoint other than who asks."""
        port = self._bridge.member(upcall.key.in_port)
        if port is None:
            return None
        overlay, frame = self._bridge.overlay, upcall.frame
        arp = upcall.key.eth_type == EthType.ARP
        target = answers.arp_target(frame) if arp else answers.solicited(frame)
        owner = overlay.owner(port.network, target) if target is not None else None
        if owner is None or owner.mac == upcall.key.eth_src or owner.port == port.id:
            return None
        if port.tunnel and owner.port is None:
            return None  # who asks, and is asked, are on other hosts
        asker = overlay.at(port.network, upcall.key.eth_src) if port.tunnel else None
        remote = asker.remote if asker is not None else 0
        if port.tunnel and not remote:
            return None
        reply = answers.arp_reply(frame, owner.mac) if arp else answers.neighbour_advertisement(frame, owner.mac)
        return Answer(_dropped(verdict, Drop.ANSWERED), (SendFrame(port.id, reply, remote),))

    def _too_big(self, upcall: Upcall, verdict: Verdict, now: float) -> Answer:
        actions = _dropped(verdict, Drop.TUNNEL_MTU)
        way = self._way(upcall)
        told = answers.too_big(upcall.frame, way.mtu) if way is not None else None
        src = verdict.depends.src
        if told is None or src is None or now - self._told.get(src, float("-inf")) < _TOLD_EACH:
            return Answer(actions, ())
        self._told[src] = now
        self._told.move_to_end(src)
        while len(self._told) > _TOLD_MAX:
            self._told.popitem(last=False)
        return Answer(actions, (SendFrame(upcall.key.in_port, told),))

    def _way(self, upcall: Upcall) -> Way | None:
        port, overlay = self._bridge.member(upcall.key.in_port), self._bridge.overlay
        if port is None:
            return None
        to = overlay.at(port.network, upcall.key.eth_dst)
        return overlay.way(overlay.at(port.network, upcall.key.eth_src), to) if to is not None else None


def _dropped(verdict: Verdict, reason: Drop) -> tuple[Action, ...]:
    """What becomes of a packet that was answered: its mirrors get their copies."""
    mirrors = (action for action in verdict.actions if action.type is ActionType.MIRROR)
    return (*mirrors, Action(ActionType.DROP, reason))
