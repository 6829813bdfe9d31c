# SPDX-License-Identifier: Apache-2.0
"""The forwarding database: which address was seen behind which port.

Learning with ageing, a quota per port and move detection. Nothing here looks
at the clock: an entry changes only in a call that is told the time.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from ipaddress import ip_address
from typing import Final, NamedTuple

from vswitch.slowpath.types import FdbEntry

MOVES_MAX: Final = 4  # this many moves ...
MOVES_WINDOW: Final = 10.0  # ... within so many seconds hold the address where it is ...
HOLD_TIME: Final = 10.0  # ... for so many seconds
IPS_MAX: Final = 8

NO_MAC: Final = bytes(6)


class Segment(NamedTuple):
    """A VLAN of a network: as far as a broadcast goes."""

    network: str
    vlan: int


class Station(NamedTuple):
    """An address in a segment: what the database is keyed by."""

    segment: Segment
    mac: bytes


class Admission(Enum):
    """What a frame's source address means to the database."""

    KNOWN = auto()  # it is where it was
    NEW = auto()
    MOVE = auto()
    HELD = auto()  # it moved too often: elsewhere than on its port its frames are dropped
    QUOTA = auto()  # the port has as many addresses as it may
    STATIC = auto()  # told by the user, here or elsewhere
    NONE = auto()  # all-zero: nobody's address

    @property
    def changes(self) -> bool:
        """Whether learning would change where the address is."""
        return self in (Admission.NEW, Admission.MOVE)


@dataclass(slots=True, eq=False)
class _Entry:
    station: Station
    port: int
    learned: float
    seen: float
    static: bool = False
    moves: int = 0
    recent_moves: tuple[float, ...] = ()  # when, the last MOVES_MAX, oldest first
    held_until: float = 0.0  # not 0: held, until release_holds() says otherwise
    ips: tuple[bytes, ...] = ()  # oldest first


