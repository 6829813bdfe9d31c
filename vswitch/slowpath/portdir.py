# SPDX-License-Identifier: Apache-2.0
"""A port's place in the file system: its directory and its socket."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from vswitch.slowpath.errors import SwitchError

# Group members may make sockets in it, and those belong to the directory's group.
DIR_MODE = 0o2770


def make(directory: Path) -> bool:
    """Make a port's directory; returns whether it is new. Raises SwitchError."""
    try:
        directory.mkdir(parents=True)
        new = True
    except FileExistsError:
        new = False
    except OSError as error:
        raise SwitchError(f"cannot make {directory}: {error.strerror}") from None
    try:
        directory.chmod(DIR_MODE)
    except OSError as error:
        raise SwitchError(f"cannot set the mode of {directory}: {error.strerror}") from None
    return new


def remove(directory: Path) -> str:
    """Remove a port's directory with the sockets in it.

    Returns why it had to stay (it holds something else), or "".
    """
    try:
        for entry in directory.iterdir():
            if stat.S_ISSOCK(entry.lstat().st_mode):
                entry.unlink()
        directory.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        return f"{directory} stays: {error.strerror}"
    return ""


def share(path: Path) -> None:
    """Let the directory's group use the socket that the switch listens on. Raises SwitchError."""
    try:
        path.chmod(0o660)
    except OSError as error:
        raise SwitchError(f"socket {path}: {error.strerror}") from None


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True  # unix(7): its backlog is full, so somebody listens
        except ConnectionRefusedError:
            return False
    return True


def check_socket(path: Path, *, server: bool) -> None:
    """Make sure that a port can have its socket at `path`; a stale one is removed when the switch is to listen.

    Raises SwitchError.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise SwitchError(f"socket {path}: there is no directory {path.parent}: make it first") from None
        return
    except OSError as error:
        raise SwitchError(f"socket {path}: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise SwitchError(f"socket {path}: there is something that is no socket: remove it or give another path")
    if not server:
        return
    try:
        if _listens(path):
            raise SwitchError(f"socket {path}: another process listens there: stop it or give another path")
        path.unlink()
    except OSError as error:
        raise SwitchError(f"socket {path}: {error.strerror}") from None
