"""A run on Ray, as the command line holds it: start it, attach to it, follow it, stop it."""

import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray's own default differs between its commands

import ray
from ray.exceptions import GetTimeoutError, RayError

from orchestrator.core.errors import BadInput, CannotGoOn
from orchestrator.driver import Outcome
from orchestrator.job import Job
from orchestrator.store import JournalDamaged, read_journal
from orchestrator.transport.ray_channel import (
    NAMESPACE,
    ROLE_LABEL,
    RayChannel,
    alive_nodes,
    check_nodes,
    labelled_silos,
)
from orchestrator.transport.ray_driver import Assignment, remote_driver

ANSWER_S = 60.0
"""A driver that says nothing for so long, and that Ray does not restart, is gone."""


@dataclass(frozen=True)
class RunOptions:
    """How to start a run."""

    job_file: Path
    silos_dir: Path | None
    """Folder of silo.yaml files: the silos run on this machine. None: each on its own node."""
    runs_dir: Path
    address: str | None
    """A running cluster; None starts Ray on this machine."""
    new: bool
    tracking_uri: str | None
    track: bool = True
    run_id: str | None = None


@dataclass
class RayRun:
    """A run whose driver is a Ray actor."""

    run_id: str
    run_dir: Path
    actor: Any
    _outcome: Outcome | None = field(default=None)

    def events(self, after: int, wait_s: float) -> tuple[list[dict[str, Any]], int]:
        events, cursor = self._ask(self.actor.events.remote(after, wait_s))
        return events, cursor

    def outcome(self) -> Outcome | None:
        if self._outcome is None:
            self._outcome = self._ask(self.actor.outcome.remote())
        return self._outcome

    def stop(self, now: bool = False) -> None:
        self._ask(self.actor.stop.remote(now))

    def close(self) -> None:
        """End the driver's process; its run directory has everything."""
        with suppress(RayError):
            ray.kill(self.actor)

    def _ask(self, reference: Any) -> Any:
        try:
            return ray.get(reference, timeout=ANSWER_S)
        except (RayError, GetTimeoutError) as error:
            raise CannotGoOn(
                f"the driver of {self.run_id} does not answer ({type(error).__name__}); "
                f"'siloray resume {self.run_id}' goes on with the run"
            ) from None


