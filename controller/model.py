# SPDX-License-Identifier: Apache-2.0
"""What the controller knows: hosts, networks, endpoints, trust domains and policies.

Every object is frozen and is found by its kind and name. `codec.to_json` and `codec.from_json` write and read them;
what concerns several objects (references, overlaps) is in `checks`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv6Network

from controller.codec import FieldError
from controller.scalars import (
    Address,
    Count,
    Excluded,
    Gid,
    Labels,
    Line,
    Mac,
    Mtu,
    Name,
    NameOrNone,
    PortName,
    PortNumber,
    Ports,
    Priority,
    Protocol,
    Seconds,
    Subnet,
    Vni,
    Word,
    protocol_name,
)

_WITH_PORTS = frozenset({6, 17, 132})  # TCP, UDP, SCTP
IPV6_MTU_MIN = 1280  # RFC 8200 section 5


class Path(StrEnum):
    """How packets get from one endpoint to another, from the best to no way at all."""

    ZERO_COPY = "zero-copy"
    SHM_STREAM = "shm-stream"
    SWITCHED = "switched"
    RDMA = "rdma"
    VXLAN = "vxlan"
    DENIED = "denied"  # a policy forbids it
    NONE = "none"  # there is no way


SHARED_MEMORY = frozenset({Path.ZERO_COPY, Path.SHM_STREAM})
LOCAL_PATHS = (Path.ZERO_COPY, Path.SHM_STREAM, Path.SWITCHED)  # best first
REMOTE_PATHS = (Path.RDMA, Path.VXLAN)  # best first
USABLE_PATHS = frozenset(LOCAL_PATHS + REMOTE_PATHS)


class HostState(StrEnum):
    """Whether the controller hears the host's agent."""

    UP = "up"
    LOST = "lost"


class Feature(StrEnum):
    """What a host's ffswitchd can do beyond switching."""

    FF_PORTS = "ff-ports"  # memory ports and their shortcuts
    SOCKETS = "sockets"  # pairing of sockets under libffsock


class PortType(StrEnum):
    """How an endpoint is attached to its switch."""

    VHOST_USER = "vhost-user"
    PMD = "pmd"
    FF = "ff"


class LinkLayer(StrEnum):
    """What an RDMA port is on, as ibv_port_attr's link_layer says."""

    INFINIBAND = "infiniband"
    ETHERNET = "ethernet"


class GidType(StrEnum):
    """What a GID is good for, as the kernel's gid_attrs/types say."""

    IB_ROCE_V1 = "ib-roce-v1"
    ROCE_V2 = "roce-v2"


class RdmaState(StrEnum):
    """The states of an RDMA port that matter here."""

    ACTIVE = "active"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Uplink:
    """A port of the switch on the underlay. `speed` is in Mb/s, 0 when it is not known; `mtu` in bytes of IP packet."""

    name: PortName
    ips: tuple[Address, ...] = ()
    mtu: Mtu = 1500
    speed: Count = 0


@dataclass(frozen=True, slots=True)
class RdmaPort:
    """One GID of one port of an RDMA device."""

    device: Word
    port: PortNumber
    gid: Gid
    link_layer: LinkLayer
    gid_type: GidType
    state: RdmaState = RdmaState.ACTIVE
    mtu: Mtu = 1024

    def check(self) -> None:
        """Raise FieldError when the fields do not go together."""
        if self.link_layer is LinkLayer.INFINIBAND and self.gid_type is GidType.ROCE_V2:
            raise FieldError(("gid_type",), "RoCE runs on Ethernet: an infiniband port has ib-roce-v1 GIDs only")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a host's agent reports that its host can do. `memory` is in bytes; `no_rdma` says why `rdma` is empty."""

    cores: Count = 0
    memory: Count = 0
    uplinks: tuple[Uplink, ...] = ()
    rdma: tuple[RdmaPort, ...] = ()
    no_rdma: Line = ""
    pmds: frozenset[Word] = frozenset()
    features: frozenset[Feature] = frozenset()


@dataclass(frozen=True, slots=True)
class Host:
    """A machine that runs one ffswitchd. `since` is when `state` began; `epoch` grows each time that the host comes up.

    One that is `agentless`, a foreign tunnel end, is what its manifest says, and is never lost.
    """

    name: Name
    capabilities: Capabilities = Capabilities()
    state: HostState = HostState.UP
    since: Seconds = 0.0
    epoch: Count = 0
    agentless: bool = False

    def check(self) -> None:
        """Raise FieldError when the fields do not go together."""
        if self.agentless and self.state is HostState.LOST:
            raise FieldError(("state",), "a host without an agent is never lost: leave it out")


