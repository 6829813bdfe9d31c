# SPDX-License-Identifier: Apache-2.0
"""The glue of core and fast path: events in, commands out, ports and their files."""

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.fake_fastpath import FakeFastPath, port_stats
from tests.unit.switch_bench import Bench
from vswitch.slowpath import switch
from vswitch.slowpath.core import SwitchCore
from vswitch.slowpath.errors import BadParams, SwitchError
from vswitch.slowpath.fastpath import TAP_RX, TAP_TX, TapRecord
from vswitch.slowpath.state import load
from vswitch.slowpath.types import (
    Action,
    ActionType,
    Command,
    Drop,
    FlowStats,
    PortState,
    Suspect,
    Upcall,
)

A, B = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
DEADLINE = 20.0


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def output(port_id: int) -> Action:
    return Action(ActionType.OUTPUT, port_id)


# ---- ports ------------------------------------------------------------------


def test_add_and_remove(bench: Bench) -> None:
    entry = bench.switch.add(bench.config("web0"))
    assert (entry.id, entry.state, entry.reason) == (1, PortState.WAITING, "so it is")
    directory = bench.run_dir / "ports" / "web0"
    assert directory.stat().st_mode & 0o7777 == 0o2770
    assert bench.saved == ["web0"]
    assert list(bench.core.ports()) == [1]
    bench.switch.remove("web0")
    assert not directory.exists()
    assert bench.saved == []
    assert not bench.fake.ports
    assert not bench.core.ports()


def test_pmd_port_has_no_directory(bench: Bench) -> None:
    entry = bench.switch.add(bench.config("up", type="pmd", devargs="net_null0"))
    assert entry.up
    assert bench.core.ports()[1].up
    assert not (bench.run_dir / "ports").exists()


def test_limits_reach_the_fast_path(bench: Bench) -> None:
    port_id = bench.add("web0", mtu=9000)
    assert bench.fake.limits[port_id] == (9000, 512)
    bench.switch.change("web0", {"mtu": 1400, "upcall_budget": 7})
    assert bench.fake.limits[port_id] == (1400, 7)
    assert json.loads((bench.run_dir / "state.json").read_text())["ports"][0]["mtu"] == 1400


def test_may_exist(bench: Bench) -> None:
    port_id = bench.add("web0", mtu=1400)
    with pytest.raises(SwitchError, match="exists already: delete it first"):
        bench.add("web0", mtu=1400)
    assert bench.switch.add(bench.config("web0", mtu=1400), may_exist=True).id == port_id
    with pytest.raises(SwitchError, match="exists already with another mtu, tag"):
        bench.switch.add(bench.config("web0", tag=7), may_exist=True)
    assert bench.switch.ports["web0"].config.mtu == 1400


def leaves_nothing(bench: Bench, name: str) -> bool:
    return (
        name not in bench.switch.ports
        and all(config.name != name for config in bench.fake.ports.values())
        and all(port.config.name != name for port in bench.core.ports().values())
        and not (bench.run_dir / "ports" / name).exists()
        and (name not in bench.saved)
    )


def refuse_in_fast_path(bench: Bench) -> None:
    bench.fake.refuse_ports = "out of luck"


def refuse_in_core(bench: Bench) -> None:
    bench.core.port_added = lambda port, now: 1 // 0  # type: ignore[assignment, method-assign, return-value]


def refuse_in_state(bench: Bench) -> None:
    (bench.run_dir / "state.json.new").mkdir()


@pytest.mark.parametrize(
    ("sabotage", "error"),
    [(refuse_in_fast_path, SwitchError), (refuse_in_core, ZeroDivisionError), (refuse_in_state, SwitchError)],
)
def test_add_that_fails_half_way_leaves_nothing(
    bench: Bench, sabotage: Callable[[Bench], None], error: type[Exception]
) -> None:
    bench.add("other")
    sabotage(bench)
    with pytest.raises(error):
        bench.add("web0")
    assert leaves_nothing(bench, "web0")
    assert bench.saved == ["other"]


