# SPDX-License-Identifier: Apache-2.0
"""How both programs print and end: tables, JSON, one line for an error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

STATE_COLOURS = {"up": "green", "lost": "red", "create": "green", "delete": "red", "update": "yellow"}
# What is no terminal has no end: nothing is cut off or wrapped.
_WIDE = 10_000


def output_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The -o option, which every command has."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="Form of what is printed.",
    )(command)


def print_json(value: object) -> None:
    """Write `value` to standard output as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> None:
    """Write a table, or the line `empty` when it has no rows; words of STATE_COLOURS are painted on a terminal."""
    rows = list(rows)
    if not rows:
        click.echo(empty)
        return
    table = Table(*headers, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(cell, style=STATE_COLOURS.get(cell, "")) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else _WIDE, soft_wrap=not sys.stdout.isatty())
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().rstrip().split("\n")))


def run(command: click.Command, name: str, args: Sequence[str] | None, failures: tuple[type[Exception], ...]) -> int:
    """Run one command line and return its exit code: 2 for wrong words, 1 for `failures`, each with one line."""
    try:
        code = command.main(args=args, prog_name=name, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else name
        return _fail(name, f"{_lower(error.format_message())}; see '{path} --help'", 2)
    except click.ClickException as error:
        return _fail(name, _lower(error.format_message()), error.exit_code)
    except failures as error:
        return _fail(name, str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        return 1


def _lower(message: str) -> str:
    """click's sentence as a part of a line."""
    return message[:1].lower() + message[1:].rstrip(".")


def _fail(name: str, line: str, code: int) -> int:
    click.echo(f"{name}: " + " ".join(line.split()), err=True)
    return code
