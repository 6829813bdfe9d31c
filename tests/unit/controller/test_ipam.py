# SPDX-License-Identifier: Apache-2.0
"""Addresses: a pool against a list that is searched from end to end, and what is said when there is none to give."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from controller.codec import from_json, to_json
from controller.ipam import Lease, Pool, PoolError, derive_mac
from controller.model import Network
from controller.scalars import AddressRange

TINY = Network(
    "tiny",
    7,
    (ip_network("10.0.0.0/29"), ip_network("10.9.0.0/30"), ip_network("fd00::/125")),
    (ip_address("10.0.0.1"), ip_address("fd00::1")),
    (
        AddressRange(ip_address("10.0.0.3"), ip_address("10.0.0.4")),
        AddressRange(ip_address("fd00::2"), ip_address("fd00::5")),
    ),
)
USABLE = {
    4: [ip_address(a) for a in ("10.0.0.2", "10.0.0.5", "10.0.0.6", "10.9.0.1", "10.9.0.2")],
    6: [ip_address(a) for a in ("fd00::6", "fd00::7")],
}
OWNERS = st.sampled_from(["a", "b", "c", "d", "e", "f"])
ADDRESSES = st.sampled_from(
    [*USABLE[4], *USABLE[6], *map(ip_address, ("10.0.0.0", "10.0.0.1", "10.0.0.4", "11.0.0.1"))]
)


class PoolMachine(RuleBasedStateMachine):
    """The model: each usable address has an owner and the time of its release, or nothing; time only goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.pool = Pool(TINY, quarantine=10.0)
        self.leases: dict[IPv4Address | IPv6Address, Lease] = {}

    @rule(seconds=st.sampled_from([0.0, 1.0, 9.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(owner=OWNERS, version=st.sampled_from([4, 6]))
    def allocate(self, owner: str, version: int) -> None:
        wanted = self._naive(owner, version)
        if not wanted:
            with pytest.raises(PoolError):
                self.pool.allocate(owner, version, self.now)
            return
        lease = self.pool.allocate(owner, version, self.now)
        assert lease.address in wanted
        assert (lease.owner, lease.released, lease.network) == (owner, None, "tiny")
        self.leases[lease.address] = lease

    def _naive(self, owner: str, version: int) -> list[IPv4Address | IPv6Address]:
        """The addresses of which `owner` may get any."""
        mine = [lease for lease in self.leases.values() if lease.owner == owner and lease.address.version == version]
        if mine:
            return [lease.address for lease in mine if lease.released is None] or [lease.address for lease in mine]
        if free := [a for a in USABLE[version] if a not in self.leases]:
            return free
        old = [(x.released, a) for a, x in self.leases.items() if x.released is not None and a.version == version]
        least = min((when for when, _ in old), default=None)
        ready = least is not None and least + 10.0 <= self.now
        return [a for when, a in old if when == least] if ready else []

    @rule(owner=OWNERS, address=ADDRESSES)
    def claim(self, owner: str, address: IPv4Address | IPv6Address) -> None:
        lease = self.leases.get(address)
        taken = lease is not None and lease.released is None and lease.owner != owner
        if address not in USABLE[address.version] or taken:
            with pytest.raises(PoolError):
                self.pool.claim(owner, address)
            return
        assert self.pool.claim(owner, address) == Lease("tiny", address, owner)
        self.leases[address] = Lease("tiny", address, owner)

    @rule(owner=OWNERS)
    def release(self, owner: str) -> None:
        changed = self.pool.release(owner, self.now)
        assert {lease.address for lease in changed} == {
            lease.address for lease in self.leases.values() if lease.owner == owner and lease.released is None
        }
        assert all(lease.released == self.now for lease in changed)
        self.leases.update((lease.address, lease) for lease in changed)

    @rule(address=ADDRESSES)
    def another_replica_deletes(self, address: IPv4Address | IPv6Address) -> None:
        self.pool.restore(address, None)
        self.leases.pop(address, None)

    @rule()
    def restart(self) -> None:
        stored = [from_json(Lease, to_json(lease)) for lease in self.leases.values()]
        self.pool = Pool(TINY, stored, quarantine=10.0)

    @invariant()
    def nobody_shares(self) -> None:
        held = {lease.address: lease for owner in "abcdef" for lease in self.pool.leases_of(owner)}
        assert held == self.leases


PoolMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None, derandomize=True)
TestPool = PoolMachine.TestCase


def test_a_large_network_fills_up_to_the_last_address() -> None:
    """100 000 of a /14's addresses, then the rest of a small one: no step may walk over what is taken."""
    pool = Pool(Network("big", 1, (ip_network("10.0.0.0/14"),), (ip_address("10.0.0.1"),)))
    given = [pool.allocate(f"e{n}", 4, 0.0).address for n in range(100_000)]
    assert given == [IPv4Address(0x0A000002 + n) for n in range(100_000)]
    again = Pool(pool.network, [lease for n in range(100_000) for lease in pool.leases_of(f"e{n}")])
    assert again.allocate("e77", 4, 0.0).address == given[77]
    assert again.allocate("new", 4, 0.0).address == IPv4Address(0x0A000002 + 100_000)


def fill(pool: Pool, *owners: str) -> None:
    for owner in owners:
        pool.allocate(owner, 4, 0.0)


def test_what_is_said_when_no_address_can_be_given() -> None:
    pool = Pool(Network("n", 1, (ip_network("10.0.0.0/30"),), (ip_address("10.0.0.1"),)))
    fill(pool, "web0")
    cases: list[tuple[Callable[[], Lease], str]] = [
        (
            lambda: pool.allocate("b", 4, 0.0),
            "network n has no IPv4 address left, 1 are in use: add a subnet, or delete endpoints",
        ),
        (lambda: pool.allocate("b", 6, 0.0), "network n has no IPv6 subnet: add one, or ask for the other family"),
        (lambda: pool.claim("b", ip_address("10.0.0.2")), "10.0.0.2 of network n is web0's: choose another"),
        (lambda: pool.claim("b", ip_address("10.0.0.1")), "10.0.0.1 of network n is the gateway: choose another"),
        (
            lambda: pool.claim("b", ip_address("10.0.0.0")),
            "10.0.0.0 of network n is the subnet's own address: choose another",
        ),
        (
            lambda: pool.claim("b", ip_address("10.0.0.3")),
            "10.0.0.3 of network n is the subnet's broadcast address: choose another",
        ),
        (lambda: pool.claim("b", ip_address("11.0.0.3")), "11.0.0.3 is not in network n (10.0.0.0/30)"),
    ]
    for call, words in cases:
        with pytest.raises(PoolError) as caught:
            call()
        assert str(caught.value) == words
    pool.release("web0", 5.0)
    with pytest.raises(PoolError, match="0 are in use: add a subnet, or wait 58 s for one that was just released"):
        pool.allocate("b", 4, 7.0)
    assert pool.allocate("b", 4, 65.0).address == ip_address("10.0.0.2")


@pytest.mark.parametrize(
    ("subnet", "first"),
    [("10.0.0.0/31", "10.0.0.0"), ("10.0.0.8/32", "10.0.0.8"), ("fd00::/127", "fd00::"), ("fd00::/64", "fd00::1")],
)
def test_small_subnets_use_their_first_address(subnet: str, first: str) -> None:
    network = ip_network(subnet)
    assert str(Pool(Network("n", 1, (network,))).allocate("a", network.version, 0.0).address) == first


def test_coming_and_going_does_not_pile_up() -> None:
    pool = Pool(TINY)
    for n in range(1000):
        fill(pool, "a")
        pool.release("a", float(n))
    assert len(pool._released[4]) < 100


def test_macs_are_stable_local_and_unique() -> None:
    taken: set[str] = set()
    for n in range(2000):
        mac = derive_mac(5, f"e{n}", taken)
        assert int(mac[:2], 16) == 2
        assert mac not in taken
        taken.add(mac)
    first = derive_mac(5, "web0", ())
    assert derive_mac(5, "web0", ()) == first
    assert derive_mac(6, "web0", ()) != first
    assert derive_mac(5, "web0", {first}) != first
