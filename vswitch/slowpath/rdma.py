# SPDX-License-Identifier: Apache-2.0
"""The RDMA ports of this host, their GIDs and their health, through pyverbs. Nothing here sends or receives."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

NO_DEVICE = "there is no RDMA device"
_SYSFS = Path("/sys/class/infiniband")
_INTERFACE_ID = (1 << 64) - 1


class GidKind(StrEnum):
    """What a GID is good for: enum ibv_gid_type."""

    IB = "ib"
    ROCE_V1 = "roce-v1"
    ROCE_V2 = "roce-v2"


@dataclass(frozen=True, slots=True)
class Gid:
    """An entry of a port's GID table."""

    index: int
    address: IPv6Address
    kind: GidKind


@dataclass(frozen=True, slots=True)
class DevicePort:
    """A port of an RDMA device. `mtu` is the payload of a packet in bytes; `state` as ibv_devinfo calls it."""

    device: str
    port: int
    active: bool
    state: str
    ethernet: bool
    mtu: int
    gids: tuple[Gid, ...]

    @property
    def label(self) -> str:
        """The port for people: rxe0/1."""
        return f"{self.device}/{self.port}"


@dataclass(frozen=True, slots=True)
class Discovery:
    """The ports that can be used, and one line on each thing that cannot."""

    ports: tuple[DevicePort, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def why_none(self) -> str:
        """Why there is no port; "": there is one."""
        return "" if self.ports else "; ".join(self.problems)


class Verbs:
    """The parts of pyverbs that are used; tests have others. Raises ImportError."""

    def __init__(self) -> None:
        self.device: Any = importlib.import_module("pyverbs.device")
        self.enums: Any = importlib.import_module("pyverbs.enums")
        self.error: type[Exception] = importlib.import_module("pyverbs.pyverbs_error").PyverbsError


def discover(load: Callable[[], Any] = Verbs, sysfs: Path = _SYSFS) -> Discovery:
    """Looks at all devices; each is open for no longer than that, so that it can be taken away at any time."""
    try:
        verbs = load()
    except ImportError as error:
        return Discovery(problems=(f"pyverbs cannot be imported ({error}): install python3-pyverbs",))
    try:
        names = sorted(device.name.decode() for device in verbs.device.get_device_list())
    except verbs.error:
        names = []  # the kernel has no RDMA at all
    ports: list[DevicePort] = []
    problems: list[str] = []
    for name in names:
        try:
            with verbs.device.Context(name=name) as context:
                ports += _ports(verbs, name, context)
        except verbs.error as error:
            problems.append(f"{name} cannot be used: {_reason(error)}")
    if not ports and not problems:
        problems.append(_why_no_device(sysfs))
    return Discovery(tuple(ports), tuple(problems))


def _ports(verbs: Any, name: str, context: Any) -> list[DevicePort]:
    enums = verbs.enums
    kinds = {
        enums.IBV_GID_TYPE_IB: GidKind.IB,
        enums.IBV_GID_TYPE_ROCE_V1: GidKind.ROCE_V1,
        enums.IBV_GID_TYPE_ROCE_V2: GidKind.ROCE_V2,
    }
    attributes = {number: context.query_port(number) for number in range(1, context.query_device().phys_port_cnt + 1)}
    table = context.query_gid_table(max(1, sum(port.gid_tbl_len for port in attributes.values())))
    found = []
    for number, port in attributes.items():
        gids = [
            Gid(entry.gid_index, IPv6Address(entry.gid_str()), kinds[entry.gid_type])
            for entry in table
            if entry.port_num == number
        ]
        found.append(
            DevicePort(
                device=name,
                port=number,
                active=port.state == enums.IBV_PORT_ACTIVE,
                state=verbs.device.port_state_to_str(port.state),
                ethernet=port.link_layer == enums.IBV_LINK_LAYER_ETHERNET,
                mtu=128 << port.active_mtu,  # enum ibv_mtu: 1 is 256
                gids=tuple(gid for gid in gids if int(gid.address) & _INTERFACE_ID),
            )
        )
    return found


def _reason(error: Exception) -> str:
    number = getattr(error, "error_code", -1)
    if number < 0:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    hint = ": ffswitchd needs rights to /dev/infiniband" if number in (1, 13) else ""
    return os.strerror(number) + hint


def _why_no_device(sysfs: Path) -> str:
    devices = sorted(path.name for path in sysfs.glob("*"))
    if devices:
        return f"{', '.join(devices)} cannot be reached from user space: modprobe ib_uverbs"
    return NO_DEVICE


def gid_text(gid: IPv6Address) -> str:
    """A GID as people know it: an IPv4 address where it was made of one."""
    return str(gid.ipv4_mapped or gid)
