# SPDX-License-Identifier: Apache-2.0
"""Commands about what the switch learned: dump-flows and fdb."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from vswitch.cli.client import Client, Params
from vswitch.cli.ports import complete_port
from vswitch.cli.render import duration, output_option, plural, print_json, print_table


def _flush(run_dir: Path, method: str, noun: str, output: str, params: Params | None = None) -> None:
    with Client(run_dir) as client:
        result = client.call(method, params)
    if output == "json":
        print_json(result)
    else:
        click.echo(f"{plural(result['deleted'], noun)} deleted")


@click.command("dump-flows")
@click.argument("port", required=False, shell_complete=complete_port)
@click.option("--flush", is_flag=True, help="Delete all flows instead; traffic makes new ones.")
@output_option()
@click.pass_obj
def dump_flows(run_dir: Path, port: str | None, flush: bool, output: str) -> None:
    """List the flows in the table, and the shortcuts that pass it by [of PORT]."""
    if flush and port:
        raise click.UsageError("--flush deletes the flows of all ports; leave PORT out")
    if flush:
        _flush(run_dir, "flow.flush", "flow", output)
        return
    with Client(run_dir) as client:
        flows = client.call("flow.dump", {"port": port} if port else None)
    if output == "json":
        print_json(flows)
        return
    rows = [
        [str(flow["packets"]), str(flow["bytes"]), _idle(flow["idle_s"]), flow["match"], _actions(flow)]
        for flow in flows
    ]
    print_table(
        [">PACKETS", ">BYTES", ">IDLE", "MATCH", "ACTIONS"], rows, "no flows: none of the ports has sent lately"
    )


def _actions(flow: Mapping[str, Any]) -> str:
    """What is done; whether what may go by RDMA does so; a shortcut, too, that is not open."""
    shortcut = flow.get("shortcut")
    if "rdma)" in flow["actions"]:
        return f"{flow['actions']} (by {flow['path']} now)"
    if shortcut is None or shortcut["state"] == "open":
        return str(flow["actions"])
    why = f": {shortcut['why']}" if shortcut["why"] else ""
    return f"{flow['actions']} ({shortcut['state']}{why})"


def _idle(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f}s" if seconds < 10 else duration(seconds)


@click.command()
@click.argument("port", required=False, shell_complete=complete_port)
@click.option("--flush", is_flag=True, help="Forget the learned MACs instead (of PORT, or of all).")
@output_option()
@click.pass_obj
def fdb(run_dir: Path, port: str | None, flush: bool, output: str) -> None:
    """List the known MACs and their ports."""
    params = {"port": port} if port else None
    if flush:
        _flush(run_dir, "fdb.flush", "MAC", output, params)
        return
    with Client(run_dir) as client:
        entries = client.call("fdb.dump", params)
    if output == "json":
        print_json(entries)
        return
    rows = [
        [
            entry["network"],
            str(entry["vlan"]),
            entry["mac"],
            entry["port"],
            duration(entry["age_s"]),
            _note(entry),
            " ".join(entry["ips"]),
        ]
        for entry in entries
    ]
    columns = ["NETWORK", ">VLAN", "MAC", "PORT", ">AGE", "NOTE", "IPS"]
    print_table(columns, rows, "no MACs learned yet: no port has sent a frame")


def _note(entry: dict[str, Any]) -> str:
    words = ["static"] if entry["static"] else []
    words += ["held"] if entry["held"] else []
    words += [f"moved {entry['moves']}x"] if entry["moves"] else []
    return ", ".join(words) or "-"


COMMANDS = (dump_flows, fdb)
