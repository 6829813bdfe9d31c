# SPDX-License-Identifier: Apache-2.0
"""What this host can do, as the controller is told."""

from __future__ import annotations

import os
from collections.abc import Iterable
from ipaddress import ip_interface

from controller.model import Capabilities, Feature, GidType, LinkLayer, RdmaPort, RdmaState, Uplink
from vswitch.slowpath import drivers
from vswitch.slowpath.rdma import DevicePort, Discovery, Gid, GidKind
from vswitch.slowpath.uplinks import UplinkView


def capabilities(uplinks: Iterable[UplinkView], rdma: Discovery) -> Capabilities:
    """Cores, memory, uplinks, drivers and RDMA ports as they are now."""
    try:
        pmds = frozenset(driver.name for driver in drivers.load_drivers())
    except drivers.DevargsError:
        pmds = frozenset()
    return Capabilities(
        cores=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        uplinks=tuple(uplink(view) for view in uplinks),
        rdma=tuple(rdma_port(port, gid) for port in rdma.ports for gid in port.gids),
        no_rdma=rdma.why_none,
        pmds=pmds,
        features=frozenset({Feature.FF_PORTS}),
    )


def uplink(view: UplinkView) -> Uplink:
    """An uplink in the controller's words."""
    return Uplink(view.name, tuple(ip_interface(ip).ip for ip in view.ips), view.mtu, view.speed)


def rdma_port(port: DevicePort, gid: Gid) -> RdmaPort:
    """A GID of an RDMA port in the controller's words."""
    return RdmaPort(
        device=port.device,
        port=port.port,
        gid=gid.address,
        link_layer=LinkLayer.ETHERNET if port.ethernet else LinkLayer.INFINIBAND,
        gid_type=GidType.ROCE_V2 if gid.kind is GidKind.ROCE_V2 else GidType.IB_ROCE_V1,
        state=RdmaState.ACTIVE if port.active else RdmaState.DOWN,
        mtu=port.mtu,
    )
