# SPDX-License-Identifier: Apache-2.0
"""The model of the change of path, in every interleaving: no frame is lost, doubled or overtaken."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).with_name("change_of_path.pml")
# Frames and rounds: what is searched wholly in seconds.
SEARCHES = {"two rounds": (2, 2), "more frames than slots": (3, 1)}


def search(directory: Path, size: tuple[int, int], *defines: str) -> str:
    """What the search says, which ends at the first error."""
    frames, rounds = size
    options = [f"-DFRAMES={frames}", f"-DROUNDS={rounds}", *(f"-D{define}" for define in defines)]
    subprocess.run(["spin", *options, "-a", MODEL], cwd=directory, check=True, capture_output=True)
    subprocess.run(["gcc", "-O2", "-w", "-DSAFETY", "-DMEMLIM=3000", "-o", "pan", "pan.c"], cwd=directory, check=True)
    done = subprocess.run(["./pan", "-m100000"], cwd=directory, check=True, capture_output=True, text=True, timeout=280)
    assert "max search depth too small" not in done.stdout
    assert "Search not completed" not in done.stdout or "errors: 1" in done.stdout
    return done.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize("size", SEARCHES.values(), ids=SEARCHES.keys())
@pytest.mark.parametrize("overlap", [False, True])
def test_frames_keep_their_order(tmp_path: Path, size: tuple[int, int], overlap: bool) -> None:
    said = search(tmp_path, size, *(["OVERLAP"] if overlap else []))
    assert "errors: 0" in said, said


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mistake", ["EAGER", "EARLY", "HASTY", "REACHED"])
def test_mistakes_are_found(tmp_path: Path, mistake: str) -> None:
    """Each of the rules is needed; and the end of the model can be reached."""
    assert "assertion violated" in search(tmp_path, SEARCHES["two rounds"], mistake)
