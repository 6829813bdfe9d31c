# SPDX-License-Identifier: Apache-2.0
"""The methods of the control socket, over the socket, on a fake fast path."""

import asyncio
import base64
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from tests.unit.fake_fastpath import FakeFastPath, port_stats
from vswitch.slowpath.api import Api, Settings
from vswitch.slowpath.api_overlay import OverlayApi
from vswitch.slowpath.core import SwitchCore
from vswitch.slowpath.drivers import check_devargs
from vswitch.slowpath.fastpath import TAP_RX, TAP_TRACE, TAP_TX, TapRecord
from vswitch.slowpath.rpc import Server
from vswitch.slowpath.switch import Switch
from vswitch.slowpath.types import TUNNEL_RDMA, Action, ActionType, Drop, Key, PortState, Upcall
from vswitch.slowpath.uplinks import Uplinks

A, B = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
GROUP = b"\xff" * 6
DEADLINE = 20.0


def frame(src: bytes, dst: bytes, length: int = 60) -> bytes:
    return (dst + src + b"\x88\xb5").ljust(length, b"\0")


class Bench:
    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "ffswitch.sock"
        self.fake = FakeFastPath()
        self.core = SwitchCore()
        self.now = 0.0
        self.switch = Switch(self.fake, self.core, run_dir, check_devargs=check_devargs, clock=lambda: self.now)
        overlay = OverlayApi(self.switch, Uplinks(self.switch), None)
        self.server = Server(Api(self.switch, Settings(), "DPDK 22.11.11", overlay).methods())

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self.path, limit=16 << 20)

    async def answer(self, method: str, **params: Any) -> Any:
        reader, writer = await self.open()
        writer.write(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode() + b"\n")
        async with asyncio.timeout(DEADLINE):
            line = await reader.readuntil(b"\n")
        writer.close()
        return json.loads(line)

    async def call(self, method: str, **params: Any) -> Any:
        return (await self.answer(method, **params))["result"]

    async def error(self, method: str, **params: Any) -> tuple[int, str]:
        error = (await self.answer(method, **params))["error"]
        return error["code"], error["message"]

    async def add(self, *names: str) -> None:
        for name in names:
            self.fake.set_state((await self.call("port.add", name=name))["id"], PortState.READY)
        self.switch.on_events()

    def miss(self, number: int, in_port: int, src: bytes, dst: bytes) -> None:
        key = Key(eth_dst=dst, eth_src=src, eth_type=0x88B5, in_port=in_port)
        self.fake.miss(Upcall(number, key, frame(src, dst), 60))
        self.switch.on_upcalls()


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.server.start(bench.path)
    yield bench
    await bench.server.stop()


async def test_version(bench: Bench) -> None:
    version = await bench.call("version")
    assert version["dpdk"] == "DPDK 22.11.11"
    assert version["workers"] == [{"cpu": 1}]


async def test_port_life(bench: Bench) -> None:
    added = await bench.call("port.add", name="web0", ips=["10.0.0.1"], mtu=1400)
    assert (added["state"], added["mtu"], added["ips"], added["id"]) == ("waiting-for-peer", 1400, ["10.0.0.1"], 1)
    assert added["stats"] == {"rx_packets": 0, "rx_bytes": 0, "tx_packets": 0, "tx_bytes": 0, "dropped": 0}
    assert await bench.call("port.add", name="web0", ips=["10.0.0.1"], mtu=1400, may_exist=True) == added
    assert await bench.call("port.list") == [added]
    assert (await bench.call("port.set", name="web0", values={"tag": 5}))["tag"] == 5
    assert (await bench.call("port.get", name="web0"))["tag"] == 5
    assert await bench.call("port.del", name="web0") == {"deleted": True}
    assert await bench.call("port.del", name="web0", if_exists=True) == {"deleted": False}


