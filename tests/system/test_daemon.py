# SPDX-License-Identifier: Apache-2.0
"""ffswitchd as a process: start, stop, restart, and what it refuses."""

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import stat
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.frontend import FrontEnd, FrontEndError
from tests.system.containers import wait_for
from tests.system.ffswitchd import CALL_TIMEOUT, ROOT, STOP_TIMEOUT, Ffswitchd, RpcError, wait_ready

MAIN = "from vswitch.slowpath.daemon import main; main()"
A, B = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
TIMEOUT = 30.0


def frame(src: bytes, dst: bytes, number: int = 0) -> bytes:
    return (dst + src + b"\x88\xb5" + number.to_bytes(4)).ljust(60, b"\0")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def daemon(run_dir: Path) -> Iterator[Ffswitchd]:
    with Ffswitchd(run_dir) as daemon:
        yield daemon


@pytest.fixture
def start(run_dir: Path) -> Iterator[Callable[[], Ffswitchd]]:
    """Starts a daemon that the test ends in its own way; one that it did not end is killed."""
    started: list[Ffswitchd] = []

    def start() -> Ffswitchd:
        started.append(Ffswitchd(run_dir))
        return started[-1]

    yield start
    for daemon in started:
        if daemon.process.poll() is None:
            daemon.kill()


def port_socket(run_dir: Path, name: str) -> Path:
    return run_dir / "ports" / name / "vhost.sock"


def attach(daemon: Ffswitchd, name: str) -> FrontEnd:
    """A port with a front-end on it, ready."""
    daemon.call("port.add", name=name)
    front = FrontEnd(port_socket(daemon.run_dir, name)).connect(TIMEOUT)
    wait_ready(daemon, name)
    return front


def ping(one: FrontEnd, two: FrontEnd, number: int = 0) -> None:
    """A frame each way, byte for byte."""
    for src, dst, source, target in ((A, B, one, two), (B, A, two, one)):
        sent = frame(src, dst, number)
        source.send([sent])
        received: list[bytes] = []
        while sent not in received:  # others may send too
            received = target.wait_received(1, TIMEOUT)


# ---- start and stop ------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stops_in_order(start: Callable[[], Ffswitchd], run_dir: Path, number: signal.Signals) -> None:
    daemon = start()
    control = run_dir / "ffswitch.sock"
    assert stat.S_IMODE(control.stat().st_mode) == 0o660
    assert (run_dir / "ffswitchd.pid").read_text() == f"{daemon.process.pid}\n"
    daemon.call("port.add", name="listens", role="server")
    listening = port_socket(run_dir, "listens")
    assert stat.S_IMODE(listening.stat().st_mode) == 0o660
    with attach(daemon, "web0") as front, FrontEnd(listening, server=False).connect(TIMEOUT) as client:
        wait_ready(daemon, "listens")
        daemon.process.send_signal(number)
        front.wait_disconnected(TIMEOUT)
        client.wait_disconnected(TIMEOUT)
        assert daemon.process.wait(STOP_TIMEOUT) == 0
    assert not control.exists()
    assert not listening.exists()
    assert not (run_dir / "ffswitchd.pid").exists()
    assert (run_dir / "ports" / "web0").is_dir()
    daemon.stop()


