# SPDX-License-Identifier: Apache-2.0
"""A switch on a fake fast path, for the tests of the glue."""

from pathlib import Path
from typing import Any

from tests.unit.fake_fastpath import FakeFastPath
from vswitch.slowpath.core import SwitchCore
from vswitch.slowpath.drivers import DevargsError
from vswitch.slowpath.ports import read_port
from vswitch.slowpath.state import load
from vswitch.slowpath.switch import Switch
from vswitch.slowpath.types import Action, Key, PortConfig, PortState, Upcall


class Bench:
    """A switch on a fake fast path, with a clock that tests turn."""

    def __init__(self, run_dir: Path) -> None:
        self.now = 1000.0
        self.fake = FakeFastPath()
        self.core = SwitchCore()
        self.run_dir = run_dir
        self.switch = self.make(self.fake, self.core)

    def make(self, fake: FakeFastPath, core: SwitchCore) -> Switch:
        return Switch(fake, core, self.run_dir, check_devargs=check_devargs, clock=lambda: self.now)

    def config(self, name: str, **given: Any) -> PortConfig:
        return read_port({"name": name} | given, self.run_dir)

    def add(self, name: str, **given: Any) -> int:
        return self.switch.add(self.config(name, **given)).id

    def up(self, *port_ids: int) -> None:
        for port_id in port_ids:
            self.fake.set_state(port_id, PortState.READY)
        self.switch.on_events()

    def miss(self, number: int, in_port: int, src: bytes, dst: bytes) -> tuple[Action, ...]:
        """A packet misses; returns its verdict."""
        frame = dst + src + b"\x08\x00" + bytes(46)
        self.fake.miss(Upcall(number, Key(eth_dst=dst, eth_src=src, eth_type=0x0800, in_port=in_port), frame, 60))
        self.switch.on_upcalls()
        return self.fake.verdicts[number]

    @property
    def saved(self) -> list[str]:
        return [config.name for config in load(self.run_dir / "state.json")]


def check_devargs(devargs: str) -> None:
    if devargs.startswith("net_bad"):
        raise DevargsError("no such driver")
