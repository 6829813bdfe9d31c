# SPDX-License-Identifier: Apache-2.0
"""Captures of real traffic through a real ffswitchd: all that the model says, and nothing else, arrives."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system import captures
from tests.system.ffswitchd import Ffswitchd
from tests.system.replay import Replay, model, n_ports
from vswitch.slowpath.types import Drop

BURSTS = (1, 31, 32, 33, 257)

# Thousands of floods to hundreds of ports take their time on a busy machine.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ffswitchd]:
    with Ffswitchd(tmp_path_factory.mktemp("sw") / "run", "--log-level", "warning") as running:
        yield running


@pytest.fixture(scope="module", params=captures.names())
def replay(request: pytest.FixtureRequest, daemon: Ffswitchd) -> Iterator[Replay]:
    ready = Replay(daemon, captures.load(request.param), max(BURSTS))
    yield ready
    ready.close()


@pytest.mark.parametrize("burst", BURSTS)
def test_a_capture_arrives_as_the_model_says(replay: Replay, burst: int) -> None:
    replay.run(burst)


def test_the_generated_capture_has_of_everything() -> None:
    """Floods, known destinations, malformed frames, drops by decision: or its replay would prove little."""
    frames = captures.generate()
    ports = n_ports(frames)
    fates = [sent.fate for sent in model(frames, range(1, ports + 1))]
    assert {drop for fate in fates for _, drop in fate.drops} >= {
        Drop.TOO_SHORT,
        Drop.OVERSIZE,
        Drop.SRC_MULTICAST,
        Drop.MALFORMED_VLAN,
        Drop.MALFORMED_IPV4,
        Drop.MALFORMED_UDP,
        Drop.RESERVED_MAC,
        Drop.SAME_PORT,
    }
    assert {len(fate.outputs) for fate in fates} == {0, 1, ports - 1}