def test_sigterm_while_it_starts(run_dir: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "--run-dir", str(run_dir)], cwd=ROOT, stderr=subprocess.PIPE
    )
    # It heeds signals from before that on.
    wait_for((run_dir / "ffswitchd.pid").exists, "ffswitchd.pid")
    for number in (signal.SIGHUP, signal.SIGTERM):
        process.send_signal(number)
    try:
        _, stderr = process.communicate(timeout=STOP_TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == 0, stderr
    assert [path.name for path in run_dir.iterdir()] == ["ports"]


def test_sighup_is_harmless(daemon: Ffswitchd) -> None:
    with attach(daemon, "a") as one, attach(daemon, "b") as two:
        for number in range(3):
            daemon.process.send_signal(signal.SIGHUP)
            assert daemon.call("version")["pid"] == daemon.process.pid
            ping(one, two, number)
        assert one.connected
        assert two.connected


def test_second_daemon_is_refused(daemon: Ffswitchd) -> None:
    status, line = refusal("--run-dir", str(daemon.run_dir))
    assert status == 1
    assert f"another ffswitchd (pid {daemon.process.pid}) runs in {daemon.run_dir}" in line
    assert daemon.call("version")["pid"] == daemon.process.pid


def test_two_run_dirs_two_switches(daemon: Ffswitchd, tmp_path: Path) -> None:
    with Ffswitchd(tmp_path / "other") as other:
        for switch in (daemon, other):
            with attach(switch, "a") as one, attach(switch, "b") as two:
                ping(one, two)
    assert daemon.call("version")["pid"] == daemon.process.pid


def refusal(*options: str, code: str = MAIN) -> tuple[int, str]:
    """(exit status, the one line on stderr) of a daemon that does not start."""
    command = [sys.executable, "-c", code, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    if done.returncode == 1:
        assert len(lines) == 1, done.stderr
    return done.returncode, lines[-1]


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--no-huge", "--memory", "64"], 1, "not enough memory for 65536 packet buffers; it was given 64 MB"),
        (["--no-huge", "--memory", "100000000"], 1, "DPDK's environment does not start"),
        (["--cpus", "4000"], 2, "CPU 4000 is not one that this process may use"),
        (["--cpus", "x"], 2, "'x' is not a CPU list"),
        (["--workers", "0"], 2, "--workers"),
        (["--mtu", "1"], 2, "--mtu"),
    ],
)
def test_refuses_options(run_dir: Path, options: list[str], status: int, words: str) -> None:
    got, line = refusal("--run-dir", str(run_dir), *options)
    assert (got, words in line) == (status, True), line
    assert not (run_dir / "ffswitch.sock").exists()
    assert not (run_dir / "ffswitchd.pid").exists()


def test_refuses_a_run_dir_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refusal("--run-dir", str(tmp_path / "file"))[0] == 1
    status, line = refusal("--run-dir", str(tmp_path / "file" / "run"))
    assert (status, "Not a directory" in line) == (1, True), line
    status, line = refusal("--run-dir", str(tmp_path / ("x" * 100)))
    assert (status, "a Unix socket's may have 107" in line) == (1, True), line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_refuses_without_rights(run_dir: Path) -> None:
    code = f"import os\nfrom vswitch.slowpath.daemon import main\nos.seteuid(65534)\n{MAIN}"
    status, line = refusal("--run-dir", str(run_dir), code=code)
    assert (status, "start it as root" in line) == (1, True), line


def test_refuses_an_old_dpdk(run_dir: Path) -> None:
    code = f"from vswitch.slowpath.fastpath import FastPath\nFastPath.dpdk_version = lambda: 'DPDK 22.11.10'\n{MAIN}"
    status, line = refusal("--run-dir", str(run_dir), code=code)
    assert (status, "DPDK 22.11.10 is too old" in line) == (1, True), line


def test_corrupt_state_file_is_kept(run_dir: Path) -> None:
    run_dir.mkdir()
    state = run_dir / "state.json"
    state.write_text('{"version": 1, "ports": [{"name": "web0", "mtu": 5}]}')
    before = state.read_text()
    status, line = refusal("--run-dir", str(run_dir))
    assert (status, f"{state} is not a state file: port 1: mtu" in line) == (1, True), line
    assert state.read_text() == before
    assert not (run_dir / "ffswitchd.pid").exists()


# ---- restart -------------------------------------------------------------------


def settings(daemon: Ffswitchd) -> list[dict[str, Any]]:
    live = {"state", "reason", "since", "stats", "rx_queues", "tx_queues", "features"}
    return [{k: v for k, v in port.items() if k not in live} for port in daemon.call("port.list")]


def test_ports_come_back_after_kill_9(start: Callable[[], Ffswitchd], run_dir: Path) -> None:
    first = start()
    with attach(first, "a") as one, attach(first, "b") as two:
        first.call("port.add", name="listens", role="server", mtu=9000, ips=["10.0.0.1"])
        first.call("port.set", name="b", values={"mac_quota": 9, "mirror": ""})
        before = settings(first)
        ping(one, two)
        first.kill()
        assert (run_dir / "ffswitch.sock").exists()
        for front in (one, two):
            front.wait_disconnected(TIMEOUT)
        with Ffswitchd(run_dir) as second:
            for name, front in (("a", one), ("b", two)):
                front.connect(TIMEOUT)
                wait_ready(second, name)
            ping(one, two, 1)
            assert settings(second) == before
            with FrontEnd(port_socket(run_dir, "listens"), server=False).connect(TIMEOUT):
                wait_ready(second, "listens")
            # The front-ends stay: the daemon is the one to close.
            second.stop()


