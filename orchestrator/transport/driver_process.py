"""A driver's process: the event loop runs in a thread of its own from the moment the object is made, and the methods
only look at it. A Ray actor (`ray_driver`), or the object of a plain process (``siloray serve``)."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import traceback
from bisect import bisect_right
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from orchestrator.at_rest import STORE_KEY, store_key
from orchestrator.core.errors import BadInput
from orchestrator.core.events import Event
from orchestrator.core.protocols import Channel, Observer
from orchestrator.disk import put
from orchestrator.driver import Driver
from orchestrator.ending import Outcome
from orchestrator.job import Job
from orchestrator.journal import JOURNAL
from orchestrator.keys import DRIVER_KEY, SIGNING_KEY, Signer, kept_signing_key, read_signing_key
from orchestrator.pulled import open_mirror
from orchestrator.store import (
    DiskFull,
    JournalDamaged,
    LeaseHeld,
    LeaseLost,
    NothingUsable,
    Store,
    read_journal,
)
from orchestrator.summary import write_summary
from silos.weights import settle

LIVE_EVENTS = 1_000
"""Events that are not in the journal (progress, launches) that a late watcher can still get."""


PASSING = frozenset({"round_opened", "silo_launched", "silo_progress", "update_arrived"})


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a driver process has to do."""

    run_id: str
    run_dir: str
    job: str
    """The job document as JSON."""
    documents: dict[str, str] | None
    """The silo.yaml of each silo on this machine, or None where each node has its own."""
    code: list[str]
    """Folders in which silos on this machine look for the user's own modules."""
    tracking_uri: str | None
    door: Mapping[str, Any] | None = None
    """The fields of a `served.Door`: silos dial in there. None: they are actors on the driver's Ray."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Small files that the driver puts into the run directory: name and text."""
    folder: str = ""
    """Of the job document, on the driver's machine."""
    mirror: str | None = None
    """The URI of the run in a store, of which ``run_dir`` is a copy."""
    store_key: str | None = None
    """The file, on the driver's machine, of the key for its run directory; None: as that machine's environment says."""


class OwnChannel(Channel, Protocol):
    """A channel that a driver opened for itself."""

    def close(self) -> None: ...


OpenChannel = Callable[[Assignment, Job, Observer], OwnChannel]
"""Opens the way to the silos; what it is to record, it gives to the observer, from any thread."""


