# SPDX-License-Identifier: Apache-2.0
"""`ffswitch` as a process: what it imports, its shell completion, a reader that leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.conftest import FFSWITCH, Daemon, Run
from tests.unit.rpcserver import port

pytestmark = pytest.mark.usefixtures("run_dir")


@pytest.mark.parametrize("command", [["--help"], ["add-port", "web0"], ["list-ports"]])
def test_nothing_heavy_is_imported(daemon: Daemon, command: list[str]) -> None:
    daemon(port_add=port("web0"), port_list=[port("web0")])
    code = "import sys; from vswitch.cli.main import main; main(); print(*sys.modules, file=sys.stderr)"
    line = [sys.executable, "-c", code, *command]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
    modules = set(done.stderr.split())
    assert "click" in modules
    assert not {"rich", "scapy", "elftools", "asyncio", "vswitch._ff", "cffi", "vswitch.slowpath.drivers"} & modules


def test_reader_that_leaves_is_no_error(daemon: Daemon) -> None:
    daemon(port_list=[port(f"p{number}") for number in range(50)])
    reading, writing = os.pipe()
    with subprocess.Popen([*FFSWITCH, "list-ports"], stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        os.close(reading)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(run: Run, shell: str) -> None:
    code, out, _ = run("completion", shell)
    assert code == 0
    assert f"_FFSWITCH_COMPLETE={shell}_complete" in out


def complete(words: str) -> list[str]:
    env = {
        **os.environ,
        "_FFSWITCH_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    out = subprocess.run(FFSWITCH, env=env, capture_output=True, text=True, timeout=60, check=True).stdout
    return [line.partition(",")[2] for line in out.splitlines() if line]


def test_completion_asks_the_daemon_for_ports(daemon: Daemon, run_dir: Path) -> None:
    daemon(port_list=[port("web0"), port("web1"), port("db0")])
    assert complete("ffswitch del-port we") == ["web0", "web1"]
    assert complete(f"ffswitch --run-dir {run_dir} capture d") == ["db0"]


def test_completion_without_a_daemon_is_silent() -> None:
    assert complete("ffswitch del-port ") == []
