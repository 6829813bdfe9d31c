# SPDX-License-Identifier: Apache-2.0
"""What a host was told last, in a file: a switch that restarts while no controller is there goes on with it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from controller.codec import FieldError, from_json, to_json
from controller.model import CLASSES, Kind, Object, kind_of
from controller.security.files import write_file

VERSION = 1


class KeptError(Exception):
    """The file cannot be used: one line that says why."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The objects as of `revision`, and the highest epoch seen."""

    epoch: int = 0
    revision: int = 0
    objects: tuple[Object, ...] = ()


def read_object(kind: str, text: str) -> Object:
    """An object as messages carry it; raises ValueError."""
    return from_json(CLASSES[Kind(kind)], json.loads(text))


def save(path: Path, host: str, epoch: int, revision: int, objects: Iterable[Object]) -> None:
    """Replace the file in one step. Raises OSError."""
    items = [{"kind": str(kind_of(item)), "object": to_json(item)} for item in objects]
    document = {"version": VERSION, "host": host, "epoch": epoch, "revision": revision, "objects": items}
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(path, json.dumps(document).encode() + b"\n", 0o600)


def load(path: Path, host: str) -> Kept:
    """What `save` wrote for this host; nothing when there is no file. Raises KeptError."""
    try:
        document = json.loads(path.read_bytes())
        if document["version"] != VERSION or document["host"] != host:
            raise KeptError(f"{path} is not of this host or version: what it says is not used")
        objects = tuple(from_json(CLASSES[Kind(item["kind"])], item["object"]) for item in document["objects"])
        return Kept(int(document["epoch"]), int(document["revision"]), objects)
    except FileNotFoundError:
        return Kept()
    except (OSError, ValueError, KeyError, TypeError, FieldError) as error:
        raise KeptError(f"{path} cannot be read ({error}): what it says is not used") from None
