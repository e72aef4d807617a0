"""``siloray list``: the runs in a folder, here or on a cluster's driver node, from their journals alone."""

import json
from pathlib import Path
from typing import Any

import typer

from orchestrator.cli import options, run_dirs, words
from orchestrator.journal import JOURNAL


def list_runs(
    address: options.Address = None,
    runs_dir: options.AnyRunsDir = None,
    as_json: options.AsJson = False,
) -> None:
    """List the runs in the runs folder, the one that was active last at the end."""
    folder, rows = _found(address, runs_dir)
    if as_json:
        typer.echo(json.dumps(rows))
    elif rows:
        _print(rows)
    else:
        typer.echo(f"{folder}: no runs here")


def _found(address: str | None, runs_dir: run_dirs.Folder | None) -> tuple[str, list[dict[str, Any]]]:
    if address is None:
        here = runs_dir or run_dirs.HERE
        return str(here), rows_of(here.look())
    from orchestrator.transport import ray as transport

    try:
        transport.connect(address, 0)
        return transport.on_driver_node(rows_there, run_dirs.absolute(runs_dir))
    finally:
        transport.shutdown()


def rows_there(given: str | None) -> tuple[str, list[dict[str, Any]]]:
    """The folder of runs on the driver's node, where this is called, and a row for each run."""
    folder, _ = run_dirs.runs_in(given)
    return folder, rows_of(Path(folder))


def rows_of(runs_dir: Path) -> list[dict[str, Any]]:
    """A row for each run in the folder."""
    return [_row(runs_dir / run_id) for run_id in run_dirs.ids(runs_dir)]


def _row(run_dir: Path) -> dict[str, Any]:
    from orchestrator.journal import JournalDamaged
    from orchestrator.summary import read_summary

    try:
        summary = read_summary(run_dir)
    except JournalDamaged as error:
        return {"run_id": run_dir.name, "name": "", "status": "damaged", "reason": str(error)}
    keys = ("name", "status", "reason", "total_rounds", "started", "ended", "best", "resumed")
    row = {"run_id": run_dir.name, **{key: summary[key] for key in keys}, "version": len(summary["versions"])}
    return {**row, "status": _status(run_dir, row["status"])}


def _status(run_dir: Path, status: str) -> str:
    if status != "unfinished":
        return status
    if not (run_dir / JOURNAL).is_file():
        return "elsewhere"  # the driver writes on its own machine
    return "running" if run_dirs.has_driver(run_dir) else status


def _print(rows: list[dict[str, Any]]) -> None:
    from orchestrator.cli.tables import print_table

    cells = [[row["run_id"], row["name"] or "", row["status"], *_rest(row)] for row in rows]
    print_table(["run", "job", "status", "rounds", "best", "started", "took"], cells)


def _rest(row: dict[str, Any]) -> list[str]:
    if not row.get("started"):
        return ["", "", "", ""]
    best = row["best"]
    return [
        f"{row['version']}/{row['total_rounds']}",
        f"{best['metric']} {words.figure(best['value'])}" if best and best["value"] is not None else "",
        words.clock(row["started"]),
        words.duration(row["ended"] - row["started"]),
    ]
