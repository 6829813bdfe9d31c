# SPDX-License-Identifier: Apache-2.0
"""The switch's side of ff.sock and of the rings (ff_shm.h), in Python, for the net_ff driver's tests."""

from __future__ import annotations

import array
import contextlib
import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from vswitch._ff import ffi, lib
from vswitch.slowpath.types import MemConf, MemFile

SECONDS = 60.0  # for an answer, at most
MTU = 9000
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
RING_HEAD = lib.FF_RING_HEAD


def ring_bytes(size: int) -> int:
    """Return the bytes that a ring of `size` descriptors takes."""
    return int(RING_HEAD + size * lib.FF_RING_ENTRY)


class SharedFile:
    """A sealed memfd that this process has mapped."""

    def __init__(self, name: str, size: int) -> None:
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS)
        self.map = mmap.mmap(self.fd, size)
        self.size = size

    def at(self, kind: str, offset: int = 0) -> Any:
        """Return a pointer to a struct in it."""
        return ffi.cast(kind, ffi.cast("char *", ffi.from_buffer(self.map)) + offset)

    def close(self) -> None:
        """Close the file; the mapping goes with its last pointer."""
        os.close(self.fd)
        self.fd = -1


class Rings:
    """Rings behind each other in one file."""

    def __init__(self, count: int, size: int, epoch: int) -> None:
        self.size = size
        self.file = SharedFile("rings", count * ring_bytes(size))
        for n in range(count):
            head = self.head(n)
            head.magic, head.version, head.size, head.epoch = lib.FF_SHM_MAGIC, lib.FF_SHM_VERSION, size, epoch

    def head(self, n: int) -> Any:
        """Return the head of ring `n`."""
        return self.file.at("struct ff_shm_ring *", n * ring_bytes(self.size))

    def desc(self, n: int) -> Any:
        """Return the descriptors of ring `n`."""
        return self.file.at("struct ff_shm_desc *", n * ring_bytes(self.size) + RING_HEAD)

    def behind(self, n: int, kind: str) -> Any:
        """Return what lies behind its descriptors: marks or used entries."""
        return self.file.at(kind, n * ring_bytes(self.size) + RING_HEAD + self.size * 16)


class Marker(NamedTuple):
    """A sender goes on in a shortcut."""

    number: int
    epoch: int


class Message(NamedTuple):
    """A message of a container, with its files."""

    msg: Any
    fds: list[int]


