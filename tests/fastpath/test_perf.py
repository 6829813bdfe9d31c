# SPDX-License-Identifier: Apache-2.0
"""Stage timing: bursts are sampled, and every stage that they passed has cycles."""

from __future__ import annotations

from tests.fastpath.frames import flow, numbered, output
from tests.fastpath.switch import Switch

SAMPLE_EVERY = 127  # FF_SAMPLE_EVERY


def test_one_burst_in_many_is_timed_by_stage(switch: Switch) -> None:
    left, right = switch.add_hosts(2)
    switch.install(flow(output(right.id), in_port=left.id))
    before = switch.fp.worker_stats()[0].perf
    frames = numbered(1, 2, SAMPLE_EVERY)
    left.peer.send(frames, burst=1)
    assert right.peer.wait_received(len(frames)) == frames
    switch.settle()
    after = switch.fp.worker_stats()[0].perf
    bursts = after.bursts - before.bursts
    assert 1 <= bursts <= len(frames)

    # Single frames may have been taken together: bursts are made up for until one was due.
    while after.sampled_packets == before.sampled_packets:
        assert bursts <= SAMPLE_EVERY
        left.peer.send(frames[:1])
        assert right.peer.wait_received(1) == frames[:1]
        switch.settle()
        after = switch.fp.worker_stats()[0].perf
        bursts = after.bursts - before.bursts
    grown = {stage for stage, cycles in after.stage_cycles.items() if cycles > before.stage_cycles[stage]}
    assert grown == {"rx", "parse", "lookup", "actions", "tx", "rx-done"}


def test_upcalls_are_timed_to_their_verdict(switch: Switch) -> None:
    left, right = switch.add_hosts(2)
    before = switch.fp.worker_stats()[0].perf
    left.peer.send(numbered(1, 2, 1))
    (upcall,) = switch.wait_upcalls(1)
    assert switch.fp.worker_stats()[0].perf.verdicts == before.verdicts
    switch.finish(upcall, output(right.id))
    assert right.peer.wait_received(1) == numbered(1, 2, 1)
    after = switch.fp.worker_stats()[0].perf
    assert after.verdicts == before.verdicts + 1
    assert after.verdict_cycles > before.verdict_cycles
