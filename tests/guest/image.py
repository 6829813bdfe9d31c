# SPDX-License-Identifier: Apache-2.0
"""What the guests boot: Debian's kernel, and an initramfs of busybox, a few modules, `init` and `agent`.

The kernel's package is unpacked, never installed. All of it is made once, in build/guest.
"""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

CACHE = Path(__file__).resolve().parents[2] / "build/guest"
INIT, AGENT = (Path(__file__).with_name(name) for name in ("init", "agent"))
BUSYBOX = Path("/usr/bin/busybox")
PACKAGE = "linux-image-amd64"
MODULES = ("virtio_pci", "virtio_net", "8021q")  # loaded at boot, each after those that it needs
ROOT_MODULES = ("virtio_blk", "crc32c_generic", "erofs", "overlay", "9p", "9pnet_virtio")  # when there are disks


class ImageError(Exception):
    """One line for people: what could not be made and what to do."""


class Image(NamedTuple):
    """Files for QEMU's -kernel and -initrd; read-only, any number of guests share them."""

    kernel: Path
    initrd: Path


def prepare() -> Image:
    """Return the image, made now unless the one of an earlier call still fits; raise ImageError."""
    if not BUSYBOX.exists():
        raise ImageError(f"{BUSYBOX} is missing; run scripts/install-deps")
    CACHE.mkdir(parents=True, exist_ok=True)
    package = kernel_package()
    made = CACHE / _fingerprint(package)
    if not made.is_dir():
        with tempfile.TemporaryDirectory(dir=CACHE) as name:
            _make(package, Path(name))
            fresh = Path(name) / "image"
            try:
                fresh.rename(made)
            except OSError:
                if not made.is_dir():  # else another process was quicker, with the same content
                    raise
    return Image(made / "vmlinux", made / "initrd")


def kernel_package() -> Path:
    """The kernel's package; once downloaded it stays the same until `make clean`."""
    for package in sorted(CACHE.glob("linux-image-*.deb")):
        return package
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        run(["apt-get", "update", "-qq"], name)
        depends = run(["apt-cache", "depends", PACKAGE], name).stdout.decode()
        kernel = re.search(r"Depends: (linux-image-\S+)", depends)
        if not kernel:
            raise ImageError(f"Debian's archive has no {PACKAGE}; is it in /etc/apt/sources.list?")
        # apt's own user may not write below a private directory
        run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", kernel[1]], name)
        package = next(Path(name).glob("*.deb"))
        return package.rename(CACHE / package.name)


def run(
    command: list[str], directory: str | Path, given: bytes = b"", stdin: IO[bytes] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in `directory` to its end; ImageError, with its last words, when its status is not 0."""
    source: dict[str, Any] = {"stdin": stdin} if stdin else {"input": given}
    done = subprocess.run(command, cwd=directory, capture_output=True, check=False, **source)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise ImageError(f"{' '.join(command[:2])} failed: {lines[-1] if lines else 'it does not say why'}")
    return done


def _fingerprint(package: Path) -> str:
    """Change whenever one of the image's sources does."""
    digest = hashlib.sha256(package.name.encode())
    for source in (Path(__file__), INIT, AGENT, BUSYBOX):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


def _make(package: Path, scratch: Path) -> None:
    """Make scratch/image; the rest of `scratch` is of no further use."""
    image, root = scratch / "image", scratch / "root"
    image.mkdir()
    kernel, modules = unpack(package, scratch)
    (image / "vmlinux").write_bytes(_unpacked(kernel.read_bytes()))
    for directory in ("bin", "dev", "layers", "modules/root", "proc", "root", "srv", "sys", "tmp"):
        (root / directory).mkdir(parents=True)
    shutil.copy(INIT, root / "init")
    shutil.copy(AGENT, root / "agent")
    (root / "init").chmod(0o755)
    shutil.copy(BUSYBOX, root / "bin")
    for applet in run([str(BUSYBOX), "--list"], scratch).stdout.decode().split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    first = in_order(modules, MODULES)
    later = [module for module in in_order(modules, ROOT_MODULES) if module not in first]
    for directory, some in (("modules", first), ("modules/root", later)):
        for number, module in enumerate(some):
            shutil.copy(module, root / directory / f"{number:02}-{module.name}")
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    archive = run([str(BUSYBOX), "cpio", "-o", "-H", "newc"], root, names.encode()).stdout
    (image / "initrd").write_bytes(archive)


def unpack(package: Path, scratch: Path) -> tuple[Path, Path]:
    """Unpack the kernel's package below `scratch`; return the kernel and the directory of its modules."""
    system = scratch / "kernel"
    run(["dpkg-deb", "-x", str(package), str(system)], scratch)
    kernel = next((system / "boot").glob("vmlinuz-*"))
    modules = system / "lib/modules" / kernel.name.removeprefix("vmlinuz-")
    run([str(BUSYBOX), "depmod", "-b", str(system), modules.name], modules)
    return kernel, modules


def _unpacked(bzimage: bytes) -> bytes:
    """The kernel in a bzImage (Linux's Documentation/x86/boot.rst, payload_offset and payload_length).

    QEMU enters it directly (PVH); unpacking itself under emulation would double the time of a boot.
    """
    setup_sectors = bzimage[0x1F1]
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    return lzma.LZMADecompressor().decompress(bzimage[start : start + length])


def in_order(modules: Path, names: Sequence[str]) -> list[Path]:
    """The modules of these names and all that they need, each after what it needs; ImageError when there is none."""
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        module, _, needed = line.partition(":")
        needs[Path(module).stem] = [module, *needed.split()]
    if missing := set(names) - needs.keys():
        raise ImageError(f"{modules.name} has no module {', '.join(sorted(missing))}")
    order = dict.fromkeys(path for name in names for path in reversed(needs[name]))
    return [modules / path for path in order]


if __name__ == "__main__":
    try:
        print(prepare().kernel.parent)
    except ImageError as problem:
        raise SystemExit(f"guest image: {problem}") from None
