# SPDX-License-Identifier: Apache-2.0
"""Numbers that must not be given twice: of shortcuts at their ports, of regions, and epochs."""

from __future__ import annotations

import os
from pathlib import Path

from vswitch.slowpath.errors import StartError
from vswitch.slowpath.memory.wire import SHORTCUTS_MAX

_REGIONS = 1 << 16
_EPOCHS = 1 << 32
# Epochs that are taken from the file at a time.
_BLOCK = 1 << 16


class Numbers:
    """A shortcut's number at its sender's port and at its receiver's, each from 0 and within the port's quota."""

    def __init__(self) -> None:
        self._out: dict[int, set[int]] = {}
        self._in: dict[int, set[int]] = {}

    def take(self, sender: tuple[int, int], receiver: tuple[int, int]) -> tuple[int, int] | None:
        """(out, in) for two (port, quota), None when one of them has no more."""
        found = [_lowest(used.get(port, set()), quota) for used, (port, quota) in self._both(sender, receiver)]
        out_number, in_number = found
        if out_number is None or in_number is None:
            return None
        self._out.setdefault(sender[0], set()).add(out_number)
        self._in.setdefault(receiver[0], set()).add(in_number)
        return out_number, in_number

    def give_back(self, sender: tuple[int, int], receiver: tuple[int, int]) -> None:
        """(port, number) of each side."""
        for used, (port, number) in self._both(sender, receiver):
            used[port].remove(number)
            if not used[port]:
                del used[port]

    def full(self, sender: tuple[int, int], receiver: tuple[int, int]) -> bool:
        """Whether `take` would find none."""
        return any(
            _lowest(used.get(port, set()), quota) is None for used, (port, quota) in self._both(sender, receiver)
        )

    def _both(
        self, sender: tuple[int, int], receiver: tuple[int, int]
    ) -> tuple[tuple[dict[int, set[int]], tuple[int, int]], ...]:
        return (self._out, sender), (self._in, receiver)


def _lowest(used: set[int], quota: int) -> int | None:
    if len(used) >= quota:
        return None
    return next((number for number in range(SHORTCUTS_MAX) if number not in used), None)


class RegionNumbers:
    """Blocks of consecutive numbers, unique while they are in use."""

    def __init__(self) -> None:
        self._blocks: dict[int, int] = {}  # first → count
        self._next = 1

    def take(self, count: int) -> int | None:
        """The first of `count` numbers, None when there is no such block."""
        # Going round instead of taking the lowest keeps a number unused for as long as possible after its end.
        for start in (self._next, 1):
            first = start
            for used in sorted(self._blocks):
                if used + self._blocks[used] <= first:
                    continue
                if used >= first + count:
                    break
                first = used + self._blocks[used]
            if first + count <= _REGIONS:
                self._blocks[first] = count
                self._next = first + count
                return first
        return None

    def give_back(self, first: int) -> None:
        """The block that begins there is free."""
        del self._blocks[first]


class Epochs:
    """Numbers from 1 to 2^32 - 1 that no earlier daemon of this run directory gave either."""

    def __init__(self, path: Path) -> None:
        """Raises StartError when the file is not to be used."""
        self._path = path
        try:
            self._next = int(path.read_text())
            if not 0 < self._next < _EPOCHS:
                raise ValueError("it holds no epoch")
        except FileNotFoundError:
            self._next = 1
        except (OSError, ValueError) as error:
            raise StartError(f"{path} cannot be read: {error}: remove it once no container is connected") from None
        self._end = self._next

    def take(self) -> int:
        """The next one. Raises OSError."""
        if self._next >= self._end:
            end = self._next + _BLOCK
            scratch = self._path.with_name(self._path.name + ".new")
            with scratch.open("w", encoding="ascii") as file:
                file.write(f"{end if end < _EPOCHS else 1}\n")
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(self._path)
            self._end = min(end, _EPOCHS)
        epoch = self._next
        self._next = epoch + 1 if epoch + 1 < _EPOCHS else 1
        if self._next == 1:
            self._end = 1
        return epoch
