# SPDX-License-Identifier: Apache-2.0
"""`ffswitch capture`: a port's packets as pcapng."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from vswitch.cli.client import Client
from vswitch.cli.pcapfile import ENHANCED_PACKET, BlockCutter, CaptureError
from vswitch.cli.ports import complete_port
from vswitch.cli.render import plural


@click.command()
@click.argument("port", shell_complete=complete_port)
@click.option(
    "-w", "--write", "target", required=True, metavar="FILE", help="pcapng file to write; - is standard output."
)
@click.option(
    "--snaplen", type=click.IntRange(1, 262144), default=262144, show_default=True, help="Bytes kept of a packet."
)
@click.option(
    "--direction",
    type=click.Choice(["both", "rx", "tx"]),
    default="both",
    show_default=True,
    help="rx: what the port sends into the switch; tx: what it gets.",
)
@click.option("-c", "--count", type=click.IntRange(min=1), metavar="N", help="Stop after N packets.")
@click.pass_obj
def capture(run_dir: Path, /, *, port: str, target: str, snaplen: int, direction: str, count: int | None) -> None:
    """Capture a port's packets as pcapng, until ^C.

    \b
    ffswitch capture web0 -w web0.pcapng
    ffswitch capture web0 -w - | tshark -r -
    """
    if target == "-" and sys.stdout.isatty():
        raise click.UsageError("-w - writes binary data; send it to a pipe or a file")
    with Client(run_dir) as client:
        begun = client.call("capture", {"port": port, "snaplen": snaplen, "direction": direction})
        if begun.get("shortcuts"):
            click.echo(f"{plural(begun['shortcuts'], 'shortcut')} will go through the switch while this runs", err=True)
        with client.stopped_by_signals():
            packets = _write(client.raw(), target, count)
    ended = not client.hung_up and packets != count
    why = f"; it ended early: port {port} or ffswitchd is gone" if ended else ""
    click.echo(f"{plural(packets, 'packet')} captured{why}", err=True)


def _write(stream: Iterator[bytes], target: str, count: int | None) -> int:
    """Write the stream to `target`, whole blocks only, until it ends or has `count` packets; return how many it had."""
    packets = 0
    cutter = BlockCutter()
    with _target(target) as file:
        try:
            for data in stream:
                for kind, block in cutter.feed(data):
                    file.write(block)
                    packets += kind == ENHANCED_PACKET
                    if packets == count:
                        return packets
                file.flush()
        except CaptureError as error:
            raise click.ClickException(f"ffswitchd sent no pcapng: {error}; is it of this version?") from None
    return packets


@contextmanager
def _target(target: str) -> Iterator[BinaryIO]:
    """Open what is written to; a capture that fails leaves no file."""
    if target == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(target)
    try:
        file = path.open("wb")
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror}") from None
    try:
        with file:
            yield file
    except BaseException as error:
        if path.is_file():
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise click.ClickException(f"cannot write {path}: {error.strerror}; it was removed") from None
        raise


COMMANDS = (capture,)
