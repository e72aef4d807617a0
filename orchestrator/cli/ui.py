"""``siloray ui``: the MLflow pages of the runs, on this machine."""

from typing import Annotated

import typer

from orchestrator.cli import options, run_dirs


def ui(
    runs_dir: options.RunsDir = options.RUNS_DIR,
    tracking_uri: Annotated[
        str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow to show; default: sqlite:///mlflow.db")
    ] = None,
    port: Annotated[int, typer.Option(help="On loopback only.", min=1, max=65535)] = 5000,
) -> None:
    """Serve the MLflow pages on this machine, and print the page of the last run."""
    known = run_dirs.ids(runs_dir)
    from tracking.server import absolute
    from tracking.ui import serve

    last = runs_dir / known[-1] if known else None
    raise typer.Exit(serve(absolute(tracking_uri or "sqlite:///mlflow.db"), port, last))
