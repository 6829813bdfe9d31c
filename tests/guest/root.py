# SPDX-License-Identifier: Apache-2.0
"""Root file systems for guests that run more than busybox, as two read-only layers on disks that guests share.

`system` has Debian's packages, taken from its archive whatever this machine has installed: unpacked, never set up. It
is made once, in build/guest. `tree` has this working tree with its virtual environment, at the same path as here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tests.guest import image
from tests.guest.image import CACHE, ImageError

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "build/rdma/lib/vswitch/_ff.abi3.so"  # for any CPU that QEMU emulates, see the Makefile
PACKAGES = (
    *("base-files", "base-passwd", "bash", "busybox-static", "coreutils", "kmod", "mount", "procps", "util-linux"),
    *("ethtool", "iperf3", "iproute2", "iputils-ping", "tcpdump"),
    *("ibverbs-providers", "ibverbs-utils", "perftest", "python3-pyverbs"),
    *("dpdk-dev", "libstdc++6", "python3", "runc"),
)
PMDS = (
    *("bus_pci", "bus_vdev", "mempool_ring"),
    *("net_af_packet", "net_null", "net_pcap", "net_ring", "net_tap", "net_vhost", "net_virtio"),
)
# Loaded by name, with `modprobe`; what they need is there, too.
MODULES = (
    *("rdma_rxe", "crc32_generic", "ib_uverbs", "rdma_ucm"),
    *("8021q", "bridge", "dummy", "sch_netem", "tun", "veth", "vxlan"),
)
NEEDLESS = ("./usr/include", "./usr/share/doc", "./usr/share/info", "./usr/share/locale", "./usr/share/man", "*.a")
TREE: dict[str, Sequence[str]] = {  # directories, and what of them is left out
    "controller": (),
    "scripts": (),
    "tests": (),
    "vswitch": (MODULE.name,),
    # what builds and checks the tree
    ".venv": ("grpc_tools", "hypothesis*", "mypy*", "*__mypyc*", "pip*", "ruff*", "setuptools*"),
}
COMMANDS = ("ffswitchd", "ffswitch", "ffcontroller", "ffctl")


def system() -> Path:
    """Return the layer with Debian's packages, made now unless the one of an earlier call still fits; ImageError."""
    CACHE.mkdir(parents=True, exist_ok=True)
    kernel = image.kernel_package()
    digest = hashlib.sha256(Path(__file__).read_bytes() + kernel.name.encode()).hexdigest()[:12]
    made = CACHE / f"system-{digest}.erofs"
    if not made.exists():
        _pack(made, lambda root: _fill_system(root, kernel))
        for older in CACHE.glob("system-*.erofs"):  # a guest that runs has it open
            if older != made:
                older.unlink()
    return made


def tree(directory: Path) -> Path:
    """Make the layer with the working tree of this moment in `directory` and return it; ImageError."""
    if not MODULE.exists():
        raise ImageError(f"{MODULE} is missing; run make build/rdma.stamp")
    made = directory / "tree.erofs"
    _pack(made, _fill_tree)
    return made


def _pack(made: Path, fill: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        root, fresh = Path(name) / "root", Path(name) / "image"
        root.mkdir()
        fill(root)
        # not compressed: under emulation, unpacking takes longer than reading
        image.run(["mkfs.erofs", "--quiet", str(fresh), str(root)], name)
        shutil.move(fresh, made)


def _fill_system(root: Path, kernel: Path) -> None:
    scratch = root.parent
    for directory in ("bin", "lib", "lib64", "sbin"):  # Debian's merged /usr, which its packages leave to debootstrap
        (root / "usr" / directory).mkdir(parents=True)
        (root / directory).symlink_to(f"usr/{directory}")
    _copy_modules(root, kernel)
    unpack = ["tar", "-x", "--keep-directory-symlink", *(f"--exclude={path}" for path in NEEDLESS), "-C", str(root)]
    for package in _download(scratch / "packages"):
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as files:
            assert files.stdout
            image.run(unpack, scratch, stdin=files.stdout)
        if files.returncode:
            raise ImageError(f"{package.name} cannot be unpacked; is the disk full?")
    _thin_out(root)
    _set_up(root)


def _thin_out(root: Path) -> None:
    """Leave EAL the PMDs that the tests use: it loads all in their directory, which takes long under emulation."""
    libraries = root / "usr/lib/x86_64-linux-gnu"
    for driver in (libraries / "dpdk").glob("pmds-*/*"):
        if driver.name.split(".so")[0].removeprefix("librte_") in PMDS:
            continue
        linked = libraries / driver.name
        if linked.is_symlink():  # testpmd itself wants it
            driver.rename(linked)
        else:
            driver.unlink()


def _copy_modules(root: Path, kernel: Path) -> None:
    _, modules = image.unpack(kernel, root.parent)
    there = root / "lib/modules" / modules.name
    for module in image.in_order(modules, MODULES):
        copy = there / module.relative_to(modules)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(module, copy)
    for index in modules.glob("modules.*"):  # what depmod wants to see
        shutil.copy(index, there)


def _download(directory: Path) -> Iterable[Path]:
    """PACKAGES and all that they depend on, as if nothing was installed here."""
    (directory / "partial").mkdir(parents=True)
    nothing = directory / "status"
    nothing.touch()
    options = [f"Dir::State::status={nothing}", f"Dir::Cache::archives={directory}", "APT::Sandbox::User=root",
               "APT::Install-Recommends=false"]  # fmt: skip
    command = ["apt-get", "-qq", *(word for option in options for word in ("-o", option))]
    image.run(["apt-get", "-qq", "update"], directory)
    image.run([*command, "--download-only", "-y", "install", *PACKAGES], directory)
    return sorted(directory.glob("*.deb"))


def _set_up(root: Path) -> None:
    """What the packages' scripts would have done, as far as it is needed."""
    for name in ("passwd", "group"):
        shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    (root / "etc/nsswitch.conf").write_text("hosts: files\n")
    (root / "shared").mkdir()  # see Guest.shared
    busybox = root / "usr/bin/busybox"
    for applet in image.run([str(busybox), "--list"], root).stdout.decode().split():
        if not any((root / "usr" / directory / applet).exists() for directory in ("bin", "sbin")):
            (root / "usr/bin" / applet).symlink_to("busybox")
    # busybox's depmod does not make the indexes that Debian's modprobe reads
    for modules in (root / "lib/modules").iterdir():
        image.run(["chroot", str(root), "depmod", modules.name], root)
    compiled = [str(path) for path in (root / "usr/lib").glob("python3*")]
    image.run([sys.executable, "-m", "compileall", "-q", "-j", "0", "-s", str(root), "-p", "/", *compiled], root)


def _fill_tree(root: Path) -> None:
    here = root / ROOT.relative_to("/")
    for name, left_out in TREE.items():
        ignore = shutil.ignore_patterns(*left_out)
        shutil.copytree(ROOT / name, here / name, symlinks=True, copy_function=os.link, ignore=ignore)
    shutil.copy2(MODULE, here / "vswitch" / MODULE.name)
    programs = root / "usr/local/bin"
    programs.mkdir(parents=True)
    for command in COMMANDS:
        (programs / command).symlink_to(ROOT / ".venv/bin" / command)
    image.run([sys.executable, "-m", "compileall", "-q", str(here / "vswitch"), str(here / "controller")], root)


if __name__ == "__main__":
    try:
        print(system())
    except ImageError as problem:
        raise SystemExit(f"guest root: {problem}") from None
