# SPDX-License-Identifier: Apache-2.0
"""The forwarding database: learning, ageing, quotas, moves and IP addresses."""

from __future__ import annotations

import pytest

from vswitch.slowpath.learning import HOLD_TIME, IPS_MAX, MOVES_MAX, MOVES_WINDOW, Admission, Fdb, Segment, Station
from vswitch.slowpath.types import FdbEntry

QUOTA = 3


def station(n: int, vlan: int = 0) -> Station:
    return Station(Segment("default", vlan), bytes([2, 0, 0, 0, 0, n]))


S = station(1)


@pytest.fixture
def fdb() -> Fdb:
    return Fdb(mac_age=300.0)


def entry_of(fdb: Fdb, which: Station = S) -> FdbEntry:
    entry = fdb.entry(which)
    assert entry is not None
    return entry


def moved(fdb: Fdb, times: list[float]) -> None:
    """S is learned on port 1, then moves between ports 2 and 1."""
    fdb.learn(S, 1, QUOTA, 0.0)
    for i, now in enumerate(times):
        assert fdb.learn(S, 2 - i % 2, QUOTA, now) is Admission.MOVE


def test_learns_each_vlan_by_itself(fdb: Fdb) -> None:
    assert fdb.learn(S, 1, QUOTA, 5.0) is Admission.NEW
    assert fdb.learn(station(1, vlan=10), 2, QUOTA, 5.0) is Admission.NEW
    assert fdb.learn(S, 1, QUOTA, 6.0) is Admission.KNOWN
    assert (fdb.port_of(S), fdb.port_of(station(1, vlan=10)), fdb.port_of(station(1, vlan=20))) == (1, 2, None)
    assert (entry_of(fdb).learned, entry_of(fdb).last_seen) == (5.0, 6.0)


def test_zero_address_is_nobodys(fdb: Fdb) -> None:
    assert fdb.learn(Station(Segment("default", 0), bytes(6)), 1, QUOTA, 0.0) is Admission.NONE
    assert len(fdb) == 0


def test_ages_by_when_it_was_last_heard(fdb: Fdb) -> None:
    fdb.learn(S, 1, QUOTA, 0.0)
    fdb.learn(station(2), 1, QUOTA, 1.0)
    fdb.refresh(S, 1, seen=100.0)
    assert fdb.expire(300.9) == []
    assert fdb.expire(301.0) == [station(2)]
    assert fdb.expire(399.9) == []
    assert fdb.expire(400.0) == [S]
    assert len(fdb) == 0 and fdb.learned_on(1) == 0


def test_refresh_from_another_port_or_the_past_is_no_news(fdb: Fdb) -> None:
    fdb.learn(S, 1, QUOTA, 50.0)
    fdb.refresh(S, 2, seen=100.0)
    fdb.refresh(S, 1, seen=20.0)
    assert entry_of(fdb).last_seen == 50.0


def test_forgotten_and_learned_again_ages_anew(fdb: Fdb) -> None:
    fdb.learn(S, 1, QUOTA, 0.0)
    fdb.remove(S)
    fdb.learn(S, 1, QUOTA, 200.0)
    assert fdb.expire(300.0) == []
    assert fdb.expire(500.0) == [S]


def test_a_shorter_age_counts_at_once(fdb: Fdb) -> None:
    fdb.learn(S, 1, QUOTA, 0.0)
    fdb.mac_age = 10.0
    assert fdb.expire(10.0) == [S]


def test_quota_is_per_port_and_frees_up(fdb: Fdb) -> None:
    for n in range(QUOTA):
        assert fdb.learn(station(n), 1, QUOTA, float(n)) is Admission.NEW
    assert fdb.learn(station(9), 1, QUOTA, 5.0) is Admission.QUOTA
    assert fdb.port_of(station(9)) is None
    assert fdb.learn(station(9), 2, QUOTA, 5.0) is Admission.NEW
    assert fdb.learn(station(9), 1, QUOTA, 5.0) is Admission.QUOTA
    assert fdb.port_of(station(9)) == 2
    fdb.remove(station(0))
    assert fdb.learn(station(9), 1, QUOTA, 6.0) is Admission.MOVE


def test_static_wins_and_is_not_counted(fdb: Fdb) -> None:
    fdb.learn(S, 1, QUOTA, 0.0)
    fdb.add_static(S, 2, 1.0)
    assert fdb.learn(S, 1, QUOTA, 2.0) is Admission.STATIC
    assert fdb.port_of(S) == 2 and entry_of(fdb).static
    assert (fdb.learned_on(1), fdb.learned_on(2)) == (0, 0)
    assert fdb.expire(10_000.0) == []


