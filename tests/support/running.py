"""A run on Ray, followed by a test: wait for an event, find its processes, read what it came to."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.core.messages import SiloId
from orchestrator.job import Job
from orchestrator.summary import read_summary

LIMIT_S = 120


class Running:
    """One run, followed. ``silos``: a folder of silo.yaml files, or None for silos on nodes of their own."""

    def __init__(self, transport: Any, job: Job, silos: Path | None, runs: Path, **options: Any) -> None:
        self.transport = transport
        chosen = {"new": False, "tracking_uri": None, "address": None, "track": False, **options}
        self.run = transport.start(
            job, transport.RunOptions(job_file=runs / "job.yaml", silos_dir=silos, runs_dir=runs, **chosen)
        )
        self.owned = silos is not None
        self.seen: list[dict[str, Any]] = []
        self.cursor = 0

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first event, from now on, that satisfies the condition."""
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            for event in self._more(1.0):
                if condition(event):
                    return event
            assert self.run.outcome() is None, self.run.outcome()
        raise AssertionError(f"nothing within {LIMIT_S} s; last: {self.seen[-3:]}")

    def finish(self) -> dict[str, Any]:
        """The summary, once the run has ended."""
        end = time.monotonic() + LIMIT_S
        while self.run.outcome() is None:
            assert time.monotonic() < end, f"no end within {LIMIT_S} s; last: {self.seen[-3:]}"
            self._more(0.1)
        self._more(0.0)
        self.run.close()
        return self.summary()

    def summary(self) -> dict[str, Any]:
        return read_summary(self.run.run_dir)

    def silo_pid(self, silo: SiloId) -> int:
        import ray

        suffix = f"-{self.run.run_id}" if self.owned else ""
        actor = ray.get_actor(f"silo-{silo}{suffix}", namespace="siloray")
        return int(ray.get(actor.place.remote())[1])

    def driver_pid(self) -> int:
        import ray

        return int(ray.get(self.run.actor.pid.remote()))

    def _more(self, wait_s: float) -> list[dict[str, Any]]:
        events, reached = self.run.events(self.cursor, wait_s)
        if reached < self.cursor:  # the driver was started anew and counts from 0
            events, reached = self.run.events(0, wait_s)
        self.cursor = reached
        self.seen += events
        return events


def launched(silo: SiloId, version: int) -> Callable[[dict[str, Any]], bool]:
    return lambda event: (
        (event["type"], event.get("silo"), event.get("version")) == ("silo_launched", silo, version)
    )


def closed(version: int) -> Callable[[dict[str, Any]], bool]:
    return lambda event: (event["type"], event.get("version")) == ("round_closed", version)
