"""``siloray validate``: is this job in order?"""

import typer

from orchestrator.cli.options import JobFile


def validate(job: JobFile) -> None:
    """Check a job document and say what it asks for. Nothing is started."""
    from orchestrator.cli.jobs import read, told

    typer.echo(told(read(job)))
