# SPDX-License-Identifier: Apache-2.0
"""Memory ports: frames of all kinds from and to containers, with no shortcut between them."""

from __future__ import annotations

import os
import random
import re
import time
from dataclasses import replace

import pytest

from tests.fastpath.frames import flow, numbered, output, push, tagged
from tests.fastpath.offloads import HOST, Stream
from tests.fastpath.switch import Attached, Switch
from tests.fastpath.traffic import again_and_again
from tests.frontend import FrontEnd
from tests.memport import Container, Shape
from vswitch.slowpath.fastpath import FastPathError
from vswitch.slowpath.types import Drop, PortConfig, PortState, PortType

SIZES = [60, 61, 127, 128, 129, 130, 1000, 1514, 2047, 2048, 2049, 4096, 9014, 65535]
BIG = 65535


def peer(port: Attached) -> FrontEnd | Container:
    return port.container or port.peer


def add(switch: Switch, kind: str, name: str, **shape: int) -> Attached:
    if kind == "ff":
        return switch.add_memory(name, mtu=BIG, shape=Shape(**shape))
    return switch.add(name, mtu=BIG, rx_ring=1024, tx_ring=1024)


def pair(switch: Switch, kinds: tuple[str, str] = ("ff", "ff"), **shape: int) -> tuple[Attached, Attached]:
    a, b = (add(switch, kind, name, **shape) for kind, name in zip(kinds, "ab", strict=True))
    switch.install(flow(output(b.id), in_port=a.id), flow(output(a.id), in_port=b.id))
    return a, b


@pytest.mark.parametrize("kinds", [("ff", "ff"), ("ff", "vhost"), ("vhost", "ff")], ids="-".join)
@pytest.mark.parametrize("segment", [2048, 700, 64, 1025])
def test_frames_of_all_sizes(switch: Switch, kinds: tuple[str, str], segment: int) -> None:
    sizes = [size for size in SIZES if size <= 64 * segment]
    a, b = pair(switch, kinds, segment=segment)
    frames = [numbered(1, 2, 1, size=size, start=size)[0] for size in sizes for _ in range(3)]
    for frame in frames:
        peer(a).send([frame])
        assert peer(b).wait_received(1) == [frame]
    peer(b).send(frames[:10])
    assert peer(a).wait_received(10) == frames[:10]
    assert switch.settle() == (len(frames) + 10, 0, len(frames) + 10, 0, 0)
    stats = switch.fp.port_stats(a.id)
    assert (stats.rx_bytes, stats.tx_bytes) == (sum(map(len, frames)), sum(map(len, frames[:10])))


# ---- rings -----------------------------------------------------------------------


def test_rings_that_wrap_many_times(switch: Switch) -> None:
    a, b = pair(switch, ring_size=64, segment=600)
    rng = random.Random(1)
    number = 0
    for _ in range(200):
        sizes = rng.choices([60, 500, 601, 1500], k=rng.randrange(1, 16))
        frames = [numbered(1, 2, 1, size=size, start=(number := number + 1))[0] for size in sizes]
        a.box.send(frames, burst=rng.randrange(1, 12))
        assert b.box.wait_received(len(frames)) == frames
    assert a.box.lent == 0
    assert b.box.stats.rx_packets == number


@pytest.mark.parametrize("size", [60, 4000])
def test_a_receiver_that_posts_nothing(switch: Switch, size: int) -> None:
    """What its ring does not hold is lost and counted; the sender gets all of its buffers back."""
    a, b = pair(switch, ring_size=64)
    c = switch.add("c", mtu=BIG, rx_ring=1024)
    switch.install(flow(output(b.id, c.id), in_port=a.id))
    frames = numbered(1, 2, 300, size=size)
    a.box.send(frames, burst=8)
    assert c.peer.wait_received(len(frames)) == frames
    held = 64 // -(-size // 2048)
    switch.settle()
    assert switch.drops(b) == {Drop.RING_FULL: len(frames) - held}
    assert b.box.receive() == frames[:held]
    assert a.box.lent == 0
    a.box.send(frames[:held], burst=8)
    assert b.box.wait_received(held) == frames[:held], "it has posted again"


