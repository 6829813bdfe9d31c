# SPDX-License-Identifier: Apache-2.0
"""Reading the parameters of a request."""

from __future__ import annotations

import math

from vswitch.slowpath.errors import BadParams
from vswitch.slowpath.ports import port_name
from vswitch.slowpath.rpc import Params
from vswitch.slowpath.switch import PortEntry, Switch


def number(key: str, value: object, low: float, high: float) -> float:
    """A number from `low` to `high`, as JSON's number or as text, or BadParams."""
    try:
        result = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        result = math.nan
    if not low <= result <= high:
        raise BadParams(f"{key}: {str(value)[:60]!r} is not a number from {low:g} to {high:g}")
    return result


def flag(params: Params, key: str) -> bool:
    """A boolean, False by default, or BadParams."""
    value = params.get(key, False)
    if not isinstance(value, bool):
        raise BadParams(f"{key}: {str(value)[:60]!r} is neither true nor false")
    return value


def entry_of(switch: Switch, params: Params, key: str) -> PortEntry:
    """The port that `key` names; BadParams when it names none, SwitchError when there is no such port."""
    if params.get(key) is None:
        raise BadParams(f"{key} is missing: a port's name")
    return switch.port(port_name(key, params[key]))


def optional_entry(switch: Switch, params: Params) -> PortEntry | None:
    """The port that "port" names, None when it is not there."""
    return entry_of(switch, params, "port") if params.get("port") is not None else None
