"""Reading the job document for a command."""

from pathlib import Path

import typer

from orchestrator.core.printable import printable
from orchestrator.job import Job, load_job
from orchestrator.legality import warnings


def read(path: Path) -> Job:
    """The job, its warnings on standard error; `BadInput` in one line when it is wrong."""
    job = load_job(path)
    for warning in warnings(job):
        typer.echo(f"warning: {printable(warning)}", err=True)
    return job


def told(job: Job) -> str:
    """The job in one line."""
    rounds = f"{job.rounds.total} {job.rounds.mode} rounds"
    asks = f"{len(job.silos)} silos, {rounds}, {job.strategy.name}"
    return f"{job.name}: {asks}; valid, digest {job.digest[:12]}"
