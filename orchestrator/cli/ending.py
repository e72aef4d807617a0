"""The last words on a run: a table per silo, where things lie, and how to go on."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator.cli import failures, words
from orchestrator.cli.display import Display, JsonLines, Lines
from orchestrator.cli.report_table import print_report
from orchestrator.cli.run_dirs import read_command
from orchestrator.cli.run_handle import Outcome
from orchestrator.cli.tables import print_silos
from orchestrator.core.errors import BadInput
from orchestrator.core.events import Event
from orchestrator.disk import DiskFull
from orchestrator.journal import JOURNAL
from orchestrator.summary import SUMMARY, read_summary, summarise, write_summary


def conclude(
    run_dir: Path, outcome: Outcome, durable: Iterable[Event], as_json: bool, name: str | None = None
) -> None:
    """Say how the run ended. Where its directory is on this machine, see that its summary is there. ``name``: the run
    as a command has to be told of it, where its id would not do."""
    summary = _summary(run_dir, durable)
    say: Display = JsonLines() if as_json else Lines()
    if not as_json and summary["silos"]:
        print_silos(summary)
        for line in print_report(summary):
            say.tell(line)
    head, *rest = closing(run_dir, outcome, summary, name or run_dir.name)
    failures.say(head) if outcome.status == "failed" else say.tell(head)
    for line in rest:
        say.tell(line)


def _summary(run_dir: Path, durable: Iterable[Event]) -> dict[str, Any]:
    if not (run_dir / JOURNAL).is_file():
        return summarise(durable)
    try:
        return write_summary(run_dir)
    except DiskFull:
        return read_summary(run_dir)


def closing(run_dir: Path, outcome: Outcome, summary: Mapping[str, Any], name: str) -> list[str]:
    """The lines below the table."""
    num, total = len(summary["versions"]), summary["total_rounds"]
    took = words.duration(summary["ended"] - summary["started"])
    reason = f": {words.one_line(outcome.reason)}" if outcome.reason else ""
    if summary["run_id"] is None:  # it never began: there is nothing to look at, and nothing to go on with
        return [f"{outcome.status}{reason}"]
    lines = [f"{outcome.status}{reason} ({num} of {total} rounds, {took})", *_best(summary)]
    lines.append(f"summary  {run_dir / SUMMARY}")
    if _is_tracked(run_dir):
        lines.append(tracking_line(run_dir) or "curves   siloray ui")
    return lines if outcome.status == "done" else [*lines, f"go on    siloray resume {name}"]


def _is_tracked(run_dir: Path) -> bool:
    with suppress(BadInput):
        return bool(read_command(run_dir)["track"])
    return False


def tracking_line(run_dir: Path) -> str | None:
    """What MLflow lacks of the run, and the remedy; None while all is well."""
    from tracking.cursor import trouble

    found = trouble(run_dir)
    return f"tracking {found}" if found else None


def _best(summary: Mapping[str, Any]) -> list[str]:
    best = summary["best"]
    if best is None or best["value"] is None:
        return []
    return [f"best     version {best['version']}, {best['metric']} {words.figure(best['value'])}"]
