# SPDX-License-Identifier: Apache-2.0
"""A door into a network namespace: who connects to a loopback port here is connected to the same port there."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from importlib import import_module


@contextlib.contextmanager
def doorway(netns: str, port: int) -> Iterator[None]:
    """As long as the block. Connections wait for the door to open, and are closed where nobody listens there."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        command = [sys.executable, "-m", __name__, netns, str(port), str(listener.fileno())]
        process = subprocess.Popen(command, pass_fds=[listener.fileno()])
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def _serve(netns: str, port: int, listener: socket.socket) -> None:
    # The listener stays where it was made; what is made from now on is there.
    import_module("pyroute2.netns").setns(netns)

    async def connected(reader: StreamReader, writer: StreamWriter) -> None:
        try:
            there, to_there = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pump(reader, to_there), _pump(there, writer))

    async with await asyncio.start_server(connected, sock=listener) as server:
        await server.serve_forever()


async def _pump(reader: StreamReader, writer: StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2]), socket.socket(fileno=int(sys.argv[3]))))
