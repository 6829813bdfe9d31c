# SPDX-License-Identifier: Apache-2.0
"""Signals that end a program between its steps, never within one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP end the demo, but never between making a thing and noting how to unmake it."""

    def __init__(self) -> None:
        self._held = False
        self._pending = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._held:
            self._pending = number
        else:
            self._held = True  # from here on, for the cleaning up
            raise SystemExit(128 + number)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Put interrupts off until the end of the block."""
        self._held = True
        yield
        self._held = False
        if self._pending:
            self._handle(self._pending, None)

    def hold(self) -> None:
        """Put interrupts off for good."""
        self._held = True
