# SPDX-License-Identifier: Apache-2.0
"""`ffswitch stats --workers` and `ffswitch rebalance`: who polls what."""

from __future__ import annotations

from pathlib import Path

import click

from vswitch.cli.client import Client
from vswitch.cli.render import output_option, plural, print_json, print_table


def print_workers(run_dir: Path, output: str) -> None:
    """Print the workers, and each receive queue with the worker that polls it."""
    with Client(run_dir) as client:
        found = client.call("workers")
    if output == "json":
        print_json(found)
        return
    queues = found["queues"]
    polled = [sum(queue["worker"] == number for queue in queues) for number in range(len(found["workers"]))]
    print_table(
        [">WORKER", ">CPU", ">LOAD", ">QUEUES", ">SLEEPS"],
        [
            [str(number), str(worker["cpu"]), f"{worker['load_pct']}%", str(polled[number]), str(worker["sleeps"])]
            for number, worker in enumerate(found["workers"])
        ],
        "",
    )
    click.echo()
    print_table(
        ["PORT", ">QUEUE", ">WORKER", ">LOAD", "PINNED"],
        [
            [
                queue["port"],
                str(queue["queue"]),
                str(queue["worker"]),
                f"{queue['load_pct']}%",
                "yes" if queue["pinned"] else "",
            ]
            for queue in queues
        ],
        "no ports yet: 'ffswitch add-port NAME' adds one",
    )


@click.command()
@output_option()
@click.pass_obj
def rebalance(run_dir: Path, output: str) -> None:
    """Move receive queues between workers to even out their load.

    Queues that rxq-affinity names stay. Loads are those that `ffswitch stats --workers` shows.
    """
    with Client(run_dir) as client:
        moves = client.call("rebalance")
    if output == "json":
        print_json(moves)
        return
    for move in moves:
        click.echo(f"{move['port']} queue {move['queue']}: now on worker {move['worker']}")
    click.echo(f"{plural(len(moves), 'queue')} moved" if moves else "nothing to gain: no queue moved")


COMMANDS = (rebalance,)