# ---- wrong on purpose ------------------------------------------------------------


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mine.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        yield path


def refused(daemon: Ffswitchd, code: int, words: str, **params: Any) -> None:
    """port.add is refused in one line and leaves nothing behind."""
    ports, state = settings(daemon), (daemon.run_dir / "state.json").read_bytes()
    directories = sorted((daemon.run_dir / "ports").iterdir())
    with pytest.raises(RpcError) as error:
        daemon.call("port.add", **params)
    assert (error.value.code, words in str(error.value)) == (code, True), str(error.value)
    assert "\n" not in str(error.value)
    assert settings(daemon) == ports
    assert (daemon.run_dir / "state.json").read_bytes() == state
    assert sorted((daemon.run_dir / "ports").iterdir()) == directories


def test_port_add_refuses(start: Callable[[], Ffswitchd], run_dir: Path, listener: Path) -> None:
    daemon = start()
    daemon.call("port.add", name="web0")
    refused(daemon, -32000, "exists already", name="web0")
    refused(daemon, -32000, "another mtu", name="web0", mtu=9000, may_exist=True)
    refused(daemon, -32000, "is that of port web0", name="x", socket=str(port_socket(run_dir, "web0")))
    refused(daemon, -32000, "another process listens there", name="x", socket=str(listener), role="server")
    refused(daemon, -32602, "a Unix socket's may have 107", name="x", socket="/" + "x" * 107)
    refused(daemon, -32000, "no directory", name="x", socket=str(run_dir / "nowhere" / "x.sock"))
    refused(daemon, -32602, "not a port name", name="../x")
    refused(daemon, -32602, "unknown key", name="x", colour="red")
    refused(daemon, -32000, "net_nosuch0", name="x", type="pmd", devargs="net_nosuch0")
    refused(daemon, -32000, "speed", name="x", type="pmd", devargs="net_pcap0,iface=lo,speed=9")
    refused(daemon, -32000, "No such device", name="x", type="pmd", devargs="net_af_packet0,iface=ffnosuch")
    refused(daemon, -32000, "No such file", name="x", type="pmd", devargs=f"net_pcap0,rx_pcap={run_dir}/no.pcap")
    daemon.call("port.add", name="x", type="pmd", devargs="net_null0")
    refused(daemon, -32000, "that of port x", name="y", type="pmd", devargs="net_null0")
    daemon.call("port.del", name="x")
    daemon.call("port.add", name="x", type="pmd", devargs="net_null0")
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(STOP_TIMEOUT) == 0


def test_control_socket_takes_anything(daemon: Ffswitchd) -> None:
    rude = [socket.socket(socket.AF_UNIX) for _ in range(5)]
    for client in rude:
        client.settimeout(CALL_TIMEOUT)
        client.connect(str(daemon.run_dir / "ffswitch.sock"))
    garbage, cut, huge, silent, half = rude
    garbage.sendall(os.urandom(10_000).replace(b"\n", b"") + b"\n")
    cut.sendall(b'{"id": 1, "method": "port.a')
    cut.close()
    silent.sendall(b'{"id": 1, "method": "port.list"}\n' * 1000)
    half.sendall(b'{"id": 1, "method": "version"}\n')
    half.shutdown(socket.SHUT_WR)
    assert json.loads(garbage.recv(65536))["error"]["code"] == -32700
    assert json.loads(half.recv(65536))["result"]["pid"] == daemon.process.pid
    sender = threading.Thread(target=send_forever, args=(huge,), daemon=True)
    sender.start()
    assert daemon.call("version")["pid"] == daemon.process.pid
    sender.join(CALL_TIMEOUT)
    assert not sender.is_alive()
    for client in rude:
        client.close()
    assert daemon.call("port.list") == []


def send_forever(client: socket.socket) -> None:
    """One line that never ends, until the other side has had enough."""
    try:
        while True:
            client.sendall(b"x" * 65536)
    except (ConnectionError, BrokenPipeError):
        pass


# ---- under load --------------------------------------------------------------------


def totals(daemon: Ffswitchd) -> dict[str, Any]:
    """The switch's totals once no packet is on its way. Raises TimeoutError."""
    deadline = time.monotonic() + TIMEOUT
    while not (now := daemon.call("stats")["totals"])["balanced"]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the totals do not balance: {now}")
    return dict(now)


