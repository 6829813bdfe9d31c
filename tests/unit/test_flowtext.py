# SPDX-License-Identifier: Apache-2.0
"""Flows and packets in words."""

import ipaddress

import pytest

from vswitch.slowpath.flowtext import actions_text, key_fields, match_text, present, summary
from vswitch.slowpath.types import TUNNEL_RDMA, Action, ActionType, Drop, Key

A, B = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
MACS = "02:00:00:00:00:01 > 02:00:00:00:00:02"


def ip(text: str) -> bytes:
    return ipaddress.ip_address(text).packed.ljust(16, b"\0")


def port(number: int) -> str:
    return f"p{number}"


BASE = Key(eth_dst=B, eth_src=A, in_port=3)
IPV4 = BASE._replace(eth_type=0x0800, ip_src=ip("10.0.0.1"), ip_dst=ip("10.0.0.2"))
IPV6 = BASE._replace(eth_type=0x86DD, ip_src=ip("fd00::1"), ip_dst=ip("fd00::2"))
ARP = BASE._replace(eth_type=0x0806, ip_proto=1, ip_src=ip("10.0.0.1"), ip_dst=ip("10.0.0.2"))
TAGGED = IPV4._replace(vlan_tpid=(0x8100, 0), vlan_tci=(0x600A, 0))
ALL = b"\xff" * 6


@pytest.mark.parametrize(
    ("key", "mask", "text"),
    [
        (BASE, Key(in_port=0xFFFF, eth_src=ALL), "in_port=p3,dl_src=02:00:00:00:00:01"),
        (BASE, Key(vlan_tpid=(0xFFFF, 0), vlan_tci=(0xFFF, 0)), "vlan_tci=0x0000"),
        (TAGGED, Key(vlan_tpid=(0xFFFF, 0), vlan_tci=(0xFFF, 0)), "vlan_tpid=0x8100,dl_vlan=10"),
        (TAGGED, Key(vlan_tci=(0xFFFF, 0)), "dl_vlan=10,dl_vlan_pcp=3,vlan_dei=0"),
        (BASE, Key(eth_dst=b"\x01" + bytes(5)), "dl_dst=02:00:00:00:00:02/01:00:00:00:00:00"),
        (ARP, Key(eth_type=0xFFFF, ip_src=b"\xff" * 4 + bytes(12)), "dl_type=0x0806,arp_spa=10.0.0.1"),
        (IPV4, Key(ip_dst=b"\xff" * 3 + bytes(13)), "nw_dst=10.0.0.2/255.255.255.0"),
        (IPV6, Key(ip_src=b"\xff" * 16, ip_proto=0xFF), "nw_proto=0,ipv6_src=fd00::1"),
        (IPV4._replace(tcp_flags=0x12), Key(tcp_flags=0xFF, l4_dst=0xFFFF), "tcp_flags=0x12,tp_dst=0"),
        (BASE, Key(), ""),
    ],
)
def test_match(key: Key, mask: Key, text: str) -> None:
    assert match_text(key, mask, port) == text


def test_fields_by_the_keys_own_names() -> None:
    assert key_fields(TAGGED, present(TAGGED), port) == {
        "in_port": "p3",
        "vlan_tpid": "0x8100",
        "vlan_vid": "10",
        "vlan_pcp": "3",
        "vlan_dei": "0",
        "eth_src": "02:00:00:00:00:01",
        "eth_dst": "02:00:00:00:00:02",
        "eth_type": "0x0800",
        "ip_src": "10.0.0.1",
        "ip_dst": "10.0.0.2",
    }


@pytest.mark.parametrize(
    ("actions", "text"),
    [
        ((), "drop(policy)"),
        ((Action(ActionType.DROP, Drop.NO_DEST),), "drop(no-dest)"),
        (
            (
                Action(ActionType.MIRROR, 9),
                Action(ActionType.OUTPUT, 1),
                Action(ActionType.VLAN_POP),
                Action(ActionType.OUTPUT, 2),
                Action(ActionType.VLAN_PUSH, 0x600A, 0x8100),
                Action(ActionType.UPCALL),
            ),
            "mirror:p9,output:p1,pop_vlan,output:p2,push_vlan(tpid=0x8100,vid=10,pcp=3),upcall",
        ),
    ],
)
def test_actions(actions: tuple[Action, ...], text: str) -> None:
    assert actions_text(actions, port) == text


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (BASE, "IEEE 802.3 length frame"),
        (BASE._replace(eth_type=0x88CC), "type 0x88cc"),
        (ARP, "ARP request, 10.0.0.1 about 10.0.0.2"),
        (ARP._replace(ip_proto=9), "ARP operation 9, 10.0.0.1 about 10.0.0.2"),
        (IPV4._replace(ip_proto=6, l4_src=80, l4_dst=4242), "IPv4 10.0.0.1:80 > 10.0.0.2:4242 TCP"),
        (IPV6._replace(ip_proto=17, l4_src=53, l4_dst=99), "IPv6 [fd00::1]:53 > [fd00::2]:99 UDP"),
        (IPV6._replace(ip_proto=58, l4_src=135), "IPv6 fd00::1 > fd00::2 ICMPv6 type 135 code 0"),
        (IPV4._replace(ip_proto=17, ip_frag=3), "IPv4 10.0.0.1 > 10.0.0.2 UDP fragment"),
        (IPV4._replace(ip_proto=253), "IPv4 10.0.0.1 > 10.0.0.2 protocol 253"),
        (TAGGED._replace(ip_proto=47), "vlan 10, IPv4 10.0.0.1 > 10.0.0.2 GRE"),
    ],
)
def test_summary(key: Key, text: str) -> None:
    assert summary(key, 60) == f"{MACS}, {text}, 60 bytes"


def test_tunnel_actions_name_the_other_end() -> None:
    actions = (Action(ActionType.CHECK_LEN, 1464), Action(ActionType.SET_TUNNEL, 7), Action(ActionType.OUTPUT, 9))
    assert actions_text(actions, str, lambda number: f"192.0.2.{number}") == (
        "check_len:1464,set_tunnel:7(192.0.2.7),output:9"
    )
    assert actions_text(actions, str) == "check_len:1464,set_tunnel:7,output:9"


def test_a_tunnel_that_may_be_rdma_says_so() -> None:
    actions = (Action(ActionType.SET_TUNNEL, 7 | TUNNEL_RDMA),)
    assert actions_text(actions, str, lambda number: f"192.0.2.{number}") == "set_tunnel:7(192.0.2.7,rdma)"
    assert actions_text(actions, str) == "set_tunnel:7(rdma)"
