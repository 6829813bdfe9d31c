# SPDX-License-Identifier: Apache-2.0
"""Helpers for the decision core's tests: ports and frames in few words, and a driver for one core."""

from __future__ import annotations

from dataclasses import replace

from tests import packets
from vswitch.slowpath.core import SwitchCore
from vswitch.slowpath.pipeline import parse
from vswitch.slowpath.types import (
    Action,
    ActionType,
    Command,
    Drop,
    FdbEntry,
    Finish,
    FlowStats,
    Key,
    Port,
    PortConfig,
    Upcall,
)

A, B, C, BROADCAST = packets.A, packets.B, bytes.fromhex("020000000003"), packets.BROADCAST
ACCESS_10 = {"tag": 10}


def port(port_id: int, up: bool = True, **config: object) -> Port:
    return Port(port_id, replace(PortConfig(name=f"p{port_id}"), **config), up)  # type: ignore[arg-type]


def out(*ports: int) -> tuple[Action, ...]:
    return tuple(Action(ActionType.OUTPUT, port_id) for port_id in ports)


def drop(reason: Drop) -> tuple[Action, ...]:
    return (Action(ActionType.DROP, reason),)


def udp_frame(src: bytes, dst: bytes, tags: tuple[tuple[int, int], ...] = ()) -> bytes:
    return packets.ethernet(packets.ipv4(packets.udp()), src=src, dst=dst, tags=tags)


class Driver:
    """Feeds a core, and keeps what it returned last."""

    def __init__(self, *ports: Port, **options: float) -> None:
        self.core = SwitchCore(**options)  # type: ignore[arg-type]
        self.now = 100.0
        self.commands: list[Command] = []
        for added in ports or (port(1), port(2), port(3)):
            self.core.port_added(added, self.now)

    def frame(self, in_port: int, frame: bytes) -> tuple[Action, ...]:
        """An upcall for this frame; the verdict."""
        key = parse(frame, in_port)
        assert isinstance(key, Key)
        self.commands = self.core.upcall(Upcall(1, key, frame, len(frame)), self.now)
        finish = self.commands[-1]
        assert isinstance(finish, Finish)
        return finish.actions

    def udp(self, in_port: int, src: bytes, dst: bytes, *tags: tuple[int, int]) -> tuple[Action, ...]:
        return self.frame(in_port, udp_frame(src, dst, tags))

    def of(self, kind: type) -> list[Command]:
        return [command for command in self.commands if isinstance(command, kind)]

    def actions(self, in_port: int, src: bytes, dst: bytes) -> tuple[Action, ...] | None:
        """The installed actions for UDP from src to dst; None: no flow."""
        found = [
            flow.actions
            for flow in self.core.flows().values()
            if (flow.key.in_port, flow.key.eth_src, flow.key.eth_dst) == (in_port, src, dst)
        ]
        assert len(found) <= 1
        return found[0] if found else None

    def where(self, mac: bytes) -> int | None:
        return next((entry.port for entry in self.core.fdb() if entry.mac == mac), None)

    def entry(self, mac: bytes) -> FdbEntry:
        return next(entry for entry in self.core.fdb() if entry.mac == mac)

    def used_now(self) -> list[Command]:
        """Every flow was used just now."""
        stats = {handle: FlowStats(1, 64, self.now) for handle in self.core.flows()}
        self.commands = self.core.flow_stats(stats, self.now)
        return self.commands
