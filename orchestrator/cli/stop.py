"""``siloray stop``: end a run after the round in hand."""

import time
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import options, run_dirs
from orchestrator.cli.attach import attached

POLL_S = 0.2


def stop(
    run: options.RunName,
    now: Annotated[bool, typer.Option("--now", help="Give the round in hand up.")] = False,
    address: options.Address = None,
    runs_dir: options.AnyRunsDir = None,
) -> None:
    """Ask a run to finish its round, keep it, and end. Waits until it has; Ctrl-C leaves sooner."""
    found = run_dirs.locate(run, address, runs_dir)
    _stop(found.run_dir, address, now, run_dirs.named(found.run_dir.name, address, found.folder))


def _stop(run_dir: Path, address: str | None, now: bool, name: str) -> None:
    with attached(run_dir, address) as run:
        run.stop(now)
        typer.echo(f"{run.run_id} stops {'now' if now else 'after its round'}")
        while (outcome := run.outcome()) is None:
            time.sleep(POLL_S)
        run.close()
        go_on = "" if outcome.status == "done" else f"; go on with 'siloray resume {name}'"
        typer.echo(f"{run.run_id}: {outcome.status}{go_on}")