@pytest.mark.parametrize(
    ("method", "params", "code", "words"),
    [
        ("port.get", {}, -32602, "name is missing"),
        ("port.get", {"name": "../x"}, -32602, "not a port name"),
        ("port.get", {"name": "nope"}, -32000, "no port nope"),
        ("port.del", {"name": "nope"}, -32000, "no port nope"),
        ("port.del", {"if_exists": True}, -32602, "not a text"),
        ("port.del", {"name": "x", "if_exists": 1}, -32602, "neither true nor false"),
        ("port.add", {"name": "a", "wings": 2}, -32602, "unknown key 'wings'"),
        ("port.add", {"name": "a", "wait_s": -1}, -32602, "wait_s"),
        ("port.add", {"name": "a", "wait_s": "NaN"}, -32602, "wait_s"),
        ("port.add", {"name": "a", "mtu": 10**400}, -32602, "mtu"),
        ("port.add", {"name": "a", "type": "pmd", "devargs": "net_nosuch0"}, -32000, "net_nosuch"),
        ("port.set", {"name": "a", "values": []}, -32602, "must be an object"),
        ("switch.set", {"values": {"mac_age": 0}}, -32602, "mac_age: '0' is not a number from 1"),
        ("switch.set", {"values": {"idle_sleep": 1.5}}, -32602, "idle_sleep"),
        ("switch.set", {"values": {"idle_spin": -1}}, -32602, "idle_spin"),
        ("switch.set", {"values": {"auto_lb": "perhaps"}}, -32602, "'perhaps' is neither true nor false"),
        ("switch.set", {"values": {"log_level": "loud"}}, -32602, "none of debug"),
        ("switch.set", {"values": {"speed": 1}}, -32602, "unknown key 'speed'"),
        ("switch.set", {}, -32602, "must be an object"),
        ("capture", {"port": "nope"}, -32000, "no port nope"),
        ("trace.packet", {"port": "nope", "frames": []}, -32000, "no port nope"),
        ("trace.live", {"n": 0}, -32602, "n: '0'"),
        ("trace.live", {}, -32602, "n: 'None'"),
    ],
)
async def test_refused(bench: Bench, method: str, params: dict[str, Any], code: int, words: str) -> None:
    got, message = await bench.error(method, **params)
    assert (got, words in message) == (code, True), message
    assert not bench.switch.ports


async def test_settings(bench: Bench) -> None:
    assert bench.fake.idle == (50, 100)
    values = {
        "mac_age": "60",
        "flow_idle": 5,
        "idle_spin": 20,
        "idle_sleep": "0",
        "auto_lb": "false",
        "shortcut_rate": "0",
        "shortcut_idle": 5,
        "log_level": "warning",
    }
    changed = values | {"mac_age": 60.0, "flow_idle": 5.0, "idle_sleep": 0, "auto_lb": False}
    changed |= {"shortcut_rate": 0.0, "shortcut_idle": 5.0}
    assert await bench.call("switch.set", values=values) == changed == await bench.call("switch.get")
    assert (bench.core.mac_age, bench.core.flow_idle, bench.fake.idle) == (60.0, 5.0, (20, 0))
    assert not bench.switch.workers.auto_lb
    assert (bench.switch.shortcuts.rate, bench.switch.shortcuts.core.idle) == (0.0, 5.0)
    assert (await bench.error("switch.set", values={"flow_idle": 7, "mac_age": 0}))[0] == -32602
    assert await bench.call("switch.get") == changed


async def test_waits_for_the_port(bench: Bench) -> None:
    waiting = asyncio.ensure_future(bench.call("port.add", name="web0", wait_s=DEADLINE))
    await bench.fake.until(lambda: bool(bench.fake.ports))
    bench.fake.set_state(1, PortState.READY)
    bench.switch.on_events()
    assert (await waiting)["state"] == "ready"


def test_by_what_a_flow_reaches_another_host(bench: Bench) -> None:
    """By RDMA only where all of its tunnel ends may, and are, reached so."""
    agent: Any = SimpleNamespace(rdma=SimpleNamespace(carries={7}.__contains__))
    overlay = OverlayApi(bench.switch, Uplinks(bench.switch), agent)

    def path(*ends: int) -> str | None:
        return overlay.path([Action(ActionType.SET_TUNNEL, end) for end in ends] + [Action(ActionType.OUTPUT, 1)])

    assert path() is None
    assert path(7 | TUNNEL_RDMA) == "rdma"
    assert path(7) == path(8 | TUNNEL_RDMA) == path(7 | TUNNEL_RDMA, 8 | TUNNEL_RDMA) == "vxlan"


