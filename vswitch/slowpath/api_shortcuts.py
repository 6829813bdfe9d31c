# SPDX-License-Identifier: Apache-2.0
"""Shortcuts as the control socket tells of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vswitch.slowpath.memory.words import Stage
from vswitch.slowpath.ports import told_mac
from vswitch.slowpath.reasons import mac_text
from vswitch.slowpath.switch import PortEntry, Switch
from vswitch.slowpath.types import PortType


class ShortcutApi:
    """What is said of shortcuts where ports, flows and paths are shown."""

    def __init__(self, switch: Switch) -> None:
        self._switch = switch

    def traffic(self, entry: PortEntry) -> dict[str, int]:
        """What passed the switch by; rx is what the port sent, as in the switch's own counters."""
        sent, received = self._switch.shortcuts.traffic(entry.id)
        return {
            "rx_packets": sent.packets,
            "rx_bytes": sent.bytes,
            "tx_packets": received.packets,
            "tx_bytes": received.bytes,
        }

    def of_port(self, entry: PortEntry) -> dict[str, object] | None:
        """A memory port's shortcuts: the ports at the other ends, and what passed; None for other ports."""
        if entry.config.type is not PortType.FF:
            return None
        views = [view for view in self._switch.shortcuts.views() if view.stage is Stage.OPEN]
        label = self._switch.port_label
        return {
            "to": sorted({label(view.receiver) for view in views if view.sender == entry.id}),
            "from": sorted({label(view.sender) for view in views if view.receiver == entry.id}),
            **self.traffic(entry),
        }

    def flows(self, only: PortEntry | None) -> Iterator[dict[str, object]]:
        """The shortcuts in the form of flows."""
        label = self._switch.port_label
        for view in self._switch.shortcuts.views():
            if only is not None and only.id not in (view.sender, view.receiver):
                continue
            sender, receiver, mac = label(view.sender), label(view.receiver), mac_text(view.mac)
            yield {
                "id": view.epoch,
                "match": f"in_port={sender},vlan_tci=0x0000,dl_dst={mac}",
                "key": {"in_port": sender, "dl_dst": mac},
                "actions": f"zero-copy:{receiver}",
                "packets": view.packets,
                "bytes": view.bytes,
                "idle_s": round(view.idle),
                "shortcut": {"state": view.stage.label, "why": view.ends, "setup_ms": round(view.took * 1000, 3)},
            }

    def pair(self, source: str, destination: str) -> list[dict[str, Any]]:
        """How packets go now between the ports of two endpoints of this host, each way; none: they are not here."""
        ends = [self._switch.ports.get(name) for name in (source, destination)]
        found = [entry for entry in ends if entry is not None and entry.config.type is PortType.FF]
        if len(found) < len(ends):
            return []
        return [self._way(*found), self._way(*reversed(found))]

    def _way(self, sender: PortEntry, receiver: PortEntry) -> dict[str, Any]:
        known = [entry.mac for entry in self._switch.core.fdb() if entry.port == receiver.id]
        mac = known[0] if known else bytes.fromhex(told_mac(receiver.config).replace(":", ""))
        views = self._switch.shortcuts.views()
        open_ = [v for v in views if (v.sender, v.receiver) == (sender.id, receiver.id) and v.stage is Stage.OPEN]
        return {
            "from": sender.config.name,
            "to": receiver.config.name,
            "open": bool(open_),
            "packets": sum(view.packets for view in open_),
            "bytes": sum(view.bytes for view in open_),
            "why": self._switch.shortcuts.why_not(sender.id, receiver.id, mac),
        }
