# SPDX-License-Identifier: Apache-2.0
"""Load that goes on while a test does something else."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tests.fastpath.switch import Attached

SWITCH_INTERVAL = 5e-5  # else the body waits 5 ms for the interpreter after each call into the fast path


def traffic(port: Attached, frames: list[bytes]) -> AbstractContextManager[None]:
    """Sends `frames` again and again from a thread while the body runs."""
    return again_and_again(lambda: port.peer.send(frames))


def kick_storm(port: Attached) -> AbstractContextManager[None]:
    """Kicks the switch again and again from a thread while the body runs."""
    return again_and_again(port.peer.kick)


@contextmanager
def again_and_again(act: Callable[[], object]) -> Iterator[None]:
    """Acts from a thread while the body runs."""
    stop = threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            while not stop.is_set():
                act()
        except BaseException as error:
            failed.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert not failed, failed
