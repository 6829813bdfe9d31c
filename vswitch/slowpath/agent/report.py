# SPDX-License-Identifier: Apache-2.0
"""A port of the switch in the controller's words. No I/O."""

from __future__ import annotations

from ipaddress import ip_address

from controller.model import Endpoint, PortType
from vswitch.slowpath.ports import default_mac
from vswitch.slowpath.types import PortConfig
from vswitch.slowpath.types import PortType as SwitchPortType

UNCONTROLLED = "default"  # the network of ports that no controller has a say in

_TYPES = {
    SwitchPortType.VHOST_USER: PortType.VHOST_USER,
    SwitchPortType.PMD: PortType.PMD,
    SwitchPortType.PACKET: PortType.PMD,  # as far as paths go, it is one
    SwitchPortType.FF: PortType.FF,
}


def is_endpoint(config: PortConfig) -> bool:
    """Whether a port is to be an endpoint: it was put in a network."""
    return config.type in _TYPES and config.network != UNCONTROLLED and not config.uplink


def asked_for(config: PortConfig) -> Endpoint:
    """What the user asked for. What was left out is the controller's to give, a MAC made from the name included."""
    mac = "" if config.mac == default_mac(config.name) else config.mac
    labels = tuple(sorted((key, value) for key, _, value in (label.partition("=") for label in config.labels)))
    return Endpoint(
        name=config.name,
        network=config.network,
        mac=mac,
        ips=tuple(ip_address(ip) for ip in config.ips),
        trust_domain=config.trust_domain,
        port=config.name,
        port_type=_TYPES[config.type],
        labels=labels,
    )
