# SPDX-License-Identifier: Apache-2.0
"""`ffswitch stats`: what became of every packet."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from vswitch.cli.client import Client
from vswitch.cli.overlay import print_peer_counters
from vswitch.cli.perf import perf_between, print_perf, to_json
from vswitch.cli.ports import complete_port
from vswitch.cli.render import output_option, print_json, print_table
from vswitch.cli.workers import print_workers


def drop_text(drops: Mapping[str, float], number_text: Callable[[float], str] = str) -> str:
    """{"vlan": 3, "policy": 0} -> "vlan 3": the reasons that occurred, the most frequent first."""
    found = sorted(((number, reason) for reason, number in drops.items() if number), reverse=True)
    return ", ".join(f"{reason} {number_text(number)}" for number, reason in found)


@click.command()
@click.argument("port", required=False, shell_complete=complete_port)
@click.option("--perf", is_flag=True, help="Where the workers' cycles go.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1, max=3600),
    metavar="SECS",
    help="With --perf: measure for so long.  [default: 1]",
)
@click.option("--workers", is_flag=True, help="Which worker polls which receive queue, and how busy each is.")
@output_option()
@click.pass_obj
def stats(  # noqa: PLR0917 (click passes them by name)
    run_dir: Path, port: str | None, perf: bool, interval: float | None, workers: bool, output: str
) -> None:
    """Count packets: per port, and with PORT per queue and worker.

    With --perf, measure each worker for a while instead. Loads, with --workers, are shares of a worker's time over the
    last ten seconds.
    """
    if port and (perf or workers):
        raise click.UsageError("--perf and --workers are about workers, not about a port: leave PORT out")
    if perf and workers:
        raise click.UsageError("--perf or --workers, not both")
    if interval and not perf:
        raise click.UsageError("--interval goes with --perf")
    if workers:
        print_workers(run_dir, output)
        return
    with Client(run_dir) as client:
        if perf:
            _measure(client, interval or 1.0, output)
            return
        found = client.call("stats", {"port": port} if port else None)
        rdma = None if port else client.call("status")["rdma"]
    peers = rdma["peers"] if rdma else []
    if not port:
        found["rdma"] = {peer["host"]: peer["stats"] for peer in peers if peer["stats"]}
    if output == "json":
        print_json(found)
        return
    _print_ports(found["ports"])
    for warning in found["warnings"]:
        click.echo(f"warning: {warning}")
    if port:
        for title in ("queues", "workers"):
            for counters in found["ports"].values():
                _print_records(title[:-1], counters.get(title, []))
        return
    print_peer_counters(peers)
    _print_records("worker", found["workers"])
    _print_totals(found["totals"])


def _measure(client: Client, seconds: float, output: str) -> None:
    before = client.call("stats")
    time.sleep(seconds)
    workers = perf_between(before, client.call("stats"))
    if output == "json":
        print_json(to_json(workers))
    else:
        print_perf(workers)


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
            *_by_shortcut(counters),
            drop_text(counters["faults"]),
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
        ">SHORTCUT RX",
        ">SHORTCUT TX",
        "QUEUES STOPPED",
    ]
    for column in (-1, -2, -3):  # what there is nothing of is left out
        if not any(row[column] for row in rows):
            del headers[column]
            for row in rows:
                del row[column]
    print_table(headers, rows, "no ports yet: 'ffswitch add-port NAME' adds one")


def _by_shortcut(counters: Mapping[str, Any]) -> tuple[str, str]:
    """Packets that passed the switch by, from the port and to it."""
    found = counters.get("shortcuts", {})
    rx, tx = found.get("rx_packets", 0), found.get("tx_packets", 0)
    return (str(rx), str(tx)) if rx or tx else ("", "")


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
