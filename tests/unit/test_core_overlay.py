# SPDX-License-Identifier: Apache-2.0
"""Networks and what a controller tells of them: who may send what, where it goes, what the switch answers itself."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import ip_address

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.unit.overlay_driver import (
    DB,
    FAR,
    GROUP,
    IP4,
    IP6,
    MTU,
    NAMES,
    OTHER,
    REMOTE,
    TUNNEL,
    WEB,
    Driver,
    arp,
    away,
    drop,
    local,
    out,
    packed,
    remote,
    solicitation,
    tcp,
    text,
    udp,
    udp6,
)
from vswitch.slowpath.overlay import Binding, Paths, Scope, link_local
from vswitch.slowpath.pipeline import parse
from vswitch.slowpath.types import TUNNEL_RDMA, Action, ActionType, Drop, Key


@pytest.fixture
def switch() -> Driver:
    return Driver()


@pytest.fixture
def overlay(switch: Driver) -> Driver:
    switch.control()
    return switch


# ---- networks ----------------------------------------------------------------------


def test_networks_are_apart(switch: Driver) -> None:
    """Without any controller: neither floods nor what one network learned reach the other."""
    assert switch.send(4, udp(OTHER, WEB)) == drop(Drop.NO_DEST)
    assert switch.send(1, udp(WEB, OTHER)) == out(2, 3)
    assert switch.send(4, udp(OTHER, WEB)) == drop(Drop.NO_DEST)
    assert {(entry.network, entry.port) for entry in switch.core.fdb()} == {("red", 4), ("blue", 1)}


def test_the_same_address_in_two_networks(switch: Driver) -> None:
    switch.send(1, udp(WEB, DB))
    switch.send(4, udp(WEB, DB))
    assert switch.send(2, udp(DB, WEB)) == out(1)
    assert not any(entry.moves for entry in switch.core.fdb())


def test_a_tunnel_without_a_controlled_network(switch: Driver) -> None:
    assert switch.send(1, udp(WEB, GROUP)) == out(2, 3)
    assert switch.send(TUNNEL, udp(FAR, WEB)) == drop(Drop.NO_ENDPOINT)
    assert not [entry for entry in switch.core.fdb() if entry.port == TUNNEL]


# ---- where frames go -----------------------------------------------------------------


def test_endpoints_are_where_the_controller_says(overlay: Driver) -> None:
    assert overlay.send(1, udp(WEB, DB)) == out(2)
    assert overlay.send(1, udp(WEB, FAR)) == away()
    assert overlay.send(TUNNEL, udp(FAR, WEB)) == out(1)


def test_nothing_floods_between_hosts(overlay: Driver) -> None:
    assert overlay.send(1, udp(WEB, OTHER)) == out(2, 3)
    assert overlay.send(1, udp(WEB, GROUP)) == out(2, 3)
    assert overlay.send(TUNNEL, udp(FAR, GROUP)) == drop(Drop.NO_ENDPOINT)
    assert overlay.send(TUNNEL, udp(FAR, OTHER)) == drop(Drop.NO_ENDPOINT)
    overlay.core.set_endpoints([remote(OTHER, 78)], overlay.now)
    assert overlay.send(TUNNEL, udp(FAR, OTHER)) == drop(Drop.NO_ENDPOINT), "no transit"


def test_a_move_corrects_the_flows(overlay: Driver) -> None:
    overlay.send(1, udp(WEB, DB))
    key = parse(bytes(udp(WEB, DB)), 1)
    assert isinstance(key, Key)
    commands = overlay.core.set_endpoints([replace(remote(DB), remote=5)], overlay.now)
    assert [type(command).__name__ for command in commands] == ["AddFlow"]
    assert overlay.core.decide(key, overlay.now).actions == away(5)
    assert next(iter(overlay.core.flows().values())).actions == away(5)
    commands = overlay.core.set_endpoints([local(DB, 3)], overlay.now)
    assert next(iter(overlay.core.flows().values())).actions == out(3)
    commands = overlay.core.remove_endpoints([("blue", "db"), ("blue", "nobody")], overlay.now)
    assert [type(command).__name__ for command in commands] == ["AddFlow"]
    assert overlay.send(1, udp(WEB, DB)) == out(2, 3)


def test_no_way(overlay: Driver) -> None:
    overlay.core.set_endpoints([remote(FAR, 0)], overlay.now)
    assert overlay.send(1, udp(WEB, FAR)) == drop(Drop.TUNNEL_DOWN)
    overlay.core.set_endpoints([remote(FAR)], overlay.now)
    overlay.core.set_network("blue", None, overlay.now)
    assert overlay.send(1, udp(WEB, FAR)) == drop(Drop.TUNNEL_DOWN)


def test_vlans_stay_on_the_host(overlay: Driver) -> None:
    tagged = Ether(src=WEB, dst=FAR) / Dot1Q(vlan=5) / IP(src=IP4[WEB], dst=IP4[FAR]) / UDP()
    assert overlay.send(1, tagged) == drop(Drop.NO_ENDPOINT)
    priority = Ether(src=WEB, dst=FAR) / Dot1Q(vlan=0, prio=5) / IP(src=IP4[WEB], dst=IP4[FAR]) / UDP()
    check, pop, *rest = overlay.send(1, priority)
    assert check == Action(ActionType.CHECK_LEN, MTU + 18) and pop.type is ActionType.VLAN_POP
    assert tuple(rest) == away()[1:]
    back = Ether(src=FAR, dst=WEB) / Dot1Q(vlan=5) / IP(src=IP4[FAR], dst=IP4[WEB]) / UDP()
    assert overlay.send(TUNNEL, back) == drop(Drop.VLAN)


def test_a_network_that_is_controlled_no_more_learns_again(overlay: Driver) -> None:
    overlay.send(1, udp(WEB, FAR))
    overlay.core.remove_network("blue", overlay.now)
    assert overlay.send(1, udp(WEB, FAR)) == out(2, 3)
    assert overlay.core.overlay.endpoint("blue", "web") is None


# ---- who may send what -----------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        Ether(src=OTHER, dst=DB) / IP(src=IP4[WEB], dst=IP4[DB]) / UDP(),
        Ether(src=DB, dst=WEB) / IP(src=IP4[DB], dst=IP4[WEB]) / UDP(),
        Ether(src=WEB, dst=DB) / IP(src=IP4[OTHER], dst=IP4[DB]) / UDP(),
        Ether(src=WEB, dst=DB) / IPv6(src=IP6[OTHER], dst=IP6[DB]) / UDP(),
        Ether(src=WEB, dst=DB) / IPv6(src=str(ip_address(link_local(OTHER))), dst=IP6[DB]) / UDP(),
        Ether(src=WEB, dst=GROUP) / ARP(op=2, hwsrc=text(WEB), psrc=IP4[DB], pdst=IP4[DB]),
        arp(WEB, IP4[FAR], sender=IP4[DB]),
        solicitation(WEB, IP6[FAR], sender=IP6[DB]),
    ],
)
def test_spoofed(overlay: Driver, frame: Packet) -> None:
    assert overlay.send(1, frame) == drop(Drop.SPOOFED)
    assert not overlay.core.fdb(), "and nothing is learned of it"


def test_own_addresses(overlay: Driver) -> None:
    for frame in (
        udp(WEB, DB),
        udp6(WEB, DB),
        Ether(src=WEB, dst=DB) / IPv6(src=str(ip_address(link_local(WEB))), dst=IP6[DB]) / UDP(),
        Ether(src=WEB, dst=DB) / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67),
        Ether(src=WEB, dst=DB, type=0x88CC) / Raw(b"x" * 46),
    ):
        assert overlay.send(1, frame) == out(2)


def test_nobody_else_speaks_for_an_endpoint(overlay: Driver) -> None:
    assert overlay.send(3, udp(WEB, DB)) == drop(Drop.SPOOFED), "a port without endpoints"
    assert overlay.send(3, udp(FAR, DB)) == drop(Drop.SPOOFED)
    assert overlay.send(TUNNEL, udp(WEB, DB)) == drop(Drop.SPOOFED), "another host"
    assert overlay.send(3, udp(OTHER, DB)) == out(2), "nobody's address, as on any bridge"


def test_an_address_that_changes_hands(overlay: Driver) -> None:
    """Flows from before do not let a former owner go on."""
    overlay.send(1, udp(WEB, DB))
    commands = overlay.core.set_endpoints([replace(local(WEB, 1), ips=packed("10.0.0.50"))], overlay.now)
    assert commands and next(iter(overlay.core.flows().values())).actions == drop(Drop.SPOOFED)


# ---- who-has ------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [DB, FAR])
def test_arp_is_answered(overlay: Driver, target: bytes) -> None:
    reply = overlay.answer(1, arp(WEB, IP4[target]))
    assert (reply.dst, reply.src) == (text(WEB), text(target))
    assert (reply[ARP].op, reply[ARP].psrc, reply[ARP].hwsrc) == (2, IP4[target], text(target))
    assert (reply[ARP].pdst, reply[ARP].hwdst) == (IP4[WEB], text(WEB))
    assert not overlay.core.flows(), "each request comes up"


@pytest.mark.parametrize("target", [DB, FAR])
def test_neighbour_discovery_is_answered(overlay: Driver, target: bytes) -> None:
    for address in (IP6[target], str(ip_address(link_local(target)))):
        reply = overlay.answer(1, solicitation(WEB, address))
        assert (reply.dst, reply.src, reply[IPv6].dst, reply[IPv6].src) == (text(WEB), text(target), IP6[WEB], address)
        advertisement = reply[ICMPv6ND_NA]
        assert (advertisement.tgt, advertisement.S, advertisement.O, advertisement.R) == (address, 1, 1, 0)
        assert reply[ICMPv6NDOptDstLLAddr].lladdr == text(target)
        assert reply[IPv6].hlim == 255
        assert_checksums(reply)


def assert_checksums(frame: Packet) -> None:
    again = Ether(bytes(frame))
    for layer in (IP, ICMP, ICMPv6ND_NA, ICMPv6PacketTooBig):
        if layer in again:
            del again[layer].fields["chksum" if layer in (IP, ICMP) else "cksum"]
    assert bytes(again) == bytes(frame)


def test_probes_for_taken_addresses_are_answered(overlay: Driver) -> None:
    """RFC 5227, RFC 4862: so the asker does not take an address that is another's; for its own it may."""
    overlay.answer(1, arp(WEB, IP4[DB], sender="0.0.0.0"))
    reply = overlay.answer(1, solicitation(WEB, IP6[DB], sender="::"))
    assert (reply.dst, reply[IPv6].dst, reply[ICMPv6ND_NA].S) == ("33:33:00:00:00:01", "ff02::1", 0)
    assert overlay.send(1, arp(WEB, IP4[WEB], sender="0.0.0.0")) == out(2, 3)
    assert overlay.send(1, arp(WEB, IP4[WEB])) == out(2, 3), "an announcement"
    assert overlay.send(1, solicitation(WEB, IP6[WEB], sender="::")) == out(2, 3)
    assert not overlay.sent


