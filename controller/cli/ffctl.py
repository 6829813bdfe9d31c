# SPDX-License-Identifier: Apache-2.0
"""`ffctl`: what an operator asks of the controller."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import grpc

from controller.checks import Problem
from controller.cli import tables
from controller.cli.connection import CtlError, Settings, admin, call, read_targets
from controller.cli.ffcontroller import STATE_DIR
from controller.cli.output import output_option, print_json, run
from controller.codec import to_json
from controller.explain import decision_lines
from controller.manifest import Manifest, ManifestError, parse
from controller.model import Kind, kind_of
from controller.proto import ffswitch_pb2 as pb
from controller.security.authority import SecurityError, clock_text

_TIME = re.compile(r"(\d+)(s|m|h|d)?")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_CALL = 60.0


class _Seconds(click.ParamType[float]):
    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float | int):
            return float(value)
        match = _TIME.fullmatch(value)
        if match is None:
            self.fail(f"{value!r} is no time like 30, 30s, 10m, 2h or 1d", param, ctx)
        return float(int(match[1]) * _UNITS[match[2] or "s"])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--controller",
    "controllers",
    default="localhost",
    envvar="FFCTL_CONTROLLER",
    show_default=True,
    help="HOST[:PORT],...: the first that answers is asked.",
)
@click.option(
    "--credentials",
    type=click.Path(path_type=Path, file_okay=False),
    default=STATE_DIR,
    envvar="FFCTL_CREDENTIALS",
    show_default=True,
    help="Directory with admin.pem and ca.crt.",
)
@click.pass_context
def cli(context: click.Context, controllers: str, credentials: Path) -> None:
    """Say what the overlay is to be, and see what it is.

    \b
    ffctl apply -f blue.yaml       networks, policies, ... as a file has them
    ffctl get endpoints            what there is
    ffctl explain web0 db0         the path of a pair, and why
    ffctl token create host1       lets a host join
    ffctl status                   controllers and hosts
    """
    try:
        context.obj = Settings(read_targets(controllers), credentials)
    except ValueError as error:
        raise click.UsageError(f"--controller: {error}") from None


@cli.command()
@click.option(
    "-f",
    "--file",
    "files",
    type=click.Path(path_type=Path, allow_dash=True),
    multiple=True,
    required=True,
    help="YAML.",
)
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@click.option("--prune", is_flag=True, help="Delete what was applied before and is not in the files.")
@click.option("--wait", "seconds", type=_Seconds(), is_flag=False, flag_value=30.0, help="Until the hosts have it.")
@output_option
@click.pass_obj
def apply(  # noqa: PLR0917
    settings: Settings, files: Sequence[Path], dry_run: bool, prune: bool, seconds: float | None, output: str
) -> None:
    """Bring the controller to what FILEs say."""
    manifest = parse({str(path): _read(path) for path in files})
    items = [pb.Item(kind=kind_of(item).value, object=json.dumps(to_json(item))) for item in manifest.objects]

    async def work() -> tuple[pb.ApplyReply, pb.WaitReply | None]:
        async with admin(settings) as stub:
            request = pb.ApplyRequest(objects=items, dry_run=dry_run, prune=prune)
            reply = await stub.Apply(request, timeout=10 * _CALL)
            if reply.problems or dry_run or seconds is None:
                return reply, None
            wait = pb.WaitRequest(revision=reply.revision, timeout=seconds)
            return reply, await stub.Wait(wait, timeout=seconds + _CALL)

    reply, waited = call(work())
    if reply.problems:
        raise ManifestError(_located(problem, manifest) for problem in reply.problems)
    tables.show_plan(reply, dry_run=dry_run, as_json=output == "json")
    if waited is not None:
        _check_waited(waited, seconds or 0.0)


def _located(problem: pb.Problem, manifest: Manifest) -> str:
    field = tuple(int(step) if step.isdecimal() else step for step in problem.field)
    return manifest.locate(Problem((Kind(problem.kind), problem.name), field, problem.problem))


def _read(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise CtlError(f"{path}: {reason}") from None


@cli.command()
@click.argument("kind")
@click.argument("name", default="")
@output_option
@click.pass_obj
def get(settings: Settings, kind: str, name: str, output: str) -> None:
    """List the objects of KIND, or one of them."""
    tables.show_objects(_get(settings, kind, name), as_json=output == "json", single=bool(name))


@cli.command()
@click.argument("kind")
@click.argument("name")
@output_option
@click.pass_obj
def describe(settings: Settings, kind: str, name: str, output: str) -> None:
    """Show every field of one object."""
    tables.show_fields(_get(settings, kind, name), as_json=output == "json")


def _get(settings: Settings, kind: str, name: str) -> pb.GetReply:
    async def work() -> pb.GetReply:
        async with admin(settings) as stub:
            return await stub.Get(pb.GetRequest(kind=kind, name=name), timeout=_CALL)

    return call(work())


@cli.command()
@click.argument("source")
@click.argument("destination")
@output_option
@click.pass_obj
def explain(settings: Settings, source: str, destination: str, output: str) -> None:
    """Say which path two endpoints use, and why no better one."""

    async def work() -> pb.ExplainReply:
        async with admin(settings) as stub:
            return await stub.Explain(pb.ExplainRequest(source=source, destination=destination), timeout=_CALL)

    decision = json.loads(call(work()).decision)
    if output == "json":
        print_json(decision)
    else:
        click.echo("\n".join(decision_lines(decision)))


@cli.command()
@click.argument("kind", default="")
@output_option
@click.pass_obj
def watch(settings: Settings, kind: str, output: str) -> None:
    """Print each change from now on, until interrupted; with -o json one object a line."""

    async def work() -> None:
        async with admin(settings) as stub:
            stream = stub.Watch(pb.WatchRequest(kind=kind))
            await stream.initial_metadata()
            if output == "table":
                click.echo("watching", err=True)
            async for event in stream:
                tables.show_event(event, as_json=output == "json")

    call(work())


@cli.command()
@click.argument("what", nargs=-1)
@click.option("--timeout", "seconds", type=_Seconds(), default=30.0, help="How long.  [default: 30s]")
@output_option
@click.pass_obj
def wait(settings: Settings, what: tuple[str, ...], seconds: float, output: str) -> None:
    """Wait until the hosts concerned have applied WHAT: a revision, a KIND and a NAME, or else everything."""
    request = pb.WaitRequest(timeout=seconds)
    if len(what) == 1 and what[0].isdecimal():
        request.revision = int(what[0])
    elif len(what) == 2:
        request.kind, request.name = what
    elif what:
        raise click.UsageError("WHAT is a revision, or a KIND and a NAME")

    async def work() -> pb.WaitReply:
        async with admin(settings) as stub:
            return await stub.Wait(request, timeout=seconds + _CALL)

    waited = call(work())
    if output == "json":
        print_json({"revision": waited.revision, "pending": list(waited.pending), "lost": list(waited.lost)})
    _check_waited(waited, seconds)


def _check_waited(waited: pb.WaitReply, seconds: float) -> None:
    if waited.lost:
        click.echo(f"ffctl: not waited for hosts that are lost: {', '.join(waited.lost)}", err=True)
    if waited.pending:
        hosts = ", ".join(waited.pending)
        raise CtlError(f"revision {waited.revision} is not applied after {seconds:g} s by {hosts}: see `ffctl status`")


@cli.group()
def token() -> None:
    """Let hosts join."""


@token.command("create")
@click.argument("host")
@click.option("--ttl", type=_Seconds(), default=3600.0, help="How long it may be used.  [default: 1h]")
@output_option
@click.pass_obj
def token_create(settings: Settings, host: str, ttl: float, output: str) -> None:
    """Make a token with which HOST gets its certificate, once."""

    async def work() -> pb.Token:
        async with admin(settings) as stub:
            return await stub.CreateToken(pb.CreateTokenRequest(host=host, ttl=ttl), timeout=_CALL)

    made = call(work())
    if output == "json":
        print_json({"token": made.token, "host": host, "expires": made.expires})
        return
    click.echo(made.token)
    ends = clock_text(datetime.fromtimestamp(made.expires, UTC))
    click.echo(f"for host {host}, once, until {ends}: ffswitchd --host-name {host} --join-token TOKEN", err=True)


@cli.group()
def host() -> None:
    """Shut hosts out."""


@host.command("revoke")
@click.argument("name")
@click.pass_obj
def host_revoke(settings: Settings, name: str) -> None:
    """Take the certificates that host NAME has by now no more; a new token lets it join again."""

    async def work() -> pb.RevokeReply:
        async with admin(settings) as stub:
            return await stub.Revoke(pb.RevokeRequest(host=name), timeout=_CALL)

    call(work())
    click.echo(f"host {name}: certificates made before now are not taken any more; its endpoints stay until deleted")


@cli.command()
@output_option
@click.pass_obj
def status(settings: Settings, output: str) -> None:
    """Show controllers, store and hosts."""

    async def work() -> pb.StatusReply:
        async with admin(settings) as stub:
            return await stub.Status(pb.StatusRequest(), timeout=_CALL)

    tables.show_status(call(work()), as_json=output == "json", now=time.time())


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code."""
    try:
        return run(cli, "ffctl", args, (CtlError, SecurityError, grpc.aio.AioRpcError))
    except ManifestError as error:
        for problem in error.problems:
            click.echo(f"ffctl: {problem}", err=True)
        return 1
