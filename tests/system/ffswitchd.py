# SPDX-License-Identifier: Apache-2.0
"""A real ffswitchd in a process of its own, and a client of its control socket."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from vswitch.slowpath.ports import ADD_KEYS

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0
CALL_TIMEOUT = 30.0


class RpcError(Exception):
    """The daemon's answer was an error: its message, and `code`."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Ffswitchd:
    """The daemon, from READY=1 on; its log is in `log_path`. Ends with `stop`, which also judges the log."""

    def __init__(self, run_dir: Path, *options: str, may_log: str = r"$^", netns: str = "") -> None:
        """Start it with `options`, in a network namespace; `may_log` matches the warnings that the test provokes."""
        self._may_log = may_log
        self.run_dir = run_dir
        self.log_path = run_dir.with_name(run_dir.name + ".log")
        run_dir.mkdir(parents=True, exist_ok=True)
        # The module, not the installed script: it is this tree that is tested.
        command = [sys.executable, "-c", "from vswitch.slowpath.daemon import main; main()"]
        command += ["--run-dir", str(run_dir), "--no-huge", *options]
        if netns:
            command = ["ip", "netns", "exec", netns, *command]
        with self.log_path.open("ab") as log, self._notify_socket() as notify:
            environment = os.environ | {"NOTIFY_SOCKET": str(notify.getsockname())}
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log, stdin=subprocess.DEVNULL)
            try:
                self._wait_ready(notify)
            except BaseException:
                self.process.kill()
                self.process.wait()
                raise
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(CALL_TIMEOUT)
        self._sock.connect(str(run_dir / "ffswitch.sock"))
        self._lines = self._sock.makefile("rb")
        self._id = 0

    def call(self, method: str, **params: Any) -> Any:
        """One JSON-RPC request; returns its result or raises RpcError."""
        self._id += 1
        request = {"jsonrpc": "2.0", "id": self._id, "method": method, "params": params}
        self._sock.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(self._lines.readline())
        assert answer["id"] == self._id
        if "error" in answer:
            raise RpcError(answer["error"]["code"], answer["error"]["message"])
        return answer["result"]

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def stop(self) -> None:
        """SIGTERM: it must end by itself, with exit status 0 and nothing bad in its log."""
        self._disconnect()
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        assert status == 0, self.log[-4000:]
        bad = [line for line in self.log.splitlines() if re.search(r"\b(WARNING|ERROR|CRITICAL|Traceback)\b", line)]
        bad = [line for line in bad if not re.search(self._may_log, line)]
        assert not bad, "\n".join(bad[:20])

    def kill(self) -> None:
        """kill -9."""
        self._disconnect()
        self.process.kill()
        self.process.wait(STOP_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.stop()
        elif self.process.poll() is None:
            self.kill()

    def _disconnect(self) -> None:
        self._lines.close()
        self._sock.close()

    @contextlib.contextmanager
    def _notify_socket(self) -> Any:
        path = self.run_dir / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(str(path))
            try:
                yield sock
            finally:
                path.unlink()

    def _wait_ready(self, notify: socket.socket) -> None:
        """Waits for systemd's READY=1, or for the process to end without it."""
        pidfd = os.pidfd_open(self.process.pid)
        try:
            poller = select.poll()
            poller.register(notify, select.POLLIN)
            poller.register(pidfd, select.POLLIN)
            ready = dict(poller.poll(START_TIMEOUT * 1000))
        finally:
            os.close(pidfd)
        assert notify.fileno() in ready, f"ffswitchd is not ready: {self.log[-4000:]}"
        assert b"READY=1" in notify.recv(4096)


def wait_ready(daemon: Ffswitchd, name: str) -> None:
    """The request ends when the port is ready, or when it says why not."""
    port = daemon.call("port.get", name=name)
    config = {key: port[key] for key in ADD_KEYS - {"devargs"}}
    ready = daemon.call("port.add", **config, may_exist=True, wait_s=CALL_TIMEOUT / 2)
    assert ready["state"] == "ready", ready
