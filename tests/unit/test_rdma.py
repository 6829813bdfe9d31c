# SPDX-License-Identifier: Apache-2.0
"""Discovery of RDMA ports, with a pyverbs that has the devices that a test wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

from controller.model import GidType, LinkLayer, RdmaPort, RdmaState
from vswitch.slowpath.agent.hostinfo import capabilities
from vswitch.slowpath.rdma import NO_DEVICE, DevicePort, Discovery, Gid, GidKind, discover, gid_text

NOWHERE = Path("/nonexistent")
IPV4, LINK_LOCAL = "::ffff:192.0.2.1", "fe80::1"


ENUMS = {
    "IBV_GID_TYPE_IB": 0,
    "IBV_GID_TYPE_ROCE_V1": 1,
    "IBV_GID_TYPE_ROCE_V2": 2,
    "IBV_PORT_ACTIVE": 4,
    "IBV_LINK_LAYER_ETHERNET": 2,
}


class VerbsError(Exception):
    def __init__(self, text: str, error_code: int = -1) -> None:
        super().__init__(text)
        self.error_code = error_code


@dataclass
class Port:
    """A port of a fake device; its GIDs are (index, address, enum ibv_gid_type)."""

    gids: Sequence[tuple[int, str, int]] = ((0, LINK_LOCAL, 2), (1, IPV4, 2))
    state: int = 4
    link_layer: int = 2
    active_mtu: int = 3
    gid_tbl_len: int = 16


@dataclass
class FakeVerbs:
    """Stands for `rdma.Verbs`: enums have the numbers of infiniband/verbs.h."""

    devices: dict[str, list[Port] | VerbsError] = field(default_factory=dict)
    no_list: bool = False
    opened: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    error: type[Exception] = VerbsError
    enums: Any = field(default_factory=lambda: SimpleNamespace(**ENUMS))

    @property
    def device(self) -> Any:
        return SimpleNamespace(
            get_device_list=self._list,
            Context=lambda name: Context(self, name),
            port_state_to_str=lambda state: {1: "PORT_DOWN (1)", 4: "PORT_ACTIVE (4)"}[state],
        )

    def _list(self) -> list[Any]:
        if self.no_list:
            raise VerbsError("Failed to get devices list")
        return [SimpleNamespace(name=name.encode()) for name in self.devices]


class Context:
    def __init__(self, verbs: FakeVerbs, name: str) -> None:
        found = verbs.devices[name]
        if isinstance(found, VerbsError):
            raise found
        self._verbs, self._name, self._ports = verbs, name, found

    def __enter__(self) -> Self:
        self._verbs.opened.append(self._name)
        return self

    def __exit__(self, *error: object) -> None:
        self._verbs.closed.append(self._name)

    def query_device(self) -> Any:
        return SimpleNamespace(phys_port_cnt=len(self._ports))

    def query_port(self, number: int) -> Port:
        return self._ports[number - 1]

    def query_gid_table(self, size: int) -> list[Any]:
        assert size == max(1, sum(port.gid_tbl_len for port in self._ports))
        return [
            SimpleNamespace(gid_index=index, port_num=number, gid_type=kind, gid_str=lambda text=text: text)
            for number, port in enumerate(self._ports, 1)
            for index, text, kind in port.gids
        ]


def test_a_device() -> None:
    verbs = FakeVerbs({"rxe0": [Port()]})
    found = discover(lambda: verbs, NOWHERE)
    gids = (Gid(0, IPv6Address(LINK_LOCAL), GidKind.ROCE_V2), Gid(1, IPv6Address(IPV4), GidKind.ROCE_V2))
    assert found == Discovery((DevicePort("rxe0", 1, True, "PORT_ACTIVE (4)", True, 1024, gids),))
    assert found.why_none == ""
    assert verbs.opened == verbs.closed == ["rxe0"], "or else it could not be taken away"


def test_ports_of_all_kinds() -> None:
    v1 = Port(gids=((0, LINK_LOCAL, 1),))
    infiniband = Port(gids=((0, "fec0::1", 0), (1, "fe80::", 0)), link_layer=1, active_mtu=5, state=1)
    found = discover(lambda: FakeVerbs({"mlx5_1": [v1, infiniband], "mlx5_0": []}), NOWHERE)
    one, other = found.ports
    assert [(port.label, port.active, port.ethernet, port.mtu) for port in (one, other)] == [
        ("mlx5_1/1", True, True, 1024),
        ("mlx5_1/2", False, False, 4096),
    ]
    assert [gid.kind for gid in one.gids] == [GidKind.ROCE_V1]
    assert [gid.index for gid in other.gids] == [0], "a prefix without an interface is no address"


def test_what_the_controller_is_told() -> None:
    infiniband = Port(gids=((0, "fec0::1", 0),), link_layer=1, state=1)
    told = capabilities([], discover(lambda: FakeVerbs({"rxe0": [Port(gids=((1, IPV4, 2),)), infiniband]}), NOWHERE))
    assert told.rdma == (
        RdmaPort("rxe0", 1, IPv6Address(IPV4), LinkLayer.ETHERNET, GidType.ROCE_V2, RdmaState.ACTIVE, 1024),
        RdmaPort("rxe0", 2, IPv6Address("fec0::1"), LinkLayer.INFINIBAND, GidType.IB_ROCE_V1, RdmaState.DOWN, 1024),
    )
    assert told.no_rdma == ""


def test_no_pyverbs() -> None:
    def load() -> FakeVerbs:
        raise ModuleNotFoundError("No module named 'pyverbs'")

    told = capabilities([], discover(load, NOWHERE))
    assert told.rdma == ()
    assert told.no_rdma == "pyverbs cannot be imported (No module named 'pyverbs'): install python3-pyverbs"


def test_no_device(tmp_path: Path) -> None:
    for verbs in (FakeVerbs(), FakeVerbs(no_list=True)):
        assert discover(lambda verbs=verbs: verbs, NOWHERE).why_none == NO_DEVICE  # type: ignore[misc]
    (tmp_path / "rxe0").mkdir()
    found = discover(FakeVerbs, tmp_path)
    assert found.why_none == "rxe0 cannot be reached from user space: modprobe ib_uverbs"


def test_no_rights() -> None:
    """One device that cannot be opened costs no other."""
    verbs = FakeVerbs({"mlx5_0": VerbsError("Failed to open device", 13), "rxe0": [Port()]})
    found = discover(lambda: verbs, NOWHERE)
    assert [port.device for port in found.ports] == ["rxe0"]
    assert found.problems == ("mlx5_0 cannot be used: Permission denied: ffswitchd needs rights to /dev/infiniband",)
    assert found.why_none == ""
    verbs = FakeVerbs({"mlx5_0": VerbsError("Failed to open device\nand more")})
    assert discover(lambda: verbs, NOWHERE).why_none == "mlx5_0 cannot be used: Failed to open device"


def test_gids_for_people() -> None:
    assert [gid_text(IPv6Address(text)) for text in (IPV4, "fd00::1")] == ["192.0.2.1", "fd00::1"]
