# SPDX-License-Identifier: Apache-2.0
"""What this host has and lacks for the switch. `gather` looks, `diagnose` judges; no other function does I/O."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import resource
import shutil
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from vswitch import __version__
from vswitch.slowpath import drivers
from vswitch.slowpath.drivers import Driver, PciDevice
from vswitch.slowpath.rdma import NO_DEVICE, Discovery, GidKind, discover, gid_text

DPDK_MIN = (22, 11, 11)
SOCKET_PATH_MAX = 107  # sun_path's 108 bytes less the NUL (unix(7))
PORT_NAME_MAX = 31
MEMORY_MB = 512  # the daemon's default without huge pages
FILES_PER_PORT = 40  # memory regions, rings and eventfds of a port with a few queues
MIN_FILES = 1024
CAPABILITIES = {"NET_ADMIN": 12, "NET_RAW": 13, "IPC_LOCK": 14, "SYS_ADMIN": 21}
RUNTIMES = ("podman", "docker", "runc", "crun")


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: `what` is so, and `todo` is what to do about it ("" = nothing)."""

    level: Level
    topic: str
    what: str
    todo: str = ""


@dataclass(frozen=True, slots=True)
class HugePages:
    """Huge pages of one size."""

    size_kb: int
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that diagnose() judges. The defaults are those of a host that lacks nothing."""

    dpdk_version: str = "22.11.11"  # as rte_version() says it, "" = no library
    fast_path_built: bool = True
    pmd_dir: str = "/usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0"
    drivers: tuple[Driver, ...] = ()
    huge_pages: tuple[HugePages, ...] = ()
    huge_mounts: tuple[str, ...] = ()
    memory_mb: int = 16384  # available
    root: bool = True
    capabilities: int = (1 << 41) - 1
    memlock: int = resource.RLIM_INFINITY
    files: int = 1 << 20
    cpus: tuple[int, ...] = (0, 1)
    isolated: str = ""
    governors: tuple[str, ...] = ()
    run_dir: str = "/run/ffswitch"
    run_dir_exists: bool = True
    run_dir_writable: bool = True
    daemon: str = "running"  # "running", "absent", "stale" (a socket nobody listens on), or why it cannot be asked
    daemon_version: str = __version__
    pci: tuple[PciDevice, ...] = ()
    iommu_groups: int = 0
    vfio_loaded: bool = False
    tun: bool = True
    runtimes: tuple[str, ...] = field(default=("runc",))
    rdma: Discovery = field(default=Discovery())


def diagnose(facts: Facts) -> list[Finding]:
    """Return the findings, in the order in which a person sets a host up."""
    return [finding for check in _CHECKS for finding in check(facts)]


def parse_version(text: str) -> tuple[int, ...]:
    """ "DPDK 22.11.11" -> (22, 11, 11)."""
    found = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _dpdk(facts: Facts) -> Iterable[Finding]:
    wanted = ".".join(map(str, DPDK_MIN))
    if not facts.dpdk_version:
        yield Finding(Level.ERROR, "DPDK", "not installed", "apt install libdpdk-dev dpdk-dev")
    elif parse_version(facts.dpdk_version) < DPDK_MIN:
        todo = "apt update && apt install --only-upgrade libdpdk-dev dpdk-dev"
        yield Finding(Level.ERROR, "DPDK", f"{facts.dpdk_version} is older than {wanted}", todo)
    else:
        yield Finding(Level.OK, "DPDK", facts.dpdk_version)
    if not facts.fast_path_built:
        yield Finding(Level.ERROR, "fast path", "the C module is not built", "run 'make build' in the source tree")


def _drivers(facts: Facts) -> Iterable[Finding]:
    if facts.drivers:
        yield Finding(Level.OK, "drivers", f"{len(facts.drivers)} network drivers in {facts.pmd_dir}")
    else:
        where = facts.pmd_dir or drivers.PMD_GLOBS[0]
        yield Finding(Level.ERROR, "drivers", f"no network drivers in {where}", "apt install dpdk-dev")


def _memory(facts: Facts) -> Iterable[Finding]:
    pages = [page for page in facts.huge_pages if page.total]
    mounted = f", mounted on {facts.huge_mounts[0]}" if facts.huge_mounts else ""
    for page in pages:
        size = f"{page.size_kb // 1048576} GB" if page.size_kb >= 1048576 else f"{page.size_kb // 1024} MB"
        free_mb = page.free * page.size_kb // 1024
        yield Finding(Level.OK, "hugepages", f"{page.free} of {page.total} x {size} free ({free_mb} MB){mounted}")
    if not pages:
        todo = f"for speed: echo {MEMORY_MB // 2} > /proc/sys/vm/nr_hugepages"
        yield Finding(Level.OK, "hugepages", "none: the switch works without, a little slower", todo)
    free_huge = sum(page.free * page.size_kb for page in pages) // 1024
    if facts.memory_mb + free_huge < MEMORY_MB:
        what = f"{facts.memory_mb} MB available, and the switch takes {MEMORY_MB} MB unless told"
        yield Finding(Level.ERROR, "memory", what, "free some, or give ffswitchd a smaller --memory and --mbufs")
    else:
        yield Finding(Level.OK, "memory", f"{facts.memory_mb} MB available")


def _rights(facts: Facts) -> Iterable[Finding]:
    missing = [name for name, bit in CAPABILITIES.items() if not facts.capabilities >> bit & 1]
    if not missing:
        yield Finding(Level.OK, "rights", "root" if facts.root else "all capabilities that the switch uses")
    elif "NET_ADMIN" in missing:
        what = f"no {', '.join('CAP_' + name for name in missing)}: only vhost-user ports can work"
        yield Finding(Level.WARN, "rights", what, "run ffswitchd (and this) as root")
    else:
        what = f"no {', '.join('CAP_' + name for name in missing)}"
        yield Finding(Level.WARN, "rights", what, "give the container or service these capabilities if a port fails")
    if "IPC_LOCK" in missing and facts.memlock != resource.RLIM_INFINITY:
        what = f"memory lock limit of {facts.memlock // 1024} kB and no CAP_IPC_LOCK: af_xdp and vfio ports will fail"
        yield Finding(Level.WARN, "rights", what, "ulimit -l unlimited (systemd: LimitMEMLOCK=infinity)")


def _processors(facts: Facts) -> Iterable[Finding]:
    number = len(facts.cpus)
    isolated = f", isolated: {facts.isolated}" if facts.isolated else ""
    if number < 2:
        what = "1 CPU: the worker, Python and the containers share it"
        yield Finding(Level.WARN, "CPUs", what, "give this machine a second CPU")
    else:
        yield Finding(Level.OK, "CPUs", f"{number} usable{isolated}")
    slow = sorted(set(facts.governors) - {"performance", "schedutil"})
    if slow:
        todo = "for steady speed: cpupower frequency-set -g performance"
        yield Finding(Level.WARN, "CPUs", f"frequency governor {', '.join(slow)}", todo)


def _daemon(facts: Facts) -> Iterable[Finding]:
    sock = f"{facts.run_dir}/ffswitch.sock"
    longest = len(os.fsencode(f"{facts.run_dir}/ports//vhost.sock"))
    if longest + PORT_NAME_MAX > SOCKET_PATH_MAX:
        what = f"{facts.run_dir} leaves {max(0, SOCKET_PATH_MAX - longest)} bytes for port names"
        level = Level.ERROR if longest + 1 > SOCKET_PATH_MAX else Level.WARN
        yield Finding(
            level, "run directory", what, f"socket paths end at {SOCKET_PATH_MAX} bytes: use a shorter --run-dir"
        )
    if facts.run_dir_exists and not facts.run_dir_writable:
        yield Finding(
            Level.WARN, "run directory", f"{facts.run_dir} is not writable here", "run ffswitchd as its owner or root"
        )
    if facts.daemon == "running":
        if facts.daemon_version == __version__:
            yield Finding(Level.OK, "daemon", f"ffswitchd {facts.daemon_version} answers on {sock}")
        else:
            what = f"ffswitchd {facts.daemon_version} runs, this is {__version__}"
            yield Finding(Level.WARN, "daemon", what, "restart ffswitchd; running containers carry on")
    elif facts.daemon == "absent":
        yield Finding(Level.WARN, "daemon", f"not running: no {sock}", "start ffswitchd, or name its --run-dir")
    elif facts.daemon == "stale":
        yield Finding(
            Level.WARN, "daemon", f"not running: nobody listens on {sock}", "start ffswitchd; it replaces the socket"
        )
    else:
        yield Finding(Level.WARN, "daemon", f"cannot be asked on {sock}: {facts.daemon}", "run this as root")


def _network(facts: Facts) -> Iterable[Finding]:
    needs_vfio = False
    for device in facts.pci:
        driver = drivers.driver_for_pci(device.ids, facts.drivers)
        what = f"{device.address} {device.ids[0]:04x}:{device.ids[1]:04x}"
        what += f" ({', '.join(device.interfaces)})" if device.interfaces else ""
        if driver is None:
            yield Finding(
                Level.OK, "PCI", f"{what}: no PMD drives it", "use its interface by net_af_xdp or net_af_packet"
            )
            continue
        if problem := drivers.binding_problem(device, driver):
            what += f": {driver.name} could drive it, {problem.partition('; ')[0]}"
            todo = f"to give it to the switch, {problem.partition('; ')[2]}"
            yield Finding(Level.OK, "PCI", what, todo)
        else:
            what += f": {driver.name} drives it, by {device.driver or 'no kernel driver'}"
            yield Finding(Level.OK, "PCI", what, f"ffswitch add-port NAME --devargs {device.address}")
        needs_vfio |= device.driver == "vfio-pci"
    if facts.iommu_groups:
        yield Finding(
            Level.OK, "IOMMU", f"{facts.iommu_groups} groups, vfio {'loaded' if facts.vfio_loaded else 'not loaded'}"
        )
    elif needs_vfio:
        todo = "boot with intel_iommu=on or amd_iommu=on, or set vfio's enable_unsafe_noiommu_mode"
        yield Finding(Level.WARN, "IOMMU", "none, and a device is bound to vfio-pci", todo)
    else:
        yield Finding(Level.OK, "IOMMU", "none: needed only by PCI devices on vfio-pci")
    if facts.tun:
        yield Finding(Level.OK, "TAP", "/dev/net/tun is there")
    else:
        yield Finding(Level.WARN, "TAP", "no /dev/net/tun: net_tap ports will fail", "modprobe tun")


def _limits(facts: Facts) -> Iterable[Finding]:
    about = facts.files // FILES_PER_PORT
    if facts.files < MIN_FILES * 4:
        todo = "ulimit -n 65536 before ffswitchd (systemd: LimitNOFILE=65536)"
        yield Finding(Level.WARN, "open files", f"at most {facts.files}: enough for about {about} ports", todo)
    else:
        yield Finding(Level.OK, "open files", f"at most {facts.files}")


def _rdma(facts: Facts) -> Iterable[Finding]:
    for port in facts.rdma.ports:
        gids = [gid for gid in port.gids if gid.kind is not GidKind.ROCE_V1 and not gid.address.is_link_local]
        if not port.active:
            todo = "check the cable and the driver; hosts are reached by VXLAN until then"
            yield Finding(Level.WARN, "RDMA", f"{port.label} is {port.state}", todo)
        elif port.ethernet and not gids:
            todo = "give its network interface an IP address that is not link-local"
            yield Finding(Level.WARN, "RDMA", f"{port.label} has no RoCE v2 GID that other hosts can reach", todo)
        else:
            yield Finding(Level.OK, "RDMA", f"{port.label} is active, {', '.join(gid_text(g.address) for g in gids)}")
    for problem in facts.rdma.problems:
        level = Level.OK if problem == NO_DEVICE else Level.WARN
        yield Finding(level, "RDMA", problem, "" if level is Level.OK else "hosts are reached by VXLAN until then")


def _containers(facts: Facts) -> Iterable[Finding]:
    if facts.runtimes:
        yield Finding(Level.OK, "containers", f"{', '.join(facts.runtimes)}")
    else:
        yield Finding(Level.WARN, "containers", "none of podman, docker, runc, crun is here", "apt install podman runc")


_CHECKS: Sequence[Callable[[Facts], Iterable[Finding]]] = (
    _dpdk,
    _drivers,
    _memory,
    _rights,
    _processors,
    _limits,
    _network,
    _rdma,
    _containers,
    _daemon,
)


# ---- looking ----------------------------------------------------------------


def gather(run_dir: Path) -> Facts:
    """Look at this host; what cannot be read counts as absent."""
    pmd_dir = drivers.find_pmd_dir()
    known: tuple[Driver, ...] = ()
    with suppress(drivers.DevargsError):
        known = drivers.load_drivers()
    daemon, daemon_version = _ask_daemon(run_dir)
    status = _read(Path("/proc/self/status"))
    capabilities = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    available = re.search(r"^MemAvailable:\s*(\d+)", _read(Path("/proc/meminfo")), re.MULTILINE)
    governors = {_read(path).strip() for path in Path("/sys/devices/system/cpu").glob("cpu*/cpufreq/scaling_governor")}
    groups = Path("/sys/kernel/iommu_groups")
    return Facts(
        dpdk_version=_dpdk_version(),
        fast_path_built=importlib.util.find_spec("vswitch._ff") is not None,
        pmd_dir=str(pmd_dir or ""),
        drivers=known,
        huge_pages=tuple(_huge_pages()),
        huge_mounts=tuple(_huge_mounts()),
        memory_mb=int(available[1]) // 1024 if available else 0,
        root=os.geteuid() == 0,
        capabilities=int(capabilities[1], 16) if capabilities else 0,
        memlock=resource.getrlimit(resource.RLIMIT_MEMLOCK)[1],
        files=_file_limit(),
        cpus=tuple(sorted(os.sched_getaffinity(0))),
        isolated=_read(Path("/sys/devices/system/cpu/isolated")).strip(),
        governors=tuple(sorted(governors)),
        run_dir=str(run_dir),
        run_dir_exists=run_dir.is_dir(),
        run_dir_writable=os.access(run_dir, os.W_OK),
        daemon=daemon,
        daemon_version=daemon_version,
        pci=tuple(drivers.pci_network_devices()),
        iommu_groups=len(list(groups.glob("*"))),
        vfio_loaded=Path("/sys/module/vfio_pci").is_dir(),
        tun=Path("/dev/net/tun").exists(),
        runtimes=tuple(name for name in RUNTIMES if shutil.which(name)),
        rdma=discover(),
    )


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _dpdk_version() -> str:
    """Ask the library itself, so that the one found is the one that counts."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("librte_eal.so.23")
        library.rte_version.restype = ctypes.c_char_p
        return str(library.rte_version().decode()).removeprefix("DPDK ")
    return ""


def _huge_pages() -> Iterable[HugePages]:
    for path in sorted(Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB")):
        with suppress(ValueError):
            size = int(path.name.removeprefix("hugepages-").removesuffix("kB"))
            yield HugePages(size, int(_read(path / "nr_hugepages")), int(_read(path / "free_hugepages")))


def _huge_mounts() -> Iterable[str]:
    for line in _read(Path("/proc/self/mounts")).splitlines():
        fields = line.split()
        if fields[2] == "hugetlbfs":
            yield fields[1]


def _file_limit() -> int:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 1 << 30 if hard == resource.RLIM_INFINITY else hard


def _ask_daemon(run_dir: Path) -> tuple[str, str]:
    """Return Facts.daemon and Facts.daemon_version."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(2.0)
            connection.connect(str(run_dir / "ffswitch.sock"))
            connection.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "version", "params": {}}\n')
            with connection.makefile() as answers:
                return "running", str(json.loads(answers.readline())["result"]["version"])
    except FileNotFoundError:
        return "absent", ""
    except ConnectionRefusedError:
        return "stale", ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "it gives no answer"
        return reason, ""
