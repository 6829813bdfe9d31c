# SPDX-License-Identifier: Apache-2.0
"""Shortcuts between real DPDK applications on net_ff."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.system.containers import state, wait_for
from tests.system.endpoints import GONE, Endpoint, Flow, Forwarder
from tests.system.ffswitchd import Ffswitchd

Start = Callable[[str, str], Flow]


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def daemon_with(run_dir: Path, *names: str, **config: Any) -> Ffswitchd:
    daemon = Ffswitchd(run_dir, "--shortcut-rate", "0", may_log=GONE)
    try:
        for name in names:
            daemon.call("port.add", name=name, type="ff", **{"trust_domain": "red"} | config)
    except BaseException:
        daemon.kill()
        raise
    return daemon


def talk(cleanup: ExitStack, daemon: Ffswitchd, a: str, b: str) -> tuple[Flow, Flow]:
    """Two that talk to each other."""
    pair = Flow(daemon, a, b), Flow(daemon, b, a)
    for one in pair:
        cleanup.callback(one.close)
    for one in pair:
        one.started()
    for name in (a, b):
        wait_for(lambda name=name: state(daemon, name)[0] == "ready", f"{name} ready")  # type: ignore[misc]
    for one in pair:
        one.go()
    return pair


def ways(daemon: Ffswitchd, a: str, b: str) -> list[bool]:
    """Whether a shortcut is open, each way."""
    return [way["open"] for way in daemon.call("explain", source=a, destination=b)["shortcuts"]]


def wait_open(daemon: Ffswitchd, a: str, b: str) -> None:
    wait_for(lambda: all(ways(daemon, a, b)), f"shortcuts between {a} and {b}")


def counts(daemon: Ffswitchd, name: str) -> tuple[int, int]:
    """Packets that a port sent: into the switch, and by shortcuts."""
    found = daemon.call("port.get", name=name)
    return found["stats"]["rx_packets"], found["shortcuts"]["rx_packets"]


def held(daemon: Ffswitchd) -> tuple[int, int]:
    """File descriptors, and mappings of memory that containers share."""
    proc = Path(f"/proc/{daemon.process.pid}")
    maps = (proc / "maps").read_text().splitlines()
    shared = sum(any(word in line for word in ("memfd:ff-", "memfd:nohuge")) and "rw-s" in line for line in maps)
    return len(list((proc / "fd").iterdir())), shared


def conclude(*flows: Flow) -> None:
    """Nothing was lost, repeated, or overtaken."""
    sent = [flow.stop() for flow in flows]
    for flow, count in zip(flows, reversed(sent), strict=True):
        report = flow.report()
        assert (report["lost"], report["late"], report["got"]) == (0, 0, count)
        assert count > 0


def test_the_switch_sees_nothing(run_dir: Path, cleanup: ExitStack) -> None:
    with daemon_with(run_dir, "web0", "db0") as daemon:
        pair = talk(cleanup, daemon, "web0", "db0")
        wait_open(daemon, "web0", "db0")
        # More than a ring holds: db0 takes from it, so the switch has read all that web0 sent it before.
        wait_for(lambda: counts(daemon, "web0")[1] > 1024, "web0 on its shortcut")
        switched, by_shortcut = counts(daemon, "web0")
        wait_for(lambda: counts(daemon, "web0")[1] > by_shortcut + 10_000, "packets by the shortcut")
        assert counts(daemon, "web0")[0] == switched
        decision = daemon.call("explain", source="web0", destination="db0")
        assert (decision["path"], decision["refused"]) == ("zero-copy", [])
        flows = daemon.call("flow.dump", port="db0")
        assert {flow["actions"] for flow in flows if "shortcut" in flow} == {"zero-copy:db0", "zero-copy:web0"}
        conclude(*pair)


def test_capture_sees_all_of_it(run_dir: Path, cleanup: ExitStack) -> None:
    with daemon_with(run_dir, "web0", "db0") as daemon:
        pair = talk(cleanup, daemon, "web0", "db0")
        wait_open(daemon, "web0", "db0")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(str(run_dir / "ffswitch.sock"))
            request = {"jsonrpc": "2.0", "id": 1, "method": "capture", "params": {"port": "web0", "snaplen": 64}}
            sock.sendall(json.dumps(request).encode() + b"\n")
            stream = sock.makefile("rb")
            assert json.loads(stream.readline())["result"] == {"ok": True, "shortcuts": 2}
            stream.read(100_000)
            assert ways(daemon, "web0", "db0") == [False, False]
            explained = daemon.call("explain", source="web0", destination="db0")["shortcuts"]
            assert {way["why"] for way in explained} == {"a capture of web0 runs"}
            stream.close()
        wait_open(daemon, "web0", "db0")
        conclude(*pair)


@pytest.mark.parametrize("victim", [0, 1])
def test_one_dies(run_dir: Path, cleanup: ExitStack, victim: int) -> None:
    with daemon_with(run_dir, "web0", "db0", "other0") as daemon:
        before = held(daemon)
        pair = talk(cleanup, daemon, "web0", "db0")
        wait_open(daemon, "web0", "db0")
        pair[victim].kill()
        wait_for(lambda: not any("shortcut" in flow for flow in daemon.call("flow.dump")), "shortcuts gone")
        survivor = pair[1 - victim]
        assert state(daemon, survivor.name)[0] == "ready"
        assert state(daemon, pair[victim].name) == ("lost", "the container has left")
        survivor.kill()
        wait_for(lambda: held(daemon) == before, f"all given back: {held(daemon)} instead of {before}")
        pair = talk(cleanup, daemon, "web0", "db0")
        wait_open(daemon, "web0", "db0")
        conclude(*pair)


def test_restart_of_the_switch(run_dir: Path, cleanup: ExitStack) -> None:
    daemon = daemon_with(run_dir, "web0", "db0")
    pair = talk(cleanup, daemon, "web0", "db0")
    wait_open(daemon, "web0", "db0")
    epochs = {flow["id"] for flow in daemon.call("flow.dump") if "shortcut" in flow}
    daemon.kill()
    with Ffswitchd(run_dir, "--shortcut-rate", "0", may_log=GONE) as daemon:
        for one in pair:
            wait_for(lambda one=one: state(daemon, one.name)[0] == "ready", f"{one.name} ready")  # type: ignore[misc]
        wait_open(daemon, "web0", "db0")
        again = {flow["id"] for flow in daemon.call("flow.dump") if "shortcut" in flow}
        assert min(again) > max(epochs)


def test_trust_taken_back(run_dir: Path, cleanup: ExitStack) -> None:
    with daemon_with(run_dir, "web0", "db0") as daemon:
        pair = talk(cleanup, daemon, "web0", "db0")
        wait_open(daemon, "web0", "db0")
        daemon.call("port.set", name="db0", values={"trust_domain": "blue"})
        assert ways(daemon, "web0", "db0") == [False, False]
        wait_for(lambda: not any("shortcut" in flow for flow in daemon.call("flow.dump")), "shortcuts gone")
        switched = counts(daemon, "web0")[0]
        wait_for(lambda: counts(daemon, "web0")[0] > switched + 10_000, "packets by the switch")
        decision = daemon.call("explain", source="web0", destination="db0")
        assert decision["path"] == "switched"
        assert decision["refused"][0]["reasons"][0]["code"] == "trust-domains-differ"
        assert not any("shortcut" in flow for flow in daemon.call("flow.dump"))
        conclude(*pair)


def test_read_only(run_dir: Path, cleanup: ExitStack) -> None:
    with daemon_with(run_dir, "web0", "db0") as daemon:
        daemon.call("port.set", name="web0", values={"memory": "read-only"})
        pair = talk(cleanup, daemon, "web0", "db0")
        wait_open(daemon, "web0", "db0")
        maps = {one.name: Path(f"/proc/{one.process.pid}/maps").read_text() for one in pair}
        assert [line.split()[1] for line in maps["db0"].splitlines() if "nohuge" in line].count("r--s") == 1
        assert "r--s" not in [line.split()[1] for line in maps["web0"].splitlines() if "nohuge" in line]
        conclude(*pair)


def test_chain(run_dir: Path, cleanup: ExitStack) -> None:
    names = ["a0", "b0", "c0", "d0"]
    with daemon_with(run_dir, *names) as daemon:
        ends: list[Endpoint] = [
            Forwarder(daemon, "d0"),
            Forwarder(daemon, "c0", "d0"),
            Forwarder(daemon, "b0", "c0"),
        ]
        for one in ends:
            cleanup.callback(one.close)
        for name in names[1:]:
            wait_for(lambda name=name: state(daemon, name)[0] == "ready", f"{name} ready")  # type: ignore[misc]
        mac = daemon.call("port.get", name="b0")["mac"]
        options = ["--no-mlockall", "--total-num-mbufs=8192", "--forward-mode=txonly", f"--eth-peer=0,{mac}"]
        first = Endpoint(daemon, "a0", "dpdk-testpmd", "-l", "0,1", "--", *options, "--stats-period=1")
        cleanup.callback(first.close)
        for a, b in itertools.pairwise(names):
            wait_for(lambda a=a, b=b: ways(daemon, a, b)[0], f"shortcut {a} to {b}")  # type: ignore[misc]
        # More than a ring holds: d0 takes from it, so the switch has read all that c0 sent it before.
        wait_for(lambda: counts(daemon, "c0")[1] > 1024, "c0 on its shortcut")
        switched, reached = counts(daemon, "c0")[0], daemon.call("port.get", name="d0")["shortcuts"]["tx_packets"]
        wait_for(
            lambda: daemon.call("port.get", name="d0")["shortcuts"]["tx_packets"] > reached + 100, "packets at the end"
        )
        assert counts(daemon, "c0")[0] == switched


@pytest.mark.parametrize("changes", [40, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_path_changes(run_dir: Path, cleanup: ExitStack, changes: int) -> None:
    with daemon_with(run_dir, "web0", "db0") as daemon:
        pair = talk(cleanup, daemon, "web0", "db0")
        wait_open(daemon, "web0", "db0")
        for _ in range(changes // 2):
            daemon.call("port.set", name="web0", values={"shortcut_quota": 0})
            wait_for(lambda: not any("shortcut" in flow for flow in daemon.call("flow.dump")), "shortcuts gone")
            daemon.call("port.set", name="web0", values={"shortcut_quota": 64})
            daemon.call("flow.flush")
            wait_open(daemon, "web0", "db0")
        conclude(*pair)
