# SPDX-License-Identifier: Apache-2.0
"""Controllers over a cluster of three etcd members, any of which dies at any time, and what hosts see of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from controller.model import Endpoint, Host, HostState, Kind, Object, key_of
from controller.service.keys import (
    ADDRESS,
    LEADER,
    MAC,
    OBJECT,
    ROOT,
    address_key,
    declared_key,
    decode_lease,
    decode_object,
    mac_key,
    split_object_key,
)
from controller.service.state import State
from controller.store.base import KeyValue
from controller.store.etcd import EtcdStore
from tests.agents import FakeAgent
from tests.system.controllers import DEADLINE, Controllers, SessionHost, running, until
from tests.system.etcd import EtcdCluster, etcd_cluster
from tests.system.underlay import on_a_bridge

pytestmark = pytest.mark.timeout(300)

BLUE, GREEN = (
    f"kind: Network\nname: {name}\nvni: {vni}\nsubnets: [{subnet}]\n"
    for name, vni, subnet in (("blue", 100, "10.1.0.0/20, 'fd00:1::/64'"), ("green", 101, "10.2.0.0/20"))
)


@dataclass
class Stand:
    """A cluster at work. `truth` follows the store; `changed` is set whenever it, or a host, has learned something."""

    etcd: EtcdCluster
    controllers: Controllers
    truth: State
    changed: asyncio.Event
    hosts: list[SessionHost] = field(default_factory=list)

    def host(self, name: str, first: int = 0) -> SessionHost:
        """A host that tries controller `first` first."""
        targets = self.controllers.targets[first:] + self.controllers.targets[:first]
        self.hosts.append(SessionHost(name, targets, self.controllers, self.changed))
        return self.hosts[-1]

    def endpoints(self) -> dict[str, Endpoint]:
        """Those in the store, by name."""
        found = self.truth.view.objects[Kind.ENDPOINT]
        return {name: item for name, item in found.items() if isinstance(item, Endpoint)}

    def differ(self) -> list[str]:
        """The hosts that do not know what they are to know by the store, or are not heard."""
        found = []
        for host in self.hosts:
            known = self.truth.host(host.name)
            up = known is not None and known.state is HostState.UP and host.session.connected
            if not up or host.known != self.truth.view.desired_for(host.name):
                found.append(host.name)
        return found

    def describe(self) -> dict[str, object]:
        """What these know otherwise: as they have it, and as they should."""
        found: dict[str, object] = {}
        for host in self.hosts:
            wanted = self.truth.view.desired_for(host.name)
            keys = [key for key in host.known.keys() | wanted.keys() if host.known.get(key) != wanted.get(key)]
            found[host.name] = self.truth.host(host.name), [(host.known.get(key), wanted.get(key)) for key in keys]
        return {name: found[name] for name in self.differ()}

    async def leader(self, index: int, after: int = 0) -> int:
        """Wait until this controller leads in an epoch later than `after`; returns that."""

        def leads() -> bool:
            item = self.truth.find(LEADER)
            return item is not None and item.value == f"c{index}".encode() and self.truth.epoch > after

        await until(self.changed, leads, lambda: self.controllers.log(index)[-3000:])
        return self.truth.epoch


@contextlib.asynccontextmanager
async def stand(directory: Path, size: int, hosts: Sequence[str] = ()) -> AsyncIterator[Stand]:
    """Three members, `size` controllers of which c0 leads, and both networks.

    With a namespace for each member, a controller knows but the one of its number, and `truth` but the others than m0.
    """
    with etcd_cluster(directory, hosts=hosts) as etcd:
        stores = [[etcd.endpoints[index]] if hosts else etcd.endpoints for index in range(size)]
        controllers = Controllers(directory, stores)
        changed = asyncio.Event()
        async with EtcdStore(etcd.endpoints[1:] if hosts else etcd.endpoints) as store:
            truth = State(store, ROOT)
            following = asyncio.create_task(truth.run())
            try:
                with truth.listen(lambda _: changed.set()):
                    await controllers.start(0)
                    made = Stand(etcd, controllers, truth, changed)
                    await made.leader(0)
                    await controllers.start(*range(1, size))
                    await controllers.apply(0, f"{BLUE}---\n{GREEN}")
                    yield made
            finally:
                await controllers.stop()
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)


async def stored(endpoints: Sequence[str]) -> dict[str, KeyValue]:
    """All that the store has, asked anew."""
    async with EtcdStore(endpoints) as store:
        return {item.key: item for item in (await store.range(ROOT)).items}


def check_store(items: dict[str, KeyValue]) -> list[Object]:
    """Each object is whole, and has what it needs to itself; returns the objects."""
    objects = [
        decode_object(split_object_key(key), item.value) for key, item in items.items() if key.startswith(OBJECT)
    ]
    endpoints = [item for item in objects if isinstance(item, Endpoint)]
    given = Counter((endpoint.network, ip) for endpoint in endpoints for ip in endpoint.ips)
    assert all(count == 1 for count in given.values()), given.most_common(5)
    families = {"blue": [4, 6], "green": [4]}
    assert all(sorted(ip.version for ip in end.ips) == families[end.network] for end in endpoints)
    addresses = {address_key(end.network, ip): end.name for end in endpoints for ip in end.ips}
    leases = {key: decode_lease(key, item.value) for key, item in items.items() if key.startswith(ADDRESS)}
    assert {key: lease.owner for key, lease in leases.items() if lease.released is None} == addresses
    macs = {mac_key(end.network, end.mac): end.name for end in endpoints}
    assert {key: item.value.decode() for key, item in items.items() if key.startswith(MAC)} == macs
    return objects


async def test_an_agent_goes_to_another_replica_by_itself(tmp_path: Path) -> None:
    async with stand(tmp_path, 2) as made:
        mine, other = made.host("h0", 0), made.host("h1", 1)
        async with running(made.hosts):
            mine.add("web0", "blue")
            other.add("db0", "blue")
            await until(made.changed, lambda: mine.endpoint("db0") is not None and other.endpoint("web0") is not None)
            before = mine.endpoint("web0")
            await made.controllers.kill(0)
            other.add("db1", "blue")
            await until(made.changed, lambda: mine.endpoint("db1") is not None and not made.differ(), made.differ)
            assert mine.session.standing.controller.endswith(str(made.controllers.targets[1][1]))
            assert mine.endpoint("web0") == before
            # The other replica has followed the store all the time, so it need not tell all of it again.
            assert mine.fulls == 1
            assert not mine.wrong and not other.wrong


async def test_a_controller_that_stood_still_is_refused(tmp_path: Path) -> None:
    async with stand(tmp_path, 2) as made:
        targets, identity = made.controllers.targets, made.controllers.identity("h0")
        async with FakeAgent(targets[0], identity, "h0") as old:
            await old.observe({"web0": {"network": "blue"}}, full=True)
            ips = (await old.endpoint("web0", host="h0"))["ips"]
            first = made.truth.epoch
            # It finds a report to write down as soon as it goes on, and nothing that tells it how late it is.
            old.beating = False
            made.controllers.pause(0)
            await old.observe({"late0": {"network": "blue"}})
            second = await made.leader(1, first)
            async with FakeAgent(targets[1], identity, "h0") as new:
                await new.observe({"web0": {"network": "blue"}}, full=True)
                assert (await new.endpoint("web0", host="h0"))["ips"] == ips
                made.controllers.resume(0)
                assert "another session" in await old.until(lambda agent: agent.ended)
                await new.observe({"db0": {"network": "blue"}})
                await new.endpoint("db0", host="h0")
                await made.truth.sync()
                assert made.endpoints().keys() == {"web0", "db0"}
                assert min(epoch for epoch, _, _ in new.desired) >= second
        # It leads again, but not as who it was.
        await made.controllers.kill(1)
        assert await made.leader(0, second) > second
        assert f"epoch {first} " in made.controllers.log(0)
        check_store(await stored(made.etcd.endpoints))


async def test_an_apply_killed_in_the_middle_leaves_whole_objects_and_is_finished_by_the_next(tmp_path: Path) -> None:
    names = {f"e{number}" for number in range(1500)}
    manifest = "---\n".join(
        [BLUE, GREEN, *(f"kind: Endpoint\nname: {name}\nnetwork: blue\n" for name in sorted(names))]
    )
    async with stand(tmp_path, 1) as made:
        applying = asyncio.create_task(made.controllers.ctl(0, "apply", "-f", "-", stdin=manifest))
        await until(made.changed, lambda: bool(made.endpoints()) or applying.done())
        await made.controllers.kill(0)
        code, _, errors = await applying
        assert code == 1 and errors.count("\n") == 1, errors
        items = await stored(made.etcd.endpoints)
        before = {item.name: item for item in check_store(items) if isinstance(item, Endpoint)}
        assert 0 < len(before) < len(names)
        assert all(declared_key((Kind.ENDPOINT, name)) in items for name in before)
        await made.controllers.start(0)
        progress = (await made.controllers.status(0)).unfinished
        assert len(before) <= progress.done < progress.of, (len(before), progress)
        await made.controllers.apply(0, manifest)
        assert not (await made.controllers.status(0)).HasField("unfinished")
        items = await stored(made.etcd.endpoints)
        after = {item.name: item for item in check_store(items) if isinstance(item, Endpoint)}
        assert after.keys() == names and before.items() <= after.items()
        assert not [item for item in check_store(items) if isinstance(item, Host)]
        code, shown, errors = await made.controllers.ctl(0, "apply", "-f", "-", "--dry-run", stdin=manifest)
        assert code == 0 and "create" not in shown and "update" not in shown, (shown[:300], errors)


async def test_hosts_keep_what_they_have_while_the_store_is_cut_off(tmp_path: Path) -> None:
    """One member of three is left, which cannot decide anything."""
    async with stand(tmp_path, 2) as made:
        mine, other = made.host("h0", 0), made.host("h1", 1)
        async with running(made.hosts):
            mine.add("web0", "blue")
            other.add("db0", "blue")
            await until(made.changed, lambda: mine.has("web0") and other.has("db0") and not made.differ(), made.differ)
            known = [dict(host.known) for host in made.hosts]
            made.etcd.pause(0)
            made.etcd.pause(1)
            async with asyncio.timeout(DEADLINE):
                for host in made.hosts:
                    while host.session.connected:
                        await host.session.until_changed()
            assert [host.known for host in made.hosts] == known
            mine.add("late0", "blue")
            code, _, errors = await made.controllers.ctl(0, "apply", "-f", "-", stdin=BLUE.replace("100", "102"))
            assert code == 1 and errors.count("\n") == 1 and "etcd" in errors, errors
            made.etcd.resume(0)
            made.etcd.resume(1)
            await until(made.changed, lambda: mine.has("late0") and not made.differ(), made.differ)
            assert other.endpoint("late0") is not None and other.endpoint("web0") == known[1][Kind.ENDPOINT, "web0"]
            assert not mine.wrong and not other.wrong
        check_store(await stored(made.etcd.endpoints))


@pytest.mark.long
async def test_a_controller_behind_a_cut_hands_over(tmp_path: Path) -> None:
    """A member loses its link to the other two, with the leading controller beside it, which hosts still reach."""
    with on_a_bridge(3) as names:
        async with stand(tmp_path, 2, names) as made:
            mine, other = made.host("h0", 0), made.host("h1", 1)
            async with running(made.hosts):
                mine.add("web0", "blue")
                other.add("db0", "blue")
                await until(made.changed, lambda: mine.has("web0") and other.has("db0") and not made.differ())
                first, before = made.truth.epoch, mine.endpoint("web0")
                made.etcd.cut(0)
                second = await made.leader(1, first)
                mine.add("late0", "blue")
                await until(made.changed, lambda: mine.has("late0") and not made.differ(), made.describe)
                assert mine.session.standing.controller.endswith(str(made.controllers.targets[1][1]))
                code, _, errors = await made.controllers.ctl(0, "apply", "-f", "-", stdin=BLUE.replace("100", "102"))
                assert code == 1 and errors.count("\n") == 1 and "etcd" in errors, errors
                made.etcd.mend(0)
                # What the member missed is there, and the controller beside it is one that may lead.
                await made.controllers.apply(0, "kind: Network\nname: late\nvni: 103\nsubnets: [10.3.0.0/20]\n")
                by_itself, by_others = [
                    {key_of(item) for item in check_store(await stored(endpoints))}
                    for endpoints in (made.etcd.endpoints[:1], made.etcd.endpoints[1:])
                ]
                assert by_itself == by_others >= {(Kind.ENDPOINT, "late0"), (Kind.NETWORK, "late")}
                await made.controllers.kill(1)
                assert await made.leader(0, second) > second
                other.add("db1", "blue")
                await until(made.changed, lambda: mine.endpoint("db1") is not None and not made.differ(), made.describe)
                assert mine.endpoint("web0") == before
                assert not mine.wrong and not other.wrong
            check_store(await stored(made.etcd.endpoints))
