# SPDX-License-Identifier: Apache-2.0
"""ffctl's answers as tables and as JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import click
from google.protobuf.json_format import MessageToDict

from controller.cli.output import print_json, print_table
from controller.model import Kind
from controller.proto import ffswitch_pb2 as pb
from controller.security.authority import clock_text

# The fields that a list shows; `describe` shows all.
_COLUMNS: dict[Kind, tuple[str, ...]] = {
    Kind.TRUST_DOMAIN: ("name", "mode"),
    Kind.NETWORK: ("name", "vni", "subnets", "gateways", "mtu"),
    Kind.HOST: ("name", "state", "since", "agentless", "capabilities"),
    Kind.POLICY: ("name", "action", "priority", "from", "to", "l4", "paths"),
    Kind.ENDPOINT: ("name", "network", "ips", "mac", "host", "port_type", "trust_domain", "labels"),
}
_CLOCK_APART = 30.0


def show_plan(reply: pb.ApplyReply, *, dry_run: bool, as_json: bool) -> None:
    """What an apply did, or would do."""
    if as_json:
        print_json(MessageToDict(reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))
        return
    rows = [(step.operation, step.kind, step.name, ", ".join(step.fields)) for step in reply.steps]
    print_table(("OPERATION", "KIND", "NAME", "FIELDS"), rows, "nothing to change")
    for effect in reply.effects:
        click.echo(f"note: {effect.text}")
    if not reply.complete:
        click.echo("note: too many pairs to look at the effects on all of them")
    if dry_run:
        click.echo("dry run: nothing was changed")
    elif reply.steps:
        click.echo(f"applied at revision {reply.revision}")


def show_objects(reply: pb.GetReply, *, as_json: bool, single: bool) -> None:
    """Objects of one kind, one a line."""
    objects = [json.loads(item.object) for item in reply.objects]
    if as_json:
        print_json(objects[0] if single else objects)
        return
    if not reply.objects:
        click.echo("there is none")
        return
    columns = _COLUMNS[Kind(reply.objects[0].kind)]
    headers = [column.upper().replace("_", " ") for column in columns]
    rows = [[_cell(column, item[column]) for column in columns] for item in objects]
    print_table(headers, rows, "there is none")


def show_fields(reply: pb.GetReply, *, as_json: bool) -> None:
    """One object, a field a line."""
    item = {"kind": reply.objects[0].kind, **json.loads(reply.objects[0].object)}
    if as_json:
        print_json(item)
        return
    width = max(map(len, item)) + 2
    for name, value in item.items():
        click.echo(f"{name:<{width}}{_full(name, value)}")


def show_event(event: pb.WatchEvent, *, as_json: bool) -> None:
    """A change, as one line."""
    item = json.loads(event.object) if event.object else None
    if as_json:
        told = {"revision": event.revision, "kind": event.kind, "name": event.name, "object": item}
        click.echo(json.dumps(told, ensure_ascii=False))
        return
    kind = Kind(event.kind)
    fields = "gone" if item is None else " ".join(_brief(item, column) for column in _COLUMNS[kind][1:])
    click.echo(f"{event.revision}  {event.kind} {event.name}  {' '.join(fields.split())}")


def show_status(reply: pb.StatusReply, *, as_json: bool, now: float) -> None:
    """Controllers, store and hosts; `now` is this machine's clock."""
    if as_json:
        print_json(MessageToDict(reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))
        return
    reached = "" if reply.connected else " (not connected)"
    click.echo(f"controllers  {', '.join(reply.replicas)}; {reply.replica} answers")
    click.echo(f"leader       {reply.leader or 'nobody'}, epoch {reply.epoch}")
    click.echo(f"store        {reply.store}{reached}, revision {reply.revision}")
    click.echo(f"objects      {', '.join(f'{count.number} {count.kind}' for count in reply.counts)}")
    if reply.HasField("unfinished"):
        progress = f"{reply.unfinished.done} of {reply.unfinished.of} changes are done"
        click.echo(f"apply        {progress}: it is under way, or was cut off and has to be done again")
    if abs(reply.time - now) > _CLOCK_APART:
        clocks = (clock_text(datetime.fromtimestamp(when, UTC)) for when in (reply.time, now))
        click.echo("clocks       the controller's says {}, this machine's {}".format(*clocks))
    click.echo()
    rows = [
        (
            host.name,
            "agentless" if host.agentless else host.state,
            clock_text(datetime.fromtimestamp(host.since, UTC)) if host.since else "",
            host.replica,
            _applied(host),
            str(host.endpoints),
        )
        for host in reply.hosts
    ]
    print_table(("HOST", "STATE", "SINCE", "CONTROLLER", "APPLIED", "ENDPOINTS"), rows, "no host has joined yet")


def _applied(host: pb.HostStatus) -> str:
    if host.agentless:
        return ""
    return str(host.applied) if host.applied >= host.wanted else f"{host.applied}, wants {host.wanted}"


def _brief(item: dict[str, Any], column: str) -> str:
    text = _cell(column, item[column])
    return f"{column}={text}" if text else ""


def _cell(column: str, value: Any) -> str:
    if column == "since":
        return clock_text(datetime.fromtimestamp(value, UTC)) if value else ""
    if column == "capabilities":
        return ", ".join(f"{uplink['name']} {' '.join(uplink['ips'])}".strip() for uplink in value["uplinks"])
    if column in ("from", "to"):
        return ", ".join(f"{name}: {_cell('', part)}" for name, part in value.items() if part) or "all"
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, list):
        return ", ".join(_cell("", part) for part in value)
    if isinstance(value, dict):
        return ", ".join(f"{name}={_cell('', part)}" for name, part in value.items() if part not in ("", [], None))
    return "" if value is None else str(value)


def _full(name: str, value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else _cell(name, value)
