# SPDX-License-Identifier: Apache-2.0
"""`ffcontroller` and `ffctl` as processes, and the controller killed at work."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controller.security.authority import KeyPair, host_uri, key_pem, new_key, signing_request
from controller.security.files import Identity, load_authority
from tests.agents import FakeAgent, free_target
from tests.system.ffswitchd import Ffswitchd
from tests.system.underlay import until

BLUE = "kind: Network\nname: blue\nvni: 100\nsubnets: [10.1.0.0/24]\n"
_RUN = "import sys; from controller.cli.{0} import main; sys.exit(main())"


class Controller:
    """One ffcontroller, which may be killed and started again at the same address."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.target = free_target()
        self._process: subprocess.Popen[str] | None = None
        subprocess.run(_command("ffcontroller", "init", "--state-dir", str(directory)), check=True)

    def start(self) -> None:
        """Returns when it listens."""
        options = ["--state-dir", str(self.directory), "--listen", f"127.0.0.1:{self.target[1]}", "--heartbeat", "1"]
        command = _command("ffcontroller", "run", *options)
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert "joining at" in self._process.stdout.readline()

    def kill(self) -> None:
        """kill -9, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def ctl(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run ffctl."""
        options = ["--controller", f"127.0.0.1:{self.target[1]}", "--credentials", str(self.directory)]
        command = _command("ffctl", *options, *words)
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=60)

    def json(self, *words: str) -> object:
        """What ffctl prints as JSON."""
        done = self.ctl(*words, "-o", "json")
        assert done.returncode == 0, done.stderr
        found: object = json.loads(done.stdout)
        return found

    def identity(self, host: str) -> Identity:
        """A host's certificate."""
        authority, key = load_authority(self.directory), new_key()
        chain = authority.issue_host(signing_request(key, host_uri(host)), host, datetime.now(UTC))
        return Identity(KeyPair(chain, key_pem(key)), authority.certificate)


def _command(program: str, *words: str) -> list[str]:
    return [sys.executable, "-c", _RUN.format(program), *words]


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    made = Controller(tmp_path / "state")
    try:
        made.start()
        yield made
    finally:
        made.kill()


def test_what_was_applied_is_shown(controller: Controller) -> None:
    done = controller.ctl("apply", "-f", "-", "--wait", stdin=BLUE)
    assert done.returncode == 0 and "create" in done.stdout, done.stderr
    assert "10.1.0.0/24" in controller.ctl("get", "networks").stdout
    assert "vni" in controller.ctl("describe", "network", "blue").stdout
    status = controller.json("status")
    assert isinstance(status, dict) and status["connected"] is True
    token = controller.json("token", "create", "h1", "--ttl", "10m")
    assert isinstance(token, dict) and token["host"] == "h1"


@pytest.mark.parametrize(
    ("words", "stdin", "line", "code"),
    [
        (["apply", "-f", "-"], BLUE.replace("vni", "vnj"), "-:3:1: vnj: no such field: did you mean vni?", 1),
        (["apply", "-f", "/nowhere.yaml"], "", "/nowhere.yaml: No such file or directory", 1),
        (["get", "netwrk"], "", "netwrk is no kind: did you mean Network?", 1),
        (["explain", "a", "b"], "", "there is no endpoint a: there is none", 1),
        (["token", "create", "not/a/name"], "", "name: 'not/a/name' is not", 1),
        (["wait", "a", "b", "c"], "", "WHAT is a revision, or a KIND and a NAME", 2),
        (["--controller", "127.0.0.1:1", "status"], "", "no controller answers at 127.0.0.1:2", 1),
        (["--credentials", "/nowhere", "status"], "", "/nowhere/admin.pem: No such file or directory", 1),
    ],
)
def test_an_error_is_one_line(controller: Controller, words: list[str], stdin: str, line: str, code: int) -> None:
    done = controller.ctl(*words, stdin=stdin)
    assert done.returncode == code
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("ffctl: "), done.stderr
    assert line.lower() in done.stderr.lower()


def _knows(least: int) -> Callable[[FakeAgent], bool]:
    return lambda agent: len(agent.known) > least


