# SPDX-License-Identifier: Apache-2.0
"""OVS-DPDK with a database, sockets and a network namespace of its own; the system's, if any, is not touched."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.bench.environment import Environment
from tests.bench.errors import BenchError
from tests.bench.process import Process, run
from tests.bench.stats import OwnCount

VSWITCHD = Path("/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk")
SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
MEMORY_MB = 192
BRIDGE = "br-bench"
CACHE_SETTINGS = ("emc-insert-inv-prob", "smc-enable")

_TABLE = ("Open_vSwitch", ".")
_BUSY = re.compile(r"processing cycles: (\d+)")
_PACKETS = re.compile(r"packets received: (\d+)")


class Ovs:
    """flows: explicit flows from each port to the next, in a circle, else NORMAL (a learning switch).

    netns: the network namespace that vswitchd runs in; one of its own where there is none.
    """

    poll_prefix = "pmd-c"
    poll_count = 1

    def __init__(self, environment: Environment, name: str, *, flows: bool, netns: str = "") -> None:
        self.name = name
        self._environment = environment
        self._flows = flows
        self._enter = ["ip", "netns", "exec", netns] if netns else ["unshare", "--net"]
        self._directory = environment.directory
        self._env = environment.env | {
            variable: str(self._directory) for variable in ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR")
        }
        self._stack = contextlib.ExitStack()
        self._processes: list[Process] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def pids(self) -> Sequence[int]:
        return [process.pid for process in reversed(self._processes)]

    def connect(self, sockets: Sequence[Path]) -> None:
        # The bridge's own port needs a tap device, so vswitchd runs in a network namespace where the name is free.
        self._vsctl("add-br", BRIDGE, "--", "set", "bridge", BRIDGE, "datapath_type=netdev", "fail-mode=secure")
        for index, path in enumerate(sockets, start=1):
            port = f"vhost{index}"
            self._vsctl(
                *("add-port", BRIDGE, port, "--", "set", "interface", port, "type=dpdkvhostuserclient"),
                *(f"options:vhost-server-path={path}", f"ofport_request={index}"),
            )
        count = len(sockets)
        circle = [f"in_port={index},actions=output:{index % count + 1}" for index in range(1, count + 1)]
        flows = circle if self._flows else ["actions=NORMAL"]
        for flow in flows:
            self._add_flow(BRIDGE, flow)

    def check(self) -> None:
        for process in self._processes:
            process.check()

    def own_count(self) -> OwnCount:
        text = self._appctl("dpif-netdev/pmd-stats-show")
        cycles, packets = _BUSY.search(text), _PACKETS.search(text)
        if cycles is None or packets is None:
            raise BenchError("ovs-appctl pmd-stats-show shows no poll thread")
        return OwnCount(float(cycles[1]), float(packets[1]))

    @property
    def _control(self) -> Path:
        return self._directory / "vswitchd.ctl"

    def set_caches(self, settings: Mapping[str, str]) -> None:
        """Sets exactly these of CACHE_SETTINGS, the others to OVS's defaults; they apply at once."""
        self._vsctl(*(word for key in CACHE_SETTINGS for word in ("--", "remove", *_TABLE, "other_config", key)))
        if settings:
            self._set(settings)

    def _set(self, settings: Mapping[str, str], *options: str) -> None:
        self._vsctl(*options, "set", *_TABLE, *(f'other_config:{key}="{value}"' for key, value in settings.items()))

    def _vsctl(self, *words: str) -> None:
        run(["ovs-vsctl", f"--db=unix:{self._directory}/db.sock", "--timeout=30", *words], env=self._env)

    def _appctl(self, *words: str) -> str:
        return run(["ovs-appctl", "-t", self._control, *words], env=self._env)

    def _add_flow(self, bridge: str, flow: str) -> None:
        run(["ovs-ofctl", "add-flow", f"unix:{self._directory}/{bridge}.mgmt", flow], env=self._env)

    def _spawn(self, stack: contextlib.ExitStack, name: str, argv: Sequence[str | Path]) -> Process:
        process = stack.enter_context(Process(name, argv, self._directory / f"{name}.log", env=self._env))
        self._processes.append(process)
        return process

    def _start(self, stack: contextlib.ExitStack) -> None:
        environment = self._environment
        self._processes = []
        database, socket = self._directory / "conf.db", self._directory / "db.sock"
        run(["ovsdb-tool", "create", database, SCHEMA], env=self._env)
        server: list[str | Path] = [
            "ovsdb-server",
            database,
            f"--remote=punix:{socket}",
            f"--unixctl={self._directory}/ovsdb.ctl",
        ]
        ovsdb = self._spawn(stack, "ovsdb-server", server)
        ovsdb.wait_until("no database socket", socket.exists)

        settings = {
            "dpdk-init": "true",
            # Pools of the size that a port needs; the default is one of 262144 packets, whatever memory there is.
            "per-port-memory": "true",
            "dpdk-extra": " ".join(environment.memory_args(MEMORY_MB, self.name)),
            "dpdk-lcore-mask": hex(1 << environment.cpus.generator[0]),
            "pmd-cpu-mask": hex(sum(1 << cpu for cpu in environment.cpus.switch)),
        }
        self._vsctl("--no-wait", "init")
        self._set(settings, "--no-wait")
        vswitchd: list[str | Path] = [
            *self._enter,
            VSWITCHD,
            f"unix:{socket}",
            f"--unixctl={self._control}",
            "-vconsole:warn",
        ]
        process = self._spawn(stack, "ovs-vswitchd", vswitchd)
        process.wait_until("DPDK did not start", self._dpdk_started)

    def _dpdk_started(self) -> bool:
        get = ["ovs-vsctl", f"--db=unix:{self._directory}/db.sock", "get", "Open_vSwitch", ".", "dpdk_initialized"]
        return run(get, env=self._env).strip() == "true"
