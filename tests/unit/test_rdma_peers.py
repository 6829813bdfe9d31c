# SPDX-License-Identifier: Apache-2.0
"""Two switches on fake fast paths, whose offers go straight to each other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from tests.unit.fake_fastpath import FakePeer
from tests.unit.switch_bench import Bench
from vswitch.slowpath import rdma_peers
from vswitch.slowpath.rdma import DevicePort, Discovery, Gid, GidKind
from vswitch.slowpath.rdma_negotiation import NOBODY, Offer
from vswitch.slowpath.rdma_peers import (
    QUEUE_PAIRS_QUOTA,
    Local,
    RdmaPeers,
    Want,
    backoff,
    timeout_exponent,
)
from vswitch.slowpath.types import PortState, PortType, RdmaChange, RdmaPeer, RdmaState


def gid(number: int) -> IPv6Address:
    return IPv6Address(f"::ffff:192.0.2.{number}")


class End:
    """A host, 1 or 2, with one RDMA device."""

    def __init__(self, number: int, run_dir: Path) -> None:
        run_dir.mkdir()
        self.number, self.gid = number, gid(number)
        self.bench = Bench(run_dir)
        self.fake = self.bench.fake
        self.fake.gid = self.gid.packed
        self.says: list[Offer] = []
        self.peers = RdmaPeers(self.bench.switch, lambda _, offer: self.says.append(offer), 100)
        self.device = DevicePort("rxe0", 1, True, "active", True, 1024, (Gid(1, self.gid, GidKind.ROCE_V2),))
        self.peers.discovered(Discovery((self.device,)))

    def want(self, other: int, *remotes: int) -> None:
        local = Local("rxe0", 1, self.gid)
        self.peers.want(f"h{other}", Want(local, gid(other), frozenset(remotes)) if remotes else None)

    @property
    def used(self) -> set[int]:
        """The tunnel ends whose frames go by RDMA."""
        return {remote for peer in self.fake.peers.values() for remote in peer.remotes}

    @property
    def why(self) -> str | None:
        return self.peers.why_not(f"h{3 - self.number}")


class Pair:
    """Both hosts, and a controller that passes on what they say, and wires that carry marks unless they are `cut`."""

    def __init__(self, directory: Path) -> None:
        self.ends = [End(1, directory / "one"), End(2, directory / "two")]
        self.cut = False
        self.revision = 0
        self.joined: set[tuple[int, int]] = set()  # what ends said that they have joined
        self._marked: list[tuple[FakePeer, int]] = []  # with its marks so far

    def run(self) -> None:
        """Until nobody has anything to say or to do."""
        while any(self._pass_on(end, self.ends[2 - end.number]) for end in self.ends) or self._marks():
            pass

    def _pass_on(self, one: End, other: End) -> bool:
        said, one.says = one.says, []
        for offer in said:
            self.revision += 1
            self.joined |= {(offer.id, offer.joined)} if offer.joined else set()
            other.peers.offered(f"h{one.number}", offer, self.revision)
        return bool(said)

    def _marks(self) -> bool:
        """Marks come back where both ends are joined to each other, else the peer fails."""
        moved = False
        for end, other in (self.ends, self.ends[::-1]):
            for number, peer in list(end.fake.peers.items()):
                if not peer.drains or any(peer is known and peer.drains == n for known, n in self._marked):
                    continue
                self._marked.append((peer, peer.drains))
                joined = any(peer.other == o.end and o.other == peer.end for o in other.fake.peers.values())
                if joined and not self.cut:
                    end.fake.drained(number)
                else:
                    end.fake.fail_peer(number, "no acknowledgement")
                end.bench.switch.on_events()
                moved = True
        return moved

    async def until(self, holds: Callable[[], object]) -> None:
        """Run until something holds; time passes for those who wait for a next try."""
        async with asyncio.timeout(20):
            while True:
                self.run()
                if holds():
                    return
                await asyncio.sleep(0.01)


@pytest.fixture
async def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


async def test_frames_wait_for_those_by_vxlan(pair: Pair) -> None:
    """From before the peer is used until a while later; not for one more tunnel end."""
    one, other = pair.ends
    one.want(2, 7)
    other.want(1, 9)
    pair.run()
    (peer,) = one.fake.peers.values()
    assert (peer.changes, peer.remotes) == ([RdmaChange.JOINING], {7})
    assert [one.peers.carries(remote) for remote in (7, 8)] == [True, False]
    await pair.until(lambda: len(peer.changes) > 1)
    one.want(2, 7, 8)
    assert peer.remotes == {7, 8}
    assert peer.changes == [RdmaChange.JOINING, RdmaChange.SETTLED]


async def test_a_peer_ends_while_frames_wait(pair: Pair) -> None:
    one, other = pair.ends
    one.want(2, 7)
    other.want(1, 9)
    pair.run()
    (peer,) = one.fake.peers.values()
    one.want(2)
    assert not one.fake.peers
    assert not one.peers.carries(7)
    one.want(2, 7)
    await pair.until(lambda: one.used == {7} and any(len(p.changes) > 1 for p in one.fake.peers.values()))
    assert peer.changes == [RdmaChange.JOINING]


async def test_both_want_each_other(pair: Pair) -> None:
    one, other = pair.ends
    one.want(2, 7, 8)
    pair.run()
    assert one.used == set(), "the other has not said anything yet"
    assert one.why == "host h2 has not answered yet"
    other.want(1, 9)
    pair.run()
    assert (one.used, other.used) == ({7, 8}, {9})
    assert one.why == other.why == ""
    (peer,), (theirs,) = one.fake.peers.values(), other.fake.peers.values()
    assert peer.epoch == theirs.epoch != 0
    assert (peer.other, theirs.other) == (theirs.end, peer.end)
    (config,) = one.fake.ports.values()
    assert (config.type, config.devargs, config.gid_index) == (PortType.RDMA, "rxe0", 1)
    (view,) = one.peers.views()
    assert (view.host, view.state, view.local, view.remote) == ("h2", "active", "192.0.2.1", "192.0.2.2")
    assert view.stats is not None and view.stats.tx_messages == 3


async def test_other_tunnel_ends(pair: Pair) -> None:
    one, other = pair.ends
    one.want(2, 7)
    other.want(1, 9)
    pair.run()
    (before,) = one.fake.peers.values()
    one.want(2, 7, 8)
    assert one.used == {7, 8}
    one.want(2, 8)
    assert one.used == {8}
    assert list(one.fake.peers.values()) == [before]


async def test_wanted_no_more(pair: Pair) -> None:
    """All has ended when `want` returns; the other end begins anew, and waits."""
    one, other = pair.ends
    one.want(2, 7)
    other.want(1, 9)
    pair.run()
    one.want(2)
    assert not one.fake.peers
    assert one.says == [Offer(NOBODY, NOBODY, one.says[0].end)]
    pair.run()
    assert other.used == set()
    assert [peer.state for peer in other.fake.peers.values()] == [RdmaState.NEW]
    one.want(2, 7)
    pair.run()
    assert (one.used, other.used) == ({7}, {9})


async def test_failure(pair: Pair) -> None:
    """The peer is gone at once, and both come back with another epoch."""
    one, other = pair.ends
    one.want(2, 7)
    other.want(1, 9)
    pair.run()
    ((number, peer),) = one.fake.peers.items()
    one.fake.fail_peer(number, "retries exceeded")
    one.bench.switch.on_events()
    assert not one.fake.peers
    assert one.why == "retries exceeded"
    await pair.until(lambda: one.used == {7} and other.used == {9})
    (new,) = one.fake.peers.values()
    assert new.epoch != peer.epoch


async def test_a_wire_that_carries_nothing(pair: Pair) -> None:
    """Nothing is sent by a peer before a mark came back; it is tried again and again."""
    one, other = pair.ends
    pair.cut = True
    one.want(2, 7)
    other.want(1, 9)

    def tried() -> bool:
        assert (one.used, other.used) == (set(), set())
        return len(pair.joined) >= 3

    await pair.until(tried)
    assert one.why is not None and one.why != ""
    pair.cut = False
    await pair.until(lambda: one.used == {7} and other.used == {9})


async def test_a_silent_host_that_dies(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks go to who is sent nothing; when one does not come back, that is a failure like others."""
    monkeypatch.setattr(rdma_peers, "_SILENT_S", 0.02)
    one, other = pair.ends
    one.want(2, 7)
    other.want(1, 9)
    pair.run()
    (peer,) = one.fake.peers.values()
    await pair.until(lambda: peer.drains >= 3)
    assert (one.used, other.used) == ({7}, {9})
    pair.cut = True
    await pair.until(lambda: one.used == set())
    pair.cut = False
    await pair.until(lambda: one.used == {7} and other.used == {9})


