# SPDX-License-Identifier: Apache-2.0
"""`make bench-instructions`: instructions a packet, counted by callgrind; see docs/performance.md."""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench import callgrind
from tests.bench.errors import BenchError
from tests.bench.process import run
from vswitch.fastpath.build import C_FLAGS

BUILD = Path("build/bench/replay")
OUTPUT = Path("build/bench/instructions.json")
FAST_PATH = Path("vswitch/fastpath")
HARNESS = Path(__file__).with_name("replay.c")
BURSTS = 200
# AVX-512 is beyond valgrind, and one set of instructions makes machines comparable.
ARCHITECTURE = "-march=x86-64-v3"
# Functions with less than this many instructions a packet share a line.
SHOWN = 0.5
WIDE = 120  # columns of what is no terminal


@dataclass(frozen=True, slots=True)
class Case:
    """What is replayed."""

    ring: str
    size: int
    flows: int

    def __str__(self) -> str:
        return f"{self.ring} {self.size} B, {self.flows} flow{'s' if self.flows > 1 else ''}"


CASES = tuple(Case(ring, size, flows) for ring in ("split", "packed") for size in (64, 1500) for flows in (1, 1000))


def build(directory: Path = BUILD) -> Path:
    """Compiles the fast path and the harness into `directory`, what is newer than its object; returns the program."""
    directory.mkdir(parents=True, exist_ok=True)
    cflags, libs = (
        shlex.split(run(["pkg-config", option, "libdpdk", "libibverbs"])) for option in ("--cflags", "--libs")
    )
    includes = [flag.replace("-I", "-isystem", 1) for flag in cflags if not flag.startswith("-march")]
    flags = [*C_FLAGS, "-O3", "-g", ARCHITECTURE, f"-I{FAST_PATH}", *includes]
    headers = max(header.stat().st_mtime for header in FAST_PATH.glob("*.h"))

    def compiled(source: Path) -> Path:
        target = directory / f"{source.stem}.o"
        if not target.exists() or target.stat().st_mtime < max(headers, source.stat().st_mtime):
            run(["gcc", *flags, "-c", source, "-o", target], seconds=120)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, (*sorted(FAST_PATH.glob("*.c")), HARNESS)))
    program = directory / "replay"
    run(["gcc", *objects, "-o", program, *libs], seconds=120)
    return program


def replay(program: Path, case: Case, bursts: int) -> list[str | Path]:
    """The command that replays a case; it prints the number of packets."""
    return [program, str(bursts), case.ring, str(case.size), str(case.flows)]


def count(program: Path, case: Case) -> Counter[str]:
    """Instructions of a case, by function."""
    out = program.with_name(f"{case.ring}-{case.size}-{case.flows}.callgrind")
    options = ["--tool=callgrind", "--collect-atstart=no", f"--callgrind-out-file={out}"]
    run(["valgrind", "--quiet", *options, *replay(program, case, BURSTS)], seconds=300)
    with out.open() as lines:
        return callgrind.instructions(lines)


def table(counts: Mapping[Case, Counter[str]], packets: int) -> Table:
    """Instructions a packet: a line for each function, a column for each case."""
    result = Table(title="Instructions a packet", title_justify="left")
    result.add_column("function", no_wrap=True)
    for case in counts:
        result.add_column(f"{case.ring}\n{case.size} B\n{case.flows}", justify="right")
    functions = sorted(set().union(*counts.values()), key=lambda name: -max(c[name] for c in counts.values()))
    shown = [name for name in functions if max(c[name] for c in counts.values()) >= SHOWN * packets]
    for name in shown:
        result.add_row(name, *(f"{c[name] / packets:.1f}" for c in counts.values()))
    result.add_row("others", *(f"{(c.total() - sum(c[n] for n in shown)) / packets:.1f}" for c in counts.values()))
    result.add_section()
    result.add_row("all", *(f"{c.total() / packets:.1f}" for c in counts.values()))
    return result


def main() -> None:
    """Counts every case, prints the table, writes OUTPUT."""
    try:
        program = build()
        with ThreadPoolExecutor(2) as pool:
            counts = dict(zip(CASES, pool.map(lambda case: count(program, case), CASES), strict=True))
    except BenchError as error:
        sys.exit(f"bench-instructions: {error}")
    packets = int(run(list(replay(program, CASES[0], BURSTS))))
    Console(width=None if sys.stdout.isatty() else WIDE).print(table(counts, packets))
    found = {
        f"{case.ring}_{case.size}_{case.flows}": {
            "total": round(c.total() / packets, 2),
            "functions": {name: round(number / packets, 2) for name, number in c.most_common()},
        }
        for case, c in counts.items()
    }
    OUTPUT.write_text(json.dumps({"instructions_per_packet": found}, indent=1) + "\n")
    print(f"written to {OUTPUT}")


if __name__ == "__main__":
    main()
