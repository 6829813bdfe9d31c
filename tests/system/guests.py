# SPDX-License-Identifier: Apache-2.0
"""What the tests with virtual machines share: two ports, left and right, a guest on each, and traffic between them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

from tests.guest.guest import Guest, Nic
from tests.system.containers import MACS, add_ports, wait_for
from tests.system.ffswitchd import Ffswitchd

NUMBERS = {"left": 1, "right": 2}  # the last part of their addresses
NETWORKS = {"eth0": ("10.99.0.", "fd99::"), "eth0.7": ("10.99.7.", "fd99:7::")}
MTU = 9000
MB = 1 << 20
DATA_MB = 2

CONFIGURE = """
set -e
for interface in default eth0; do
    echo 0 >/proc/sys/net/ipv6/conf/$interface/accept_dad
    echo 0 >/proc/sys/net/ipv6/conf/$interface/dad_transmits
done
ip link set eth0 mtu {mtu} up
ip link add link eth0 name eth0.7 type vlan id 7
ip link set eth0.7 up
for address in {addresses}; do
    ip address add ${{address#*@}} dev ${{address%@*}}
done
dd if=/dev/urandom of=/srv/data bs=1M count={mb} 2>/dev/null
sha256sum </srv/data >/srv/sum
truncate -s 64G /srv/endless
httpd -h /srv
set +e
"""


def address(guest: Guest, network: str = "eth0", version: int = 4) -> str:
    """The guest's IPv4 or IPv6 address on eth0 or on its VLAN interface."""
    return NETWORKS[network][version == 6] + str(NUMBERS[guest.name])


async def configure(guest: Guest, mtu: int = MTU) -> None:
    """Once the guest has booted, give it its addresses, a file of random data, an endless one, and a server of both."""
    await guest.booted()
    addresses = [
        f"{network}@{address(guest, network, version)}/{length}"
        for network in NETWORKS
        for version, length in ((4, 24), (6, 64))
    ]
    await guest.run(CONFIGURE.format(mtu=mtu, addresses=" ".join(addresses), mb=DATA_MB))


def make_guest(daemon: Ffswitchd, port: str, **options: Any) -> Guest:
    """A guest for `port` whose interface has the `options`, and as many CPUs as that has queues."""
    nic = Nic(daemon.run_dir / f"ports/{port}/vhost.sock", MACS[port], **options)
    return Guest(port, [nic], cpus=nic.queues)


async def start_pair(
    stack: AsyncExitStack,
    daemon: Ffswitchd,
    nics: Mapping[str, Mapping[str, Any]] | None = None,
    mtu: int = MTU,
    **config: object,
) -> tuple[Guest, Guest]:
    """Add the ports with `config`, start both guests, whose interfaces have the options `nics`, and configure them."""
    add_ports(daemon, mtu=MTU, **config)
    left, right = (make_guest(daemon, port, **(nics or {}).get(port, {})) for port in MACS)
    await stack.enter_async_context(left)
    await stack.enter_async_context(right)
    await asyncio.gather(configure(left, mtu), configure(right, mtu))
    await until(lambda: {state(daemon, port) for port in MACS} == {"ready"}, "both ports ready")
    return left, right


def state(daemon: Ffswitchd, port: str) -> str:
    return str(daemon.call("port.get", name=port)["state"])


def traffic(daemon: Ffswitchd, port: str) -> dict[str, Any]:
    """The port's counters."""
    return dict(daemon.call("stats")["ports"][port])


async def until(condition: Callable[[], bool], what: str) -> None:
    """As wait_for, while the guests' consoles are read on."""
    await asyncio.to_thread(wait_for, condition, what)


async def ping(guest: Guest, other: Guest, network: str = "eth0", version: int = 4, size: int = 56) -> None:
    """Get three answers of `size` bytes."""
    await guest.run(f"ping -{version} -A -c 3 -W 30 -s {size} {address(other, network, version)}")


async def fetch(guest: Guest, other: Guest, network: str = "eth0", version: int = 4) -> None:
    """Fetch the other guest's file over TCP and compare the checksums."""
    host = address(other, network, version)
    url = f"http://[{host}]/data" if version == 6 else f"http://{host}/data"
    fetched = f"wget -q -O /tmp/fetched {url} && sha256sum </tmp/fetched"
    got, sent = await asyncio.gather(guest.run(fetched), other.run("cat /srv/sum"))
    assert got == sent, f"{guest.name} got other data than {other.name} has"


async def fetch_both_ways(left: Guest, right: Guest, network: str = "eth0", version: int = 4) -> None:
    """Both guests fetch at the same time."""
    await asyncio.gather(fetch(left, right, network, version), fetch(right, left, network, version))


async def start_endless_fetch(daemon: Ffswitchd, left: Guest, right: Guest) -> None:
    """Return once left is in the middle of a transfer from right, which ends only when one of them does."""
    before = traffic(daemon, "left")["tx_bytes"]
    await left.run(f"wget -q -O /dev/null http://{address(right)}/endless & endless=$!")
    await until(lambda: traffic(daemon, "left")["tx_bytes"] > before + MB, "1 MB from right to left")
