# SPDX-License-Identifier: Apache-2.0
"""How things look: tables, numbers, JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import click

STATE_COLOURS = {"ready": "green", "lost": "red", "waiting-for-peer": "yellow", "negotiating": "yellow"}
_GAP = 2  # blanks between columns
_LAST_COLUMN = 30  # columns that the last one must have on a terminal; with fewer it goes to the next line,
_NEXT_LINE = 6  # indented by these


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


def coloured() -> bool:
    """Whether standard output is a terminal that may be coloured (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def paint(text: str, colour: str) -> str:
    """Colour a word where coloured() allows it; "" = no colour."""
    return click.style(text, fg=colour) if colour and coloured() else text


def print_table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], empty: str, colours: Mapping[str, str] | None = None
) -> None:
    """Write a table on standard output, or the line `empty` when it has no rows.

    A header that begins with ">" is of a column of numbers; a cell found in `colours` is painted. On a terminal the
    last column wraps, and nothing is ever cut off. rich's tables take half a second for a thousand rows, and a
    flow table has many more.
    """
    rows = list(rows)
    if not rows:
        click.echo(empty)
        return
    numeric = [header.startswith(">") for header in headers]
    titles = [header.lstrip(">") for header in headers]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    indent = sum(widths[:-1]) + _GAP * (len(widths) - 1)
    room = _terminal_columns() - indent

    def line(cells: Sequence[str], draw: Callable[[str], str]) -> str:
        parts = list[str]()
        for cell, width, right in zip(cells[:-1], widths, numeric, strict=False):
            blanks = " " * (width - len(cell))
            parts.append(blanks + draw(cell) if right else draw(cell) + blanks)
        last = cells[-1].rjust(widths[-1]) if numeric[-1] else _wrapped(cells[-1], room, indent)
        text = (" " * _GAP).join([*parts, draw(last)])
        return "\n".join(part.rstrip() for part in text.split("\n"))

    known = colours or {}
    click.echo(line(titles, lambda title: click.style(title, bold=True) if coloured() else title))
    click.echo("\n".join(line(row, lambda cell: paint(cell, known.get(cell, ""))) for row in rows))


def _terminal_columns() -> int:
    """Return the columns of the terminal; what is no terminal has no end."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return sys.maxsize


def _wrapped(text: str, room: int, indent: int) -> str:
    if len(text) <= room:
        return text
    import textwrap  # noqa: PLC0415

    if room < _LAST_COLUMN:
        room, indent = max(room + indent - _NEXT_LINE, 1), _NEXT_LINE
        return "".join("\n" + " " * indent + part for part in textwrap.wrap(text, room))
    return ("\n" + " " * indent).join(textwrap.wrap(text, room))


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
