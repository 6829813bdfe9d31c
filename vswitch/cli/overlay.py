# SPDX-License-Identifier: Apache-2.0
"""Commands about other hosts: status, explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from vswitch.cli.client import Client
from vswitch.cli.render import duration, output_option, paint, plural, print_json, print_table, since, size

_COLOURS = {"connected": "green", "degraded": "red"}


@click.command()
@output_option()
@click.pass_obj
def status(run_dir: Path, output: str) -> None:
    """Show the daemon, its controller, uplinks, and the ways to other hosts."""
    with Client(run_dir) as client:
        version = client.call("version")
        found = client.call("status")
    if output == "json":
        print_json({"version": version} | found)
        return
    click.echo(f"ffswitchd {version['version']}: pid {version['pid']}, up {duration(version['uptime_s'])}")
    _print_controller(found["controller"])
    for uplink in found["uplinks"]:
        click.echo(f"uplink {uplink['name']}: {_uplink_text(uplink)}")
    if found["rdma"]:
        _print_rdma(found["rdma"])
    if found["remotes"]:
        click.echo()
        rows = [
            [
                str(remote["number"]),
                remote["remote"],
                f"{remote['local']} ({remote['uplink']})",
                remote["next_hop"] or "-",
                remote["mac"] or remote["why"],
            ]
            for remote in found["remotes"]
        ]
        print_table([">TUNNEL", "TO", "FROM", "NEXT HOP", "AT"], rows, "")
    if found["rdma"] and found["rdma"]["peers"]:
        click.echo()
        _print_peers(found["rdma"]["peers"])


def _print_rdma(rdma: Mapping[str, Any]) -> None:
    for port in rdma["ports"]:
        gids = [f"{gid['index']}: {gid['gid']} ({gid['type']})" for gid in port["gids"]]
        click.echo(f"RDMA {port['name']}: {port['state']}, mtu {port['mtu']}, GIDs {', '.join(gids) or 'none'}")
    for problem in rdma["problems"]:
        click.echo(f"RDMA: {problem}")


def _print_peers(peers: Sequence[Mapping[str, Any]]) -> None:
    rows = []
    for peer in peers:
        stats = peer["stats"] or {}
        counts = [f"{stats[way + '_messages']}/{size(stats[way + '_bytes'])}" if stats else "-" for way in ("tx", "rx")]
        where = f"{peer['local']} ({peer['device']})"
        state = paint(peer["state"], "green" if peer["state"] == "active" else "yellow")
        rows.append([peer["host"], peer["remote"], where, state, *counts, peer["why"] or f"{since(peer['since'])}"])
    print_table(["RDMA PEER", "TO", "FROM", "STATE", ">SENT", ">RECEIVED", "SINCE"], rows, "")


def print_peer_counters(peers: Sequence[Mapping[str, Any]]) -> None:
    """Draw all counters of RDMA peers, a host a row; nothing where there are none."""
    rows = [[peer["host"], *map(str, peer["stats"].values())] for peer in peers if peer["stats"]]
    if not rows:
        return
    names = next(peer["stats"] for peer in peers if peer["stats"])
    click.echo()
    print_table(["RDMA PEER", *(">" + name.replace("_", " ").upper() for name in names)], rows, "")


def _print_controller(controller: Mapping[str, Any] | None) -> None:
    if controller is None:
        click.echo("controller: none, this switch stands alone")
        return
    state = paint(controller["state"], _COLOURS[controller["state"]])
    where = f" to {controller['controller']}" if controller["controller"] else ""
    why = f": {controller['why']}" if controller["why"] else ""
    click.echo(f"host {controller['host']}: {state}{where} for {since(controller['since'])}{why}")
    click.echo(
        f"    epoch {controller['epoch']}, revision {controller['revision']}, "
        f"{plural(controller['networks'], 'network')}, {plural(controller['endpoints'], 'endpoint')}"
    )
    for port, reason in controller["refused"].items():
        click.echo(f"    port {port} is refused: {reason}")


def _uplink_text(uplink: Mapping[str, Any]) -> str:
    ips = [f"{ip} ({'shared with the kernel' if ip in uplink['shared'] else 'its own'})" for ip in uplink["ips"]]
    speed = f", {uplink['speed']} Mb/s" if uplink["speed"] else ""
    why = f": {uplink['why']}" if uplink["why"] else ""
    return f"{', '.join(ips)}, mtu {uplink['mtu']}{speed}{why}"


@click.command()
@click.argument("source")
@click.argument("destination")
@output_option()
@click.pass_obj
def explain(run_dir: Path, source: str, destination: str, output: str) -> None:
    """Say which path two endpoints use, why, and what stands against each better one."""
    with Client(run_dir) as client:
        decision = client.call("explain", {"source": source, "destination": destination})
    if output == "json":
        print_json(decision)
        return
    from controller.explain import decision_lines  # noqa: PLC0415  (it is not for every command to read the model)

    click.echo("\n".join(decision_lines(decision)))
    for way in decision.get("shortcuts", ()):
        click.echo(_way_text(way))


def _way_text(way: Mapping[str, Any]) -> str:
    now = f"now {way['from']} → {way['to']}"
    if way["open"]:
        return f"{now}: zero-copy, {plural(way['packets'], 'packet')} ({size(way['bytes'])})"
    return f"{now}: switched, since {way['why']}"


COMMANDS = (status, explain)
