# SPDX-License-Identifier: Apache-2.0
"""The words that the slow path's parts share: ports, keys, actions, commands.

Only plain data and no I/O. `Key` mirrors `struct ff_key` of ff_packet.h field by
field; everything that crosses to C is converted in `fastpath.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import NamedTuple


class Drop(IntEnum):
    """`enum ff_drop` of ff_packet.h; `label` is the name that people see."""

    NONE = 0
    TOO_SHORT = 1
    OVERSIZE = 2
    SRC_MULTICAST = 3
    MALFORMED_VLAN = 4
    MALFORMED_ARP = 5
    MALFORMED_IPV4 = 6
    MALFORMED_IPV6 = 7
    MALFORMED_TCP = 8
    MALFORMED_UDP = 9
    MALFORMED_ICMP = 10
    BAD_OFFLOAD = 11
    POLICY = 12
    VLAN = 13
    RESERVED_MAC = 14
    SAME_PORT = 15
    NO_DEST = 16
    MOVE_HOLD = 17
    MAC_QUOTA = 18
    SPOOFED = 19
    DENIED = 20
    ANSWERED = 21
    NO_ENDPOINT = 22
    NOT_TUNNEL = 23
    TUNNEL_MTU = 24
    TUNNEL_MALFORMED = 25
    TUNNEL_VNI = 26
    TUNNEL_PEER = 27
    TUNNEL_ECN = 28
    RDMA_MALFORMED = 29
    RDMA_EPOCH = 30
    RDMA_OVERSIZE = 31
    UPCALL_BUDGET = 32
    UPCALL_FULL = 33
    NO_COPY = 34
    PORT_GONE = 35
    PORT_DOWN = 36
    RING_FULL = 37
    TX_OVERSIZE = 38
    TUNNEL_DOWN = 39

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", "-")


class Key(NamedTuple):
    """What the parser found in a frame (or, as a mask, which bits of it matter).

    MAC and IP addresses are bytes (6 and 16; IPv4 in the first four of 16);
    numbers are host order here, whatever they are in C.
    """

    eth_dst: bytes = bytes(6)
    eth_src: bytes = bytes(6)
    eth_type: int = 0
    in_port: int = 0
    vlan_tpid: tuple[int, int] = (0, 0)
    vlan_tci: tuple[int, int] = (0, 0)
    ip_proto: int = 0
    ip_tos: int = 0
    ip_frag: int = 0
    tcp_flags: int = 0
    l4_src: int = 0
    l4_dst: int = 0
    ip_src: bytes = bytes(16)
    ip_dst: bytes = bytes(16)


# A mask: every bit of every field matters.
EXACT = Key(
    eth_dst=b"\xff" * 6,
    eth_src=b"\xff" * 6,
    eth_type=0xFFFF,
    in_port=0xFFFF,
    vlan_tpid=(0xFFFF, 0xFFFF),
    vlan_tci=(0xFFFF, 0xFFFF),
    ip_proto=0xFF,
    ip_tos=0xFF,
    ip_frag=0xFF,
    tcp_flags=0xFF,
    l4_src=0xFFFF,
    l4_dst=0xFFFF,
    ip_src=b"\xff" * 16,
    ip_dst=b"\xff" * 16,
)


class ActionType(IntEnum):
    """`enum ff_action_type` of ff.h."""

    OUTPUT = 1
    MIRROR = 2
    VLAN_PUSH = 3
    VLAN_POP = 4
    DROP = 5
    UPCALL = 6
    SET_TUNNEL = 7  # arg: the tunnel end, and perhaps TUNNEL_RDMA
    CHECK_LEN = 8


TUNNEL_RDMA = 0x8000  # the flow may take the tunnel end's RDMA peer while that is active


class Action(NamedTuple):
    """One `struct ff_action`; a packet's actions are a tuple of them, done in order."""

    type: ActionType
    arg: int = 0
    tpid: int = 0


class PortType(StrEnum):
    VHOST_USER = "vhost-user"
    PMD = "pmd"
    PACKET = "packet"  # a kernel interface that the kernel goes on using
    VXLAN = "vxlan"  # the other hosts of a network; made for the controller, not by users
    FF = "ff"  # a memory port
    RDMA = "rdma"  # a port of an RDMA device; other hosts are reached by it. Made like vxlan