def test_a_frame_longer_than_any_chain(switch: Switch) -> None:
    a = switch.add("a", mtu=BIG, tx_ring=1024)
    b = switch.add_memory("b", mtu=BIG, shape=Shape(buffer=256, ring_size=256))
    switch.install(flow(output(b.id), in_port=a.id))
    sizes = [60, 64 * 256, 64 * 256 + 1, 61]
    frames = [numbered(1, 2, 1, size=size)[0] for size in sizes]
    a.peer.send(frames)
    assert b.box.wait_received(3) == [frames[0], frames[1], frames[3]]
    switch.settle()
    assert switch.drops(b) == {Drop.TX_OVERSIZE: 1}


def test_the_ports_mtu_holds(switch: Switch) -> None:
    a, b = switch.add_memory("a", mtu=3000), switch.add_memory("b", mtu=1500)
    switch.install(flow(output(b.id), in_port=a.id))
    frames = [numbered(1, 2, 1, size=size)[0] for size in (1522, 1523, 3022, 3023)]
    a.box.send(frames)
    assert b.box.wait_received(1) == frames[:1]
    switch.settle()
    assert (switch.drops(a), switch.drops(b)) == ({Drop.OVERSIZE: 1}, {Drop.TX_OVERSIZE: 2})


def test_several_regions(switch: Switch) -> None:
    a, b = pair(switch, regions=5, segment=300)
    frames = [frame for size in (60, 299, 301, 1514, 4000) for frame in numbered(1, 2, 7, size=size)]
    a.box.send(frames, burst=5)
    assert b.box.wait_received(len(frames)) == frames


def test_several_queues(switch: Switch) -> None:
    """Each queue is in order; a container may have fewer than its port allows."""
    a = switch.add_memory("a", queues=4, shape=Shape(tx_queues=3, rx_queues=2))
    b = switch.add_memory("b", queues=4, shape=Shape(tx_queues=1, rx_queues=4))
    switch.install(flow(output(b.id), in_port=a.id), flow(output(a.id), in_port=b.id))
    assert switch.fp.port_info(a.id).tx_queues == 2
    sent = {queue: numbered(queue + 1, 9, 50) for queue in range(3)}
    for queue, frames in sent.items():
        a.box.send(frames, queue, burst=7)
    came = b.box.wait_received(150)
    for queue, frames in sent.items():
        assert [frame for frame in came if frame[6:12] == frames[0][6:12]] == frames, queue
    b.box.send(sent[0])
    assert a.box.wait_received(50) == sent[0]


# ---- what goes on in the switch ----------------------------------------------------


def test_frames_that_are_parked(switch: Switch) -> None:
    a, b = switch.add_memory("a"), switch.add_memory("b")
    frames = numbered(1, 2, 20, size=1500)
    a.box.send(frames)
    (upcall,) = switch.wait_upcalls(1)
    switch.settle(parked=20)
    assert a.box.lent == 0, "the sender has its buffers back"
    switch.install(flow(output(b.id), in_port=a.id))
    switch.finish(upcall, output(b.id))
    assert b.box.wait_received(20) == frames


def test_copies_to_several_ports_and_tags(switch: Switch) -> None:
    a, b, c = (switch.add_memory(name) for name in "abc")
    d = switch.add("d")
    switch.install(flow([*output(b.id), push(7), *output(c.id, d.id)], in_port=a.id))
    frames = numbered(1, 2, 40, size=1000)
    a.box.send(frames)
    assert b.box.wait_received(40) == frames
    assert c.box.wait_received(40) == d.peer.wait_received(40) == [tagged(frame, 7) for frame in frames]
    assert switch.settle() == (40, 80, 120, 0, 0)


def test_a_request_for_segmentation_is_done_by_the_switch(switch: Switch) -> None:
    """A vhost-user guest sends 20 KB at a time; nobody asks that of a container."""
    a = switch.add("a", mtu=BIG, features=HOST)
    b = switch.add_memory("b")
    switch.install(flow(output(b.id), in_port=a.id))
    stream = Stream(random.Random(1).randbytes(20_000))
    a.peer.send([stream.partial()], header=stream.request(1400).pack())
    assert b.box.wait_received(15) == stream.segments(1400)
    switch.settle()


