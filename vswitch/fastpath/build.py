# SPDX-License-Identifier: Apache-2.0
"""Builds the C fast path into the extension module `vswitch._ff` (cffi, API mode).

setup.py names this file. FFSWITCH_MARCH names the CPU to build for, as for gcc's -march, when it is not the one here.
FFSWITCH_SANITIZE=1 builds with AddressSanitizer and UndefinedBehaviorSanitizer, for `make asan`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

from cffi import FFI

DPDK_OLDEST = "22.11.11"
C_FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-fno-strict-aliasing", "-DNDEBUG")
CONTRACT = ("ff_packet.h", "ff_shm.h", "ff_memory.h", "ff_rdma.h", "ff.h")  # what another uses comes first
HERE = Path(__file__).parent if "__file__" in globals() else Path("vswitch/fastpath")


def pkg_config(*args: str) -> list[str]:
    """The words that `pkg-config ARGS libdpdk` prints; exits with one line when there is no fit DPDK."""
    try:
        done = subprocess.run(["pkg-config", *args, "libdpdk"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as e:
        raise SystemExit(
            f"ffswitch needs DPDK >= {DPDK_OLDEST} (pkg-config libdpdk): install libdpdk-dev and pkgconf"
        ) from e
    return shlex.split(done.stdout)


def check_version(version: str) -> None:
    """Refuses a DPDK that is older than DPDK_OLDEST."""
    found = tuple(int(n) for n in re.findall(r"\d+", version)[:3])
    if found < tuple(int(n) for n in DPDK_OLDEST.split(".")):
        raise SystemExit(f"ffswitch needs DPDK >= {DPDK_OLDEST}, found {version}: apt-get install libdpdk-dev")


def cdef() -> str:
    """The contract without what cffi does not read: comments, static asserts, include guards and includes."""
    text = "".join((HERE / name).read_text() for name in CONTRACT)
    text = re.sub(r"/\*.*?\*/|static_assert\(.*?\);", "", text, flags=re.S)
    return "\n".join(
        line for line in text.splitlines() if not line.startswith("#") or re.match(r"#define \w+ \d", line)
    )


def make() -> FFI:
    """The FFI that setuptools compiles."""
    check_version(pkg_config("--modversion")[0])
    # DPDK's headers are not ours to warn about
    cflags = [flag.replace("-I", "-isystem", 1) for flag in pkg_config("--cflags") if not flag.startswith("-march")]
    # AVX-512 lowers the clock of many CPUs, and our copies are too short to gain from it
    flags = [*C_FLAGS, f"-march={os.environ.get('FFSWITCH_MARCH', 'native')}", "-mno-avx512f"]
    link = [*pkg_config("--libs"), "-libverbs"]
    if os.environ.get("FFSWITCH_SANITIZE"):
        flags += ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        link += ["-fsanitize=address,undefined"]
    else:
        flags += ["-O3", "-g"]
    ffi = FFI()
    ffi.cdef(cdef())
    ffi.set_source(
        "vswitch._ff",
        '#pragma GCC diagnostic ignored "-Wunused-parameter"\n'
        '#pragma GCC diagnostic ignored "-Wmissing-field-initializers"\n'
        '#pragma GCC diagnostic ignored "-Wcast-function-type"\n'
        '#include "ff.h"\n',
        sources=[f"vswitch/fastpath/{path.name}" for path in sorted(HERE.glob("*.c"))],
        depends=[f"vswitch/fastpath/{path.name}" for path in sorted(HERE.glob("*.h"))],
        include_dirs=["vswitch/fastpath"],
        extra_compile_args=[*flags, *cflags],
        extra_link_args=link,
    )
    return ffi


ffibuilder = make()
