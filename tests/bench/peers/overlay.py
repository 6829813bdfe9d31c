# SPDX-License-Identifier: Apache-2.0
"""Two hosts as network namespaces on a common link, a switch in each, joined by VXLAN: together they are one peer.

The generator's two stations are the containers, one on each host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, Self

from tests.bench.environment import Environment
from tests.bench.generator import SPLIT, Ends
from tests.bench.peers.ffswitch import FfSwitch
from tests.bench.peers.ovs import Ovs
from tests.bench.process import run, wait_for
from tests.bench.stats import OwnCount
from tests.system.underlay import Controller, joined

VNI = 66
UPLINK = "eth0"
VXLAN_PORT = 4789  # RFC 7348 section 5
# The two hosts' poll threads share a core and so take turns of some milliseconds: the ring holds what comes meanwhile.
# ffswitch's packet ports have rings of that size.
DEVARGS = f"net_af_packet0,iface={UPLINK},framecnt=8192,blocksz=65536"
# See template_make in traffic/frames.c.
STATIONS = (("02:00:00:00:00:00", "10.0.0.0"), ("02:00:00:01:00:00", "10.1.0.0"))
# Both are host addresses of it.
SUBNET = "8.0.0.0/6"
SETTLE_SECONDS = 60.0


def link_ip(number: int) -> str:
    """The address of the uplink itself on host 0 or 1."""
    return f"192.0.2.{1 + number}"


def bridge_ip(number: int) -> str:
    """The address that OVS wants on its bridge with the uplink."""
    return f"192.0.2.{101 + number}"


class Host(Protocol):
    """A switch on one end of the overlay."""

    def connect(self, sockets: Sequence[Path]) -> None: ...

    def check(self) -> None: ...

    @property
    def pids(self) -> Sequence[int]: ...


class Overlay:
    """Two hosts. `poll_count` poll threads in the first process of each that has a switch."""

    poll_count = 1

    def __init__(self, name: str, poll_prefix: str, environment: Environment, ends: Ends = SPLIT) -> None:
        self.name = name
        self.poll_prefix = poll_prefix
        self.ends = ends
        self.tsc_hz = 0.0  # told when the generator runs
        self._environment = environment
        self._stack = contextlib.ExitStack()
        self.hosts: list[Host] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._start(stack, stack.enter_context(joined()))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _start(self, stack: contextlib.ExitStack, names: tuple[str, str]) -> None:
        raise NotImplementedError

    def connect(self, sockets: Sequence[Path]) -> None:
        for host, path in zip(self.hosts, sockets, strict=True):
            host.connect([path])

    def check(self) -> None:
        for host in self.hosts:
            host.check()

    @property
    def pids(self) -> Sequence[int]:
        return [pid for host in self.hosts for pid in host.pids]

    def own_count(self) -> OwnCount | None:
        """None: on a shared core a switch's count of cycles holds the other one's turns."""
        return None


class FfOverlay(Overlay):
    """ffswitchd on both hosts. The controller joins them and then ends; they keep what it told them."""

    def __init__(self, environment: Environment) -> None:
        super().__init__("ffswitch", FfSwitch.poll_prefix, environment)
        self._switches: list[FfSwitch] = []
        self._controller: Controller | None = None

    def _start(self, stack: contextlib.ExitStack, names: tuple[str, str]) -> None:
        directory = self._environment.directory
        self._controller = controller = stack.enter_context(Controller(names[0], directory / "controller"))
        controller.apply({"kind": "Network", "name": "bench", "vni": VNI, "subnets": [SUBNET]})
        self._switches = []
        for number, name in enumerate(names):
            options = controller.options(f"h{number}", directory / f"state{number}")
            here = self._environment.part(f"h{number}")
            switch = stack.enter_context(FfSwitch(here, options=options, netns=name))
            switch.call("port.add", name="up0", type="packet", devargs=UPLINK)
            switch.call("port.set", name="up0", values={"uplink": [f"{link_ip(number)}/24"]})
            self._switches.append(switch)
        self.hosts = list(self._switches)

    def connect(self, sockets: Sequence[Path]) -> None:
        for number, (switch, path) in enumerate(zip(self._switches, sockets, strict=True)):
            mac, ip = STATIONS[number]
            switch.call("port.add", name=f"c{number}", socket=str(path), network="bench", mac=mac, ips=[ip])
        for switch in self._switches:
            wait_for("the controller joins the hosts", partial(_joined, switch), SETTLE_SECONDS)
        assert self._controller is not None, "not started"
        self._controller.stop()


def _joined(switch: FfSwitch) -> bool:
    return any(remote["mac"] for remote in switch.call("status")["remotes"])


class OvsHost(Ovs):
    """OVS-DPDK on one host: br-int with the container and the tunnel, br-phy with the uplink and the outer address."""

    def __init__(self, environment: Environment, number: int, name: str) -> None:
        super().__init__(environment, f"ovs{number}", flows=True, netns=name)
        self._number, self._netns = number, name

    def connect(self, sockets: Sequence[Path]) -> None:
        for bridge in ("br-phy", "br-int"):
            self._vsctl("add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev", "fail-mode=secure")
        self._vsctl(
            *("add-port", "br-phy", "up0", "--", "set", "interface", "up0", "type=dpdk"),
            f"options:dpdk-devargs={DEVARGS}",
        )
        self._vsctl(
            *("add-port", "br-int", "c0", "--", "set", "interface", "c0", "type=dpdkvhostuserclient"),
            *(f"options:vhost-server-path={sockets[0]}", "ofport_request=1"),
        )
        self._vsctl(
            *("add-port", "br-int", "vx0", "--", "set", "interface", "vx0", "type=vxlan", f"options:key={VNI}"),
            *(f"options:remote_ip={bridge_ip(1 - self._number)}", "ofport_request=2"),
        )
        self._add_flow("br-phy", "actions=NORMAL")
        self._add_flow("br-int", "in_port=1,actions=output:2")
        self._add_flow("br-int", "in_port=2,actions=output:1")
        in_netns = ["ip", "-n", self._netns]
        run([*in_netns, "addr", "add", f"{bridge_ip(self._number)}/24", "dev", "br-phy"])
        run([*in_netns, "link", "set", "br-phy", "up"])

    @property
    def mac(self) -> str:
        """The outer MAC address: OVS's own choice, not the uplink's, so the kernel passes over its frames at once."""
        text = run(["ip", "-n", self._netns, "-br", "link", "show", "br-phy"])
        return text.split()[2]

    def meet(self, mac: str) -> None:
        """Tells it the other host's outer MAC address, so that no frame waits for ARP."""
        self._appctl("tnl/arp/set", "br-phy", bridge_ip(1 - self._number), mac)


class OvsOverlay(Overlay):
    """OVS-DPDK on both hosts, each with a database of its own."""

    def __init__(self, environment: Environment) -> None:
        super().__init__("ovs", Ovs.poll_prefix, environment)
        self._switches: list[OvsHost] = []

    def _start(self, stack: contextlib.ExitStack, names: tuple[str, str]) -> None:
        self._switches = []
        for number, name in enumerate(names):
            host = OvsHost(self._environment.part(f"h{number}"), number, name)
            self._switches.append(stack.enter_context(host))
        self.hosts = list(self._switches)

    def connect(self, sockets: Sequence[Path]) -> None:
        super().connect(sockets)
        for host, other in zip(self._switches, reversed(self._switches), strict=True):
            host.meet(other.mac)
