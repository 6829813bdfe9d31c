# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests on the bed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.rdma import bed
from tests.rdma.bed import Bed


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def booted_pair() -> AsyncIterator[Bed]:
    """Two hosts, left and right, for all tests that leave them as they were."""
    async with bed.start("left", "right") as pair:
        yield pair


@pytest.fixture
def pair(booted_pair: Bed) -> Iterator[Bed]:
    """The same, with an underlay that is sound again after the test."""
    yield booted_pair
    booted_pair.relay.heal()