def test_who_has_an_address_that_nobody_has(overlay: Driver) -> None:
    assert overlay.send(1, arp(WEB, IP4[OTHER])) == out(2, 3)
    assert overlay.send(1, solicitation(WEB, IP6[OTHER])) == out(2, 3)
    assert not overlay.sent and not overlay.core.flows()


def test_tags_are_kept_in_answers(overlay: Driver) -> None:
    request = Ether(src=WEB, dst=GROUP) / Dot1Q(vlan=7, prio=3) / ARP(hwsrc=text(WEB), psrc=IP4[WEB], pdst=IP4[DB])
    reply = overlay.answer(1, request)
    assert (reply[Dot1Q].vlan, reply[Dot1Q].prio, reply[ARP].hwsrc) == (7, 3, text(DB))


def test_who_has_from_another_host(overlay: Driver) -> None:
    """Linux floods its requests into the tunnel: they are answered to where the asker is."""
    reply = overlay.answer(TUNNEL, arp(FAR, IP4[WEB]))
    assert reply[ARP].hwsrc == text(WEB)
    assert overlay.sent[0].remote == REMOTE
    overlay.core.set_endpoints([remote(OTHER, 78)], overlay.now)
    assert overlay.send(TUNNEL, arp(FAR, IP4[OTHER])) == drop(Drop.NO_ENDPOINT), "its host answers that"
    assert overlay.send(TUNNEL, arp(FAR, IP4[WEB], dst=WEB)) == drop(Drop.ANSWERED)


