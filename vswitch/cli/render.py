# SPDX-License-Identifier: Apache-2.0
"""How things look: tables, numbers, JSON. rich is imported only when something is drawn."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

STATE_STYLES = {"ready": "green", "lost": "bold red", "configured": "dim"}
_GAP = 2  # blanks between columns
_LAST_COLUMN = 30  # columns that the last one keeps on a narrow terminal, where it wraps
_WIDE = 10_000  # columns of what is no terminal: lines are for programs there, and never wrap


def output_option(*more: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the -o option that every command has, with the forms that only this command knows in `more`."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json", *more]),
        default="table",
        show_default=True,
        help="Form of what is printed.",
    )


def print_json(value: object) -> None:
    """Write `value` to standard output as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


class JsonArray:
    """A JSON array written element by element, which is whole however the `with` block ends."""

    def __init__(self) -> None:
        self._separator = "[\n"

    def __enter__(self) -> Self:
        return self

    def add(self, value: object) -> None:
        """Write one element, at once."""
        click.echo(self._separator + json.dumps(value, ensure_ascii=False), nl=False)
        self._separator = ",\n"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        click.echo("\n]" if self._separator == ",\n" else "[]")


def console(at_least: int = 0) -> Console:
    """Return a console on standard output: colours on a terminal unless NO_COLOR is set; `at_least` is in columns."""
    from rich.console import Console  # noqa: PLC0415

    target = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    target.width = max(target.width, at_least) if sys.stdout.isatty() else _WIDE
    return target


def make_table(headers: Sequence[str], rows: Iterable[Sequence[str]], styles: dict[str, str] | None = None) -> Table:
    """Return a table; a header that begins with ">" is of a column of numbers, a cell found in `styles` is coloured.

    Only the last column wraps, if it holds text.
    """
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    for number, header in enumerate(headers):
        numeric = header.startswith(">")
        wraps = number == len(headers) - 1 and not numeric
        table.add_column(header.lstrip(">"), justify="right" if numeric else "left", no_wrap=not wraps, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=(styles or {}).get(cell, "")) for cell in row))
    return table


def print_table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], empty: str, styles: dict[str, str] | None = None
) -> None:
    """Draw a table on standard output, or the line `empty` when it has no rows.

    Where a terminal is too narrow for it, the lines run over the edge: nothing is cut off.
    """
    rows = list(rows)
    if not rows:
        click.echo(empty)
        return
    widths = [max(map(len, column)) + _GAP for column in zip(headers, *rows, strict=True)]
    widths[-1] = min(widths[-1], _LAST_COLUMN)
    target = console(at_least=sum(widths))
    with target.capture() as captured:
        target.print(make_table(headers, rows, styles))
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def count(number: float) -> str:
    """1234 -> "1234", 1234567 -> "1.23M": four figures at most."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= factor:
            scaled = number / (1e3 if unit == "k" else factor)
            return f"{scaled:.{0 if scaled >= 100 else 1 if scaled >= 10 else 2}f}{unit}"
    return f"{number:.0f}"


def size(number: float) -> str:
    """Bytes, in units of 1000: "742 B", "1.5 MB"."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= factor:
            return f"{number / factor:.{1 if number < 100 * factor else 0}f} {unit}"
    return f"{number:.0f} B"


def duration(seconds: float) -> str:
    """7.4 -> "7s", 3700 -> "1h 1m": two units at most."""
    whole = max(0, int(seconds))
    units = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s")]
    first = next((index for index, (number, _) in enumerate(units) if number), 3)
    return " ".join(f"{number}{unit}" for number, unit in units[first : first + 2] if number) or "0s"


def since(unix_time: float | None) -> str:
    """How long ago a moment of the wall clock is."""
    return duration(time.time() - unix_time) if unix_time else ""


def plural(number: int, noun: str) -> str:
    """1, "port" -> "1 port"; 2 -> "2 ports"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listing(numbers: Sequence[int]) -> str:
    """[1, 2, 3, 7] -> "1-3,7"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
