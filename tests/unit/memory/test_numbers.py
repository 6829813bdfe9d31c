# SPDX-License-Identifier: Apache-2.0
"""Numbers: none is given twice while it is in use."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vswitch.slowpath.errors import StartError
from vswitch.slowpath.memory.numbers import Epochs, Numbers, RegionNumbers


def test_epochs_grow_over_restarts(tmp_path: Path) -> None:
    given_: list[int] = []
    for _ in range(3):
        epochs = Epochs(tmp_path / "epochs")
        given_ += [epochs.take() for _ in range(5)]
    assert given_ == sorted(set(given_))
    assert given_[0] == 1


def test_epochs_reserve_the_next_block(tmp_path: Path) -> None:
    epochs = Epochs(tmp_path / "epochs")
    last = [epochs.take() for _ in range(65537)][-1]
    assert Epochs(tmp_path / "epochs").take() > last


@pytest.mark.parametrize("text", ["", "x", "0", "-5", str(2**32)])
def test_bad_epochs(tmp_path: Path, text: str) -> None:
    (tmp_path / "epochs").write_text(text)
    with pytest.raises(StartError, match="epochs cannot be read"):
        Epochs(tmp_path / "epochs")


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 64)), max_size=200))
def test_region_blocks_never_overlap(steps: list[tuple[bool, int]]) -> None:
    numbers = RegionNumbers()
    blocks: list[tuple[int, int]] = []
    for take, count in steps:
        if take or not blocks:
            first = numbers.take(count)
            assert first is not None
            assert all(first + count <= other or other + n <= first for other, n in blocks)
            blocks.append((first, count))
        else:
            numbers.give_back(blocks.pop(count % len(blocks))[0])


def test_regions_run_out_and_come_back() -> None:
    numbers = RegionNumbers()
    blocks = []
    while (first := numbers.take(64)) is not None:
        blocks.append(first)
    assert len(blocks) == 1023
    numbers.give_back(blocks[7])
    assert numbers.take(64) == blocks[7]


def test_numbers_of_both_sides() -> None:
    numbers = Numbers()
    assert numbers.take((1, 2), (2, 2)) == (0, 0)
    assert numbers.take((1, 2), (3, 2)) == (1, 0)
    assert numbers.take((1, 2), (2, 2)) is None
    assert numbers.full((1, 2), (2, 2))
    numbers.give_back((1, 0), (2, 0))
    assert numbers.take((1, 2), (2, 2)) == (0, 0)