def test_malformed_solicitations_are_not_answered(overlay: Driver) -> None:
    frame = solicitation(WEB, IP6[DB])
    frame[IPv6].hlim = 64
    assert overlay.send(1, frame) == out(2, 3)
    assert not overlay.sent


# ---- policies ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rules:
    """Lets TCP to or from port 80 pass, or whole protocols."""

    scope: Scope
    protocols: frozenset[int] = frozenset()
    paths: Paths = field(default=Paths())

    def permits(self, protocol: int, source_port: int | None, destination_port: int | None) -> bool:
        return protocol in self.protocols or (protocol == 6 and 80 in (source_port, destination_port))


def test_policies_by_port(overlay: Driver) -> None:
    rules = Rules(Scope.PORTS)
    overlay.core.set_filters({("web", "db"): rules, ("db", "web"): rules}, overlay.now)
    assert overlay.send(1, tcp(WEB, DB, 1234, 80)) == out(2)
    assert overlay.send(2, tcp(DB, WEB, 80, 1234)) == out(1)
    assert overlay.send(1, tcp(WEB, DB, 1234, 81)) == drop(Drop.DENIED)
    assert overlay.send(1, udp(WEB, DB)) == drop(Drop.DENIED)
    fragment = Ether(src=WEB, dst=DB) / IP(src=IP4[WEB], dst=IP4[DB], proto=6, frag=100) / Raw(b"x" * 40)
    assert overlay.send(1, fragment) == drop(Drop.DENIED), "it does not show its port"
    assert overlay.send(1, arp(WEB, IP4[DB])) == drop(Drop.ANSWERED), "policies are about IP"
    assert overlay.send(1, tcp(WEB, FAR, 1, 81)) == away(), "and about pairs"


