"""``siloray resume``: go on with a run that was stopped or interrupted."""

from typing import Annotated

import typer

from orchestrator.cli import options, run_dirs
from orchestrator.core.errors import BadInput


def resume(
    run: options.RunName,
    runs_dir: options.RunsDir = options.RUNS_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="One event per line, as JSON.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Leave once it has started.")] = False,
) -> None:
    """Go on with an unfinished run, as it was started."""
    run_dir = run_dirs.find(runs_dir, run)
    note = run_dirs.read_command(run_dir)
    from orchestrator.cli import jobs, session
    from orchestrator.summary import read_summary

    if read_summary(run_dir)["status"] == "done":
        raise BadInput(f"{run_dir.name} is done; 'siloray show {run_dir.name}' tells what it came to")
    command = session.command_of(note, runs_dir, run_dir.name, as_json, detach)
    job = jobs.read(command.job_file)
    if job.digest != note["job_digest"]:
        changed = f"{command.job_file} is no longer the job of {run_dir.name}"
        raise BadInput(f"{changed}; 'siloray run' starts a new run of it")
    session.perform(command, job)
