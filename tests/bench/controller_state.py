# SPDX-License-Identifier: Apache-2.0
"""A controller's store with many hosts and endpoints, and certificates for the hosts: written straight to the file."""

from __future__ import annotations

import ipaddress
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from controller.ipam import Lease, derive_mac
from controller.model import Capabilities, Endpoint, Host, Network, Object, Uplink, key_of
from controller.security.authority import KeyPair, host_uri, key_pem, new_key, signing_request
from controller.security.files import HOST, Identity, initialise, load_authority, save_identity
from controller.service.keys import address_key, encode_lease, encode_object, mac_key, object_key
from controller.store.base import MAX_TXN_OPS, Op, Put
from controller.store.sqlite_log import LogWriter


@dataclass(frozen=True, slots=True)
class Scale:
    """How much there is. Endpoints are spread over networks in turn, and over hosts at random."""

    hosts: int
    endpoints: int
    networks: int


def host_name(number: int) -> str:
    return f"host{number:04}"


def network_name(number: int) -> str:
    return f"net{number:04}"


def capabilities(number: int) -> Capabilities:
    """What the host's agent reports."""
    return Capabilities(cores=8, uplinks=(Uplink("up0", (ipaddress.ip_address(0x0A000001 + number),)),))


def endpoints(scale: Scale) -> Iterator[Endpoint]:
    """All endpoints, always the same ones."""
    rng = Random(1)
    for number in range(scale.endpoints):
        index = number % scale.networks
        name = f"ep{number:06}"
        yield Endpoint(
            name=name,
            network=network_name(index),
            mac=derive_mac(1000 + index, name, ()),
            ips=(_subnet(index)[2 + number // scale.networks],),
            host=host_name(rng.randrange(scale.hosts)),
            port=name,
            generation=1,
        )


def populate(directory: Path, scale: Scale) -> None:
    """Make the controller's directory, with the store and a directory of certificates per host."""
    initialise(directory, datetime.now(UTC))
    log = LogWriter(directory / "store.db", time.monotonic)
    try:
        log.begin()
        puts = _puts(scale)
        while group := list(itertools.islice(puts, MAX_TXN_OPS)):
            ops: list[Op] = list(group)
            log.txn([], ops, [])
        log.commit()
    finally:
        log.close()
    authority = load_authority(directory)
    for number in range(scale.hosts):
        host, key = host_name(number), new_key()
        chain = authority.issue_host(signing_request(key, host_uri(host)), host, datetime.now(UTC))
        identity = Identity(KeyPair(chain, key_pem(key)), authority.certificate)
        save_identity(directory / "hosts" / host, HOST, identity)


def _subnet(index: int) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network((0x0B000000 + (index << 12), 20))


def _puts(scale: Scale) -> Iterator[Put]:
    def of(item: Object) -> Put:
        return Put(object_key(key_of(item)), encode_object(item))

    for number in range(scale.networks):
        yield of(Network(network_name(number), 1000 + number, (_subnet(number),)))
    for number in range(scale.hosts):
        yield of(replace(Host(host_name(number), capabilities(number)), epoch=1))
    for endpoint in endpoints(scale):
        yield of(endpoint)
        yield Put(mac_key(endpoint.network, endpoint.mac), endpoint.name.encode())
        for ip in endpoint.ips:
            yield Put(address_key(endpoint.network, ip), encode_lease(Lease(endpoint.network, ip, endpoint.name)))
