# SPDX-License-Identifier: Apache-2.0
"""What the container of a vhost-user or ff port must be told: EAL arguments, and command lines that work as printed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTPMD_IMAGE = "localhost/ffswitch-testpmd:latest"
FF_DRIVER = "librte_net_ff.so"
MEMORY_MB = 128
MBUFS = 16384  # testpmd's own default is made for 32 ports and takes 350 MB
CONTAINER_LIMIT = 1_048_576  # what podman raises nofile and nproc to unless told
_CAP_SYS_RESOURCE = 24

Port = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What of this host shapes a podman command line."""

    cpus: tuple[int, ...]  # that a container may use without disturbing the switch's workers
    nofile: int = CONTAINER_LIMIT  # hard limits of this process
    nproc: int = CONTAINER_LIMIT
    may_raise_limits: bool = True
    needs_runc: bool = False  # Debian's crun gives up on control groups that are v1 and v2 mixed


def host_facts(worker_cpus: Sequence[int]) -> HostFacts:
    """Read this host's facts; `worker_cpus` are those that the switch polls on."""
    import resource  # noqa: PLC0415  (a bare add-port does without)
    import shutil  # noqa: PLC0415

    def hard_limit(which: int) -> int:
        hard = resource.getrlimit(which)[1]
        return CONTAINER_LIMIT if hard == resource.RLIM_INFINITY else min(hard, CONTAINER_LIMIT)

    allowed = sorted(os.sched_getaffinity(0))
    free = [cpu for cpu in allowed if cpu not in worker_cpus] or allowed
    effective = 0
    mixed = ""
    pid_max = CONTAINER_LIMIT
    with suppress(OSError, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    with suppress(OSError):
        pid_max = int(Path("/proc/sys/kernel/pid_max").read_text())
    with suppress(OSError):
        mixed = Path("/sys/fs/cgroup/unified/cgroup.controllers").read_text().strip()
    return HostFacts(
        cpus=tuple(free),
        nofile=hard_limit(resource.RLIMIT_NOFILE),
        # podman lowers its own limit of processes to pid_max before it starts a container.
        nproc=min(hard_limit(resource.RLIMIT_NPROC), pid_max),
        may_raise_limits=bool(effective >> _CAP_SYS_RESOURCE & 1),
        needs_runc=bool(mixed) and shutil.which("runc") is not None,
    )


def eal_arguments(port: Port) -> list[str]:
    """Return the EAL arguments of the container's DPDK application.

    Without huge pages a DPDK application has its memory in one file, which is what the switch maps.
    """
    common = ["--no-pci", "--no-huge", "-m", str(MEMORY_MB), "--no-shconf", "--no-telemetry"]
    common.append(f"--file-prefix={port['name']}")
    if port.get("type") == "ff":
        return [*common, "-d", FF_DRIVER, f"--vdev=net_ff0,path={port['socket']}"]
    device = {"path": port["socket"]}
    if not _switch_listens(port):
        device["server"] = "1"
    if port.get("mac"):
        device["mac"] = port["mac"]
    device["queues"] = str(port.get("queues", 1))
    vdev = ",".join(f"{key}={value}" for key, value in device.items())
    return [*common, f"--vdev=net_virtio_user0,{vdev}"]


def eal_line(port: Port) -> str:
    """Return eal_arguments() as a shell takes them."""
    return shlex.join(eal_arguments(port))


def stale_socket(port: Port) -> str:
    """Return the socket that a killed container leaves and its successor must remove; "" when the switch listens."""
    return "" if _switch_listens(port) else str(port["socket"])


def podman_line(port: Port, host: HostFacts) -> str:
    """Return a `podman run` that starts testpmd on the port."""
    options = ["--runtime", "runc"] if host.needs_runc else []
    limits = {"nofile": host.nofile, "nproc": host.nproc}
    if not host.may_raise_limits:
        for name, limit in limits.items():
            if limit < CONTAINER_LIMIT:
                options += ["--ulimit", f"{name}={limit}:{limit}"]
    return _run_line("podman", options, port, host)


def docker_line(port: Port, host: HostFacts) -> str:
    """Return a `docker run` that starts testpmd on the port."""
    return _run_line("docker", [], port, host)


def k8s_snippet(port: Port) -> str:
    """Return the parts of a pod's specification that give one container the port, as YAML."""
    directory = port_directory(port)
    # A scalar in double quotes is JSON's string in YAML 1.2 (section 5.13), so shell text needs no other care.
    script = _shell_script(port, []).replace("\\", "\\\\").replace('"', '\\"')
    return f"""\
spec:
  containers:
  - name: {port["name"].lower().replace("_", "-").replace(".", "-").rstrip("-")}
    image: {TESTPMD_IMAGE}
    imagePullPolicy: IfNotPresent
    command: ["sh", "-c", "{script}"]
    volumeMounts:
    - name: ffswitch-port
      mountPath: "{directory}"
  volumes:
  - name: ffswitch-port
    hostPath:
      path: "{directory}"
      type: Directory
"""


def _switch_listens(port: Port) -> bool:
    return port.get("type") == "ff" or port.get("role") == "server"


def port_directory(port: Port) -> str:
    """Return the directory of a port's socket, which its container mounts."""
    return os.path.dirname(str(port["socket"]))  # noqa: PTH120 (a path of the daemon's, not looked at here)


def _run_line(program: str, options: Sequence[str], port: Port, host: HostFacts) -> str:
    directory = port_directory(port)
    # One CPU serves both lcores: the first only prints. Lists with parentheses would need more quoting.
    cpu = host.cpus[int(port.get("id") or 0) % len(host.cpus)]
    lcores = [f"--lcores=0@{cpu},1@{cpu}"]
    words = [program, "run", "--rm", "--network", "none", "--name", f"ffswitch-{port['name']}", *options]
    words += ["-v", f"{directory}:{directory}", TESTPMD_IMAGE, "sh", "-c"]
    return f"{shlex.join(words)} {_quote(_shell_script(port, lcores))}"


def _shell_script(port: Port, more_eal: Sequence[str]) -> str:
    """Return what the container's shell runs: the stale socket away, then testpmd, which prints what it receives."""
    queues = int(port.get("queues", 1))
    testpmd = ["--no-mlockall", f"--total-num-mbufs={MBUFS}", "--forward-mode=rxonly", "--stats-period=2"]
    if queues > 1:
        testpmd += [f"--rxq={queues}", f"--txq={queues}"]
    start = f"exec {shlex.join(['dpdk-testpmd', *more_eal, *eal_arguments(port), '--', *testpmd])}"
    stale = stale_socket(port)
    return f"rm -f {shlex.quote(stale)}; {start}" if stale else start


def _quote(script: str) -> str:
    """Quote for the shell, in single quotes where that is readable."""
    if "'" in script and not any(char in script for char in '"$`\\!'):
        return f'"{script}"'
    return shlex.quote(script)
