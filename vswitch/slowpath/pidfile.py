# SPDX-License-Identifier: Apache-2.0
"""One daemon a run directory: the lock on its pid file."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from vswitch.slowpath.errors import StartError


class PidFile:
    """Held from construction to `release`; a process that dies lets go by itself (flock(2))."""

    def __init__(self, path: Path) -> None:
        """Raises StartError when another process holds it or it cannot be written."""
        self._path = path
        try:
            self._fd = _lock(path)
            os.ftruncate(self._fd, 0)
            os.write(self._fd, f"{os.getpid()}\n".encode())
        except OSError as error:
            raise StartError(f"{path}: {error.strerror}") from None

    def release(self) -> None:
        """Remove the file and let go of the lock."""
        self._path.unlink(missing_ok=True)
        os.close(self._fd)


def _lock(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise StartError(
                f"another ffswitchd (pid {pid}) runs in {path.parent}: stop it, or give another --run-dir"
            ) from None
        if _is_at(fd, path):
            return fd
        os.close(fd)  # its last holder removed it between our open and our lock


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
