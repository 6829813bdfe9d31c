# SPDX-License-Identifier: Apache-2.0
"""Two hosts of the bed under a controller: a switch on each, joined by VXLAN and RDMA, and a container on each."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from scapy.layers.l2 import Ether
from scapy.utils import PcapReader, wrpcap

from tests.guest.guest import GuestError, Job
from tests.rdma import switch
from tests.rdma.bed import Bed, Host
from tests.rdma.relay import ROCE, VXLAN

NAMES = ("left", "right")
PORTS = ("web0", "db0")
PORT = 7443
STATE = "/tmp/ffcontroller"
AGENT_STATE = "/tmp/ffswitch-state"
KEPT = f"{STATE} {AGENT_STATE} /run/ffswitch/state.json"
CTL = f"ffctl --controller 127.0.0.1:{PORT} --credentials {STATE}"
NETWORK = {"kind": "Network", "name": "blue", "vni": 66}  # without subnets: endpoints may send from any IP address
RUN = f"exec ffcontroller run --state-dir {STATE} --listen 0.0.0.0:{PORT} --name one --heartbeat 2"
# Emulated, a host may well be silent for half a second.
RDMA_TIMEOUT_MS = 4000
SECONDS = 120.0


@dataclass
class Overlay:
    """The hosts, the controller on the first of them, and what runs there."""

    bed: Bed
    macs: tuple[str, str]
    stack: contextlib.AsyncExitStack  # ends all that runs
    controller: Job | None = None
    agents: dict[int, Job] = field(default_factory=dict)

    async def start_controller(self) -> None:
        """Run ffcontroller on the first host, with what it knew before."""
        self.controller = await self.stack.enter_async_context(self.hosts[0].guest.job(RUN))
        await self.controller.said("joining at")

    async def start_agent(self, which: int) -> None:
        """Run ffswitchd on a host, joined; its ports are those that it had before."""
        name, host = NAMES[which], self.hosts[which]
        token = json.loads(await self.ctl(f"token create {name} -o json"))["token"]
        options = f"--controller {self.hosts[0].ipv4}:{PORT} --host-name {name} --join-token {token}"
        # Emulated, a command that looks at flows may take longer than these last by default.
        options += f" --state-dir {AGENT_STATE} --rdma-timeout {RDMA_TIMEOUT_MS} --flow-idle 600"
        self.agents[which] = await self.stack.enter_async_context(switch.start(host, options))

    @property
    def hosts(self) -> tuple[Host, ...]:
        """In the order of NAMES."""
        return self.bed.hosts

    def frames(self, port: int) -> int:
        """Frames to a UDP port that have crossed the underlay so far, both ways."""
        return sum(wire.frames[port] for wire in self.bed.relay.between(*NAMES))

    async def json(self, which: int, command: str) -> Any:
        """What `ffswitch COMMAND -o json` prints on a host."""
        return json.loads(await self.hosts[which].guest.run(f"ffswitch {command} -o json"))

    async def until(self, which: int, pattern: str, command: str = "explain web0 db0") -> str:
        """Wait until what a command of ffswitch prints on a host has a line that matches, and return it all."""
        try:
            await self.hosts[which].guest.until(
                f"ffswitch {command} >/tmp/said; grep -Eq '{pattern}' /tmp/said", SECONDS
            )
        except GuestError as error:
            error.add_note(f"{await self.hosts[which].guest.run('cat /tmp/said')}\n{await self.counters()}")
            raise
        return await self.hosts[which].guest.run("cat /tmp/said")

    async def counters(self) -> str:
        """What became of every packet on each host, and its RDMA peers, for a failure to show."""
        said = []
        for name, host in zip(NAMES, self.hosts, strict=True):
            _, output = await host.guest.status("ffswitch stats; ffswitch status -o json")
            said.append(f"{name}:\n{output}")
        return "\n".join(said)

    async def until_rdma(self) -> None:
        """Wait until both hosts send by RDMA."""
        for which in (0, 1):
            await self.until(which, " active ", "status")

    async def until_vxlan(self, why: str) -> None:
        """Wait until `explain` gives a reason, on both hosts, for not using RDMA."""
        for which in (0, 1):
            await self.until(which, why)

    async def ctl(self, words: str, given: Any = None) -> str:
        """What an ffctl command prints, with an object on its standard input."""
        return await self.hosts[0].guest.run(f"{CTL} {words} <<'end'\n{json.dumps(given)}\nend")

    @contextlib.asynccontextmanager
    async def sending(self, frames: Sequence[bytes], sender: int = 0) -> AsyncIterator[int]:
        """The container of one host sends frames to that of the other, which writes what it gets to a capture.

        Yields the capture's size when it has them all.
        """
        (source, out), (target, into) = [(self.hosts[i], PORTS[i]) for i in (sender, 1 - sender)]
        wrpcap(str(source.guest.shared / "sent.pcap"), [Ether(frame) for frame in frames], linktype=1)
        wrpcap(str(target.guest.shared / "none.pcap"), [], linktype=1)
        async with (
            switch.container(target, into, self.macs[1 - sender]) as receiver,
            switch.container(source, out, self.macs[sender]) as transmitter,
        ):
            for host, port in ((target, into), (source, out)):
                await host.guest.until(f"ffswitch list-ports | grep -Eq '^{port} .* ready '", SECONDS)
            await switch.feed(target, receiver, into, "none.pcap")
            await switch.feed(source, transmitter, out, "sent.pcap")
            yield (source.guest.shared / "sent.pcap").stat().st_size

    async def replay(self, frames: Sequence[bytes], *, sender: int = 0) -> tuple[int, int]:
        """Send frames from the container of one host to that of the other: byte for byte, in order.

        Returns how many packets of RoCE and of VXLAN crossed the underlay meanwhile.
        """
        before = self.frames(ROCE), self.frames(VXLAN)
        target, got = self.hosts[1 - sender].guest, f"/tmp/{PORTS[1 - sender]}.got"
        async with self.sending(frames, sender) as size:
            try:
                await target.until(f"test $(stat -c %s {got}) -ge {size}", SECONDS)
            except GuestError as error:
                found = (await target.run(f"stat -c %s {got}")).strip()
                error.add_note(f"{target.name}: {got} has {found} bytes of {size}\n{await self.counters()}")
                raise
            await target.run(f"cp {got} /shared/got.pcap")
        with PcapReader(str(target.shared / "got.pcap")) as reader:
            assert [bytes(frame) for frame in reader] == list(frames)
        return self.frames(ROCE) - before[0], self.frames(VXLAN) - before[1]


@contextlib.asynccontextmanager
async def running(bed: Bed, macs: tuple[str, str]) -> AsyncIterator[Overlay]:
    """Both hosts, with the addresses of their endpoints; they reach each other by RDMA."""
    async with contextlib.AsyncExitStack() as stack:
        overlay = Overlay(bed, macs, stack)
        for host in overlay.hosts:
            await host.guest.run(f"rm -rf {KEPT}")  # by the switches of other tests
        await overlay.hosts[0].guest.run(f"ffcontroller init --state-dir {STATE}")
        await overlay.start_controller()
        await overlay.ctl("apply -f -", NETWORK)
        for which in (0, 1):
            await overlay.start_agent(which)
        await _add_ports(overlay)
        await overlay.until_rdma()
        yield overlay


async def _add_ports(overlay: Overlay) -> None:
    """The uplink and the container's port, on each host."""
    for which, (host, port) in enumerate(zip(overlay.hosts, PORTS, strict=True)):
        await host.guest.run(
            "ffswitch add-port up0 --type pmd --devargs net_af_packet0,iface=eth0 && "
            f"ffswitch set up0 uplink={host.ipv4}/24 && "
            f"ffswitch add-port {port} --network blue --mac {overlay.macs[which]}"
        )
    for which in (0, 1):
        # The next hop is known: what is sent by VXLAN gets there.
        await overlay.until(which, f"{overlay.hosts[1 - which].mac}", "status")
