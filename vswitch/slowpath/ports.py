# SPDX-License-Identifier: Apache-2.0
"""What a port may be told: reading, checking and writing a PortConfig. No I/O."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path

from vswitch.slowpath.errors import BadParams, one_line
from vswitch.slowpath.types import PortConfig, PortType

MAX_QUEUES = 16  # FF_MAX_QUEUES
MTU_MIN, MTU_MAX = 68, 65535  # RFC 791: every IPv4 link carries 68 bytes
VID_MAX = 4094  # IEEE 802.1Q: 4095 is reserved
MEMORY_MODES = ("read-write", "read-only")
SHORTCUTS_MAX = 256  # FF_SHM_SHORTCUTS
# struct sockaddr_un holds 108 bytes, one of which ends the path (unix(7)).
SOCKET_PATH_MAX = 107

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,30}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
_AFFINITY = re.compile(r"([0-9]{1,4}):([0-9]{1,4})")
_DECIMAL = re.compile(r"[0-9]{1,10}")
_PORT_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,62}=[A-Za-z0-9_.-]{0,63}")

# vxlan ports come and go with the controller's networks.
_USER_TYPES = (PortType.VHOST_USER, PortType.PMD, PortType.PACKET, PortType.FF)
DEVICES = {PortType.PMD: "net_pcap0,iface=eth0 or a PCI address", PortType.PACKET: "the kernel's eth0"}

_RULES = "letters, digits, '_', '.' and '-', the first a letter or digit"


def _show(value: object) -> str:
    text = one_line(str(value))
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise BadParams(f"{key}: {_show(value)} is not a text")
    return value


def whole_number(low: int, high: int) -> Callable[[str, object], int]:
    """A reader of whole numbers from `low` to `high`, as JSON's number or as text; it raises BadParams."""

    def read(key: str, value: object) -> int:
        if isinstance(value, str) and _DECIMAL.fullmatch(value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise BadParams(f"{key}: {_show(value)} is not a whole number from {low} to {high}")
        return value

    return read


def _items(key: str, value: object) -> list[object]:
    """A list, or its text form with commas (what `ffswitch set trunks=10,20` sends)."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",")] if value else []
    if not isinstance(value, list | tuple):
        raise BadParams(f"{key}: {_show(value)} is not a list")
    return list(value)


def _vlans(key: str, value: object) -> tuple[int, ...]:
    read = whole_number(1, VID_MAX)
    return tuple(sorted({read(key, item) for item in _items(key, value)}))


def port_name(key: str, value: object) -> str:
    """A port's name, or BadParams."""
    name = _text(key, value)
    if not _NAME.fullmatch(name):
        raise BadParams(f"{key}: {_show(name)} is not a port name: 1 to 31 {_RULES}")
    return name


def _mirror(key: str, value: object) -> str:
    return port_name(key, value) if value != "" else ""


def _network(key: str, value: object) -> str:
    label = _text(key, value)
    if not _LABEL.fullmatch(label):
        raise BadParams(f"{key}: {_show(label)} is not a name: 1 to 63 {_RULES}")
    return label


def endpoint_name(key: str, value: object) -> str:
    """An endpoint's name, or BadParams."""
    return _network(key, value)


def _trust_domain(key: str, value: object) -> str:
    return _network(key, value) if value != "" else ""


def _mac(key: str, value: object) -> str:
    mac = _text(key, value)
    if mac == "":
        return ""
    if not _MAC.fullmatch(mac):
        raise BadParams(f"{key}: {_show(mac)} is not a MAC address like 02:00:00:00:00:01")
    raw = bytes.fromhex(mac.replace(":", ""))
    if raw[0] & 1 or raw == bytes(6):
        raise BadParams(f"{key}: {mac} cannot be an interface's address: it is a group address or all zero")
    return mac.lower()


def _ips(key: str, value: object) -> tuple[str, ...]:
    ips: dict[str, None] = {}
    for item in _items(key, value):
        try:
            ip = ipaddress.ip_address(_text(key, item))
        except ValueError:
            raise BadParams(f"{key}: {_show(item)} is not an IPv4 or IPv6 address (without a prefix length)") from None
        if ip.is_multicast or ip.is_unspecified:
            raise BadParams(f"{key}: {ip} cannot be an interface's address")
        ips[str(ip)] = None
    return tuple(ips)


def _labels(key: str, value: object) -> tuple[str, ...]:
    labels: dict[str, str] = {}
    for item in _items(key, value):
        label = _text(key, item)
        if not _PORT_LABEL.fullmatch(label):
            raise BadParams(f"{key}: {_show(label)} is not a label like tier=web")
        labels[label.partition("=")[0]] = label
    return tuple(sorted(labels.values()))


def _interfaces(key: str, value: object) -> tuple[str, ...]:
    """Interface addresses with their prefix lengths, one of each family at most."""
    found: dict[int, str] = {}
    for item in _items(key, value):
        text = _text(key, item)
        try:
            interface = ipaddress.ip_interface(text)
        except ValueError:
            raise BadParams(f"{key}: {_show(text)} is not an address with its prefix, like 192.0.2.1/24") from None
        ip = interface.ip
        if "/" not in text or ip.is_multicast or ip.is_unspecified or ip.is_loopback or ip.is_link_local:
            raise BadParams(f"{key}: {_show(text)} cannot be a tunnel end: give an address like 192.0.2.1/24")
        if ip.version in found:
            raise BadParams(f"{key}: {found[ip.version]} and {interface}: one IPv{ip.version} address is enough")
        found[ip.version] = str(interface)
    return tuple(found[version] for version in sorted(found))


def _type(key: str, value: object) -> PortType:
    name = _text(key, value)
    if name not in _USER_TYPES:
        raise BadParams(f"{key}: {_show(name)} is not a port type: say {' or '.join(_USER_TYPES)}")
    return PortType(name)


def _memory(key: str, value: object) -> str:
    if value not in MEMORY_MODES:
        raise BadParams(f"{key}: {_show(value)} is not how memory is lent: say {' or '.join(MEMORY_MODES)}")
    return str(value)


def _role(key: str, value: object) -> str:
    if value not in ("client", "server"):
        raise BadParams(f"{key}: {_show(value)} is not the switch's role: say client or server")
    return str(value)


def _socket(key: str, value: object) -> str:
    path = _text(key, value)
    if path == "":
        return ""
    if not path.startswith("/") or not path.isprintable():
        raise BadParams(f"{key}: {_show(path)} is not an absolute path")
    check_socket_length(path)
    return os.path.normpath(path)


def check_socket_length(path: str) -> None:
    """Raise BadParams when `path` is too long for a Unix socket."""
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_MAX:
        raise BadParams(
            f"socket path {one_line(path)} has {length} bytes, a Unix socket's may have {SOCKET_PATH_MAX}: "
            f"use a shorter directory or name"
        )


def _devargs(key: str, value: object) -> str:
    devargs = _text(key, value)
    if not devargs.isprintable():
        raise BadParams(f"{key}: {_show(devargs)} holds a control character")
    return devargs


def rxq_affinity(config: PortConfig) -> dict[int, int]:
    """The worker of each receive queue that is bound to one."""
    pairs = (item.split(":") for item in config.rxq_affinity.split(",") if item)
    return {int(queue): int(worker) for queue, worker in pairs}


def _rxq_affinity(key: str, value: object) -> str:
    pairs: dict[int, int] = {}
    for item in _items(key, _text(key, value)):
        match = _AFFINITY.fullmatch(str(item))
        if not match:
            raise BadParams(f"{key}: {_show(item)} is not QUEUE:WORKER, as in 0:1,1:0")
        if int(match[1]) in pairs:
            raise BadParams(f"{key}: queue {int(match[1])} is there twice")
        pairs[int(match[1])] = int(match[2])
    return ",".join(f"{queue}:{worker}" for queue, worker in sorted(pairs.items()))


_READERS: dict[str, Callable[[str, object], object]] = {
    "name": port_name,
    "type": _type,
    "socket": _socket,
    "role": _role,
    "devargs": _devargs,
    "mac": _mac,
    "ips": _ips,
    "network": _network,
    "trust_domain": _trust_domain,
    "labels": _labels,
    "queues": whole_number(1, MAX_QUEUES),
    "mtu": whole_number(MTU_MIN, MTU_MAX),
    "tag": whole_number(0, VID_MAX),
    "trunks": _vlans,
    "native_vlan": whole_number(0, VID_MAX),
    "mirror": _mirror,
    "mac_quota": whole_number(0, 1_000_000),
    "upcall_budget": whole_number(1, 65535),
    "rxq_affinity": _rxq_affinity,
    "memory": _memory,
    "shortcut_quota": whole_number(0, SHORTCUTS_MAX),
    "uplink": _interfaces,
    "uplink_gateway": _ips,
    "assigned_mac": _mac,
    "assigned_ips": _ips,
}

_ASSIGNED = frozenset({"assigned_mac", "assigned_ips"})
_FF_ONLY = frozenset({"memory", "shortcut_quota"})
_SET_ONLY = frozenset({"mirror", "mac_quota", "upcall_budget", "rxq_affinity", "uplink", "uplink_gateway"}) | _FF_ONLY
ADD_KEYS = frozenset(_READERS) - _ASSIGNED - _SET_ONLY
SET_KEYS = frozenset(_READERS) - _ASSIGNED - {"name", "type", "socket", "role", "devargs", "queues"}


def default_mac(name: str) -> str:
    """A locally administered unicast address (IEEE 802 section 8.4) that `name` always gets."""
    raw = b"\x02" + hashlib.blake2b(name.encode(), digest_size=5).digest()
    return raw.hex(":")


def default_socket(run_dir: Path, name: str, kind: PortType = PortType.VHOST_USER) -> str:
    """Where a port's socket lies unless told otherwise."""
    return str(run_dir / "ports" / name / ("ff.sock" if kind is PortType.FF else "vhost.sock"))


def _check_keys(where: str, given: Mapping[str, object], known: frozenset[str]) -> None:
    unknown = sorted(given.keys() - known)
    if unknown:
        raise BadParams(f"{where}: unknown key {_show(unknown[0])}: known are {', '.join(sorted(known))}")


def _read(given: Mapping[str, object]) -> dict[str, object]:
    return {key: _READERS[key](key, value) for key, value in given.items()}


def _check(config: PortConfig) -> PortConfig:
    """The rules that concern more than one key."""
    if config.type in DEVICES:
        if not config.devargs:
            raise BadParams(f"port {config.name}: a {config.type} port needs devargs, such as {DEVICES[config.type]}")
        if config.socket or config.role != "client":
            raise BadParams(f"port {config.name}: a {config.type} port has neither socket nor role")
    elif config.type is PortType.FF and (config.role != "client" or config.uplink):
        raise BadParams(f"port {config.name}: an ff port has no role, and is no uplink")
    elif config.devargs:
        raise BadParams(f"port {config.name}: devargs are for pmd and packet ports: say type pmd, or leave them out")
    if config.tag and (config.trunks or config.native_vlan):
        raise BadParams(
            f"port {config.name}: a tag makes it an access port, trunks and native_vlan a trunk: give one or the other"
        )
    if config.mirror == config.name:
        raise BadParams(f"port {config.name}: it cannot be its own mirror")
    _check_uplink(config)
    return config


def _check_uplink(config: PortConfig) -> None:
    if config.uplink and (config.tag or config.trunks or config.native_vlan):
        raise BadParams(f"port {config.name}: an uplink bridges nothing: leave out tag, trunks and native_vlan")
    networks = [ipaddress.ip_interface(uplink).network for uplink in config.uplink]
    for gateway in map(ipaddress.ip_address, config.uplink_gateway):
        if not any(gateway in network for network in networks):
            where = ", ".join(map(str, networks)) or "its uplink, which it has not"
            raise BadParams(f"port {config.name}: gateway {gateway} is not within {where}")


def read_port(given: Mapping[str, object], run_dir: Path) -> PortConfig:
    """The configuration that a port.add's keys ask for, defaults filled in.

    Raises BadParams.
    """
    _check_keys("port.add", given, ADD_KEYS)
    if "name" not in given:
        raise BadParams("port.add: the name is missing")
    config = _check(PortConfig(**_read(given)))  # type: ignore[arg-type]
    if config.type in DEVICES:
        return config
    if config.type is PortType.FF and config.socket:
        raise BadParams(f"port {config.name}: an ff port's socket is ff.sock in its directory: leave it out")
    socket = config.socket or default_socket(run_dir, config.name, config.type)
    check_socket_length(socket)
    return replace(config, socket=socket, mac=config.mac or default_mac(config.name))


def change_port(config: PortConfig, values: Mapping[str, object]) -> PortConfig:
    """`config` with port.set's `values`; raises BadParams."""
    _check_keys("port.set", values, SET_KEYS)
    if config.type is not PortType.FF and (wrong := sorted(values.keys() & _FF_ONLY)):
        raise BadParams(f"port {config.name}: {wrong[0]} is a setting of ff ports")
    return _check(replace(config, **_read(values)))  # type: ignore[arg-type]


def port_from_state(given: Mapping[str, object]) -> PortConfig:
    """A port as `port_to_json` wrote it; raises BadParams."""
    _check_keys("port", given, frozenset(_READERS))
    if "name" not in given:
        raise BadParams("a port without a name")
    return _check(PortConfig(**_read(given)))  # type: ignore[arg-type]


def port_to_json(config: PortConfig) -> dict[str, object]:
    """All fields of `config` in JSON's types."""
    values = asdict(config)
    return {key: list(values[key]) if isinstance(values[key], tuple) else values[key] for key in _READERS}


def differences(a: PortConfig, b: PortConfig) -> tuple[str, ...]:
    """The keys of port.add in which two configurations differ."""
    return tuple(f.name for f in fields(a) if f.name in ADD_KEYS and getattr(a, f.name) != getattr(b, f.name))


def told_mac(config: PortConfig) -> str:
    """The MAC that a port's container is to use: the controller's word goes first."""
    return config.assigned_mac or config.mac


def told_ips(config: PortConfig) -> tuple[str, ...]:
    """The addresses that a port's container is to use."""
    return config.assigned_ips or config.ips
