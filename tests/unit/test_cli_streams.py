# SPDX-License-Identifier: Apache-2.0
"""`ffswitch trace` and `capture`, and the capture files that they read and write."""

from __future__ import annotations

import base64
import json
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.conftest import FFSWITCH
from tests.unit.rpcserver import FakeDaemon, Scripted, send
from vswitch.cli import trace
from vswitch.cli.client import RpcError
from vswitch.cli.main import main
from vswitch.cli.pcapfile import BlockCutter, CaptureError, read_frames

FRAME = bytes(range(60))
TRACE = {
    "summary": "ARP who-has 10.0.0.2",
    "key": None,
    "result": "flooded",
    "outputs": [{"port": "db0", "frame_len": 60, "vlan": 0}, {"port": "up0", "frame_len": 64, "vlan": 10}],
    "drop": None,
    "reasons": ["it is a broadcast"],
    "flow": None,
}


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + length + body + length


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(link_type: int = 1, order: str = "<") -> bytes:
    return block(1, struct.pack(order + "HHI", link_type, 0, 0), order)


def enhanced(frame: bytes, order: str = "<", number: int = 0) -> bytes:
    return block(6, struct.pack(order + "5I", number, 0, 0, len(frame), len(frame)) + frame, order)


def pcap(*frames: bytes, order: str = "<", magic: int = 0xA1B2C3D4, link_type: int = 1) -> bytes:
    head = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link_type)
    return head + b"".join(struct.pack(order + "IIII", 0, 0, len(f), len(f)) + f for f in frames)


@pytest.fixture
def daemon(run_dir: Path) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(run_dir, {})
    yield fake
    fake.close()


# ---- reading capture files --------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("magic", [0xA1B2C3D4, 0xA1B23C4D])
def test_pcap_of_either_byte_order_and_resolution(tmp_path: Path, order: str, magic: int) -> None:
    path = tmp_path / "a.pcap"
    path.write_bytes(pcap(FRAME, FRAME[:20], order=order, magic=magic))
    assert list(read_frames(path)) == [FRAME, FRAME[:20]]


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_blocks_with_packets(tmp_path: Path, order: str) -> None:
    old = block(2, struct.pack(order + "HHIIII", 0, 0, 0, 0, len(FRAME), len(FRAME)) + FRAME, order)
    simple = block(3, struct.pack(order + "I", len(FRAME)) + FRAME, order)
    unknown = block(0x0BAD, b"whatever", order)
    path = tmp_path / "a.pcapng"
    blocks = [section(order), interface(order=order), unknown, enhanced(FRAME[:33], order), old, simple]
    path.write_bytes(b"".join(blocks))
    assert list(read_frames(path)) == [FRAME[:33], FRAME, FRAME]


