"""``siloray validate``: is this job in order?"""

import typer

from orchestrator.cli.options import JobFile


def validate(job: JobFile) -> None:
    """Check a job document and say what it asks for. Nothing is started."""
    from orchestrator.cli.jobs import read, told
    from orchestrator.core.spent import spent
    from orchestrator.silo_privacy import MULTIPLIER, SiloPrivacy

    document = read(job)
    typer.echo(told(document))
    planned = SiloPrivacy(document).planned()
    if planned:
        typer.echo(
            f"privacy spent by a silo in all {document.rounds.total} versions: {spent(planned)}, with noise multiplier "
            f"{planned[MULTIPLIER]:.4g}"
        )
