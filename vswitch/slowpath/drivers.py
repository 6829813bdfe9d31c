# SPDX-License-Identifier: Apache-2.0
"""Which DPDK poll-mode driver (PMD) drives what, read from the drivers' own files.

Every PMD carries `PMD_INFO_STRING= {json}` in its .rodata: its name, the PCI
ids that it drives, its device arguments and the kernel modules that it needs.
Reading these means that bad devargs are refused with a useful line before EAL
sees them, and that only the object in use is loaded.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

PMD_GLOBS = ("/usr/lib/*/dpdk/pmds-*", "/usr/local/lib/*/dpdk/pmds-*", "/usr/local/lib*/dpdk/pmds-*")
SYSFS_PCI = Path("/sys/bus/pci/devices")
PCI_ANY = 0xFFFF
NAME_MAX = 63  # RTE_DEV_NAME_MAX_LEN less its NUL
CACHE_FORMAT = 1

_PMD_INFO = re.compile(rb"PMD_INFO_STRING= (\{[^\0]*\})\0")
_PARAM = re.compile(r"[A-Za-z_][\w-]*(?==|\( )")
_PCI_ADDRESS = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])", re.IGNORECASE)
_REGISTER = re.compile(rb"\0rte_(vdev|pci|vmbus|dpaa|fslmc|ifpga)_(?:driver_)?register\0")


class DevargsError(ValueError):
    """Devargs that no driver takes; the text is one line for people."""


@dataclass(frozen=True, slots=True)
class Driver:
    """One PMD, as its PMD_INFO_STRING describes it."""

    name: str
    path: str  # the shared object
    bus: str  # "pci", "vdev", or that of a board this switch does not know
    alias: str = ""  # vdev: the older name that EAL takes too
    params: tuple[str, ...] = ()  # declared keys; () = none declared, so none can be checked
    params_text: str = ""  # as declared, with the form of each value
    pci_ids: tuple[tuple[int, int, int, int], ...] = ()  # vendor, device, subsystem's; PCI_ANY matches all
    kmod: str = ""  # "* a | b": bound to one of these modules


@dataclass(frozen=True, slots=True)
class PciDevice:
    """A PCI device of this machine, from sysfs."""

    address: str
    ids: tuple[int, int, int, int]
    class_code: int  # 24 bits; 0x02.... is a network device
    driver: str  # kernel driver bound, "" = none
    interfaces: tuple[str, ...] = ()  # kernel network interfaces on it
    iommu_group: str = ""

    @property
    def is_network(self) -> bool:
        """Whether its class is that of a network controller."""
        return self.class_code >> 16 == 0x02


def check_devargs(devargs: str) -> str:
    """Return the path of the shared object that drives `devargs`; DevargsError says in one line what is wrong."""
    return resolve(devargs, load_drivers(), lambda address: read_pci_device(SYSFS_PCI / address), read_rodata).path


def resolve(
    devargs: str,
    drivers: Sequence[Driver],
    pci_device: Callable[[str], PciDevice | None],
    rodata: Callable[[str], bytes],
) -> Driver:
    """Return the driver of `devargs` ("net_pcap0,iface=eth0", "0000:03:00.0,key=value"), or raise DevargsError.

    `pci_device` looks a full PCI address up; `rodata` reads that section of a shared object.
    """
    device, *arguments = split_devargs(devargs)
    bus, _, rest = device.partition(":")
    if bus in ("vdev", "pci"):
        device = rest
    if not device or len(device) > NAME_MAX:
        raise DevargsError(f"devargs '{devargs}': the device name must have 1 to {NAME_MAX} characters")
    if address := _PCI_ADDRESS.fullmatch(device):
        full = f"{address[1] or '0000'}:{address[2]}".lower()
        driver = _resolve_pci(full, pci_device(full), drivers)
    else:
        driver = _resolve_vdev(device, drivers)
    _check_arguments(driver, device, arguments, rodata)
    return driver


def split_devargs(devargs: str) -> list[str]:
    """Split at the commas outside [lists] and (sub-devices), as rte_kvargs does."""
    parts, depth = [""], 0
    for char in devargs.strip():
        depth += (char in "[(") - (char in "])")
        if char == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def driver_for_pci(ids: tuple[int, int, int, int], drivers: Iterable[Driver]) -> Driver | None:
    """Return the driver that claims a PCI device of these ids, or None."""
    for driver in drivers:
        for wanted in driver.pci_ids:
            if all(want in (PCI_ANY, have) for want, have in zip(wanted, ids, strict=True)):
                return driver
    return None


def kernel_modules(driver: Driver) -> list[str]:
    """Return the kernel drivers that a device of `driver` may be bound to; [] = it does not say."""
    words = re.findall(r"[\w-]+", driver.kmod)
    return ["vfio-pci" if word == "vfio" else word for word in words]


def binding_problem(device: PciDevice, driver: Driver) -> str:
    """Return why EAL would pass over `device`, and what to do, as one line; "" = it would take it."""
    modules = kernel_modules(driver)
    if not modules or device.driver in modules:
        return ""
    if "mlx" in driver.kmod:  # bifurcated: the device stays with its kernel driver
        return f"its kernel driver is {device.driver or 'missing'}; {driver.name} needs {' and '.join(modules)}"
    module = "vfio-pci" if "vfio-pci" in modules else modules[0]
    held = f"the kernel's {device.driver} holds it" if device.driver else "no kernel driver holds it"
    return f"{held}; bind it with 'modprobe {module} && dpdk-devbind.py --bind={module} {device.address}'"


def _resolve_pci(address: str, device: PciDevice | None, drivers: Sequence[Driver]) -> Driver:
    if device is None:
        raise DevargsError(f"no PCI device {address}; 'ffswitch drivers' lists those of this machine")
    driver = driver_for_pci(device.ids, drivers)
    if driver is None:
        raise DevargsError(
            f"no network driver for PCI device {address} ({device.ids[0]:04x}:{device.ids[1]:04x}); "
            "'ffswitch drivers' lists what is installed"
        )
    if problem := binding_problem(device, driver):
        raise DevargsError(f"PCI device {address} ({driver.name}): {problem}")
    return driver


def _resolve_vdev(device: str, drivers: Sequence[Driver]) -> Driver:
    """EAL's rule: a vdev's name begins with its driver's name or alias; the longest one wins here."""
    named = [(name, driver) for driver in drivers if driver.bus == "vdev" for name in (driver.name, driver.alias)]
    matches = [(name, driver) for name, driver in named if name and device.startswith(name)]
    if matches:
        return max(matches, key=lambda match: len(match[0]))[1]
    for driver in drivers:
        if driver.bus == "pci" and device.startswith(driver.name):
            raise DevargsError(f"{driver.name} drives PCI devices: give the address of one, such as 0000:03:00.0")
    stem = device.rstrip("0123456789")
    names = {name: driver.name for name, driver in named if name}
    near = dict.fromkeys(names[name] for name in difflib.get_close_matches(stem, names, n=3, cutoff=0.6))
    hint = f"did you mean {' or '.join(near)}?" if near else "'ffswitch drivers' lists the known ones"
    raise DevargsError(f"unknown PMD in '{device}': {hint}")


