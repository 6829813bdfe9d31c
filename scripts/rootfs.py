# SPDX-License-Identifier: Apache-2.0
"""A small root file system for containers that run dpdk-testpmd, made from this machine's own files."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable
from pathlib import Path

BUILD = Path(__file__).resolve().parent.parent / "build"
BUSYBOX = Path("/usr/bin/busybox")

# EAL loads whatever lies in its PMD directory, so only these go there: each costs start-up time and memory.
PMDS = (
    "bus_vdev",
    "bus_pci",  # net_virtio needs it even for virtio-user
    "mempool_ring",
    "net_virtio",
    "net_pcap",
    "net_null",
    "net_ring",
    "net_af_packet",
    "net_tap",
)
NET_FF = BUILD / "endpoint/librte_net_ff.so"  # of `make build`, for memory ports; goes to where the others are

DIRECTORIES = ("dev", "etc", "proc", "run", "sys", "tmp", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "var")
# Debian's merged /usr; EAL keeps its runtime files under /var/run.
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64", "var/run": "../run"}


class RootfsError(Exception):
    """One line for people: what is missing and what to do."""


def prepare() -> Path:
    """Return the root file system's directory, made now unless the one of an earlier call still fits."""
    sources = _sources()
    root = BUILD / f"rootfs-{_fingerprint(sources)}"
    if root.is_dir():
        return root
    BUILD.mkdir(exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="rootfs.", dir=BUILD))
    try:
        scratch.chmod(0o755)
        _fill(scratch, sources)
        scratch.rename(root)
    except OSError:
        if not root.is_dir():  # else another run-container was quicker, with the same content
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return root


def _libraries_directory() -> Path:
    return Path("/usr/lib", str(sysconfig.get_config_var("MULTIARCH")))


def _sources() -> list[Path]:
    libraries = _libraries_directory()
    sources = [
        Path("/usr/bin/dpdk-testpmd"),
        BUSYBOX,
        libraries / "libgcc_s.so.1",  # glibc loads it by itself when a thread is cancelled
        *(libraries / f"dpdk/pmds-23.0/librte_{name}.so.23" for name in PMDS),
    ]
    for source in sources:
        if not source.exists():
            raise RootfsError(f"{source} is missing; run scripts/install-deps")
    if not NET_FF.exists():
        raise RootfsError(f"{NET_FF} is missing; run make build")
    return [*sources, NET_FF]


def _fingerprint(sources: Iterable[Path]) -> str:
    """Change whenever a source or this file does. Libraries are copied along, so they may change without harm."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for source in sources:
        stat = source.stat()
        digest.update(f"{source} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def _fill(root: Path, sources: Iterable[Path]) -> None:
    for directory in DIRECTORIES:
        (root / directory).mkdir(parents=True)
    for link, target in LINKS.items():
        (root / link).symlink_to(target)
    for source in sources:
        if source != NET_FF:
            _copy(root, source)
    shutil.copy(NET_FF, root / (_libraries_directory() / "dpdk/pmds-23.0").relative_to("/"))
    for library in _libraries(sources):
        _copy(root, library)
    applets = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split()
    for applet in set(applets) - {"busybox"}:
        (root / "usr/bin" / applet).symlink_to("busybox")
    # EAL refuses plugins below a world-writable directory.
    for directory, _, _ in os.walk(root):
        Path(directory).chmod(0o755)


def _copy(root: Path, path: Path) -> None:
    """Copy `path` to the same place under `root`, as the chain of symbolic links that it is.

    A library copied twice instead of linked would be loaded twice, and a PMD registers itself on each load.
    """
    path = path.parent.resolve() / path.name
    there = root / path.relative_to("/")
    if os.path.lexists(there):
        return
    there.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        target = path.readlink()
        there.symlink_to(target)
        _copy(root, path.parent / target)
    else:
        shutil.copy(path, there)


def _libraries(objects: Iterable[Path]) -> set[Path]:
    """Return the shared libraries that the dynamic linker loads for `objects`."""
    found = set()
    for path in objects:
        listing = subprocess.run(["ldd", path], check=False, capture_output=True, text=True)
        if listing.returncode:  # a static executable
            continue
        for line in listing.stdout.splitlines():
            if "not found" in line:
                raise RootfsError(f"{path} needs a library that is missing: {line.strip()}; run scripts/install-deps")
            name = next((word for word in reversed(line.split()) if word.startswith("/")), None)
            if name:
                found.add(Path(name))
    return found


if __name__ == "__main__":
    try:
        print(prepare())
    except RootfsError as problem:
        raise SystemExit(f"rootfs: {problem}") from None
