# SPDX-License-Identifier: Apache-2.0
"""What the guests boot: Debian's kernel, and an initramfs of busybox, a few modules and `init`.

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
from pathlib import Path
from typing import NamedTuple

CACHE = Path(__file__).resolve().parents[2] / "build/guest"
INIT = Path(__file__).with_name("init")
BUSYBOX = Path("/usr/bin/busybox")
PACKAGE = "linux-image-amd64"
MODULES = ("virtio_pci", "virtio_net", "8021q")  # loaded at boot, after those that they need


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
    package = _package()
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


def _package() -> Path:
    """The kernel's package; once downloaded it stays the same until `make clean`."""
    for package in sorted(CACHE.glob("linux-image-*.deb")):
        return package
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        _run(["apt-get", "update", "-qq"], name)
        depends = _run(["apt-cache", "depends", PACKAGE], name).stdout.decode()
        kernel = re.search(r"Depends: (linux-image-\S+)", depends)
        if not kernel:
            raise ImageError(f"Debian's archive has no {PACKAGE}; is it in /etc/apt/sources.list?")
        # apt's own user may not write below a private directory
        _run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", kernel[1]], name)
        package = next(Path(name).glob("*.deb"))
        return package.rename(CACHE / package.name)


def _run(command: list[str], directory: str | Path, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(command, cwd=directory, input=given, capture_output=True, check=False)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise ImageError(f"{' '.join(command[:2])} failed: {lines[-1] if lines else 'it does not say why'}")
    return done


def _fingerprint(package: Path) -> str:
    """Change whenever one of the image's sources does."""
    digest = hashlib.sha256(package.name.encode())
    for source in (Path(__file__), INIT, BUSYBOX):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


def _make(package: Path, scratch: Path) -> None:
    """Make scratch/image; the rest of `scratch` is of no further use."""
    image, system, root = scratch / "image", scratch / "system", scratch / "root"
    image.mkdir()
    _run(["dpkg-deb", "-x", str(package), str(system)], scratch)
    kernel = next((system / "boot").glob("vmlinuz-*"))
    (image / "vmlinux").write_bytes(_unpacked(kernel.read_bytes()))
    for directory in ("bin", "dev", "modules", "proc", "srv", "sys", "tmp"):
        (root / directory).mkdir(parents=True)
    shutil.copy(INIT, root / "init")
    (root / "init").chmod(0o755)
    shutil.copy(BUSYBOX, root / "bin")
    for applet in _run([str(BUSYBOX), "--list"], scratch).stdout.decode().split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    modules = system / "lib/modules" / kernel.name.removeprefix("vmlinuz-")
    for number, module in enumerate(_in_order(modules)):
        shutil.copy(module, root / "modules" / f"{number:02}-{module.name}")
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    archive = _run([str(BUSYBOX), "cpio", "-o", "-H", "newc"], root, names.encode()).stdout
    (image / "initrd").write_bytes(archive)


def _unpacked(bzimage: bytes) -> bytes:
    """The kernel in a bzImage (Linux's Documentation/x86/boot.rst, payload_offset and payload_length).

    QEMU enters it directly (PVH); unpacking itself under emulation would double the time of a boot.
    """
    setup_sectors = bzimage[0x1F1]
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    return lzma.LZMADecompressor().decompress(bzimage[start : start + length])


def _in_order(modules: Path) -> list[Path]:
    """MODULES and all that they need, each after what it needs."""
    _run([str(BUSYBOX), "depmod", "-b", str(modules.parents[2]), modules.name], modules)
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        module, _, needed = line.partition(":")
        needs[Path(module).stem] = [module, *needed.split()]
    order = dict.fromkeys(path for name in MODULES for path in reversed(needs[name]))
    return [modules / path for path in order]


if __name__ == "__main__":
    try:
        print(prepare().kernel.parent)
    except ImageError as problem:
        raise SystemExit(f"guest image: {problem}") from None
