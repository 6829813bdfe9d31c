# SPDX-License-Identifier: Apache-2.0
"""The bridging rules once more, as plainly as they can be said: a second opinion for the core's tests.

No flows, no masks, no caches, no actions: what comes out for a frame and a
known set of addresses, worked out on the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from vswitch.slowpath.core import SwitchCore
from vswitch.slowpath.types import Drop, FdbEntry, Port

TPIDS = (b"\x81\x00", b"\x88\xa8", b"\x91\x00")


class NaiveBridge:
    """The ports and addresses of a core at one moment, and where a frame that arrives then has to come out."""

    def __init__(self, core: SwitchCore) -> None:
        self.ports: Mapping[int, Port] = dict(core.ports())
        self.entries: dict[tuple[str, int, bytes], FdbEntry] = {
            (entry.network, entry.vlan, entry.mac): entry for entry in core.fdb()
        }

    def is_mirror(self, port_id: int) -> bool:
        return self.ports[port_id].config.name in {port.config.mirror for port in self.ports.values()}

    def learned_on(self, port_id: int) -> int:
        return sum(entry.port == port_id and not entry.static for entry in self.entries.values())

    def judge(self, in_port: int, frame: bytes) -> tuple[Drop, list[tuple[int, bytes]]]:
        """(why it is dropped, or NONE; port and frame of each output, ports that are down among them)."""
        config = self.ports[in_port].config
        if self.is_mirror(in_port):
            return Drop.POLICY, []
        vid = _vid(frame)
        vlan = vid or config.tag or config.native_vlan
        if (config.tag and vid) or not self.carries(in_port, vlan):
            return Drop.VLAN, []
        dst, src = frame[:6], frame[6:12]
        if dst.startswith(b"\x01\x80\xc2\x00\x00") and dst[5] <= 0x0F:
            return Drop.RESERVED_MAC, []
        known = {station: entry.port for station, entry in self.entries.items()}
        entry = self.entries.get((config.network, vlan, src))
        if entry and entry.held_until and entry.port != in_port:
            return Drop.MOVE_HOLD, []
        static = entry is not None and entry.static
        target = None if dst[0] & 1 else known.get((config.network, vlan, dst))
        if dst == src and any(src) and not static:
            target = in_port
        if target == in_port:
            return Drop.SAME_PORT, []
        if target is not None:
            outputs = [target]
        else:
            outputs = [port.id for port in self.ports.values() if port.up and port.id != in_port]
        outputs = [port_id for port_id in outputs if self.ports[port_id].config.network == config.network]
        outputs = [port_id for port_id in outputs if self.carries(port_id, vlan) and not self.is_mirror(port_id)]
        sent = [(port_id, self.egress(port_id, vlan, frame)) for port_id in outputs]
        return (Drop.NONE if sent else Drop.NO_DEST), sent

    def carries(self, port_id: int, vlan: int) -> bool:
        config = self.ports[port_id].config
        if config.tag:
            return vlan == config.tag
        return vlan == config.native_vlan or (vlan != 0 and (not config.trunks or vlan in config.trunks))

    def egress(self, port_id: int, vlan: int, frame: bytes) -> bytes:
        config = self.ports[port_id].config
        tagged = frame[12:14] in TPIDS
        untagged = frame[:12] + frame[16:] if tagged else frame
        if config.tag:
            return untagged
        if vlan == config.native_vlan:
            return untagged if _vid(frame) else frame
        if tagged:  # a priority tag is filled in, any other names the VLAN already
            return frame[:14] + bytes([frame[14] & 0xF0 | vlan >> 8, vlan & 0xFF]) + frame[16:]
        return frame[:12] + b"\x81\x00" + vlan.to_bytes(2) + frame[12:]

    def copies(self, in_port: int, outputs: list[tuple[int, bytes]]) -> list[int]:
        """The mirror ports that get a copy, by id."""
        names = {self.ports[port_id].config.mirror for port_id in (in_port, *(port_id for port_id, _ in outputs))}
        return [port.id for port in self.ports.values() if port.up and port.id != in_port and port.config.name in names]


def _vid(frame: bytes) -> int:
    return int.from_bytes(frame[14:16]) & 0xFFF if frame[12:14] in TPIDS else 0
