# SPDX-License-Identifier: Apache-2.0
"""Waiting for what tells nobody when it happens: counters of other processes, rings in shared memory."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], bool], seconds: float, pause: float = 0.001) -> bool:
    """Looks every `pause` seconds; whether the condition came to hold within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True