class Fdb:
    """(segment, MAC) → port, with the IP addresses seen behind each MAC."""

    def __init__(self, mac_age: float) -> None:
        self.mac_age = mac_age
        self._entries: dict[Station, _Entry] = {}
        self._by_port: dict[int, dict[Station, None]] = {}
        self._learned_on: dict[int, int] = {}  # entries that count against the quota
        # (seen when pushed, tie break, entry): looked at again when that would be too old, so
        # refreshing an entry costs nothing and expiring one O(log n).
        self._by_age: list[tuple[float, int, _Entry]] = []
        self._pushes = 0
        self._holds: deque[_Entry] = deque()  # in the order in which they end: all last as long

    def __len__(self) -> int:
        return len(self._entries)

    def port_of(self, station: Station) -> int | None:
        """The port behind which a station is, None when nobody knows."""
        entry = self._entries.get(station)
        return entry.port if entry else None

    def is_static(self, station: Station) -> bool:
        """Whether the user put it there."""
        entry = self._entries.get(station)
        return entry is not None and entry.static

    def on_port(self, port: int) -> Sequence[Station]:
        """The stations behind a port."""
        return tuple(self._by_port.get(port, ()))

    def learned_on(self, port: int) -> int:
        """How many addresses a port has learned, static ones not counted."""
        return self._learned_on.get(port, 0)

    def admission(self, station: Station, port: int, quota: int) -> Admission:
        """What learn() would find; pure."""
        entry = self._entries.get(station)
        if entry is None:
            if station.mac == NO_MAC:
                return Admission.NONE
            return Admission.NEW if self.learned_on(port) < quota else Admission.QUOTA
        if entry.static:
            return Admission.STATIC
        if entry.port == port:
            return Admission.KNOWN
        if entry.held_until:
            return Admission.HELD
        return Admission.MOVE if self.learned_on(port) < quota else Admission.QUOTA

    def learn(self, station: Station, port: int, quota: int, now: float) -> Admission:
        """Learns where a station is, as far as it may; a move too many starts a hold."""
        admission = self.admission(station, port, quota)
        if admission is Admission.NEW:
            self._insert(_Entry(station, port, learned=now, seen=now))
        elif admission is Admission.MOVE:
            self._move(self._entries[station], port, now)
        elif admission is Admission.KNOWN:
            self._entries[station].seen = now
        return admission

    def learn_ip(self, station: Station, port: int, ip: bytes, authoritative: bool) -> None:
        """Notes an IP (4 or 16 bytes) behind a station on this port.

        ARP and neighbour discovery are authoritative: with IPS_MAX known they push
        out the oldest, where an address seen in passing is let go.
        """
        entry = self._entries.get(station)
        if entry is None or entry.port != port or ip in entry.ips or not _is_unicast(ip):
            return
        if len(entry.ips) < IPS_MAX or authoritative:
            entry.ips = (*entry.ips, ip)[-IPS_MAX:]

    def refresh(self, station: Station, port: int, seen: float) -> None:
        """Says that a station was heard on a port at some time; no news if it is elsewhere."""
        entry = self._entries.get(station)
        if entry is not None and entry.port == port and seen > entry.seen:
            entry.seen = seen

    def add_static(self, station: Station, port: int, now: float) -> None:
        """Puts a station behind a port for good; what was learned of it is forgotten."""
        self.remove(station)
        self._insert(_Entry(station, port, learned=now, seen=now, static=True))

    def remove(self, station: Station) -> bool:
        """Forgets a station, static or not; whether it was known."""
        entry = self._entries.pop(station, None)
        if entry is None:
            return False
        self._detach(entry)
        return True

    def expire(self, now: float) -> list[Station]:
        """Forgets the stations not heard for mac_age seconds, and returns them."""
        expired = []
        while self._by_age and self._by_age[0][0] + self.mac_age <= now:
            entry = heapq.heappop(self._by_age)[2]
            if self._entries.get(entry.station) is not entry:
                continue
            if entry.seen + self.mac_age <= now:
                self.remove(entry.station)
                expired.append(entry.station)
            else:
                self._push_age(entry)
        return expired

    def release_holds(self, now: float) -> list[Station]:
        """Ends the holds that have lasted long enough, and returns their stations."""
        released = []
        while self._holds and self._holds[0].held_until <= now:
            entry = self._holds.popleft()
            entry.held_until = 0.0
            if self._entries.get(entry.station) is entry:
                released.append(entry.station)
        return released

    def entry(self, station: Station) -> FdbEntry | None:
        """What is known of a station."""
        entry = self._entries.get(station)
        return _view(entry) if entry else None

    def entries(self) -> list[FdbEntry]:
        """Everything known, by VLAN and MAC."""
        return [_view(self._entries[station]) for station in sorted(self._entries)]

    def copy(self) -> Fdb:
        """An independent copy."""
        copy = Fdb(self.mac_age)
        clones = {id(entry): replace(entry) for entry in self._entries.values()}
        for entry in clones.values():
            copy._insert(entry)
        copy._holds.extend(clones[id(entry)] for entry in self._holds if id(entry) in clones)
        return copy

    def _insert(self, entry: _Entry) -> None:
        self._entries[entry.station] = entry
        self._attach(entry)
        if not entry.static:
            self._push_age(entry)

    def _move(self, entry: _Entry, port: int, now: float) -> None:
        self._detach(entry)
        entry.port = port
        entry.seen = now
        entry.moves += 1
        entry.recent_moves = (*entry.recent_moves, now)[-MOVES_MAX:]
        self._attach(entry)
        if len(entry.recent_moves) == MOVES_MAX and now - entry.recent_moves[0] <= MOVES_WINDOW:
            entry.held_until = now + HOLD_TIME
            self._holds.append(entry)

    def _attach(self, entry: _Entry) -> None:
        self._by_port.setdefault(entry.port, {})[entry.station] = None
        if not entry.static:
            self._learned_on[entry.port] = self.learned_on(entry.port) + 1

    def _detach(self, entry: _Entry) -> None:
        del self._by_port[entry.port][entry.station]
        if not entry.static:
            self._learned_on[entry.port] -= 1

    def _push_age(self, entry: _Entry) -> None:
        self._pushes += 1
        heapq.heappush(self._by_age, (entry.seen, self._pushes, entry))


def _is_unicast(ip: bytes) -> bool:
    """Whether one host can own the address (RFC 1122 section 3.2.1.3, RFC 4291 section 2.4)."""
    if len(ip) == 4:
        return 0 < ip[0] < 224 and ip[0] != 127
    return ip[0] != 0xFF and int.from_bytes(ip) > 1  # neither multicast, :: nor ::1


def _view(entry: _Entry) -> FdbEntry:
    return FdbEntry(
        network=entry.station.segment.network,
        vlan=entry.station.segment.vlan,
        mac=entry.station.mac,
        port=entry.port,
        learned=entry.learned,
        last_seen=entry.seen,
        moves=entry.moves,
        held_until=entry.held_until,
        static=entry.static,
        ips=tuple(str(ip_address(ip)) for ip in entry.ips),
    )
