# SPDX-License-Identifier: Apache-2.0
"""VLANs (IEEE 802.1Q): which one a frame belongs to, and how it leaves a port."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto
from typing import NamedTuple, Self

from vswitch.slowpath.types import Action, ActionType, Key, PortConfig

VID_MASK = 0x0FFF
PCP_DEI_MASK = 0xF000
TPID_8021Q = 0x8100

_POP = Action(ActionType.VLAN_POP)


class Tag(NamedTuple):
    """The outer tag of a received frame; (0, 0): untagged."""

    tpid: int
    tci: int

    @classmethod
    def of(cls, key: Key) -> Self:
        """The outer tag in a key."""
        return cls(key.vlan_tpid[0], key.vlan_tci[0]) if key.vlan_tpid[0] else cls(0, 0)

    @property
    def vid(self) -> int:
        """0 for an untagged frame and for a priority tag, which names no VLAN (IEEE 802.1Q table 9-2)."""
        return self.tci & VID_MASK


class Egress(Enum):
    """The form in which a frame leaves a port."""

    AS_RECEIVED = auto()
    POPPED = auto()
    PUSHED = auto()  # with a tag that it did not come with; it replaces a priority tag


class VlanPolicy(NamedTuple):
    """The VLAN part of a port's configuration, ready to be asked."""

    tag: int  # access VLAN; 0: a trunk
    trunks: frozenset[int]  # trunk: VLANs carried besides the native one; empty: all
    native: int  # trunk: the VLAN of untagged frames

    @classmethod
    def of(cls, config: PortConfig) -> Self:
        """The policy that a port's configuration asks for."""
        return cls(config.tag, frozenset(config.trunks), config.native_vlan)

    def classify(self, tag: Tag) -> int | None:
        """The VLAN of a received frame; None: it may not enter here."""
        vid = tag.vid
        if vid == 0:
            return self.tag or self.native
        return vid if self.tag == 0 and self.carries(vid) else None

    def carries(self, vlan: int) -> bool:
        """Whether frames of the VLAN may leave (and, tagged or not, enter) here."""
        if self.tag:
            return vlan == self.tag
        if vlan == self.native:
            return True
        # VLAN 0 has no tag of its own: where untagged means another VLAN, there is no way to send it.
        return vlan != 0 and (not self.trunks or vlan in self.trunks)

    def egress(self, vlan: int, tag: Tag) -> Egress:
        """How a frame of a VLAN carried here, received with `tag`, leaves."""
        if self.tag:
            return Egress.POPPED if tag.tpid else Egress.AS_RECEIVED
        if vlan == self.native:
            # A priority tag stays: it says "native" too, keeps the priority, and taking it off could
            # bring up an inner tag of the sender's choice.
            return Egress.POPPED if tag.vid else Egress.AS_RECEIVED
        return Egress.AS_RECEIVED if tag.vid else Egress.PUSHED


def output_actions(vlan: int, tag: Tag, outputs: Iterable[tuple[int, VlanPolicy]]) -> tuple[Action, ...]:
    """Actions that send a frame of `vlan`, received with `tag`, to each (port id, policy).

    Ports that want the frame alike stand together, in the order given, so each
    tag is taken off or put on at most once.
    """
    ports: dict[Egress, list[Action]] = {form: [] for form in Egress}
    for port_id, policy in outputs:
        ports[policy.egress(vlan, tag)].append(Action(ActionType.OUTPUT, port_id))
    actions = ports[Egress.AS_RECEIVED]
    if ports[Egress.POPPED] or (ports[Egress.PUSHED] and tag.tpid):
        actions.append(_POP)
    actions += ports[Egress.POPPED]
    if ports[Egress.PUSHED]:
        tpid = tag.tpid or TPID_8021Q
        actions.append(Action(ActionType.VLAN_PUSH, (tag.tci & PCP_DEI_MASK) | vlan, tpid))
    actions += ports[Egress.PUSHED]
    return tuple(actions)
