"""``siloray watch``: look at a run that another command started."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from orchestrator.cli import options, run_dirs

if TYPE_CHECKING:
    from orchestrator.cli.display import Display


def watch(
    run: options.RunName,
    address: options.Address = None,
    runs_dir: options.RunsDir = options.RUNS_DIR,
    as_json: options.AsJson = False,
) -> None:
    """Show a run while it goes on. Ctrl-C leaves; the run goes on. Exits as 'siloray run' does."""
    run_dir = run_dirs.find(runs_dir, run)
    raise typer.Exit(_watch(run_dir, address, as_json))


def _watch(run_dir: Path, address: str | None, as_json: bool) -> int:
    from orchestrator.cli.ending import conclude
    from orchestrator.cli.follow import LeftAtOnce, follow
    from orchestrator.transport import ray as transport

    try:
        followed = follow(transport.attach(run_dir, address), as_json, _leave)
        conclude(run_dir, followed.outcome, followed.durable, as_json)
        return followed.outcome.exit_code
    except LeftAtOnce:
        typer.echo(f"{run_dir.name} goes on; 'siloray stop {run_dir.name}' ends it", err=True)
        return 0
    finally:
        transport.shutdown()


def _leave(show: "Display") -> None:
    from orchestrator.cli.follow import LeftAtOnce

    raise LeftAtOnce
