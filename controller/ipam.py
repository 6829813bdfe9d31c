# SPDX-License-Identifier: Apache-2.0
"""Addresses: who has which, and which is next. No I/O, no clock: the caller stores each lease that is returned.

An address was never used, is leased, or was released. A released one stays its former owner's, who gets it again, until
somebody else needs it: never-used addresses go first, then what was released longest ago, once its quarantine is over,
so that nobody's old neighbours take the new owner for the old one.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from controller.model import Network
from controller.scalars import Address, AddressRange, Name, Seconds

QUARANTINE = 60.0  # seconds; the lifetime that Linux gives a neighbour entry it has no proof of
_ONE_ADDRESS = {4: 31, 6: 127}  # RFC 3021, RFC 6164: from this prefix on, a subnet has no address of its own
_NEVER = -1.0


class PoolError(ValueError):
    """An address cannot be given: which, why, and what would do."""


@dataclass(frozen=True, slots=True)
class Lease:
    """`address` of `network` is `owner`'s; or was until `released`, in seconds since 1970."""

    network: Name
    address: Address
    owner: Name
    released: Seconds | None = None


class Pool:
    """The addresses of one network. Each step costs O(log n), apart from one walk past what is taken at the start."""

    def __init__(self, network: Network, leases: Iterable[Lease] = (), quarantine: float = QUARANTINE) -> None:
        self.network = network
        self.quarantine = quarantine
        self._leases: dict[IPv4Address | IPv6Address, Lease] = {}
        self._owned: dict[str, dict[IPv4Address | IPv6Address, None]] = {}
        # When, and which: entries that no longer say the truth are skipped when they come up.
        self._released: dict[int, list[tuple[float, int]]] = {4: [], 6: []}
        self._cursors = [_Cursor(subnet, network) for subnet in network.subnets]
        for lease in leases:
            self.restore(lease.address, lease)

    def leases_of(self, owner: str) -> list[Lease]:
        """What `owner` has, and what it had and would get again."""
        return [self._leases[address] for address in self._owned.get(owner, ())]

    def find(self, address: IPv4Address | IPv6Address) -> Lease | None:
        """Who has an address, or had it."""
        return self._leases.get(address)

    def restore(self, address: IPv4Address | IPv6Address, lease: Lease | None) -> None:
        """Take over what the store says about `address`: another replica's lease, or that there is none."""
        old = self._leases.pop(address, None)
        if old is not None:
            del self._owned[old.owner][address]
            if not self._owned[old.owner]:
                del self._owned[old.owner]
        if lease is not None:
            self._leases[address] = lease
            self._owned.setdefault(lease.owner, {})[address] = None
            if lease.released is not None:
                self._push(address, lease.released)
        elif old is not None:
            self._push(address, _NEVER)

    def claim(self, owner: str, address: IPv4Address | IPv6Address) -> Lease:
        """Give `owner` the very address that it asks for.

        Whoever names an address knows who had it, so this does not wait for its quarantine. Raises PoolError.
        """
        where = f"network {self.network.name}"
        cursor = next((c for c in self._cursors if address in c.subnet), None)
        if cursor is None:
            subnets = ", ".join(map(str, self.network.subnets)) or "it has no subnet"
            raise PoolError(f"{address} is not in {where} ({subnets})")
        if why := cursor.why_not(address):
            raise PoolError(f"{address} of {where} is {why}: choose another")
        lease = self._leases.get(address)
        if lease is not None and lease.released is None and lease.owner != owner:
            raise PoolError(f"{address} of {where} is {lease.owner}'s: choose another")
        return self._give(owner, address)

    def allocate(self, owner: str, version: int, now: float) -> Lease:
        """Give `owner` an IPv4 or IPv6 address (`version` 4 or 6): the one that it has or had, or else the next.

        Raises PoolError.
        """
        mine = [lease for lease in self.leases_of(owner) if lease.address.version == version]
        for lease in sorted(mine, key=lambda lease: lease.released is not None):
            return self._give(owner, lease.address)
        for cursor in self._cursors:
            if cursor.subnet.version == version and (address := cursor.next(self._leases)) is not None:
                return self._give(owner, address)
        return self._give(owner, self._pop(version, now))

    def release(self, owner: str, now: float) -> list[Lease]:
        """Take all of `owner`'s addresses back; returns the leases that changed."""
        changed = [replace(lease, released=now) for lease in self.leases_of(owner) if lease.released is None]
        for lease in changed:
            self.restore(lease.address, lease)
        return changed

    def _give(self, owner: str, address: IPv4Address | IPv6Address) -> Lease:
        lease = Lease(self.network.name, address, owner)
        self.restore(address, lease)
        return lease

    def _push(self, address: IPv4Address | IPv6Address, when: float) -> None:
        heap = self._released[address.version]
        heapq.heappush(heap, (when, int(address)))
        if len(heap) > 2 * len(self._leases) + 64:
            heap[:] = sorted({entry for entry in heap if self._is_true(entry, address.version)})

    def _is_true(self, entry: tuple[float, int], version: int) -> bool:
        when, number = entry
        lease = self._leases.get(_address(number, version))
        return when == _NEVER if lease is None else lease.released == when

    def _pop(self, version: int, now: float) -> IPv4Address | IPv6Address:
        heap = self._released[version]
        while heap:
            when, number = heap[0]
            address = _address(number, version)
            usable = any(address in c.subnet and not c.why_not(address) for c in self._cursors)
            if not usable or not self._is_true(heap[0], version):
                heapq.heappop(heap)
            elif when == _NEVER or when + self.quarantine <= now:
                heapq.heappop(heap)
                return address
            else:
                raise PoolError(self._exhausted(version, when + self.quarantine - now))
        raise PoolError(self._exhausted(version, None))

    def _exhausted(self, version: int, wait: float | None) -> str:
        network = f"network {self.network.name}"
        if not any(subnet.version == version for subnet in self.network.subnets):
            return f"{network} has no IPv{version} subnet: add one, or ask for the other family"
        in_use = sum(
            1 for address, lease in self._leases.items() if lease.released is None and address.version == version
        )
        taken = f"{network} has no IPv{version} address left, {in_use} are in use"
        if wait is None:
            return f"{taken}: add a subnet, or delete endpoints"
        return f"{taken}: add a subnet, or wait {wait:.0f} s for one that was just released"


