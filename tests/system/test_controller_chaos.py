# SPDX-License-Identifier: Apache-2.0
"""Members of etcd and controllers die and stand still at random, while endpoints come, move and go.

`FFSWITCH_SEED` gives another order of events than the usual one; a failure shows which it was.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest

from controller.model import Endpoint
from controller.service.keys import moved_key
from tests.system.controllers import SessionHost, running, until
from tests.system.test_controller_etcd import Stand, check_store, stand, stored

HOSTS, CONTROLLERS, MEMBERS = 6, 2, 3
MOST_ENDPOINTS = 60
# Changes that nobody has seen yet, at most.
UNDER_WAY = 5


class Chaos:
    """Everything that is done follows from the seed, and from how far what was done before has come."""

    def __init__(self, made: Stand, seed: int) -> None:
        self.made = made
        self.places: dict[str, SessionHost] = {}  # where each endpoint belongs
        self.done = Counter[str]()
        self._seed = seed
        self._end = 0.0
        self._disturbing = 0
        self._under_way: dict[str, Callable[[], bool]] = {}
        self._number = 0
        self._settled = 0

    async def run(self, seconds: float) -> None:
        """For so long; then everything is back, though maybe not settled."""
        self._end = asyncio.get_running_loop().time() + seconds
        async with asyncio.TaskGroup() as group:
            for disturb in (self._member, self._controller):
                group.create_task(self._disturb(disturb))
            group.create_task(self._churn())

    async def _churn(self) -> None:
        """Endpoints come, move and go, each change as soon as few enough are under way."""
        random = Random(f"{self._seed} endpoints")
        while self._disturbing:
            await self._until(lambda: len(self._under_way) < UNDER_WAY)
            idle = sorted(self.places.keys() - self._under_way.keys())
            leftovers = [(host, name) for host in self.made.hosts for name in sorted(host.left)]
            choice = random.random()
            if leftovers and choice < 0.2:
                host, name = random.choice(leftovers)
                host.remove(name)
            elif idle and choice < 0.5:
                self._move(random, random.choice(idle))
            elif idle and (choice < 0.6 or len(self.places) >= MOST_ENDPOINTS):
                self._delete(random.choice(idle))
            else:
                self._add(random)

    async def _disturb(self, disturb: Callable[[Random], Awaitable[str]]) -> None:
        random = Random(f"{self._seed} {disturb.__name__}")
        self._disturbing += 1
        while asyncio.get_running_loop().time() < self._end:
            self.done[await disturb(random)] += 1
        self._disturbing -= 1

    async def _member(self, random: Random) -> str:
        """A member is killed, or stands still, and comes back after some changes were done without it."""
        etcd, index = self.made.etcd, random.randrange(MEMBERS)
        if killed := random.random() < 0.75:
            etcd.kill(index)
            await self._changes(random.randint(1, 40))
            etcd.start(index)
        else:
            etcd.pause(index)
            await self._changes(random.randint(1, 10))
            etcd.resume(index)
        await self._changes(random.randint(1, 60))
        return "member killed" if killed else "member stopped"

    async def _controller(self, random: Random) -> str:
        """A controller is killed, or stands still, and comes back; the other one goes on."""
        controllers, index = self.made.controllers, random.randrange(CONTROLLERS)
        await self._changes(random.randint(20, 100))
        if killed := random.random() < 0.75:
            await controllers.kill(index)
            await self._changes(random.randint(1, 40))
            await controllers.start(index)
        else:
            controllers.pause(index)
            await self._changes(random.randint(1, 10))
            controllers.resume(index)
        return "controller killed" if killed else "controller stopped"

    async def settle(self) -> None:
        """With everything back, each change is done and every host knows what it is to know."""
        await self._until(lambda: not self._under_way)
        await self.made.truth.sync()
        await until(self.made.changed, lambda: not self.made.differ(), self.made.describe)

    def _add(self, random: Random) -> None:
        self._number += 1
        name, host = f"e{self._number}", random.choice(self.made.hosts)
        host.add(name, random.choice(["blue", "green"]))
        self.places[name] = host
        self._begin("added", name, lambda: host.has(name))

    def _move(self, random: Random, name: str) -> None:
        old = self.places[name]
        free = [host for host in self.made.hosts if name not in host.ports and not self._was_on(host, name)]
        if not free:
            return
        new = random.choice(free)
        old.left.add(name)
        new.add(name, old.ports[name])
        self.places[name] = new
        self._begin("moved", name, lambda: new.has(name))

    def _was_on(self, host: SessionHost, name: str) -> bool:
        """Whether the store still keeps that the host lost the endpoint."""
        return self.made.truth.find(moved_key(host.name, name)) is not None

    def _delete(self, name: str) -> None:
        self.places.pop(name).remove(name)
        self._begin("deleted", name, lambda: name not in self.made.endpoints())

    def _begin(self, what: str, name: str, holds: Callable[[], bool]) -> None:
        self.done[what] += 1
        self._under_way[name] = holds

    async def _changes(self, number: int) -> None:
        """So many changes more are done."""
        wanted = self._settled + number
        await self._until(lambda: self._settled >= wanted)

    async def _until(self, holds: Callable[[], bool]) -> None:
        def look() -> bool:
            for name in [name for name, done in self._under_way.items() if done()]:
                del self._under_way[name]
                self._settled += 1
            return holds()

        await until(self.made.changed, look, lambda: (sorted(self._under_way), self.done, self.made.describe()))


@pytest.mark.parametrize(
    "seconds", [30, pytest.param(300, marks=[pytest.mark.long, pytest.mark.timeout(900)], id="long")]
)
async def test_nothing_is_lost_or_given_twice_whatever_dies(tmp_path: Path, seconds: float) -> None:
    seed = int(os.environ.get("FFSWITCH_SEED", "4"))
    print(f"FFSWITCH_SEED={seed}")
    async with stand(tmp_path, CONTROLLERS) as made:
        for number in range(HOSTS):
            made.host(f"h{number}", number % CONTROLLERS)
        chaos = Chaos(made, seed)
        async with running(made.hosts):
            await chaos.run(seconds)
            await chaos.settle()
            assert not [wrong for host in made.hosts for wrong in host.wrong]
            found = {
                item.name: item for item in check_store(await stored(made.etcd.endpoints)) if isinstance(item, Endpoint)
            }
            assert {name: item.host for name, item in found.items()} == {
                name: host.name for name, host in chaos.places.items()
            }
    print(dict(chaos.done))
    assert {"added", "moved", "deleted"} <= chaos.done.keys()
