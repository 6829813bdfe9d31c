# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks print and write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.measure import Case
from tests.bench.stats import Figure, Ratio, Spread

# From this share of a core on, what others do shows in the figures.
DISTURBED = 0.02

Results = Mapping[tuple[str, Case], Sequence[Figure]]


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def cost_table(results: Results, title: str = "Forwarding between two vhost-user ports, one core") -> Table:
    """A line for each switch and case: medians and spread over the rounds."""
    table = Table(title=title, title_justify="left")
    table.add_column("case")
    table.add_column("switch")
    for heading in (
        "cycles/packet",
        "min .. max",
        "own count",
        "Mpps",
        "lost",
        "limit",
        "others' CPU: switch",
        "generator",
    ):
        table.add_column(heading, justify="right")
    order = list(dict.fromkeys(case for _, case in results))
    for case in order:
        names = [name for name, its_case in results if its_case == case]
        for name in names:
            table.add_row(
                case.label if name == names[0] else "",
                name,
                *_cells(results[name, case]),
                end_section=name == names[-1],
            )
    return table


def _cells(figures: Sequence[Figure]) -> list[str]:
    cost = Spread.of([f.cost for f in figures])
    own = [f.own_cycles for f in figures if f.own_cycles is not None]
    limited = sum(f.switch_limited for f in figures)
    return [
        f"{cost.median:.0f}",
        f"{cost.minimum:.0f} .. {cost.maximum:.0f}",
        f"{Spread.of(own).median:.0f}" if own else "-",
        f"{Spread.of([f.mpps for f in figures]).median:.2f}",
        percent(Spread.of([f.loss for f in figures]).median),
        "switch" if limited == len(figures) else f"generator in {len(figures) - limited}",
        percent(Spread.of([f.others_switch for f in figures]).median),
        percent(Spread.of([f.others_generator for f in figures]).median),
    ]


def contamination_warning(results: Results) -> str | None:
    """What to say when other processes disturbed the run, else None."""
    worst = max((f.others for figures in results.values() for f in figures), default=0.0)
    if worst <= DISTURBED:
        return None
    return (
        f"[yellow]Other processes took up to {percent(worst)} of a core while it was measured. Their CPU time is "
        "accounted for, the caches they emptied are not: repeat it on a quiet machine before trusting a difference.[/]"
    )


@dataclass(frozen=True, slots=True)
class Goal:
    """What a number should be: at least, or at most, `bound`."""

    bound: float
    at_most: bool = False

    def met(self, value: float) -> bool:
        """Whether the number is as wanted."""
        return value <= self.bound if self.at_most else value >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}"


def ratio_table(ratios: Mapping[str, Ratio], goals: Mapping[str, Goal]) -> Table:
    """The ratios by name, and which of the goals are reached."""
    table = Table(title="Ratios, each computed within a round", title_justify="left")
    table.add_column("ratio")
    for heading in ("median", "min .. max", "others' CPU", "target", ""):
        table.add_column(heading, justify="right")
    table.add_column("")
    for name, ratio in ratios.items():
        s, goal = ratio.spread, goals.get(name)
        table.add_row(
            name,
            f"{s.median:.2f}",
            f"{s.minimum:.2f} .. {s.maximum:.2f}",
            percent(ratio.others),
            str(goal) if goal else "",
            _verdict(goal.met(s.median)) if goal else "",
            ratio.note,
        )
    return table


def _verdict(good: bool) -> str:
    return "[green]ok[/]" if good else "[red]short[/]"


def times_table(times: Mapping[str, Spread], wanted: Mapping[str, float]) -> Table:
    """Latencies, given in seconds, printed in milliseconds, and whether the medians are as wanted."""
    table = Table(title="Commands, from start to exit", title_justify="left")
    table.add_column("command")
    for heading in ("median ms", "min .. max", "target"):
        table.add_column(heading, justify="right")
    for name, s in times.items():
        goal = f"< {wanted[name] * 1e3:g} {_verdict(s.median < wanted[name])}" if name in wanted else ""
        table.add_row(name, f"{s.median * 1e3:.1f}", f"{s.minimum * 1e3:.1f} .. {s.maximum * 1e3:.1f}", goal)
    return table


def figure_text(figure: Figure) -> str:
    """A measurement in a few words."""
    return f"{figure.cost:.0f} cycles, {figure.mpps:.2f} Mpps, others {percent(figure.others)}"


def spread_json(spread: Spread) -> dict[str, float]:
    return {"median": spread.median, "min": spread.minimum, "max": spread.maximum}


def ratio_json(ratio: Ratio, goal: Goal | None) -> dict[str, Any]:
    """The spread; `others`: the worst share of a core that other processes took; the goal and whether it is met."""
    found: dict[str, Any] = spread_json(ratio.spread) | {"others": ratio.others}
    if goal:
        found |= {"at_most" if goal.at_most else "at_least": goal.bound, "ok": goal.met(ratio.spread.median)}
    return found | ({"note": ratio.note} if ratio.note else {})


def cells_json(results: Results) -> list[dict[str, Any]]:
    """Every single measurement, in no particular order of time; `round` counts from 1."""
    return [
        {"switch": name, **asdict(case), "round": number, "cost": f.cost, **asdict(f)}
        for (name, case), figures in results.items()
        for number, f in enumerate(figures, start=1)
    ]


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")


def console() -> Console:
    """Wide enough for the tables when the output is no terminal."""
    found = Console()
    return found if found.is_terminal else Console(width=160)