def test_port_is_deleted_under_load(daemon: Ffswitchd) -> None:
    with attach(daemon, "a") as one, attach(daemon, "b") as two:
        for number in range(3):
            with attach(daemon, "c") as three, flood(three):
                two.wait_received(1000, TIMEOUT)
                daemon.call("port.del", name="c")
                three.wait_disconnected(TIMEOUT)
                for front in (one, two):  # room for what comes now
                    front.receive()
                ping(one, two, number)
                assert [port["name"] for port in daemon.call("port.list")] == ["a", "b"]
                assert not port_socket(daemon.run_dir, "c").exists()
        assert totals(daemon)["parked"] == 0
        assert {entry["port"] for entry in daemon.call("fdb.dump")} == {"a", "b"}
        assert {flow["key"]["in_port"] for flow in daemon.call("flow.dump")} <= {"a", "b"}


@contextlib.contextmanager
def flood(front: FrontEnd) -> Iterator[None]:
    """Frames to B and to nobody, from ever new addresses, as fast as they are taken."""
    stop = threading.Event()

    def send() -> None:
        for number in itertools.count(step=32):
            sources = [b"\x02\x01" + (number + i).to_bytes(4) for i in range(32)]
            try:
                front.send([frame(source, (B, source[::-1])[i % 2]) for i, source in enumerate(sources)])
            except FrontEndError:  # the port is gone
                return
            if stop.is_set():
                return

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    try:
        yield
    finally:
        stop.set()
        sender.join(TIMEOUT)
        assert not sender.is_alive()


# ---- capture and trace ------------------------------------------------------------


class Stream:
    """A connection of its own for what streams."""

    def __init__(self, daemon: Ffswitchd, method: str, **params: Any) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(CALL_TIMEOUT)
        self.sock.connect(str(daemon.run_dir / "ffswitch.sock"))
        self.file = self.sock.makefile("rb")
        self.sock.sendall(json.dumps({"id": 1, "method": method, "params": params}).encode() + b"\n")

    def line(self) -> dict[str, Any]:
        return dict(json.loads(self.file.readline()))

    def end(self) -> bytes:
        """Stops sending and takes what comes still."""
        self.sock.shutdown(socket.SHUT_WR)
        data = self.file.read()
        self.file.close()
        self.sock.close()
        return data


def test_capture_and_trace(daemon: Ffswitchd, tmp_path: Path) -> None:
    with attach(daemon, "a") as one, attach(daemon, "b") as two:
        trace = Stream(daemon, "trace.live", n=4, port="a")
        capture = Stream(daemon, "capture", port="a")
        assert capture.line()["result"] == {"ok": True, "shortcuts": 0}
        header = capture.file.peek(1)  # the header is written before the tap is set
        assert header
        daemon.call("version")  # a request later the taps are set, whatever came first
        for number in range(4):
            ping(one, two, number)
        traced = [trace.line()["params"] for _ in range(4)]
        assert trace.line()["result"] == {"count": 4}
        trace.end()
        assert [t["result"] for t in traced] == ["flooded", "forwarded", "forwarded", "forwarded"]
        assert [t["flow"] is None for t in traced] == [True, False, False, False]
        assert all(t["outputs"] == [{"port": "b", "frame_len": 60, "vlan": 0}] for t in traced)
        path = tmp_path / "x.pcapng"
        path.write_bytes(capture.end())
    command = ["tshark", "-r", str(path), "-T", "fields", "-e", "eth.src", "-e", "frame.packet_flags_direction"]
    rows = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    assert rows == ["02:00:00:00:00:01\t0x00000001", "02:00:00:00:00:02\t0x00000002"] * 4


# ---- how long port.add takes ---------------------------------------------------------


def test_port_add_latency_is_printed(daemon: Ffswitchd, capsys: pytest.CaptureFixture[str]) -> None:
    times = []
    for number in range(50):
        start = time.monotonic()
        daemon.call("port.add", name=f"p{number}")
        times.append(1000 * (time.monotonic() - start))
    assert len(daemon.call("port.list")) == 50
    with capsys.disabled():
        print(f"\nport.add: median {statistics.median(times):.2f} ms, longest {max(times):.2f} ms (50 ports)")


def test_log_is_one_line_an_event(start: Callable[[], Ffswitchd]) -> None:
    daemon = start()
    with attach(daemon, "a"):
        pass
    daemon.call("port.del", name="a")
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(STOP_TIMEOUT) == 0
    lines = daemon.log.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR) \S", line) for line in lines)
    assert any("port a: ready" in line for line in lines)
    assert any("port a: deleted" in line for line in lines)
