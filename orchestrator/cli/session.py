"""A run on the command line, from its start to its exit code."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from orchestrator.at_rest import named_key, store_key
from orchestrator.bucket import checked
from orchestrator.cli import run_dirs
from orchestrator.cli.display import Display
from orchestrator.cli.failures import STOPPED, say
from orchestrator.cli.follow import Interrupt
from orchestrator.cli.run_handle import Run
from orchestrator.core.errors import BadInput
from orchestrator.job import Job

LEAVING_S = 3.0
"""How long the second Ctrl-C waits for the driver to take note."""

JOB_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""So many seconds after ``ray job stop``, Ray kills a job that has it in its environment; any other one after 3."""


@dataclass(frozen=True)
class Command:
    """What ``siloray run`` was asked."""

    job_file: Path
    silos_dir: Path | None
    runs_dir: run_dirs.Folder | None
    """None: what the driver's node of the cluster says."""
    address: str | None
    new: bool
    tracking_uri: str | None
    """None: a database beside the runs of the cluster."""
    track: bool
    run_id: str | None = None
    """The run to go on with; None: that of the submission, or without one the newest unfinished one of this job, or a
    new one."""
    submission: str | None = None
    """The name under which ``siloray submit`` gave this command to the cluster."""
    as_json: bool = False
    detach: bool = False
    checks: bool = True
    """Look at the cluster first, and start nothing if a check fails."""

    def note(self, job: Job) -> dict[str, Any]:
        """What ``resume`` needs to ask the same again, from any folder."""
        return {
            "job_file": str(self.job_file.absolute()),
            "job_digest": job.digest,
            "silos_dir": str(self.silos_dir.absolute()) if self.silos_dir else None,
            "address": self.address,
            "tracking_uri": self.tracking_uri,
            "track": self.track,
        }


def command_of(
    note: Mapping[str, Any],
    *,
    runs_dir: run_dirs.Folder | None,
    run_id: str,
    address: str | None = None,
    **how: bool,
) -> Command:
    """The command that ``note`` was made of, for going on with that very run; on another cluster if it is given."""
    silos_dir = note["silos_dir"]
    return Command(
        job_file=Path(note["job_file"]),
        silos_dir=Path(silos_dir) if silos_dir else None,
        runs_dir=runs_dir,
        address=address or note["address"],
        new=False,
        tracking_uri=note["tracking_uri"],
        track=note["track"],
        run_id=run_id,
        submission=None,
        **how,
    )


def tracking_uri(given: str | None, address: str | None = None) -> str | None:
    """As given, else a file in this folder; the driver runs in another one. A cluster has its own default. Raises
    BadInput."""
    if given is None and address is not None:
        return None
    from tracking.server import absolute

    checked(given or "", run_dirs.TRACKING_PASSWORD)
    run_dirs.check_lasting("--tracking-uri", given or "sqlite:///mlflow.db")
    return absolute(given or "sqlite:///mlflow.db")


def perform(command: Command, job: Job) -> None:
    """Start or continue the run, follow it, and leave with its exit code."""
    _check(command, job)
    try:
        _perform(command, job)
    except (KeyboardInterrupt, SystemExit):  # Ray turns SIGTERM into SystemExit
        say("left; the same command goes on with it")
        raise typer.Exit(STOPPED) from None


def _perform(command: Command, job: Job) -> None:
    began = time.time()
    run = _start(command, job)
    run_dir = command.runs_dir.run_dir(run) if command.runs_dir else run.run_dir
    name = run_dirs.named(run.run_id, command.address, command.runs_dir)
    if command.submission is not None and _is_done(run):
        typer.echo(
            f"{run.run_id} was submitted before and is done; --new submits the job once more", err=True
        )
    elif command.detach:
        typer.echo(f"{run.run_id} runs on; 'siloray watch {name}' shows it, 'siloray stop {name}' ends it")
        return
    raise typer.Exit(attend(run, run_dir, began, command.as_json, command.address is not None, name))


def _is_done(run: Run) -> bool:
    outcome = run.outcome()
    return outcome is not None and outcome.status == "done"


def _check(command: Command, job: Job) -> None:
    """What can be told before anything heavy is imported."""
    if command.detach and command.address is None:
        raise BadInput("--detach needs --address: a Ray that this command starts ends with it")
    if command.address is None:
        store_key()
    else:
        named_key()
    if command.silos_dir is not None:
        from silos.directory import check_silos

        check_silos(command.silos_dir, job.silos, job.datasets)
    elif command.address is None:
        folder = command.job_file.parent / "silos"
        raise BadInput(f"{folder}: no such folder; say with --silos-dir where the silos are")


def _start(command: Command, job: Job) -> Run:
    where = f"the cluster at {command.address}" if command.address else "this machine"
    typer.echo(f"{job.name}: {len(job.silos)} silos on {where}; starting Ray", err=True)
    interrupt = Interrupt()
    interrupt.watch()
    from orchestrator.cli import cluster_checks
    from orchestrator.transport import ray as transport

    options = transport.RunOptions(
        job_file=command.job_file.absolute(),
        silos_dir=command.silos_dir.absolute() if command.silos_dir else None,
        runs_dir=command.runs_dir.there if command.runs_dir else None,
        address=command.address,
        new=command.new,
        run_id=command.run_id,
        submission=command.submission,
        tracking_uri=command.tracking_uri if command.track else None,
        track=command.track,
        notes={run_dirs.COMMAND: run_dirs.command_text(command.note(job))},
    )

    def check() -> None:
        if command.checks and command.address is not None:
            cluster_checks.refuse(job if command.silos_dir is None else None)

    try:
        return transport.start(job, options, interrupt.watch, check)
    except BaseException:
        transport.shutdown()
        raise


def attend(
    run: Run, run_dir: Path, began: float, as_json: bool, outlives: bool = False, name: str | None = None
) -> int:
    """Follow a run that this command answers for; its exit code. ``run_dir``: its directory on the driver's machine.
    ``outlives``: its driver would go on without this command. ``name``: see `conclude`."""
    from orchestrator.cli.ending import conclude
    from orchestrator.cli.follow import LeftAtOnce, follow
    from orchestrator.transport import ray as transport

    def ask_to_stop(show: Display) -> None:
        run.stop(within_s=_grace_s())
        show.tell("stopping after this round; again to leave at once")

    try:
        followed = follow(run, as_json, ask_to_stop, since=began)
        conclude(run_dir, followed.outcome, followed.durable, as_json, name)
        run.close()
        return followed.outcome.exit_code
    except LeftAtOnce:
        _leave(run, name or run.run_id)
        return STOPPED
    except KeyboardInterrupt:  # it came while the run started
        if outlives:
            run.stop(now=True)
        raise
    finally:
        transport.shutdown()


def _grace_s() -> float | None:
    """How long the round in hand may take after SIGTERM, in a job that Ray will kill when it does not end in time."""
    try:
        return max(1.0, float(os.environ[JOB_STOP_WAIT]) - LEAVING_S)
    except (KeyError, ValueError):
        return None


def _leave(run: Run, name: str) -> None:
    """Give the round in hand up. What was committed stays, so that the run can go on."""
    run.stop(now=True)
    until = time.monotonic() + LEAVING_S
    while run.outcome() is None and time.monotonic() < until:
        time.sleep(0.05)
    typer.echo(f"left at once; go on with 'siloray resume {name}'", err=True)
