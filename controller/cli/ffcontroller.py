# SPDX-License-Identifier: Apache-2.0
"""`ffcontroller`: the controller's process."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
import sdnotify

from controller.cli import output
from controller.security.authority import SecurityError
from controller.security.client import DEFAULT_PORT, parse_target, target_text
from controller.security.files import initialise
from controller.service.server import Controller, Settings
from controller.store.base import Store, StoreError
from controller.store.etcd import EtcdStore
from controller.store.etcd_members import Tls
from controller.store.sqlite import SqliteStore

log = logging.getLogger(__name__)

STATE_DIR = Path("/var/lib/ffcontroller")
# gc.set_threshold: a move that a hundred hosts hear of makes some thousand objects.
_COLLECTIONS = 10_000, 5, 400

_state_dir = click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=STATE_DIR,
    envvar="FFCONTROLLER_STATE_DIR",
    show_default=True,
    help="Where certificates and the SQLite store are.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """The controller of ffswitch hosts: it knows every container, and decides each path.

    \b
    ffcontroller init      an authority, and certificates for controllers and operators
    ffcontroller run       the controller
    """


@cli.command()
@_state_dir
def init(state_dir: Path) -> None:
    """Make the cluster's certificate authority, once; copy the directory to further controllers."""
    initialise(state_dir, datetime.now(UTC))
    click.echo(f"{state_dir}/ca.pem: the authority's key; keep it secret, further controllers need a copy")
    click.echo(f"{state_dir}/admin.pem, {state_dir}/ca.crt: for ffctl")


class _Target(click.ParamType[tuple[str, int]]):
    name = "HOST:PORT"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        try:
            return parse_target(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@cli.command()
@_state_dir
@click.option(
    "--listen",
    type=_Target(),
    default=f"0.0.0.0:{DEFAULT_PORT}",
    show_default=True,
    help="The next port is for joining.",
)
@click.option("--store", "store_text", help="sqlite:PATH or etcd:HOST:PORT,...  [default: sqlite:STATE_DIR/store.db]")
@click.option("--etcd-ca", type=click.Path(path_type=Path), help="Authority of etcd's certificates: TLS to etcd.")
@click.option("--etcd-cert", type=click.Path(path_type=Path), help="This controller's certificate for etcd.")
@click.option("--etcd-key", type=click.Path(path_type=Path), help="The key of --etcd-cert.")
@click.option("--name", default=None, help="Tells this controller from the others.  [default: host name and process]")
@click.option("--heartbeat", type=click.FloatRange(0.05, 3600), default=5.0, show_default=True, help="Seconds.")
@click.option("-v", "--verbose", is_flag=True, help="Log each session.")
def run(  # noqa: PLR0917
    state_dir: Path,
    listen: tuple[str, int],
    store_text: str | None,
    etcd_ca: Path | None,
    etcd_cert: Path | None,
    etcd_key: Path | None,
    name: str | None,
    heartbeat: float,
    verbose: bool,
) -> None:
    """Run a controller until SIGTERM."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    tls = Tls(etcd_ca, etcd_cert, etcd_key) if etcd_ca else None
    text = store_text or f"sqlite:{state_dir / 'store.db'}"
    who = name or f"{socket.gethostname()}-{os.getpid()}"
    settings = Settings(listen, state_dir, who, text, heartbeat)
    # What is loaded only grows, and full collections of it would take a good part of the start. Afterwards they hold up
    # every host for as long as they walk over all sessions: they are to be rare.
    gc.disable()
    gc.set_threshold(*_COLLECTIONS)
    asyncio.run(_run(settings, tls))


async def _run(settings: Settings, tls: Tls | None) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with _open_store(settings.store_text, tls) as store, Controller(store, settings, time.time) as controller:
        click.echo(
            f"ffcontroller {settings.name}: {target_text(controller.target)}, "
            f"joining at {target_text(controller.joining)}, store {settings.store_text}"
        )
        # Most of what was loaded stays: a full collection that walks all of it would hold up every host.
        gc.collect()
        gc.freeze()
        gc.enable()
        sdnotify.SystemdNotifier().notify("READY=1")
        waits = [asyncio.create_task(stop.wait()), asyncio.create_task(controller.failed())]
        done, rest = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        for task in done:
            task.result()


def _open_store(text: str, tls: Tls | None) -> Store:
    scheme, colon, rest = text.partition(":")
    if colon and rest and scheme == "sqlite":
        return SqliteStore(Path(rest))
    if colon and rest and scheme == "etcd":
        return EtcdStore(rest.split(","), tls)
    raise click.UsageError(f"--store {text!r} is neither sqlite:PATH nor etcd:HOST:PORT,...")


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code."""
    return output.run(cli, "ffcontroller", args, (SecurityError, StoreError, OSError))
