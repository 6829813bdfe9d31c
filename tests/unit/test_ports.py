# SPDX-License-Identifier: Apache-2.0
"""What a port may be told."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vswitch.slowpath import ports
from vswitch.slowpath.errors import BadParams
from vswitch.slowpath.types import PortConfig, PortType

RUN = Path("/run/ff")


def test_defaults() -> None:
    config = ports.read_port({"name": "web0"}, RUN)
    assert config == PortConfig("web0", socket="/run/ff/ports/web0/vhost.sock", mac=ports.default_mac("web0"))


def test_default_mac_is_stable_local_unicast_and_the_names_own() -> None:
    mac = bytes.fromhex(ports.default_mac("web0").replace(":", ""))
    assert len(mac) == 6
    assert mac[0] & 3 == 2
    assert ports.default_mac("web0") == ports.default_mac("web0") != ports.default_mac("web1")


def test_everything_given() -> None:
    config = ports.read_port(
        {
            "name": "db.0",
            "socket": "/var/run//x/vhost.sock",
            "role": "server",
            "mac": "02:AB:00:00:00:01",
            "ips": ["10.0.0.1", "FD00::0:1", "10.0.0.1"],
            "network": "blue",
            "trust_domain": "t",
            "queues": 4,
            "mtu": "9000",
            "trunks": "30,10",
            "native_vlan": 10,
        },
        RUN,
    )
    assert config == PortConfig(
        "db.0",
        socket="/var/run/x/vhost.sock",
        role="server",
        mac="02:ab:00:00:00:01",
        ips=("10.0.0.1", "fd00::1"),
        network="blue",
        trust_domain="t",
        queues=4,
        mtu=9000,
        trunks=(10, 30),
        native_vlan=10,
    )


def test_pmd() -> None:
    config = ports.read_port({"name": "up", "type": "pmd", "devargs": "net_pcap0,iface=lo"}, RUN)
    assert (config.type, config.socket, config.mac) == (PortType.PMD, "", "")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "name is missing"),
        ({"name": ""}, "not a port name"),
        ({"name": "-x"}, "not a port name"),
        ({"name": "a/b"}, "not a port name"),
        ({"name": "x" * 32}, "1 to 31"),
        ({"name": 7}, "not a text"),
        ({"name": "a\nb"}, "not a port name"),
        ({"name": "a", "colour": "red"}, "unknown key 'colour'"),
        ({"name": "a", "mirror": "b"}, "unknown key 'mirror'"),
        ({"name": "a", "type": "tap"}, "vhost-user or pmd"),
        ({"name": "a", "role": "peer"}, "client or server"),
        ({"name": "a", "socket": "x.sock"}, "absolute path"),
        ({"name": "a", "socket": "/" + "x" * 107}, "has 108 bytes"),
        ({"name": "a", "devargs": "net_pcap0"}, "say type pmd"),
        ({"name": "a", "type": "pmd"}, "needs devargs"),
        ({"name": "a", "type": "packet"}, "a packet port needs devargs, such as the kernel's eth0"),
        ({"name": "a", "type": "packet", "devargs": "eth0", "role": "server"}, "neither socket nor role"),
        ({"name": "a", "type": "pmd", "devargs": "x\n"}, "control character"),
        ({"name": "a", "type": "pmd", "devargs": "x", "socket": "/x"}, "neither socket nor role"),
        ({"name": "a", "mac": "02:00:00:00:00"}, "not a MAC address"),
        ({"name": "a", "mac": "03:00:00:00:00:00"}, "group address"),
        ({"name": "a", "mac": "00:00:00:00:00:00"}, "all zero"),
        ({"name": "a", "ips": ["10.0.0.256"]}, "'10.0.0.256' is not an IPv4"),
        ({"name": "a", "ips": ["10.0.0.0/8"]}, "without a prefix"),
        ({"name": "a", "ips": ["224.0.0.1"]}, "cannot be"),
        ({"name": "a", "ips": 5}, "not a list"),
        ({"name": "a", "network": ""}, "not a name"),
        ({"name": "a", "queues": 0}, "1 to 16"),
        ({"name": "a", "queues": 17}, "1 to 16"),
        ({"name": "a", "queues": True}, "1 to 16"),
        ({"name": "a", "mtu": 67}, "68 to 65535"),
        ({"name": "a", "mtu": 65536}, "68 to 65535"),
        ({"name": "a", "mtu": "lots"}, "'lots' is not a whole number"),
        ({"name": "a", "mtu": 1500.5}, "'1500.5' is not a whole number"),
        ({"name": "a", "tag": 4095}, "0 to 4094"),
        ({"name": "a", "trunks": [0]}, "1 to 4094"),
        ({"name": "a", "tag": 5, "trunks": [6]}, "one or the other"),
        ({"name": "a", "tag": 5, "native_vlan": 6}, "one or the other"),
    ],
)
def test_refused_in_one_line(given: dict[str, Any], words: str) -> None:
    with pytest.raises(BadParams) as error:
        ports.read_port(given, RUN)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_longest_socket_path() -> None:
    path = "/" + "x" * 106
    assert ports.read_port({"name": "a", "socket": path}, RUN).socket == path
    with pytest.raises(BadParams, match="108 bytes"):
        ports.read_port({"name": "a"}, Path("/" + "r" * (108 - len("/ports/a/vhost.sock") - 1)))


def test_change() -> None:
    config = ports.read_port({"name": "a"}, RUN)
    assert ports.change_port(config, {"tag": "7", "mirror": "b"}) == replace(config, tag=7, mirror="b")
    assert ports.change_port(config, {"mirror": ""}) == config


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "b"}, "unknown key 'name'"),
        ({"mirror": "a"}, "its own mirror"),
        ({"tag": 3, "trunks": [4]}, "one or the other"),
        ({"upcall_budget": 0}, "1 to 65535"),
    ],
)
def test_change_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(BadParams, match=words):
        ports.change_port(PortConfig("a", socket="/x"), values)


def test_differences_are_in_what_port_add_may_say() -> None:
    a = PortConfig("a", socket="/x")
    assert ports.differences(a, replace(a, mirror="m", mac_quota=1)) == ()
    assert ports.differences(a, replace(a, mtu=9000, tag=1)) == ("mtu", "tag")
