# SPDX-License-Identifier: Apache-2.0
"""The demo: it shows what it should, and leaves nothing behind, also when it is interrupted."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.containers import SECONDS, read_until
from tests.system.ffswitchd import ROOT


def start_demo() -> subprocess.Popen[bytes]:
    command: list[str | Path] = [sys.executable, ROOT / "scripts/demo"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)


def left_behind(name: str) -> list[str]:
    """Whatever still bears the name of the demo's run directory: files, processes, containers, mounts, groups."""
    found = [str(path) for where in ("/run", "/tmp", "/run/runc") for path in Path(where).glob(f"{name}*")]
    found += [str(path) for path in Path("/sys/fs/cgroup").rglob(f"{name}*")]
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if name in line]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        found += [command] if name in command else []
    return found


def test_demo() -> None:
    with start_demo() as demo:
        output = read_until(demo, r"the demo took")
        assert demo.wait(SECONDS) == 0, output
    assert output.count("every byte equal, in order") == 2
    for shown in ("dump-flows", "output:web0", "output:client0", "192.150.187.43|192.0.2.80"):
        assert re.search(shown, output), output
    name = re.search(r"ffswitch-demo-\w+", output)
    assert name
    assert left_behind(name[0]) == []


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        (r"\$ ffswitchd", signal.SIGINT),
        (r"\$ ffswitch add-port web0", signal.SIGTERM),
        (r"\$ scripts/run-container client0", signal.SIGINT),
        (r"\$ scripts/run-container web0", signal.SIGTERM),
        (r"Both ports are ready", signal.SIGINT),
        (r"\$ ffswitch dump-flows", signal.SIGTERM),
    ],
)
def test_interrupted_demo(moment: str, number: signal.Signals) -> None:
    with start_demo() as demo:
        output = read_until(demo, moment)
        demo.send_signal(number)
        assert demo.wait(SECONDS) == 128 + number, output
    name = re.search(r"ffswitch-demo-\w+", output)
    assert name
    assert left_behind(name[0]) == []
