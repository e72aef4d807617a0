"""``siloray run``: start a job, or go on with an unfinished run of it."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import options, run_dirs


def run(
    job: options.JobFile,
    address: options.Address = None,
    silos_dir: options.SilosDir = None,
    runs_dir: options.AnyRunsDir = None,
    new: Annotated[bool, typer.Option("--new", help="Start another run even if one is unfinished.")] = False,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            envvar="MLFLOW_TRACKING_URI",
            help="MLflow to write to; default: sqlite:///mlflow.db, on a cluster beside the runs.",
        ),
    ] = None,
    no_track: Annotated[bool, typer.Option("--no-track", help="Write nothing to MLflow.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One event per line, as JSON.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Leave once started; needs --address.")] = False,
    no_checks: options.NoChecks = False,
    submission: Annotated[
        str | None, typer.Option(hidden=True, help="Go on with the run that had this word, or start one.")
    ] = None,
) -> None:
    """Train a model as the job says. The same command again goes on with an unfinished run.

    Ctrl-C stops after the round in hand, a second Ctrl-C at once; either way the run can be resumed.
    Exit codes: 0 done, 2 bad input, 3 stopped, 4 could not go on.
    """
    from orchestrator.cli import jobs, session

    command = session.Command(
        job_file=job,
        silos_dir=silos_dir or _beside(job, address),
        runs_dir=runs_dir or (run_dirs.HERE if address is None else None),
        address=address,
        new=new,
        tracking_uri=session.tracking_uri(tracking_uri, address),
        track=not no_track,
        as_json=as_json,
        detach=detach,
        checks=not no_checks,
        submission=submission,
    )
    session.perform(command, jobs.read(job))


def _beside(job: Path, address: str | None) -> Path | None:
    """Silos on this machine lie in ``silos/`` beside the job, if nothing else is said."""
    folder = job.parent / "silos"
    return folder if address is None and folder.is_dir() else None