async def test_flows_and_addresses(bench: Bench) -> None:
    await bench.add("a", "b")
    bench.miss(1, 1, A, B)
    (flow,) = await bench.call("flow.dump")
    assert flow["match"] == (
        "in_port=a,vlan_tci=0x0000,dl_src=02:00:00:00:00:01,dl_dst=02:00:00:00:00:02,dl_type=0x88b5"
    )
    assert flow["key"]["eth_src"] == "02:00:00:00:00:01"
    assert (flow["actions"], flow["packets"], flow["idle_s"]) == ("output:b", 0, None)
    assert await bench.call("flow.dump", port="b") == [flow]
    (entry,) = await bench.call("fdb.dump", port="a")
    assert (entry["mac"], entry["port"], entry["static"], entry["held"]) == ("02:00:00:00:00:01", "a", False, False)
    assert await bench.call("fdb.dump", port="b") == []
    show = await bench.call("show")
    assert (show["flows"], show["macs"], [p["name"] for p in show["ports"]]) == (1, 1, ["a", "b"])
    assert await bench.call("flow.flush") == {"deleted": 1}
    assert not bench.fake.flows
    assert await bench.call("fdb.flush", port="b") == {"deleted": 0}
    assert await bench.call("fdb.flush") == {"deleted": 1}


async def test_stats(bench: Bench) -> None:
    await bench.add("a", "b")
    bench.fake.stats = {1: port_stats(10, 0, 0, {"vlan": 8}, {"avail-jump": 1}), 2: port_stats(0, 2)}
    bench.fake.busy = {0: bench.fake.tsc_hz}
    bench.now += 4
    stats = await bench.call("stats")
    assert stats["ports"]["a"]["faults"] == {"avail-jump": 1}
    assert stats["workers"][0]["perf"]["stage_cycles"] == {"rx": 60}
    assert stats["tsc_hz"] == bench.fake.tsc_hz
    assert stats["ports"]["a"]["drops"] == {"vlan": 8}
    counted = ("rx_packets", "rx_bytes", "tx_packets", "tx_bytes", "tx_full", "rx_cycles")
    assert stats["ports"]["b"]["queues"] == [dict.fromkeys(counted, 0)]
    assert stats["warnings"] == []
    assert stats["workers"][0]["busy_pct"] == 25.0, "one of four seconds"
    assert stats["totals"]["dropped"] == {"vlan": 8}
    assert list((await bench.call("stats", port="b"))["ports"]) == ["b"]


async def test_trace_packet_learns_on_a_copy(bench: Bench) -> None:
    await bench.add("a", "b", "c")
    frames = [frame(A, GROUP), frame(A, B), frame(GROUP, A), frame(A, B, 2000), b"short"]
    traced = await bench.call("trace.packet", port="a", frames=[base64.b64encode(f).decode() for f in frames])
    assert [(t["result"], t["drop"]) for t in traced] == [
        ("flooded", None),
        ("flooded", None),
        ("dropped", "src-multicast"),
        ("dropped", "oversize"),
        ("dropped", "too-short"),
    ]
    assert traced[0]["outputs"] == [{"port": p, "frame_len": 60, "vlan": 0} for p in ("b", "c")]
    assert "is new" in traced[0]["reasons"][1]
    assert "is known" in traced[1]["reasons"][1]
    assert not bench.core.fdb()
    bench.miss(1, 2, B, A)
    (traced,) = await bench.call("trace.packet", port="a", frames=[base64.b64encode(frames[1]).decode()])
    assert (traced["result"], [o["port"] for o in traced["outputs"]]) == ("forwarded", ["b"])


@pytest.mark.parametrize("frames", [None, "AAAA", ["?"], [5]])
async def test_trace_packet_refuses_what_is_no_frame(bench: Bench, frames: Any) -> None:
    await bench.add("a")
    code, message = await bench.error("trace.packet", port="a", frames=frames)
    assert (code, "frames" in message) == (-32602, True)


async def tapped(bench: Bench, port_id: int) -> None:
    await bench.fake.until(lambda: bench.fake.tapped.get(port_id, (0, 0))[0] != 0)