async def test_a_host_that_is_sent_to_needs_no_marks(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdma_peers, "_SILENT_S", 0.001)
    one, other = pair.ends
    one.want(2, 7)
    other.want(1, 9)
    pair.run()
    ((number, peer),) = one.fake.peers.items()
    looks: list[int] = []
    shown = one.fake.rdma_peer

    def sending(asked: int) -> RdmaPeer:
        info = shown(asked)
        looks.append(asked)
        return replace(info, stats=replace(info.stats, tx_messages=len(looks) + 3))

    one.fake.rdma_peer = sending  # type: ignore[method-assign]
    before = peer.drains
    await pair.until(lambda: looks.count(number) >= 5)
    assert peer.drains == before


async def test_a_controller_comes_back(pair: Pair) -> None:
    """What was said before is said again, and changes nothing."""
    one, other = pair.ends
    one.want(2, 7)
    other.want(1, 9)
    pair.run()
    before = list(one.fake.peers.values())
    one.peers.offered("h2", None, pair.revision + 1)
    other.peers.offered("h1", None, pair.revision + 1)
    pair.revision += 1
    one.peers.say_all()
    other.peers.say_all()
    assert one.says and other.says
    pair.run()
    assert list(one.fake.peers.values()) == before
    assert (one.used, other.used) == ({7}, {9})


