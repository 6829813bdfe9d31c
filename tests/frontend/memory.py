# SPDX-License-Identifier: Apache-2.0
"""The front-end's memory: one memfd that the back-end maps too."""

from __future__ import annotations

import mmap
import os

from tests.frontend.protocol import MemoryRegion

# Where the region lies for the device (descriptors) and for the driver (ring
# addresses, vhost-user doc "Ring addresses"). They differ, and differ from any
# real mapping, so that a back-end that takes one for the other is found out.
GUEST_BASE = 0x1_0000_0000
USER_BASE = 0x5500_0000_0000


class SharedMemory:
    """A memfd of fixed size and a bump allocator over it. Offsets are bytes from its start.

    Pages are taken by the kernel at first use, so a generous size costs nothing.
    """

    def __init__(self, size: int) -> None:
        self.size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.fd = os.memfd_create("vhost-user-frontend", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.size)
        self.view = memoryview(mmap.mmap(self.fd, self.size))
        self._used = 0

    def alloc(self, size: int, align: int) -> int:
        """Returns the offset of `size` zeroed bytes."""
        offset = -(-self._used // align) * align
        if offset + size > self.size:
            raise MemoryError(f"{size} bytes at {offset}: the region has {self.size}")
        self._used = offset + size
        return offset

    def region(self) -> MemoryRegion:
        return MemoryRegion(GUEST_BASE, self.size, USER_BASE, 0)

    def close(self) -> None:
        """Closes the fd; the mapping goes with the last view of it."""
        os.close(self.fd)


def guest(offset: int) -> int:
    """The address for descriptors."""
    return GUEST_BASE + offset


def user(offset: int) -> int:
    """The address for SET_VRING_ADDR."""
    return USER_BASE + offset
