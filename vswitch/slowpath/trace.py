# SPDX-License-Identifier: Apache-2.0
"""What would become of a packet (trace.packet), and what became of the next ones (trace.live)."""

from __future__ import annotations

import base64
import binascii
import copy
import time
from collections.abc import Iterator, Sequence

from vswitch.slowpath import pipeline
from vswitch.slowpath.core import SwitchCore
from vswitch.slowpath.errors import BadParams, SwitchError
from vswitch.slowpath.fastpath import TAP_TRACE, TapRecord
from vswitch.slowpath.flowtext import key_fields, match_text, present, summary
from vswitch.slowpath.params import entry_of, optional_entry
from vswitch.slowpath.ports import whole_number
from vswitch.slowpath.rpc import Client, Params
from vswitch.slowpath.switch import PortEntry, Switch
from vswitch.slowpath.types import Action, ActionType, Drop, Finish, Key, Upcall

# Enough for every header that the parser reads.
_HEAD = 256
_LIVE_MAX = 1_000_000
# A reader of a live trace that does not keep up misses packets, and they do not count towards its N.
_BACKLOG_MAX = 2**20
# Two VLAN tags and the Ethernet header, beyond the MTU (ff.h, FF_DROP_OVERSIZE).
_OVERHEAD = 22


def _outputs(switch: Switch, frames: Sequence[tuple[int, bytes]]) -> tuple[list[object], list[str], Drop]:
    """(what arrives where, what does not and why, the last such reason)."""
    outputs: list[object] = []
    reasons: list[str] = []
    drop = Drop.NONE
    for port_id, frame in frames:
        name = switch.port_label(port_id)
        entry = switch.ports.get(name)
        if entry is None:
            drop = Drop.PORT_GONE
            reasons.append(f"{name} does not exist any more")
        elif not entry.up:
            drop = Drop.PORT_DOWN
            reasons.append(f"{name} is {entry.state.label}: nothing can be sent to it")
        elif len(frame) > entry.config.mtu + _OVERHEAD:
            drop = Drop.TX_OVERSIZE
            reasons.append(f"{len(frame)} bytes are more than the MTU of {name}, {entry.config.mtu}, allows")
        else:
            outputs.append({"port": name, "frame_len": len(frame), "vlan": _vlan(frame)})
    return outputs, reasons, drop


def _vlan(frame: bytes) -> int:
    """The VID of the outer tag, 0 without one."""
    if int.from_bytes(frame[12:14]) in pipeline.VLAN_TPIDS:
        return int.from_bytes(frame[14:16]) & 0x0FFF
    return 0


def _drop_of(actions: Sequence[Action]) -> Drop:
    return next((Drop(a.arg) for a in actions if a.type is ActionType.DROP), Drop.POLICY)


def _dropped(text: str, fields: dict[str, str] | None, drop: Drop, reasons: list[str]) -> dict[str, object]:
    return {
        "summary": text,
        "key": fields,
        "result": "dropped",
        "outputs": [],
        "drop": drop.label,
        "reasons": reasons,
        "flow": None,
    }


class Tracer:
    """The two trace methods of the control socket."""

    def __init__(self, switch: Switch) -> None:
        self._switch = switch

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
        return self._predict_all(entry, decoded)

    def _predict_all(self, entry: PortEntry, frames: Sequence[bytes]) -> Iterator[object]:
        model = copy.deepcopy(self._switch.core)
        for frame in frames:
            yield self._predict(model, entry, frame)

    def _predict(self, model: SwitchCore, entry: PortEntry, frame: bytes) -> dict[str, object]:
        if len(frame) > entry.config.mtu + _OVERHEAD:
            why = f"{len(frame)} bytes are more than the MTU of {entry.config.name}, {entry.config.mtu}, allows"
            return _dropped(f"{len(frame)} bytes", None, Drop.OVERSIZE, [why])
        key = pipeline.parse(frame, entry.id)
        if isinstance(key, Drop):
            return _dropped(f"{len(frame)} bytes", None, key, [f"the parser refuses it: {key.label}"])
        now = time.monotonic()
        decision = model.decide(key, now)
        commands = model.upcall(Upcall(0, key, frame, len(frame)), now)
        actions = next(c.actions for c in commands if isinstance(c, Finish))
        flow_id = self._switch.flows.handle(self._switch.fast_path.flow_lookup(key))
        return self._report(key, frame, actions, list(decision.reasons), flow_id)

    def _report(
        self, key: Key, frame: bytes, actions: Sequence[Action], reasons: list[str], flow: int | None
    ) -> dict[str, object]:
        text = summary(key, len(frame))
        fields = key_fields(key, present(key), self._switch.port_label)
        wanted = pipeline.apply(actions, frame)
        if not wanted:
            return _dropped(text, fields, _drop_of(actions), reasons) | {"flow": flow}
        outputs, failures, drop = _outputs(self._switch, wanted)
        if not outputs:
            return _dropped(text, fields, drop, reasons + failures) | {"flow": flow}
        return {
            "summary": text,
            "key": fields,
            "result": "flooded" if any("flood" in reason for reason in reasons) else "forwarded",
            "outputs": outputs,
            "drop": None,
            "reasons": reasons + failures,
            "flow": flow,
        }

    # ---- what happened ------------------------------------------------------------

    async def live(self, params: Params, client: Client) -> object:
        """trace.live: a notification for each of the next `n` packets (received on `port`), then how many."""
        wanted = whole_number(1, _LIVE_MAX)("n", params.get("n"))
        entry = optional_entry(self._switch, params)
        told = 0

        def deliver(records: Sequence[TapRecord]) -> None:
            nonlocal told
            for record in records:
                if told == wanted or client.backlog() > _BACKLOG_MAX:
                    break
                client.notify("trace", self._record(record))
                told += 1
            if told == wanted:
                subscription.ended.set()

        subscription = self._switch.taps.subscribe(entry.id if entry else None, TAP_TRACE, _HEAD, deliver)
        try:
            await client.until_closed(subscription.ended)
        finally:
            self._switch.taps.unsubscribe(subscription)
        return {"count": told}

    def _record(self, record: TapRecord) -> dict[str, object]:
        return {"time": record.time_ns / 1e9} | self._became(record)

    def _became(self, record: TapRecord) -> dict[str, object]:
        # The tap has the headers; lengths inside them are checked against the whole frame's.
        frame = record.frame.ljust(record.frame_len, b"\0")
        key = pipeline.parse(frame, record.port_id)
        if isinstance(key, Drop):
            drop = record.dropped or key
            return _dropped(f"{record.frame_len} bytes", None, drop, [f"the parser refused it: {drop.label}"])
        decision = self._switch.core.decide(key, time.monotonic())
        handle = self._switch.flows.handle(record.flow_id)
        flow = self._switch.core.flows().get(handle) if handle is not None else None
        if flow is None and record.flow_id:
            return self._report(key, frame, record.actions, ["a flow matched it that is gone since"], None)
        if flow is None:
            reasons = ["no flow matched it: the slow path decides", *decision.reasons]
            return self._report(key, frame, decision.actions, reasons, None)
        reasons = [f"flow {handle} matched it: {match_text(flow.key, flow.mask, self._switch.port_label)}"]
        if decision.actions == flow.actions:
            reasons += decision.reasons
        return self._report(key, frame, flow.actions, reasons, handle)


def _frame(number: int, text: object) -> bytes:
    try:
        return base64.b64decode(str(text), validate=True)
    except binascii.Error:
        raise BadParams(f"frames: number {number} is not base64") from None
