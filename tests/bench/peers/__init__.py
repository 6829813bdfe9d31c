# SPDX-License-Identifier: Apache-2.0
"""The switches that are compared, each behind the protocol `Peer`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tests.bench.stats import OwnCount


class Peer(Protocol):
    """A switch that forwards between vhost-user ports.

    It is a context manager: started (without ports) on entry, gone on exit.
    """

    @property
    def name(self) -> str: ...

    def __enter__(self) -> Peer: ...

    def __exit__(self, *exc: object) -> None: ...

    def connect(self, sockets: Sequence[Path]) -> None:
        """Adds a vhost-user client port for each socket and sets forwarding up. Raises BenchError."""

    def check(self) -> None:
        """Raises BenchError when one of its processes has ended."""

    @property
    def pids(self) -> Sequence[int]:
        """Its processes, the one with the poll threads first."""

    @property
    def poll_prefix(self) -> str:
        """How the names of its poll threads start."""

    @property
    def poll_count(self) -> int:
        """How many poll threads it has."""

    def own_count(self) -> OwnCount | None:
        """Its own count of busy cycles and packets so far; None when it keeps none."""
