# SPDX-License-Identifier: Apache-2.0
"""The state file."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vswitch.slowpath import ports, state
from vswitch.slowpath.errors import StartError
from vswitch.slowpath.types import PortConfig, PortType

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,30}", fullmatch=True)
VIDS = st.integers(0, 4094)
CONFIGS = st.builds(
    PortConfig,
    name=NAMES,
    socket=st.sampled_from(["/run/a.sock", "/x"]),
    role=st.sampled_from(["client", "server"]),
    mac=st.sampled_from(["", "02:00:00:00:00:01"]),
    ips=st.sampled_from([(), ("10.0.0.1", "fd00::1")]),
    queues=st.integers(1, 16),
    mtu=st.integers(68, 65535),
    trunks=st.sampled_from([(), (1, 4094)]),
    native_vlan=VIDS,
    mac_quota=st.integers(0, 10**6),
    upcall_budget=st.integers(1, 65535),
) | st.builds(PortConfig, name=NAMES, type=st.just(PortType.PMD), devargs=st.just("net_tap0,iface=x"), tag=VIDS)


@given(st.lists(CONFIGS, unique_by=lambda c: c.name, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_saved_is_loaded(tmp_path: Path, configs: list[PortConfig]) -> None:
    path = tmp_path / "state.json"
    state.save(path, configs)
    assert state.load(path) == tuple(configs)
    assert list(tmp_path.iterdir()) == [path]


def test_no_file_no_ports(tmp_path: Path) -> None:
    assert state.load(tmp_path / "state.json") == ()


PORT = ports.port_to_json(PortConfig("a", socket="/x"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Expecting value"),
        (b'{"version": 1, "ports": [', "line 1 column"),
        (b"\xff\xfe\x00", "state file"),
        (b"[" * 100_000, "state file"),
        (b"[]", "not an object"),
        (b'{"version": 1, "ports": {}}', "list of ports"),
        (b'{"version": 2, "ports": []}', "version 2"),
        (b'{"version": 1, "ports": [1]}', "port 1: not an object"),
        (b'{"version": 1, "ports": [{}]}', "port 1: a port without a name"),
        (json.dumps({"version": 1, "ports": [PORT | {"mtu": 1}]}).encode(), "port 1: mtu"),
        (json.dumps({"version": 1, "ports": [PORT | {"wings": 1}]}).encode(), "unknown key 'wings'"),
        (json.dumps({"version": 1, "ports": [PORT, PORT]}).encode(), "port 2: a second a"),
    ],
)
def test_corrupt(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(StartError) as error:
        state.load(path)
    assert str(path) in str(error.value)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == content


def test_failing_save_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    state.save(path, [PortConfig("a", socket="/x")])
    before = path.read_bytes()
    (tmp_path / "state.json.new").mkdir()
    with pytest.raises(OSError, match="directory"):
        state.save(path, [])
    assert path.read_bytes() == before
