# SPDX-License-Identifier: Apache-2.0
"""The controller's objects as JSON, there and back, and what is said about JSON that is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller import model as m
from controller.codec import FieldError, field_text, from_json, to_json
from tests.unit.controller import worlds

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(worlds.seeded(worlds.any_object))
def test_an_object_survives_json(item: m.Object) -> None:
    text = json.dumps(to_json(item))
    again = from_json(m.CLASSES[m.kind_of(item)], json.loads(text))
    assert again == item
    assert hash(again) == hash(item)
    assert json.dumps(to_json(again)) == text
    assert m.key_of(again) == m.key_of(item)


@given(st.data())
def test_any_json_in_any_field_is_read_or_named(data: st.DataObject) -> None:
    item = data.draw(worlds.seeded(worlds.any_object))
    written = to_json(item)
    key = data.draw(st.sampled_from(sorted(written)))
    written[key] = data.draw(JSON)
    try:
        again = from_json(type(item), written)
    except FieldError as error:
        assert "\n" not in str(error)
        return
    assert from_json(type(item), to_json(again)) == again


def test_what_is_equal_reads_equal() -> None:
    one = {
        "name": "web0",
        "network": "blue",
        "mac": "02:AA:00:00:00:01",
        "ips": ["FD00:0::1"],
        "labels": {"b": "", "a": "1"},
    }
    other = {
        "labels": {"a": "1", "b": ""},
        "ips": ["fd00::1"],
        "mac": "02:aa:00:00:00:01",
        "name": "web0",
        "network": "blue",
    }
    assert from_json(m.Endpoint, one) == from_json(m.Endpoint, other)


NET: dict[str, Any] = {"name": "blue", "vni": 5}
POLICY: dict[str, Any] = {"name": "p", "action": "allow"}
RDMA: dict[str, Any] = {"device": "d", "port": 1, "gid": "::1", "link_layer": "infiniband", "gid_type": "ib-roce-v1"}


def _host(**capabilities: Any) -> dict[str, Any]:
    return {"name": "h", "capabilities": capabilities}


WRONG: list[tuple[type[m.Object], Any, str]] = [
    (m.Network, [], "[] is not an object with fields"),
    (m.Network, {"vni": 5}, "name: it is missing"),
    (m.Network, NET | {"subnet": []}, "subnet: no such field: did you mean subnets?"),
    (
        m.TrustDomain,
        {"name": "a", "zzzz": 1},
        "zzzz: no such field: known are mode, name",
    ),
    (m.Network, {"name": "blue", "vni": 0}, "vni: 0 is not a whole number from 1 to 16777215"),
    (m.Network, {"name": "blue", "vni": 1 << 24}, "vni: 16777216 is not a whole number from 1 to 16777215"),
    (m.Network, {"name": "blue", "vni": True}, "vni: True is not a whole number from 1 to 16777215"),
    (
        m.Network,
        {"name": "-x", "vni": 5},
        "name: '-x' is not a name: 1 to 63 letters, digits, '_', '.' and '-', the first a letter or digit",
    ),
    (m.Network, NET | {"subnets": "10.0.0.0/8"}, "subnets: '10.0.0.0/8' is not a list"),
    (
        m.Network,
        NET | {"subnets": ["10.0.0.0/8", "10.1.2.3/16"]},
        "subnets[1]: 10.1.2.3/16 has bits set beyond its prefix: did you mean 10.1.0.0/16?",
    ),
    (
        m.Network,
        NET | {"subnets": ["10.0.0.1"]},
        "subnets[0]: '10.0.0.1' has no prefix length: say 10.0.0.1/24, or another",
    ),
    (m.Network, NET | {"subnets": ["ten"]}, "subnets[0]: 'ten' is not a subnet like 10.1.0.0/16 or fd00:1::/64"),
    (m.Network, NET | {"subnets": ["224.0.0.0/8"]}, "subnets[0]: 224.0.0.0/8 is for groups, not for interfaces"),
    (
        m.Network,
        NET | {"subnets": ["10.0.0.0/8", "10.1.0.0/16"]},
        "subnets[1]: 10.1.0.0/16 overlaps subnets[0], 10.0.0.0/8",
    ),
    (
        m.Network,
        NET | {"subnets": ["10.0.0.0/8"], "gateways": ["11.0.0.1"]},
        "gateways[0]: 11.0.0.1 is in none of the network's subnets",
    ),
    (
        m.Network,
        NET | {"subnets": ["10.0.0.0/8"], "gateways": ["10.0.0.1", "10.0.0.2"]},
        "gateways[1]: a second IPv4 gateway: one of each family",
    ),
    (
        m.Network,
        NET | {"subnets": ["10.0.0.0/8"], "excluded": ["10.0.0.9-11.0.0.1"]},
        "excluded[0]: 10.0.0.9-11.0.0.1 is not within one of the network's subnets",
    ),
    (
        m.Network,
        NET | {"excluded": ["10.0.0.9-10.0.0.1"]},
        "excluded[0]: '10.0.0.9-10.0.0.1': the range ends before it begins, or in another family",
    ),
    (m.Network, NET | {"subnets": ["fd00::/64"], "mtu": 1000}, "mtu: 1000 is too small for IPv6, which takes 1280"),
    (
        m.Endpoint,
        {"name": "a", "network": "b", "mac": "02:0:0"},
        "mac: '02:0:0' is not a MAC address like 02:00:00:00:00:01",
    ),
    (
        m.Endpoint,
        {"name": "a", "network": "b", "mac": "01:00:00:00:00:01"},
        "mac: 01:00:00:00:00:01 cannot be an interface's address: it is a group address or all zero",
    ),
    (
        m.Endpoint,
        {"name": "a", "network": "b", "ips": ["10.0.0.1", "10.0.0.1"]},
        "ips[1]: '10.0.0.1' stands there twice",
    ),
    (m.Endpoint, {"name": "a", "network": "b", "ips": ["ff02::1"]}, "ips[0]: ff02::1 cannot be an interface's address"),
    (
        m.Endpoint,
        {"name": "a", "network": "b", "ips": ["fe80::1%eth0"]},
        "ips[0]: 'fe80::1%eth0': a scope means nothing on another host, leave out what follows the '%'",
    ),
    (
        m.Endpoint,
        {"name": "a", "network": "b", "port_type": "vhostuser"},
        "port_type: 'vhostuser' is none of its values: did you mean vhost-user?",
    ),
    (
        m.Endpoint,
        {"name": "a", "network": "b", "labels": {"a b": "c"}},
        "labels: 'a b' is not a label: 1 to 63 letters, digits, '_', '.', '/' and '-'",
    ),
    (
        m.Host,
        _host(uplinks=[{"name": "up0", "mtu": 9}]),
        "capabilities.uplinks[0].mtu: 9 is not a whole number from 68 to 65535",
    ),
    (
        m.Host,
        _host(rdma=[RDMA | {"gid_type": "roce-v2"}]),
        "capabilities.rdma[0].gid_type: RoCE runs on Ethernet: an infiniband port has ib-roce-v1 GIDs only",
    ),
    (
        m.Host,
        _host(rdma=[RDMA | {"gid": "10.0.0.1"}]),
        "capabilities.rdma[0].gid: '10.0.0.1' is not a GID like fe80::1 or ::ffff:10.0.0.1",
    ),
    (m.Host, {"name": "h", "since": float("nan")}, "since: nan is not a time in seconds since 1970"),
    (m.Policy, POLICY | {"form": {}}, "form: no such field: did you mean from?"),
    (
        m.Policy,
        POLICY | {"l4": [{"protocol": "icmp", "ports": [1]}]},
        "l4[0].ports: protocol icmp has no ports: leave them out",
    ),
    (
        m.Policy,
        POLICY | {"l4": [{"protocol": "tcp", "ports": ["9-1"]}]},
        "l4[0].ports[0]: '9-1' is not a range of ports from 0 to 65535, the lower first",
    ),
    (
        m.Policy,
        POLICY | {"l4": [{"protocol": "tpc"}]},
        "l4[0].protocol: 'tpc' is not an IP protocol: a number from 0 to 255, or icmp, tcp, udp, gre, icmpv6, sctp",
    ),
    (
        m.Policy,
        {"name": "p", "action": "deny", "paths": ["rdma"]},
        "paths: a policy that denies leaves no path: leave it out, or say action: allow",
    ),
    (
        m.Policy,
        POLICY | {"paths": ["rdma"], "l4": [{"protocol": 6}]},
        "paths: a path is chosen for a pair, not for a port: leave out paths or l4",
    ),
    (
        m.Policy,
        POLICY | {"paths": ["none"]},
        "paths: at least one of zero-copy, shm-stream, switched, rdma, vxlan, and nothing else",
    ),
]


@pytest.mark.parametrize(("cls", "value", "words"), WRONG)
def test_what_is_wrong_is_named(cls: type[m.Object], value: Any, words: str) -> None:
    with pytest.raises(FieldError) as caught:
        from_json(cls, value)
    assert str(caught.value) == words


def test_a_field_deep_inside_is_led_to() -> None:
    with pytest.raises(FieldError) as caught:
        from_json(m.Host, {"name": "h", "capabilities": {"uplinks": [{"name": "u", "ips": ["x"]}]}}, at=("hosts", 3))
    assert caught.value.field == ("hosts", 3, "capabilities", "uplinks", 0, "ips", 0)
    assert field_text(caught.value.field) == "hosts[3].capabilities.uplinks[0].ips[0]"
