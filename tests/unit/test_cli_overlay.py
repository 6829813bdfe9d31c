# SPDX-License-Identifier: Apache-2.0
"""`ffswitch status`, `explain`, and ports that a controller has a say in, against a scripted daemon."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.decide import World, decide
from controller.explain import decision_json
from tests.unit.rpcserver import VERSION, FakeDaemon, port
from tests.unit.test_agent_world import BLUE, FAR, H1, H2, WEB
from vswitch.cli.main import main

RECEIVED = {"rx_messages": 2, "rx_bytes": 200}
STATUS: dict[str, Any] = {
    "controller": {
        "host": "h1",
        "state": "degraded",
        "controller": "",
        "since": 1.0,
        "why": "no controller answers at c1:7443",
        "epoch": 3,
        "revision": 9,
        "networks": 1,
        "endpoints": 2,
        "refused": {"web1": "10.0.0.1 is web0's"},
    },
    "uplinks": [
        {"name": "up0", "ips": ["192.0.2.1/24"], "shared": ["192.0.2.1/24"], "mtu": 1500, "speed": 10000, "why": ""}
    ],
    "remotes": [
        {
            "number": 7,
            "uplink": "up0",
            "local": "192.0.2.1",
            "remote": "192.0.2.2",
            "next_hop": "192.0.2.2",
            "mac": "",
            "why": "192.0.2.2 does not answer",
        }
    ],
    "rdma": {
        "ports": [
            {
                "name": "rxe0/1",
                "state": "PORT_ACTIVE (4)",
                "mtu": 1024,
                "gids": [{"index": 1, "gid": "192.0.2.1", "type": "roce-v2"}],
            }
        ],
        "problems": ["mlx5_0 cannot be used: Permission denied"],
        "peers": [
            {
                "host": host,
                "device": "rxe0/1",
                "local": "192.0.2.1",
                "remote": remote,
                "state": state,
                "since": 1.0,
                "why": why,
                "queue_pairs": 1,
                "epoch": 7,
                "stats": stats,
            }
            for host, remote, state, why, stats in (
                ("h2", "192.0.2.2", "active", "", dict.fromkeys(("tx_messages", "tx_bytes"), 3) | RECEIVED),
                ("h3", "192.0.2.3", "down", "host h3 has not answered yet", None),
            )
        ],
    },
}


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    monkeypatch.setenv("FFSWITCH_RUN_DIR", str(tmp_path))
    methods: dict[str, object] = {"version": VERSION}
    daemon = FakeDaemon(tmp_path, methods)
    yield methods
    daemon.close()


def test_status(answers: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    answers["status"] = STATUS
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert "host h1: degraded for " in out
    assert "no controller answers at c1:7443" in out
    assert "epoch 3, revision 9, 1 network, 2 endpoints" in out
    assert "port web1 is refused: 10.0.0.1 is web0's" in out
    assert "uplink up0: 192.0.2.1/24 (shared with the kernel), mtu 1500, 10000 Mb/s" in out
    assert "192.0.2.2 does not answer" in out
    assert "RDMA rxe0/1: PORT_ACTIVE (4), mtu 1024, GIDs 1: 192.0.2.1 (roce-v2)" in out
    assert "RDMA: mlx5_0 cannot be used: Permission denied" in out
    assert re.search(r"h2 +192.0.2.2 +192.0.2.1 \(rxe0/1\) +active +3/", out)
    assert re.search(r"h3 +192.0.2.3 +192.0.2.1 \(rxe0/1\) +down +- +- +host h3 has not answered yet", out)


def test_stats_of_rdma_peers(answers: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    """Each that is there, with all that it counts."""
    sums = dict.fromkeys(("received", "replicated", "injected", "encapsulated", "sent", "decapsulated", "parked"), 0)
    totals = {**sums, "dropped": {}, "balanced": True}
    answers["status"] = STATUS
    answers["stats"] = {"ports": {}, "warnings": [], "workers": [], "totals": totals}
    assert main(["stats"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"RDMA PEER +TX MESSAGES +TX BYTES", out)
    assert re.search(r"h2 +3 +3", out)
    assert "h3" not in out
    assert main(["stats", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["rdma"]["h2"]["tx_messages"] == 3


def test_status_of_a_switch_that_stands_alone(answers: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    answers["status"] = {"controller": None, "uplinks": [], "remotes": [], "rdma": None}
    assert main(["status"]) == 0
    assert "controller: none, this switch stands alone" in capsys.readouterr().out


def test_explain(answers: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    world = World({"h1": H1, "h2": H2}, {"blue": BLUE}, {})
    answers["explain"] = decision_json(decide(WEB, FAR, world))
    assert main(["explain", "web", "far"]) == 0
    out = capsys.readouterr().out
    assert "web → far: vxlan, tunnel 192.0.2.1 → 192.0.2.2 by up0, MTU 1450" in out
    assert "not rdma:" in out


@pytest.mark.parametrize(
    ("state", "options", "code", "line"),
    [
        ("placed", [], 0, ""),
        ("refused", [], 1, "port web0 stays, but the controller refuses it: so it is"),
        ("waiting", [], 1, "port web0 stays, but has no address from the controller: so it is"),
        ("away", ["--wait", "1"], 1, "port web0 stays, but has no address from the controller: so it is"),
        ("away", [], 0, "port web0 has no address from the controller yet: so it is"),
    ],
)
def test_add_port_says_what_the_controller_said(
    answers: dict[str, object],
    capsys: pytest.CaptureFixture[str],
    *,
    state: str,
    options: list[str],
    code: int,
    line: str,
) -> None:
    answers["port.add"] = port("web0", network="blue", endpoint={"state": state, "reason": "so it is"})
    assert main(["add-port", "web0", "--network", "blue", *options]) == code
    assert line in capsys.readouterr().err