def test_the_fast_paths_reason_is_told_once(bench: Bench) -> None:
    refuse_in_fast_path(bench)
    with pytest.raises(SwitchError, match=r"^port web0: out of luck$"):
        bench.add("web0")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"type": "pmd", "devargs": "net_bad0"}, "port new: no such driver"),
        ({"type": "pmd", "devargs": "net_null0,size=1"}, "device net_null0 is that of port up"),
        ({"type": "packet", "devargs": "net_null0"}, "device net_null0 is that of port up"),
        ({"socket": "{run}/ports/web0/vhost.sock"}, "is that of port web0"),
        ({"socket": "{run}/nowhere/x.sock"}, "no directory"),
    ],
)
def test_conflicts(bench: Bench, given: dict[str, str], words: str) -> None:
    bench.add("web0")
    bench.add("up", type="pmd", devargs="net_null0")
    given = {key: value.format(run=bench.run_dir) for key, value in given.items()}
    with pytest.raises(SwitchError, match=words):
        bench.add("new", **given)
    assert leaves_nothing(bench, "new")


def test_unknown_port(bench: Bench) -> None:
    for call in (lambda: bench.switch.remove("web0"), lambda: bench.switch.change("web0", {})):
        with pytest.raises(SwitchError, match="there is no port web0"):
            call()


def test_change_that_fails_changes_nothing(bench: Bench) -> None:
    port_id = bench.add("web0")
    with pytest.raises(BadParams):
        bench.switch.change("web0", {"mtu": 1})
    with pytest.raises(SwitchError, match="there is no port mon"):
        bench.switch.change("web0", {"mirror": "mon"})
    refuse_in_state(bench)
    with pytest.raises(SwitchError, match="cannot write"):
        bench.switch.change("web0", {"mtu": 1400})
    assert bench.switch.ports["web0"].config.mtu == bench.core.ports()[port_id].config.mtu == 1500
    assert bench.fake.limits[port_id][0] == 1500


def test_change_reaches_the_core(bench: Bench) -> None:
    port_id = bench.add("web0")
    bench.switch.change("web0", {"tag": 7})
    assert bench.core.ports()[port_id].config.tag == 7


# ---- events -------------------------------------------------------------------