class DriverProcess:
    """Runs one assignment in a thread."""

    def __init__(self, assignment: Assignment, open_channel: OpenChannel) -> None:
        self.assignment, self._open_channel = assignment, open_channel
        if assignment.store_key is not None:
            os.environ[STORE_KEY] = (
                assignment.store_key
            )  # for MLflow's follower, too, which reads checkpoints
        self._events: list[tuple[int, dict[str, Any]]] = []
        """Cursor and event, the cursor rising."""
        self._cursor = 0
        self._changed = threading.Condition()
        self._outcome: Outcome | None = None
        self._driver: Driver | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: bool | None = None
        """What was asked before the driver could hear it: to stop, and whether now."""
        self._early: list[Event] = []
        """What happened before the driver could record it."""
        threading.Thread(target=self._work, name="driver", daemon=True).start()

    def events(self, after: int, wait_s: float) -> tuple[list[dict[str, Any]], int]:
        """Events from cursor ``after`` on, and the next cursor; waits up to ``wait_s`` seconds for the first."""
        with self._changed:
            self._changed.wait_for(lambda: self._cursor > after or self._outcome is not None, wait_s)
            first = bisect_right(self._events, after, key=lambda entry: entry[0])
            return [event for _, event in self._events[first:]], self._cursor

    def outcome(self) -> Outcome | None:
        """None while the run goes on."""
        return self._outcome

    def stop(self, now: bool = False, within_s: float | None = None) -> None:
        """Finish the round, or abandon it: at once, or when it is not finished within so many seconds."""
        if within_s is not None:
            late = threading.Timer(within_s, self.stop, (True,))
            late.daemon = True
            late.start()
        with self._changed:
            if self._driver is None or self._loop is None:
                self._stop = now
            elif self._outcome is None:
                self._loop.call_soon_threadsafe(self._driver.request_stop, now)

    def record(self, event: Event) -> None:
        """Something happened outside the event loop: into the journal with it. From any thread."""
        with self._changed:
            driver, loop = self._driver, self._loop
            if driver is None or loop is None:
                self._early.append(event)
                return
        if not loop.is_closed():
            loop.call_soon_threadsafe(driver.record, event)

    def pid(self) -> int:
        return os.getpid()

    def _work(self) -> None:
        try:
            outcome = asyncio.run(self._run())
        except (LeaseHeld, LeaseLost, NothingUsable, JournalDamaged, DiskFull) as error:
            outcome = Outcome("failed", 4, str(error))
        except BadInput as error:
            outcome = Outcome("failed", 2, str(error))
        except PermissionError as error:
            outcome = Outcome("failed", 2, f"{error.filename}: {error.strerror}")
        except Exception as error:
            traceback.print_exc()
            outcome = Outcome("failed", 1, f"{type(error).__name__}: {error}")
        with self._changed:
            self._outcome = outcome
            self._changed.notify_all()

    async def _run(self) -> Outcome:
        """The channel first: a run that cannot have one leaves nothing behind."""
        job = Job.model_validate_json(self.assignment.job)
        channel = self._open_channel(self.assignment, job, self.record)
        replaced = False
        try:
            return await self._drive(job, channel)
        except (LeaseHeld, LeaseLost):
            replaced = True  # the silos' processes serve the other driver
            raise
        finally:
            if not replaced:
                channel.close()

    async def _drive(self, job: Job, channel: Channel) -> Outcome:
        run_dir, key = Path(self.assignment.run_dir), store_key()
        mirror = open_mirror(self.assignment.mirror, run_dir) if self.assignment.mirror else None
        await asyncio.to_thread(settle, job, run_dir, Path(self.assignment.folder))
        self._prepare(run_dir, job)
        signer = self._signer(run_dir.parent)
        store = Store(run_dir, mirror, keep=job.keep.newest, key=key, signer=signer)
        owner = f"siloray driver of {self.assignment.run_id}"
        driver = Driver(job, channel, store, self.assignment.run_id, self._observe, owner=owner)
        with self._changed:
            self._driver, self._loop = driver, asyncio.get_running_loop()
            if self._stop is not None:
                driver.request_stop(self._stop)
            for event in self._early:
                driver.record(event)
        outcome = await driver.run()
        with suppress(DiskFull):  # it can be made again from the journal
            write_summary(run_dir)
        if mirror is not None:
            mirror.push_notes()
        return outcome

    def _signer(self, runs: Path) -> Signer:
        """The key of the driver's credentials, where it has any; else that of the folder of runs. Raises `BadInput`."""
        door = self.assignment.door
        if door is not None:
            return Signer(read_signing_key(Path(door["credentials"]) / SIGNING_KEY))
        return Signer(kept_signing_key(runs / DRIVER_KEY))

    def _prepare(self, run_dir: Path, job: Job) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        put(run_dir / "job.json", json.dumps(job.model_dump(mode="json"), indent=1))
        for name, text in self.assignment.notes.items():
            put(run_dir / name, text)
        with self._changed:
            for event in read_journal(run_dir / JOURNAL)[0]:
                self._add(event)
        if self.assignment.tracking_uri:
            _follow(run_dir, self.assignment.tracking_uri)

    def _observe(self, event: Event) -> None:
        with self._changed:
            self._add(event.model_dump(mode="json"))
            self._changed.notify_all()

    def _add(self, event: dict[str, Any]) -> None:
        """Keep the event; of those that the journal does not have, only the latest."""
        self._cursor += 1
        self._events.append((self._cursor, event))
        passing = [entry for entry in self._events if entry[1]["type"] in PASSING] if self._crowded else []
        if len(passing) > LIVE_EVENTS:
            old = {cursor for cursor, _ in passing[: -LIVE_EVENTS // 2]}
            self._events = [entry for entry in self._events if entry[0] not in old]

    @property
    def _crowded(self) -> bool:
        """Look for what may go once in a while only."""
        return self._cursor % LIVE_EVENTS == 0


def _follow(run_dir: Path, uri: str) -> None:
    """Start the tracking follower, as nobody's child: it outlives this process until MLflow has everything."""
    command = [sys.executable, "-m", "tracking", str(run_dir), "--uri", uri, "--nice"]
    spawn = "import subprocess as s, sys\ns.Popen(sys.argv[2:], start_new_session=True, stderr=open(sys.argv[1], 'a'))"
    log = str(run_dir / "tracking.log")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run(
        [sys.executable, "-S", "-c", spawn, log, *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=False,
    )
