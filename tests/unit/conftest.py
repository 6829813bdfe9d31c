# SPDX-License-Identifier: Apache-2.0
"""What the tests of `ffswitch` share: a run directory, a scripted daemon in it, a call."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.rpcserver import FakeDaemon
from vswitch.cli.main import main

FFSWITCH = [sys.executable, "-c", "import sys; from vswitch.cli.main import main; sys.exit(main())"]

Run = Callable[..., tuple[int, str, str]]
Daemon = Callable[..., FakeDaemon]


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FFSWITCH_RUN_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def daemon(run_dir: Path) -> Iterator[Daemon]:
    started: list[FakeDaemon] = []

    def start(**answers: object) -> FakeDaemon:
        methods = {name.replace("_", "."): answer for name, answer in answers.items()}
        started.append(FakeDaemon(run_dir, methods))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*args: str) -> tuple[int, str, str]:
        code = main(args)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
