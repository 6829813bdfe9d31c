# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks' commands have in common: how they end."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from tests.bench.errors import BenchError


def _interrupted(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)  # so that every `with` cleans up


def end_tidily() -> None:
    """From now on a signal that ends the process unwinds it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)


def run(command: click.Command, name: str, args: Sequence[str] | None) -> int:
    """Does `command`; what went wrong is one line that begins with `name`. Returns the exit code."""
    try:
        command.main(args, prog_name=name, standalone_mode=False)
    except click.UsageError as error:
        click.echo(f"{name}: {error.format_message()}", err=True)
        return 2
    except BenchError as error:
        click.echo(f"{name}: {error}", err=True)
        return 1
    return 0