class PortState(IntEnum):
    """`enum ff_port_state` of ff.h."""

    CONFIGURED = 0
    WAITING = 1
    NEGOTIATING = 2
    MEMORY_MAPPED = 3
    READY = 4
    LOST = 5

    @property
    def label(self) -> str:
        return "waiting-for-peer" if self is PortState.WAITING else self.name.lower().replace("_", "-")


@dataclass(frozen=True, slots=True)
class PortConfig:
    """What the user said of a port; what the state file keeps."""

    name: str
    type: PortType = PortType.VHOST_USER
    socket: str = ""  # vhost-user, ff: path of the socket
    role: str = "client"  # vhost-user: the switch's role, "client" or "server"
    devargs: str = ""  # pmd; packet: the interface's name, rdma: the device's
    vni: int = 0  # vxlan
    rdma_port: int = 1  # rdma: of the device
    gid_index: int = 0  # rdma: the GID by which others reach it
    mac: str = ""  # the MAC that the container is told to use; "" = none told
    ips: tuple[str, ...] = ()
    network: str = "default"
    trust_domain: str = ""
    labels: tuple[str, ...] = ()  # "key=value", for the controller's policies
    queues: int = 1
    mtu: int = 1500
    tag: int = 0  # access VLAN, 1..4094; 0: a trunk port
    trunks: tuple[int, ...] = ()  # trunk: VLANs carried; () = all
    native_vlan: int = 0  # trunk: the VLAN of untagged frames; 0: untagged is its own VLAN 0
    mirror: str = ""  # name of the port that gets a copy of what this one sends and receives
    mac_quota: int = 4096  # MACs that may be learned on this port
    upcall_budget: int = 512  # packets that may wait for a verdict at a time
    uplink: tuple[str, ...] = ()  # "192.0.2.1/24": this host's tunnel ends are behind the port, which bridges nothing
    uplink_gateway: tuple[str, ...] = ()  # the way to tunnel ends elsewhere, where no kernel knows one
    assigned_mac: str = ""  # what the controller gave, which goes before `mac` and `ips`
    assigned_ips: tuple[str, ...] = ()
    rxq_affinity: str = ""  # "QUEUE:WORKER,...": who polls these receive queues, whatever their load
    memory: str = "read-write"  # ff: how neighbours map this container's memory, or "read-only"
    shortcut_quota: int = 64  # ff: shortcuts that it may have, each way; 0: all that it sends goes through the switch

    @property
    def own_text(self) -> str:
        """What a port that the switch itself made comes and goes with; "": a user made it."""
        match self.type:
            case PortType.VXLAN:
                return f"with network {self.network}"
            case PortType.RDMA:
                return f"with RDMA device {self.devargs}"
        return ""


@dataclass(frozen=True, slots=True)
class Port:
    """A port as the decision core sees it."""

    id: int
    config: PortConfig
    up: bool  # PortState.READY


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow to install: packets with `key & mask` of theirs equal to `key` get `actions`."""

    key: Key
    mask: Key
    actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True)
class FlowStats:
    packets: int
    bytes: int
    last_used: float  # seconds of CLOCK_MONOTONIC, 0.0 = never


@dataclass(frozen=True, slots=True)
class Upcall:
    """A parked packet; `frame` is at least its first min(frame_len, 256) bytes."""

    id: int
    key: Key
    frame: bytes
    frame_len: int


# ---- tunnels -----------------------------------------------------------------

VXLAN_PORT = 4789  # RFC 7348 section 8.1


@dataclass(frozen=True, slots=True)
class Uplink:
    """This host's tunnel ends behind a port; packed addresses, b"" for none."""

    ip4: bytes = b""
    ip6: bytes = b""
    udp_port: int = VXLAN_PORT


@dataclass(frozen=True, slots=True)
class Remote:
    """A tunnel end on another host and the way to it; packed addresses of one family."""

    uplink: int  # port id
    local_ip: bytes
    remote_ip: bytes
    local_mac: bytes
    next_hop_mac: bytes = b""  # b"": not known yet
    udp_port: int = VXLAN_PORT
    checksum: bool = False  # fill in the outer UDP checksum (RFC 6936)


