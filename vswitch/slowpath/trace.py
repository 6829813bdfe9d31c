# SPDX-License-Identifier: Apache-2.0
"""What would become of packets (trace.packet), and what becomes of the next ones (trace.live)."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Iterator, Sequence

from vswitch.slowpath import pipeline
from vswitch.slowpath.errors import BadParams, SwitchError
from vswitch.slowpath.fastpath import TAP_TRACE, TapRecord
from vswitch.slowpath.flowtext import key_fields, match_text, present, summary
from vswitch.slowpath.params import entry_of, optional_entry
from vswitch.slowpath.ports import whole_number
from vswitch.slowpath.rpc import Client, Params
from vswitch.slowpath.simulate import HEAD_LEN, Fate, Result, Simulator
from vswitch.slowpath.switch import PortEntry, Switch
from vswitch.slowpath.types import Action, ActionType, Decision, Drop, Key

_LIVE_MAX = 1_000_000
# A reader of a live trace that does not keep up misses packets, and they do not count towards its N.
_BACKLOG_MAX = 2**20


def _vlan(frame: bytes) -> int:
    """The VID of the outer tag, 0 without one."""
    if int.from_bytes(frame[12:14]) in pipeline.VLAN_TPIDS:
        return int.from_bytes(frame[14:16]) & 0x0FFF
    return 0


class Tracer:
    """The two trace methods of the control socket."""

    def __init__(self, switch: Switch) -> None:
        self._switch = switch

    def _to_json(self, fate: Fate, frame_len: int, reasons: Sequence[str], flow: int | None) -> dict[str, object]:
        label = self._switch.port_label
        key = fate.key
        return {
            "summary": summary(key, frame_len) if key else f"{frame_len} bytes",
            "key": key_fields(key, present(key), label) if key else None,
            "result": fate.result,
            "outputs": [{"port": label(to), "frame_len": len(sent), "vlan": _vlan(sent)} for to, sent in fate.outputs],
            "drop": fate.drop.label if fate.result is Result.DROPPED else None,
            "reasons": list(reasons),
            "flow": flow,
        }

    # ---- what would happen -----------------------------------------------------

    async def packet(self, params: Params, client: Client) -> object:
        """trace.packet: each of `frames`, as if received one after the other on `port`."""
        entry = entry_of(self._switch, params, "port")
        frames = params.get("frames")
        if not isinstance(frames, list):
            raise BadParams("frames: a list of base64 texts is needed")
        decoded = [_frame(number, frame) for number, frame in enumerate(frames, start=1)]
        if not entry.id:
            raise SwitchError(f"port {entry.config.name} is not open: {entry.reason}")
        return self._predict(entry, decoded)

    def _predict(self, entry: PortEntry, frames: Sequence[bytes]) -> Iterator[object]:
        simulator = Simulator(self._switch.core.fork())
        for frame in frames:
            fate = simulator.send(entry.id, frame, time.monotonic())
            reasons = (fate.decision.reasons if fate.decision else ()) + self._losses(fate, entry.id)
            flow = self._live_flow(fate.key) if fate.key else None
            yield self._to_json(fate, len(frame), reasons, flow)

    def _losses(self, fate: Fate, in_port: int) -> tuple[str, ...]:
        """What the decision's own reasons do not say: refusals before it, losses after it."""
        if fate.decision is None:
            return (f"refused before any decision: {fate.drop.label}",)
        losses = [(port_id, drop) for port_id, drop in fate.drops if (port_id, drop) != (in_port, fate.decision.drop)]
        return tuple(f"lost at {self._switch.port_label(port_id)}: {drop.label}" for port_id, drop in losses)

    def _live_flow(self, key: Key) -> int | None:
        return self._switch.flows.handle(self._switch.fast_path.flow_lookup(key))

    # ---- what happens ------------------------------------------------------------

    async def live(self, params: Params, client: Client) -> object:
        """trace.live: a notification for each of the next `n` packets (received on `port`), then how many."""
        wanted = whole_number(1, _LIVE_MAX)("n", params.get("n"))
        entry = optional_entry(self._switch, params)
        told = 0

        def deliver(records: Sequence[TapRecord]) -> None:
            nonlocal told
            for record in records:
                if told < wanted and client.backlog() < _BACKLOG_MAX:
                    client.notify("trace", {"time": record.time_ns / 1e9} | self._became(record))
                    told += 1
            if told == wanted:
                subscription.ended.set()

        subscription = self._switch.taps.subscribe(entry.id if entry else None, TAP_TRACE, HEAD_LEN, deliver)
        try:
            await client.until_closed(subscription.ended)
        finally:
            self._switch.taps.unsubscribe(subscription)
        return {"count": told}

    def _became(self, record: TapRecord) -> dict[str, object]:
        # The tap has the headers; lengths inside them are checked against the whole frame's.
        frame = record.frame.ljust(record.frame_len, b"\0")
        key = record.dropped or pipeline.parse(frame, record.port_id)
        if isinstance(key, Drop):
            why = f"refused before any decision: {key.label}"
            return self._to_json(Fate(Result.DROPPED, key), len(frame), [why], None)
        decision = self._switch.core.decide(key, time.monotonic())
        handle = self._switch.flows.handle(record.flow_id)
        flow = self._switch.core.flows().get(handle) if handle is not None else None
        if flow is not None:
            actions = flow.actions
            reasons = [f"flow {handle} matches: {match_text(flow.key, flow.mask, self._switch.port_label)}"]
        elif record.flow_id:
            actions = record.actions
            reasons = ["a flow matched that is gone since"]
        else:
            actions = decision.actions
            reasons = ["no flow matches: the slow path decides"]
        if decision.actions == actions:
            reasons += decision.reasons
        return self._to_json(_fate(key, frame, actions, decision), len(frame), reasons, handle)


def _fate(key: Key, frame: bytes, actions: Sequence[Action], decision: Decision) -> Fate:
    """What `actions` do to a frame; what its output ports then do with it is not in a trace."""
    outputs = tuple(pipeline.apply(actions, frame))
    if any(action.type is ActionType.OUTPUT for action in actions):
        result = Result.FLOODED if decision.floods else Result.FORWARDED
        return Fate(result, key=key, outputs=outputs)
    drop = next((Drop(action.arg) for action in actions if action.type is ActionType.DROP), Drop.POLICY)
    return Fate(Result.DROPPED, drop, key=key, outputs=outputs)


def _frame(number: int, text: object) -> bytes:
    try:
        return base64.b64decode(str(text), validate=True)
    except binascii.Error:
        raise BadParams(f"frames: number {number} is not base64") from None