@dataclass(frozen=True, slots=True)
class Network:
    """One overlay L2 segment. `mtu` is what its interfaces are set to; `excluded` is never allocated."""

    name: Name
    vni: Vni
    subnets: tuple[Subnet, ...] = ()
    gateways: tuple[Address, ...] = ()
    excluded: tuple[Excluded, ...] = ()
    mtu: Mtu = 1500

    def check(self) -> None:
        """Raise FieldError when the fields do not go together."""
        for (number, one), (other_number, other) in itertools.combinations(enumerate(self.subnets), 2):
            if one.version == other.version and one.overlaps(other):
                raise FieldError(("subnets", other_number), f"{other} overlaps subnets[{number}], {one}")
        for number, gateway in enumerate(self.gateways):
            if not any(gateway in subnet for subnet in self.subnets):
                raise FieldError(("gateways", number), f"{gateway} is in none of the network's subnets")
            if any(gateway.version == other.version for other in self.gateways[:number]):
                raise FieldError(("gateways", number), f"a second IPv{gateway.version} gateway: one of each family")
        for number, excluded in enumerate(self.excluded):
            if not any(excluded.first in subnet and excluded.last in subnet for subnet in self.subnets):
                raise FieldError(("excluded", number), f"{excluded} is not within one of the network's subnets")
        if self.mtu < IPV6_MTU_MIN and any(isinstance(subnet, IPv6Network) for subnet in self.subnets):
            raise FieldError(("mtu",), f"{self.mtu} is too small for IPv6, which takes {IPV6_MTU_MIN}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A container's interface. An empty host or port: not placed yet; an empty MAC: not given one yet.

    `generation` grows with each change, so that a report about an older one can be told from a new one.
    """

    name: Name
    network: Name
    mac: Mac = ""
    ips: tuple[Address, ...] = ()
    trust_domain: NameOrNone = ""
    host: NameOrNone = ""
    port: PortName = ""
    port_type: PortType = PortType.VHOST_USER
    labels: Labels = ()
    generation: Count = 0


class TrustMode(StrEnum):
    """How the receiver of a shortcut maps its sender's memory."""

    READ_WRITE = "read-write"
    READ_ONLY = "read-only"


@dataclass(frozen=True, slots=True)
class TrustDomain:
    """A label; endpoints that share it may share memory."""

    name: Name
    mode: TrustMode = TrustMode.READ_WRITE


class Action(StrEnum):
    """What a policy does with what it matches."""

    ALLOW = "allow"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Selector:
    """Which endpoints are meant: those that fit every field that is given; none given: all of them.

    A list is fitted by any of its names, `labels` by having every one of them.
    """

    networks: frozenset[Name] = frozenset()
    trust_domains: frozenset[Name] = frozenset()
    endpoints: frozenset[Name] = frozenset()
    labels: Labels = ()


@dataclass(frozen=True, slots=True)
class L4Match:
    """A protocol and, where it has ports, the destination ports of whoever opens; no ports: all of them."""

    protocol: Protocol
    ports: tuple[Ports, ...] = ()

    def check(self) -> None:
        """Raise FieldError when the fields do not go together."""
        if self.ports and self.protocol not in _WITH_PORTS:
            raise FieldError(("ports",), f"protocol {protocol_name(self.protocol)} has no ports: leave them out")


@dataclass(frozen=True, slots=True)
class Policy:
    """Whether what `source` opens to `destination` is let through, and by which paths. Higher priorities go first.

    No `l4` means every protocol. `paths`, of an allowing policy, are the only paths that the pairs it matches may use.
    """

    name: Name
    action: Action
    priority: Priority = 100
    source: Selector = field(default=Selector(), metadata={"json": "from"})
    destination: Selector = field(default=Selector(), metadata={"json": "to"})
    l4: tuple[L4Match, ...] = ()
    paths: frozenset[Path] | None = None

    def check(self) -> None:
        """Raise FieldError when the fields do not go together."""
        if self.paths is None:
            return
        if self.action is Action.DENY:
            raise FieldError(("paths",), "a policy that denies leaves no path: leave it out, or say action: allow")
        if self.l4:
            raise FieldError(("paths",), "a path is chosen for a pair, not for a port: leave out paths or l4")
        if not self.paths or not self.paths <= USABLE_PATHS:
            raise FieldError(("paths",), f"at least one of {', '.join(LOCAL_PATHS + REMOTE_PATHS)}, and nothing else")


class Kind(StrEnum):
    """The kinds of objects, as manifests call them."""

    TRUST_DOMAIN = "TrustDomain"
    NETWORK = "Network"
    HOST = "Host"
    POLICY = "Policy"
    ENDPOINT = "Endpoint"

    # Enum's own hash is a Python function, and every index of the controller is keyed by kinds.
    __hash__ = str.__hash__


Object = TrustDomain | Network | Host | Policy | Endpoint
Key = tuple[Kind, str]
CLASSES: dict[Kind, type[Object]] = {
    Kind.TRUST_DOMAIN: TrustDomain,
    Kind.NETWORK: Network,
    Kind.HOST: Host,
    Kind.POLICY: Policy,
    Kind.ENDPOINT: Endpoint,
}
_KINDS = {cls: kind for kind, cls in CLASSES.items()}


def kind_of(item: Object) -> Kind:
    """The kind of an object."""
    return _KINDS[type(item)]


def key_of(item: Object) -> Key:
    """What an object is found by."""
    return _KINDS[type(item)], item.name
