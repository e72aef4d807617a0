"""Runs on Ray, as the command line asks for them: start one or find it, attach to it, look at the cluster."""

from orchestrator.transport import ray_settings  # noqa: F401

# isort: split
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import ray
from ray.exceptions import GetTimeoutError, RayError

from orchestrator.at_rest import named_key
from orchestrator.bucket import child
from orchestrator.core.errors import CannotGoOn
from orchestrator.job import Job
from orchestrator.lease import has_driver
from orchestrator.transport.driver_process import Assignment
from orchestrator.transport.ray_channel import NAMESPACE, RayChannel, check_nodes
from orchestrator.transport.ray_connection import cluster_address, connect, dashboard_url, listens, shutdown
from orchestrator.transport.ray_driver import remote_driver
from orchestrator.transport.ray_home import ANSWER_S, driver_name, on_driver_node, placement
from orchestrator.transport.ray_run import DoneRun, RayRun, attach, drivers, runs_dir_of
from orchestrator.transport.ray_silos import SiloLine, silos
from orchestrator.transport.served import Door
from orchestrator.transport.started_runs import (
    SUBMISSION,
    Place,
    new_id,
    noted_address,
    place,
    submission_note,
)
from silos.weights import check

__all__ = [
    "DoneRun",
    "RayRun",
    "RunOptions",
    "SiloLine",
    "attach",
    "connect",
    "dashboard_url",
    "drivers",
    "on_driver_node",
    "runs_dir_of",
    "shutdown",
    "silos",
    "start",
]

ORPHAN_S = 15.0
"""A driver ends so soon after its Ray was killed."""


@dataclass(frozen=True)
class RunOptions:
    """How to start a run."""

    job_file: Path
    silos_dir: Path | None
    """Folder of silo.yaml files: the silos run on this machine. None: each on its own node."""
    runs_dir: Path | str | None
    """On the driver's node, or a URI in a store. None: what that node says, see `started_runs.runs_folder`."""
    address: str | None
    """A running cluster; None starts Ray on this machine."""
    new: bool
    tracking_uri: str | None
    """None, on a cluster: a database beside the runs."""
    track: bool = True
    run_id: str | None = None
    submission: str | None = None
    """Of several commands with the same one, the first makes a run and the others go on with it. None: with the
    unfinished run of this job."""
    door: Door | None = None
    """Silos dial in there, on the driver's node."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Small files for the run directory: name and text."""


def _nothing() -> None:
    pass


def start(
    job: Job,
    options: RunOptions,
    connected: Callable[[], None] = _nothing,
    begins: Callable[[], None] = _nothing,
) -> RayRun | DoneRun:
    """Connect to Ray, and start or find the driver of this job's unfinished run, or of a new one. ``connected`` is
    called as soon as Ray is there, ``begins`` before anything is started on it."""
    documents = _documents(job, options)
    found = _connect(job, options, connected)
    if found.done is not None and found.run_id is not None:
        return DoneRun(found.run_id, Path(found.folder) / found.run_id, found.done)
    begins()
    if documents is None and options.door is None:
        check_nodes(job.silos)
    run_id = found.run_id or new_id(job)
    assignment = _assignment(job, options, run_id, found, documents)
    if options.door is None:  # silos start while the driver does, and it finds them by name
        RayChannel(run_id, job.silos, documents, assignment.code)
    _dismiss_finished(run_id)
    actor = remote_driver(assignment, NAMESPACE, placement())
    runs_dir = str(options.runs_dir) if options.runs_dir and options.address else None
    return RayRun(run_id, Path(assignment.run_dir), actor, found.num_opened, options.address, runs_dir)


def _connect(job: Job, options: RunOptions, connected: Callable[[], None]) -> Place:
    """Join Ray or start it, and look which run to go on with: before, if that needs no cluster."""
    asked = (
        str(options.runs_dir) if options.runs_dir else None,
        None if options.new else job.digest,
        options.run_id,
        options.submission,
    )
    if options.address is None:
        found = place(*asked)
        if found.run_id is not None:
            _refuse_if_running(Path(found.folder) / found.run_id)
        check(job, Path(found.folder), found.run_id, options.job_file.parent)
    connect(options.address, len(job.silos))
    connected()
    if options.address is None:
        return found
    found = on_driver_node(place, *asked)
    if found.run_id is not None or options.submission is None:
        return found
    return _begun(options.submission) or found


def _begun(submission: str) -> Place | None:
    """The run of this submission, if its driver has no directory yet, or one in another folder."""
    for run_id, assignment in drivers().items():
        if assignment.notes.get(SUBMISSION) == submission_note(submission):
            folder = str(Path(assignment.run_dir).parent)
            return Place(folder, run_id, 0, runs_dir_of(assignment) if assignment.mirror else None)
    return None


def _assignment(
    job: Job, options: RunOptions, run_id: str, found: Place, documents: dict[str, str] | None
) -> Assignment:
    folder = Path(found.folder)
    notes = {**options.notes, "ray.json": json.dumps({"address": cluster_address()})}
    if options.submission is not None:
        notes[SUBMISSION] = submission_note(options.submission)
    return Assignment(
        run_id=run_id,
        run_dir=str(folder / run_id),
        job=job.model_dump_json(),
        documents=documents,
        code=[str(options.job_file.parent), str(Path.cwd())] if documents is not None else [],
        tracking_uri=_tracking_uri(options, folder),
        folder=str(options.job_file.parent.absolute()),
        door=asdict(options.door) if options.door else None,
        mirror=child(found.store, run_id) if found.store else None,
        notes=notes,
        store_key=named_key(),
    )


def _tracking_uri(options: RunOptions, folder: Path) -> str | None:
    if not options.track:
        return None
    if options.tracking_uri is None and options.address is not None:
        return f"sqlite:///{folder.parent}/mlflow.db"
    return options.tracking_uri


def _dismiss_finished(run_id: str) -> None:
    """A driver that has ended an earlier part of this run, and that nobody has let go, is in the way."""
    with suppress(ValueError, RayError, GetTimeoutError):
        actor = ray.get_actor(driver_name(run_id), namespace=NAMESPACE)
        if ray.get(actor.outcome.remote(), timeout=ANSWER_S) is not None:
            ray.kill(actor)


def _refuse_if_running(run_dir: Path) -> None:
    """Another command's Ray has the driver of this run; one whose Ray was killed is waited for until it ends."""
    until = time.monotonic() + ORPHAN_S
    while has_driver(run_dir):
        where = noted_address(run_dir)
        if time.monotonic() > until or (where is not None and listens(where)):
            name = run_dir.name
            raise CannotGoOn(
                f"{name} is running: 'siloray watch {name}' shows it, 'siloray stop {name}' ends it"
            )
        time.sleep(0.2)


def _documents(job: Job, options: RunOptions) -> dict[str, str] | None:
    if options.silos_dir is None:
        return None
    from silos.directory import check_silos

    found = check_silos(options.silos_dir, job.silos, job.datasets)
    return {name: str(path.absolute()) for name, path in found.items()}
