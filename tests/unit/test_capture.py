# SPDX-License-Identifier: Apache-2.0
"""The pcapng stream, read back by tshark."""

import re
import subprocess
from pathlib import Path

from vswitch.slowpath import capture
from vswitch.slowpath.fastpath import TAP_RX, TAP_TX, TapRecord
from vswitch.slowpath.types import Drop

T0 = 1_700_000_000_123_456_789
FRAME = bytes.fromhex("020000000002020000000001080600010800060400010200000000010a0000010000000000000a000002")


def record(number: int, kind: int = TAP_RX, frame: bytes = FRAME, frame_len: int = 0) -> TapRecord:
    return TapRecord(T0 + number, 1, kind, Drop.NONE, frame_len or len(frame), frame, 0, 0, ())


class Reader:
    """Collects what a capture writes; `waiting` is what it has not taken yet."""

    def __init__(self) -> None:
        self.data = b""
        self.waiting = 0
        self.lost = 0

    def capture(self, snaplen: int = capture.SNAPLEN_MAX) -> capture.Capture:
        return capture.Capture(self.write, lambda: self.waiting, snaplen, lambda: self.lost)

    def write(self, data: bytes) -> None:
        self.data += data


def tshark(path: Path, *fields: str) -> list[list[str]]:
    command = ["tshark", "-n", "-r", str(path), "-T", "fields", "-E", "separator=|"]
    for field in fields:
        command += ["-e", field]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return [line.split("|") for line in done.stdout.splitlines()]


def counters(path: Path) -> tuple[int, int]:
    """(received, dropped) of the Interface Statistics Block."""
    # This reader shows the blocks themselves, which "-r" alone digests.
    command = ["tshark", "-r", str(path), "-X", "read_format:MIME Files Format", "-V"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    (received,) = re.findall(r"Number of Received Packets = (\d+)", text)
    (dropped,) = re.findall(r"Number of Dropped Packets = (\d+)", text)
    return int(received), int(dropped)


def test_read_by_tshark(tmp_path: Path) -> None:
    reader = Reader()
    stream = reader.capture()
    stream.begin("web0")
    stream.records([record(0), record(1, TAP_TX), record(2, frame=FRAME + b"x")])
    stream.end()
    path = tmp_path / "x.pcapng"
    path.write_bytes(reader.data)
    assert tshark(path, "frame.time_epoch", "frame.interface_name", "frame.len", "frame.packet_flags_direction") == [
        ["1700000000.123456789", "web0", "42", "0x00000001"],
        ["1700000000.123456790", "web0", "42", "0x00000002"],
        ["1700000000.123456791", "web0", "43", "0x00000001"],
    ]
    assert tshark(path, "arp.src.proto_ipv4")[0] == ["10.0.0.1"]
    assert counters(path) == (3, 0)


def test_snaplen(tmp_path: Path) -> None:
    reader = Reader()
    stream = reader.capture(snaplen=20)
    stream.begin("web0")
    stream.records([record(0, frame=FRAME[:30], frame_len=1500)])
    path = tmp_path / "x.pcapng"
    path.write_bytes(reader.data)
    assert tshark(path, "frame.cap_len", "frame.len") == [["20", "1500"]]


def test_slow_reader_loses_records_and_is_told_how_many(tmp_path: Path) -> None:
    reader = Reader()
    stream = reader.capture()
    stream.begin("web0")
    stream.records([record(0)])
    reader.waiting = capture.BACKLOG_MAX + 1
    before = reader.data
    stream.records([record(1), record(2)])
    stream.records([record(3)])
    assert reader.data == before
    reader.waiting = 0
    reader.lost = 5
    stream.records([record(4), record(5)])
    stream.end()
    path = tmp_path / "x.pcapng"
    path.write_bytes(reader.data)
    assert [row[0][-1] for row in tshark(path, "frame.time_epoch")] == ["9", "3", "4"]
    assert capture.packet(T0 + 4, FRAME, len(FRAME), inbound=True, lost_before=3) in reader.data
    assert capture.packet(T0 + 5, FRAME, len(FRAME), inbound=True) in reader.data
    assert counters(path) == (6 + 5, 3 + 5)


def test_losses_of_workers_before_the_capture_are_not_its_own(tmp_path: Path) -> None:
    reader = Reader()
    reader.lost = 100
    stream = reader.capture()
    stream.begin("web0")
    reader.lost = 102
    stream.end()
    path = tmp_path / "x.pcapng"
    path.write_bytes(reader.data)
    assert counters(path) == (2, 2)