def _check_arguments(driver: Driver, device: str, arguments: Sequence[str], rodata: Callable[[str], bytes]) -> None:
    if not driver.params:
        return
    for argument in arguments:
        found = re.match(r"[^=(]*", argument)
        key = found[0].strip() if found else ""
        if key in driver.params:
            continue
        # Some drivers read keys that they do not declare; such a key is one of the object's strings.
        if key and b"\0%b\0" % key.encode() in rodata(driver.path):
            continue
        near = difflib.get_close_matches(key, driver.params, n=1, cutoff=0.7)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise DevargsError(
            f"{device}: {driver.name} has no parameter '{key}'{hint}; it accepts {', '.join(driver.params)}"
        )


# ---- reading: shared objects, the cache of what they said, sysfs ------------


def find_pmd_dir() -> Path | None:
    """Return the directory of the newest ABI's PMDs, or None if there is none."""
    found = [path for pattern in PMD_GLOBS for path in Path("/").glob(pattern.lstrip("/")) if path.is_dir()]
    return max(found, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)], default=None)


@cache
def load_drivers() -> tuple[Driver, ...]:
    """Return the network PMDs installed, sorted by name; DevargsError if there are none.

    Parsing the objects costs a quarter of a second, so the result is kept in a
    file that is used for as long as the objects' sizes and times are the same.
    """
    directory = find_pmd_dir()
    objects = sorted(directory.glob("librte_net_*.so")) if directory else []
    if not objects:
        raise DevargsError(f"no DPDK drivers in {directory or PMD_GLOBS[0]}: install them with 'apt install dpdk-dev'")
    stamp = [CACHE_FORMAT, *([str(path), path.stat().st_mtime_ns, path.stat().st_size] for path in objects)]
    cached = _read_cache(stamp)
    if cached is None:
        cached = tuple(sorted((driver for path in objects for driver in read_object(path)), key=lambda d: d.name))
        _write_cache(stamp, cached)
    return cached


def _cache_path() -> Path:
    if os.geteuid() == 0:
        return Path("/var/cache/ffswitch/drivers.json")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ffswitch" / "drivers.json"


