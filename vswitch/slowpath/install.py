# SPDX-License-Identifier: Apache-2.0
"""Carries the decision core's commands out on the fast path, in bulk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from vswitch.slowpath.fastpath import FastPathError
from vswitch.slowpath.interfaces import FastPathApi
from vswitch.slowpath.types import AddFlow, Command, DelFlow, Finish, FlowStats, Notice, SendFrame, UplinkFrame

log = logging.getLogger(__name__)

_NEVER = FlowStats(packets=0, bytes=0, last_used=0.0)


class Installer:
    """Knows which of the core's flows (handles) is which of the fast path's (ids)."""

    def __init__(self, fast_path: FastPathApi) -> None:
        self._fast_path = fast_path
        self.on_uplink_frame: Callable[[UplinkFrame], None] | None = None
        self.after: Callable[[], None] = lambda: None  # after each execute()
        self._ids: dict[int, int] = {}
        self._handles: dict[int, int] = {}
        self._refused = False  # a full table refuses packet after packet: one line when it begins is enough

    def execute(self, commands: Iterable[Command]) -> None:
        """Do `commands`: flow changes in their order, then all verdicts, so that what was parked finds its
        flow; frames of the switch's own last."""
        adds: list[AddFlow] = []
        dels: list[int] = []
        verdicts: list[Finish] = []
        frames: list[SendFrame] = []
        for command in commands:
            match command:
                case AddFlow():
                    dels = self._delete(dels)
                    adds.append(command)
                case DelFlow(handle):
                    adds = self._add(adds)
                    dels.append(handle)
                case Finish():
                    verdicts.append(command)
                case SendFrame():
                    frames.append(command)
                case UplinkFrame():
                    if self.on_uplink_frame is not None:
                        self.on_uplink_frame(command)
                case Notice(text):
                    log.warning("%s", text)
        self._add(adds)
        self._delete(dels)
        if verdicts:
            self._fast_path.finish(verdicts)
        for frame in frames:
            self._send(frame)
        self.after()

    def _send(self, frame: SendFrame) -> None:
        try:
            self._fast_path.packet_out(frame.port, frame.frame, frame.remote)
        except FastPathError as error:
            log.warning("%s", error)

    def _add(self, adds: Sequence[AddFlow]) -> list[AddFlow]:
        todo = list(adds)
        while todo:
            refused = ""
            try:
                ids = self._fast_path.flow_add([add.flow for add in todo])
            except FastPathError as error:
                refused, ids = error.args
            for add, flow_id in zip(todo, ids, strict=False):
                self._ids[add.handle] = flow_id
                self._handles[flow_id] = add.handle
            if refused:
                # What it did before, if it was there before, is no longer what it should do.
                self._delete([todo[len(ids)].handle])
            if refused and not self._refused:
                log.warning("a flow cannot be installed, its packets go through the slow path: %s", refused)
            self._refused = bool(refused)
            todo = todo[len(ids) + 1 :]
        return []

    def _delete(self, handles: Sequence[int]) -> list[int]:
        ids = [flow_id for handle in handles if (flow_id := self._ids.pop(handle, 0))]
        for flow_id in ids:
            del self._handles[flow_id]
        if ids:
            self._fast_path.flow_del(ids)
        return []

    def stats(self, handles: Sequence[int]) -> Mapping[int, FlowStats]:
        """Counters by handle. A flow that the fast path refused was never used, so the core lets it expire."""
        known = [handle for handle in handles if handle in self._ids]
        counters = self._fast_path.flow_stats([self._ids[handle] for handle in known])
        return dict.fromkeys(handles, _NEVER) | dict(zip(known, counters, strict=True))

    def handle(self, flow_id: int) -> int | None:
        """The core's name for a flow of the fast path."""
        return self._handles.get(flow_id)
