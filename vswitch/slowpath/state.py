# SPDX-License-Identifier: Apache-2.0
"""The state file: the ports that a restarted daemon brings back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from vswitch.slowpath.errors import BadParams, StartError, one_line
from vswitch.slowpath.ports import port_from_state, port_to_json
from vswitch.slowpath.types import PortConfig

VERSION = 1


def save(path: Path, ports: Iterable[PortConfig]) -> None:
    """Replace the state file in one step: a reader, or a kill at any moment, finds the old one or the new one.

    Raises OSError, and then the old file is untouched.
    """
    text = json.dumps({"version": VERSION, "ports": [port_to_json(p) for p in ports]}, indent=1) + "\n"
    scratch = path.with_name(path.name + ".new")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise


def load(path: Path) -> tuple[PortConfig, ...]:
    """The ports that `save` wrote, in order; none when there is no file.

    Raises StartError, which names the file and the place; the file is left as it is.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, str(error)) from None
    if not isinstance(document, dict) or not isinstance(document.get("ports"), list):
        raise _corrupt(path, "not an object with a list of ports")
    if document.get("version") != VERSION:
        raise _corrupt(path, f"version {document.get('version')!r}, this ffswitchd reads {VERSION}")
    ports: dict[str, PortConfig] = {}
    for number, item in enumerate(document["ports"], start=1):
        try:
            if not isinstance(item, dict):
                raise BadParams("not an object")
            port = port_from_state(item)
        except BadParams as error:
            raise _corrupt(path, f"port {number}: {error}") from None
        if port.name in ports:
            raise _corrupt(path, f"port {number}: a second {port.name}")
        ports[port.name] = port
    return tuple(ports.values())


def _corrupt(path: Path, why: str) -> StartError:
    return StartError(f"{path} is not a state file: {one_line(why)}: mend it, or move it away to start without ports")