async def test_trace_live(bench: Bench) -> None:
    await bench.add("a", "b")
    bench.miss(1, 1, A, B)
    (flow_id,) = bench.fake.flows
    reader, writer = await bench.open()
    writer.write(b'{"id": 1, "method": "trace.live", "params": {"n": 3, "port": "a"}}\n')
    await tapped(bench, 1)
    assert bench.fake.tapped[1] == (TAP_TRACE, 256)
    big = frame(A, B, 1000)
    bench.fake.tap(
        TapRecord(10**9, 1, TAP_TRACE, Drop.NONE, 1000, big[:256], flow_id, 1, ()),
        TapRecord(10**9, 2, TAP_TRACE, Drop.NONE, 60, frame(B, A), 0, 0, ()),
        TapRecord(2 * 10**9, 1, TAP_TRACE, Drop.NONE, 60, frame(A, GROUP), 0, 0, ()),
        TapRecord(3 * 10**9, 1, TAP_TRACE, Drop.SRC_MULTICAST, 60, frame(GROUP, A), 0, 0, ()),
        TapRecord(4 * 10**9, 1, TAP_TRACE, Drop.NONE, 60, frame(A, B), 0, 0, ()),
    )
    bench.switch.taps.on_readable()
    async with asyncio.timeout(DEADLINE):
        lines = [json.loads(await reader.readuntil(b"\n")) for _ in range(4)]
    first, second, third = (line["params"] for line in lines[:3])
    assert (first["time"], first["flow"], first["outputs"]) == (1.0, 1, [{"port": "b", "frame_len": 1000, "vlan": 0}])
    assert first["reasons"][0].startswith("flow 1 matches: in_port=a,")
    assert (second["flow"], second["result"]) == (None, "flooded")
    assert (third["result"], third["drop"], third["key"]) == ("dropped", "src-multicast", None)
    assert lines[3]["result"] == {"count": 3}
    assert bench.fake.tapped[1] == (0, 0)
    writer.close()


async def test_trace_live_ends_with_its_client(bench: Bench) -> None:
    await bench.add("a")
    _, writer = await bench.open()
    writer.write(b'{"id": 1, "method": "trace.live", "params": {"n": 3}}\n')
    await tapped(bench, 1)
    writer.close()
    await bench.fake.until(lambda: bench.fake.tapped[1][0] == 0)


@pytest.mark.parametrize("end", ["client", "port", "server"])
async def test_capture_stream(bench: Bench, tmp_path: Path, end: str) -> None:
    await bench.add("a", "b")
    reader, writer = await bench.open()
    writer.write(b'{"id": 1, "method": "capture", "params": {"port": "a", "snaplen": 100, "direction": "rx"}}\n')
    async with asyncio.timeout(DEADLINE):
        assert json.loads(await reader.readuntil(b"\n"))["result"] == {"ok": True, "shortcuts": 0}
    await tapped(bench, 1)
    assert bench.fake.tapped[1] == (TAP_RX, 100)
    bench.fake.tap(
        TapRecord(10**9, 1, TAP_RX, Drop.NONE, 60, frame(A, B), 0, 0, ()),
        TapRecord(10**9, 1, TAP_TX, Drop.NONE, 60, frame(B, A), 0, 0, ()),
        TapRecord(10**9, 2, TAP_RX, Drop.NONE, 60, frame(B, A), 0, 0, ()),
        TapRecord(10**9, 1, TAP_RX, Drop.NONE, 500, frame(A, B, 200), 0, 0, ()),
    )
    bench.switch.taps.on_readable()
    if end == "client":
        writer.write_eof()
    elif end == "port":
        await bench.call("port.del", name="a")
    else:
        await bench.server.stop()
    async with asyncio.timeout(DEADLINE):
        data = await reader.read()
    writer.close()
    path = tmp_path / "x.pcapng"
    path.write_bytes(data)
    command = ["tshark", "-r", str(path), "-T", "fields", "-e", "frame.cap_len", "-e", "frame.len", "-e", "eth.src"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["60", "60", "02:00:00:00:00:01", "100", "500", "02:00:00:00:00:01"]
    assert bench.fake.tapped[1] == (0, 0) or end == "port"
