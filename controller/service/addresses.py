# SPDX-License-Identifier: Apache-2.0
"""The pools of all networks, in step with the store. Each is made when it is first needed."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from controller.ipam import Pool
from controller.model import Network
from controller.service.keys import ADDRESS, decode_lease, mac_key
from controller.store.base import KeyValue
from controller.store.cache import Mirror


class Addresses:
    """Fed with every change of a lease's key, after it stands in the mirror."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._keys: dict[str, set[str]] = {}
        self._pools: dict[str, Pool] = {}

    def changed(self, key: str, item: KeyValue | None) -> None:
        """A lease's key is `item` from now on."""
        network, _, address = key.removeprefix(ADDRESS).partition("/")
        if item is None:
            self._keys.get(network, set()).discard(key)
        else:
            self._keys.setdefault(network, set()).add(key)
        pool = self._pools.get(network)
        if pool is not None:
            pool.restore(ipaddress.ip_address(address), decode_lease(key, item.value) if item else None)

    def forget(self, network: str) -> None:
        """The network changed: its pool is made anew."""
        self._pools.pop(network, None)

    def pool(self, network: Network) -> Pool:
        """The network's pool, with all its leases; for a network that is yet to change, a new one."""
        pool = self._pools.get(network.name)
        if pool is None or pool.network != network:
            keys = self._keys.get(network.name, ())
            pool = Pool(network, (decode_lease(key, self._mirror.items[key].value) for key in keys))
            self._pools[network.name] = pool
        return pool


class TakenMacs:
    """The MACs of a network that somebody else than `owner` has; for `ipam.derive_mac`."""

    def __init__(self, items: Mapping[str, KeyValue], network: str, owner: str) -> None:
        self._items = items
        self._network = network
        self._owner = owner.encode()

    def owner(self, mac: str) -> str:
        """Who else has it; "" when nobody."""
        item = self._items.get(mac_key(self._network, mac))
        return item.value.decode() if item is not None and item.value != self._owner else ""

    def __contains__(self, mac: object) -> bool:
        return bool(self.owner(str(mac)))