async def test_a_controller_killed_at_work_loses_nothing_and_leaves_nothing_half_made(controller: Controller) -> None:
    assert controller.ctl("apply", "-f", "-", stdin=BLUE).returncode == 0
    identity = controller.identity("h1")
    ports = {f"p{number}": {"network": "blue"} for number in range(200)}
    acknowledged: dict[str, list[str]] = {}
    for round_ in range(3):
        async with FakeAgent(controller.target, identity, "h1") as agent:
            await agent.observe(ports, full=True)
            # Killed while it works through them, each time a bit later.
            await agent.until(_knows(round_ * 40 + 2))
            await asyncio.to_thread(controller.kill)
            told = {name: item["ips"] for (kind, name), item in agent.known.items() if kind == "Endpoint"}
        assert all(told[name] == ips for name, ips in acknowledged.items() if name in told)
        acknowledged.update(told)
        await asyncio.to_thread(controller.start)
        found = await asyncio.to_thread(controller.json, "get", "endpoints")
        assert isinstance(found, list)
        stored = {item["name"]: item["ips"] for item in found}
        assert acknowledged.items() <= stored.items()
        assert all(item["mac"] and len(item["ips"]) == 1 and item["host"] == "h1" for item in found)
    async with FakeAgent(controller.target, identity, "h1") as agent:
        await agent.observe(ports, full=True)
        await agent.until(lambda agent: all(("Endpoint", name) in agent.known for name in ports))
        ips = [agent.known["Endpoint", name]["ips"][0] for name in ports]
        assert len(set(ips)) == len(ips)
        assert all(agent.known["Endpoint", name]["ips"] == ips for name, ips in acknowledged.items())


# ---- clocks ----------------------------------------------------------------------------------

_FAKETIME = Path("/usr/lib", sysconfig.get_config_var("MULTIARCH"), "faketime", "libfaketimeMT.so.1")
_EARLY = r"was issued at .* by the controller's clock, but this machine's clock says .*: set the clocks"
_LATE = r"ended at .*, and this machine's clock says .*: get a new one, or set the clock"
CLOCKS = pytest.mark.parametrize(("shift", "line"), [("-1h", _EARLY), ("+800d", _LATE)], ids=["behind", "ahead"])


@contextlib.contextmanager
def clock(shift: str) -> Iterator[None]:
    """Processes that are started within the block have a wall clock of their own."""
    assert _FAKETIME.exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(_FAKETIME))
        patch.setenv("FAKETIME", shift)
        patch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        yield


@CLOCKS
def test_an_operator_whose_clock_is_wrong_is_told_so(controller: Controller, shift: str, line: str) -> None:
    with clock(shift):
        done = controller.ctl("status")
    assert done.returncode == 1
    assert re.fullmatch(rf"ffctl: .*admin\.pem {line}\n", done.stderr)


@CLOCKS
def test_a_host_whose_clock_is_wrong_says_so_and_joins_when_it_is_right(
    controller: Controller, run_dir: Path, tmp_path: Path, shift: str, line: str
) -> None:
    token = controller.json("token", "create", "h1")
    assert isinstance(token, dict)
    where = f"127.0.0.1:{controller.target[1]}"
    options = ["--controller", where, "--host-name", "h1", "--state-dir", str(tmp_path / "h1")]
    join = [*options, "--join-token", token["token"]]
    may_log = r"the controller is away|no controller: "
    with clock(shift), Ffswitchd(run_dir, *join, may_log=may_log) as daemon:
        why = until(daemon, "status", lambda status: "clock" in status["controller"]["why"])["controller"]["why"]
        assert re.fullmatch(rf"the certificate of the controller at \S+ {line}", why)
    with Ffswitchd(run_dir, *join, may_log=may_log) as daemon:
        until(daemon, "status", lambda status: status["controller"]["state"] == "connected")
    with clock(shift), Ffswitchd(run_dir, *options, may_log=may_log) as daemon:
        why = until(daemon, "status", lambda status: "clock" in status["controller"]["why"])["controller"]["why"]
        assert re.fullmatch(rf"\S+/host\.pem {line}", why)
