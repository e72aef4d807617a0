"""Carries a run's journal to MLflow, from a process of its own: training never waits for it.

The journal is the truth and MLflow a copy. Points have the journal's time stamps, so that posting one again changes
nothing; runs are looked for by tag before they are made. A kill at any instant costs a few requests.
"""

import json
import logging
import os
import socket
import time
from collections import deque
from pathlib import Path
from threading import Event as Flag
from typing import Literal

from orchestrator.core.events import Event, RoundClosed, RunOpened
from orchestrator.journal import JournalDamaged
from tracking import cursor as cursors
from tracking import publish
from tracking.mapping import Mapper, Superseded
from tracking.points import RUN, Posts, Rows
from tracking.server import Server, is_lost, is_refusal
from tracking.tail import Tail
from tracking.views import COLOUR_TAG, colour_of

log = logging.getLogger("tracking")

Until = Literal["left", "closed", "now"]
"""How long to follow an open run: until it is closed or its driver has been gone for a while (the driver that goes on
with it starts a follower of its own); until it is closed, whatever comes; or to the journal's present end."""
LEFT_S = 60.0
SLICE = 200
"""Most events between two saves of the cursor."""
POLL_S = 1.0
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 5.0


class Follower:
    """One run directory and one server."""

    def __init__(self, run_dir: Path, uri: str) -> None:
        self.run_dir = run_dir
        self.cursor = cursors.load(run_dir, uri)
        self._server: Server | None = None
        self._rewind()

    def _rewind(self) -> None:
        """To the start of the journal; what the cursor has behind it will be mapped and not posted."""
        self.mapper = Mapper(self.cursor.superseded)
        self._tail = Tail(self.run_dir)
        self._fresh: deque[Event] = deque()
        self._posts: Posts = {}
        self._last: Event | None = None
        self._replayed = False

    @property
    def idle(self) -> bool:
        """Nothing is left to post, as far as the journal was read."""
        return not self._fresh and self._last is None and not self.cursor.void

    @property
    def done(self) -> bool:
        """The run is closed, and all of it is in MLflow."""
        closed = self.mapper.closed
        return self.idle and closed is not None and self.cursor.finished == closed.seq

    def step(self) -> bool:
        """Reads what is new and posts a slice of it, or a model; whether there was any.

        Raises JournalDamaged, and whatever MLflow raises; the next call tries again.
        """
        if self.cursor.void:
            self._discard()
        self._read()
        if self.cursor.void:
            return True
        if self._last is not None and self.mapper.opened is not None:
            self._post(self._last, self.mapper.opened)
            return True
        return self.idle and publish.publish(self.run_dir, self.mapper, self.cursor, self._connect)

    def failed(self, error: Exception) -> None:
        """Takes note of why a step failed."""
        problem = f"{type(error).__name__}: {error}".split("\n")[0][:500]
        if is_lost(error):
            self.cursor.forget()
            self._rewind()
        if problem != self.cursor.problem:
            log.warning("%s; trying again", problem)
            self.cursor.problem = problem
            self._save()

    def _connect(self) -> Server:
        """The server, when there is something to say: importing mlflow costs seconds of a processor."""
        if self._server is None:
            self._server = Server(self.cursor.uri)
        return self._server

    def _save(self) -> None:
        cursors.save(self.run_dir, self.cursor)

    def _read(self) -> None:
        try:
            self._fresh.extend(self._tail.read())
        except JournalDamaged:  # a crash of the machine may take lines back; damage proper is raised again
            self._rewind()
            self._fresh.extend(self._tail.read())
        if self._fresh and not self._replayed:
            self._replay()
        room = SLICE if self._last is None else 0
        while self._fresh and room and not self.cursor.void:
            self._map(self._fresh.popleft())
            room -= 1

    def _replay(self) -> None:
        self._replayed = True
        posted = [event for event in self._fresh if event.seq <= self.cursor.seq]
        if not posted or (posted[-1].seq, posted[-1].time) != (self.cursor.seq, self.cursor.time):
            self.cursor.seq = -1  # it was another journal; posting all of it again does no harm
            return
        for _ in posted:
            self.mapper.posts(self._fresh.popleft())

    def _map(self, event: Event) -> None:
        try:
            posts = self.mapper.posts(event)
        except Superseded as error:
            log.warning("%s: the runs in MLflow are replaced", error)
            self.cursor.superseded = sorted({*self.cursor.superseded, *error.seqs})
            self.cursor.void = True
            self._save()
            return
        if isinstance(event, RoundClosed):
            publish.keep(self.run_dir, self.mapper, self.cursor, event)
        if (head := self._tail.heads.pop(event.seq, "")) and RUN in posts:
            posts[RUN].tags["siloray.head"] = head
        for run, rows in posts.items():
            self._posts.setdefault(run, Rows()).add(rows)
        self._last = event

    def _discard(self) -> None:
        opened = self.mapper.opened
        server = self._connect()
        if opened is not None and self.cursor.experiment_id:
            for ids in server.runs(self.cursor.experiment_id, opened.run_id).values():
                server.delete_runs(ids)
        self.cursor.forget()
        self._save()
        self._rewind()

    def _post(self, last: Event, opened: RunOpened) -> None:
        server = self._connect()
        self._bind(server, opened)
        for run, rows in self._posts.items():
            server.send(self.cursor.runs[run], rows)
        self.cursor.seq, self.cursor.time, self.cursor.problem = last.seq, last.time, ""
        self._posts, self._last = {}, None
        self._save()

    def _bind(self, server: Server, opened: RunOpened) -> None:
        """Finds or makes the MLflow runs that are to be posted to, the job's own first."""
        cursor = self.cursor
        wanted = [run for run in (RUN, *self._posts) if run not in cursor.runs]
        if not wanted:
            return
        cursor.run_id, cursor.experiment_id = opened.run_id, server.experiment(experiment_of(opened))
        server.share_view(
            cursor.experiment_id, opened.run_id, opened.job.get("stop", {}).get("metric", "loss")
        )
        found = server.runs(cursor.experiment_id, opened.run_id)
        for run in dict.fromkeys(wanted):
            cursor.runs[run] = found[run][0] if run in found else self._create(server, opened, run)
            self._save()

    def _create(self, server: Server, opened: RunOpened, run: str) -> str:
        tags = {"siloray.run_id": opened.run_id, "mlflow.source.name": "siloray", "mlflow.source.type": "JOB"}
        silos = list(opened.job.get("silos", ()))
        tags[COLOUR_TAG] = colour_of(silos.index(run) if run in silos else None)
        if run != RUN:
            tags |= {"siloray.silo": run, "mlflow.parentRunId": self.cursor.runs[RUN]}
        time_ms = round(opened.time * 1000)
        return server.create_run(self.cursor.experiment_id, run or opened.run_id, time_ms, tags)


