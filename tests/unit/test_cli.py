# SPDX-License-Identifier: Apache-2.0
"""`ffswitch` against a scripted daemon: what it asks, what it prints, how it fails."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.unit.conftest import Daemon, Run
from tests.unit.rpcserver import VERSION, Scripted, port
from vswitch.cli.client import INVALID_PARAMS, RpcError

pytestmark = pytest.mark.usefixtures("run_dir")


def one_line(text: str) -> bool:
    return text.startswith("ffswitch: ") and text.count("\n") == 1 and text.endswith("\n")


# ---- failures -------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["list-ports"],
        ["show", "-o", "json"],
        ["add-port", "web0"],
        ["top"],
        ["trace", "--live", "1"],
        ["capture", "web0", "-w", "never.pcapng"],
    ],
)
def test_daemon_not_running_is_one_line(run: Run, command: list[str]) -> None:
    code, out, err = run(*command)
    assert (code, out) == (1, "")
    assert one_line(err)
    assert "ffswitchd is not running" in err
    assert not Path("never.pcapng").exists()


def test_stale_socket_reads_as_not_running(run: Run, daemon: Daemon) -> None:
    daemon().close()
    assert "ffswitchd is not running" in run("list-ports")[2]


def test_no_permission(run: Run, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("socket.socket.connect", refuse)
    code, _, err = run("list-ports")
    assert code == 1
    assert f"no permission for {run_dir}/ffswitch.sock" in err


def test_run_dir_too_long_for_a_socket(run: Run) -> None:
    code, _, err = run("--run-dir", "/tmp/" + "a" * 120, "list-ports")
    assert code == 1
    assert one_line(err)
    assert "path too long" in err


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["nosuch"], "nosuch"),
        (["add-port"], "missing argument 'NAME'"),
        (["list-ports", "-o", "xml"], "'xml' is not one of"),
        (["add-port", "a", "--trunks", "5-x"], "'5-x' is not a VLAN"),
        (["add-port", "a", "--trunks", "0"], "not within VLANs"),
        (["add-port", "a", "--wait", "1", "--no-wait"], "exclude each other"),
        (["add-port", "a", "--devargs", "net_null0", "-o", "eal"], "no container"),
        (["set", "web0"], "KEY=VALUE"),
        (["set", "web0", "=3"], "'=3' is not KEY=VALUE"),
        (["set", "web0", "trunks=9-3"], "trunks: "),
        (["get"], "name a port, or say --switch"),
        (["trace"], "either --live N or --packet"),
        (["trace", "--packet", "x.pcap"], "--packet needs --port"),
        (["trace", "--live", "1", "-c", "2"], "--count goes with --packet"),
        (["dump-flows", "web0", "--flush"], "leave PORT out"),
    ],
)
def test_usage_error_is_one_line_and_exit_2(run: Run, command: list[str], says: str) -> None:
    code, out, err = run(*command)
    assert (code, out) == (2, "")
    assert one_line(err)
    assert says in err


def test_no_command_shows_the_help_and_exits_2(run: Run) -> None:
    code, out, err = run()
    assert (code, out) == (2, "")
    assert "list-ports" in err


@pytest.mark.parametrize(("rpc_code", "code"), [(INVALID_PARAMS, 2), (-32000, 1), (-32603, 1)])
def test_the_daemons_own_line_is_passed_on(run: Run, daemon: Daemon, rpc_code: int, code: int) -> None:
    daemon(port_del=RpcError(rpc_code, "port web9: there is none; see list-ports"))
    assert run("del-port", "web9") == (code, "", "ffswitch: port web9: there is none; see list-ports\n")


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (b"", "hung up"),
        (b"220 mail ESMTP\n", "is not ffswitchd"),
        (b"[1]\n", "is not ffswitchd"),
        (b'{"res', "hung up"),
    ],
)
def test_what_answers_is_no_daemon(run: Run, daemon: Daemon, reply: bytes, says: str) -> None:
    def script(connection: socket.socket, _request: object) -> None:
        connection.sendall(reply)
        connection.shutdown(2)

    daemon(port_list=Scripted(script))
    code, _, err = run("list-ports")
    assert code == 1
    assert one_line(err)
    assert says in err


# ---- ports ----------------------------------------------------------------


def test_bare_add_port_prints_what_the_container_needs(run: Run, daemon: Daemon) -> None:
    fake = daemon(port_add=port("web0", state="waiting-for-peer", reason="nobody listens yet"))
    code, out, err = run("add-port", "web0")
    assert (code, err) == (0, "")
    assert fake.requests == [("port.add", {"name": "web0"})]
    assert out.startswith("Port web0: waiting-for-peer for ")
    assert "(nobody listens yet)" in out
    assert "mounts /run/ffswitch/ports/web0 " in out
    assert "rm -f /run/ffswitch/ports/web0/vhost.sock" in out
    assert "--vdev=net_virtio_user0,path=/run/ffswitch/ports/web0/vhost.sock,server=1,mac=02:00:00:00:00:01" in out


def test_add_port_sends_every_option(run: Run, daemon: Daemon) -> None:
    fake = daemon(port_add=port("web0"))
    options = (
        "--type vhost-user --socket /s --role server --mac 02:00:00:00:00:09 --ip 10.0.0.1 --ip fd00::1 --network blue "
        "--trust-domain t --queues 4 --mtu 9000 --trunks 10,20-22 --native-vlan 10 --may-exist --wait 2.5 -o json"
    )
    assert run("add-port", "web0", *options.split())[0] == 0
    assert fake.requests == [
        (
            "port.add",
            {
                "name": "web0",
                "type": "vhost-user",
                "socket": "/s",
                "role": "server",
                "mac": "02:00:00:00:00:09",
                "ips": ["10.0.0.1", "fd00::1"],
                "network": "blue",
                "trust_domain": "t",
                "queues": 4,
                "mtu": 9000,
                "trunks": [10, 20, 21, 22],
                "native_vlan": 10,
                "may_exist": True,
                "wait_s": 2.5,
            },
        )
    ]


def test_add_port_that_waited_in_vain_fails(run: Run, daemon: Daemon) -> None:
    daemon(port_add=port("web0", state="waiting-for-peer", reason="connecting"))
    code, out, err = run("add-port", "web0", "--wait", "1", "-o", "json")
    assert code == 1
    assert json.loads(out)["name"] == "web0"
    assert err == (
        "ffswitch: port web0 is waiting-for-peer after 1 s (connecting); it stays, and gets ready by itself\n"
    )
    assert run("add-port", "web0")[0] == 0


def test_devargs_make_a_pmd_port(run: Run, daemon: Daemon) -> None:
    fake = daemon(port_add=port("up0", type="pmd", devargs="net_null0", socket="", mac=""))
    code, out, _ = run("add-port", "up0", "--devargs", "net_null0", "--tag", "7")
    assert code == 0
    assert fake.requests == [("port.add", {"name": "up0", "type": "pmd", "devargs": "net_null0", "tag": 7})]
    assert "pmd net_null0" in out
    assert "container" not in out


@pytest.mark.parametrize(
    ("form", "begins"), [("eal", "--no-pci "), ("podman", "podman run "), ("docker", "docker run "), ("k8s", "spec:\n")]
)
def test_container_forms_print_nothing_else(run: Run, daemon: Daemon, form: str, begins: str) -> None:
    daemon(port_add=port("web0"), version=VERSION)
    code, out, err = run("add-port", "web0", "-o", form)
    assert (code, err) == (0, "")
    assert out.startswith(begins)


def test_list_ports_says_why_a_port_is_down(run: Run, daemon: Daemon) -> None:
    daemon(
        port_list=[
            port(
                "web0",
                tag=10,
                stats={"rx_packets": 1234567, "rx_bytes": 1, "tx_packets": 9, "tx_bytes": 1, "dropped": 0},
            ),
            port("db0", state="lost", reason="the container closed its socket [/bold]", trunks=[1, 2, 3, 7]),
        ]
    )
    code, out, _ = run("list-ports")
    assert code == 0
    header, web, db = out.splitlines()
    assert header.split() == [
        "PORT",
        "TYPE",
        "STATE",
        "FOR",
        "MAC",
        "VLAN",
        "RX",
        "PKTS",
        "TX",
        "PKTS",
        "DROPPED",
        "WHY",
    ]
    assert "1.23M" in web
    assert db.endswith("the container closed its socket [/bold]")
    assert "trunk 1-3,7" in db
    assert header.index("STATE") == web.index("ready") == db.index("lost")


def test_list_ports_says_what_is_wrong_with_a_ready_port(run: Run, daemon: Daemon) -> None:
    daemon(port_list=[port("web0"), port("db0", warnings=["receive queue 0 is stuck", "so is 1"])])
    _, web, db = run("list-ports")[1].splitlines()
    assert db.endswith("receive queue 0 is stuck; so is 1")
    assert "stuck" not in web


def test_list_ports_without_ports(run: Run, daemon: Daemon) -> None:
    daemon(port_list=[])
    assert run("list-ports") == (0, "no ports yet: 'ffswitch add-port NAME' adds one\n", "")
    assert json.loads(run("list-ports", "-o", "json")[1]) == []


def test_output_that_is_no_terminal_has_no_colours_and_never_wraps(run: Run, daemon: Daemon) -> None:
    reason = "word " * 100 + "end"
    daemon(port_list=[port("db0", state="lost", reason=reason)])
    out = run("list-ports")[1]
    assert "\x1b" not in out
    assert out.splitlines()[1].endswith(reason)


def test_del_port(run: Run, daemon: Daemon) -> None:
    fake = daemon(port_del={"deleted": False})
    assert run("del-port", "web0", "--if-exists") == (0, "", "")
    assert fake.requests == [("port.del", {"name": "web0", "if_exists": True})]


def test_set_gives_values_their_types(run: Run, daemon: Daemon) -> None:
    fake = daemon(port_set=port("web0", tag=10, trunks=[]), switch_set={"mac_age": 2.5, "log_level": "debug"})
    words = ["tag=10", "trunks=5-7", "ips=10.0.0.1,10.0.0.2", "trust-domain=12", "mtu=x", "mirror="]
    assert run("set", "web0", *words)[0] == 0
    assert run("set", "--switch", "mac_age=2.5", "log_level=debug")[0] == 0
    assert fake.requests[0][1] == {
        "name": "web0",
        "values": {
            "tag": 10,
            "trunks": [5, 6, 7],
            "ips": ["10.0.0.1", "10.0.0.2"],
            "trust_domain": "12",
            "mtu": "x",
            "mirror": "",
        },
    }
    assert fake.requests[1] == ("switch.set", {"values": {"mac_age": 2.5, "log_level": "debug"}})


def test_get(run: Run, daemon: Daemon) -> None:
    daemon(port_get=port("web0", ips=["10.0.0.1", "fd00::1"]), switch_get={"mac_age": 300.0})
    assert run("get", "web0", "state") == (0, "ready\n", "")
    assert run("get", "web0", "ips") == (0, "10.0.0.1,fd00::1\n", "")
    assert json.loads(run("get", "web0", "ips", "mtu", "-o", "json")[1]) == {
        "ips": ["10.0.0.1", "fd00::1"],
        "mtu": 1500,
    }
    assert run("get", "--switch", "mac-age") == (0, "300\n", "")
    code, _, err = run("get", "web0", "colour")
    assert code == 2
    assert one_line(err)


SHOW = {
    "version": VERSION,
    "switch": {"mac_age": 300.0, "flow_idle": 10.0},
    "ports": [
        port(
            "web0",
            mirror="tap0",
            trust_domain="red",
            stats={"rx_packets": 1, "rx_bytes": 64, "tx_packets": 2, "tx_bytes": 1500, "dropped": 3},
        )
    ],
    "flows": 1,
    "macs": 2,
    "totals": {},
}


def test_show(run: Run, daemon: Daemon) -> None:
    daemon(show=SHOW)
    out = run("show")[1]
    assert "ffswitch 0.1.0 on DPDK 22.11.11, up 1h 1m" in out
    assert "1 worker on CPU 1" in out
    assert "1 flow, 2 MACs" in out
    assert "mirrored to tap0" in out
    assert "received 1 packet (64 B), sent 2 (1.5 kB), dropped 3" in out
    assert json.loads(run("show", "-o", "json")[1]) == SHOW


# ---- tables ---------------------------------------------------------------

FLOW = {"id": 3, "match": "in_port=web0,dl_dst=02:..", "actions": "output:db0", "packets": 5, "bytes": 320, "idle_s": 2}
ENTRY = {
    "network": "default",
    "vlan": 10,
    "mac": "02:..",
    "port": "web0",
    "age_s": 61.2,
    "ips": ["10.0.0.1"],
    "static": True,
    "moves": 2,
    "held": False,
}


def test_flows(run: Run, daemon: Daemon) -> None:
    fake = daemon(flow_dump=[FLOW, {**FLOW, "idle_s": None}], flow_flush={"deleted": 1})
    out = run("dump-flows", "web0")[1].splitlines()
    assert out[1].split() == ["5", "320", "2.0s", "in_port=web0,dl_dst=02:..", "output:db0"]
    assert out[2].split()[2] == "-"
    assert fake.requests == [("flow.dump", {"port": "web0"})]
    assert run("dump-flows", "--flush")[1] == "1 flow deleted\n"
    assert json.loads(run("dump-flows", "-o", "json")[1])[0] == FLOW


def test_a_flow_that_may_go_by_rdma_says_whether_it_does(run: Run, daemon: Daemon) -> None:
    actions = "set_tunnel:7(192.0.2.7,rdma),output:blue"
    daemon(flow_dump=[{**FLOW, "actions": actions, "path": "vxlan"}])
    assert run("dump-flows")[1].splitlines()[1].endswith(f"  {actions} (by vxlan now)")


def test_fdb(run: Run, daemon: Daemon) -> None:
    fake = daemon(fdb_dump=[ENTRY], fdb_flush={"deleted": 2})
    assert run("fdb")[1].splitlines()[1].split() == [
        "default",
        "10",
        "02:..",
        "web0",
        "1m",
        "1s",
        "static,",
        "moved",
        "2x",
        "10.0.0.1",
    ]
    assert run("fdb", "--flush", "web0")[1] == "2 MACs deleted\n"
    assert fake.requests == [("fdb.dump", {}), ("fdb.flush", {"port": "web0"})]


def counters(**changes: object) -> dict[str, Any]:
    zero = dict.fromkeys(("rx_packets", "rx_bytes", "tx_packets", "tx_bytes", "replicated", "upcalls"), 0)
    return {**zero, "drops": {}, "faults": {}, "queues": [], "workers": [], **changes}


def test_stats(run: Run, daemon: Daemon) -> None:
    found = {
        "ports": {"web0": counters(rx_packets=7, drops={"vlan": 1, "policy": 3}, queues=[{"rx_packets": 7}])},
        "workers": [{"cpu": 1, "busy_pct": 12.34, "loops": 9}],
        "warnings": ["port web0: it is stuck"],
        "totals": {
            "received": 7,
            "replicated": 0,
            "injected": 0,
            "encapsulated": 0,
            "sent": 3,
            "decapsulated": 0,
            "dropped": {"policy": 3, "vlan": 1},
            "parked": 0,
            "balanced": True,
        },
    }
    daemon(stats=found, status={"rdma": None})
    out = run("stats")[1]
    assert "RDMA" not in out
    assert "policy 3, vlan 1" in out
    assert "received 7 + copies 0 = sent 3 + dropped 4 (policy 3, vlan 1) + waiting 0\n" in out
    assert "12.3" in out
    found["totals"] |= {"injected": 2, "encapsulated": 3, "decapsulated": 5}  # type: ignore[operator]
    line = "received 7 + copies 0 + made here 2 + packed 3 = sent 3 + unpacked 5 + dropped 4"
    assert line in run("stats")[1]
    found["totals"] = {**found["totals"], "balanced": False}  # type: ignore[dict-item]
    assert "counted while packets moved" in run("stats")[1]
    assert "QUEUE" in run("stats", "web0")[1]
    assert "warning: port web0: it is stuck\n" in out
    assert "QUEUES STOPPED" not in out
    found["ports"]["web0"]["faults"] = {"avail-jump": 2}  # type: ignore[index]
    assert "avail-jump 2" in run("stats")[1]


def test_top_prints_rates(run: Run, daemon: Daemon) -> None:
    numbers = iter([0, 1_000_000, 1_000_000])
    daemon(
        show=SHOW,
        stats=lambda _: {
            "ports": {"web0": counters(rx_packets=next(numbers))},
            "workers": [{"cpu": 1, "busy_cycles": 1}],
            "time_s": 0.0,
            "tsc_hz": 1000,
        },
        status={"rdma": None},
    )
    code, out, _ = run("top", "-d", "0.1", "-n", "2", "-o", "json")
    assert code == 0
    first, second = json.loads(out)
    assert first["ports"]["web0"]["rx_packets"] > 0
    assert second["ports"]["web0"]["rx_packets"] == 0


def test_top_without_a_terminal_draws_one_table_a_sample(run: Run, daemon: Daemon) -> None:
    clock = {"time_s": 0.0, "tsc_hz": 1000}
    messages = {"tx_messages": 5, "tx_bytes": 500, "rx_messages": 0, "rx_bytes": 0}
    daemon(
        show=SHOW,
        stats={"ports": {"web0": counters()}, "workers": [{"cpu": 1, "busy_cycles": 1}], **clock},
        status={"rdma": {"peers": [{"host": "right", "stats": messages}, {"host": "down", "stats": None}]}},
    )
    code, out, _ = run("top", "-d", "0.1", "-n", "1")
    assert code == 0
    assert "RX PPS" in out
    assert [line.split()[0] for line in out.split("RDMA PEER")[1].splitlines()[1:3]] == ["down", "right"]
    assert "CPU 1 0 % busy" in out
