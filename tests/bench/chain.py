# SPDX-License-Identifier: Apache-2.0
"""A service chain of four containers, joined by shortcuts and by OVS-DPDK, on the same two CPUs.

The first container sends as fast as it can, two rewrite the Ethernet header and send on, the last one takes. They are
ports of traffic/duplex.c. Either way both CPUs are busy all the time, so packets/s over packets/s is CPU time over CPU
time, the switch's included: with shortcuts two containers have each CPU, for the switch has nothing to do; with OVS,
its poll thread, which is what limits it, has one CPU and the containers the other. OVS sends from port to port by
explicit flows, its cheapest way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.bench import machine
from tests.bench.ends import Ends, Rate
from tests.bench.environment import Environment
from tests.bench.peers.ffswitch import FfSwitch
from tests.bench.peers.ovs import Ovs
from tests.bench.process import wait_for

NAMES = ("first", "second", "third", "fourth")
MACS = tuple(f"02:00:00:00:01:0{number}" for number in range(1, 5))
ROLES = (f"source={MACS[1]}", f"forward={MACS[2]}", f"forward={MACS[3]}", "sink")
SHORTCUT, OVS = "chain by shortcuts", "chain by OVS-DPDK"
LINKS = (SHORTCUT, OVS)
WARM_UP_SECONDS = 0.2


class Joined(NamedTuple):
    """The containers, and the switch's processes and those of its threads that poll."""

    ends: Ends
    switch: Sequence[int]
    polling: Sequence[int]


@contextlib.contextmanager
def _by_shortcuts(size: int, program: Path, environment: Environment) -> Iterator[Joined]:
    with FfSwitch(environment, options=["--shortcut-rate", "0"]) as switch, Ends(program, environment, size) as ends:
        for name, mac in zip(NAMES, MACS, strict=True):
            switch.call("port.add", name=name, mac=mac, type="ff", trust_domain="bench")
        vdevs = [f"net_ff{i},path={environment.directory}/run/ports/{name}/ff.sock" for i, name in enumerate(NAMES)]
        ends.start("ends", environment.cpus.switch[0], vdevs[2:], ROLES[2:])
        ends.start("begins", environment.cpus.generator[0], vdevs[:2], ROLES[:2])
        ends.linked()

        def opened() -> bool:
            flows = switch.call("flow.dump")
            return [flow.get("shortcut", {}).get("state") for flow in flows].count("open") == len(NAMES) - 1

        wait_for("no chain of shortcuts", opened)
        yield Joined(ends, switch.pids, ())


@contextlib.contextmanager
def _by_ovs(size: int, program: Path, environment: Environment) -> Iterator[Joined]:
    sockets = [environment.directory / f"{name}.sock" for name in NAMES]
    with Ovs(environment, "ovs-dpdk", flows=True) as switch, Ends(program, environment, size) as ends:
        switch.connect(sockets)
        vdevs = [
            f"net_virtio_user{number},path={path},server=1,queue_size=1024,mac={mac}"
            for number, (path, mac) in enumerate(zip(sockets, MACS, strict=True))
        ]
        ends.start("chain", environment.cpus.generator[0], vdevs, ROLES)
        ends.linked()
        yield Joined(ends, switch.pids, machine.poll_threads(switch.pids[0], switch.poll_prefix, switch.poll_count))


def measure(link: str, size: int, seconds: float, program: Path, environment: Environment) -> Rate:
    """What comes out of the chain; `sent` is what went into it. Raises BenchError."""
    join = _by_shortcuts if link is SHORTCUT else _by_ovs
    with join(size, program, environment) as (ends, switch, polling):
        ends.flowing()
        ends.rate(WARM_UP_SECONDS, switch, polling)
        return ends.rate(seconds, switch, polling)
