# SPDX-License-Identifier: Apache-2.0
"""An etcd cluster on free loopback ports, its members child processes with data directories of their own.

With a network namespace for each, members reach each other by its `eth0`, which can be cut.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.system.doorway import doorway
from tests.system.underlay import ip


class EtcdCluster:
    """Three members by default. `endpoints` is for EtcdStore. End it with `stop`."""

    def __init__(
        self, directory: Path, size: int = 3, *options: str, scheme: str = "http", hosts: Sequence[str] = ()
    ) -> None:
        """Start the members; data and logs go to `directory`. They answer a little later: clients wait by themselves.

        `options` are etcd's, for each member; `scheme` is that of the clients; `hosts` are namespaces `on_a_bridge`.
        """
        self._directory = directory
        self._hosts = hosts
        ports = _free_ports(2 * size)
        self._peers = [f"http://127.0.0.1:{port}" for port in ports[:size]]
        if hosts:
            self._peers = [f"http://192.0.2.{number}:2380" for number in range(1, size + 1)]
        self.endpoints = [f"127.0.0.1:{port}" for port in ports[size:]]
        self._options = options
        self._scheme = scheme
        self._members: list[subprocess.Popen[bytes] | None] = [None] * size
        self._doors = contextlib.ExitStack()
        try:
            for netns, port in zip(hosts, ports[size:], strict=False):
                self._doors.enter_context(doorway(netns, port))
            for index in range(size):
                self.start(index)
        except BaseException:
            self.stop()
            raise

    def start(self, index: int) -> None:
        """Start a member, for the first time or again."""
        cluster = ",".join(f"m{number}={peer}" for number, peer in enumerate(self._peers))
        client = f"{self._scheme}://{self.endpoints[index]}"
        command = ["etcd", "--name", f"m{index}", "--data-dir", str(self._directory / f"m{index}")]
        command += ["--listen-peer-urls", self._peers[index], "--initial-advertise-peer-urls", self._peers[index]]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        # Machines that run tests are busy: members that miss heartbeats would elect all the time.
        command += ["--heartbeat-interval", "100", "--election-timeout", "1000", "--logger", "zap"]
        command += ["--initial-cluster", cluster, "--initial-cluster-token", str(os.getpid()), *self._options]
        if self._hosts:
            command = ["ip", "netns", "exec", self._hosts[index], *command]
        with (self._directory / f"m{index}.log").open("ab") as log:
            self._members[index] = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def kill(self, index: int) -> None:
        """kill -9, and wait for its end."""
        member = self._members[index]
        assert member is not None and member.poll() is None, self.log(index)
        member.kill()
        member.wait()
        self._members[index] = None

    def pause(self, index: int) -> None:
        """The member stands still, its connections stay: what a cut network looks like from outside."""
        self._signal(index, signal.SIGSTOP)

    def resume(self, index: int) -> None:
        self._signal(index, signal.SIGCONT)

    def cut(self, index: int) -> None:
        """Take a member's link to the others down; its clients still reach it."""
        ip("link", "set", "eth0", "down", netns=self._hosts[index])

    def mend(self, index: int) -> None:
        ip("link", "set", "eth0", "up", netns=self._hosts[index])

    def stop(self) -> None:
        """Kill what runs. More than once does no harm."""
        self._doors.close()
        for index, member in enumerate(self._members):
            if member is not None:
                member.kill()
                member.wait()
                self._members[index] = None

    def log(self, index: int) -> str:
        """The last lines of a member's log."""
        return (self._directory / f"m{index}.log").read_text()[-4000:]

    def _signal(self, index: int, number: signal.Signals) -> None:
        member = self._members[index]
        assert member is not None and member.poll() is None, self.log(index)
        member.send_signal(number)


@contextlib.contextmanager
def etcd_cluster(
    directory: Path, size: int = 3, *options: str, scheme: str = "http", hosts: Sequence[str] = ()
) -> Iterator[EtcdCluster]:
    """A cluster that ends with the block."""
    cluster = EtcdCluster(directory, size, *options, scheme=scheme, hosts=hosts)
    try:
        yield cluster
    finally:
        cluster.stop()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
