"""``siloray silos``: who is online, and where."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import options
from orchestrator.cli.run_handle import SiloLine


def silos(
    job: Annotated[Path | None, typer.Argument(metavar="[JOB]", help="Only this job's silos.")] = None,
    address: options.Address = None,
    silos_dir: options.SilosDir = None,
    as_json: options.AsJson = False,
) -> None:
    """List silos: online or away, on which node, and the data set sizes that their policies let out."""
    lines = _ask(job, address, silos_dir or _beside(job, address))
    if as_json:
        typer.echo(json.dumps([_plain(line) for line in lines]))
    elif lines:
        _print(lines)
    else:
        typer.echo("no silos; 'siloray run' starts those of a job, 'ray up cluster.yaml' those of a cluster")


def _ask(job: Path | None, address: str | None, silos_dir: Path | None) -> Sequence[SiloLine]:
    from orchestrator.cli import jobs

    asked = jobs.read(job) if job else None
    from orchestrator.transport import ray as transport

    try:
        return transport.silos(asked, address, silos_dir)
    finally:
        transport.shutdown()


def _beside(job: Path | None, address: str | None) -> Path | None:
    folder = job.parent / "silos" if job and address is None else None
    return folder if folder and folder.is_dir() else None


def _plain(line: SiloLine) -> dict[str, object]:
    return {
        "name": line.name,
        "state": line.state,
        "node": line.node,
        "device": line.device,
        "datasets": {name: dict(rows) for name, rows in line.datasets.items()},
    }


def _print(lines: Sequence[SiloLine]) -> None:
    from orchestrator.cli.tables import print_table

    rows = [[each.name, each.state, each.node, each.device, _sizes(each)] for each in lines]
    print_table(["silo", "state", "node", "device", "data sets"], rows)


def _sizes(line: SiloLine) -> str:
    if not line.datasets:
        return "kept private" if line.state == "online" else ""
    return "; ".join(f"{name}: {_rows(rows)}" for name, rows in line.datasets.items())


def _rows(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in rows.items()) or "size kept private"
