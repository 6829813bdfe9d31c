# SPDX-License-Identifier: Apache-2.0
"""Linux's own vxlan device and bridge on two hosts; the containers' veths lead to the generator's namespace."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from tests.bench.environment import Environment
from tests.bench.generator import Ends
from tests.bench.peers.overlay import STATIONS, UPLINK, VNI, VXLAN_PORT, Overlay, link_ip
from tests.bench.process import run
from tests.bench.stats import OwnCount

_TICK = 1 / os.sysconf("SC_CLK_TCK")
_SOFTIRQ = 7  # proc_stat(5): the field after the CPU's name, counted from 1
_numbers = count()


class KernelOverlay(Overlay):
    """Both hosts' kernels. What they forward is done in softirqs on the switches' core (receive packet steering)."""

    def __init__(self, environment: Environment) -> None:
        ends = Ends(links=("c0", "c1"), netns=f"ffg{os.getpid()}x{next(_numbers)}")
        super().__init__("kernel", "", environment, ends)
        self._cpu = environment.cpus.switch[0]

    def _start(self, stack: contextlib.ExitStack, names: tuple[str, str]) -> None:
        run(["ip", "netns", "add", self.ends.netns])
        stack.callback(run, ["ip", "netns", "del", self.ends.netns])
        for number, name in enumerate(names):
            self._host(number, name)

    def _host(self, number: int, name: str) -> None:
        here, link = ["ip", "-n", name], self.ends.links[number]
        own, far = link_ip(number), link_ip(1 - number)
        run([*here, "link", "add", "br0", "type", "bridge"])
        vxlan = ["type", "vxlan", "id", str(VNI), "dev", UPLINK, "local", own, "remote", far]
        run([*here, "link", "add", "vx0", *vxlan, "dstport", str(VXLAN_PORT)])
        run([*here, "link", "add", "c0", "type", "veth", "peer", "name", link, "netns", self.ends.netns])
        for port in ("vx0", "c0"):
            run([*here, "link", "set", port, "master", "br0", "up"])
        run([*here, "link", "set", "br0", "up"])
        run(["ip", "-n", self.ends.netns, "link", "set", link, "address", STATIONS[number][0], "promisc", "on", "up"])
        steer = f"echo {1 << self._cpu:x} > /sys/class/net/c0/queues/rx-0/rps_cpus"
        run(["ip", "netns", "exec", name, "sh", "-c", steer])

    def connect(self, sockets: Sequence[Path]) -> None:
        """Nothing: the ports are links, not sockets."""

    def own_count(self) -> OwnCount:
        """Cycles of all softirqs on the core, whoever's they were, and packets that reached a container."""
        line = next(one for one in Path("/proc/stat").read_text().splitlines() if one.startswith(f"cpu{self._cpu} "))
        cycles = int(line.split()[_SOFTIRQ]) * _TICK * self.tsc_hz
        counters = [f"/sys/class/net/{link}/statistics/rx_packets" for link in self.ends.links]
        received = run([*self.ends.enter, "cat", *counters]).split()
        return OwnCount(cycles, float(sum(map(int, received))))
