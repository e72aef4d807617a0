"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import run_dirs

RUNS_DIR = run_dirs.RUNS_DIR

JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="The job document (job.yaml).")]
RunsDir = Annotated[Path, typer.Option(help="Folder that holds the run directories.", file_okay=False)]
SeenRunsDir = Annotated[
    run_dirs.Folder | None,
    typer.Option(
        "--runs-dir",
        metavar="FOLDER",
        parser=run_dirs.Folder,
        help="Folder that holds the run directories: 'runs' here, or a URI in a store (s3://bucket/runs).",
    ),
]
AnyRunsDir = Annotated[
    run_dirs.Folder | None,
    typer.Option(
        "--runs-dir",
        metavar="FOLDER",
        parser=run_dirs.Folder,
        help="Folder that holds the run directories: 'runs' here; with --address a folder of the driver's node, "
        "where the default is what SILORAY_RUNS says there, else ~/siloray/runs. Or a URI in a store "
        "(s3://bucket/runs).",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        envvar="RAY_ADDRESS",
        help="A Ray cluster to use, 'auto' or host:port; without one, Ray starts on this machine.",
    ),
]
NoChecks = Annotated[
    bool,
    typer.Option("--no-checks", help="Start even if a check of the cluster fails; see 'siloray doctor'."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
SiloDocument = Annotated[
    Path | None,
    typer.Option(
        "--silo", help="The silo's document; default: this node's.", envvar="SILORAY_SILO", dir_okay=False
    ),
]
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
