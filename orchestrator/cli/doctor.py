"""``siloray doctor``: is everything there that a run needs?"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options, run_dirs

if TYPE_CHECKING:
    from orchestrator.cli.checks import Check

_COLOURS = {"pass": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED, "note": None}


def doctor(
    job: Annotated[
        Path | None, typer.Argument(metavar="[JOB]", help="The job whose silos are to be there.")
    ] = None,
    address: options.Address = None,
    runs_dir: options.AnyRunsDir = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            envvar="MLFLOW_TRACKING_URI",
            help="MLflow to look at; default: sqlite:///mlflow.db, on a cluster beside the runs.",
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Check this machine, and with --address a cluster: its nodes, where the runs are kept, whether silos can open
    their data and, with a JOB, would take it. Exits with 1 if something must be mended."""
    checks = _show(_checks(job, address, runs_dir, tracking_uri), as_json)
    if any(each.level == "fail" for each in checks):
        raise typer.Exit(1)


def _checks(
    job: Path | None, address: str | None, runs_dir: run_dirs.Folder | None, tracking_uri: str | None
) -> Iterator["Check"]:
    from orchestrator.cli import checks, cluster_checks, jobs, session

    asked = jobs.read(job) if job else None
    yield from checks.this_machine(address is not None)
    if address is not None:
        uri = session.tracking_uri(tracking_uri, address)
        yield from cluster_checks.cluster(address, asked, run_dirs.absolute(runs_dir), uri)
    else:
        yield from checks.runs_here(runs_dir or run_dirs.HERE, str(session.tracking_uri(tracking_uri)))


def _show(checks: Iterable["Check"], as_json: bool) -> list["Check"]:
    """Each as soon as it is known."""
    seen = []
    for each in checks:
        seen.append(each)
        if not as_json:
            _line(each)
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in seen]))
    return seen


def _line(check: "Check") -> None:
    typer.secho(check.level, fg=_COLOURS[check.level], nl=False)
    typer.echo(f"  {check.what}: {check.found}")
    if check.remedy:
        typer.echo(f"      {check.remedy}")
