"""``siloray schema``: the JSON schema of ``job.yaml``, for editors and other programs."""

import json

import typer


def schema() -> None:
    """Print the JSON schema of job.yaml."""
    from orchestrator.job import json_schema

    typer.echo(json.dumps(json_schema(), indent=1))
