# SPDX-License-Identifier: Apache-2.0
"""What `ffswitch` prints of memory ports and shortcuts, against a scripted daemon."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.conftest import Daemon, Run
from tests.unit.rpcserver import port
from vswitch.slowpath.memory.rules import pair_of_ports
from vswitch.slowpath.types import PortConfig, PortType

pytestmark = pytest.mark.usefixtures("run_dir")

NONE = {"to": [], "from": [], "rx_packets": 0, "rx_bytes": 0, "tx_packets": 0, "tx_bytes": 0}


def memory_port(name: str, **changes: Any) -> dict[str, Any]:
    socket = f"/run/ffswitch/ports/{name}/ff.sock"
    return port(name, type="ff", socket=socket, memory="read-write", shortcut_quota=64) | {"shortcuts": NONE} | changes


def test_eal_arguments(run: Run, daemon: Daemon) -> None:
    daemon(port_add=memory_port("web0"))
    code, out, _ = run("add-port", "web0", "--type", "ff", "-o", "eal")
    assert code == 0
    assert out.endswith("-d librte_net_ff.so --vdev=net_ff0,path=/run/ffswitch/ports/web0/ff.sock\n")


@pytest.mark.parametrize("form", ["docker", "podman", "k8s"])
def test_container_forms(run: Run, daemon: Daemon, form: str) -> None:
    daemon(port_add=memory_port("web0"), version={"workers": [{"cpu": 1}]})
    code, out, _ = run("add-port", "web0", "--type", "ff", "-o", form)
    assert code == 0
    assert "net_ff0,path=/run/ffswitch/ports/web0/ff.sock" in out
    assert "rm -f" not in out  # the switch listens: there is no stale socket of the container's


def test_show(run: Run, daemon: Daemon) -> None:
    traffic = NONE | {"to": ["db0", "db1"], "from": ["db0"], "rx_packets": 5, "rx_bytes": 500, "tx_packets": 1}
    daemon(port_add=memory_port("web0", memory="read-only", shortcuts=traffic))
    out = run("add-port", "web0", "--type", "ff")[1]
    assert "ff, /run/ffswitch/ports/web0/ff.sock, 1 queue, mtu 1500" in out
    assert "memory read-only" in out
    assert "shortcuts to db0 db1\n" in out
    assert "by shortcuts it sent 5 packets (500 B) and was sent 1" in out


def test_dump_flows(run: Run, daemon: Daemon) -> None:
    flow = {
        "id": 7,
        "match": "in_port=web0,dl_dst=02:00:00:00:00:02",
        "key": {},
        "actions": "zero-copy:db0",
        "packets": 9,
        "bytes": 900,
        "idle_s": 0,
    }
    going = flow | {"shortcut": {"state": "emptying", "why": "a capture of web0 runs", "setup_ms": 1.0}}
    daemon(flow_dump=[flow | {"shortcut": {"state": "open", "why": "", "setup_ms": 1.0}}, going])
    lines = run("dump-flows")[1].splitlines()
    assert lines[1].split()[-1] == "zero-copy:db0"
    assert lines[2].endswith("zero-copy:db0 (emptying: a capture of web0 runs)")


def test_explain(run: Run, daemon: Daemon) -> None:
    from controller.explain import decision_json  # noqa: PLC0415

    ends = [PortConfig(name, PortType.FF, trust_domain="red") for name in ("web0", "db0")]
    ways = [
        {"from": "web0", "to": "db0", "open": True, "packets": 4, "bytes": 400, "why": ""},
        {"from": "db0", "to": "web0", "open": False, "packets": 0, "bytes": 0, "why": "a port is mirrored"},
    ]
    daemon(explain=decision_json(pair_of_ports(*ends)) | {"shortcuts": ways})
    lines = run("explain", "web0", "db0")[1].splitlines()
    assert lines[0].startswith("web0 → db0: zero-copy")
    assert lines[-2:] == [
        "now web0 → db0: zero-copy, 4 packets (400 B)",
        "now db0 → web0: switched, since a port is mirrored",
    ]


def test_stats_columns(run: Run, daemon: Daemon) -> None:
    counters = dict.fromkeys(("rx_packets", "rx_bytes", "tx_packets", "tx_bytes", "replicated", "upcalls"), 0)
    counters |= {"drops": {}, "faults": {}, "queues": [], "workers": []}  # type: ignore[dict-item]
    totals = {"received": 0, "replicated": 0, "injected": 0, "encapsulated": 0, "sent": 0, "decapsulated": 0}
    totals |= {"dropped": {}, "parked": 0, "balanced": True}  # type: ignore[dict-item]
    by_shortcut = {"rx_packets": 77, "rx_bytes": 1, "tx_packets": 0, "tx_bytes": 0}
    ports = {"web0": counters | {"shortcuts": by_shortcut}, "db0": counters | {"shortcuts": NONE}}
    found = {"ports": ports, "warnings": [], "workers": [], "totals": totals}
    daemon(stats=found, status={"rdma": None})
    head, web0, *_ = run("stats")[1].splitlines()
    assert "SHORTCUT RX" in head
    assert "QUEUES STOPPED" not in head
    assert "77" in web0.split()
    assert json.loads(run("stats", "-o", "json")[1])["ports"]["web0"]["shortcuts"] == by_shortcut


def test_a_trace_says_what_it_takes_back(run: Run, daemon: Daemon) -> None:
    ports = [memory_port("web0", shortcuts=NONE | {"to": ["db0"], "from": ["db0"]}), port("other")]
    daemon(port_list=ports, trace_live={"count": 0})
    assert "2 shortcuts will go through the switch" in run("trace", "--live", "1", "web0")[2]
    assert "1 shortcut will go through the switch" in run("trace", "--live", "1")[2]
