"""A run whose silos dial in, driven by this process: ``siloray serve``."""

import json
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.at_rest import named_key, store_key
from orchestrator.bucket import child
from orchestrator.core.errors import BadInput, CannotGoOn
from orchestrator.core.events import CallRefused
from orchestrator.core.protocols import Observer
from orchestrator.core.repeats import Repeats
from orchestrator.ending import Outcome
from orchestrator.job import Job
from orchestrator.journal import JOURNAL, read_journal
from orchestrator.lease import has_driver
from orchestrator.roster import ROSTER
from orchestrator.transport.certs import Credentials
from orchestrator.transport.driver_process import Assignment, DriverProcess, OwnChannel
from orchestrator.transport.flight import FlightChannel, check_members
from orchestrator.transport.started_runs import new_id, outcome_since, place, turns

LOOK_S = 0.1
AGAIN_S = 0.5
"""Between two signals, so that the first one is heard."""


@dataclass(frozen=True, slots=True)
class Door:
    """Where the driver listens, and as whom."""

    host: str
    port: int
    credentials: str
    """Folder of the driver's certificate and keys."""

    def check(self, job: Job) -> Credentials:
        """The driver's, with which every silo of the job can come in here. Raises `BadInput`."""
        credentials = Credentials.load(Path(self.credentials))
        check_members(job.silos, credentials)
        check_free(self.host, self.port)
        return credentials

    def open(self, job: Job, record: Observer) -> FlightChannel:
        """Raises `BadInput`."""
        credentials = self.check(job)
        listen, refusals = (self.host, self.port), Refusals(record)
        credentials.roster.tell = lambda why: record(
            CallRefused(who=ROSTER, code="roster", reason=why, times=1)
        )
        return FlightChannel(job.silos, credentials, listen, job.rounds.patience_s, refusals)


def check_free(host: str, port: int) -> None:
    """`BadInput` where nobody can listen; gRPC would say the same, in many lines of its own."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        raise BadInput(f"{host}:{port}: cannot listen here ({error.strerror})") from None


class Refusals:
    """Whoever is turned away is recorded; one that keeps coming, the first, tenth, hundredth time."""

    def __init__(self, record: Observer) -> None:
        self._record, self._repeats = record, Repeats()

    def __call__(self, who: str, code: str, reason: str) -> None:
        times = self._repeats.told(who, code)
        if times is not None:
            self._record(CallRefused(who=who, code=code, reason=reason, times=times))


class ServedRun:
    """What the command line holds of it."""

    def __init__(self, run_dir: Path, process: DriverProcess) -> None:
        self.run_id, self.run_dir, self._process = run_dir.name, run_dir, process

    def events(self, after: int, wait_s: float) -> tuple[list[dict[str, Any]], int]:
        return self._process.events(after, wait_s)

    def outcome(self) -> Outcome | None:
        return self._process.outcome()

    def stop(self, now: bool = False, within_s: float | None = None) -> None:
        self._process.stop(now, within_s)

    def close(self) -> None:
        """The process that followed it ends."""


class WatchedRun:
    """A run that another process on this machine drives: its journal is what there is to see."""

    def __init__(self, run_dir: Path) -> None:
        self.run_id, self.run_dir = run_dir.name, run_dir

    def events(self, after: int, wait_s: float) -> tuple[list[dict[str, Any]], int]:
        """The cursor is a place in the journal."""
        until = time.monotonic() + wait_s
        while True:
            found, reached = read_journal(self.run_dir / JOURNAL, after)
            if found or time.monotonic() > until:
                return found, reached
            time.sleep(LOOK_S)

    def outcome(self) -> Outcome | None:
        if has_driver(self.run_dir):
            return None
        ended = outcome_since(turns(str(self.run_dir)), 0)
        if ended is None:
            raise CannotGoOn(
                f"no driver works on {self.run_id}; 'siloray resume {self.run_id}' goes on with it"
            )
        return ended

    def stop(self, now: bool = False, within_s: float | None = None) -> None:
        """The driver's process takes SIGTERM as a wish to end after the round, and a second one to end now."""
        pid = int(json.loads((self.run_dir / "lease.json").read_text(encoding="utf-8"))["pid"])
        for _ in range(2 if now else 1):
            if has_driver(self.run_dir):
                os.kill(pid, signal.SIGTERM)
            time.sleep(AGAIN_S if now else 0)

    def close(self) -> None:
        """Its process ends by itself."""


def attach(run_dir: Path) -> WatchedRun:
    """Raises `BadInput` where no driver is at work."""
    if not has_driver(run_dir):
        raise BadInput(f"no driver works on {run_dir.name}; 'siloray resume {run_dir.name}' goes on with it")
    return WatchedRun(run_dir)


def start(
    job: Job,
    door: Door,
    runs_dir: Path | str,
    tracking_uri: str | None,
    notes: dict[str, str],
    new: bool = False,
    run_id: str | None = None,
    folder: Path | None = None,
) -> ServedRun:
    """Drive the unfinished run of this very job, or a new one. ``runs_dir`` may be the URI of a folder in a store,
    ``folder`` is that of the job document.
    Raises `BadInput`, `CannotGoOn`."""
    store_key()  # one that cannot be used is said before anything is opened
    found = place(str(runs_dir), None if new else job.digest, run_id)
    run_dir = Path(found.folder) / (found.run_id or new_id(job))
    if has_driver(run_dir):
        raise CannotGoOn(f"{run_dir.name} is being driven by another process on this machine")
    door.check(job)
    assignment = Assignment(
        run_id=run_dir.name,
        run_dir=str(run_dir),
        job=job.model_dump_json(),
        documents=None,
        code=[],
        tracking_uri=tracking_uri,
        notes=notes,
        folder=str((folder or Path()).absolute()),
        mirror=child(found.store, run_dir.name) if found.store else None,
        store_key=named_key(),
    )

    def opened(_: Assignment, job: Job, record: Observer) -> OwnChannel:
        return door.open(job, record)

    return ServedRun(run_dir, DriverProcess(assignment, opened))
