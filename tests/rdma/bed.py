# SPDX-License-Identifier: Apache-2.0
"""The test bed: guests with an RDMA device each, on an underlay that the test controls."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.guest import root
from tests.guest.guest import Guest, PluggedNic
from tests.guest.image import CACHE
from tests.rdma.relay import BUFFER_BYTES, Relay

DEVICE = "rxe0"
GID_INDEX = 1  # RoCE v2 with the IPv4 address; index 0 has the link-local one, 2 the IPv6 one
CPUS = 2  # one for the slow path, one for a worker
MEMORY_MB = 1024
MTU = 1500
# No duplicate address detection: IPv6 addresses, and with them GIDs, are there at once.
CONFIGURE = f"""
set -e
for interface in default eth0; do
    echo 0 >/proc/sys/net/ipv6/conf/$interface/accept_dad
    echo 0 >/proc/sys/net/ipv6/conf/$interface/dad_transmits
done
ip link set eth0 mtu {{mtu}} up
ip address add {{ipv4}}/24 dev eth0
ip address add {{ipv6}}/64 dev eth0
modprobe -a rdma_rxe ib_uverbs
rdma link add {DEVICE} type rxe netdev eth0
set +e
"""


@dataclass(frozen=True)
class Host:
    """One guest, and its addresses on the underlay, at eth0."""

    guest: Guest
    ipv4: str
    ipv6: str
    mac: str

    async def configure(self, mtu: int = MTU) -> None:
        """After a boot: eth0 up with its addresses, and the RDMA device on it."""
        await self.guest.booted()
        await self.guest.run(CONFIGURE.format(mtu=mtu, ipv4=self.ipv4, ipv6=self.ipv6))

    async def listening(self, port: int) -> None:
        """Wait until somebody listens on a TCP port there."""
        await self.guest.until(f"ss -Hltn 'sport = :{port}' | grep -q .")


@dataclass(frozen=True)
class Bed:
    """Hosts in the order in which they were named, and the underlay between them."""

    hosts: tuple[Host, ...]
    relay: Relay


@contextlib.asynccontextmanager
async def start(*names: str, cpus: int = CPUS, memory_mb: int = MEMORY_MB, mtu: int = MTU) -> AsyncIterator[Bed]:
    """Boot guests of these names, all at the same time; they and the underlay end with the context.

    Each has Debian, this working tree with its virtual environment at the same path as here, and ffswitch's commands in
    its PATH.
    """
    macs = _macs(names)
    with Relay(macs) as relay:
        nics = {name: PluggedNic(relay.plugs[name].socket, mac) for name, mac in macs.items()}
        async with _boot(nics, cpus, memory_mb, mtu) as hosts:
            yield Bed(hosts, relay)


@contextlib.asynccontextmanager
async def direct(left: str, right: str) -> AsyncIterator[tuple[Host, ...]]:
    """The same with a link that nobody controls, and that costs no more than a system call a frame at each end."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ends[0], ends[1]:
        for end in ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        nics = {name: PluggedNic(end, mac) for (name, mac), end in zip(_macs((left, right)).items(), ends, strict=True)}
        async with _boot(nics, CPUS, MEMORY_MB, MTU) as hosts:
            yield hosts


def _macs(names: Sequence[str]) -> dict[str, str]:
    return {name: f"02:00:00:00:01:{number:02x}" for number, name in enumerate(names, 1)}


@contextlib.asynccontextmanager
async def _boot(nics: Mapping[str, PluggedNic], cpus: int, memory_mb: int, mtu: int) -> AsyncIterator[tuple[Host, ...]]:
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bed-", dir=CACHE)))
        layers = await asyncio.to_thread(lambda: (root.tree(directory), root.system()))
        hosts = []
        for number, (name, nic) in enumerate(nics.items(), 1):
            guest = Guest(name, [nic], cpus=cpus, memory_mb=memory_mb, layers=layers)
            await stack.enter_async_context(guest)
            hosts.append(Host(guest, f"10.77.0.{number}", f"fd77::{number}", nic.mac))
        await asyncio.gather(*(host.configure(mtu) for host in hosts))
        yield tuple(hosts)
