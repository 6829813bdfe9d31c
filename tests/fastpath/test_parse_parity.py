# SPDX-License-Identifier: Apache-2.0
"""The C parser and the reference model, held together on generated, damaged and captured frames."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import captures, packets
from tests.strategies import frames, mutated_frames
from vswitch.slowpath.fastpath import FastPath
from vswitch.slowpath.pipeline import parse


@settings(max_examples=600)
@given(frames(), st.integers(1, 1023))
def test_generated_frames(frame: bytes, in_port: int) -> None:
    assert FastPath.parse(frame, in_port) == parse(frame, in_port)


@settings(max_examples=1500)
@given(mutated_frames())
def test_mutated_frames(frame: bytes) -> None:
    assert FastPath.parse(frame, 7) == parse(frame, 7)


@settings(max_examples=200)
@given(st.binary(max_size=120))
def test_noise(frame: bytes) -> None:
    assert FastPath.parse(frame, 7) == parse(frame, 7)


@pytest.mark.parametrize("name", packets.EDGES)
def test_edges(name: str) -> None:
    frame, _ = packets.EDGES[name]
    assert FastPath.parse(frame, 7) == parse(frame, 7)


@pytest.mark.parametrize("name", packets.EDGES)
def test_every_truncation(name: str) -> None:
    frame, _ = packets.EDGES[name]
    for length in range(len(frame)):
        assert FastPath.parse(frame[:length], 7) == parse(frame[:length], 7), length


@pytest.mark.parametrize("name", captures.names())
def test_captures(name: str) -> None:
    for number, frame in enumerate(captures.frames(name), 1):
        assert FastPath.parse(frame, 7) == parse(frame, 7), f"frame {number}"
