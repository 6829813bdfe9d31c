# SPDX-License-Identifier: Apache-2.0
"""The files that containers and the switch share: rings, tables, packet memory."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from vswitch._ff import ffi, lib
from vswitch.slowpath.types import MemFile

# <linux/fcntl.h>; Python's fcntl module knows it from 3.13 on.
F_SEAL_FUTURE_WRITE = 0x0010
_SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW

RING_HEAD: int = lib.FF_RING_HEAD
_TABLE_BYTES: int = ffi.sizeof("struct ff_shm_table")
_PAGE = mmap.PAGESIZE
# A descriptor's offset has 32 bits.
REGION_MAX = 1 << 32
# Whoever has nothing else to do with the memory of a container that is lent for reading.
_NOBODY = 65534


class FileError(Exception):
    """A file that a container sent cannot be used; str() says why in a few words."""


def ring_bytes(ring_size: int) -> int:
    """The bytes of a ring."""
    return RING_HEAD + ring_size * int(lib.FF_RING_ENTRY)


def _sealed(name: str, size: int, seals: int) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


def port_rings(pairs: int, ring_size: int) -> int:
    """A zeroed file for the lend and post rings of `pairs` queue pairs; the caller's fd. Raises OSError."""
    return _sealed("ff-port", 2 * pairs * ring_bytes(ring_size), _SIZE_SEALS | fcntl.F_SEAL_SEAL)


def table() -> int:
    """A zeroed file for a struct ff_shm_table, for `seal_table` to close; the caller's fd. Raises OSError."""
    return _sealed("ff-table", _TABLE_BYTES, _SIZE_SEALS)


def seal_table(fd: int) -> None:
    """Nobody can map the table for writing any more; mappings that exist stay. Raises OSError."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL)


def check_region(region: MemFile) -> None:
    """Make sure that a container's piece of memory lies within its file. Raises FileError.

    It may be cut off later at any time: whoever maps it is ready for that.
    """
    try:
        status = os.fstat(region.fd)
    except OSError as error:
        raise FileError(f"memory that cannot be looked at: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise FileError("memory that is no file")
    if region.size == 0 or region.offset % _PAGE:
        raise FileError(f"memory that begins at no page: {region.size} bytes at {region.offset}")
    if region.size > REGION_MAX:
        raise FileError(f"a region of {region.size} bytes: {REGION_MAX} fit")
    if region.offset + region.size > status.st_size:
        raise FileError(f"memory beyond the end of its file: {region.offset} + {region.size} of {status.st_size} bytes")


@contextlib.contextmanager
def for_reading(fd: int) -> Iterator[int]:
    """A file descriptor of the same memory that cannot be written through. Raises OSError.

    The memory is given to nobody first, else its receiver could open it again for writing (/proc/self/fd): the
    owner's own descriptors and mappings stay as they are.
    """
    os.fchown(fd, _NOBODY, _NOBODY)
    os.fchmod(fd, 0)
    reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield reading
    finally:
        os.close(reading)


@dataclass(frozen=True, slots=True)
class Progress:
    """What a shortcut's sender says it sent, and how far both sides are."""

    packets: int
    bytes: int
    sent: int  # sums of free-running 32-bit indices: whether they changed is what matters
    taken: int


class ShortcutRings:
    """The file of a shortcut's rings, mapped for reading."""

    def __init__(self, rings: int, ring_size: int, epoch: int) -> None:
        """Make it, with its heads filled in. Raises OSError."""
        each = ring_bytes(ring_size)
        self._heads = [ring * each for ring in range(rings)]
        self.fd = _sealed(f"ff-shortcut-{epoch}", rings * each, _SIZE_SEALS)
        try:
            head = ffi.new(
                "struct ff_shm_ring *",
                {"magic": lib.FF_SHM_MAGIC, "version": lib.FF_SHM_VERSION, "size": ring_size, "epoch": epoch},
            )
            for offset in self._heads:
                os.pwrite(self.fd, bytes(ffi.buffer(head)), offset)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
            self._map = mmap.mmap(self.fd, rings * each, mmap.MAP_SHARED, mmap.PROT_READ)
        except BaseException:
            os.close(self.fd)
            raise

    def progress(self) -> Progress:
        """What the heads say now."""
        packets = total = sent = taken = 0
        for offset in self._heads:
            head = ffi.from_buffer("struct ff_shm_ring *", self._map[offset : offset + RING_HEAD])
            packets += head.packets
            total += head.bytes
            sent += head.tail
            taken += head.used_tail
        return Progress(packets, total, sent, taken)

    def close(self) -> None:
        """Unmap and close it, once."""
        self._map.close()
        os.close(self.fd)
