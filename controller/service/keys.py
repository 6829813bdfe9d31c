# SPDX-License-Identifier: Apache-2.0
"""What stands where in the store. Names have no slashes, so every key has one meaning."""

from __future__ import annotations

import ipaddress
import json
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from controller.codec import from_json, to_json
from controller.ipam import Lease
from controller.model import CLASSES, Key, Kind, Object

ROOT = "ffswitch/"
OBJECT = ROOT + "object/"  # KIND/NAME: JSON of the object
DECLARED = ROOT + "declared/"  # KIND/NAME: a manifest has it, so `apply --prune` may delete it
ADDRESS = ROOT + "address/"  # NETWORK/ADDRESS: JSON of its lease
MAC = ROOT + "mac/"  # NETWORK/MAC: the endpoint that has it
USED = ROOT + "used/"  # NETWORK: put whenever an endpoint comes to the network
ALIVE = ROOT + "alive/"  # HOST: JSON of its session; ends when its agent is not heard
MOVED = ROOT + "moved/"  # HOST/ENDPOINT: the host still reports the endpoint, another one has it
RDMA = ROOT + "rdma/"  # TO/FROM: RdmaOffer as its host said it; ends with that host's session
TOKEN = ROOT + "token/"  # hash of the secret: JSON of host and end
REVOKED = ROOT + "revoked/"  # HOST: JSON, seconds since 1970: its certificates from before are not taken any more
REPLICA = ROOT + "replica/"  # a controller that lives
WAIT = ROOT + "wait/"  # somebody waits until hosts have applied a revision
SYNC = ROOT + "sync"  # put by whoever waits for the mirror
LEADER = ROOT + "leader"
EPOCH = ROOT + "epoch"  # of the newest leader; unlike its key it stays
CONFIG = ROOT + "config"  # put by each apply, so that no two check against the same state: JSON, how far it has come


def object_key(key: Key) -> str:
    """Where an object stands."""
    return f"{OBJECT}{key[0].value}/{key[1]}"


def declared_key(key: Key) -> str:
    """Where it stands that a manifest has the object."""
    return f"{DECLARED}{key[0].value}/{key[1]}"


def address_key(network: str, address: IPv4Address | IPv6Address) -> str:
    """Where an address's lease stands."""
    return f"{ADDRESS}{network}/{address}"


def mac_key(network: str, mac: str) -> str:
    """Where a MAC's owner stands."""
    return f"{MAC}{network}/{mac}"


def moved_key(host: str, endpoint: str) -> str:
    """Where it stands that `host` lost the endpoint to another host."""
    return f"{MOVED}{host}/{endpoint}"


def rdma_key(to: str, host: str) -> str:
    """Where the offer of `host` for another host stands."""
    return f"{RDMA}{to}/{host}"


def split_object_key(text: str) -> Key:
    """The key that `object_key` or `declared_key` wrote."""
    _, _, kind, name = text.split("/")
    return Kind(kind), name


def encode(value: Any) -> bytes:
    """JSON as the store has it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def encode_object(item: Object) -> bytes:
    """An object as the store has it, and as it travels."""
    return encode(to_json(item))


def decode_object(key: Key, value: bytes) -> Object:
    """What `encode_object` wrote. Raises FieldError, ValueError."""
    return from_json(CLASSES[key[0]], json.loads(value))


def encode_lease(lease: Lease) -> bytes:
    """A lease as the store has it; network and address are in its key."""
    return encode({"owner": lease.owner, "released": lease.released})


def decode_lease(key: str, value: bytes) -> Lease:
    """What `address_key` and `encode_lease` wrote."""
    _, _, network, address = key.split("/")
    fields = json.loads(value)
    return Lease(network, ipaddress.ip_address(address), fields["owner"], fields["released"])