def experiment_of(opened: RunOpened) -> str:
    """The MLflow experiment's name."""
    tracking = opened.job.get("tracking") or {}
    return str(tracking.get("experiment") or opened.name)


def follow(follower: Follower, until: Until, stop: Flag, poll_s: float = POLL_S) -> int:
    """Follows until the run is closed and all of it posted, or ``until`` or ``stop`` says so. Returns 0; or 1 where
    the journal is damaged, or the server refuses and nothing more will come."""
    pause, alive = 0.0, time.monotonic()
    while not stop.is_set():
        alive = time.monotonic() if driver_lives(follower.run_dir) else alive
        last_look = until == "now" or (until == "left" and time.monotonic() - alive > LEFT_S)
        try:
            busy, pause = follower.step(), 0.0
        except JournalDamaged as error:
            log.error("%s", error)
            return 1
        except Exception as error:
            follower.failed(error)
            if is_refusal(error) and (last_look or follower.mapper.closed):
                return 1
            busy, pause = False, min(LONGEST_PAUSE_S, max(SHORTEST_PAUSE_S, 2 * pause))
        if follower.done or (last_look and not busy and not pause and follower.idle):
            return 0
        in_step = follower.idle and follower.mapper.closed is None and not last_look
        if not busy or in_step:  # what happens within a second goes into one request
            stop.wait(pause or poll_s)
    return 0


def driver_lives(run_dir: Path) -> bool:
    """Whether the process that the lease names runs on this machine; True where that cannot be told."""
    try:
        lease = json.loads((run_dir / "lease.json").read_text(encoding="utf-8"))
        if lease["host"] != socket.gethostname():
            return True
        os.kill(lease["pid"], 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError, LookupError, TypeError):
        return True
    return True