def test_state_changes_with_since_and_why(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    port_id = bench.add("web0")
    entry = bench.switch.ports["web0"]
    bench.up(port_id)
    assert entry.up
    assert bench.core.ports()[port_id].up
    since = entry.since
    bench.fake.set_state(port_id, PortState.READY, "2 queues")
    bench.switch.on_events()
    assert (entry.since, entry.reason) == (since, "2 queues")
    bench.fake.set_state(port_id, PortState.LOST, "peer closed")
    bench.switch.on_events()
    assert entry.since > since
    assert not bench.core.ports()[port_id].up
    assert ("root" not in caplog.text) and ("port web0: lost (peer closed)" in caplog.messages)


def test_event_of_an_unknown_port_is_passed_over(bench: Bench) -> None:
    bench.fake.set_state(9, PortState.READY)
    bench.switch.on_events()


async def test_wait_until_ready(bench: Bench) -> None:
    port_id = bench.add("web0")
    entry = bench.switch.ports["web0"]
    waiting = asyncio.ensure_future(bench.switch.wait_ready(entry, DEADLINE))
    assert not (await asyncio.wait([waiting], timeout=0))[0]
    bench.fake.set_state(port_id, PortState.NEGOTIATING)
    bench.switch.on_events()
    assert not (await asyncio.wait([waiting], timeout=0))[0]
    bench.up(port_id)
    async with asyncio.timeout(DEADLINE):
        await waiting


async def test_wait_ends_without_the_port_ready(bench: Bench) -> None:
    bench.add("web0")
    await bench.switch.wait_ready(bench.switch.ports["web0"], 0.01)
    assert "web0" in bench.switch.ports


async def test_wait_for_a_port_that_is_deleted(bench: Bench) -> None:
    bench.add("web0")
    waiting = asyncio.ensure_future(bench.switch.wait_ready(bench.switch.ports["web0"], DEADLINE))
    assert not (await asyncio.wait([waiting], timeout=0))[0]
    bench.switch.remove("web0")
    with pytest.raises(SwitchError, match="deleted meanwhile"):
        await asyncio.wait_for(waiting, DEADLINE)


def test_log_lines_are_passed_on_a_level_less(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for level, line in ((3, "EAL: lost"), (4, "bad"), (5, "odd\x1b"), (6, "note"), (7, "chat")):
        bench.fake.say(level, line)
    bench.switch.on_events()
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("ERROR", "DPDK: EAL: lost"),
        ("WARNING", "DPDK: bad"),
        ("INFO", "DPDK: odd"),
        ("DEBUG", "DPDK: note"),
        ("DEBUG", "DPDK: chat"),
    ]


# ---- packets --------------------------------------------------------------------


def test_two_stations_talk(bench: Bench) -> None:
    one, two, three = (bench.add(name) for name in ("a", "b", "c"))
    bench.up(one, two, three)
    assert bench.miss(1, one, A, B) == (output(two), output(three))
    assert bench.miss(2, two, B, A) == (output(one),)
    by_source = {flow.key.eth_src: flow.actions for flow in bench.fake.flows.values()}
    assert by_source == {A: (output(two),), B: (output(one),)}


def test_flows_are_there_before_the_verdict(bench: Bench) -> None:
    one, two = bench.add("a"), bench.add("b")
    bench.up(one, two)
    bench.fake.calls.clear()
    bench.miss(1, one, A, B)
    assert bench.fake.calls == ["flow_add", "finish"]


def test_no_flow_leads_to_a_removed_port(bench: Bench) -> None:
    one, two = bench.add("a"), bench.add("b")
    bench.up(one, two)
    bench.miss(1, one, A, B)
    bench.miss(2, two, B, A)
    bench.switch.remove("b")
    assert all(output(two) not in flow.actions and flow.key.in_port != two for flow in bench.fake.flows.values())


def test_a_defect_in_the_core_costs_one_packet(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    one, two = bench.add("a"), bench.add("b")
    bench.up(one, two)
    decide = bench.core.upcall

    def upcall(upcall: Upcall, now: float) -> list[Command]:
        return decide(upcall, now) if upcall.id != 1 else 1 // 0  # type: ignore[return-value]

    bench.core.upcall = upcall  # type: ignore[method-assign]
    assert bench.miss(1, one, A, B) == (Action(ActionType.DROP, Drop.POLICY),)
    assert "no decision for a packet of a" in caplog.text
    assert bench.miss(2, one, A, B) == (output(two),)


# ---- time ------------------------------------------------------------------------


async def test_sweep_expires_idle_flows_and_keeps_used_ones(bench: Bench) -> None:
    one, two = bench.add("a"), bench.add("b")
    bench.up(one, two)
    bench.miss(1, one, A, B)
    bench.miss(2, two, B, A)
    bench.now += 11
    (used,) = [n for n, f in bench.fake.flows.items() if f.key.eth_src == A]
    bench.fake.counters[used] = FlowStats(3, 180, bench.now)
    await bench.switch.sweep()
    assert list(bench.fake.flows) == [used]


async def test_sweep_of_many_flows_lets_others_work(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch, "_STATS_CHUNK", 10)
    one, two = bench.add("a"), bench.add("b")
    bench.up(one, two)
    for number in range(95):
        bench.miss(number, one, A, b"\x02\x00\x00\x01" + number.to_bytes(2))
    loop = asyncio.get_running_loop()
    turns: list[asyncio.Handle] = []

    def other() -> None:
        turns.append(loop.call_soon(other))

    other()
    bench.now += 11
    await bench.switch.sweep()
    turns[-1].cancel()
    assert len(turns) > 9
    assert not bench.fake.flows


async def test_wedged_queues_and_workers_are_told_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    port = bench.add("a")
    bench.up(port)
    entry = bench.switch.port("a")
    caplog.set_level(logging.INFO)
    caplog.clear()
    for refused in range(1, 12):
        bench.fake.suspected = [Suspect(port, 0, False, False, 7, refused)]
        bench.now += 1
        await bench.switch.sweep()
    (queue,), (worker,) = bench.switch.port_warnings(entry), bench.switch.worker_warnings()
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", worker),
        ("WARNING", f"port a: {queue}"),
    ]
    caplog.clear()
    bench.fake.suspected, bench.fake.asleep = [], True
    await bench.switch.sweep()
    assert caplog.messages == [f"port a: over: {queue}", f"over: {worker}"]
    assert not bench.switch.port_warnings(entry)
    assert not bench.switch.worker_warnings()


# ---- restart -----------------------------------------------------------------------


def test_restart_brings_ports_back(bench: Bench) -> None:
    bench.add("b", tag=7)
    bench.add("a", type="pmd", devargs="net_null0")
    fake, core = FakeFastPath(), SwitchCore()
    again = bench.make(fake, core)
    again.restore(load(bench.run_dir / "state.json"))
    assert [(n, c.name, c.tag) for n, c in fake.ports.items()] == [(1, "b", 7), (2, "a", 0)]
    assert [port.config.name for port in core.ports().values()] == ["b", "a"]


async def test_port_that_cannot_come_back_is_tried_again(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.add("a")
    bench.add("b")
    fake, core = FakeFastPath(), SwitchCore()
    again = bench.make(fake, core)
    fake.refuse_ports = "not yet"
    again.restore(load(bench.run_dir / "state.json"))
    entry = again.ports["a"]
    assert (entry.id, entry.state, entry.reason) == (0, PortState.LOST, "port a: not yet")
    await again.sweep()
    assert (bench.run_dir / "ports" / "a").exists()
    assert len([m for m in caplog.messages if "not yet" in m]) == 2
    fake.refuse_ports = ""
    await again.sweep()
    assert again.ports["a"].id == 0
    bench.now += 1
    await again.sweep()
    assert {name: entry.id for name, entry in again.ports.items()} == {"a": 1, "b": 2}
    assert bench.saved == ["a", "b"]


def test_port_that_cannot_come_back_can_be_changed_and_deleted(bench: Bench) -> None:
    bench.add("a")
    again = bench.make(FakeFastPath(), SwitchCore())
    again.fast_path.refuse_ports = "never"  # type: ignore[attr-defined]
    again.restore(load(bench.run_dir / "state.json"))
    again.change("a", {"mtu": 1400})
    again.remove("a")
    assert bench.saved == []
    assert not (bench.run_dir / "ports" / "a").exists()


# ---- counters and taps ------------------------------------------------------------


def test_totals_hold_ports_that_are_gone(bench: Bench) -> None:
    one = bench.add("a")
    bench.fake.stats = {0: port_stats(5, 2, drops={"policy": 3}), one: port_stats(10, 7, 1, {"policy": 1, "vlan": 1})}
    assert bench.switch.counters().to_json(parked=2) == {
        "received": 15,
        "replicated": 1,
        "injected": 0,
        "encapsulated": 0,
        "sent": 9,
        "decapsulated": 0,
        "dropped": {"policy": 4, "vlan": 1},
        "parked": 2,
        "balanced": True,
    }
    assert bench.switch.counters().to_json(parked=1)["balanced"] is False


def test_taps_are_the_union_of_what_readers_want(bench: Bench) -> None:
    one, two = bench.add("a"), bench.add("b")
    taps = bench.switch.taps
    first = taps.subscribe(one, TAP_RX, 100, lambda records: None)
    second = taps.subscribe(None, TAP_TX, 200, lambda records: None)
    three = bench.add("c")
    assert bench.fake.tapped == {one: (TAP_RX | TAP_TX, 200), two: (TAP_TX, 200), three: (TAP_TX, 200)}
    taps.unsubscribe(second)
    assert bench.fake.tapped == {one: (TAP_RX, 100), two: (0, 0), three: (0, 0)}
    bench.switch.remove("a")
    assert first.ended.is_set()
    taps.unsubscribe(first)
    assert not second.ended.is_set()


async def test_wait_for_a_port_that_is_tried_again(bench: Bench) -> None:
    bench.add("a", type="pmd", devargs="net_null0")
    fake = FakeFastPath()
    again = bench.make(fake, SwitchCore())
    fake.refuse_ports = "not yet"
    again.restore(load(bench.run_dir / "state.json"))
    waiting = asyncio.ensure_future(again.wait_ready(again.ports["a"], DEADLINE))
    fake.refuse_ports = ""
    bench.now += 1
    await again.sweep()
    async with asyncio.timeout(DEADLINE):
        await waiting
    assert again.ports["a"].up


def test_port_that_goes_hands_its_last_frames_out(bench: Bench) -> None:
    one = bench.add("a")
    seen: list[int] = []
    bench.switch.taps.subscribe(one, TAP_RX, 100, lambda records: seen.extend(r.time_ns for r in records))
    for number in range(3):
        bench.fake.tap(TapRecord(number, one, TAP_RX, Drop.NONE, 60, bytes(60), 0, 0, ()))
    bench.fake.tap_batch = 2
    bench.switch.remove("a")
    assert seen == [0, 1, 2]
