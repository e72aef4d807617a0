"""``siloray show``: what a run came to, from its directory alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from orchestrator.cli import options, run_dirs, words
from orchestrator.core.printable import printable


def show(run: options.RunName, runs_dir: options.SeenRunsDir = None, as_json: options.AsJson = False) -> None:
    """Show a run: its silos, its versions, what was refused, and the best version."""
    run_dir = run_dirs.locate(run, None, runs_dir).run_dir
    from orchestrator.summary import read_summary

    summary = read_summary(run_dir)
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        _print(summary, run_dirs.has_driver(run_dir))
        _print_tracking(run_dir)


def _print_tracking(run_dir: Path) -> None:
    from orchestrator.cli.ending import tracking_line

    if line := tracking_line(run_dir):
        typer.echo(printable(line))


def _print(summary: Mapping[str, Any], running: bool) -> None:
    from orchestrator.cli.tables import print_silos, print_table

    for line in head(summary, running):
        typer.echo(printable(line))
    if summary["silos"]:
        print_silos(summary)
    if summary["versions"]:
        print_table(*versions(summary))
    for line in incidents(summary):
        typer.echo(printable(line))


def head(summary: Mapping[str, Any], running: bool) -> list[str]:
    """Who, what, and how it ended."""
    status = "running" if running and summary["status"] == "unfinished" else summary["status"]
    reason = f": {words.one_line(summary['reason'])}" if summary["reason"] else ""
    rounds = f"{len(summary['versions'])} of {summary['total_rounds']} rounds"
    took = words.duration(summary["ended"] - summary["started"])
    started = f"started {words.clock(summary['started'])}, resumed {summary['resumed']} times"
    lines = [
        f"{summary['run_id']}: {summary['name']}, {status}{reason}",
        f"{rounds} in {took}, {'on a simulated clock' if summary['simulated'] else started}",
        f"job {summary['job_digest']}, parameters {summary['parameters_digest'] or 'not final'}",
    ]
    if best := summary["best"]:
        lines.append(f"best: version {best['version']}, {best['metric']} {_value(best['value'])}")
    return lines


def _value(value: float | None) -> str:
    return "unknown" if value is None else words.figure(value)


def versions(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of versions, version 0 first."""
    everything = [summary["initial"], *summary["versions"]]
    names = sorted({name for each in everything for name in each["metrics"]["global"]})[:5]
    head = ["version", "updates", "stale", *names, "round", "up", "down"]
    first = ["0", "", "", *_figures(summary["initial"], names), "", "", ""]
    return head, [first, *(_version(each, names) for each in summary["versions"])]


def _version(entry: Mapping[str, Any], names: list[str]) -> list[str]:
    stale = sum(each["staleness"] > 0 for each in entry["contributors"])
    return [
        str(entry["version"]),
        str(len(entry["contributors"])),
        str(stale),
        *_figures(entry, names),
        words.duration(entry["seconds"].get("round", 0.0)),
        words.size(entry["bytes_up"]),
        words.size(entry["bytes_down"]),
    ]


def _figures(entry: Mapping[str, Any], names: list[str]) -> list[str]:
    known = entry["metrics"]["global"]
    return [words.figure(known[name]) if name in known else "" for name in names]


def incidents(summary: Mapping[str, Any]) -> list[str]:
    """What was left out, refused and lost, a line each."""
    refused = [_incident("refused", each, f"{each['code']}: {each['reason']}") for each in summary["refused"]]
    lost = [_incident("lost", each, each["why"]) for each in summary["lost"]]
    declined = [
        f"takes no part: {each['silo']}: {each['code']}: {each['reason']}" for each in summary["declined"]
    ]
    busy = [f"did not join at once: {each['silo']}: {each['reason']}" for each in summary["busy"]]
    left_out = [
        f"quarantined by the data contract: {name}: {_rows(silo['quarantined'])}"
        for name, silo in summary["silos"].items()
        if any(silo["quarantined"].values())
    ]
    return (
        left_out + refused + declined + busy + lost + [_turned_away(each) for each in summary["turned_away"]]
    )


def _rows(by_split: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {split} rows" for split, count in by_split.items() if count)


def _turned_away(each: Mapping[str, Any]) -> str:
    return f"turned away: {each['who']}, {each['times']} times ({each['code']}): {words.one_line(each['reason'])}"


def _incident(what: str, each: Mapping[str, Any], why: str) -> str:
    return f"{what}: {each['silo']} at version {each['version']}: {words.one_line(why)}"
