# SPDX-License-Identifier: Apache-2.0
"""The PMD catalogue: reading Debian's objects, and refusing devargs that no driver takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vswitch.slowpath import drivers
from vswitch.slowpath.drivers import DevargsError, Driver, PciDevice

PCAP = Driver("net_pcap", "/pmds/pcap.so", "vdev", alias="eth_pcap", params=("rx_pcap", "iface"))
TAP = Driver("net_tap", "/pmds/tap.so", "vdev", params=("iface", "mac", "remote"))
VIRTIO = Driver("net_virtio", "/pmds/virtio.so", "pci", pci_ids=((0x1AF4, 0x1041, 0xFFFF, 0xFFFF),), kmod="* vfio-pci")
VIRTIO_USER = Driver("net_virtio_user", "/pmds/virtio.so", "vdev", alias="virtio_user", params=("path", "server"))
MLX5 = Driver("mlx5_eth", "/pmds/mlx5.so", "pci", pci_ids=((0x15B3, 0x1017, 0xFFFF, 0xFFFF),), kmod="* mlx5_core")
ALL = (PCAP, TAP, VIRTIO, VIRTIO_USER, MLX5)


def nic(ids: tuple[int, int, int, int], driver: str) -> Callable[[str], PciDevice]:
    return lambda address: PciDevice(address, ids, 0x020000, driver)


def no_device(_address: str) -> None:
    return None


def no_strings(_path: str) -> bytes:
    return b""


def resolve(devargs: str) -> Driver:
    return drivers.resolve(devargs, ALL, no_device, no_strings)


@pytest.mark.parametrize(
    ("devargs", "driver"),
    [
        ("net_pcap0,iface=eth0", PCAP),
        ("eth_pcap1,rx_pcap=a,rx_pcap=b", PCAP),
        ("vdev:net_tap0,iface=t0", TAP),
        ("net_virtio_user0,path=/x,server=1", VIRTIO_USER),
        ("virtio_user0", VIRTIO_USER),
    ],
)
def test_vdev_is_found_by_the_name_it_begins_with(devargs: str, driver: Driver) -> None:
    assert resolve(devargs) is driver


@pytest.mark.parametrize(
    ("devargs", "says"),
    [
        ("net_pacp0,iface=x", r"unknown PMD in 'net_pacp0': did you mean net_pcap"),
        ("zzz", r"unknown PMD in 'zzz': 'ffswitch drivers' lists"),
        ("", r"1 to 63 characters"),
        ("net_tap" + "0" * 60, r"1 to 63 characters"),
        ("net_tap0,ifcae=t0", r"no parameter 'ifcae' \(did you mean iface\?\); it accepts iface, mac, remote"),
        ("net_tap0,", r"no parameter ''"),
        ("mlx5_eth0", r"mlx5_eth drives PCI devices"),
        ("0000:09:00.0", r"no PCI device 0000:09:00.0"),
    ],
)
def test_bad_devargs_give_one_line(devargs: str, says: str) -> None:
    with pytest.raises(DevargsError, match=says) as caught:
        resolve(devargs)
    assert "\n" not in str(caught.value)


def test_key_that_the_object_knows_but_does_not_declare_is_accepted() -> None:
    known = drivers.resolve("net_tap0,persist=1", ALL, no_device, lambda path: b"\0persist\0" if "tap" in path else b"")
    assert known is TAP


def test_pci_address_is_completed_and_matched_by_id() -> None:
    asked: list[str] = []

    def look_up(address: str) -> PciDevice:
        asked.append(address)
        return PciDevice(address, (0x1AF4, 0x1041, 1, 2), 0x020000, "vfio-pci")

    assert drivers.resolve("0A:00.1", ALL, look_up, no_strings) is VIRTIO
    assert asked == ["0000:0a:00.1"]


def test_pci_device_that_the_kernel_holds_is_refused_with_the_command_to_free_it() -> None:
    with pytest.raises(DevargsError, match=r"virtio-pci holds it; bind it with .*--bind=vfio-pci 0000:00:03.0"):
        drivers.resolve("0000:00:03.0", ALL, nic((0x1AF4, 0x1041, 0, 0), "virtio-pci"), no_strings)
    with pytest.raises(DevargsError, match=r"no kernel driver holds it"):
        drivers.resolve("0000:00:03.0", ALL, nic((0x1AF4, 0x1041, 0, 0), ""), no_strings)


def test_bifurcated_pci_device_stays_with_its_kernel_driver() -> None:
    assert drivers.resolve("0000:03:00.0", ALL, nic((0x15B3, 0x1017, 0, 0), "mlx5_core"), no_strings) is MLX5
    with pytest.raises(DevargsError, match=r"kernel driver is vfio-pci; mlx5_eth needs mlx5_core"):
        drivers.resolve("0000:03:00.0", ALL, nic((0x15B3, 0x1017, 0, 0), "vfio-pci"), no_strings)


def test_pci_device_without_a_pmd() -> None:
    with pytest.raises(DevargsError, match=r"no network driver for PCI device 0000:00:00.0 \(8086:0d57\)"):
        drivers.resolve("0000:00:00.0", ALL, nic((0x8086, 0x0D57, 0, 0), ""), no_strings)


def test_split_keeps_lists_and_sub_devices_whole() -> None:
    assert drivers.split_devargs("net_failsafe0,dev(net_null0,copy=1),mac=2") == [
        "net_failsafe0",
        "dev(net_null0,copy=1)",
        "mac=2",
    ]
    assert drivers.split_devargs("0000:03:00.0,representor=[0,2]") == ["0000:03:00.0", "representor=[0,2]"]


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("iface=<string> qpairs=<int>", ("iface", "qpairs")),
        ("role=server|clientbsize=<int>rsize=<int>", ("role", "bsize", "rsize")),
        ("mac=xx:xx:xxzero-copy=yes|nosecret=<s>", ("mac", "zero-copy", "secret")),
        ("dev(<ifc>),exec(<shell command>),mac=a", ("dev", "exec", "mac")),
        ("nodeaction=name:node:action(ATTACH|CREATE)", ("nodeaction",)),
        ("", ()),
    ],
)
def test_parameter_string_gives_its_keys(text: str, keys: tuple[str, ...]) -> None:
    rodata = b"".join(b"\0" + word + b"\0" for word in (b"bsize", b"rsize", b"zero-copy", b"no secret"))
    assert drivers.param_keys(text, rodata) == keys


def test_debians_own_objects_are_read() -> None:
    directory = drivers.find_pmd_dir()
    assert directory is not None, "the DPDK drivers are not installed"
    pcap = drivers.read_object(directory / "librte_net_pcap.so")
    assert [(d.name, d.alias, d.bus) for d in pcap] == [("net_pcap", "eth_pcap", "vdev")]
    assert {"iface", "rx_pcap", "infinite_rx"} <= set(pcap[0].params)
    virtio = {d.name: d for d in drivers.read_object(directory / "librte_net_virtio.so")}
    assert virtio["net_virtio"].bus == "pci"
    assert virtio["net_virtio_user"].bus == "vdev"
    assert drivers.driver_for_pci((0x1AF4, 0x1041, 0x1AF4, 1), list(virtio.values())) is virtio["net_virtio"]
    i40e = drivers.read_object(directory / "librte_net_i40e.so")[0]
    assert i40e.params == ("enable_floating_veb", "floating_veb_list", "queue-num-per-vf", "support-multi-driver")
    assert drivers.kernel_modules(i40e) == ["igb_uio", "uio_pci_generic", "vfio-pci"]


@pytest.fixture
def cache_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "cache" / "drivers.json"
    monkeypatch.setattr(drivers, "_cache_path", lambda: path)
    drivers.load_drivers.cache_clear()
    yield path
    drivers.load_drivers.cache_clear()


def test_parse_is_kept_until_an_object_changes(
    cache_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = drivers.find_pmd_dir()
    assert source is not None
    pmds = tmp_path / "pmds-23.0"
    pmds.mkdir()
    target = pmds / "librte_net_null.so"
    target.write_bytes((source / "librte_net_null.so").read_bytes())
    monkeypatch.setattr(drivers, "find_pmd_dir", lambda: pmds)
    first = drivers.load_drivers()
    assert [d.name for d in first] == ["net_null"]
    assert [p.name for p in cache_file.parent.iterdir()] == ["drivers.json"]

    def must_not_parse(_path: Path) -> list[Driver]:
        raise AssertionError("parsed again")

    with monkeypatch.context() as patched:
        patched.setattr(drivers, "read_object", must_not_parse)
        drivers.load_drivers.cache_clear()
        assert drivers.load_drivers() == first
    os.utime(target, (1, 1))
    monkeypatch.setattr(drivers, "read_object", lambda path: [Driver("net_new", str(path), "vdev")])
    drivers.load_drivers.cache_clear()
    assert [d.name for d in drivers.load_drivers()] == ["net_new"]


@pytest.mark.parametrize("junk", ["", "[]", "{}", '{"stamp": 1, "drivers": 2}'])
def test_a_spoilt_cache_is_not_believed(cache_file: Path, junk: str) -> None:
    cache_file.parent.mkdir()
    cache_file.write_text(junk)
    assert "net_pcap" in {d.name for d in drivers.load_drivers()}


def test_check_devargs_on_this_machine(cache_file: Path) -> None:
    assert drivers.check_devargs("net_af_packet0,iface=lo").endswith("/librte_net_af_packet.so")
    with pytest.raises(DevargsError, match="did you mean net_af_packet"):
        drivers.check_devargs("net_af_pakcet0,iface=lo")
    assert cache_file.exists()


def test_no_drivers_installed(tmp_path: Path, cache_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "find_pmd_dir", lambda: None)
    with pytest.raises(DevargsError, match=r"no DPDK drivers in .*apt install"):
        drivers.load_drivers()


def test_file_that_is_not_elf_has_no_drivers(tmp_path: Path) -> None:
    junk = tmp_path / "librte_net_junk.so"
    junk.write_bytes(b"INPUT(-lfoo)")
    assert drivers.read_object(junk) == []


def test_sysfs_devices(tmp_path: Path) -> None:
    def device(address: str, class_code: str) -> Path:
        path = tmp_path / address
        path.mkdir()
        values = {"vendor": "0x1af4", "device": "0x1041", "subsystem_vendor": "0x1af4", "subsystem_device": "0x40"}
        for name, value in {**values, "class": class_code}.items():
            (path / name).write_text(value + "\n")
        return path

    network = device("0000:00:03.0", "0x020000")
    (network / "virtio2" / "net" / "eth0").mkdir(parents=True)
    bound = tmp_path / "drivers" / "virtio-pci"
    bound.mkdir(parents=True)
    (network / "driver").symlink_to(bound)
    device("0000:00:02.0", "0x018000")
    assert drivers.pci_network_devices(tmp_path) == [
        PciDevice("0000:00:03.0", (0x1AF4, 0x1041, 0x1AF4, 0x40), 0x020000, "virtio-pci", ("eth0",))
    ]
