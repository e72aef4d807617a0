"""``siloray watch``: look at a run that another command started."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from orchestrator.cli import options, run_dirs
from orchestrator.cli.attach import attached

if TYPE_CHECKING:
    from orchestrator.cli.display import Display


def watch(
    run: options.RunName,
    address: options.Address = None,
    runs_dir: options.AnyRunsDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Show a run while it goes on. Ctrl-C leaves; the run goes on. Exits as 'siloray run' does."""
    found = run_dirs.locate(run, address, runs_dir)
    name = run_dirs.named(found.run_dir.name, address, found.folder)
    raise typer.Exit(_watch(found.run_dir, address, as_json, name))


def _watch(run_dir: Path, address: str | None, as_json: bool, name: str) -> int:
    from orchestrator.cli.ending import conclude
    from orchestrator.cli.follow import LeftAtOnce, follow

    with attached(run_dir, address) as run:
        try:
            followed = follow(run, as_json, _leave)
        except LeftAtOnce:
            typer.echo(f"{run_dir.name} goes on; 'siloray stop {name}' ends it", err=True)
            return 0
        conclude(run_dir, followed.outcome, followed.durable, as_json, name)
        return followed.outcome.exit_code


def _leave(show: "Display") -> None:
    from orchestrator.cli.follow import LeftAtOnce

    raise LeftAtOnce