class _Cursor:
    """Walks a subnet's addresses upwards, once."""

    def __init__(self, subnet: IPv4Network | IPv6Network, network: Network) -> None:
        self.subnet = subnet
        self._first, self._last = int(subnet.network_address), int(subnet.broadcast_address)
        self._kept: list[tuple[int, int, str]] = []
        if subnet.prefixlen < _ONE_ADDRESS[subnet.version]:
            self._kept.append((self._first, self._first, "the subnet's own address"))
            if subnet.version == 4:
                self._kept.append((self._last, self._last, "the subnet's broadcast address"))
        gateways = [(AddressRange(gateway, gateway), "the gateway") for gateway in network.gateways]
        for kept, why in [
            *gateways,
            *((excluded, f"in the excluded range {excluded}") for excluded in network.excluded),
        ]:
            if kept.first in subnet:
                self._kept.append((int(kept.first), int(kept.last), why))
        self._at = self._first

    def why_not(self, address: IPv4Address | IPv6Address) -> str:
        """What an address of the subnet is kept for; empty when it may be given."""
        number = int(address)
        return next((why for first, last, why in self._kept if first <= number <= last), "")

    def next(self, taken: Container[IPv4Address | IPv6Address]) -> IPv4Address | IPv6Address | None:
        """The next address that was never looked at and is neither kept nor taken."""
        while self._at <= self._last:
            beyond = next((last + 1 for first, last, _ in self._kept if first <= self._at <= last), None)
            if beyond is not None:
                self._at = beyond
                continue
            address = _address(self._at, self.subnet.version)
            self._at += 1
            if address not in taken:
                return address
        return None


def _address(number: int, version: int) -> IPv4Address | IPv6Address:
    return IPv4Address(number) if version == 4 else IPv6Address(number)


def derive_mac(vni: int, name: str, taken: Container[str]) -> str:
    """A locally administered unicast address (IEEE 802 section 8.4) for endpoint `name`, in none of `taken`.

    The same name gets the same address in a network, unless another has it.
    """
    for attempt in range(1 << 16):
        digest = hashlib.blake2b(f"{vni}/{name}/{attempt}".encode(), digest_size=5).digest()
        mac = (b"\x02" + digest).hex(":")
        if mac not in taken:
            return mac
    raise PoolError(f"no MAC address left for {name} in VNI {vni}")
