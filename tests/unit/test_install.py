# SPDX-License-Identifier: Apache-2.0
"""The installer: commands of the core to calls of the fast path, in bulk and in order."""

from pathlib import Path

import pytest

from tests.unit.switch_bench import Bench
from vswitch.slowpath.types import Action, ActionType, AddFlow, DelFlow, Finish, Flow, FlowStats, Key, Notice


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def flow(number: int, port_id: int = 1) -> Flow:
    return Flow(Key(in_port=number), Key(in_port=0xFFFF), (Action(ActionType.OUTPUT, port_id),))


def test_commands_keep_their_order_in_bulk(bench: Bench) -> None:
    finish = Finish(1, ())
    bench.switch.flows.execute([AddFlow(1, flow(1)), AddFlow(2, flow(2)), finish, DelFlow(1), DelFlow(2)])
    bench.switch.flows.execute([AddFlow(1, flow(1)), DelFlow(1), AddFlow(3, flow(1, 9))])
    assert bench.fake.calls == ["flow_add", "flow_del", "finish", "flow_add", "flow_del", "flow_add"]
    assert list(bench.fake.flows.values()) == [flow(1, 9)]


def test_refused_flow_is_passed_over_and_told_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.fake.refuse_flows = {flow(2), flow(4)}
    bench.switch.flows.execute([AddFlow(n, flow(n)) for n in range(1, 6)])
    assert list(bench.fake.flows.values()) == [flow(1), flow(3), flow(5)]
    bench.switch.flows.execute([AddFlow(2, flow(2))])
    assert [m for m in caplog.messages if "no room" in m] != []
    stats = bench.switch.flows.stats([1, 2])
    assert stats[2] == FlowStats(0, 0, 0.0)
    bench.switch.flows.execute([DelFlow(n) for n in range(1, 6)])
    assert not bench.fake.flows


def test_flow_whose_change_is_refused_is_taken_out(bench: Bench) -> None:
    bench.switch.flows.execute([AddFlow(1, flow(1))])
    bench.fake.refuse_flows = {flow(1, 9)}
    bench.switch.flows.execute([AddFlow(1, flow(1, 9))])
    assert not bench.fake.flows


def test_handles_and_ids(bench: Bench) -> None:
    bench.switch.flows.execute([AddFlow(70, flow(1)), AddFlow(80, flow(2))])
    ids = list(bench.fake.flows)
    assert [bench.switch.flows.handle(flow_id) for flow_id in ids] == [70, 80]
    bench.fake.counters[ids[1]] = FlowStats(5, 300, 9.0)
    assert bench.switch.flows.stats([80])[80] == FlowStats(5, 300, 9.0)
    bench.switch.flows.execute([DelFlow(70)])
    assert bench.switch.flows.handle(ids[0]) is None


def test_notices_are_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.switch.flows.execute([Notice("a moved")])
    assert caplog.messages == ["a moved"]
