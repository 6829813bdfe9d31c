# SPDX-License-Identifier: Apache-2.0
"""Callgrind's output: names are told once, a callee's cost is not its caller's."""

from tests.bench.callgrind import instructions

OUTPUT = """\
# callgrind format
positions: line
events: Ir
summary: 60

fl=(1) worker.c
fn=(1) poll_queue
10 5
+2 7
cfn=(2) ff_pipeline
calls=1 20
* 40
fi=(3) switch.h
-1 8

fl=(2) pipeline.c
fn=(2)
20 30
fe=(2)
21 10
"""


def test_instructions_of_each_function_itself() -> None:
    counts = instructions(OUTPUT.splitlines())
    assert counts == {"poll_queue": 20, "ff_pipeline": 40}
    assert counts.total() == 60
