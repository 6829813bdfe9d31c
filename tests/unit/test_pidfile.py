# SPDX-License-Identifier: Apache-2.0
"""One daemon a run directory."""

import os
from pathlib import Path

import pytest

from vswitch.slowpath.errors import StartError
from vswitch.slowpath.pidfile import PidFile


def test_second_is_refused_with_the_firsts_pid(tmp_path: Path) -> None:
    path = tmp_path / "ffswitchd.pid"
    first = PidFile(path)
    assert path.read_text() == f"{os.getpid()}\n"
    with pytest.raises(StartError, match=rf"pid {os.getpid()}\) runs in {tmp_path}: stop it"):
        PidFile(path)
    first.release()
    assert not path.exists()
    PidFile(path).release()


def test_a_dead_daemons_file_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "ffswitchd.pid"
    path.write_text("999999999\n")
    pid_file = PidFile(path)
    assert path.read_text() == f"{os.getpid()}\n"
    pid_file.release()


def test_unwritable(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="No such file or directory"):
        PidFile(tmp_path / "nowhere" / "ffswitchd.pid")