class Port:
    """One port: listens for its container, and moves frames between its rings as the switch does."""

    def __init__(self, directory: Path, name: str, mac: str) -> None:
        self.name = name
        self.mac = mac
        self.path = directory / f"{name}.sock"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.settimeout(SECONDS)
        self.sock: socket.socket | None = None
        self.regions: list[tuple[int, int, int]] = []  # fd, offset, size
        self.first_region = 0
        self.queued: list[Message] = []
        self.kicks: list[int] = []
        self._serial = 0
        self._files: list[SharedFile] = []
        self.listen()

    def listen(self) -> None:
        """Be there for the container."""
        self.path.unlink(missing_ok=True)
        self._listener.bind(str(self.path))
        self._listener.listen()

    # ---- messages

    def welcome(self) -> None:
        """Take the connection of a container that probes, and answer its HELLO."""
        self.sock = self._listener.accept()[0]
        self.sock.settimeout(SECONDS)
        hello = self.expect(lib.FF_MSG_HELLO).msg
        assert hello.version == lib.FF_SHM_VERSION
        mac = bytes(hello.mac) if any(hello.mac) else bytes.fromhex(self.mac.replace(":", ""))
        self.send(lib.FF_MSG_WELCOME, mac=mac, mtu=MTU, queues=4, text=self.name)

    def refuse(self, text: str) -> None:
        """Answer the HELLO of a container with ERROR."""
        self.sock = self._listener.accept()[0]
        self.sock.settimeout(SECONDS)
        self.expect(lib.FF_MSG_HELLO)
        self.send(lib.FF_MSG_ERROR, text=text)
        self.hang_up()

    def send(self, kind: int, fds: list[int] | None = None, **fields: Any) -> None:
        """Send one message."""
        assert self.sock
        msg = ffi.new("struct ff_shm_msg *", {"type": kind})
        for name, value in fields.items():
            setattr(msg, name, value.encode() if isinstance(value, str) else value)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([bytes(ffi.buffer(msg))], rights)

    def receive(self) -> Message:
        """Wait for the next message."""
        assert self.sock
        data, fds, flags, _ = socket.recv_fds(self.sock, ffi.sizeof("struct ff_shm_msg"), 4)
        if not data:
            raise ConnectionResetError(f"{self.name}: the container has closed its socket")
        assert len(data) == ffi.sizeof("struct ff_shm_msg"), (len(data), flags)
        msg = ffi.new("struct ff_shm_msg *")
        ffi.memmove(msg, data, len(data))
        return Message(msg, list(fds))

    def expect(self, kind: int, serial: int = 0) -> Message:
        """Wait for a message of this type, and with this serial; others are kept in `queued`."""
        while True:
            for i, message in enumerate(self.queued):
                if message.msg.type == kind and (not serial or message.msg.serial == serial):
                    return self.queued.pop(i)
            message = self.receive()
            if message.msg.type == lib.FF_MSG_ERROR and serial and message.msg.serial == serial:
                raise AssertionError(text_of(message))
            self.queued.append(message)

    def ask(self, kind: int, fds: list[int] | None = None, **fields: Any) -> int:
        """Send a request; return its serial, by which `expect` finds the answer."""
        self._serial += 1
        self.send(kind, fds, serial=self._serial, **fields)
        return self._serial

    def do(self, kind: int, fds: list[int] | None = None, **fields: Any) -> None:
        """Send a request and wait until it is done."""
        self.expect(lib.FF_MSG_DONE, self.ask(kind, fds, **fields))

    def told(self) -> list[str]:
        """Wait for an ERROR that answers nothing; return the texts of all that have come."""
        first = self.expect(lib.FF_MSG_ERROR)
        return [text_of(m) for m in [first, *self._waiting()] if m.msg.type == lib.FF_MSG_ERROR]

    def answers(self) -> list[Message]:
        """Return the messages that are there now."""
        return self._waiting()

    def _waiting(self) -> list[Message]:
        assert self.sock
        self.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.queued.append(self.receive())
        self.sock.settimeout(SECONDS)
        return self.queued

    # ---- a start

    def start(self, first_region: int, attach: Callable[[MemConf], None] | None = None) -> None:
        """Take REGIONs and START, and answer RINGS; `attach` lets a real switch have the rings before."""
        start = self.expect(lib.FF_MSG_START).msg
        for message in [m for m in self.queued if m.msg.type == lib.FF_MSG_REGION]:
            self.queued.remove(message)
            assert message.msg.number == len(self.regions)
            self.regions.append((message.fds[0], message.msg.offset, message.msg.size))
        self.first_region = first_region
        self.n_rx, self.n_tx, self.ring_size = start.rx_queues, start.tx_queues, start.ring_size
        self.rings = Rings(2 * max(self.n_rx, self.n_tx), self.ring_size, 0)
        table = SharedFile("table", ffi.sizeof("struct ff_shm_table"))
        self.table = table.at("struct ff_shm_table *")
        self.table.magic, self.table.version = lib.FF_SHM_MAGIC, lib.FF_SHM_VERSION
        self._files += [self.rings.file, table]
        self.memory = [mmap.mmap(fd, size, offset=offset) for fd, offset, size in self.regions]
        self.kicks = [os.eventfd(0) for _ in range(self.n_tx)]
        self.taken = [0] * self.n_tx
        self.filled = [0] * self.n_rx
        if attach:
            files = tuple(MemFile(*region) for region in self.regions)
            shape = (self.n_rx, self.n_tx, self.ring_size)
            attach(MemConf(files, first_region, *shape, self.rings.file.fd, table.fd, tuple(self.kicks)))
        self.send(lib.FF_MSG_RINGS, [self.rings.file.fd, table.fd, *self.kicks], region=first_region)

    def refuse_start(self, text: str) -> None:
        """Take REGIONs and START, and answer ERROR."""
        self.expect(lib.FF_MSG_START)
        for message in [m for m in self.queued if m.msg.type == lib.FF_MSG_REGION]:
            self.queued.remove(message)
            os.close(message.fds[0])
        self.send(lib.FF_MSG_ERROR, text=text)

    def stopped(self) -> None:
        """Take STOP, and answer DONE."""
        self.expect(lib.FF_MSG_STOP)
        self.send(lib.FF_MSG_DONE)
        self._forget()

    def hang_up(self) -> None:
        """Close the connection, as a switch that ends does."""
        assert self.sock
        self.sock.close()
        self.sock = None
        self._forget()

    def _forget(self) -> None:
        for fd, _, _ in self.regions:
            os.close(fd)
        self.regions.clear()
        for file in self._files:
            file.close()
        self._files.clear()
        for kick in self.kicks:
            os.close(kick)
        self.kicks.clear()

    def close(self) -> None:
        """Leave no descriptor open."""
        self._listener.close()
        if self.sock:
            self.hang_up()

    def scribble_table(self, seed: int) -> None:
        """Write nonsense into the table, in places that matter."""
        random = Random(seed)
        for _ in range(20):
            out = self.table.out[random.randrange(4)]
            out.mac = random.choice((bytes(6), bytes.fromhex("02000000000b"), random.randbytes(6)))
            out.number = random.choice((0, 1, 255, 256, 65535))
            out.max_len = random.choice((0, 100, 1 << 31, 0xFFFFFFFF))
            out.epoch = random.choice((0, 1, 2, 3, random.getrandbits(32)))
            entry = in_entry(self.table, random.choice((0, 1, 255)))
            entry.state, entry.epoch = random.choice((0, 1, 2, 3, 77)), random.choice((0, 1, 2, 3))
            entry.opened = random.getrandbits(32)
            entry.open_at[random.randrange(256)] = random.getrandbits(32)
        self.table.generation = random.getrandbits(32)

    # ---- frames, as a worker moves them

    def take(self, queue: int = 0) -> list[bytes | Marker]:
        """Take all that the container sent by a queue, and give the buffers back."""
        ring = self.rings.head(2 * queue)
        desc, mark = self.rings.desc(2 * queue), self.rings.behind(2 * queue, "uint8_t *")
        frames: list[bytes | Marker] = []
        frame = b""
        tail = ring.tail
        while self.taken[queue] != tail:
            d = desc[self.taken[queue] % self.ring_size]
            if d.flags & lib.FF_DESC_MARKER:
                frames.append(Marker(d.region, d.offset))
            else:
                memory = self.memory[d.region - self.first_region]
                frame += memory[d.offset : d.offset + d.len]
                if not d.flags & lib.FF_DESC_MORE:
                    frames.append(frame)
                    frame = b""
            mark[d.slot] = d.lap
            self.taken[queue] += 1
        ring.used_tail = self.taken[queue]
        return frames

    def give(self, frame: bytes, queue: int = 0, piece: int = 1 << 16) -> None:
        """Write a frame to the container's posted buffers, at most `piece` bytes to each."""
        ring = self.rings.head(2 * queue + 1)
        desc, used = self.rings.desc(2 * queue + 1), self.rings.behind(2 * queue + 1, "struct ff_shm_used *")
        while frame:
            assert self.filled[queue] != ring.tail, "no buffer is posted"
            d = desc[self.filled[queue] % self.ring_size]
            part, frame = frame[: min(piece, d.len)], frame[min(piece, d.len) :]
            self.memory[d.region - self.first_region][d.offset : d.offset + len(part)] = part
            used[self.filled[queue] % self.ring_size].len = len(part)
            used[self.filled[queue] % self.ring_size].flags = lib.FF_DESC_MORE if frame else 0
            self.filled[queue] += 1
        ring.used_tail = self.filled[queue]

    def posted(self, queue: int = 0) -> int:
        """Return how many empty buffers the container has posted."""
        return int((self.rings.head(2 * queue + 1).tail - self.filled[queue]) & 0xFFFFFFFF)