# ---- memory ports -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MemFile:
    """`struct ff_mem_file` of ff_memory.h: a piece of a file with a container's packet memory."""

    fd: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class MemConf:
    """`struct ff_mem_conf` of ff_memory.h: what a container and the switch share. Descriptors stay the caller's."""

    regions: tuple[MemFile, ...]
    first_region: int  # number of the first; the others follow
    rx_queues: int  # the container's
    tx_queues: int
    ring_size: int
    rings_fd: int
    table_fd: int
    kick_fds: tuple[int, ...]  # an eventfd for each of the container's transmit queues


@dataclass(frozen=True, slots=True)
class Shortcut:
    """`struct ff_shortcut` of ff_memory.h: a shortcut of one direction, between two ports."""

    sender: int  # port ids
    receiver: int
    out_number: int  # its number at the sender
    in_number: int  # and at the receiver
    epoch: int  # never 0, never used twice
    mac: bytes  # frames to this address take it
    max_len: int  # and no longer ones
    queues: int  # rings: the sender's transmit queues


# ---- RDMA ----------------------------------------------------------------------


class RdmaState(IntEnum):
    """`enum ff_rdma_state` of ff_rdma.h."""

    NEW = 0
    CONNECTED = 1
    ACTIVE = 2
    FAILED = 3


class RdmaChange(IntEnum):
    """`enum ff_rdma_change` of ff_rdma.h."""

    SETTLED = 0
    JOINING = 1
    LEAVING = 2


class RdmaWhat(IntEnum):
    """`enum ff_rdma_what` of ff_rdma.h."""

    FAILED = 1
    DRAINED = 2


@dataclass(frozen=True, slots=True)
class RdmaEnd:
    """What one end of a peer tells the other; `queue_pairs` are pairs of number and first PSN."""

    gid: bytes
    lid: int
    mtu: int
    credits: int
    queue_pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class RdmaStats:
    """`struct ff_rdma_stats` of ff_rdma.h."""

    tx_messages: int
    tx_bytes: int
    rx_messages: int
    rx_bytes: int
    no_credit: int
    no_room: int
    uncertain: int
    doorbells: int
    controls: int
    held: int
    unplanned: int


@dataclass(frozen=True, slots=True)
class RdmaPeer:
    """A peer as the fast path knows it; `remote` is one of the tunnel ends that it serves, 0: none."""

    state: RdmaState
    port_id: int
    remote: int
    queue_pairs: int
    epoch: int
    reason: str
    stats: RdmaStats


class RdmaEvent(NamedTuple):
    peer: int
    what: RdmaWhat


# ---- commands: what the core wants done, in this order --------------------


@dataclass(frozen=True, slots=True)
class AddFlow:
    """Install, or replace the actions of, a flow. `handle` is the core's own name for it."""

    handle: int
    flow: Flow


@dataclass(frozen=True, slots=True)
class DelFlow:
    handle: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The verdict for one upcall."""

    upcall_id: int
    actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True)
class SendFrame:
    """A frame of the switch's own, to a port; to a vxlan port, `remote` is the tunnel end."""

    port: int
    frame: bytes
    remote: int = 0


@dataclass(frozen=True, slots=True)
class UplinkFrame:
    """What an uplink received of ARP or neighbour discovery: for who resolves next hops there."""

    port: int
    frame: bytes


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should read in the log: a move, a quota reached."""

    text: str


Command = AddFlow | DelFlow | Finish | SendFrame | UplinkFrame | Notice


# ---- views, for the command line ------------------------------------------


@dataclass(frozen=True, slots=True)
class Decision:
    """What the core would do with a packet, and why.

    `mask` holds every bit that the decision looked at; `reasons` are sentences
    for people, in the order in which things were decided.
    """

    actions: tuple[Action, ...]
    mask: Key
    reasons: tuple[str, ...]
    drop: Drop = Drop.NONE
    floods: bool = False  # to all ports of the VLAN: a group, or nobody knows the destination


@dataclass(frozen=True, slots=True)
class FdbEntry:
    network: str
    vlan: int
    mac: bytes
    port: int
    learned: float  # CLOCK_MONOTONIC seconds
    last_seen: float
    moves: int = 0
    held_until: float = 0.0  # > now: moves are refused
    static: bool = False
    ips: tuple[str, ...] = field(default=())


class Suspect(NamedTuple):
    """A queue that may be wedged; receive and transmit are the front-end's."""

    port_id: int
    queue: int
    receive_unstarted: bool
    transmit_unstarted: bool
    accepted: int
    refused: int
