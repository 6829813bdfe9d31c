# SPDX-License-Identifier: Apache-2.0
"""Uplinks: what they drop, whose addresses they have, and how next hops are found."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from tests.unit.switch_bench import Bench
from vswitch.slowpath import ports
from vswitch.slowpath.core import SwitchCore
from vswitch.slowpath.errors import BadParams
from vswitch.slowpath.neighbours import NextHop, OwnResolver
from vswitch.slowpath.netlink import Link, Neighbour, Route
from vswitch.slowpath.pipeline import parse
from vswitch.slowpath.types import (
    VXLAN_PORT,
    Action,
    ActionType,
    AddFlow,
    Drop,
    Key,
    Port,
    PortConfig,
    Remote,
    Upcall,
    Uplink,
    UplinkFrame,
)
from vswitch.slowpath.uplinks import Uplinks

OWN, PEER, FAR, GATEWAY = (ip_address(ip).packed for ip in ("192.0.2.1", "192.0.2.2", "198.51.100.9", "192.0.2.254"))
OWN6, PEER6 = (ip_address(ip).packed for ip in ("2001:db8::1", "2001:db8::2"))
MAC, PEER_MAC = bytes.fromhex("0200000000a1"), bytes.fromhex("0200000000b2")
DEADLINE = 20.0


# ---- what may be said of an uplink ----------------------------------------------------------


def test_an_uplink_has_one_address_of_each_family() -> None:
    config = PortConfig("up0")
    read = ports.change_port(config, {"uplink": "2001:db8::1/64, 192.0.2.1/24", "uplink_gateway": ["192.0.2.254"]})
    assert read.uplink == ("192.0.2.1/24", "2001:db8::1/64")
    assert ports.port_from_state(ports.port_to_json(read)) == read
    assert ports.change_port(read, {"uplink": "", "uplink_gateway": ""}) == config


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"uplink": "192.0.2.1"}, "cannot be a tunnel end: give an address like 192.0.2.1/24"),
        ({"uplink": "eth0"}, "not an address with its prefix"),
        ({"uplink": "fe80::1/64"}, "cannot be a tunnel end"),
        ({"uplink": "127.0.0.1/8"}, "cannot be a tunnel end"),
        ({"uplink": "192.0.2.1/24,192.0.2.2/24"}, "one IPv4 address is enough"),
        ({"uplink": "192.0.2.1/24", "tag": 5}, "an uplink bridges nothing"),
        ({"uplink": "192.0.2.1/24", "uplink_gateway": "10.0.0.1"}, "10.0.0.1 is not within 192.0.2.0/24"),
        ({"uplink_gateway": "10.0.0.1"}, "is not within its uplink, which it has not"),
    ],
)
def test_what_cannot_be_an_uplink(values: dict[str, object], problem: str) -> None:
    with pytest.raises(BadParams, match=problem):
        ports.change_port(PortConfig("up0"), values)


# ---- what an uplink does with what is no tunnel's ---------------------------------------------


def upcall(core: SwitchCore, frame: Packet) -> list[Any]:
    raw = bytes(frame)
    key = parse(raw, 1)
    assert isinstance(key, Key)
    return core.upcall(Upcall(1, key, raw, len(raw)), 0.0)


def test_what_is_no_tunnels_is_dropped_by_one_flow() -> None:
    core = SwitchCore()
    core.port_added(Port(1, PortConfig("up0", uplink=("192.0.2.1/24",)), True), 0.0)
    core.port_added(Port(2, PortConfig("web0"), True), 0.0)
    first = upcall(core, Ether(dst="ff:ff:ff:ff:ff:ff", src=PEER_MAC.hex(":")) / IP(dst="192.0.2.1") / UDP())
    (flow,) = (command.flow for command in first if isinstance(command, AddFlow))
    assert flow.actions == (Action(ActionType.DROP, Drop.NOT_TUNNEL),)
    assert flow.mask == Key(in_port=0xFFFF, eth_type=0xFFFF)
    arp = Ether(dst="ff:ff:ff:ff:ff:ff", src=PEER_MAC.hex(":")) / ARP(pdst="192.0.2.1")
    commands = upcall(core, arp)
    assert UplinkFrame(1, bytes(arp)) in commands
    assert not any(isinstance(command, AddFlow) for command in commands)
    assert core.fdb() == []
    (why,) = core.decide(Key(eth_src=PEER_MAC, eth_type=0x0800, in_port=1), 0.0).reasons
    assert why == "up0 is an uplink, and this is no tunnel's frame for one of its addresses: dropped"
    flooded = core.decide(Key(eth_dst=b"\xff" * 6, eth_src=MAC, eth_type=0x0800, in_port=2), 0.0)
    assert flooded.drop is Drop.NO_DEST


# ---- on its own -------------------------------------------------------------------------------


class Alone:
    """An OwnResolver, what it sent and whose next hop changed."""

    def __init__(self, own: str, gateway: bytes = b"") -> None:
        self.sent: list[bytes] = []
        self.changed: list[bytes] = []
        self.resolver = OwnResolver(ip_interface(own), gateway, MAC, self.sent.append, self.changed.append)

    def asked(self) -> Packet:
        return Ether(self.sent.pop(0))


def arp_from_peer(op: int, target: str) -> bytes:
    arp = ARP(op=op, hwsrc=PEER_MAC.hex(":"), psrc="192.0.2.2", hwdst=MAC.hex(":"), pdst=target)
    return bytes(Ether(src=PEER_MAC.hex(":"), dst=MAC.hex(":")) / arp)


def test_arp_is_asked_and_answered() -> None:
    alone = Alone("192.0.2.1/24")
    alone.resolver.add(PEER, 0.0)
    asked = alone.asked()
    assert (asked.dst, asked[ARP].op, asked[ARP].psrc, asked[ARP].pdst) == (
        "ff:ff:ff:ff:ff:ff",
        1,
        "192.0.2.1",
        "192.0.2.2",
    )
    assert alone.resolver.next_hop(PEER) == NextHop(PEER, b"", "192.0.2.2 does not answer")
    alone.resolver.on_frame(arp_from_peer(2, "192.0.2.1"), 1.0)
    assert alone.changed == [PEER]
    assert alone.resolver.next_hop(PEER) == NextHop(PEER, PEER_MAC, "")
    alone.resolver.on_frame(arp_from_peer(1, "192.0.2.1"), 2.0)
    answer = alone.asked()
    assert (answer.dst, answer[ARP].op, answer[ARP].hwsrc) == (PEER_MAC.hex(":"), 2, MAC.hex(":"))
    alone.resolver.on_frame(arp_from_peer(1, "192.0.2.77"), 2.0)
    assert alone.sent == []


def test_neighbours_are_solicited_and_advertised() -> None:
    alone = Alone("2001:db8::1/64")
    alone.resolver.add(PEER6, 0.0)
    asked = alone.asked()
    assert (asked.dst, asked[IPv6].dst) == ("33:33:ff:00:00:02", "ff02::1:ff00:2")
    assert (asked[ICMPv6ND_NS].tgt, asked[ICMPv6NDOptSrcLLAddr].lladdr) == ("2001:db8::2", MAC.hex(":"))
    copy = Ether(bytes(asked))
    del copy[ICMPv6ND_NS].cksum
    assert bytes(copy) == bytes(asked)
    ether = Ether(src=PEER_MAC.hex(":"), dst=MAC.hex(":")) / IPv6(src="2001:db8::2", dst="2001:db8::1", hlim=255)
    reply = ether / ICMPv6ND_NA(tgt="2001:db8::2") / ICMPv6NDOptDstLLAddr(lladdr=PEER_MAC.hex(":"))
    alone.resolver.on_frame(bytes(reply), 1.0)
    assert alone.resolver.next_hop(PEER6).mac == PEER_MAC
    solicitation = ether / ICMPv6ND_NS(tgt="2001:db8::1") / ICMPv6NDOptSrcLLAddr(lladdr=PEER_MAC.hex(":"))
    alone.resolver.on_frame(bytes(solicitation), 2.0)
    answer = alone.asked()
    assert (answer.dst, answer[ICMPv6NDOptDstLLAddr].lladdr) == (PEER_MAC.hex(":"), MAC.hex(":"))


def test_who_is_silent_is_asked_again_and_then_forgotten() -> None:
    alone = Alone("192.0.2.1/24")
    alone.resolver.add(PEER, 0.0)
    alone.resolver.tick(0.5)
    assert len(alone.sent) == 1
    alone.resolver.tick(1.0)
    assert len(alone.sent) == 2
    alone.resolver.on_frame(arp_from_peer(2, "192.0.2.1"), 1.5)
    alone.resolver.tick(20.0)
    assert len(alone.sent) == 2
    alone.resolver.tick(32.0)
    assert len(alone.sent) == 3
    alone.resolver.tick(40.0)
    assert alone.resolver.next_hop(PEER).mac == b""
    assert alone.changed == [PEER, PEER]


def test_elsewhere_is_by_the_gateway() -> None:
    alone = Alone("192.0.2.1/24")
    alone.resolver.add(FAR, 0.0)
    assert "there is no uplink_gateway" in alone.resolver.next_hop(FAR).why
    alone = Alone("192.0.2.1/24", GATEWAY)
    alone.resolver.add(FAR, 0.0)
    assert alone.asked()[ARP].pdst == "192.0.2.254"


# ---- shared with the kernel ---------------------------------------------------------------------


class FakeKernel:
    """Tables that tests change; `tell` passes a change on."""

    def __init__(self) -> None:
        self.own = {OWN: 3}
        self.routes = {PEER: Route(3, PEER), FAR: Route(3, GATEWAY)}
        self.macs: dict[bytes, bytes] = {}
        self.resolved: list[bytes] = []
        self.sinks: set[bytes] = set()
        self.unseen: set[tuple[str, bytes]] = set()
        self.links = {3: "eth0"}
        self.has_nftables = True
        self._told: asyncio.Queue[Neighbour | None] = asyncio.Queue()

    def tell(self, change: Neighbour | None) -> None:
        self._told.put_nowait(change)

    async def addresses(self) -> dict[bytes, int]:
        return dict(self.own)

    async def link(self, index: int) -> Link | None:
        return Link(index, self.links[index], MAC, 1400 if index == 3 else 1300)

    async def route(self, to: bytes) -> Route | None:
        return self.routes.get(to)

    async def neighbours(self) -> list[Neighbour]:
        return [Neighbour(3, ip, mac) for ip, mac in self.macs.items()]

    async def resolve(self, link: int, ip: bytes) -> None:
        self.resolved.append(ip)

    async def changes(self) -> AsyncIterator[Neighbour | None]:
        while True:
            yield await self._told.get()

    def sink(self, ip: bytes, udp_port: int) -> Callable[[], None]:
        self.sinks.add(ip)
        return lambda: self.sinks.discard(ip)

    def leave_alone(self, link: Link, ip: bytes, udp_port: int) -> Callable[[], None]:
        if not self.has_nftables:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        assert udp_port == VXLAN_PORT
        assert ip not in {other for _, other in self.unseen}, "one at a time"
        self.unseen.add((link.name, ip))
        return lambda: self.unseen.remove((link.name, ip))

    async def close(self) -> None:
        pass


class Stand:
    """Uplinks on a fake switch and a fake kernel."""

    def __init__(self, run_dir: Path) -> None:
        run_dir.mkdir()
        self.bench, self.kernel = Bench(run_dir), FakeKernel()
        self.changes = asyncio.Event()
        self.uplinks = Uplinks(self.bench.switch, kernel=self._kernel, clock=lambda: self.bench.now)
        self.uplinks.changed.append(self.changes.set)
        self.uplinks.start()
        self.port = self.bench.add("up0", type="pmd", devargs="net_fake0")

    async def _kernel(self) -> FakeKernel:
        return self.kernel

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not true():
                self.changes.clear()
                await self.changes.wait()

    def remote(self, number: int) -> Remote | None:
        return self.bench.fake.remotes.get(number)

    def mac(self, number: int) -> bytes:
        remote = self.remote(number)
        return remote.next_hop_mac if remote else b""


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    stand = Stand(tmp_path / "run")
    yield stand
    await stand.uplinks.stop()
    assert stand.kernel.sinks == set()
    assert stand.kernel.unseen == set()


async def test_a_shared_address_follows_the_kernel(stand: Stand) -> None:
    number = stand.uplinks.acquire("up0", OWN, PEER)
    assert stand.remote(number) is None
    assert "there is no uplink up0" in stand.uplinks.remotes()[0].next_hop.why
    stand.bench.switch.change("up0", {"uplink": "192.0.2.1/24"})
    await stand.until(lambda: bool(stand.uplinks.views()))
    (view,) = stand.uplinks.views()
    assert (view.shared, view.mtu) == (("192.0.2.1/24",), 1400)
    assert stand.bench.fake.uplinks[stand.port] == Uplink(OWN)
    assert stand.kernel.sinks == {OWN}
    assert stand.kernel.unseen == {("eth0", OWN)}
    assert stand.kernel.resolved[:1] == [PEER]
    stand.kernel.tell(Neighbour(3, PEER, PEER_MAC))
    await stand.until(lambda: bool(stand.mac(number)))
    assert stand.remote(number) == Remote(stand.port, OWN, PEER, MAC, PEER_MAC)
    stand.kernel.tell(Neighbour(3, PEER, b""))
    await stand.until(lambda: not stand.mac(number))
    assert stand.uplinks.acquire("up0", OWN, PEER) == number
    stand.uplinks.release(number)
    assert stand.remote(number) is not None
    stand.uplinks.release(number)
    assert stand.remote(number) is None


async def test_a_shared_address_goes_to_another_interface(stand: Stand) -> None:
    stand.bench.switch.change("up0", {"uplink": "192.0.2.1/24"})
    await stand.until(lambda: bool(stand.uplinks.views()))
    stand.kernel.links[4] = "eth1"
    stand.kernel.own[OWN] = 4
    stand.kernel.tell(None)
    await stand.until(lambda: stand.uplinks.views()[0].mtu == 1300)
    assert stand.kernel.unseen == {("eth1", OWN)}


async def test_a_kernel_without_nftables(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    stand.kernel.has_nftables = False
    stand.bench.switch.change("up0", {"uplink": "192.0.2.1/24"})
    await stand.until(lambda: bool(stand.uplinks.views()))
    (view,) = stand.uplinks.views()
    assert (view.why, stand.kernel.sinks) == ("", {OWN})
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert said == (
        "uplink: the kernel looks at tunnel frames for 192.0.2.1 too, which takes CPU: "
        "no nftables at eth0's ingress: Operation not supported"
    )


async def test_a_route_that_changes(stand: Stand) -> None:
    stand.kernel.macs = {PEER: PEER_MAC, GATEWAY: MAC}
    stand.bench.switch.change("up0", {"uplink": "192.0.2.1/24"})
    number = stand.uplinks.acquire("up0", OWN, FAR)
    await stand.until(lambda: bool(stand.uplinks.views()))
    assert stand.mac(number) == MAC
    stand.kernel.routes[FAR] = Route(3, PEER)
    stand.kernel.own[OWN6] = 3
    stand.bench.switch.change("up0", {"uplink": "192.0.2.1/24,2001:db8::1/64"})
    stand.kernel.tell(None)
    await stand.until(lambda: stand.mac(number) == PEER_MAC)
    stand.kernel.routes[FAR] = Route(7, PEER)
    stand.kernel.own.pop(OWN6)
    stand.kernel.tell(None)
    await stand.until(lambda: not stand.mac(number))
    assert "is not by eth0" in stand.uplinks.remotes()[0].next_hop.why


async def test_an_owned_address_asks_itself(stand: Stand) -> None:
    stand.bench.switch.change("up0", {"uplink": "192.0.2.50/24"})
    await stand.until(lambda: bool(stand.uplinks.views()))
    own = ip_address("192.0.2.50").packed
    number = stand.uplinks.acquire("up0", own, PEER)
    (sent,) = stand.bench.fake.sent
    assert Ether(sent[1])[ARP].psrc == "192.0.2.50"
    reply = arp_from_peer(2, "192.0.2.50")
    key = parse(reply, stand.port)
    assert isinstance(key, Key)
    stand.bench.fake.miss(Upcall(1, key, reply, len(reply)))
    stand.bench.switch.on_upcalls()
    assert stand.mac(number) == PEER_MAC
    stand.bench.switch.change("up0", {"uplink": ""})
    await stand.until(lambda: not stand.uplinks.views())
    assert stand.remote(number) is None
    assert stand.bench.fake.uplinks[stand.port] == Uplink()
