# SPDX-License-Identifier: Apache-2.0
"""`ffswitch trace`: what happens, or would happen, to packets, and why."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import click

from vswitch.cli.client import Client
from vswitch.cli.pcapfile import CaptureError, read_frames
from vswitch.cli.ports import complete_port
from vswitch.cli.render import JsonArray, output_option, plural

# What one request may hold; the daemon takes lines of 16 MiB, and base64 adds a third.
MAX_FRAMES = 10_000
MAX_BYTES = 8 << 20


@click.command()
@click.argument("port", required=False, shell_complete=complete_port)
@click.option(
    "--live", type=click.IntRange(min=1), metavar="N", help="Tell what happens to the next N packets [of PORT]."
)
@click.option(
    "--packet",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Tell what would happen to the packets of a pcap or pcapng file.",
)
@click.option(
    "--port", "sender", metavar="NAME", shell_complete=complete_port, help="Port that --packet's packets come from."
)
@click.option(
    "-c", "--count", type=click.IntRange(1, MAX_FRAMES), metavar="N", help="Only the first N packets of the file."
)
@output_option()
@click.pass_obj
def trace(
    run_dir: Path,
    /,
    *,
    port: str | None,
    live: int | None,
    packet: Path | None,
    sender: str | None,
    count: int | None,
    output: str,
) -> None:
    """Tell what happens to packets, and why.

    \b
    ffswitch trace --live 10 web0                     the next 10 packets of web0
    ffswitch trace --packet file.pcap --port web0     if web0 sent these; no packet moves
    """
    if (live is None) == (packet is None):
        raise click.UsageError("say either --live N or --packet FILE")
    if packet is not None and bool(port) == bool(sender):
        raise click.UsageError("--packet needs --port NAME, the port that the packets come from")
    if live is not None and (count or (port and sender)):
        raise click.UsageError("--count goes with --packet" if count else f"name one port, not {port} and {sender}")
    name = port or sender
    # The file is read first, so that a bad one is told of whether or not a daemon runs.
    frames = _frames(packet, count) if packet is not None else []
    with Client(run_dir) as client:
        if packet is not None:
            _print_traces(client.call("trace.packet", {"port": name, "frames": frames}, wait=None), output)
            return
        _tell_demoted(client.call("port.list"), name)
        with client.stopped_by_signals():
            _print_traces(client.stream("trace.live", {"n": live} | ({"port": name} if name else {})), output)


def _tell_demoted(ports: Sequence[Mapping[str, Any]], name: str | None) -> None:
    """Say how many shortcuts go through the switch, where a trace sees their packets, as long as it runs."""
    found = [port["shortcuts"] for port in ports if port.get("shortcuts") and name in (None, port["name"])]
    demoted = sum(len(shortcuts["to"]) + (len(shortcuts["from"]) if name else 0) for shortcuts in found)
    if demoted:
        click.echo(f"{plural(demoted, 'shortcut')} will go through the switch while this runs", err=True)


def _frames(path: Path, count: int | None) -> list[str]:
    try:
        # One more than allowed shows that there are more.
        frames = list(islice(read_frames(path), count or MAX_FRAMES + 1))
    except CaptureError as error:
        raise click.ClickException(
            f"cannot read {path}: {error}; give a pcap or pcapng file of Ethernet frames"
        ) from None
    except OSError as error:
        raise click.ClickException(f"cannot read {path}: {error.strerror}") from None
    if not frames:
        raise click.ClickException(f"cannot trace {path}: it holds no packets")
    if len(frames) > MAX_FRAMES or sum(map(len, frames)) > MAX_BYTES:
        raise click.ClickException(f"cannot trace all of {path}: it is too large; say how many packets with --count")
    return [base64.b64encode(frame).decode() for frame in frames]


def _print_traces(traces: Iterable[Mapping[str, Any]], output: str) -> None:
    array = JsonArray() if output == "json" else None
    with array or nullcontext():
        for number, found in enumerate(traces, 1):
            if array:
                array.add(found)
            else:
                click.echo("\n".join(trace_lines(number, found)))


def trace_lines(number: int, found: Mapping[str, Any]) -> list[str]:
    """Return a packet's story: what it is, where it goes, and each reason."""
    outputs = ", ".join(_output_text(output) for output in found["outputs"])
    if found["result"] == "dropped":
        fate = f"dropped: {found['drop']}"
    else:
        fate = f"{found['result']} to {outputs or 'nobody'}"
    if found.get("flow") is not None:
        fate += f" (by flow {found['flow']})"
    return [f"{number}: {found['summary']}", f"    {fate}", *(f"    - {reason}" for reason in found["reasons"])]


def _output_text(output: Mapping[str, Any]) -> str:
    vlan = f" with VLAN tag {output['vlan']}" if output.get("vlan") else ""
    return f"{output['port']}{vlan}"


COMMANDS = (trace,)
