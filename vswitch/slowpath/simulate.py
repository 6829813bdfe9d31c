# SPDX-License-Identifier: Apache-2.0
"""A switch in plain Python: ports, decision core, flow table and pipeline, one frame at a time.

`ffswitch trace --packet` tries frames on it with a fork of the live core, and
the tests hold the real switch against it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from vswitch.slowpath.core import SwitchCore
from vswitch.slowpath.pipeline import ETH_HLEN, VLAN_HLEN, apply, masked, parse
from vswitch.slowpath.types import (
    Action,
    ActionType,
    AddFlow,
    Command,
    Decision,
    DelFlow,
    Drop,
    Finish,
    Flow,
    Key,
    Notice,
    Upcall,
)

HEAD_LEN = 256  # FF_HEAD_LEN


def frame_max(mtu: int) -> int:
    """The longest frame that a port of this MTU takes or sends: two VLAN tags do not count against it."""
    return mtu + ETH_HLEN + 2 * VLAN_HLEN


class FlowTable:
    """What the C flow table does: masked exact match, a hash lookup for each mask."""

    def __init__(self) -> None:
        self._flows: dict[int, Flow] = {}
        self._by_mask: dict[Key, dict[Key, int]] = {}

    def __len__(self) -> int:
        return len(self._flows)

    def add(self, handle: int, flow: Flow) -> None:
        """Adds a flow, or replaces the actions of the one with this handle."""
        self._flows[handle] = flow
        self._by_mask.setdefault(flow.mask, {})[flow.key] = handle

    def delete(self, handle: int) -> None:
        """Deletes a flow; KeyError when there is none of this handle."""
        flow = self._flows.pop(handle)
        del self._by_mask[flow.mask][flow.key]

    def lookup(self, key: Key) -> int | None:
        """The handle of the flow that a packet hits."""
        for mask, flows in self._by_mask.items():
            handle = flows.get(masked(key, mask))
            if handle is not None:
                return handle
        return None

    def __getitem__(self, handle: int) -> Flow:
        return self._flows[handle]


class Result(StrEnum):
    """What became of a frame, mirror copies apart."""

    FORWARDED = "forwarded"
    FLOODED = "flooded"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one frame, all copies accounted for."""

    result: Result
    drop: Drop = Drop.NONE  # why it was dropped
    key: Key | None = None  # None: refused before a key was found
    decision: Decision | None = None  # with its reasons; None as above
    outputs: tuple[tuple[int, bytes], ...] = ()  # (port id, frame as sent), mirror copies too, in order
    drops: tuple[tuple[int, Drop], ...] = ()  # (id of the port that counts it, reason), of the frame and its copies
    missed: bool = False  # no flow matched: an upcall was raised
    notices: tuple[str, ...] = ()


class Simulator:
    """Feeds frames to a core as the fast path would, and tells what comes of them."""

    def __init__(self, core: SwitchCore) -> None:
        self.core = core
        self.table = FlowTable()
        for handle, flow in core.flows().items():
            self.table.add(handle, flow)
        self._upcalls = 0

    def command(self, commands: Iterable[Command]) -> tuple[Action, ...]:
        """Carries out what the core wants; returns the verdict if there is one among it."""
        verdict: tuple[Action, ...] = ()
        for command in commands:
            match command:
                case AddFlow(handle, flow):
                    self.table.add(handle, flow)
                case DelFlow(handle):
                    self.table.delete(handle)
                case Finish(_, actions):
                    verdict = actions
        return verdict

    def send(self, port_id: int, frame: bytes, now: float) -> Fate:
        """A frame comes in by a port; ValueError when there is no such port."""
        port = self.core.ports().get(port_id)
        if port is None:
            raise ValueError(f"no port has id {port_id}")
        if len(frame) > frame_max(port.config.mtu):
            return _refused(port_id, Drop.OVERSIZE)
        key = parse(frame, port_id)
        if isinstance(key, Drop):
            return _refused(port_id, key)
        decision = self.core.decide(key, now)
        handle = self.table.lookup(key)
        notices: tuple[str, ...] = ()
        if handle is not None:
            actions = self.table[handle].actions
        else:
            self._upcalls += 1
            commands = self.core.upcall(Upcall(self._upcalls, key, frame[:HEAD_LEN], len(frame)), now)
            actions = self.command(commands)
            notices = tuple(command.text for command in commands if isinstance(command, Notice))
        fate = self._act(port_id, frame, actions)
        if fate.result is Result.FORWARDED and decision.floods:
            fate = replace(fate, result=Result.FLOODED)
        return replace(fate, key=key, decision=decision, missed=handle is None, notices=notices)

    def _act(self, port_id: int, frame: bytes, actions: tuple[Action, ...]) -> Fate:
        """Does the actions: each output and mirror ends sent or dropped, a drop action is one more drop."""
        outputs: list[tuple[int, bytes]] = []
        drops: list[tuple[int, Drop]] = []
        forwarded = False
        copies = [action.type for action in actions if action.type in (ActionType.OUTPUT, ActionType.MIRROR)]
        for kind, (to, sent) in zip(copies, apply(actions, frame), strict=True):
            counted_on, drop = self._transmit(port_id, to, sent)
            if drop is Drop.NONE:
                outputs.append((to, sent))
                forwarded |= kind is ActionType.OUTPUT
            else:
                drops.append((counted_on, drop))
        drops += [(port_id, Drop(action.arg)) for action in actions if action.type is ActionType.DROP]
        if forwarded:
            return Fate(Result.FORWARDED, outputs=tuple(outputs), drops=tuple(drops))
        return Fate(Result.DROPPED, drop=drops[-1][1], outputs=tuple(outputs), drops=tuple(drops))

    def _transmit(self, from_id: int, to_id: int, frame: bytes) -> tuple[int, Drop]:
        """(port that counts, reason) for a frame sent to a port; reason NONE: it got there."""
        to = self.core.ports().get(to_id)
        if to is None:
            return from_id, Drop.PORT_GONE
        if not to.up:
            return to_id, Drop.PORT_DOWN
        return to_id, Drop.TX_OVERSIZE if len(frame) > frame_max(to.config.mtu) else Drop.NONE


def _refused(port_id: int, drop: Drop) -> Fate:
    return Fate(Result.DROPPED, drop=drop, drops=((port_id, drop),))
