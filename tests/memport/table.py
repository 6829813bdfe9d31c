# SPDX-License-Identifier: Apache-2.0
"""The table of shortcuts in ff_shm.h, as a container reads it."""

from __future__ import annotations

import struct
from typing import NamedTuple

from tests.memport.rings import MAGIC, VERSION

SHORTCUTS, QUEUES = 256, 16
OUT_AT, OUT = 64, struct.Struct("<6sH2I")
IN_AT, IN = OUT_AT + OUT.size * SHORTCUTS, struct.Struct("<4I256I")
TABLE_LEN = IN_AT + IN.size * SHORTCUTS
GENERATION = 2  # of the head, in units of 4 bytes
FREE, OPENING, CLOSING = 0, 1, 2


class Out(NamedTuple):
    """struct ff_shm_out."""

    mac: bytes
    number: int
    epoch: int
    max_len: int


class In(NamedTuple):
    """struct ff_shm_in; `open_at` by ring, then by receive queue."""

    state: int
    epoch: int
    opened: int
    open_at: tuple[int, ...]

    def start(self, ring: int, queues: int) -> tuple[int, ...]:
        """used_tail of each of the receiver's queues when the ring was opened."""
        return self.open_at[QUEUES * ring : QUEUES * ring + queues]


class Table:
    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.words = view[:OUT_AT].cast("I")
        self._seen = -1
        self._out: list[Out] = []

    def check(self) -> None:
        assert (self.words[0], self.words[1]) == (MAGIC, VERSION)

    @property
    def generation(self) -> int:
        return self.words[GENERATION]

    def out(self) -> list[Out]:
        """The shortcuts to use now; read again when something changed."""
        generation = self.generation
        if generation != self._seen:
            entries = (Out(*OUT.unpack_from(self.view, OUT_AT + OUT.size * i)) for i in range(SHORTCUTS))
            self._out = [entry for entry in entries if entry.epoch != 0]
            self._seen = generation
        return self._out

    def incoming(self, number: int) -> In:
        state, epoch, opened, _, *open_at = IN.unpack_from(self.view, IN_AT + IN.size * number)
        return In(state, epoch, opened, tuple(open_at))
