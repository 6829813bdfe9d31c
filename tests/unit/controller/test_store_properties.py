# SPDX-License-Identifier: Apache-2.0
"""The SQLite store against the naive one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from controller.store.base import Store
from controller.store.sqlite import SqliteStore
from tests.store_machine import UNKNOWN_LEASE, StoreMachine


class SqliteMachine(StoreMachine):
    """A file for each example, and a clock that only the test moves."""

    def make(self) -> Store:
        self.now = 0.0
        self.directory = tempfile.TemporaryDirectory()
        return SqliteStore(Path(self.directory.name) / "store.db", lambda: self.now)

    def pass_time(self, seconds: int) -> bool:
        self.now += seconds
        # The thread that writes looks at the clock before whatever it is asked for.
        self.run(self.store.revoke(UNKNOWN_LEASE))
        return True

    def teardown(self) -> None:
        super().teardown()
        self.directory.cleanup()


# Time enough for hypothesis to make a failure small.
TestSqlite = pytest.mark.timeout(600)(SqliteMachine.TestCase)
TestSqlite.settings = settings(max_examples=40, stateful_step_count=30)
