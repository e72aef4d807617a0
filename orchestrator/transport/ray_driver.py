"""The driver's process on Ray: a detached, named actor. Killed, it is started anew and goes on by itself.

A plain class, made an actor where it is used. The event loop runs in a thread of its own, from the moment the
actor is made; the methods only look at it.
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
import traceback
from bisect import bisect_right
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray

from orchestrator.core.errors import BadInput
from orchestrator.core.events import Event
from orchestrator.disk import put
from orchestrator.driver import Driver
from orchestrator.ending import Outcome
from orchestrator.job import Job
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
from orchestrator.transport.ray_channel import RayChannel, as_actor

LINGER_S = 5.0
"""A driver whose run has ended stays so long, so that all who watch it hear how."""

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


class DriverActor:
    """Runs one assignment in a thread."""

    def __init__(self, assignment: dict[str, Any]) -> None:
        self.assignment = Assignment(**assignment)
        self._events: list[tuple[int, dict[str, Any]]] = []
        """Cursor and event, the cursor rising."""
        self._cursor = 0
        self._changed = threading.Condition()
        self._outcome: Outcome | None = None
        self._driver: Driver | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: bool | None = None
        """What was asked before the driver could hear it: to stop, and whether now."""
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

    def stop(self, now: bool = False) -> None:
        """Finish the round, or abandon it."""
        with self._changed:
            if self._driver is None or self._loop is None:
                self._stop = now
            elif self._outcome is None:
                self._loop.call_soon_threadsafe(self._driver.request_stop, now)

    def leave(self) -> None:
        """Nobody needs this process any more, or will soon not."""
        threading.Timer(LINGER_S, _end).start()

    def pid(self) -> int:
        return os.getpid()

    def _work(self) -> None:
        try:
            outcome = asyncio.run(self._run())
        except (LeaseHeld, LeaseLost, NothingUsable, JournalDamaged, DiskFull) as error:
            outcome = Outcome("failed", 4, str(error))
        except BadInput as error:
            outcome = Outcome("failed", 2, str(error))
        except Exception as error:
            traceback.print_exc()
            outcome = Outcome("failed", 1, f"{type(error).__name__}: {error}")
        with self._changed:
            self._outcome = outcome
            self._changed.notify_all()

    async def _run(self) -> Outcome:
        run_dir = Path(self.assignment.run_dir)
        job = Job.model_validate_json(self.assignment.job)
        self._prepare(run_dir, job)
        channel = RayChannel(
            self.assignment.run_id, job.silos, self.assignment.documents, self.assignment.code
        )
        store = Store(run_dir, keep=job.keep.newest)
        owner = f"siloray driver of {self.assignment.run_id}"
        driver = Driver(job, channel, store, self.assignment.run_id, self._observe, owner=owner)
        with self._changed:
            self._driver, self._loop = driver, asyncio.get_running_loop()
            if self._stop is not None:
                driver.request_stop(self._stop)
        outcome = await driver.run()
        with suppress(DiskFull):  # it can be made again from the journal
            write_summary(run_dir)
        channel.close()
        return outcome

    def _prepare(self, run_dir: Path, job: Job) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        put(run_dir / "job.json", json.dumps(job.model_dump(mode="json"), indent=1))
        with self._changed:
            for event in read_journal(run_dir / "journal.jsonl")[0]:
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


def _end() -> None:
    ray.kill(ray.get_runtime_context().current_actor)


def remote_driver(assignment: Assignment, namespace: str, options: dict[str, Any]) -> Any:
    """Start the driver of a run, or find it."""
    return (
        as_actor(DriverActor, max_concurrency=16)
        .options(
            name=f"driver-{assignment.run_id}",
            namespace=namespace,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=0,
            **options,
        )
        .remote(asdict(assignment))
    )


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