def text_of(message: Message) -> str:
    """Return the text of a message."""
    text = ffi.string(message.msg.text)
    assert isinstance(text, bytes)
    return text.decode()


def map_neighbour(owner: Port, at: Port, read_only: bool = False) -> None:
    """Let the container of `at` map the memory of `owner`'s."""
    for i, (fd, offset, size) in enumerate(owner.regions):
        flags = lib.FF_MSG_READ_ONLY if read_only else 0
        at.do(lib.FF_MSG_NEIGHBOUR, [fd], region=owner.first_region + i, size=size, offset=offset, flags=flags)


class Shortcut:
    """One direction between two ports; the memory must have been mapped."""

    epochs = 0

    def __init__(self, sender: Port, receiver: Port, number_out: int, number_in: int) -> None:
        Shortcut.epochs += 1
        self.epoch = Shortcut.epochs
        self.sender, self.receiver = sender, receiver
        self.number_out, self.number_in = number_out, number_in
        self.rings = Rings(sender.n_tx, sender.ring_size, self.epoch)
        fields = {"epoch": self.epoch, "tx_queues": sender.n_tx, "ring_size": sender.ring_size}
        fd = self.rings.file.fd
        receiver.do(lib.FF_MSG_SHORTCUT, [fd], number=number_in, text=sender.name, **fields)
        sender.do(lib.FF_MSG_SHORTCUT, [fd], number=number_out, flags=lib.FF_MSG_OUT, text=receiver.name, **fields)

    def open(self, max_len: int = MTU + 14) -> None:
        """Publish it."""
        table = self.receiver.table
        entry = in_entry(table, self.number_in)
        entry.opened = 0
        entry.epoch = self.epoch
        entry.state = lib.FF_IN_OPENING
        table.generation += 1
        out = self.sender.table.out[self.number_out]
        out.mac = bytes.fromhex(self.receiver.mac.replace(":", ""))
        out.number, out.max_len = self.number_out, max_len
        out.epoch = self.epoch
        self.sender.table.generation += 1

    def marked(self, queue: int = 0) -> None:
        """Do what a worker does when it comes to the marker of a queue."""
        entry = in_entry(self.receiver.table, self.number_in)
        for k in range(self.receiver.n_rx):
            entry.open_at[16 * queue + k] = self.receiver.filled[k]
        entry.opened |= 1 << queue

    def close(self) -> None:
        """Send frames by the switch again."""
        in_entry(self.receiver.table, self.number_in).state = lib.FF_IN_CLOSING
        self.receiver.table.generation += 1
        self.sender.table.out[self.number_out].epoch = 0
        self.sender.table.generation += 1

    def begin_drop(self) -> int:
        """Take it away from the sender, and ask the receiver; returns the serial for `dropped`."""
        self.sender.do(lib.FF_MSG_DROP, number=self.number_out, flags=lib.FF_MSG_OUT)
        return self.receiver.ask(lib.FF_MSG_DROP, number=self.number_in)

    def drop(self) -> None:
        """Take it away from both ends."""
        serial = self.begin_drop()
        while not self.dropped(serial):
            self.receiver.queued.append(self.receiver.receive())

    def dropped(self, serial: int) -> bool:
        """Return whether the receiver has nothing of it any more; its numbers are free then."""
        for message in self.receiver.answers():
            if message.msg.type == lib.FF_MSG_DONE and message.msg.serial == serial:
                self.receiver.queued.remove(message)
                in_entry(self.receiver.table, self.number_in).state = lib.FF_IN_FREE
                self.rings.file.close()
                return True
        return False


def in_entry(table: Any, number: int) -> Any:
    """Return table->in[number]: `in` is a word of Python's."""
    return getattr(table, "in")[number]


def numbers(frames: list[bytes | Marker]) -> Iterator[int]:
    """Yield the numbers that the test application put into its frames."""
    for frame in frames:
        assert isinstance(frame, bytes)
        yield struct.unpack_from("=I", frame, 14)[0]
