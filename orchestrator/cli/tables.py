"""Tables on standard output, and the one that ends a run."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.cli import words
from orchestrator.core.metrics import larger_is_better
from orchestrator.core.printable import printable
from orchestrator.core.spent import spent

WIDE = 160
"""Columns where the output is no terminal, so that a log line is not folded."""


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Columns after the first that hold numbers only stand to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False, markup=False)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(head):
        numbers = all(_is_number(row[index]) for row in rows)
        table.add_column(printable(name), justify="right" if index and numbers else "left")
    for row in rows:
        table.add_row(*map(printable, row))
    console.print(table)


def _is_number(cell: str) -> bool:
    return not cell or cell[0].isdigit() or cell[0] in "-+"


def print_silos(summary: Mapping[str, Any]) -> None:
    """Per silo: local data size, and the metrics before the first and after the last round."""
    names = metrics_of(summary)
    private = ["privacy spent"] if any(each["privacy"] for each in summary["silos"].values()) else []
    head = ["silo", "train rows", "test rows", *(f"{name} before → after" for name in names), *private, ""]
    rows = [_silo_row(name, silo, names, summary) for name, silo in summary["silos"].items()]
    rows = [
        [*row[:-1], *(spent(silo["privacy"], delta=False) for _ in private), row[-1]]
        for row, silo in zip(rows, summary["silos"].values(), strict=True)
    ]
    last = _all_row(summary, names)
    print_table(head, [*rows, [*last[:-1], *("" for _ in private), last[-1]]])


def metrics_of(summary: Mapping[str, Any]) -> list[str]:
    """The loss, the metric by which the best version was chosen, and one more if there is room."""
    told = [each["metrics"]["global"] for each in (summary["initial"], *summary["versions"])]
    for silo in summary["silos"].values():
        told += [silo["first"], silo["last"]]
    known = sorted({name for figures in told for name in figures})
    wanted = ["loss", (summary["best"] or {}).get("metric"), *known]
    return [name for name in dict.fromkeys(wanted) if name in known][:3]


def _silo_row(
    name: str, silo: Mapping[str, Any], names: Sequence[str], summary: Mapping[str, Any]
) -> list[str]:
    examples = silo["num_examples"]
    sizes = [f"{examples[split]:,}" if split in examples else "private" for split in ("train", "test")]
    never = "never contributed" if name in summary["never_contributed"] else ""
    return [name, *sizes, *(_change(metric, silo["first"], silo["last"]) for metric in names), never]


def _all_row(summary: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    versions = [summary["initial"], *summary["versions"]]
    known = [each["metrics"]["global"] for each in versions if each["metrics"]["global"]] or [{}]
    counts = [
        [silo["num_examples"][split] for silo in summary["silos"].values() if split in silo["num_examples"]]
        for split in ("train", "test")
    ]
    sizes = [f"{sum(each):,}" if each else "" for each in counts]
    return ["all", *sizes, *(_change(metric, known[0], known[-1]) for metric in names), ""]


def _change(metric: str, first: Mapping[str, float], last: Mapping[str, float]) -> str:
    if metric not in first or metric not in last:
        return words.figure(last[metric]) if metric in last else ""
    before, after = first[metric], last[metric]
    change = f"{words.figure(before)} → {words.figure(after)}"
    if before == after:
        return change
    return change + ("  better" if (after > before) == larger_is_better(metric) else "  worse")
