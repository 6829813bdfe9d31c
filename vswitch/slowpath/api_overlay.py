# SPDX-License-Identifier: Apache-2.0
"""The methods of the control socket about other hosts: the controller, uplinks, tunnel ends, paths of pairs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from controller.explain import decision_json
from vswitch.slowpath.agent.report import is_endpoint
from vswitch.slowpath.api_shortcuts import ShortcutApi
from vswitch.slowpath.errors import BadParams, SwitchError
from vswitch.slowpath.memory.rules import pair_of_ports
from vswitch.slowpath.ports import endpoint_name
from vswitch.slowpath.rdma import gid_text
from vswitch.slowpath.rpc import Client, Params
from vswitch.slowpath.switch import PortEntry, Switch
from vswitch.slowpath.types import TUNNEL_RDMA, Action, ActionType
from vswitch.slowpath.uplinks import RemoteView, Uplinks

if TYPE_CHECKING:
    from vswitch.slowpath.agent.agent import Agent

# How long port.add waits for the controller when nobody says how long.
_PLACE_S = 5.0


class OverlayApi:
    """Answers from the uplinks and, where there are controllers, the agent."""

    def __init__(self, switch: Switch, uplinks: Uplinks, agent: Agent | None) -> None:
        self._switch, self._uplinks, self._agent = switch, uplinks, agent
        self._shortcuts = ShortcutApi(switch)

    def placement(self, entry: PortEntry) -> dict[str, Any] | None:
        """What the controller says to a port."""
        placement = self._agent.placement(entry) if self._agent is not None else None
        return asdict(placement) if placement is not None else None

    async def wait_placed(self, entry: PortEntry, seconds: float) -> None:
        """Wait until the controller has decided on a port. Without a number, only for a controller that is there."""
        if self._agent is None:
            return
        placement = self._agent.placement(entry)
        if placement is not None and (seconds or placement.state == "waiting"):
            await self._agent.wait_placed(entry, seconds or _PLACE_S)

    def remote_text(self, number: int) -> str:
        """The address of a tunnel end."""
        return self._uplinks.remote_text(number)

    def path(self, actions: Iterable[Action]) -> str | None:
        """By what a flow's packets reach another host now, "rdma" or "vxlan"; None: they go to none."""
        ends = [action.arg for action in actions if action.type is ActionType.SET_TUNNEL]
        if not ends or self._agent is None:
            return "vxlan" if ends else None
        return "rdma" if all(e & TUNNEL_RDMA and self._agent.rdma.carries(e & ~TUNNEL_RDMA) for e in ends) else "vxlan"

    async def status(self, params: Params, client: Client) -> object:
        """status: the session with the controller, the uplinks, the tunnel ends of other hosts."""
        return {
            "controller": self._agent.status() if self._agent is not None else None,
            "uplinks": [asdict(view) for view in self._uplinks.views()],
            "remotes": [_remote(view) for view in self._uplinks.remotes()],
            "rdma": _rdma(self._agent) if self._agent is not None else None,
        }

    async def explain(self, params: Params, client: Client) -> object:
        """explain: the path of a pair of endpoints, and why no better one."""
        names = []
        for key in ("source", "destination"):
            if params.get(key) is None:
                raise BadParams(f"{key} is missing: an endpoint's name")
            names.append(endpoint_name(key, params[key]))
        return self._decision(*names) | {"shortcuts": self._shortcuts.pair(*names)}

    def _decision(self, source: str, destination: str) -> dict[str, Any]:
        ends = [self._switch.ports.get(name) for name in (source, destination)]
        configs = [entry.config for entry in ends if entry is not None]
        if len(configs) == len(ends) and (self._agent is None or not any(map(is_endpoint, configs))):
            return decision_json(pair_of_ports(*configs))
        if self._agent is None:
            unknown = source if ends[0] is None else destination
            raise SwitchError(f"there is no port {unknown}, and this host has no controller that knows other endpoints")
        return self._agent.explain(source, destination)


def _rdma(agent: Agent) -> dict[str, object]:
    found = agent.rdma_devices
    ports = [
        {
            "name": port.label,
            "state": port.state,
            "mtu": port.mtu,
            "gids": [{"index": gid.index, "gid": gid_text(gid.address), "type": str(gid.kind)} for gid in port.gids],
        }
        for port in found.ports
    ]
    peers = [asdict(view) for view in agent.rdma.views()]
    return {"ports": ports, "problems": list(found.problems), "peers": peers}


def _remote(view: RemoteView) -> dict[str, object]:
    hop = view.next_hop
    return {
        "number": view.number,
        "uplink": view.uplink,
        "local": view.local,
        "remote": view.remote,
        "next_hop": view.hop_text,
        "mac": hop.mac.hex(":") if hop.mac else "",
        "why": hop.why,
    }
