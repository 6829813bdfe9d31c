# SPDX-License-Identifier: Apache-2.0
"""Port directories and sockets."""

import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from vswitch.slowpath import portdir
from vswitch.slowpath.errors import SwitchError


def listen(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    server.listen(0)
    return server


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "live.sock"
    with listen(path):
        yield path


@pytest.fixture
def stale(tmp_path: Path) -> Path:
    path = tmp_path / "stale.sock"
    listen(path).close()
    return path


def test_directory_comes_with_its_mode_and_goes_with_its_sockets(tmp_path: Path) -> None:
    directory = tmp_path / "ports" / "web0"
    assert portdir.make(directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o2770
    assert not portdir.make(directory)
    listen(directory / "vhost.sock").close()
    assert portdir.remove(directory) == ""
    assert not directory.exists()
    assert portdir.remove(directory) == ""


def test_directory_with_somebodys_file_stays(tmp_path: Path) -> None:
    portdir.make(tmp_path / "a")
    (tmp_path / "a" / "notes").touch()
    assert "not empty" in portdir.remove(tmp_path / "a")
    assert (tmp_path / "a" / "notes").exists()


def test_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SwitchError, match="Not a directory"):
        portdir.make(tmp_path / "file" / "a")


def test_server_refuses_a_live_listener(live: Path) -> None:
    with pytest.raises(SwitchError, match="another process listens there"):
        portdir.check_socket(live, server=True)
    assert live.exists()


def test_server_refuses_a_live_listener_with_a_full_backlog(live: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        for client in (one, two):
            client.setblocking(False)
            client.connect_ex(str(live))
        with pytest.raises(SwitchError, match="another process listens there"):
            portdir.check_socket(live, server=True)


def test_client_is_glad_of_a_live_listener(live: Path) -> None:
    portdir.check_socket(live, server=False)


def test_server_removes_a_stale_socket(stale: Path) -> None:
    portdir.check_socket(stale, server=True)
    assert not stale.exists()


def test_client_leaves_a_stale_socket(stale: Path) -> None:
    portdir.check_socket(stale, server=False)
    assert stale.exists()


@pytest.mark.parametrize("server", [False, True])
def test_no_socket_there(tmp_path: Path, server: bool) -> None:
    portdir.check_socket(tmp_path / "new.sock", server=server)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SwitchError, match="no socket"):
        portdir.check_socket(tmp_path / "file", server=server)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(SwitchError, match="there is no directory"):
        portdir.check_socket(tmp_path / "no" / "x.sock", server=server)
