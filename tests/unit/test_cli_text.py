# SPDX-License-Identifier: Apache-2.0
"""The pure parts of `ffswitch`: numbers for people, rates, what containers are told."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any

import click
import pytest

from tests.unit.rpcserver import port
from vswitch.cli import containers, render
from vswitch.cli.containers import TESTPMD_IMAGE, HostFacts
from vswitch.cli.ports import vlan_list, vlan_text
from vswitch.cli.render import count, duration, listing, plural, print_table, size
from vswitch.cli.stats import drop_text
from vswitch.cli.top import rates_between

WEB = port("web0", queues=2)
SOCKET = "/run/ffswitch/ports/web0/vhost.sock"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (9999, "9999"), (12345, "12.3k"), (999_999, "1000k"), (1_234_567, "1.23M"), (5e9, "5.00G")],
)
def test_count(number: float, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (123_456_789, "123 MB")])
def test_size(number: float, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (0.9, "0s"), (59, "59s"), (60, "1m"), (3700, "1h 1m"), (3605, "1h"), (90061, "1d 1h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("columns", "lines"),
    [
        (sys.maxsize, ["PORT   N  WHY", "web0  12  because of this and of that and of more"]),
        (41, ["PORT   N  WHY", "web0  12  because of this and of that and", "          of more"]),
        (30, ["PORT   N  WHY", "web0  12", "      because of this and of", "      that and of more"]),
    ],
)
def test_last_column_wraps_on_a_terminal(
    columns: int, lines: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(render, "_terminal_columns", lambda: columns)
    print_table(["PORT", ">N", "WHY"], [["web0", "12", "because of this and of that and of more"]], "none")
    assert capsys.readouterr().out.splitlines() == lines


def test_words() -> None:
    assert (plural(1, "port"), plural(0, "port")) == ("1 port", "0 ports")
    assert listing([7, 1, 3, 2]) == "1-3,7"
    assert listing([]) == ""
    assert drop_text({"vlan": 1, "policy": 3, "no-dest": 0}) == "policy 3, vlan 1"


def test_vlans() -> None:
    assert vlan_list("") == []
    assert vlan_list("10, 20-22,20") == [10, 20, 21, 22]
    with pytest.raises(click.BadParameter):
        vlan_list("4095")
    assert vlan_text(port("a", tag=5)) == "5"
    assert vlan_text(port("a")) == "trunk"
    assert vlan_text(port("a", trunks=[1, 2, 9], native_vlan=2)) == "trunk 1-2,9 native 2"


# ---- rates ------------------------------------------------------------------


def sample(
    time: float, ports: dict[str, Any], busy: int = 0, rdma: dict[str, dict[str, int]] | None = None
) -> dict[str, Any]:
    """`busy`: cycles, of which a second has 1000."""
    workers = [{"cpu": 1, "busy_cycles": busy}]
    stats = {"time_s": time, "tsc_hz": 1000, "ports": ports, "workers": workers}
    return {"time": time, "stats": stats, "rdma": rdma or {}}


def counters(rx: int, drops: dict[str, int] | None = None) -> dict[str, Any]:
    return {"rx_packets": rx, "rx_bytes": rx * 64, "tx_packets": 0, "tx_bytes": 0, "drops": drops or {}}


def test_rates_are_per_second_and_name_the_drops() -> None:
    before = sample(10.0, {"a": counters(100, {"vlan": 1})}, busy=100)
    after = sample(12.0, {"a": counters(300, {"vlan": 5, "policy": 0})}, busy=600)
    rates = rates_between(before, after)
    assert rates["ports"]["a"] == {
        "rx_packets": 100.0,
        "rx_bytes": 6400.0,
        "tx_packets": 0.0,
        "tx_bytes": 0.0,
        "shortcuts": {},
        "dropped": 2.0,
        "drops": {"vlan": 2.0},
    }
    assert rates["workers"] == [{"cpu": 1, "busy_pct": 25.0}]


def test_port_added_anew_counts_from_nothing() -> None:
    rates = rates_between(sample(0.0, {"a": counters(500)}), sample(1.0, {"a": counters(3), "b": counters(7)}))
    assert rates["ports"]["a"]["rx_packets"] == 0
    assert rates["ports"]["b"]["rx_packets"] == 7.0
    assert rates["workers"][0]["busy_pct"] == 0.0


def test_rates_of_rdma_peers() -> None:
    """One that was made anew, or has no queue pair, has no rate below nothing."""

    def peer(sent: int, received: int) -> dict[str, int]:
        return {"tx_messages": sent, "tx_bytes": 10 * sent, "rx_messages": received, "rx_bytes": 0, "controls": 9}

    before = sample(0.0, {}, rdma={"right": peer(10, 50), "gone": peer(1, 1), "down": peer(7, 7)})
    after = sample(2.0, {}, rdma={"right": peer(30, 20), "new": peer(4, 0), "down": {}})
    assert rates_between(before, after)["rdma"] == {
        "right": {"tx_messages": 10.0, "tx_bytes": 100.0, "rx_messages": 0.0, "rx_bytes": 0.0},
        "new": {"tx_messages": 2.0, "tx_bytes": 20.0, "rx_messages": 0.0, "rx_bytes": 0.0},
        "down": {"tx_messages": 0.0, "tx_bytes": 0.0, "rx_messages": 0.0, "rx_bytes": 0.0},
    }


def test_no_worker_is_busier_than_always() -> None:
    rates = rates_between(sample(0.0, {}, busy=0), sample(1.0, {}, busy=1001))
    assert rates["workers"][0]["busy_pct"] == 100.0


# ---- what containers are told --------------------------------------------------


def test_container_listens_where_the_switch_is_client() -> None:
    arguments = containers.eal_arguments(WEB)
    assert "--no-huge" in arguments
    assert f"--vdev=net_virtio_user0,path={SOCKET},server=1,mac=02:00:00:00:00:01,queues=2" in arguments
    assert containers.stale_socket(WEB) == SOCKET


def test_container_connects_where_the_switch_is_server() -> None:
    server = port("web0", role="server", mac="")
    assert f"--vdev=net_virtio_user0,path={SOCKET},queues=1" in containers.eal_arguments(server)
    assert containers.stale_socket(server) == ""
    assert "rm -f" not in containers.podman_line(server, HostFacts(cpus=(0,)))


def words_of(line: str) -> tuple[list[str], list[str]]:
    """The words of a command line, and those that the shell in its container sees."""
    outer = shlex.split(line)
    return outer, shlex.split(outer[-1].replace(";", " ; "))


@pytest.mark.parametrize("form", [containers.podman_line, containers.docker_line])
def test_run_line_mounts_the_directory_and_removes_the_stale_socket(form: Any) -> None:
    outer, inner = words_of(form(WEB, HostFacts(cpus=(2, 3))))
    assert outer[1:3] == ["run", "--rm"]
    assert outer[outer.index("-v") + 1] == "/run/ffswitch/ports/web0:/run/ffswitch/ports/web0"
    assert outer[-4:-1] == [TESTPMD_IMAGE, "sh", "-c"]
    assert inner[:6] == ["rm", "-f", SOCKET, ";", "exec", "dpdk-testpmd"]
    assert [word for word in containers.eal_arguments(WEB) if word not in inner] == []
    assert "--lcores=0@3,1@3" in inner
    assert inner[-2:] == ["--rxq=2", "--txq=2"]


def test_podman_is_told_of_what_this_host_cannot_do() -> None:
    able = containers.podman_line(WEB, HostFacts(cpus=(0,)))
    assert "--ulimit" not in able
    assert "--runtime" not in able
    facts = HostFacts(cpus=(0,), nofile=20000, nproc=32768, may_raise_limits=False, needs_runc=True)
    assert "--runtime runc --ulimit nofile=20000:20000 --ulimit nproc=32768:32768 -v" in containers.podman_line(
        WEB, facts
    )
    assert "--ulimit" not in containers.docker_line(WEB, facts)


def test_odd_characters_survive_both_shells() -> None:
    odd = port("web0", socket="/tmp/it's a $dir/vhost.sock")
    outer, inner = words_of(containers.podman_line(odd, HostFacts(cpus=(0,))))
    assert outer[outer.index("-v") + 1] == "/tmp/it's a $dir:/tmp/it's a $dir"
    assert inner[2] == "/tmp/it's a $dir/vhost.sock"


def test_k8s_command_is_a_json_string() -> None:
    text = containers.k8s_snippet(port("Web_0.", socket='/tmp/a "b"/vhost.sock'))
    line = next(line for line in text.splitlines() if "command:" in line)
    command = json.loads(line.partition("command: ")[2])
    assert command[:2] == ["sh", "-c"]
    assert command[2].startswith("rm -f '/tmp/a \"b\"/vhost.sock'; exec dpdk-testpmd ")
    assert "  - name: web-0\n" in text


def test_host_facts_keep_off_the_workers_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    assert containers.host_facts([2]).cpus == (0, 1)
    assert containers.host_facts([0, 1, 2]).cpus == (0, 1, 2)