def _read_cache(stamp: list[object]) -> tuple[Driver, ...] | None:
    try:
        kept = json.loads(_cache_path().read_text())
        if kept["stamp"] != stamp:
            return None
        return tuple(
            Driver(
                **{
                    **entry,
                    "params": tuple(entry["params"]),
                    "pci_ids": tuple((i[0], i[1], i[2], i[3]) for i in entry["pci_ids"]),
                }
            )
            for entry in kept["drivers"]
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError):
        return None


def _write_cache(stamp: list[object], drivers: Iterable[Driver]) -> None:
    """Keep the parse; where that cannot be written, the next run parses again."""
    try:
        path = _cache_path()
        part = path.with_suffix(f".{os.getpid()}")
        path.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return
    try:
        part.write_text(json.dumps({"stamp": stamp, "drivers": [asdict(driver) for driver in drivers]}))
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)


def _section(path: Path, name: str) -> bytes:
    from elftools.common.exceptions import ELFError  # noqa: PLC0415  (60 ms: only when the cache is stale)
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415

    try:
        with path.open("rb") as file:
            section = ELFFile(file).get_section_by_name(name)
            return bytes(section.data()) if section else b""
    except ELFError:
        return b""


def read_object(path: Path) -> list[Driver]:
    """Return the drivers that a shared object holds."""
    rodata = _section(path, ".rodata")
    infos = [json.loads(found[1]) for found in _PMD_INFO.finditer(rodata)]
    if not infos:
        return []
    buses = [found[1].decode() for found in _REGISTER.finditer(_section(path, ".dynstr"))]
    return [_driver(path, info, rodata, buses) for info in infos]


def _driver(path: Path, info: dict[str, object], rodata: bytes, buses: list[str]) -> Driver:
    name, text = str(info["name"]), str(info.get("params") or "").strip()
    ids = info.get("pci_ids")
    pci_ids = tuple((int(i[0]), int(i[1]), int(i[2]), int(i[3])) for i in ids) if isinstance(ids, list) else ()
    others = [bus for bus in buses if bus != "pci"]
    bus = "pci" if pci_ids else (others or buses or ["pci"])[0]
    return Driver(
        name=name,
        path=str(path),
        bus=bus,
        alias=_alias(name, rodata) if bus == "vdev" else "",
        params=param_keys(text, rodata),
        params_text=text,
        pci_ids=pci_ids,
        kmod=str(info.get("kmod") or "").strip(),
    )


def _alias(name: str, rodata: bytes) -> str:
    """RTE_PMD_REGISTER_ALIAS leaves the alias as a string; DPDK's are eth_X for net_X, two have their own."""
    stem = name.removeprefix("net_")
    if stem == "virtio_user":
        return stem
    alias = "eth_bond" if stem == "bonding" else f"eth_{stem}"
    return alias if b"\0%b\0" % alias.encode() in rodata else ""


def param_keys(text: str, rodata: bytes) -> tuple[str, ...]:
    """Return the keys of a parameter string, each once.

    Many drivers forget the blank between "a=<int>" and "b=..", so a key may
    have the end of the value before it glued on: the object's own strings tell
    where it begins. (A linker may store a string as the tail of another.)
    """
    keys: list[str] = []
    for found in _PARAM.findall(re.sub(r"<[^>]*>", " ", text)):
        tails = (found[start:] for start in range(len(found) - 1))
        key = next((tail for tail in tails if tail.encode() + b"\0" in rodata), found)
        if key not in keys:
            keys.append(key)
    return tuple(keys)


def read_rodata(path: str) -> bytes:
    """Return the .rodata of a shared object."""
    return _section(Path(path), ".rodata")


def read_pci_device(path: Path) -> PciDevice | None:
    """Read one directory of /sys/bus/pci/devices; None if there is no such device."""

    def number(name: str) -> int:
        return int((path / name).read_text(), 16)

    def link(name: str) -> str:
        target = path / name
        return target.resolve().name if target.exists() else ""

    try:
        ids = (number("vendor"), number("device"), number("subsystem_vendor"), number("subsystem_device"))
        # virtio puts its own directory between the PCI device and the interface.
        interfaces = sorted({net.name for pattern in ("net/*", "virtio*/net/*") for net in path.glob(pattern)})
        return PciDevice(path.name, ids, number("class"), link("driver"), tuple(interfaces), link("iommu_group"))
    except (OSError, ValueError):
        return None


def pci_network_devices(sysfs: Path = SYSFS_PCI) -> list[PciDevice]:
    """Return the PCI network devices of this machine, by address."""
    devices = (read_pci_device(path) for path in sorted(sysfs.glob("*")))
    return [device for device in devices if device is not None and device.is_network]