def test_moves_within_the_window_hold_it_where_it_is(fdb: Fdb) -> None:
    moved(fdb, [1.0, 2.0, 3.0])
    assert entry_of(fdb).held_until == 0.0
    assert fdb.learn(S, 1, QUOTA, 1.0 + MOVES_WINDOW) is Admission.MOVE
    assert entry_of(fdb).moves == MOVES_MAX
    assert entry_of(fdb).held_until == 1.0 + MOVES_WINDOW + HOLD_TIME
    assert fdb.learn(S, 2, QUOTA, 12.0) is Admission.HELD
    assert fdb.learn(S, 1, QUOTA, 12.0) is Admission.KNOWN
    assert fdb.port_of(S) == 1


def test_hold_ends(fdb: Fdb) -> None:
    moved(fdb, [1.0, 2.0, 3.0, 4.0])
    assert fdb.release_holds(13.9) == []
    assert fdb.release_holds(14.0) == [S]
    assert fdb.learn(S, 2, QUOTA, 14.0) is Admission.MOVE
    assert entry_of(fdb).held_until == 0.0
    assert fdb.release_holds(100.0) == []


def test_slow_moves_do_not_hold(fdb: Fdb) -> None:
    moved(fdb, [4.0 * i for i in range(1, 20)])
    assert entry_of(fdb).held_until == 0.0


def test_hold_of_a_forgotten_station_is_no_news(fdb: Fdb) -> None:
    moved(fdb, [1.0, 2.0, 3.0, 4.0])
    fdb.remove(S)
    fdb.learn(S, 1, QUOTA, 5.0)
    assert fdb.release_holds(20.0) == []
    assert fdb.learn(S, 2, QUOTA, 20.0) is Admission.MOVE


@pytest.mark.parametrize(
    ("ip", "taken"),
    [
        ("0a000001", True),
        ("00000000", False),
        ("7f000001", False),
        ("e0000001", False),
        ("ffffffff", False),
        ("20010db8000000000000000000000001", True),
        ("fe80000000000000000000000000beef", True),
        ("00" * 16, False),
        ("00" * 15 + "01", False),
        ("ff020000000000000000000000000001", False),
    ],
)
def test_only_addresses_that_a_host_can_own(fdb: Fdb, ip: str, taken: bool) -> None:
    fdb.learn(S, 1, QUOTA, 0.0)
    fdb.learn_ip(S, 1, bytes.fromhex(ip), authoritative=True)
    assert bool(entry_of(fdb).ips) is taken


def test_ips_of_a_mac_are_bounded(fdb: Fdb) -> None:
    fdb.learn(S, 1, QUOTA, 0.0)
    for n in range(IPS_MAX + 1):
        fdb.learn_ip(S, 1, bytes([10, 0, 0, n]), authoritative=False)
    assert entry_of(fdb).ips == tuple(f"10.0.0.{n}" for n in range(IPS_MAX))
    fdb.learn_ip(S, 1, bytes([10, 0, 0, 99]), authoritative=True)
    assert entry_of(fdb).ips == (*(f"10.0.0.{n}" for n in range(1, IPS_MAX)), "10.0.0.99")


def test_ip_heard_on_another_port_is_not_its(fdb: Fdb) -> None:
    fdb.learn(S, 1, QUOTA, 0.0)
    fdb.learn_ip(S, 2, bytes([10, 0, 0, 1]), authoritative=True)
    fdb.learn_ip(station(2), 1, bytes([10, 0, 0, 1]), authoritative=True)
    assert entry_of(fdb).ips == ()


def test_copy_goes_its_own_way(fdb: Fdb) -> None:
    moved(fdb, [1.0, 2.0, 3.0, 4.0])
    fdb.add_static(station(2), 3, 0.0)
    copy = fdb.copy()
    assert copy.entries() == fdb.entries()
    assert copy.learn(station(3), 1, QUOTA, 5.0) is Admission.NEW
    assert copy.release_holds(14.0) == [S]
    assert copy.learn(S, 2, QUOTA, 14.0) is Admission.MOVE
    assert fdb.port_of(S) == 1 and fdb.port_of(station(3)) is None
    assert fdb.learn(S, 2, QUOTA, 14.0) is Admission.HELD
    assert set(copy.expire(1000.0)) == {station(3), S}
    assert fdb.on_port(1) == (S,)
