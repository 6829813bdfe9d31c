# SPDX-License-Identifier: Apache-2.0
"""A core with a network that a controller knows, and the frames of its endpoints."""

from __future__ import annotations

from ipaddress import ip_address

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from vswitch.slowpath.core import SwitchCore
from vswitch.slowpath.overlay import Binding
from vswitch.slowpath.pipeline import parse
from vswitch.slowpath.types import Action, ActionType, Drop, Finish, Key, Port, PortConfig, PortType, SendFrame, Upcall

WEB, DB, FAR, OTHER = (bytes([2, 0, 0, 0, 0, n]) for n in (1, 2, 3, 4))
IP4 = {WEB: "10.0.0.1", DB: "10.0.0.2", FAR: "10.0.0.3", OTHER: "10.0.0.4"}
IP6 = {WEB: "fd00::1", DB: "fd00::2", FAR: "fd00::3", OTHER: "fd00::4"}
NAMES = {WEB: "web", DB: "db", FAR: "far", OTHER: "other"}
GROUP = b"\xff" * 6
TUNNEL, REMOTE, MTU = 9, 77, 1450


def text(mac: bytes) -> str:
    return mac.hex(":")


def packed(*ips: str) -> tuple[bytes, ...]:
    return tuple(ip_address(ip).packed for ip in ips)


def local(mac: bytes, port: int, network: str = "blue") -> Binding:
    return Binding(network, NAMES[mac], mac, packed(IP4[mac], IP6[mac]), port=port)


def remote(mac: bytes, number: int = REMOTE) -> Binding:
    return Binding("blue", NAMES[mac], mac, packed(IP4[mac], IP6[mac]), remote=number, mtu=MTU)


class Driver:
    """A core with ports 1 to 3 in "blue", 4 in "red", and blue's tunnel; time stands still unless told."""

    def __init__(self) -> None:
        self.core = SwitchCore()
        self.now = 100.0
        self.sent: list[SendFrame] = []
        self._upcalls = 0
        for n in (1, 2, 3):
            self.core.port_added(Port(n, PortConfig(f"p{n}", network="blue"), True), self.now)
        self.core.port_added(Port(4, PortConfig("p4", network="red"), True), self.now)
        self.core.port_added(Port(TUNNEL, PortConfig("tun", PortType.VXLAN, network="blue"), True), self.now)

    def control(self) -> None:
        """Web is on port 1, db on port 2, far on another host."""
        self.core.set_network("blue", TUNNEL, self.now)
        self.core.set_endpoints([local(WEB, 1), local(DB, 2), remote(FAR)], self.now)

    def send(self, port: int, frame: Packet) -> tuple[Action, ...]:
        """The verdict on a frame that comes up."""
        raw = bytes(frame)
        key = parse(raw, port)
        assert isinstance(key, Key)
        self._upcalls += 1
        commands = self.core.upcall(Upcall(self._upcalls, key, raw[:256], len(raw)), self.now)
        self.sent = [command for command in commands if isinstance(command, SendFrame)]
        (finish,) = [command for command in commands if isinstance(command, Finish)]
        return finish.actions

    def answer(self, port: int, frame: Packet) -> Packet:
        """The switch's own answer to a frame that it answers."""
        actions = self.send(port, frame)
        assert actions == drop(Drop.ANSWERED)
        (sent,) = self.sent
        assert sent.port == port
        return Ether(sent.frame)


def drop(reason: Drop) -> tuple[Action, ...]:
    return (Action(ActionType.DROP, reason),)


def out(*ports: int) -> tuple[Action, ...]:
    return tuple(Action(ActionType.OUTPUT, port) for port in ports)


def away(number: int = REMOTE, limit: int = MTU + 14) -> tuple[Action, ...]:
    return (Action(ActionType.CHECK_LEN, limit), Action(ActionType.SET_TUNNEL, number), *out(TUNNEL))


def udp(src: bytes, dst: bytes, size: int = 20) -> Packet:
    return Ether(src=src, dst=dst) / IP(src=IP4[src], dst=IP4.get(dst, "10.0.0.99")) / UDP() / Raw(b"x" * size)


def udp6(src: bytes, dst: bytes, size: int = 20) -> Packet:
    return Ether(src=src, dst=dst) / IPv6(src=IP6[src], dst=IP6[dst]) / UDP() / Raw(b"x" * size)


def arp(src: bytes, target: str, dst: bytes = GROUP, sender: str | None = None) -> Packet:
    return Ether(src=src, dst=dst) / ARP(hwsrc=text(src), psrc=IP4[src] if sender is None else sender, pdst=target)


def solicitation(src: bytes, target: str, sender: str | None = None) -> Packet:
    source = IP6[src] if sender is None else sender
    group = b"\xff\x02" + bytes(9) + b"\x01\xff" + ip_address(target).packed[13:]
    frame = Ether(src=src, dst=b"\x33\x33" + group[12:]) / IPv6(src=source, dst=str(ip_address(group)), hlim=255)
    return frame / ICMPv6ND_NS(tgt=target) / ICMPv6NDOptSrcLLAddr(lladdr=text(src))


def tcp(src: bytes, dst: bytes, sport: int, dport: int) -> Packet:
    return Ether(src=src, dst=dst) / IP(src=IP4[src], dst=IP4[dst]) / TCP(sport=sport, dport=dport)
