# SPDX-License-Identifier: Apache-2.0
"""One transaction in the making: objects, and the addresses and MACs that go with them.

Addresses are taken from this replica's pools at once, so that two drafts never ask for the same one. What another
replica took meanwhile makes the transaction's compares fail; then the draft is rolled back and made anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from controller.ipam import Lease, Pool, PoolError, derive_mac
from controller.model import Endpoint, Key, Kind, Network, Object, key_of
from controller.service.addresses import TakenMacs
from controller.service.keys import (
    USED,
    address_key,
    decode_lease,
    encode_lease,
    encode_object,
    mac_key,
    object_key,
)
from controller.service.state import State
from controller.store.base import Compare, Delete, Op, Put, Relation, Target, TxnResult

Clock = Callable[[], float]


def unchanged(key: str, version: int) -> Compare:
    """The key's mod_revision is still `version`; 0: it does not exist."""
    return Compare(key, Target.MOD, Relation.EQUAL, version)


class Draft:
    """`compares` and `ops` of the transaction. Either `commit` or `rollback` ends it."""

    def __init__(self, state: State, now: float) -> None:
        """`now` is in seconds since 1970."""
        self._state = state
        self._now = now
        self._compares: dict[str, Compare] = {}
        self._ops: dict[str, Op] = {}
        self._undo: list[tuple[Pool, IPv4Address | IPv6Address]] = []

    @property
    def size(self) -> int:
        """The larger of the two numbers that the store limits."""
        return max(len(self._compares), len(self._ops))

    async def commit(self, *fences: Compare) -> TxnResult:
        """Write it, if everything still is as the draft assumed. Raises StoreError; the caller then rolls back."""
        return await self._state.store.txn([*fences, *self._compares.values()], list(self._ops.values()))

    def rollback(self) -> None:
        """Let the pools say again what the store says."""
        for pool, address in self._undo:
            pool.restore(address, self._stored(pool.network.name, address))
        self._undo.clear()

    def expect(self, key: str) -> None:
        """The key is still as this replica knows it."""
        self._compares.setdefault(key, unchanged(key, self._state.version(key)))

    def put(self, key: str, value: bytes) -> None:
        """Write a key, whatever it is."""
        self._ops[key] = Put(key, value)

    def put_leased(self, key: str, value: bytes, lease: int) -> None:
        """Write a key that ends with a lease of the store."""
        self._ops[key] = Put(key, value, lease)

    def delete(self, key: str) -> None:
        """Delete a key, if it exists."""
        if self._state.find(key) is not None:
            self._ops[key] = Delete(key)

    def put_object(self, item: Object) -> None:
        """Write an object that nobody else has changed meanwhile."""
        self._change(key_of(item), Put(object_key(key_of(item)), encode_object(item)))

    def delete_object(self, key: Key) -> None:
        """Delete an object that nobody else has changed meanwhile."""
        self._change(key, Delete(object_key(key)))

    def _change(self, key: Key, op: Put | Delete) -> None:
        self.expect(op.key)
        self._ops[op.key] = op

    def settle(self, wanted: Endpoint, old: Endpoint | None, network: Network) -> Endpoint:
        """`wanted` with a MAC and an address of each family of its network; those that it has stay its own.

        Raises PoolError.
        """
        self.expect(object_key((Kind.NETWORK, network.name)))
        kept = old if old is not None and old.network == network.name else None
        if kept is None:
            self.put(USED + network.name, b"")
        settled = replace(wanted, mac=self._mac(wanted, kept, network), ips=self._ips(wanted, kept, network))
        if old is not None:
            self._release(old, settled)
        return settled

    def release(self, endpoint: Endpoint) -> None:
        """Take back all that an endpoint has."""
        self._release(endpoint, None)

    def _mac(self, wanted: Endpoint, kept: Endpoint | None, network: Network) -> str:
        taken = TakenMacs(self._state.mirror.items, network.name, wanted.name)
        mac = wanted.mac or (kept.mac if kept else "") or derive_mac(network.vni, wanted.name, taken)
        if owner := taken.owner(mac):
            raise PoolError(f"{mac} of network {network.name} is {owner}'s: choose another, or leave it out")
        key = mac_key(network.name, mac)
        if self._state.find(key) is None:
            self.expect(key)
            self.put(key, wanted.name.encode())
        return mac

    def _ips(self, wanted: Endpoint, kept: Endpoint | None, network: Network) -> tuple[IPv4Address | IPv6Address, ...]:
        pool = self._state.addresses.pool(network)
        ips = list(wanted.ips)
        named = {address.version for address in ips}
        ips += [address for address in (kept.ips if kept else ()) if address.version not in named]
        for address in ips:
            self._took(pool, pool.claim(wanted.name, address))
        for version in dict.fromkeys(subnet.version for subnet in network.subnets):
            if not any(address.version == version for address in ips):
                lease = pool.allocate(wanted.name, version, self._now)
                self._took(pool, lease)
                ips.append(lease.address)
        return tuple(ips)

    def _took(self, pool: Pool, lease: Lease) -> None:
        """The pool has changed; let the store follow."""
        if lease == self._stored(lease.network, lease.address):
            return
        self._undo.append((pool, lease.address))
        key = address_key(lease.network, lease.address)
        self.expect(key)
        self.put(key, encode_lease(lease))

    def _stored(self, network: str, address: IPv4Address | IPv6Address) -> Lease | None:
        key = address_key(network, address)
        item = self._state.find(key)
        return decode_lease(key, item.value) if item is not None else None

    def _release(self, old: Endpoint, now: Endpoint | None) -> None:
        """Take back what the endpoint had and has no more."""
        same = now is not None and now.network == old.network
        if old.mac and not (same and now is not None and now.mac == old.mac):
            self.delete(mac_key(old.network, old.mac))
        network = self._state.network(old.network)
        if network is None:
            return
        pool = self._state.addresses.pool(network)
        for address in old.ips:
            before = pool.find(address)
            if (same and now is not None and address in now.ips) or before is None or before.owner != old.name:
                continue
            released = replace(before, released=self._now)
            pool.restore(address, released)
            self._took(pool, released)
