# SPDX-License-Identifier: Apache-2.0
"""RDMA as far as it goes without a device: headers, credits, and what is said where there is none."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fastpath.frames import flow
from tests.fastpath.switch import Switch
from vswitch._ff import ffi, lib
from vswitch.slowpath.fastpath import FastPathError
from vswitch.slowpath.types import TUNNEL_RDMA, Action, ActionType, Drop, PortConfig, PortType

EPOCH = 0x01020304
HEADER = "<4sBB10sIIII"


def message(frame: bytes = bytes(60), **changes: Any) -> bytes:
    """A data message, or what it becomes by changes to its fields."""
    fields = {"magic": b"FFRD", "version": 1, "type": 1, "offload": bytes(10), "vni": 5, "epoch": EPOCH,
              "length": len(frame), "limit": 9}  # fmt: skip
    return struct.pack(HEADER, *(fields | changes).values()) + frame


def check(data: bytes) -> Drop:
    return Drop(lib.ff_rdma_check(ffi.from_buffer(data), len(data), EPOCH))


@pytest.mark.parametrize(
    "data",
    [
        message(),
        message(bytes(1)),
        message(bytes(lib.FF_RDMA_FRAME_MAX)),
        *(
            message(b"", type=kind)
            for kind in (lib.FF_RDMA_CREDIT, lib.FF_RDMA_MARK, lib.FF_RDMA_MARKED, lib.FF_RDMA_CAME)
        ),
    ],
)
def test_messages_that_are_right(data: bytes) -> None:
    assert check(data) is Drop.NONE


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Drop.RDMA_MALFORMED),
        (message()[:31], Drop.RDMA_MALFORMED),
        (message(magic=b"FFRd"), Drop.RDMA_MALFORMED),
        (message(version=2), Drop.RDMA_MALFORMED),
        (message(type=0), Drop.RDMA_MALFORMED),
        (message(b"", type=6), Drop.RDMA_MALFORMED),
        (message(length=59), Drop.RDMA_MALFORMED),
        (message(length=61), Drop.RDMA_MALFORMED),
        (message(b""), Drop.RDMA_MALFORMED),
        (message(type=lib.FF_RDMA_CREDIT), Drop.RDMA_MALFORMED),
        (message(epoch=EPOCH + 1), Drop.RDMA_EPOCH),
        (message(length=lib.FF_RDMA_FRAME_MAX + 1), Drop.RDMA_OVERSIZE),
        (message(bytes(lib.FF_RDMA_FRAME_MAX + 1)), Drop.RDMA_OVERSIZE),
    ],
)
def test_messages_that_are_not(data: bytes, reason: Drop) -> None:
    assert check(data) is reason


@given(st.binary(max_size=100))
def test_noise(data: bytes) -> None:
    assert check(data) in {Drop.RDMA_MALFORMED, Drop.RDMA_EPOCH, Drop.RDMA_OVERSIZE}


class End:
    """One end of a queue pair: what rdma_send.c and rdma_recv.c do with its window."""

    def __init__(self, start: int, credits: int, peer_credits: int) -> None:
        self.w = ffi.new("struct ff_rdma_window *")
        lib.ff_rdma_window_open(self.w, credits, peer_credits)
        for field in ("posted", "limit", "arrived", "granted", "told"):
            setattr(self.w, field, (getattr(self.w, field) + start) % 2**32)
        self.buffers = credits + lib.FF_RDMA_SPARE
        self.wire: list[tuple[bool, int]] = []  # on their way to us: is it data, and the limit in it
        self.taken: list[bool] = []  # received, not posted again

    def send(self, other: End, data: bool) -> None:
        self.w.told = self.w.granted
        self.w.posted = (self.w.posted + data) % 2**32
        other.wire.append((data, self.w.told))
        assert len(other.wire) + len(other.taken) <= other.buffers, "the receiver had no buffer"

    def receive(self) -> None:
        data, limit = self.wire.pop(0)
        self.taken.append(data)
        if data:
            assert lib.ff_rdma_window_arrive(self.w) == 0
        assert lib.ff_rdma_window_limit(self.w, limit) == 0

    def give_back(self, other: End) -> None:
        self.w.granted = (self.w.granted + sum(self.taken)) % 2**32
        self.taken.clear()
        if lib.ff_rdma_window_owes(self.w):
            self.send(other, data=False)


@given(
    credits=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    start=st.sampled_from([0, 2**32 - 10, 2**31 - 10]),
    steps=st.lists(st.tuples(st.integers(0, 1), st.sampled_from(["send", "receive", "give back"])), max_size=400),
)
def test_credits(credits: tuple[int, int], start: int, steps: list[tuple[int, str]]) -> None:
    """Whatever the ends do, no message meets a receiver without a buffer; once all is received both may send again."""
    ends = End(start, credits[0], credits[1]), End(start, credits[1], credits[0])
    for number, step in steps:
        end, other = ends[number], ends[1 - number]
        if step == "send" and lib.ff_rdma_window_left(end.w) > 0:
            end.send(other, data=True)
        elif step == "receive" and end.wire:
            end.receive()
        elif step == "give back":
            end.give_back(other)
    while any(end.wire or end.taken for end in ends):
        for end, other in (ends, ends[::-1]):
            while end.wire:
                end.receive()
            end.give_back(other)
    for end, other in (ends, ends[::-1]):
        left = lib.ff_rdma_window_left(end.w)
        assert left > 0
        assert left + (other.w.granted - other.w.told) % 2**32 == other.w.credits


def test_credits_that_break_the_rules() -> None:
    end = End(0, 2, 3)
    assert lib.ff_rdma_window_arrive(end.w) == lib.ff_rdma_window_arrive(end.w) == 0
    assert lib.ff_rdma_window_arrive(end.w) < 0  # beyond what we told
    end.w.posted = 3
    assert lib.ff_rdma_window_left(end.w) == 0
    assert lib.ff_rdma_window_limit(end.w, 2) < 0  # less than before
    assert lib.ff_rdma_window_limit(end.w, 4 + lib.FF_RDMA_CREDITS_MAX) < 0
    assert lib.ff_rdma_window_limit(end.w, 3) == lib.ff_rdma_window_limit(end.w, 4) == 0
    assert lib.ff_rdma_window_left(end.w) == 1


def test_no_device(switch: Switch) -> None:
    with pytest.raises(FastPathError, match=r"^rxe0: this host has no RDMA device$"):
        switch.fp.port_add(PortConfig("device", PortType.RDMA, devargs="rxe0"))


def test_no_peer(switch: Switch) -> None:
    (host,) = switch.add_hosts(1)
    with pytest.raises(FastPathError, match=rf"^port {host.id} is no RDMA port$"):
        switch.fp.rdma_peer_add(host.id, 1)
    with pytest.raises(FastPathError, match="no peer has number 3"):
        switch.fp.rdma_peer(3)
    with pytest.raises(FastPathError, match="cannot serve"):
        switch.fp.rdma_peer_use(3, 1)
    with pytest.raises(FastPathError, match="no peer has number 3"):
        switch.fp.rdma_peer_del(3)
    assert switch.fp.rdma_device_fd(host.id) == -1
    assert switch.fp.rdma_events() == []


@pytest.mark.parametrize("number", [0, TUNNEL_RDMA, 4096, 4096 | TUNNEL_RDMA])
def test_no_tunnel_end(switch: Switch, number: int) -> None:
    with pytest.raises(FastPathError):
        switch.install(flow((Action(ActionType.SET_TUNNEL, number),), in_port=1))
