"""A run on Ray, as the command line holds it: start it, attach to it, follow it, stop it."""

import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray's own default differs between its commands
# Under `uv run`, Ray would start every worker that way, and build its environment anew.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# Ray would run silos at low priority, where the tracking follower (lower still) would take a third of their time.
os.environ.setdefault("RAY_worker_niceness", "0")
# Small models and updates go with the message instead of through the object store: half the time per call.
os.environ.setdefault("RAY_max_direct_call_object_size", str(2 << 20))
os.environ.setdefault("RAY_put_small_object_in_memory_store", "1")
# A freed model or update gives its memory to the next one at once; Ray would collect a second's worth, and every
# round would write into fresh pages (half of a round's time at 86 million parameters).
os.environ.setdefault("RAY_free_objects_period_milliseconds", "0")

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError

from orchestrator.core.errors import BadInput, CannotGoOn
from orchestrator.disk import put
from orchestrator.ending import Outcome
from orchestrator.job import Job
from orchestrator.lease import has_driver
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

LOOK_S = 2.0
"""A wait for the driver looks so often whether Ray is still there; Ray itself would wait for a minute."""

ORPHAN_S = 15.0
"""A driver ends so soon after its Ray was killed."""

abandoned = False
"""Ray has gone away under this process, which had better end without its clean-up."""

_EXIT_CODES = {"done": 0, "stopped": 3, "failed": 4}


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
    """A run whose driver is a Ray actor. Once that is gone, what the journal says of its end counts."""

    run_id: str
    run_dir: Path
    actor: Any
    num_opened: int = 0
    """How often the run had been opened before; an end that the journal has from then is an older one."""
    _outcome: Outcome | None = field(default=None)

    def events(self, after: int, wait_s: float) -> tuple[list[dict[str, Any]], int]:
        try:
            events, cursor = self._ask(self.actor.events, after, wait_s)
            return events, cursor
        except CannotGoOn:
            if self._recorded() is None:
                raise
            return [], after

    def outcome(self) -> Outcome | None:
        if self._outcome is None:
            try:
                self._outcome = self._ask(self.actor.outcome)
            except CannotGoOn:
                self._outcome = self._recorded()
                if self._outcome is None:
                    raise
        return self._outcome

    def stop(self, now: bool = False) -> None:
        self._ask(self.actor.stop, now)

    def close(self) -> None:
        """Let the driver's process go; its run directory has everything."""
        with suppress(RayError):
            self.actor.leave.remote()

    def _recorded(self) -> Outcome | None:
        """How this run ended, if its directory is on this machine and says so."""
        turns = _turns(self.run_dir)
        if not turns or turns[-1]["type"] != "run_closed" or _num_opened(turns) <= self.num_opened:
            return None
        status = str(turns[-1]["status"])
        return Outcome(status, _EXIT_CODES[status], str(turns[-1]["reason"]))

    def _ask(self, method: Any, *arguments: Any) -> Any:
        """The driver's answer; one that Ray is starting anew is asked again."""
        until = time.monotonic() + ANSWER_S
        reference = method.remote(*arguments)
        while True:
            try:
                return ray.get(reference, timeout=LOOK_S)
            except GetTimeoutError:
                why = "no answer"
            except ActorUnavailableError as error:
                why = type(error).__name__
                reference = method.remote(*arguments)
                time.sleep(0.1)
            except RayError as error:
                raise self._gone(type(error).__name__) from None
            if not _listens(ray.get_runtime_context().gcs_address):
                raise self._gone("its Ray has ended")
            if time.monotonic() > until:
                raise self._gone(why)

    def _gone(self, why: str) -> CannotGoOn:
        go_on = f"'siloray resume {self.run_id}' goes on with the run"
        return CannotGoOn(f"the driver of {self.run_id} does not answer ({why}); {go_on}")


