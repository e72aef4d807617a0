"""``siloray serve``: drive a job whose silos dial in from their own organisations."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli import options, run_dirs
from orchestrator.core.endpoint import endpoint
from orchestrator.core.errors import BadInput

if TYPE_CHECKING:
    from orchestrator.cli.display import Display
    from orchestrator.cli.run_handle import Run
    from orchestrator.job import Job
    from orchestrator.transport.served import Door

LEAVING_S = 3.0
"""How long the second Ctrl-C waits for the driver to take note."""
STOPPED = 3


def serve(
    job: options.JobFile,
    credentials: Annotated[
        Path, typer.Option(help="The driver's folder, as 'siloray certs' made it.", file_okay=False)
    ] = Path("certs/driver"),
    listen: Annotated[
        str, typer.Option(help="HOST:PORT. 0.0.0.0 opens it to the network.")
    ] = "127.0.0.1:8815",
    address: Annotated[
        str | None, typer.Option(help="The driver's own Ray cluster, on which it then survives this command.")
    ] = None,
    runs_dir: options.AnyRunsDir = None,
    new: Annotated[bool, typer.Option("--new", help="Start another run even if one is unfinished.")] = False,
    tracking_uri: Annotated[
        str | None,
        typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow to write to; default: sqlite:///mlflow.db"),
    ] = None,
    no_track: Annotated[bool, typer.Option("--no-track", help="Write nothing to MLflow.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Drive a job with silos that dial in over mutual TLS ('siloray agent'). The same command goes on with it.

    Ctrl-C stops after the round in hand, a second Ctrl-C at once.
    Exit codes: 0 done, 2 bad input, 3 stopped, 4 could not go on.
    """
    from orchestrator.cli import jobs, session

    listener(listen)
    wish = Wish(
        job_file=job.absolute(),
        listen=listen,
        credentials=credentials.absolute(),
        address=address,
        runs_dir=runs_dir,
        tracking_uri=session.tracking_uri(tracking_uri, address),
        track=not no_track,
        new=new,
        as_json=as_json,
    )
    raise typer.Exit(perform(wish, jobs.read(job)))


@dataclass(frozen=True)
class Wish:
    """What ``siloray serve`` was asked."""

    job_file: Path
    listen: str
    credentials: Path
    address: str | None
    runs_dir: run_dirs.Folder | None
    tracking_uri: str | None
    track: bool
    new: bool = False
    run_id: str | None = None
    as_json: bool = False

    def note(self, job: "Job") -> str:
        """What ``resume`` needs to ask the same again, from any folder."""
        return run_dirs.command_text(
            {
                "job_file": str(self.job_file),
                "job_digest": job.digest,
                "silos_dir": None,
                "address": self.address,
                "tracking_uri": self.tracking_uri,
                "track": self.track,
                "listen": self.listen,
                "credentials": str(self.credentials),
            }
        )


def again(
    note: Mapping[str, Any],
    job: "Job",
    runs_dir: run_dirs.Folder | None,
    run_id: str,
    as_json: bool,
    address: str | None = None,
) -> int:
    """Go on with a served run as ``note`` says it was started."""
    wish = Wish(
        job_file=Path(note["job_file"]),
        listen=note["listen"],
        credentials=Path(note["credentials"]),
        address=address or note["address"],
        runs_dir=runs_dir,
        tracking_uri=note["tracking_uri"],
        track=note["track"],
        run_id=run_id,
        as_json=as_json,
    )
    return perform(wish, job)


def perform(wish: Wish, job: "Job") -> int:
    """Drive the run until it ends; the exit code."""
    began, on_ray = time.time(), wish.address is not None
    run = _on_ray(wish, job) if on_ray else _here(wish, job)
    typer.echo(f"{job.name}: waiting for {len(job.silos)} silos at {wish.listen}", err=True)
    run_dir = wish.runs_dir.run_dir(run) if wish.runs_dir else run.run_dir
    name = run_dirs.named(run.run_id, wish.address, wish.runs_dir)
    if on_ray:
        from orchestrator.cli import session

        return session.attend(run, run_dir, began, wish.as_json, outlives=True, name=name)
    return _attend(run, run_dir, began, wish.as_json, name)


def _here(wish: Wish, job: "Job") -> "Run":
    from orchestrator.transport import served

    return served.start(
        job,
        _door(wish),
        (wish.runs_dir or run_dirs.HERE).there,
        wish.tracking_uri if wish.track else None,
        {run_dirs.COMMAND: wish.note(job)},
        wish.new,
        wish.run_id,
        wish.job_file.parent,
    )


def _on_ray(wish: Wish, job: "Job") -> "Run":
    """The driver as an actor on its own cluster; it listens on the driver's node."""
    from orchestrator.transport import ray as transport

    chosen = transport.RunOptions(
        job_file=wish.job_file,
        silos_dir=None,
        runs_dir=wish.runs_dir.there if wish.runs_dir else None,
        address=wish.address,
        new=wish.new,
        tracking_uri=wish.tracking_uri if wish.track else None,
        track=wish.track,
        run_id=wish.run_id,
        door=_door(wish),
        notes={run_dirs.COMMAND: wish.note(job)},
    )
    try:
        return transport.start(job, chosen)
    except BaseException:
        transport.shutdown()
        raise


def _door(wish: Wish) -> "Door":
    from orchestrator.transport.served import Door

    host, port = listener(wish.listen)
    return Door(host, port, str(wish.credentials))


def listener(text: str) -> tuple[str, int]:
    """Host and port."""
    try:
        return endpoint(text)
    except ValueError as error:
        raise BadInput(f"--listen {text}: {error}") from None


def _attend(run: "Run", run_dir: Path, began: float, as_json: bool, name: str) -> int:
    from orchestrator.cli.ending import conclude
    from orchestrator.cli.follow import LeftAtOnce, follow

    def ask_to_stop(show: "Display") -> None:
        run.stop()
        show.tell("stopping after this round; again to leave at once")

    try:
        followed = follow(run, as_json, ask_to_stop, since=began)
    except LeftAtOnce:
        _leave(run)
        return STOPPED
    conclude(run_dir, followed.outcome, followed.durable, as_json, name)
    return followed.outcome.exit_code


def _leave(run: "Run") -> None:
    """Give the round in hand up. What was committed stays, so that the run can go on."""
    run.stop(now=True)
    until = time.monotonic() + LEAVING_S
    while run.outcome() is None and time.monotonic() < until:
        time.sleep(0.05)
    typer.echo("left at once; the same command goes on with it", err=True)
