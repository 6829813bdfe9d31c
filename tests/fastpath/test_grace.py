# SPDX-License-Identifier: Apache-2.0
"""What workers may still read is not freed, whichever threads take things away at a time."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FASTPATH = ROOT / "vswitch/fastpath"


def test_grace_periods_of_two_threads(tmp_path: Path) -> None:
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "libdpdk"], check=True, capture_output=True, text=True
    ).stdout
    sources = [ROOT / "tests/fastpath/grace.c", FASTPATH / "rcu.c"]
    program = tmp_path / "grace"
    command: list[str | Path] = ["cc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", f"-I{FASTPATH}", "-o", program, *sources]
    subprocess.run([*command, *shlex.split(flags), "-pthread"], check=True)
    done = subprocess.run([program], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
