# SPDX-License-Identifier: Apache-2.0
"""The switch: ports, the decision core and the fast path, put together.

Everything runs in one thread, asyncio's, and between two awaits nothing is half done.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vswitch.slowpath import portdir, state
from vswitch.slowpath.core import SwitchCore
from vswitch.slowpath.drivers import DevargsError
from vswitch.slowpath.errors import SwitchError, one_line
from vswitch.slowpath.fastpath import FastPathError
from vswitch.slowpath.install import Installer
from vswitch.slowpath.interfaces import FastPathApi
from vswitch.slowpath.memory.numbers import Epochs
from vswitch.slowpath.memory.ports import MemoryPorts
from vswitch.slowpath.memory.rules import PairRules
from vswitch.slowpath.memory.shortcuts import Shortcuts
from vswitch.slowpath.ports import DEVICES, change_port, differences
from vswitch.slowpath.progress import Progress, Subject
from vswitch.slowpath.stats import Counters
from vswitch.slowpath.taps import TapHub
from vswitch.slowpath.types import (
    Action,
    ActionType,
    AddFlow,
    Command,
    DelFlow,
    Drop,
    Finish,
    Port,
    PortConfig,
    PortState,
    PortType,
)
from vswitch.slowpath.workers import Workers

log = logging.getLogger(__name__)
dpdk_log = logging.getLogger("dpdk")

# RTE_LOG_EMERG .. DEBUG are 1 .. 8. DPDK's drivers call errors what is none to a switch, such as a peer that is not
# there yet; where one matters, a call fails and says so. Hence a level less.
_LOG_LEVELS = {4: logging.WARNING, 5: logging.INFO, 6: logging.DEBUG, 7: logging.DEBUG, 8: logging.DEBUG}

# Flows whose counters are read before other work gets its turn.
_STATS_CHUNK = 512
# A port of the state file that cannot be opened is tried again after 1, 2, 4 ... seconds.
_RETRY_MAX_S = 60.0

# Where the fast path keeps the counters of ports that exist no more.
_GONE = 0

_UNDECIDED = (Action(ActionType.DROP, Drop.POLICY),)


@dataclass(eq=False, slots=True)
class PortEntry:
    """A port as the daemon keeps it; id 0: it is in the state file, but could not be opened."""

    config: PortConfig
    id: int
    state: PortState
    reason: str
    since: float  # seconds since 1970
    retry_at: float = 0.0
    retry_delay: float = 1.0

    @property
    def up(self) -> bool:
        """Whether packets pass."""
        return self.state is PortState.READY

    def core_port(self) -> Port:
        """The port as the decision core sees it."""
        return Port(self.id, self.config, self.up)


class Switch:
    """Glues `core` to `fast_path`, and keeps the ports of `run_dir`."""

    def __init__(
        self,
        fast_path: FastPathApi,
        core: SwitchCore,
        run_dir: Path,
        *,
        check_devargs: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fast_path = fast_path
        self.core = core
        self.run_dir = run_dir
        self.flows = Installer(fast_path)
        self.taps = TapHub(fast_path)
        self.workers = Workers(fast_path, self._config_of, clock)
        self.rules = PairRules(self._config_of, core, self.taps.watched)
        self.shortcuts = Shortcuts(fast_path, self.rules, core, Epochs(run_dir / "epochs"), clock)
        self.memory = MemoryPorts(fast_path, self.shortcuts, self._memory_state, self._announced)
        self.ports: dict[str, PortEntry] = {}
        self._by_id: dict[int, PortEntry] = {}
        self._state_file = run_dir / "state.json"
        self._check_devargs = check_devargs
        self._clock = clock
        self._changed = asyncio.Event()
        self.watchers: list[Callable[[str], None]] = []  # told the name of each port that comes, goes or changes
        self.event_hooks: list[Callable[[], None]] = []  # called after each look at the fast path's port events
        self._progress = Progress()
        self._revision = core.revision
        self.flows.after = self._after_commands
        self.taps.on_change = self.shortcuts.changed

    # ---- ports --------------------------------------------------------------

    def port(self, name: str) -> PortEntry:
        """The port of that name, or SwitchError."""
        try:
            return self.ports[name]
        except KeyError:
            raise SwitchError(f"there is no port {name}: `ffswitch list-ports` shows those there are") from None

    def _config_of(self, port_id: int) -> PortConfig | None:
        entry = self._by_id.get(port_id)
        return entry.config if entry else None

    def port_label(self, port_id: int) -> str:
        """The name of a port by its number, for people."""
        entry = self._by_id.get(port_id)
        return entry.config.name if entry else f"port-{port_id}"

    def add_own(self, config: PortConfig) -> PortEntry:
        """Add a port to other hosts, which lives as long as the controller's word for it, not in the state file."""
        if config.name in self.ports:
            raise SwitchError(f"port {config.name} exists already: the switch needs this name, delete the port")
        entry = PortEntry(config, 0, PortState.CONFIGURED, "", time.time())
        with contextlib.ExitStack() as undo:
            self._open(entry, undo)
            self.ports[config.name] = entry
            undo.pop_all()
        log.info("port %s: added %s", config.name, config.own_text)
        return entry

    def remove_own(self, entry: PortEntry) -> None:
        """Delete a port that `add_own` added."""
        self._close(entry)
        log.info("port %s: deleted", entry.config.name)

    def add(self, config: PortConfig, *, may_exist: bool = False) -> PortEntry:
        """Add a port and keep it in the state file; on failure (SwitchError) nothing is left behind."""
        name = config.name
        if name in self.ports:
            existing = self.ports[name]
            if not may_exist:
                raise SwitchError(f"port {name} exists already: delete it first, or say --may-exist")
            differing = differences(existing.config, config)
            if differing:
                raise SwitchError(
                    f"port {name} exists already with another {', '.join(differing)}: "
                    f"change it with `ffswitch set`, or delete it first"
                )
            return existing
        entry = PortEntry(config, 0, PortState.CONFIGURED, "", time.time())
        with contextlib.ExitStack() as undo:
            self._open(entry, undo)
            self.ports[name] = entry
            undo.callback(self.ports.pop, name)
            self._save()
            undo.pop_all()
        log.info("port %s: added, %s", name, entry.state.label)
        self._tell_watchers(name)
        return entry

    def _open(self, entry: PortEntry, undo: contextlib.ExitStack) -> None:
        """Bring a port up in the fast path and the core; `undo` gets what takes each step back."""
        config = entry.config
        self._check_conflicts(config)
        if config.type is PortType.PMD:
            try:
                self._check_devargs(config.devargs)
            except DevargsError as error:
                raise SwitchError(f"port {config.name}: {error}") from None
        elif config.type in (PortType.VHOST_USER, PortType.FF):
            directory = self._directory(config.name)
            if portdir.make(directory):
                undo.callback(portdir.remove, directory)
            portdir.check_socket(Path(config.socket), server=config.role == "server" or config.type is PortType.FF)
        try:
            port_id = self.fast_path.port_add(config)
            undo.callback(self.fast_path.port_del, port_id)
            info = self.fast_path.port_info(port_id)
        except FastPathError as error:
            # The fast path names the port where it knows it.
            raise SwitchError(f"port {config.name}: {str(error).removeprefix(config.name + ': ')}") from None
        if config.role == "server":
            portdir.share(Path(config.socket))
        commands = self.core.port_added(Port(port_id, config, info.state is PortState.READY), self._clock())
        entry.id, entry.state, entry.reason, entry.since = port_id, info.state, info.reason, time.time()
        self._by_id[port_id] = entry
        undo.callback(self._detach, entry)
        self.flows.execute(commands)
        if config.type is PortType.FF:
            self.memory.open(port_id, config)
        self.taps.port_added(port_id)
        self._pin(entry)
        self._tell_change()

    def _pin(self, entry: PortEntry) -> None:
        """Bind a new port's queues; the state file may be that of a switch with more workers."""
        try:
            self.workers.check(entry.config)
            self.workers.pin(entry.id, entry.config)
        except (FastPathError, SwitchError) as error:
            log.warning("port %s: %s; its queues are placed by load", entry.config.name, error)

    def _detach(self, entry: PortEntry) -> None:
        """Take a port out of everything but the fast path, so that no flow leads to it any more."""
        self.memory.close(entry.id)
        self.taps.port_removed(entry.id)
        self.flows.execute(self.core.port_removed(entry.id, self._clock()))
        del self._by_id[entry.id]
        entry.id = 0

    def _directory(self, name: str) -> Path:
        return self.run_dir / "ports" / name

    def _check_conflicts(self, config: PortConfig) -> None:
        device = config.devargs.split(",", 1)[0]
        for other in self.ports.values():
            if other.config.name == config.name:
                continue
            if config.socket and config.socket == other.config.socket:
                raise SwitchError(f"socket {config.socket} is that of port {other.config.name}: give another path")
            if config.type in DEVICES and device == other.config.devargs.split(",", 1)[0]:
                raise SwitchError(f"device {device} is that of port {other.config.name}: give another name")

    def remove(self, name: str) -> None:
        """Delete a port, its directory and its entry in the state file. Raises SwitchError."""
        entry = self.port(name)
        if entry.config.own_text:
            raise SwitchError(f"port {name} comes and goes {entry.config.own_text}: the controller has it")
        self._close(entry)
        stays = portdir.remove(self._directory(name))
        if stays:
            log.warning("port %s: %s", name, stays)
        log.info("port %s: deleted", name)
        self._save()
        self._tell_watchers(name)

    def _close(self, entry: PortEntry) -> None:
        if port_id := entry.id:
            self._detach(entry)
            self.fast_path.port_del(port_id)
        del self.ports[entry.config.name]
        self._tell_change()

    def change(self, name: str, values: Mapping[str, object]) -> PortEntry:
        """Change a port's settings. Raises BadParams or SwitchError, and then nothing has changed."""
        entry = self.port(name)
        if entry.config.own_text and values.keys() - {"mirror", "upcall_budget"}:
            raise SwitchError(f"port {name} comes and goes {entry.config.own_text}: the controller has it")
        config = change_port(entry.config, values)
        if config.mirror not in ("", entry.config.mirror):
            self.port(config.mirror)
        if config.rxq_affinity != entry.config.rxq_affinity:
            self.workers.check(config)
        return self._replace(entry, config)

    def assign(self, name: str, mac: str, ips: tuple[str, ...]) -> PortEntry:
        """Take down what addresses the controller gave to a port's container. Raises SwitchError."""
        entry = self.port(name)
        return self._replace(entry, replace(entry.config, assigned_mac=mac, assigned_ips=ips))

    def _replace(self, entry: PortEntry, config: PortConfig) -> PortEntry:
        name, before = config.name, entry.config
        if config == before:
            return entry
        entry.config = config
        try:
            if entry.id:
                self._apply_limits(entry)
            self._save()
        except (FastPathError, SwitchError) as error:
            entry.config = before
            if entry.id:
                self._apply_limits(entry)
            raise SwitchError(f"port {name}: {error}") from None
        if entry.id:
            self.memory.change(entry.id, config)
            self.flows.execute(self.core.port_changed(entry.core_port(), self._clock()))
            self.memory.announce(entry.id)
            if config.rxq_affinity != before.rxq_affinity:
                self._pin(entry)
        self._tell_watchers(name)
        return entry

    def _apply_limits(self, entry: PortEntry) -> None:
        self.fast_path.port_set_mtu(entry.id, entry.config.mtu)
        self.fast_path.port_set_parked_max(entry.id, entry.config.upcall_budget)

    def _save(self) -> None:
        try:
            kept = (entry.config for entry in self.ports.values() if not entry.config.own_text)
            state.save(self._state_file, kept)
        except OSError as error:
            raise SwitchError(f"cannot write {self._state_file}: {error.strerror}") from None

    def restore(self, configs: Iterable[PortConfig]) -> None:
        """Bring the ports of the state file back; those that fail stay listed and are tried again."""
        for config in configs:
            self.ports[config.name] = PortEntry(config, 0, PortState.CONFIGURED, "", time.time())
        for entry in self.ports.values():
            self._reopen(entry)

    def _reopen(self, entry: PortEntry) -> None:
        name = entry.config.name
        try:
            with contextlib.ExitStack() as undo:
                self._open(entry, undo)
                undo.pop_all()
        except SwitchError as error:
            if entry.reason != str(error):
                log.error("%s: tried again from time to time", error)
            entry.state, entry.reason = PortState.LOST, str(error)
            entry.retry_at = self._clock() + entry.retry_delay
            entry.retry_delay = min(2 * entry.retry_delay, _RETRY_MAX_S)
        else:
            log.info("port %s: back, %s", name, entry.state.label)
            self._tell_watchers(name)

    async def wait_ready(self, entry: PortEntry, seconds: float) -> None:
        """Wait until a port is ready, `seconds` at most; SwitchError when it is deleted meanwhile."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not entry.up:
                    await self._changed.wait()
                    if self.ports.get(entry.config.name) is not entry:
                        raise SwitchError(f"port {entry.config.name} was deleted meanwhile")

    def _tell_watchers(self, name: str) -> None:
        for watcher in self.watchers:
            watcher(name)

    def _tell_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # ---- what the fast path tells --------------------------------------------

    def on_events(self) -> None:
        """Take the port events: a change of state is logged, and the core told of up and down."""
        for event in self.fast_path.events():
            entry = self._by_id.get(event.port_id)
            if entry is None:
                continue
            if entry.config.type is PortType.FF and event.state is not PortState.READY:
                # How far its container is, its socket knows better.
                if event.state is PortState.LOST:
                    self.memory.broken(entry.id, event.reason)
                continue
            self._set_state(entry, event.state, event.reason)
        for hook in self.event_hooks:
            hook()
        self._tell_change()
        self._pass_log()

    def _set_state(self, entry: PortEntry, state: PortState, reason: str) -> None:
        was_up = entry.up
        if state is not entry.state:
            entry.since = time.time()
            why = f" ({reason})" if reason else ""
            log.info("port %s: %s%s", entry.config.name, state.label, why)
        entry.state, entry.reason = state, reason
        if entry.up is not was_up:
            self.flows.execute(self.core.port_changed(entry.core_port(), self._clock()))

    def _memory_state(self, port_id: int, state: PortState, reason: str) -> None:
        entry = self._by_id.get(port_id)
        if entry is not None:
            self._set_state(entry, state, reason)
            self._tell_change()

    def _announced(self, port_id: int, mac: bytes) -> None:
        self.flows.execute(self.core.announced(port_id, mac, self._clock()))

    def _after_commands(self) -> None:
        if self.core.revision != self._revision:
            self._revision = self.core.revision
            self.shortcuts.changed()

    def _pass_log(self) -> None:
        """Pass DPDK's own lines on."""
        for level, line in self.fast_path.log_lines():
            dpdk_log.log(_LOG_LEVELS.get(level, logging.ERROR), "DPDK: %s", one_line(line))

    def on_upcalls(self) -> None:
        """Take the upcalls and carry out what the core makes of them."""
        now = self._clock()
        commands: list[Command] = []
        for upcall in self.fast_path.upcalls():
            try:
                commands += self.core.upcall(upcall, now)
            except Exception:
                # A packet without a verdict would stay parked, and those behind it.
                log.exception("no decision for a packet of %s", self.port_label(upcall.key.in_port))
                commands.append(Finish(upcall.id, _UNDECIDED))
        self.flows.execute(commands)
        for command in commands:
            if isinstance(command, AddFlow):
                self.shortcuts.flow_added(command.flow)

    # ---- what time brings -----------------------------------------------------

    async def every_second(self) -> None:
        """Run for ever: flow counters to the core, ageing, ports to be tried again."""
        took = 0.0
        while True:
            # With very many flows a round takes more than a second; upcalls come first.
            await asyncio.sleep(max(1.0, took))
            started = time.monotonic()
            try:
                await self.sweep()
            except Exception:
                log.exception("the once-a-second work failed")
            took = time.monotonic() - started

    async def sweep(self) -> None:
        """One round of `every_second`."""
        handles = iter(tuple(self.core.flows()))
        while chunk := tuple(itertools.islice(handles, _STATS_CHUNK)):
            flows = self.core.flows()
            counters = self.flows.stats([handle for handle in chunk if handle in flows])
            for handle, counted in counters.items():
                self.shortcuts.flow_counted(handle, flows[handle], counted)
            self.flows.execute(self.core.flow_stats(counters, self._clock()))
            await asyncio.sleep(0)
        self._pass_log()
        self.workers.tick()
        now = self._clock()
        self._look_for_wedged(now)
        self.flows.execute(self.core.tick(now))
        self.shortcuts.second(self.core.flows())
        for entry in [e for e in self.ports.values() if not e.id and e.retry_at <= now]:
            self._reopen(entry)

    def _look_for_wedged(self, now: float) -> None:
        asleep = self.fast_path.worker_asleep
        workers = enumerate(self.fast_path.worker_stats())
        loops = [None if asleep(number) else worker.loops for number, worker in workers]
        begun, ended = self._progress.look(now, self.fast_path.suspects(), loops)
        for subject in begun:
            log.warning("%s%s", self._of_port(subject), subject)
        for subject in ended:
            log.info("%sover: %s", self._of_port(subject), subject)

    def _of_port(self, subject: Subject) -> str:
        return f"port {self.port_label(subject.port_id)}: " if subject.port_id else ""

    # ---- for the command line ---------------------------------------------------

    def port_warnings(self, entry: PortEntry) -> list[str]:
        """What is wrong with a port although it is ready, a line each."""
        return [str(subject) for subject in self._progress.wedged(entry.id)] if entry.id else []

    def worker_warnings(self) -> list[str]:
        """Which workers hang, a line each."""
        return [str(subject) for subject in self._progress.wedged(0)]

    def counters(self) -> Counters:
        """What all ports have counted, those that exist no more included."""
        sums = Counters()
        for port_id in (_GONE, *self._by_id):
            sums.add(self.fast_path.port_stats(port_id))
        return sums

    def flush_flows(self) -> int:
        """Delete all flows; the next packets make new ones. Returns how many were deleted."""
        return self._count_deleted(self.core.flow_flush(self._clock()))

    def flush_fdb(self, entry: PortEntry | None) -> int:
        """Forget the learned addresses (of one port); returns how many."""
        before = len(self.core.fdb())
        self.flows.execute(self.core.fdb_flush(self._clock(), entry.id if entry else None))
        return before - len(self.core.fdb())

    def _count_deleted(self, commands: list[Command]) -> int:
        self.flows.execute(commands)
        return sum(isinstance(command, DelFlow) for command in commands)
