# SPDX-License-Identifier: Apache-2.0
"""The methods of the control socket: what each takes and gives."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

from vswitch import __version__
from vswitch.slowpath import stats
from vswitch.slowpath.api_overlay import OverlayApi
from vswitch.slowpath.api_shortcuts import ShortcutApi
from vswitch.slowpath.capture import SNAPLEN_MAX, Capture
from vswitch.slowpath.counters import WorkerStats
from vswitch.slowpath.errors import BadParams, SwitchError
from vswitch.slowpath.fastpath import TAP_RX, TAP_TX
from vswitch.slowpath.flowtext import actions_text, key_fields, match_text
from vswitch.slowpath.params import entry_of, flag, number, optional_entry
from vswitch.slowpath.ports import ADD_KEYS, port_name, port_to_json, read_port, told_ips, told_mac, whole_number
from vswitch.slowpath.reasons import mac_text
from vswitch.slowpath.rpc import Client, Method, Params, Stream
from vswitch.slowpath.switch import PortEntry, Switch
from vswitch.slowpath.trace import Tracer
from vswitch.slowpath.types import ActionType, Flow

LOG_LEVELS = ("debug", "info", "warning", "error")
WAIT_MAX_S = 3600.0
IDLE_MAX_US = 100_000
RATE_MAX = 1e9

_SWITCH = {"true": True, "false": False}
_DIRECTIONS = {"both": TAP_RX | TAP_TX, "rx": TAP_RX, "tx": TAP_TX}


@dataclass(frozen=True, slots=True)
class Settings:
    """What `ffswitch set` changes of the switch as a whole. Times in seconds, idle_spin and idle_sleep in µs."""

    mac_age: float = 300.0
    flow_idle: float = 10.0
    idle_spin: int = 50  # an idle worker sleeps after so long
    idle_sleep: int = 100  # and so long at most, when nothing can wake it; 0: it never sleeps
    shortcut_rate: float = 1000.0  # packets/s of a flow that gets a shortcut; 0: its first packet does
    shortcut_idle: float = 30.0  # a shortcut that carries nothing for so long ends
    auto_lb: bool = True  # receive queues move between workers by load
    log_level: str = "info"


def change_settings(settings: Settings, values: object) -> Settings:
    """`settings` with `values`, or BadParams."""
    if not isinstance(values, dict):
        raise BadParams("switch.set: values must be an object")
    known = asdict(settings)
    for key, value in values.items():
        if key not in known:
            raise BadParams(f"switch.set: unknown key {key[:60]!r}: known are {', '.join(sorted(known))}")
        if key == "log_level":
            if value not in LOG_LEVELS:
                raise BadParams(f"log_level: {str(value)[:60]!r} is none of {', '.join(LOG_LEVELS)}")
            settings = replace(settings, log_level=value)
        elif key == "idle_spin":
            settings = replace(settings, idle_spin=whole_number(0, IDLE_MAX_US)(key, value))
        elif key == "idle_sleep":
            settings = replace(settings, idle_sleep=whole_number(0, IDLE_MAX_US)(key, value))
        elif key == "auto_lb":
            settings = replace(settings, auto_lb=flag({key: _SWITCH.get(str(value).lower(), value)}, key))
        elif key == "shortcut_rate":
            settings = replace(settings, shortcut_rate=number(key, value, 0, RATE_MAX))
        elif key == "shortcut_idle":
            settings = replace(settings, shortcut_idle=number(key, value, 1, 86400))
        elif key == "mac_age":
            settings = replace(settings, mac_age=number(key, value, 1, 86400))
        else:
            settings = replace(settings, flow_idle=number(key, value, 1, 86400))
    return settings


class Api:
    """Answers requests from `switch`."""

    def __init__(self, switch: Switch, settings: Settings, dpdk_version: str, overlay: OverlayApi) -> None:
        self._switch = switch
        self._settings = settings
        self._dpdk_version = dpdk_version
        self._overlay = overlay
        self._shortcuts = ShortcutApi(switch)
        self._started = time.monotonic()
        self._trace = Tracer(switch)
        self.apply_settings()

    def methods(self) -> dict[str, Method]:
        """All methods by name."""
        port = frozenset({"port"})
        name = frozenset({"name"})
        return {
            "version": Method(self._version),
            "port.add": Method(self._port_add, ADD_KEYS | {"may_exist", "wait_s"}),
            "port.del": Method(self._port_del, name | {"if_exists"}),
            "port.list": Method(self._port_list),
            "port.get": Method(self._port_get, name),
            "port.set": Method(self._port_set, name | {"values"}),
            "switch.get": Method(self._switch_get),
            "switch.set": Method(self._switch_set, frozenset({"values"})),
            "show": Method(self._show),
            "stats": Method(self._stats, port),
            "workers": Method(self._workers),
            "rebalance": Method(self._rebalance),
            "flow.dump": Method(self._flow_dump, port),
            "flow.flush": Method(self._flow_flush),
            "fdb.dump": Method(self._fdb_dump, port),
            "fdb.flush": Method(self._fdb_flush, port),
            "capture": Method(self._capture, port | {"snaplen", "direction"}),
            "status": Method(self._overlay.status),
            "explain": Method(self._overlay.explain, frozenset({"source", "destination"})),
            "trace.packet": Method(self._trace.packet, port | {"frames"}),
            "trace.live": Method(self._trace.live, port | {"n"}),
        }

    # ---- helpers ----------------------------------------------------------

    def _port_to_json(self, entry: PortEntry) -> dict[str, object]:
        result = port_to_json(entry.config) | {
            "id": entry.id,
            "state": entry.state.label,
            "reason": entry.reason,
            "since": round(entry.since, 3),
            "mac": told_mac(entry.config),
            "ips": list(told_ips(entry.config)),
            "vni": entry.config.vni,
            "endpoint": self._overlay.placement(entry),
            "shortcuts": self._shortcuts.of_port(entry),
            "warnings": self._switch.port_warnings(entry),
        }
        if not entry.id:
            return result | {"driver": "", "rx_queues": 0, "tx_queues": 0, "features": 0, "stats": stats.NO_TRAFFIC}
        info = self._switch.fast_path.port_info(entry.id)
        return result | {
            "driver": info.driver,
            "rx_queues": info.rx_queues,
            "tx_queues": info.tx_queues,
            "features": info.features,
            "stats": stats.traffic(self._switch.fast_path.port_stats(entry.id)),
        }

    # ---- the switch ---------------------------------------------------------

    def _version_json(self) -> dict[str, object]:
        return {
            "version": __version__,
            "dpdk": self._dpdk_version,
            "pid": os.getpid(),
            "run_dir": str(self._switch.run_dir),
            "uptime_s": round(time.monotonic() - self._started, 1),
            "workers": [{"cpu": worker.cpu} for worker in self._switch.fast_path.worker_stats()],
        }

    async def _version(self, params: Params, client: Client) -> object:
        return self._version_json()

    async def _switch_get(self, params: Params, client: Client) -> object:
        return asdict(self._settings)

    async def _switch_set(self, params: Params, client: Client) -> object:
        self._settings = change_settings(self._settings, params.get("values"))
        self.apply_settings()
        return asdict(self._settings)

    def apply_settings(self) -> None:
        """Tell everyone concerned."""
        self._switch.core.mac_age = self._settings.mac_age
        self._switch.core.flow_idle = self._settings.flow_idle
        self._switch.fast_path.idle_set(self._settings.idle_spin, self._settings.idle_sleep)
        self._switch.workers.auto_lb = self._settings.auto_lb
        self._switch.shortcuts.rate = self._settings.shortcut_rate
        self._switch.shortcuts.core.idle = self._settings.shortcut_idle
        logging.getLogger().setLevel(self._settings.log_level.upper())

    async def _show(self, params: Params, client: Client) -> object:
        return {
            "version": self._version_json(),
            "switch": asdict(self._settings),
            "ports": [self._port_to_json(entry) for entry in self._switch.ports.values()],
            "flows": len(self._switch.core.flows()),
            "macs": len(self._switch.core.fdb()),
            "totals": self._totals(),
        }

    def _totals(self) -> dict[str, object]:
        sums = self._switch.counters()
        return sums.to_json(sum(worker.parked for worker in self._switch.fast_path.worker_stats()))

    async def _stats(self, params: Params, client: Client) -> object:
        only = optional_entry(self._switch, params)
        entries = [only] if only else self._switch.ports.values()
        fast_path = self._switch.fast_path
        return {
            "ports": {
                e.config.name: stats.port_to_json(fast_path.port_stats(e.id))
                | {"shortcuts": self._shortcuts.traffic(e)}
                for e in entries
                if e.id
            },
            "workers": [stats.worker_to_json(worker, load) for worker, load in self._workers_and_loads()],
            "totals": self._totals(),
            "warnings": self._warnings(entries),
            "time_s": time.monotonic(),
            "tsc_hz": fast_path.tsc_hz,
        }

    def _workers_and_loads(self) -> Iterator[tuple[WorkerStats, float]]:
        return zip(self._switch.fast_path.worker_stats(), self._switch.workers.loads(), strict=True)

    def _warnings(self, entries: Iterable[PortEntry]) -> list[str]:
        found = [f"port {e.config.name}: {warning}" for e in entries for warning in self._switch.port_warnings(e)]
        return found + self._switch.worker_warnings()

    async def _workers(self, params: Params, client: Client) -> object:
        workers = self._switch.workers
        return {
            "workers": [
                {"cpu": worker.cpu, "load_pct": stats.percent(load), "sleeps": worker.sleeps}
                for worker, load in self._workers_and_loads()
            ],
            "queues": [
                {
                    "port": self._switch.port_label(rxq.port_id),
                    "queue": rxq.queue,
                    "worker": rxq.worker,
                    "load_pct": stats.percent(rxq.load),
                    "pinned": rxq.pinned,
                }
                for rxq in workers.rxqs()
            ],
        }

    async def _rebalance(self, params: Params, client: Client) -> object:
        return [
            {"port": self._switch.port_label(move.port_id), "queue": move.queue, "worker": move.worker}
            for move in self._switch.workers.rebalance()
        ]

    # ---- ports ------------------------------------------------------------

    async def _port_add(self, params: Params, client: Client) -> object:
        config = read_port({key: params[key] for key in params.keys() & ADD_KEYS}, self._switch.run_dir)
        wait = params.get("wait_s")
        seconds = 0.0 if wait is None else number("wait_s", wait, 0, WAIT_MAX_S)
        entry = self._switch.add(config, may_exist=flag(params, "may_exist"))
        if seconds:
            await self._switch.wait_ready(entry, seconds)
        await self._overlay.wait_placed(entry, seconds)
        return self._port_to_json(entry)

    async def _port_del(self, params: Params, client: Client) -> object:
        if_exists = flag(params, "if_exists")
        if if_exists and port_name("name", params.get("name")) not in self._switch.ports:
            return {"deleted": False}
        self._switch.remove(entry_of(self._switch, params, "name").config.name)
        return {"deleted": True}

    async def _port_list(self, params: Params, client: Client) -> object:
        return iter([self._port_to_json(entry) for entry in self._switch.ports.values()])

    async def _port_get(self, params: Params, client: Client) -> object:
        return self._port_to_json(entry_of(self._switch, params, "name"))

    async def _port_set(self, params: Params, client: Client) -> object:
        values = params.get("values")
        if not isinstance(values, dict):
            raise BadParams("port.set: values must be an object")
        entry = entry_of(self._switch, params, "name")
        return self._port_to_json(self._switch.change(entry.config.name, values))

    # ---- flows and addresses --------------------------------------------------

    async def _flow_dump(self, params: Params, client: Client) -> object:
        only = optional_entry(self._switch, params)
        flows = [
            (handle, flow)
            for handle, flow in self._switch.core.flows().items()
            if only is None or _concerns(flow, only.id)
        ]
        return itertools.chain(self._flows_json(flows), self._shortcuts.flows(only))

    def _flows_json(self, flows: list[tuple[int, Flow]]) -> Iterator[object]:
        port = self._switch.port_label
        for handle, flow in flows:
            counters = self._switch.flows.stats([handle])[handle]
            yield {
                "id": handle,
                "match": match_text(flow.key, flow.mask, port),
                "key": key_fields(flow.key, flow.mask, port),
                "actions": actions_text(flow.actions, port, self._overlay.remote_text),
                "path": self._overlay.path(flow.actions),
                "packets": counters.packets,
                "bytes": counters.bytes,
                "idle_s": max(0, round(time.monotonic() - counters.last_used)) if counters.last_used else None,
            }

    async def _flow_flush(self, params: Params, client: Client) -> object:
        return {"deleted": self._switch.flush_flows()}

    async def _fdb_dump(self, params: Params, client: Client) -> object:
        only = optional_entry(self._switch, params)
        now = time.monotonic()
        return (
            {
                "network": entry.network,
                "vlan": entry.vlan,
                "mac": mac_text(entry.mac),
                "port": self._switch.port_label(entry.port),
                "age_s": round(max(0.0, now - entry.last_seen), 1),
                "ips": list(entry.ips),
                "static": entry.static,
                "moves": entry.moves,
                "held": entry.held_until > now,
            }
            for entry in tuple(self._switch.core.fdb())
            if only is None or entry.port == only.id
        )

    async def _fdb_flush(self, params: Params, client: Client) -> object:
        only = optional_entry(self._switch, params)
        return {"deleted": self._switch.flush_fdb(only)}

    # ---- capture --------------------------------------------------------------

    async def _capture(self, params: Params, client: Client) -> object:
        entry = entry_of(self._switch, params, "port")
        if not entry.id:
            raise SwitchError(f"port {entry.config.name} is not open: {entry.reason}")
        snaplen = whole_number(1, SNAPLEN_MAX)("snaplen", params.get("snaplen", SNAPLEN_MAX))
        kinds = _DIRECTIONS.get(str(params.get("direction", "both")))
        if kinds is None:
            raise BadParams(f"direction: say {', '.join(_DIRECTIONS)}")
        # They go through the switch as long as the capture runs: it would miss their packets.
        shortcuts = self._switch.shortcuts.count(entry.id)
        return Stream({"ok": True, "shortcuts": shortcuts}, lambda: self._run_capture(entry, snaplen, kinds, client))

    async def _run_capture(self, entry: PortEntry, snaplen: int, kinds: int, client: Client) -> None:
        taps = self._switch.taps
        capture = Capture(client.write, client.backlog, snaplen, lambda: taps.lost)
        capture.begin(entry.config.name)
        subscription = taps.subscribe(entry.id, kinds, snaplen, capture.records)
        try:
            await client.until_closed(subscription.ended)
        finally:
            taps.unsubscribe(subscription)
            capture.end()


def _concerns(flow: Flow, port_id: int) -> bool:
    leads_to = (ActionType.OUTPUT, ActionType.MIRROR)
    return flow.key.in_port == port_id or any(a.type in leads_to and a.arg == port_id for a in flow.actions)
