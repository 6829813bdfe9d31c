# SPDX-License-Identifier: Apache-2.0
"""`ffswitch top`: rates per port and worker, as they change."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vswitch.cli.client import Client
from vswitch.cli.render import (
    STATE_COLOURS,
    JsonArray,
    count,
    duration,
    output_option,
    plural,
    size,
)
from vswitch.cli.stats import drop_text

if TYPE_CHECKING:
    from rich.console import Console, Group, RenderableType
    from rich.table import Table

Sample = Mapping[str, Any]
_WIDE = 200  # columns of what is no terminal
_COUNTERS = ("rx_packets", "rx_bytes", "tx_packets", "tx_bytes")
_MESSAGES = ("tx_messages", "tx_bytes", "rx_messages", "rx_bytes")  # of an RDMA peer: each is a frame


@click.command()
@click.option(
    "-d", "--delay", type=click.FloatRange(min=0.1, max=3600), default=1.0, show_default=True, help="Seconds."
)
@click.option(
    "-n", "count_", type=click.IntRange(min=1), metavar="COUNT", help="Leave after so many.  [default: never]"
)
@output_option()
@click.pass_obj
def top(run_dir: Path, delay: float, count_: int | None, output: str) -> None:
    """Show rates per port, the busiest first, and per host that is reached by RDMA. q leaves."""
    with Client(run_dir) as client, closing(_samples(client, delay, count_)) as samples, suppress(KeyboardInterrupt):
        if output == "json":
            with JsonArray() as array:
                for _, rates in samples:
                    array.add(rates)
        elif sys.stdout.isatty():
            _live(samples)
        else:
            for sample, rates in samples:
                _console().print(_screen(sample, rates))


def _samples(client: Client, delay: float, number: int | None) -> Generator[tuple[Sample, Sample]]:
    """Yield (what `show` and `stats` say, the rates since the last time) every `delay` seconds until q."""
    with _single_keys():
        before = _sample(client)
        while number is None or number > 0:
            if _left(delay):
                return
            after = _sample(client)
            yield after, rates_between(before, after)
            before = after
            number = None if number is None else number - 1


def _sample(client: Client) -> Sample:
    rdma = client.call("status")["rdma"]
    return {
        "time": time.monotonic(),
        "show": client.call("show"),
        "stats": client.call("stats"),
        "rdma": {peer["host"]: peer["stats"] or {} for peer in rdma["peers"]} if rdma else {},
    }


def rates_between(before: Sample, after: Sample) -> Sample:
    """Return what ports and RDMA peers count per second, and drops by reason; who is new counts from nothing."""
    seconds = max(after["time"] - before["time"], 1e-6)
    old_ports = before["stats"]["ports"]
    ports = {}
    for name, new in after["stats"]["ports"].items():
        old = old_ports.get(name, {})
        drops = _per_second(old.get("drops", {}), new["drops"], seconds)
        shortcuts = _per_second(old.get("shortcuts", {}), new.get("shortcuts", {}), seconds)
        ports[name] = {
            **_per_second(old, {key: new[key] for key in _COUNTERS}, seconds),
            "shortcuts": shortcuts,
            "dropped": round(sum(drops.values()), 1),
            "drops": {reason: number for reason, number in drops.items() if number},
        }
    # the daemon's own time: the answer to a call may come late
    elapsed = after["stats"]["time_s"] - before["stats"]["time_s"]
    cycles = max(elapsed * after["stats"]["tsc_hz"], 1.0)
    workers = [
        {"cpu": new["cpu"], "busy_pct": _busy(old, new, cycles)}
        for old, new in zip(before["stats"]["workers"], after["stats"]["workers"], strict=True)
    ]
    rdma = {
        host: _per_second(before["rdma"].get(host, {}), {key: new.get(key, 0) for key in _MESSAGES}, seconds)
        for host, new in after["rdma"].items()
    }
    return {"seconds": round(seconds, 3), "ports": ports, "workers": workers, "rdma": rdma}


def _per_second(old: Mapping[str, int], new: Mapping[str, int], seconds: float) -> dict[str, float]:
    return {key: round(max(0, number - old.get(key, 0)) / seconds, 1) for key, number in new.items()}


def _by_shortcut(rate: Sample) -> tuple[float, float]:
    """Packets a second that passed the switch by, from the port and to it."""
    return rate["shortcuts"].get("rx_packets", 0), rate["shortcuts"].get("tx_packets", 0)


def _busy(old: Sample, new: Sample, cycles: float) -> float:
    """Return how much of its time a worker spent with packets, in percent."""
    busy = int(new["busy_cycles"] - old["busy_cycles"])
    return round(min(100 * busy / cycles, 100.0), 1)


def _console() -> Console:
    from rich.console import Console  # noqa: PLC0415

    width = None if sys.stdout.isatty() else _WIDE
    return Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)


def _live(samples: Iterator[tuple[Sample, Sample]]) -> None:
    from rich.live import Live  # noqa: PLC0415

    with Live(console=_console(), screen=True, auto_refresh=False) as live:
        live.update("measuring ...", refresh=True)
        for sample, rates in samples:
            live.update(_screen(sample, rates), refresh=True)


def _screen(sample: Sample, rates: Sample) -> Group:
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    found = sample["show"]
    version = found["version"]
    head = (
        f"ffswitch {version['version']}  up {duration(version['uptime_s'])}  {plural(found['flows'], 'flow')}  "
        f"{plural(found['macs'], 'MAC')}  {plural(len(found['ports']), 'port')}"
    )
    busy = "  ".join(f"CPU {worker['cpu']} {worker['busy_pct']:.0f} % busy" for worker in rates["workers"])
    still: Sample = dict.fromkeys(_COUNTERS, 0) | {"dropped": 0, "drops": {}, "shortcuts": {}}
    rows = []
    for port in found["ports"]:
        rate = rates["ports"].get(port["name"], still)
        rows.append(
            (
                rate["rx_packets"] + rate["tx_packets"] + sum(_by_shortcut(rate)),
                [
                    port["name"],
                    port["state"],
                    count(rate["rx_packets"]),
                    f"{size(rate['rx_bytes'])}/s",
                    count(rate["tx_packets"]),
                    f"{size(rate['tx_bytes'])}/s",
                    *(count(number) if number else "" for number in _by_shortcut(rate)),
                    count(rate["dropped"]),
                    drop_text(rate["drops"], count) if port["state"] == "ready" else port["reason"],
                ],
            )
        )
    rows.sort(key=lambda row: -row[0])
    table = Table("PORT", "STATE", box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for header in ("RX PPS", "RX", "TX PPS", "TX", "SHORTCUT RX PPS", "SHORTCUT TX PPS", "DROPS/S"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("WHY")
    for _, (name, state, *cells) in rows:
        table.add_row(name, Text(state, STATE_COLOURS.get(state, "")), *map(Text, cells))
    leave = Text("q leaves", style="dim") if sys.stdout.isatty() else Text("")
    parts: list[RenderableType] = [Text(head, style="bold"), Text(busy), Text(""), table, Text("")]
    if rates["rdma"]:
        parts += [_peers(rates["rdma"]), Text("")]
    return Group(*parts, leave)


def _peers(rates: Mapping[str, Mapping[str, float]]) -> Table:
    from rich.table import Table  # noqa: PLC0415

    table = Table("RDMA PEER", box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for header in ("TX PPS", "TX", "RX PPS", "RX"):
        table.add_column(header, justify="right", no_wrap=True)
    for host, rate in sorted(rates.items()):
        sent, received = ((count(rate[f"{way}_messages"]), f"{size(rate[f'{way}_bytes'])}/s") for way in ("tx", "rx"))
        table.add_row(host, *sent, *received)
    return table


@contextmanager
def _single_keys() -> Iterator[None]:
    """Let a terminal hand over each key as it is pressed."""
    if not sys.stdin.isatty():
        yield
        return
    saved = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)


def _left(seconds: float) -> bool:
    """Wait; return at once and True when the user presses q."""
    deadline = time.monotonic() + seconds
    while (rest := deadline - time.monotonic()) > 0:
        if not sys.stdin.isatty():
            time.sleep(rest)
        elif select.select([sys.stdin], [], [], rest)[0] and b"q" in os.read(sys.stdin.fileno(), 64).lower():
            return True
    return False


COMMANDS = (top,)