def test_a_policy_change_reaches_the_flows_of_its_pair(overlay: Driver) -> None:
    overlay.send(1, tcp(WEB, DB, 1, 81))
    overlay.send(1, tcp(WEB, FAR, 1, 81))
    commands = overlay.core.set_filters({("web", "db"): Rules(Scope.PORTS)}, overlay.now)
    assert len(commands) == 1, "its mask is another one: the flow goes"
    assert len(overlay.core.flows()) == 1
    assert overlay.send(1, tcp(WEB, DB, 1, 81)) == drop(Drop.DENIED)
    overlay.core.set_filters({("web", "db"): None}, overlay.now)
    assert overlay.send(1, tcp(WEB, DB, 1, 81)) == out(2)


# ---- RDMA --------------------------------------------------------------------------------------

RDMA_ONLY = 99


def by_rdma(mac: bytes, number: int = REMOTE) -> Binding:
    return replace(remote(mac, number), rdma=RDMA_ONLY, rdma_mtu=9000)


def test_flows_by_rdma_from_their_first_packet(overlay: Driver) -> None:
    overlay.core.set_endpoints([by_rdma(FAR)], overlay.now)
    assert overlay.send(1, udp(WEB, FAR)) == away(REMOTE | TUNNEL_RDMA)
    assert overlay.send(TUNNEL, udp(FAR, WEB)) == out(1), "whatever way it came"
    commands = overlay.core.set_endpoints([remote(FAR)], overlay.now)
    assert [type(command).__name__ for command in commands] == ["AddFlow"], "the way back is the same"
    assert overlay.send(1, udp(WEB, FAR)) == away()


def test_who_is_no_endpoint_has_no_rdma(overlay: Driver) -> None:
    overlay.core.set_endpoints([by_rdma(FAR)], overlay.now)
    assert overlay.send(3, udp(OTHER, FAR)) == away()


def test_paths_of_a_pair(overlay: Driver) -> None:
    overlay.core.set_endpoints([by_rdma(FAR)], overlay.now)
    overlay.send(1, udp(WEB, FAR))
    rules = Rules(Scope.NOTHING, frozenset(range(256)))
    for paths, actions in (
        (Paths(rdma=False), away()),
        (Paths(vxlan=False), away(RDMA_ONLY | TUNNEL_RDMA, 9014)),
        (Paths(rdma=False, vxlan=False), drop(Drop.TUNNEL_DOWN)),
    ):
        commands = overlay.core.set_filters({("web", "far"): replace(rules, paths=paths)}, overlay.now)
        assert [type(command).__name__ for command in commands] == ["AddFlow"], "at once"
        assert overlay.send(1, udp(WEB, FAR)) == actions
        assert overlay.send(2, udp(DB, FAR)) == away(REMOTE | TUNNEL_RDMA), "another pair"