def test_pcapng_sections_each_have_their_own_interfaces_and_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    path.write_bytes(
        section() + interface() + enhanced(FRAME) + section(">") + interface(order=">") + enhanced(FRAME, ">")
    )
    assert list(read_frames(path)) == [FRAME, FRAME]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"hello world", "neither a pcap nor a pcapng"),
        (pcap(FRAME)[:10], "ends within the file header"),
        (pcap(FRAME)[:-1], "ends within packet 1"),
        (pcap(FRAME) + b"abc", "ends within packet 2"),
        (pcap() + struct.pack("<IIII", 0, 0, 1 << 30, 1 << 30), "packet 1 claims"),
        (pcap(link_type=113), "link type is 113"),
        (section()[:9], "no byte-order magic"),
        (section()[:20], "ends within block 1"),
        (section() + enhanced(FRAME), "block 2 is malformed"),
        (section() + interface(113) + enhanced(FRAME), "link type is 113"),
        (section() + interface() + block(6, bytes(12) + struct.pack("<II", 400, 400)), "block 3 is malformed"),
        (section() + interface() + struct.pack("<II", 6, 3), "block 3 claims 3 bytes"),
        (section() + interface() + b"\x06\0\0", "block 3 is malformed"),
    ],
)
def test_bad_capture_file_is_one_clear_line(
    run_dir: Path, capsys: pytest.CaptureFixture[str], content: bytes, says: str
) -> None:
    path = run_dir / "bad.pcap"
    path.write_bytes(content)
    with pytest.raises(CaptureError, match=says):
        list(read_frames(path))
    assert main(["trace", "--packet", str(path), "--port", "web0"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"ffswitch: cannot read {path}: ")
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("size", [1, 7, 8, 1000])
def test_blocks_are_cut_whatever_the_pieces(size: int) -> None:
    stream = section() + interface() + enhanced(FRAME) + enhanced(FRAME[:13])
    cutter = BlockCutter()
    cut = [part for start in range(0, len(stream), size) for part in cutter.feed(stream[start : start + size])]
    assert b"".join(part for _, part in cut) == stream
    assert [kind for kind, _ in cut] == [0x0A0D0D0A, 1, 6, 6]


def test_cutter_refuses_nonsense() -> None:
    with pytest.raises(CaptureError, match="claims 3 bytes"):
        list(BlockCutter().feed(struct.pack("<II", 6, 3)))


# ---- trace ------------------------------------------------------------------


def test_trace_packet(daemon: FakeDaemon, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dropped = {**TRACE, "result": "dropped", "drop": "vlan", "outputs": [], "flow": 7}
    daemon.answers["trace.packet"] = [TRACE, dropped]
    path = run_dir / "a.pcap"
    path.write_bytes(pcap(FRAME, FRAME, FRAME))
    assert main(["trace", "--packet", str(path), "--port", "web0", "-c", "2"]) == 0
    frames = [base64.b64encode(FRAME).decode()] * 2
    assert daemon.requests == [("trace.packet", {"port": "web0", "frames": frames})]
    assert capsys.readouterr().out.splitlines() == [
        "1: ARP who-has 10.0.0.2",
        "    flooded to db0, up0 with VLAN tag 10",
        "    - it is a broadcast",
        "2: ARP who-has 10.0.0.2",
        "    dropped: vlan (by flow 7)",
        "    - it is a broadcast",
    ]


def test_trace_packet_that_is_too_much(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_dir / "a.pcap"
    path.write_bytes(pcap(FRAME, FRAME, FRAME))
    monkeypatch.setattr(trace, "MAX_FRAMES", 2)
    assert main(["trace", "--packet", str(path), "--port", "web0"]) == 1
    assert "too large; say how many packets with --count" in capsys.readouterr().err


def test_trace_of_no_packets(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_dir / "a.pcap"
    path.write_bytes(pcap())
    assert main(["trace", "--packet", str(path), "--port", "web0"]) == 1
    assert "holds no packets" in capsys.readouterr().err


def test_trace_live(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    def script(connection: socket.socket, request: Any) -> None:
        for _ in range(request["params"]["n"]):
            send(connection, {"method": "trace", "params": TRACE})
        send(connection, {"id": request["id"], "result": {"count": 2}})

    daemon.answers |= {"trace.live": Scripted(script), "port.list": []}
    assert main(["trace", "--live", "2", "web0"]) == 0
    assert capsys.readouterr().out.count("flooded to db0") == 2
    assert main(["trace", "--live", "2", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == [TRACE, TRACE]
    asked = [params for method, params in daemon.requests if method == "trace.live"]
    assert asked == [{"n": 2, "port": "web0"}, {"n": 2}]


def ffswitch(*args: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*FFSWITCH, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)


def until_hung_up(connection: socket.socket) -> None:
    connection.settimeout(60)
    while connection.recv(4096):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_trace_that_is_stopped_leaves_whole_json(daemon: FakeDaemon, number: int) -> None:
    def script(connection: socket.socket, _request: Any) -> None:
        send(connection, {"method": "trace", "params": TRACE})
        until_hung_up(connection)
        connection.shutdown(socket.SHUT_RDWR)

    daemon.answers |= {"trace.live": Scripted(script), "port.list": []}
    with ffswitch("trace", "--live", "9", "-o", "json") as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(number)
        rest, err = process.communicate(timeout=60)
    assert json.loads(first + rest) == [TRACE]
    assert (process.returncode, err) == (0, b"")


def test_daemon_that_dies_in_a_trace_is_told(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    def script(connection: socket.socket, _request: Any) -> None:
        connection.shutdown(socket.SHUT_RDWR)

    daemon.answers |= {"trace.live": Scripted(script), "port.list": []}
    assert main(["trace", "--live", "1"]) == 1
    assert "hung up" in capsys.readouterr().err


# ---- capture ----------------------------------------------------------------

HEAD = section() + interface()


def sends(*pieces: bytes, then: threading.Event | None = None, last: bytes = b"") -> Scripted:
    """A capture that sends `pieces`, with `then` sets it and waits to be hung up on, and sends `last`."""

    def script(connection: socket.socket, request: Any) -> None:
        send(connection, {"id": request["id"], "result": {"ok": True}})
        for piece in pieces:
            connection.sendall(piece)
        if then:
            then.set()
            until_hung_up(connection)
        connection.sendall(last)
        connection.shutdown(socket.SHUT_RDWR)

    return Scripted(script)


def test_capture_until_the_port_goes(daemon: FakeDaemon, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.answers["capture"] = sends(HEAD[:11], HEAD[11:] + enhanced(FRAME), enhanced(FRAME)[:-3])
    path = run_dir / "a.pcapng"
    assert main(["capture", "web0", "-w", str(path), "--snaplen", "99", "--direction", "rx"]) == 0
    assert path.read_bytes() == HEAD + enhanced(FRAME)
    assert daemon.requests == [("capture", {"port": "web0", "snaplen": 99, "direction": "rx"})]
    assert capsys.readouterr().err == "1 packet captured; it ended early: port web0 or ffswitchd is gone\n"


def test_capture_counts(daemon: FakeDaemon, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.answers["capture"] = sends(HEAD + enhanced(FRAME) * 5)
    path = run_dir / "a.pcapng"
    assert main(["capture", "web0", "-w", str(path), "-c", "2"]) == 0
    assert list(read_frames(path)) == [FRAME, FRAME]
    assert capsys.readouterr().err == "2 packets captured\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_capture_that_is_stopped_ends_its_file(daemon: FakeDaemon, run_dir: Path, number: int) -> None:
    sent = threading.Event()
    statistics = block(5, bytes(12))
    daemon.answers["capture"] = sends(HEAD + enhanced(FRAME), then=sent, last=enhanced(FRAME) + statistics)
    path = run_dir / "a.pcapng"
    with ffswitch("capture", "web0", "-w", str(path)) as process:
        assert sent.wait(60)
        _wait_for_size(path, len(HEAD))
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"2 packets captured\n")
    assert path.read_bytes() == HEAD + enhanced(FRAME) * 2 + statistics


def _wait_for_size(path: Path, size: int) -> None:
    """The file grows only once signals are handled."""
    deadline = threading.Event()
    for _ in range(6000):
        if path.exists() and path.stat().st_size >= size:
            return
        deadline.wait(0.01)
    raise AssertionError(f"{path} did not grow to {size} bytes in a minute")


def test_capture_to_a_pipe_whose_reader_leaves(daemon: FakeDaemon) -> None:
    def script(connection: socket.socket, request: Any) -> None:
        send(connection, {"id": request["id"], "result": {"ok": True}})
        connection.sendall(HEAD)
        with pytest.raises(ConnectionError):
            while True:
                connection.sendall(enhanced(FRAME) * 100)

    daemon.answers["capture"] = Scripted(script)
    with ffswitch("capture", "web0", "-w", "-") as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == HEAD[:4]
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
        assert process.wait(timeout=60) == 0
    assert err == b""


def test_capture_refused_makes_no_file(daemon: FakeDaemon, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.answers["capture"] = RpcError(-32000, "port web0: there is none")
    assert main(["capture", "web0", "-w", str(run_dir / "a.pcapng")]) == 1
    assert capsys.readouterr().err == "ffswitch: port web0: there is none\n"
    assert not (run_dir / "a.pcapng").exists()


def test_capture_of_nonsense_leaves_no_file(
    daemon: FakeDaemon, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.answers["capture"] = sends(HEAD + b"\0" * 100)
    assert main(["capture", "web0", "-w", str(run_dir / "a.pcapng")]) == 1
    assert "sent no pcapng: a block claims 0 bytes" in capsys.readouterr().err
    assert not (run_dir / "a.pcapng").exists()


def test_capture_into_a_file_that_cannot_be_made(
    daemon: FakeDaemon, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.answers["capture"] = sends(HEAD)
    assert main(["capture", "web0", "-w", str(run_dir / "no" / "a.pcapng")]) == 1
    assert "No such file or directory" in capsys.readouterr().err


def test_capture_onto_a_full_disk(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.answers["capture"] = sends(HEAD + enhanced(FRAME))
    assert main(["capture", "web0", "-w", "/dev/full"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert Path("/dev/full").exists()
