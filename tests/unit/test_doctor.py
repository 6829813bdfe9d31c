# SPDX-License-Identifier: Apache-2.0
"""The doctor's judgement of facts, and that it can look at the host it runs on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.rpcserver import VERSION, FakeDaemon
from vswitch.cli.client import RpcError
from vswitch.cli.main import main
from vswitch.slowpath import doctor, drivers
from vswitch.slowpath.doctor import Facts, Finding, HugePages, Level
from vswitch.slowpath.drivers import Driver, PciDevice

VIRTIO = Driver("net_virtio", "/x.so", "pci", pci_ids=((0x1AF4, 0x1041, 0xFFFF, 0xFFFF),), kmod="* vfio-pci")
MLX5 = Driver("mlx5_eth", "/y.so", "pci", pci_ids=((0x15B3, 0x1017, 0xFFFF, 0xFFFF),), kmod="* mlx5_core")
GOOD = Facts(drivers=(VIRTIO, MLX5))


def findings(topic: str, **changes: object) -> list[Finding]:
    return [each for each in doctor.diagnose(replace(GOOD, **changes)) if each.topic == topic]  # type: ignore[arg-type]


def test_a_good_host_has_nothing_to_do() -> None:
    assert {each.level for each in doctor.diagnose(GOOD)} == {Level.OK}


@pytest.mark.parametrize(
    ("topic", "changes", "level", "says"),
    [
        ("DPDK", {"dpdk_version": ""}, Level.ERROR, "not installed"),
        ("DPDK", {"dpdk_version": "22.11.10"}, Level.ERROR, "older than 22.11.11"),
        ("DPDK", {"dpdk_version": "21.11.99"}, Level.ERROR, "older than 22.11.11"),
        ("DPDK", {"dpdk_version": "22.11.12"}, Level.OK, "22.11.12"),
        ("fast path", {"fast_path_built": False}, Level.ERROR, "not built"),
        ("drivers", {"drivers": ()}, Level.ERROR, "no network drivers in /usr"),
        ("drivers", {"drivers": (), "pmd_dir": ""}, Level.ERROR, "no network drivers in /usr"),
        ("memory", {"memory_mb": 100}, Level.ERROR, "100 MB available"),
        ("rights", {"root": False, "capabilities": 0}, Level.WARN, "only vhost-user ports"),
        ("rights", {"root": True, "capabilities": ((1 << 41) - 1) & ~(1 << 21)}, Level.WARN, "no CAP_SYS_ADMIN"),
        ("CPUs", {"cpus": (0,)}, Level.WARN, "1 CPU"),
        ("CPUs", {"isolated": "2-3"}, Level.OK, "isolated: 2-3"),
        ("open files", {"files": 1024}, Level.WARN, "about 25 ports"),
        ("run directory", {"run_dir": "/" + "r" * 70}, Level.WARN, "leaves 18 bytes for port names"),
        ("run directory", {"run_dir": "/" + "r" * 100}, Level.ERROR, "leaves 0 bytes"),
        ("run directory", {"run_dir_writable": False}, Level.WARN, "not writable"),
        ("daemon", {"daemon": "absent"}, Level.WARN, "not running: no /run/ffswitch/ffswitch.sock"),
        ("daemon", {"daemon": "stale"}, Level.WARN, "nobody listens"),
        ("daemon", {"daemon": "Permission denied"}, Level.WARN, "cannot be asked"),
        ("daemon", {"daemon_version": "0.0.9"}, Level.WARN, "ffswitchd 0.0.9 runs, this is"),
        ("TAP", {"tun": False}, Level.WARN, "net_tap ports will fail"),
        ("containers", {"runtimes": ()}, Level.WARN, "none of podman"),
    ],
)
def test_what_is_missing_is_found(topic: str, changes: dict[str, object], level: Level, says: str) -> None:
    found = findings(topic, **changes)
    assert [each.level for each in found] == [level]
    assert says in found[0].what
    assert bool(found[0].todo) == (level is not Level.OK)


def test_memory_lock_limit_matters_only_without_the_capability() -> None:
    no_lock = ((1 << 41) - 1) & ~(1 << 14)
    assert any(
        "memory lock limit of 64 kB" in each.what for each in findings("rights", capabilities=no_lock, memlock=65536)
    )
    assert not any("memory lock" in each.what for each in findings("rights", memlock=65536))


def test_slow_governor() -> None:
    assert findings("CPUs", governors=("performance",))[0].level is Level.OK
    assert "governor powersave" in findings("CPUs", governors=("performance", "powersave"))[1].what


def test_huge_pages_are_welcome_and_not_needed() -> None:
    assert findings("hugepages")[0].what.startswith("none: the switch works without")
    pages = (HugePages(2048, 256, 200), HugePages(1048576, 2, 1), HugePages(64, 0, 0))
    found = findings("hugepages", huge_pages=pages, huge_mounts=("/dev/hugepages",))
    assert [each.what for each in found] == [
        "200 of 256 x 2 MB free (400 MB), mounted on /dev/hugepages",
        "1 of 2 x 1 GB free (1024 MB), mounted on /dev/hugepages",
    ]
    assert findings("memory", memory_mb=100, huge_pages=pages)[0].level is Level.OK


def nic(driver: str, ids: tuple[int, int, int, int] = (0x1AF4, 0x1041, 0, 0)) -> PciDevice:
    return PciDevice("0000:00:03.0", ids, 0x020000, driver, ("eth0",))


def test_pci_devices_and_what_would_drive_them() -> None:
    kernel = findings("PCI", pci=(nic("virtio-pci"),))[0]
    assert "0000:00:03.0 1af4:1041 (eth0): net_virtio could drive it, the kernel's virtio-pci holds it" in kernel.what
    assert "dpdk-devbind.py --bind=vfio-pci 0000:00:03.0" in kernel.todo
    ours = findings("PCI", pci=(nic("vfio-pci"),))[0]
    assert "net_virtio drives it, by vfio-pci" in ours.what
    assert "--devargs 0000:00:03.0" in ours.todo
    assert (
        "mlx5_eth drives it, by mlx5_core" in findings("PCI", pci=(nic("mlx5_core", (0x15B3, 0x1017, 0, 0)),))[0].what
    )
    unknown = findings("PCI", pci=(nic("tg3", (1, 2, 3, 4)),))[0]
    assert "no PMD drives it" in unknown.what
    assert "net_af_xdp" in unknown.todo


def test_iommu_matters_only_to_devices_on_vfio() -> None:
    assert findings("IOMMU", pci=(nic("virtio-pci"),))[0].level is Level.OK
    assert findings("IOMMU", pci=(nic("vfio-pci"),))[0].level is Level.WARN
    assert findings("IOMMU", pci=(nic("vfio-pci"),), iommu_groups=5)[0].what.startswith("5 groups")


def test_every_finding_is_one_line() -> None:
    bad = Facts(
        dpdk_version="", fast_path_built=False, pmd_dir="", capabilities=0, daemon="absent", tun=False, runtimes=()
    )
    for finding in doctor.diagnose(bad):
        assert "\n" not in finding.what + finding.todo
        assert finding.todo or finding.level is Level.OK


@pytest.mark.parametrize(("text", "version"), [("DPDK 22.11.11", (22, 11, 11)), ("23.11.0-rc1", (23, 11, 0)), ("", ())])
def test_version(text: str, version: tuple[int, ...]) -> None:
    assert doctor.parse_version(text) == version


# ---- looking -----------------------------------------------------------------


@pytest.fixture(autouse=True)
def cache_file(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path_factory.getbasetemp() / "drivers.json"
    monkeypatch.setattr(drivers, "_cache_path", lambda: path)


def test_this_host(tmp_path: Path) -> None:
    facts = doctor.gather(tmp_path)
    assert doctor.parse_version(facts.dpdk_version) >= doctor.DPDK_MIN
    assert "net_pcap" in {driver.name for driver in facts.drivers}
    assert facts.memory_mb > 0
    assert facts.cpus
    assert facts.daemon == "absent"


def test_the_daemon_is_asked(tmp_path: Path) -> None:
    fake = FakeDaemon(tmp_path, {"version": VERSION})
    facts = doctor.gather(tmp_path)
    assert (facts.daemon, facts.daemon_version) == ("running", VERSION["version"])
    fake.answers["version"] = RpcError(-32603, "ill")
    assert doctor.gather(tmp_path).daemon == "it gives no answer"
    fake.close()
    assert doctor.gather(tmp_path).daemon == "stale"


@pytest.mark.parametrize(("version", "code"), [("22.11.11", 0), ("22.11.2", 1)])
def test_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], version: str, code: int
) -> None:
    monkeypatch.setattr(doctor, "gather", lambda run_dir: replace(GOOD, dpdk_version=version, run_dir=str(run_dir)))
    assert main(["--run-dir", str(tmp_path), "doctor", "-o", "json"]) == code
    out = capsys.readouterr().out
    assert json.loads(out)[0]["level"] == ("error" if code else "ok")
    assert main(["--run-dir", str(tmp_path), "doctor"]) == code
    captured = capsys.readouterr()
    assert str(tmp_path) in captured.out
    assert ("-> apt update" in captured.out) == bool(code)
    assert captured.err == ""


def test_drivers_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drivers"]) == 0
    assert "net_af_xdp" in capsys.readouterr().out
    assert main(["drivers", "eth_pcap"]) == 0
    assert "librte_net_pcap.so" in capsys.readouterr().out
    assert main(["drivers", "net_pcap", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["drivers"][0]["alias"] == "eth_pcap"
    assert main(["drivers", "net_nix"]) == 1
    assert capsys.readouterr().err == "ffswitch: no driver net_nix; 'ffswitch drivers' lists the known ones\n"
