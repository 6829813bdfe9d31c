# SPDX-License-Identifier: Apache-2.0
"""ffswitchd: one host's switch as a process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import sdnotify

from vswitch import __version__
from vswitch.slowpath import drivers, eal, state
from vswitch.slowpath.api import IDLE_MAX_US, LOG_LEVELS, RATE_MAX, Api, Settings
from vswitch.slowpath.api_overlay import OverlayApi
from vswitch.slowpath.core import SwitchCore
from vswitch.slowpath.errors import BadParams, StartError
from vswitch.slowpath.fastpath import FastPath, FastPathError
from vswitch.slowpath.pidfile import PidFile
from vswitch.slowpath.ports import check_socket_length
from vswitch.slowpath.rdma_peers import RDMA_TIMEOUT_MS
from vswitch.slowpath.rpc import Server
from vswitch.slowpath.switch import Switch
from vswitch.slowpath.types import PortConfig
from vswitch.slowpath.uplinks import Uplinks

if TYPE_CHECKING:
    from vswitch.slowpath.agent.agent import Agent

log = logging.getLogger("ffswitchd")

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Packets that one port may have parked, until its upcall_budget says otherwise.
PARKED_MAX = 512


@dataclass(frozen=True, slots=True)
class Controller:
    """Who controls this host: HOST:PORT,..."""

    targets: str
    host: str
    token: str
    state_dir: Path
    rdma_timeout_ms: int


@dataclass(frozen=True, slots=True)
class Options:
    """The command line, checked."""

    run_dir: Path
    cpus: tuple[int, ...]
    memory: eal.Memory
    mbufs: int
    settings: Settings
    controller: Controller | None = None

    @property
    def socket(self) -> Path:
        """The control socket."""
        return self.run_dir / "ffswitch.sock"


def _prepare(options: Options) -> PidFile:
    """Everything that can be refused before EAL starts."""
    if os.geteuid() != 0:
        raise StartError("it needs root's rights, for devices and containers' memory: start it as root")
    eal.check_dpdk(FastPath.dpdk_version())
    try:
        check_socket_length(str(options.socket))
    except BadParams as error:
        raise StartError(f"{error} (--run-dir)") from None
    try:
        (options.run_dir / "ports").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"--run-dir {options.run_dir}: {error.strerror}: make it, or give another") from None
    return PidFile(options.run_dir / "ffswitchd.pid")


def _start_fast_path(options: Options) -> FastPath:
    args = eal.eal_args(options.cpus, os.sched_getaffinity(0), options.memory)
    try:
        with _stderr_closed():
            return FastPath.start(args, options.mbufs, PARKED_MAX)
    except FastPathError as error:
        raise StartError(f"{error}; it was given {options.memory}: change --memory, --mbufs or --no-huge") from None


@contextlib.contextmanager
def _stderr_closed() -> Iterator[None]:
    """EAL writes what is fatal to stderr, besides its log."""
    sys.stderr.flush()
    saved = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def run(options: Options) -> None:
    """Run the switch until SIGTERM or SIGINT. Raises StartError."""
    # What comes while EAL starts waits until asyncio heeds it. EAL's threads never get any, as they inherit this.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    pid_file = _prepare(options)
    try:
        ports = state.load(options.run_dir / "state.json")
        fast_path = _start_fast_path(options)
        core = SwitchCore(mac_age=options.settings.mac_age, flow_idle=options.settings.flow_idle)
        switch = Switch(fast_path, core, options.run_dir, check_devargs=drivers.check_devargs)
        asyncio.run(_serve(switch, ports, options))
    finally:
        pid_file.release()


async def _serve(switch: Switch, ports: tuple[PortConfig, ...], options: Options) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, log.info, "SIGHUP: there is nothing to read again")
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    uplinks = Uplinks(switch)
    try:
        agent = _make_agent(switch, uplinks, options.controller) if options.controller else None
    except StartError:
        switch.fast_path.stop()
        raise
    api = Api(switch, options.settings, FastPath.dpdk_version(), OverlayApi(switch, uplinks, agent))
    server = Server(api.methods())
    systemd = sdnotify.SystemdNotifier()
    try:
        loop.add_reader(switch.fast_path.event_fd, switch.on_events)
        loop.add_reader(switch.fast_path.upcall_fd, switch.on_upcalls)
        loop.add_reader(switch.fast_path.tap_fd, switch.taps.on_readable)
        switch.restore(ports)
        uplinks.start()
        if agent is not None:
            agent.start()
        try:
            await server.start(options.socket)
        except OSError as error:
            raise StartError(f"control socket {options.socket}: {error.strerror}") from None
        seconds = asyncio.create_task(switch.every_second())
        systemd.notify("READY=1")
        log.info(
            "ffswitchd %s ready: %s, workers on CPU %s", __version__, options.socket, eal.format_cpus(options.cpus)
        )
        await stop.wait()
        log.info("stopping")
        systemd.notify("STOPPING=1")
        seconds.cancel()
    finally:
        switch.taps.close()
        await server.stop()
        if agent is not None:
            await agent.stop()
        await uplinks.stop()
        switch.memory.close_all()
        switch.fast_path.stop()


def _make_agent(switch: Switch, uplinks: Uplinks, controller: Controller) -> Agent:
    # gRPC takes half a second to read: only hosts with a controller wait for it.
    from controller.security.client import parse_target  # noqa: PLC0415
    from vswitch.slowpath.agent.agent import Agent  # noqa: PLC0415

    try:
        targets = [parse_target(text.strip()) for text in controller.targets.split(",")]
    except ValueError as error:
        raise StartError(f"--controller: {error}") from None
    return Agent(
        switch,
        uplinks,
        name=controller.host,
        targets=targets,
        state_dir=controller.state_dir,
        token=controller.token,
        rdma_timeout_ms=controller.rdma_timeout_ms,
    )


def _start_logging(level: str) -> None:
    logging.basicConfig(stream=sys.stderr, level=level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("asyncio").setLevel(logging.WARNING)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--run-dir", envvar="FFSWITCH_RUN_DIR", default="/run/ffswitch", show_default=True, metavar="DIR")
@click.option("--workers", type=click.IntRange(1, eal.MAX_WORKERS), metavar="N", help="Poll loops.  [default: 1]")
@click.option("--cpus", default="", metavar="LIST", help="CPUs of the workers.  [default: the last ones allowed]")
@click.option(
    "--memory", type=click.IntRange(64), metavar="MB", help="Packet memory.  [default: 512 without huge pages]"
)
@click.option("--no-huge", is_flag=True, help="Use no huge pages.  [default: when too few are free]")
@click.option("--mbufs", type=click.IntRange(1024, 2**24), default=eal.DEFAULT_MBUFS, show_default=True, metavar="N")
@click.option("--mac-age", type=click.FloatRange(1, 86400), default=300, show_default=True, metavar="SECS")
@click.option("--flow-idle", type=click.FloatRange(1, 86400), default=10, show_default=True, metavar="SECS")
@click.option(
    "--shortcut-rate",
    type=click.FloatRange(0, RATE_MAX),
    default=1000,
    show_default=True,
    metavar="PPS",
    help="A flow of so many packets/s between memory ports gets a shortcut; 0: its first packet does.",
)
@click.option("--shortcut-idle", type=click.FloatRange(1, 86400), default=30, show_default=True, metavar="SECS")
@click.option(
    "--idle-sleep",
    type=click.IntRange(0, IDLE_MAX_US),
    default=100,
    show_default=True,
    metavar="US",
    help="Longest sleep of an idle worker that nothing can wake; 0: it never sleeps.",
)
@click.option("--controller", metavar="HOST:PORT,...", help="Controllers; any one of them will do.")
@click.option("--host-name", metavar="NAME", help="What controllers call this host.  [default: the machine's name]")
@click.option("--join-token", envvar="FFSWITCH_JOIN_TOKEN", metavar="TOKEN", help="To join with, once: see ffctl.")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/var/lib/ffswitch"),
    show_default=True,
    help="With --controller: this host's certificate, and what it was told last.",
)
@click.option(
    "--rdma-timeout",
    type=click.IntRange(1, 60_000),
    default=RDMA_TIMEOUT_MS,
    show_default=True,
    metavar="MS",
    help="How long another host may leave a message over RDMA unanswered until VXLAN takes its place.",
)
@click.option("--log-level", type=click.Choice(LOG_LEVELS), default="info", show_default=True)
@click.version_option(__version__)
def main(  # noqa: PLR0917 (click passes them by name)
    run_dir: str,
    workers: int | None,
    cpus: str,
    memory: int | None,
    no_huge: bool,
    mbufs: int,
    mac_age: float,
    flow_idle: float,
    shortcut_rate: float,
    shortcut_idle: float,
    idle_sleep: int,
    controller: str | None,
    host_name: str | None,
    join_token: str | None,
    state_dir: Path,
    rdma_timeout: int,
    log_level: str,
) -> None:
    """Run the switch of this host until SIGTERM."""
    try:
        chosen = eal.worker_cpus(cpus, workers, os.sched_getaffinity(0))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    _start_logging(log_level)
    options = Options(
        run_dir=Path(run_dir).absolute(),
        cpus=chosen,
        memory=eal.choose_memory(memory, no_huge or None, mbufs, eal.free_huge_mb()),
        mbufs=mbufs,
        settings=Settings(
            mac_age,
            flow_idle,
            idle_sleep=idle_sleep,
            shortcut_rate=shortcut_rate,
            shortcut_idle=shortcut_idle,
            log_level=log_level,
        ),
        controller=Controller(
            controller, host_name or socket.gethostname(), join_token or "", state_dir.absolute(), rdma_timeout
        )
        if controller
        else None,
    )
    try:
        run(options)
    except StartError as error:
        print(f"ffswitchd: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