def test_only_rdma_leads_there(overlay: Driver) -> None:
    overlay.core.set_endpoints([by_rdma(FAR, 0)], overlay.now)
    assert overlay.send(1, udp(WEB, FAR)) == away(RDMA_ONLY | TUNNEL_RDMA, 9014)
    key = parse(bytes(udp(WEB, FAR)), 1)
    assert isinstance(key, Key)
    assert "by RDMA only" in " ".join(overlay.core.decide(key, overlay.now).reasons)


# ---- too long for the tunnel -----------------------------------------------------------------------


def test_too_long_for_the_tunnel_ipv4(overlay: Driver) -> None:
    frame = udp(WEB, FAR, size=MTU - 27)
    assert overlay.send(1, frame) == drop(Drop.TUNNEL_MTU)
    (sent,) = overlay.sent
    told = Ether(sent.frame)
    assert (sent.port, told.dst, told.src, told[IP].dst, told[IP].src) == (1, text(WEB), text(FAR), IP4[WEB], IP4[FAR])
    assert (told[ICMP].type, told[ICMP].code, told[ICMP].nexthopmtu) == (3, 4, MTU)
    assert bytes(told[ICMP].payload)[:28] == bytes(frame)[14:42]
    assert_checksums(told)
    assert overlay.send(1, udp(WEB, FAR, size=MTU - 28)) == away(), "exactly fits"


def test_too_long_for_the_tunnel_ipv6(overlay: Driver) -> None:
    frame = udp6(WEB, FAR, size=MTU)
    assert overlay.send(1, frame) == drop(Drop.TUNNEL_MTU)
    told = Ether(overlay.sent[0].frame)
    assert (told[IPv6].dst, told[IPv6].src) == (IP6[WEB], IP6[FAR])
    assert (told[ICMPv6PacketTooBig].code, told[ICMPv6PacketTooBig].mtu) == (0, MTU)
    assert_checksums(told)


def test_senders_are_told_so_often_and_no_more(overlay: Driver) -> None:
    frame = udp(WEB, FAR, size=2000)
    overlay.send(1, frame)
    assert overlay.sent
    assert overlay.send(1, frame) == drop(Drop.TUNNEL_MTU)
    assert not overlay.sent
    overlay.core.set_endpoints([replace(local(DB, 2), ips=packed(IP4[DB]))], overlay.now)
    overlay.send(2, udp(DB, FAR, size=2000))
    assert overlay.sent, "another sender"
    overlay.now += 0.2
    overlay.send(1, frame)
    assert overlay.sent


@pytest.mark.parametrize(
    "packet",
    [
        IP(src=IP4[WEB], dst=IP4[FAR]) / ICMP(type=3, code=1) / Raw(b"x" * 2000),
        IP(src=IP4[WEB], dst=IP4[FAR], frag=50) / Raw(b"x" * 2000),
        IPv6(src=IP6[WEB], dst=IP6[FAR]) / ICMPv6PacketTooBig(mtu=1280) / Raw(b"x" * 2000),
    ],
)
def test_no_error_about_an_error(overlay: Driver, packet: Packet) -> None:
    assert overlay.send(1, Ether(src=WEB, dst=FAR) / packet) == drop(Drop.TUNNEL_MTU)
    assert not overlay.sent


def test_a_ping_that_is_too_long(overlay: Driver) -> None:
    ping = Ether(src=WEB, dst=FAR) / IPv6(src=IP6[WEB], dst=IP6[FAR]) / ICMPv6EchoRequest(data=b"x" * 1500)
    overlay.send(1, ping)
    assert ICMPv6PacketTooBig in Ether(overlay.sent[0].frame)


# ---- any changes in any order ---------------------------------------------------------------------