async def test_what_is_older_than_what_was_heard(pair: Pair) -> None:
    one, other = pair.ends
    one.want(2, 7)
    (old,) = one.says
    other.want(1, 9)
    pair.run()
    other.peers.offered("h1", replace(old, id=old.id + 1), 0)
    pair.run()
    assert (one.used, other.used) == ({7}, {9})


async def test_a_host_that_restarts(pair: Pair, tmp_path: Path) -> None:
    one, other = pair.ends
    one.want(2, 7)
    other.want(1, 9)
    pair.run()
    pair.ends[1] = anew = End(2, tmp_path / "again")
    anew.want(1, 5)
    for said in (one.peers.say_all, pair.run):
        said()
    assert (one.used, anew.used) == ({7}, {5})


async def test_more_workers_there(pair: Pair) -> None:
    one, other = pair.ends
    other.fake.n_workers = 3
    one.want(2, 7)
    other.want(1, 9)
    pair.run()
    assert [len(peer.end.queue_pairs) for peer in one.fake.peers.values()] == [3]
    assert (one.used, other.used) == ({7}, {9})


async def test_another_gid_than_the_controller_says(pair: Pair) -> None:
    one, other = pair.ends
    other.fake.gid = gid(77).packed
    one.want(2, 7)
    other.want(1, 9)
    pair.run()
    assert one.used == other.used == set()
    assert one.why == "host h2 offers GID 192.0.2.77, and the controller says 192.0.2.2"


async def test_a_port_that_goes_down_and_up(pair: Pair) -> None:
    one, other = pair.ends
    one.want(2, 7)
    other.want(1, 9)
    pair.run()
    (port_id,) = one.fake.ports
    one.fake.set_state(port_id, PortState.LOST, "the link is down")
    for number in one.fake.peers:
        one.fake.fail_peer(number, "the link is down")
    one.bench.switch.on_events()
    await pair.until(lambda: one.why == "rxe0 port 1: the link is down")
    assert one.used == set()
    one.bench.up(port_id)
    await pair.until(lambda: one.used == {7} and other.used == {9})


async def test_a_device_that_goes(pair: Pair) -> None:
    one, other = pair.ends
    one.want(2, 7)
    other.want(1, 9)
    pair.run()
    one.peers.discovered(Discovery(problems=("there is no RDMA device",)))
    assert not one.fake.peers and not one.fake.ports
    await pair.until(lambda: one.why == "rxe0 port 1 has no GID 192.0.2.1")
    one.peers.discovered(Discovery((one.device,)))
    await pair.until(lambda: one.used == {7} and other.used == {9})


async def test_a_gid_at_another_index(pair: Pair) -> None:
    one, other = pair.ends
    one.want(2, 7)
    other.want(1, 9)
    pair.run()
    one.peers.discovered(Discovery((replace(one.device, gids=(Gid(4, one.gid, GidKind.ROCE_V2),)),)))
    await pair.until(lambda: one.used == {7} and other.used == {9})
    assert [config.gid_index for config in one.fake.ports.values()] == [4]


async def test_quota(pair: Pair) -> None:
    one = pair.ends[0]
    one.fake.n_workers = 16
    hosts = QUEUE_PAIRS_QUOTA // 16
    for number in range(hosts + 1):
        one.peers.want(f"x{number}", Want(Local("rxe0", 1, one.gid), gid(9), frozenset({number + 1})))
    assert len(one.fake.peers) == hosts
    assert one.peers.why_not(f"x{hosts}") == "256 queue pairs are in use, and the quota is 256"


async def test_a_refused_peer(pair: Pair) -> None:
    one = pair.ends[0]
    one.fake.refuse_peers = "rxe0: cannot make a queue pair: Cannot allocate memory"
    one.want(2, 7)
    assert one.why == one.fake.refuse_peers
    one.fake.refuse_peers = ""
    await pair.until(lambda: one.why == "host h2 has not answered yet")


def test_backoff() -> None:
    assert [backoff(n, 0) for n in range(5)] == [0.1, 0.2, 0.4, 0.8, 1.0]
    assert [backoff(0, n) for n in (1, 3, 4, 6, 30)] == [0.1, 0.1, 2.0, 8.0, 60.0]


def test_timeouts() -> None:
    """4.096 us to the power of it, seven times, is no longer than was asked for."""
    for milliseconds in (1, 10, 100, 1000, 60_000):
        exponent = timeout_exponent(milliseconds)
        assert milliseconds / 2 < 7 * 4.096e-3 * 2**exponent <= milliseconds
