# SPDX-License-Identifier: Apache-2.0
"""The words of the shortcuts: containers, shortcuts, rules, and what the core wants done."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Peer:
    """A running container; `sid` is never used twice."""

    sid: int
    port: int
    name: str
    regions: int = 1
    tx_queues: int = 1
    ring_size: int = 256


class Rules(Protocol):
    """What may be, as of now. Ports by id; each answer "" when it may, else why not, in a few words."""

    def refuses(self, sender: int, receiver: int, mac: bytes, *, new: bool) -> str:
        """Whether frames for `mac` may go from one port to the other by a shortcut; `new`: by one not there yet."""

    def hides(self, owner: int, holder: int) -> str:
        """Whether one port's container may map the other's memory."""

    def read_only(self, owner: int, holder: int) -> bool:
        """Whether it maps it for reading only."""

    def max_len(self, sender: int, receiver: int) -> int:
        """Bytes of the longest frame."""

    def quota(self, port: int) -> int:
        """How many shortcuts a port may have, each way."""


class Stage(Enum):
    """How far a shortcut is."""

    MAPPING = auto()  # the receiver is told to map the sender's regions
    SHARING = auto()  # both are told to map the rings
    OPEN = auto()
    CLOSED = auto()  # it ends; who was asked to map it has still to answer
    LEAVING = auto()  # the sender is told to leave it
    EMPTYING = auto()  # the receiver is told to give everything back
    HELD = auto()  # the receiver is dead, and others may hold what it had passed on
    RECLAIMING = auto()  # the sender takes back the rest
    FREE = auto()

    @property
    def label(self) -> str:
        """As people see it."""
        return self.name.lower()

    @property
    def ending(self) -> bool:
        """Whether it carries nothing any more."""
        return self.value >= Stage.CLOSED.value


@dataclass(eq=False, slots=True)
class Cut:
    """A shortcut; `epoch` is its name."""

    epoch: int
    sender: Peer
    receiver: Peer
    mac: bytes
    out_number: int
    in_number: int
    max_len: int
    since: float
    took: float = 0.0  # seconds from wish to open
    stage: Stage = Stage.MAPPING
    ends: str = ""  # why it ends
    waits: set[int] = field(default_factory=set)  # serials of the answers that the stage waits for
    told: set[int] = field(default_factory=set)  # sids that have its rings, or are about to
    granted: set[int] = field(default_factory=set)  # sids whose regions the sender passes on through it
    opened: bool = False
    moved: float = 0.0  # when anything went through, last
    counts: tuple[int, int] = (0, 0)


# ---- commands ------------------------------------------------------------------


class What(Enum):
    """What a container is asked."""

    NEIGHBOUR = auto()
    UNMAP = auto()
    SHORTCUT = auto()
    DROP = auto()
    RECLAIM = auto()


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask a container; `owner` and `region` name memory, `cut` a shortcut."""

    sid: int
    serial: int
    what: What
    cut: Cut | None = None
    owner: int = 0
    region: int = 0
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """Tell a sender that the receiver of `cut` has mapped the regions of `owner` too."""

    cut: Cut
    owner: int


@dataclass(frozen=True, slots=True)
class MakeRings:
    """Before anybody is asked to map them. When it fails: `failed`."""

    cut: Cut


@dataclass(frozen=True, slots=True)
class Open:
    """Tell the fast path. When it fails: `failed`."""

    cut: Cut


@dataclass(frozen=True, slots=True)
class Close:
    """Tell the fast path."""

    cut: Cut


@dataclass(frozen=True, slots=True)
class Free:
    """Tell the fast path of an opened one; its rings go."""

    cut: Cut


@dataclass(frozen=True, slots=True)
class Release:
    """Nobody has the regions of this container mapped any more, and it is gone."""

    sid: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """A container that asked to stop has nothing out and holds nothing."""

    sid: int


@dataclass(frozen=True, slots=True)
class Disconnect:
    """This container does not do as it is asked."""

    sid: int
    why: str


@dataclass(frozen=True, slots=True)
class Notice:
    """For the log."""

    text: str
    warning: bool = False


Command = Ask | Grant | MakeRings | Open | Close | Free | Release | Stopped | Disconnect | Notice