def start(job: Job, options: RunOptions, connected: Callable[[], None] = lambda: None) -> RayRun:
    """Connect to Ray, and start or find the driver of this job's unfinished run, or of a new one. ``connected`` is
    called as soon as Ray is there."""
    documents = _documents(job, options)
    run_id = options.run_id or _unfinished(job, options) or _new_id(job)
    run_dir = options.runs_dir / run_id
    if options.address is None:
        _refuse_if_running(run_dir)
    connect(options.address, len(job.silos))
    connected()
    if documents is None:
        check_nodes(job.silos)
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
    num_opened = _num_opened(_turns(run_dir))
    _dismiss_finished(run_id)
    actor = remote_driver(assignment, NAMESPACE, _driver_placement())
    note = {"address": ray.get_runtime_context().gcs_address}
    put(run_dir / "ray.json", json.dumps(note))
    return RayRun(run_id, run_dir, actor, num_opened)


def _dismiss_finished(run_id: str) -> None:
    """A driver that has ended an earlier part of this run, and that nobody has let go, is in the way."""
    with suppress(ValueError, RayError, GetTimeoutError):
        actor = ray.get_actor(f"driver-{run_id}", namespace=NAMESPACE)
        if ray.get(actor.outcome.remote(), timeout=ANSWER_S) is not None:
            ray.kill(actor)


def _turns(run_dir: Path) -> list[dict[str, Any]]:
    """When the run was opened and closed, as far as its journal is on this machine and can be read."""
    try:
        events, _ = read_journal(run_dir / "journal.jsonl")
    except (OSError, JournalDamaged):
        return []
    return [event for event in events if event["type"] in ("run_opened", "run_closed")]


def _num_opened(turns: list[dict[str, Any]]) -> int:
    return sum(turn["type"] == "run_opened" for turn in turns)


def _refuse_if_running(run_dir: Path) -> None:
    """Another command's Ray has the driver of this run; one whose Ray was killed is waited for until it ends."""
    until = time.monotonic() + ORPHAN_S
    while has_driver(run_dir):
        where = _noted_address(run_dir)
        if time.monotonic() > until or (where is not None and _listens(where)):
            name = run_dir.name
            raise CannotGoOn(
                f"{name} is running: 'siloray watch {name}' shows it, 'siloray stop {name}' ends it"
            )
        time.sleep(0.2)


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
    _hush()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "namespace": NAMESPACE}
    if address is not None:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RayError, ValueError, RuntimeError) as error:
            raise BadInput(
                f"--address {address}: no Ray cluster answers there ({_first_line(error)})"
            ) from None
        return
    try:
        ray.init(
            address="local",
            num_cpus=max(1, min(num_silos + 1, os.cpu_count() or 1)),
            include_dashboard=False,
            _temp_dir=os.environ.get("RAY_TMPDIR"),
            **quiet,
        )
    except Exception as error:
        if "timed out" not in str(error):
            raise
        raise CannotGoOn(
            f"Ray did not start on this machine in time; is it busy? Give the command again ({_first_line(error)})"
        ) from None


def _hush() -> None:
    """Ray tells of its workers' deaths on standard output, amid our own lines; the run tells of them itself."""
    from ray._private import worker

    worker.print_to_stdstream = lambda *_, **__: None


def shutdown() -> None:
    """Leave Ray; one that this process started ends. One that is gone would be waited for, half a minute long."""
    global abandoned
    if not ray.is_initialized():  # to ask for its address would start one
        return
    with suppress(Exception):
        abandoned = not _listens(ray.get_runtime_context().gcs_address)
    with suppress(Exception):
        if not abandoned:
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
    journals = options.runs_dir.glob("*/journal.jsonl")
    found = [each.parent for each in journals if _goes_on(each.parent, job.digest)]
    return max(found, key=lambda run: (run / "journal.jsonl").stat().st_mtime).name if found else None


def _goes_on(run_dir: Path, job_digest: str) -> bool:
    turns = _turns(run_dir)
    opened = [turn for turn in turns if turn["type"] == "run_opened"]
    if not opened or opened[-1]["job_digest"] != job_digest:
        return False
    return not (turns[-1]["type"] == "run_closed" and turns[-1]["status"] == "done")


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