# ---- idle workers ------------------------------------------------------------------


def sleeps(switch: Switch) -> int:
    return sum(worker.sleeps for worker in switch.fp.worker_stats())


def wait_asleep(switch: Switch) -> None:
    before = [worker.sleeps for worker in switch.fp.worker_stats()]
    switch.fp.idle_set(50, 100)  # wakes those that sleep already
    switch.wait(
        lambda: all(w.sleeps > then for w, then in zip(switch.fp.worker_stats(), before, strict=True)), lambda: "sleep"
    )


def test_a_kick_wakes_the_worker(switch: Switch) -> None:
    a, b = pair(switch)
    for number in range(20):
        wait_asleep(switch)
        kicks = a.box.stats.kicks
        a.box.send(numbered(1, 2, 1, start=number))
        assert b.box.wait_received(1) == numbered(1, 2, 1, start=number)
        assert a.box.stats.kicks == kicks + 1, "a worker that sleeps has to be told"


def test_a_worker_that_is_awake_gets_no_kick(switch: Switch) -> None:
    a, b = pair(switch)
    switch.fp.idle_set(50, 0)  # it never sleeps
    for number, frame in enumerate(numbered(1, 2, 50)):
        if number == 2:  # the loop that took the first one has ended, whatever it began as
            kicks = a.box.stats.kicks
        a.box.send([frame])
        assert b.box.wait_received(1) == [frame]
    assert a.box.stats.kicks == kicks
    switch.fp.idle_set(50, 100)


def test_no_wake_up_is_lost(switch: Switch) -> None:
    """One frame at a time at every moment of a worker's way to sleep; queues move meanwhile."""
    a, b = pair(switch)
    switch.fp.idle_set(30, 100)
    rng = random.Random(1)
    before = sleeps(switch)
    for frame in numbered(1, 2, 2000):
        end = time.perf_counter_ns() + rng.randrange(60_000)
        while time.perf_counter_ns() < end:
            pass
        if rng.random() < 0.1:
            switch.fp.rxq_move(a.id, 0, rng.randrange(switch.fp.n_workers))
        a.box.send([frame])
        assert b.box.wait_received(1) == [frame]
    assert sleeps(switch) > before
    assert a.box.stats.kicks > 0
    switch.fp.idle_set(50, 100)


def test_a_busy_worker_is_not_kicked(switch: Switch) -> None:
    a, b = pair(switch)
    switch.fp.idle_set(0, 0)
    for frame in [None, *numbered(1, 2, 100)]:
        kicks = a.box.stats.kicks
        a.box.send([frame or numbered(1, 2, 1)[0]])
        b.box.wait_received(1)
        assert frame is None or a.box.stats.kicks == kicks
    switch.fp.idle_set(50, 100)


# ---- containers that go and come ---------------------------------------------------


def test_a_container_that_goes_and_comes_back(switch: Switch) -> None:
    a, b = pair(switch)
    for number in range(5):
        a.box.send(numbered(1, 2, 10))
        assert b.box.wait_received(10) == numbered(1, 2, 10)
        gone, stays = (a, b) if number % 2 else (b, a)
        switch.settle()
        dropped = switch.fates().dropped
        switch.detach(gone)
        stays.box.send(numbered(1, 2, 3))
        switch.settle()
        assert switch.fates().dropped == dropped + 3
        assert switch.drops(gone)[Drop.PORT_DOWN] >= 3
        switch.attach(gone, Shape(ring_size=64 << number, regions=number + 1))


def test_a_receiver_that_goes_under_traffic(switch: Switch) -> None:
    a, b = pair(switch)
    c = switch.add_memory("c")
    switch.install(flow(output(b.id, c.id), in_port=a.id))
    with again_and_again(lambda: a.box.send(numbered(1, 2, 64))):
        for _ in range(20):
            b.box.wait_received(1)
            c.box.wait_received(1)
            switch.detach(b)
            switch.attach(b)
    switch.settle()


