"""``siloray resume``: go on with a run that was stopped or interrupted."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options, run_dirs
from orchestrator.cli.run_dirs import Folder, named
from orchestrator.core.errors import BadInput

if TYPE_CHECKING:
    from orchestrator.job import Job


def resume(
    run: options.RunName,
    address: options.Address = None,
    runs_dir: options.AnyRunsDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="One event per line, as JSON.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Leave once it has started.")] = False,
    no_checks: options.NoChecks = False,
) -> None:
    """Go on with an unfinished run, as it was started; with --address, from any machine of that cluster."""
    found = run_dirs.locate(run, address, runs_dir)
    run_dir, folder = found.run_dir, found.folder
    record = _record(run_dir, address)
    from orchestrator.cli import session

    if record.done:
        name, where = named(run_dir.name, None, Folder(str(run_dir.parent))), " there" if address else ""
        raise BadInput(f"{run_dir.name} is done; 'siloray show {name}'{where} tells what it came to")
    if "listen" in record.command:
        from orchestrator.cli import serve

        job = _job(record, Path(record.command["job_file"]), run_dir.name)
        raise typer.Exit(serve.again(record.command, job, folder, run_dir.name, as_json, address))
    command = session.command_of(
        record.command,
        runs_dir=folder,
        run_id=run_dir.name,
        address=address,
        as_json=as_json,
        detach=detach,
        checks=not no_checks,
    )
    session.perform(command, _job(record, command.job_file, run_dir.name))


def _record(run_dir: Path, address: str | None) -> run_dirs.Record:
    if address is None:
        return run_dirs.read_record(str(run_dir))
    from orchestrator.transport import ray as transport

    return transport.on_driver_node(run_dirs.read_record, str(run_dir))


def _job(record: run_dirs.Record, job_file: Path, run_id: str) -> "Job":
    """The job from its file, or where that has gone (a submitted job's folder is deleted) as the run recorded it."""
    from orchestrator.cli import jobs
    from orchestrator.job import Job

    recorded = record.job is not None and not job_file.exists()
    job = Job.model_validate(json.loads(record.job or "")) if recorded else jobs.read(job_file)
    if job.digest != record.command["job_digest"]:
        where = f"job.json of {run_id}" if recorded else str(job_file)
        raise BadInput(f"{where} is no longer the job of {run_id}; 'siloray run' starts a new run of it")
    return job
