# SPDX-License-Identifier: Apache-2.0
"""Load that goes on while a test does something else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.fastpath.switch import Attached


@contextmanager
def traffic(port: Attached, frames: list[bytes]) -> Iterator[None]:
    """Sends `frames` again and again from a thread while the body runs."""
    stop = threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            while not stop.is_set():
                port.peer.send(frames)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not failed, failed
