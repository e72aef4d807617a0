"""A run on the command line, from its start to its exit code."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from orchestrator.cli import run_dirs
from orchestrator.cli.display import Display
from orchestrator.cli.failures import STOPPED, say
from orchestrator.cli.follow import Interrupt
from orchestrator.cli.run_handle import Run
from orchestrator.core.errors import BadInput
from orchestrator.job import Job

LEAVING_S = 3.0
"""How long the second Ctrl-C waits for the driver to take note."""


@dataclass(frozen=True)
class Command:
    """What ``siloray run`` was asked."""

    job_file: Path
    silos_dir: Path | None
    runs_dir: Path
    address: str | None
    new: bool
    tracking_uri: str
    track: bool
    run_id: str | None = None
    """The run to go on with; None: the newest unfinished one of this job, or a new one."""
    as_json: bool = False
    detach: bool = False

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


def command_of(note: Mapping[str, Any], runs_dir: Path, run_id: str, as_json: bool, detach: bool) -> Command:
    """The command that ``note`` was made of, for going on with that very run."""
    silos_dir = note["silos_dir"]
    return Command(
        job_file=Path(note["job_file"]),
        silos_dir=Path(silos_dir) if silos_dir else None,
        runs_dir=runs_dir,
        address=note["address"],
        new=False,
        tracking_uri=note["tracking_uri"],
        track=note["track"],
        run_id=run_id,
        as_json=as_json,
        detach=detach,
    )


def tracking_uri(given: str | None) -> str:
    """As given, else a file in this folder; the driver runs in another one."""
    from tracking.server import absolute

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
    run_dir = command.runs_dir / run.run_id
    run_dirs.note_command(run_dir, command.note(job))
    if command.detach:
        run_id = run.run_id
        typer.echo(f"{run_id} runs on; 'siloray watch {run_id}' shows it, 'siloray stop {run_id}' ends it")
        return
    raise typer.Exit(attend(run, run_dir, began, command.as_json))


def _check(command: Command, job: Job) -> None:
    """What can be told before anything heavy is imported."""
    if command.detach and command.address is None:
        raise BadInput("--detach needs --address: a Ray that this command starts ends with it")
    if command.silos_dir is not None:
        from silos.directory import check_silos

        check_silos(command.silos_dir, job.silos, job.task.dataset)
    elif command.address is None:
        folder = command.job_file.parent / "silos"
        raise BadInput(f"{folder}: no such folder; say with --silos-dir where the silos are")


def _start(command: Command, job: Job) -> Run:
    where = f"the cluster at {command.address}" if command.address else "this machine"
    typer.echo(f"{job.name}: {len(job.silos)} silos on {where}; starting Ray", err=True)
    interrupt = Interrupt()
    interrupt.watch()
    from orchestrator.transport import ray as transport

    options = transport.RunOptions(
        job_file=command.job_file.absolute(),
        silos_dir=command.silos_dir.absolute() if command.silos_dir else None,
        runs_dir=command.runs_dir.absolute(),
        address=command.address,
        new=command.new,
        run_id=command.run_id,
        tracking_uri=command.tracking_uri if command.track else None,
        track=command.track,
    )
    try:
        return transport.start(job, options, connected=interrupt.watch)
    except BaseException:
        transport.shutdown()
        raise


def attend(run: Run, run_dir: Path, began: float, as_json: bool) -> int:
    """Follow a run that this command answers for; its exit code. ``run_dir``: its directory here."""
    from orchestrator.cli.ending import conclude
    from orchestrator.cli.follow import LeftAtOnce, follow
    from orchestrator.transport import ray as transport

    def ask_to_stop(show: Display) -> None:
        run.stop()
        show.tell("stopping after this round; again to leave at once")

    try:
        followed = follow(run, as_json, ask_to_stop, since=began)
        conclude(run_dir, followed.outcome, followed.durable, as_json)
        run.close()
        return followed.outcome.exit_code
    except LeftAtOnce:
        _leave(run)
        return STOPPED
    finally:
        transport.shutdown()


def _leave(run: Run) -> None:
    """Give the round in hand up. What was committed stays, so that the run can go on."""
    run.stop(now=True)
    until = time.monotonic() + LEAVING_S
    while run.outcome() is None and time.monotonic() < until:
        time.sleep(0.05)
    typer.echo(f"left at once; go on with 'siloray resume {run.run_id}'", err=True)
