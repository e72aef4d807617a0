"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import run_dirs

RUNS_DIR = Path("runs")

JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="The job document (job.yaml).")]
RunsDir = Annotated[Path, typer.Option(help="Folder that holds the run directories.", file_okay=False)]
Address = Annotated[
    str | None,
    typer.Option(
        envvar="RAY_ADDRESS",
        help="A Ray cluster to use, 'auto' or host:port; without one, Ray starts on this machine.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
SilosDir = Annotated[
    Path | None,
    typer.Option(help="Folder with the silo.yaml files of silos here.", exists=True, file_okay=False),
]


def _complete(incomplete: str) -> list[str]:
    return [name for name in (*run_dirs.ids(RUNS_DIR), "last") if name.startswith(incomplete)]


RunName = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run id, the start of one, or 'last'.", autocompletion=_complete),
]
