# SPDX-License-Identifier: Apache-2.0
"""A scripted stand-in for ffswitchd's control socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from vswitch.cli.client import SOCKET_NAME, RpcError

Script = Callable[[socket.socket, Any], None]


class Scripted:
    """An answer that takes the connection over: called with the connection and the request."""

    def __init__(self, script: Script) -> None:
        self.script = script


class FakeDaemon:
    """Answers each method from `answers`: a result, an RpcError, a function of the params, or a Scripted."""

    def __init__(self, run_dir: Path, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(run_dir / SOCKET_NAME))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with suppress(OSError):  # closed before
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=10)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                try:
                    for line in lines:
                        self._answer(connection, json.loads(line))
                except ConnectionError:
                    continue

    def _answer(self, connection: socket.socket, request: dict[str, Any]) -> None:
        self.requests.append((request["method"], request["params"]))
        answer = self.answers[request["method"]]
        if isinstance(answer, Scripted):
            answer.script(connection, request)
            return
        if callable(answer):
            answer = answer(request["params"])
        if isinstance(answer, RpcError):
            reply = {"error": {"code": answer.code, "message": str(answer)}}
        else:
            reply = {"result": answer}
        send(connection, {"id": request["id"], **reply})


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")


def port(name: str, **changes: object) -> dict[str, Any]:
    """A Port as the daemon describes it."""
    return {
        "name": name,
        "type": "vhost-user",
        "socket": f"/run/ffswitch/ports/{name}/vhost.sock",
        "role": "client",
        "devargs": "",
        "mac": "02:00:00:00:00:01",
        "ips": [],
        "network": "default",
        "trust_domain": "",
        "queues": 1,
        "mtu": 1500,
        "tag": 0,
        "trunks": [],
        "native_vlan": 0,
        "mirror": "",
        "mac_quota": 4096,
        "upcall_budget": 512,
        "id": 1,
        "state": "ready",
        "reason": "",
        "since": 1.0,
        "driver": "vhost-user",
        "rx_queues": 1,
        "tx_queues": 1,
        "features": 0,
        "stats": {"rx_packets": 0, "rx_bytes": 0, "tx_packets": 0, "tx_bytes": 0, "dropped": 0},
        **changes,
    }


VERSION = {
    "version": "0.1.0",
    "dpdk": "22.11.11",
    "pid": 42,
    "run_dir": "/run/ffswitch",
    "uptime_s": 3700.0,
    "workers": [{"cpu": 1}],
}
