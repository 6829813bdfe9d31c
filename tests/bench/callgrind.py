# SPDX-License-Identifier: Apache-2.0
"""Reads what callgrind writes: https://valgrind.org/docs/manual/cl-format.html, without subpositions for jumps."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_NAME = re.compile(r"fn=\((\d+)\)(?: (.*))?")
_COST = re.compile(r"[+\-*\d]\S* (\d+)")


def instructions(lines: Iterable[str]) -> Counter[str]:
    """Instructions of each function itself; what was inlined into it counts as its own. One event: Ir."""
    names: dict[str, str] = {}
    counts: Counter[str] = Counter()
    function = ""
    called = False
    for line in lines:
        if match := _NAME.match(line):
            number, name = match.groups()
            function = names.setdefault(number, name)
        elif line.startswith("cfn="):
            # A name is told once, here as well; later lines have its number alone.
            number, name = _name_of(line)
            if name:
                names[number] = name
        elif line.startswith("calls="):
            called = True  # the next line is the callee's cost
        elif match := _COST.match(line):
            if not called:
                counts[function] += int(match.group(1))
            called = False
    return counts


def _name_of(line: str) -> tuple[str, str]:
    number, _, name = line.removeprefix("cfn=(").partition(")")
    return number, name.strip()
