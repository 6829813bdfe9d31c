# SPDX-License-Identifier: Apache-2.0
"""What this host can do, as the controller is told."""

from __future__ import annotations

import os
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_interface
from pathlib import Path

from controller.model import Capabilities, Feature, GidType, LinkLayer, RdmaPort, RdmaState, Uplink
from vswitch.slowpath import drivers
from vswitch.slowpath.uplinks import UplinkView

INFINIBAND = Path("/sys/class/infiniband")
_GID_TYPES = {"IB/RoCE v1": GidType.IB_ROCE_V1, "RoCE v2": GidType.ROCE_V2}
_RDMA_MTU = 1024  # IB_MTU_1024, what every port can do; sysfs does not say more


def capabilities(uplinks: Iterable[UplinkView]) -> Capabilities:
    """Cores, memory, uplinks, drivers and RDMA ports as they are now."""
    try:
        pmds = frozenset(driver.name for driver in drivers.load_drivers())
    except drivers.DevargsError:
        pmds = frozenset()
    return Capabilities(
        cores=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        uplinks=tuple(uplink(view) for view in uplinks),
        rdma=rdma_ports(),
        pmds=pmds,
        features=frozenset({Feature.FF_PORTS}),
    )


def uplink(view: UplinkView) -> Uplink:
    """An uplink in the controller's words."""
    return Uplink(view.name, tuple(ip_interface(ip).ip for ip in view.ips), view.mtu, view.speed)


def rdma_ports(sysfs: Path = INFINIBAND) -> tuple[RdmaPort, ...]:
    """One entry for each GID of each RDMA port, from sysfs."""
    found: dict[RdmaPort, None] = {}
    for port in sorted(sysfs.glob("*/ports/*")):
        for gid in sorted(port.glob("gids/*"), key=lambda path: int(path.name)):
            try:
                entry = _rdma_port(port, gid.name)
            except (OSError, ValueError):
                continue  # sysfs refuses to show the type of a GID that is not set
            if entry is not None:
                found[entry] = None
    return tuple(found)


def _rdma_port(port: Path, index: str) -> RdmaPort | None:
    gid = IPv6Address((port / "gids" / index).read_text().strip())
    if gid.is_unspecified or int(gid) & (2**64 - 1) == 0:
        return None
    kind = _GID_TYPES.get((port / "gid_attrs" / "types" / index).read_text().strip())
    if kind is None:
        return None
    active = "ACTIVE" in (port / "state").read_text()
    return RdmaPort(
        device=port.parents[1].name,
        port=int(port.name),
        gid=gid,
        link_layer=LinkLayer((port / "link_layer").read_text().strip().lower()),
        gid_type=kind,
        state=RdmaState.ACTIVE if active else RdmaState.DOWN,
        mtu=_RDMA_MTU,
    )