def start(job: Job, options: RunOptions) -> RayRun:
    """Connect to Ray, and start or find the driver of this job's unfinished run, or of a new one."""
    documents = _documents(job, options)
    connect(options.address, len(job.silos))
    if documents is None:
        check_nodes(job.silos)
    run_id = options.run_id or _unfinished(job, options) or _new_id(job)
    run_dir = options.runs_dir / run_id
    code = [str(options.job_file.parent), os.getcwd()] if documents is not None else []
    assignment = Assignment(
        run_id=run_id,
        run_dir=str(run_dir),
        job=job.model_dump_json(),
        documents=documents,
        code=code,
        tracking_uri=options.tracking_uri if options.track else None,
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    RayChannel(
        run_id, job.silos, documents, code
    )  # silos start while the driver does, and it finds them by name
    actor = remote_driver(assignment, NAMESPACE, _driver_placement())
    note = {"address": ray.get_runtime_context().gcs_address}
    (run_dir / "ray.json").write_text(json.dumps(note), encoding="utf-8")
    return RayRun(run_id, run_dir, actor)


def attach(run_dir: Path, address: str | None) -> RayRun:
    """The run whose driver is alive; `BadInput` if none is."""
    run_id = run_dir.name
    where = address or _noted_address(run_dir)
    if where is None or not _listens(where):
        raise BadInput(f"no driver works on {run_id}; 'siloray resume {run_id}' goes on with it")
    connect(where, 0)
    try:
        actor = ray.get_actor(f"driver-{run_id}", namespace=NAMESPACE)
    except ValueError:
        raise BadInput(f"no driver works on {run_id}; 'siloray resume {run_id}' goes on with it") from None
    return RayRun(run_id, run_dir, actor)


@dataclass(frozen=True)
class SiloLine:
    """One silo, as far as its policy lets it be described."""

    name: str
    state: str
    """``online``, ``starting`` or ``away``."""
    node: str
    device: str
    datasets: dict[str, dict[str, int]]


def silos(job: Job | None, address: str | None, silos_dir: Path | None) -> list[SiloLine]:
    """The silos of a folder on this machine, or those of a cluster."""
    if address is None:
        return _silos_here(job, silos_dir)
    connect(address, 0)
    names = sorted(set(job.silos) if job else labelled_silos())
    found = labelled_silos()
    channel = RayChannel("", tuple(name for name in names if name in found), None)
    described = channel.describe(ANSWER_S)
    return [_line(name, described.get(name), "starting" if name in found else "away") for name in names]


def _silos_here(job: Job | None, silos_dir: Path | None) -> list[SiloLine]:
    from silos.configured_site import ConfiguredSite
    from silos.directory import find_silos

    if silos_dir is None:
        raise BadInput("say which silos: a job file, --silos-dir, or --address of a cluster")
    wanted = set(job.silos) if job else None
    found = {name: path for name, path in find_silos(silos_dir).items() if wanted is None or name in wanted}
    here = [_line(name, ConfiguredSite(path).describe(), "online") for name, path in found.items()]
    return here + [_line(name, None, "away") for name in sorted((wanted or set()) - found.keys())]


def _line(name: str, about: dict[str, Any] | None, otherwise: str) -> SiloLine:
    if about is None:
        return SiloLine(name, otherwise, "", "", {})
    return SiloLine(name, "online", about["node"], about["device"], about["datasets"])


def connect(address: str | None, num_silos: int) -> None:
    """Join the cluster at ``address``, or start Ray here: without a dashboard, and with few idle workers."""
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "namespace": NAMESPACE}
    if address is not None:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RayError, ValueError, RuntimeError) as error:
            raise BadInput(
                f"--address {address}: no Ray cluster answers there ({_first_line(error)})"
            ) from None
        return
    ray.init(
        address="local",
        num_cpus=max(1, min(num_silos + 1, os.cpu_count() or 1)),
        include_dashboard=False,
        _temp_dir=os.environ.get("RAY_TMPDIR"),
        **quiet,
    )


def shutdown() -> None:
    """Leave Ray; one that this process started ends."""
    with suppress(Exception):
        ray.shutdown()


def _documents(job: Job, options: RunOptions) -> dict[str, str] | None:
    if options.silos_dir is None:
        return None
    from silos.directory import check_silos

    found = check_silos(options.silos_dir, job.silos, job.task.dataset)
    return {name: str(path.absolute()) for name, path in found.items()}


def _driver_placement() -> dict[str, Any]:
    """On the node that its administrator made the driver's; unpinned, it might land on a silo and write there."""
    roles = {node["Labels"].get(ROLE_LABEL) for node in alive_nodes()}
    return {"label_selector": {ROLE_LABEL: "driver"}} if "driver" in roles else {}


def _new_id(job: Job) -> str:
    return f"{job.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _unfinished(job: Job, options: RunOptions) -> str | None:
    """The newest run of this very job that is not done."""
    if options.new or not options.runs_dir.is_dir():
        return None
    found = [each.parent for each in options.runs_dir.glob("*/journal.jsonl") if _goes_on(each, job.digest)]
    return max(found, key=lambda run: (run / "journal.jsonl").stat().st_mtime).name if found else None


def _goes_on(journal: Path, job_digest: str) -> bool:
    try:
        events = read_journal(journal)[0]
    except (OSError, JournalDamaged):
        return False
    opened = [event for event in events if event["type"] == "run_opened"]
    closed = [event for event in events if event["type"] in ("run_opened", "run_closed")]
    if not opened or opened[-1]["job_digest"] != job_digest:
        return False
    return not (closed[-1]["type"] == "run_closed" and closed[-1]["status"] == "done")


def _noted_address(run_dir: Path) -> str | None:
    try:
        note: Mapping[str, str] = json.loads((run_dir / "ray.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return note.get("address")


def _listens(address: str) -> bool:
    """Whether anything answers: Ray itself would try for half a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto" or not port.isdigit():
        return True
    try:
        with socket.create_connection((host, int(port)), timeout=2):
            return True
    except OSError:
        return False


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