def test_a_sender_that_goes_with_frames_parked_and_in_its_ring(switch: Switch) -> None:
    a, b = switch.add_memory("a"), switch.add_memory("b")
    a.box.send(numbered(1, 2, 10))
    (upcall,) = switch.wait_upcalls(1)
    switch.settle(parked=10)
    switch.detach(a)
    switch.install(flow(output(b.id), in_port=a.id))
    switch.finish(upcall, output(b.id))
    assert b.box.wait_received(10) == numbered(1, 2, 10)
    switch.attach(a)
    a.box.send(numbered(1, 2, 10))
    assert b.box.wait_received(10) == numbered(1, 2, 10)


def test_a_port_removed_with_its_container(switch: Switch) -> None:
    a, b = pair(switch)
    with again_and_again(lambda: a.box.send(numbered(1, 2, 32))):
        for _ in range(10):
            b.box.wait_received(1)
            switch.delete(b)
            b = switch.add_memory("b")
            switch.install(flow(output(b.id), in_port=a.id))
    switch.settle()


# ---- what cannot be attached --------------------------------------------------------


def test_what_does_not_fit_is_refused_in_one_line(switch: Switch) -> None:
    port = switch.add_config(PortConfig("web", PortType.FF, queues=2))
    switch.wait_state(port, PortState.WAITING)
    box = Container(Shape(tx_queues=2, rx_queues=2))
    good = box.conf
    file = good.regions[0]
    plain = os.open("/etc/hostname", os.O_RDONLY)
    refused = {
        "web: 3 receive and 2 transmit queues: 1 to 2 are possible": replace(good, rx_queues=3),
        "web: 2 receive and 0 transmit queues": replace(good, tx_queues=0, kick_fds=()),
        "web: rings of 100: a power of two from 64 to 16384": replace(good, ring_size=100),
        "web: rings of 32768": replace(good, ring_size=32768),
        "web: 0 regions from number": replace(good, regions=()),
        "web: 65 regions": replace(good, regions=(file,) * 65),
        "web: 2 regions from number 65535": replace(good, regions=(file, file), first_region=65535),
        f"web: region 0: {file.size + 1} bytes from 0 on do not lie in a file of {file.size}": replace(
            good, regions=(replace(file, size=file.size + 1),)
        ),
        "web: region 1: 4096 bytes from 64 on": replace(good, regions=(file, replace(file, offset=64, size=4096))),
        "web: region 0: 0 bytes": replace(good, regions=(replace(file, size=0),)),
        "web: region 0 is larger than 4 GiB: split it": replace(good, regions=(replace(file, size=2**32 + 4096),)),
        f"web: region 0: {0xFF000} bytes from {2**64 - 4096} on": replace(
            good, regions=(replace(file, offset=2**64 - 4096, size=0xFF000),)
        ),
        "web: region 0 is no memfd, and on no tmpfs or hugetlbfs": replace(
            good, regions=(replace(file, fd=box.kicks[0]),)
        ),
        "web: region 0: Bad file descriptor": replace(good, regions=(replace(file, fd=999),)),
        "web: its rings: ": replace(good, rings_fd=box.table_fd, ring_size=16384),
        "web: its table: ": replace(good, table_fd=small(4096)),
        "web: kick descriptor 1 is no eventfd": replace(good, kick_fds=(box.kicks[0], plain)),
    }
    for line, conf in refused.items():
        with pytest.raises(FastPathError, match=re.escape(line)):
            switch.fp.mem_attach(port.id, conf)
        assert switch.fp.port_info(port.id).state is PortState.WAITING
    os.close(plain)
    port.container = box
    switch.fp.mem_attach(port.id, good)
    with pytest.raises(FastPathError, match="web: a container has it already"):
        switch.fp.mem_attach(port.id, good)
    other = switch.add("other")
    with pytest.raises(FastPathError, match=f"no memory port has number {other.id}"):
        switch.fp.mem_attach(other.id, good)
    with pytest.raises(FastPathError, match=f"no memory port has number {other.id}"):
        switch.fp.mem_detach(other.id)


def small(size: int) -> int:
    fd = os.memfd_create("small")
    os.ftruncate(fd, size)
    return fd