MACS = st.sampled_from([WEB, DB, FAR, OTHER])
BOOLS = st.booleans()
FRAMES = st.one_of(
    st.builds(udp, MACS, st.one_of(MACS, st.just(GROUP))),
    st.builds(tcp, MACS, MACS, st.sampled_from([80, 81]), st.sampled_from([80, 81])),
    st.builds(lambda src, dst: arp(src, IP4[dst]), MACS, MACS),
    st.builds(lambda src, dst: solicitation(src, IP6[dst]), MACS, MACS),
)


class Changes(RuleBasedStateMachine):
    """Whatever the controller says, and whenever: each flow does what a fresh decision would."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = Driver()
        self.paths: dict[tuple[str, str], Paths] = {}

    @rule(port=st.sampled_from([1, 2, 3, 4, TUNNEL]), frame=FRAMES)
    def packet(self, port: int, frame: Packet) -> None:
        self.driver.send(port, frame)

    @rule(mac=MACS, port=st.sampled_from([1, 2, 3]), with_ips=st.booleans())
    def here(self, mac: bytes, port: int, with_ips: bool) -> None:
        binding = local(mac, port)
        self.driver.core.set_endpoints([binding if with_ips else replace(binding, ips=())], self.driver.now)

    @rule(mac=MACS, number=st.sampled_from([0, 5, REMOTE]), rdma=st.booleans())
    def there(self, mac: bytes, number: int, rdma: bool) -> None:
        binding = by_rdma(mac, number) if rdma else remote(mac, number)
        self.driver.core.set_endpoints([binding], self.driver.now)

    @rule(mac=MACS)
    def gone(self, mac: bytes) -> None:
        self.driver.core.remove_endpoints([("blue", NAMES[mac])], self.driver.now)

    @rule(one=MACS, other=MACS, scope=st.sampled_from([None, *Scope]), paths=st.builds(Paths, BOOLS, BOOLS))
    def policy(self, one: bytes, other: bytes, scope: Scope | None, paths: Paths) -> None:
        rules = None if scope is None else Rules(scope, frozenset({17}), paths)
        self.paths[NAMES[one], NAMES[other]] = paths if rules is not None else Paths()
        self.driver.core.set_filters({(NAMES[one], NAMES[other]): rules}, self.driver.now)

    @rule(tunnel=st.sampled_from([None, TUNNEL]))
    def network(self, tunnel: int | None) -> None:
        self.driver.core.set_network("blue", tunnel, self.driver.now)

    @rule()
    def network_gone(self) -> None:
        self.driver.core.remove_network("blue", self.driver.now)

    @rule(port=st.sampled_from([1, 2, 3, TUNNEL]), up=st.booleans())
    def port_goes_up_or_down(self, port: int, up: bool) -> None:
        before = self.driver.core.ports()[port]
        self.driver.core.port_changed(replace(before, up=up), self.driver.now)

    @invariant()
    def flows_are_fresh(self) -> None:
        for flow in self.driver.core.flows().values():
            decision = self.driver.core.decide(flow.key, self.driver.now)
            assert (decision.actions, decision.mask) == (flow.actions, flow.mask)

    @invariant()
    def ways_are_those_of_the_pair(self) -> None:
        overlay = self.driver.core.overlay
        for flow in self.driver.core.flows().values():
            ways = [action.arg for action in flow.actions if action.type is ActionType.SET_TUNNEL]
            if not ways:
                continue
            (way,) = ways
            one, other = overlay.at("blue", flow.key.eth_src), overlay.at("blue", flow.key.eth_dst)
            assert other is not None
            paths = self.paths.get((one.name, other.name), Paths()) if one is not None else Paths(rdma=False)
            if way & TUNNEL_RDMA:
                assert one is not None and paths.rdma and other.rdma
            if way & ~TUNNEL_RDMA == other.remote:
                assert paths.vxlan
            else:
                assert way == other.rdma | TUNNEL_RDMA

    @invariant()
    def addresses_of_endpoints_lead_to_them(self) -> None:
        overlay = self.driver.core.overlay
        for mac in (WEB, DB, FAR, OTHER):
            binding = overlay.endpoint("blue", NAMES[mac])
            if binding is not None:
                assert overlay.at("blue", mac) == binding
                assert all(overlay.owner("blue", ip) == binding for ip in binding.ips)


TestChanges = Changes.TestCase
TestChanges.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
