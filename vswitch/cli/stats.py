# SPDX-License-Identifier: Apache-2.0
"""`ffswitch stats`: what became of every packet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from vswitch.cli.client import Client
from vswitch.cli.ports import complete_port
from vswitch.cli.render import output_option, print_json, print_table


def drop_text(drops: Mapping[str, float], number_text: Callable[[float], str] = str) -> str:
    """{"vlan": 3, "policy": 0} -> "vlan 3": the reasons that occurred, the most frequent first."""
    found = sorted(((number, reason) for reason, number in drops.items() if number), reverse=True)
    return ", ".join(f"{reason} {number_text(number)}" for number, reason in found)


@click.command()
@click.argument("port", required=False, shell_complete=complete_port)
@output_option()
@click.pass_obj
def stats(run_dir: Path, port: str | None, output: str) -> None:
    """Count packets: per port, and with PORT per queue and worker."""
    with Client(run_dir) as client:
        found = client.call("stats", {"port": port} if port else None)
    if output == "json":
        print_json(found)
        return
    _print_ports(found["ports"])
    if port:
        for title in ("queues", "workers"):
            for counters in found["ports"].values():
                _print_records(title[:-1], counters.get(title, []))
        return
    _print_records("worker", found["workers"])
    _print_totals(found["totals"])


def _print_ports(ports: Mapping[str, Any]) -> None:
    rows = [
        [
            name,
            *(
                str(counters[key])
                for key in ("rx_packets", "rx_bytes", "tx_packets", "tx_bytes", "replicated", "upcalls")
            ),
            str(sum(counters["drops"].values())),
            drop_text(counters["drops"]),
        ]
        for name, counters in ports.items()
    ]
    headers = [
        "PORT",
        ">RX PKTS",
        ">RX BYTES",
        ">TX PKTS",
        ">TX BYTES",
        ">COPIES",
        ">UPCALLS",
        ">DROPPED",
        "DROP REASONS",
    ]
    print_table(headers, rows, "no ports yet: 'ffswitch add-port NAME' adds one")


def _print_records(noun: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Draw records of counters whose names the daemon chooses, one a row."""
    if not records:
        return
    keys = [key for key in records[0] if not isinstance(records[0][key], dict | list)]
    rows = [[str(number), *(_cell(record.get(key)) for key in keys)] for number, record in enumerate(records)]
    click.echo()
    print_table([f">{noun.upper()}", *(">" + key.replace("_", " ").upper() for key in keys)], rows, "")


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


def _term(name: str, count: int, end: str = "") -> str:
    return f"{name} {count}{end}" if count else ""


def _print_totals(totals: Mapping[str, Any]) -> None:
    dropped = totals["dropped"]
    number = sum(dropped.values())
    reasons = f" ({drop_text(dropped)})" if number else ""
    click.echo()
    click.echo(
        f"received {totals['received']} + copies {totals['replicated']}"
        + _term(" + made here", totals["injected"])
        + _term(" + packed", totals["encapsulated"])
        + f" = sent {totals['sent']} + "
        + _term("unpacked", totals["decapsulated"], " + ")
        + f"dropped {number}{reasons} + waiting {totals['parked']}"
        + ("" if totals["balanced"] else " (counted while packets moved)")
    )


COMMANDS = (stats,)
