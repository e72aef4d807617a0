"""The driver's process on Ray: a detached, named actor. Killed, it is started anew and goes on by itself."""

import threading
import time
from dataclasses import asdict
from typing import Any

import ray

from orchestrator.core.events import Event
from orchestrator.core.protocols import Observer
from orchestrator.ending import Outcome
from orchestrator.job import Job
from orchestrator.transport.driver_process import Assignment, DriverProcess, OwnChannel
from orchestrator.transport.ray_channel import RayChannel, as_actor
from orchestrator.transport.ray_home import driver_name
from orchestrator.transport.ray_metrics import RunMetrics
from orchestrator.transport.served import Door

LINGER_S = 5.0
"""A driver whose run has ended stays so long, so that all who watch it hear how."""

UNSEEN_S = 600.0
"""A driver whose run has ended, and that nobody has asked for so long, leaves by itself."""

GLANCE_S = 5.0


class DriverActor(DriverProcess):
    """A plain class, made an actor where it is used."""

    def __init__(self, assignment: dict[str, Any], unseen_s: float = UNSEEN_S) -> None:
        given = Assignment(**assignment)
        self._metrics = RunMetrics(given.run_id)
        self._asked = time.monotonic()
        super().__init__(given, _channel)
        threading.Thread(target=self._leave_unseen, args=(unseen_s,), daemon=True).start()

    def __repr__(self) -> str:
        return f"driver {self.assignment.run_id}"

    def events(self, after: int, wait_s: float) -> tuple[list[dict[str, Any]], int]:
        self._asked = time.monotonic()
        return super().events(after, wait_s)

    def outcome(self) -> Outcome | None:
        self._asked = time.monotonic()
        return super().outcome()

    def about(self) -> Assignment:
        """What it works on, and where."""
        return self.assignment

    def leave(self) -> None:
        """Nobody needs this process any more, or will soon not."""
        threading.Timer(LINGER_S, _end).start()

    def _observe(self, event: Event) -> None:
        super()._observe(event)
        self._metrics(event)

    def _leave_unseen(self, unseen_s: float) -> None:
        """The command that started the run may be gone before the run ends; then nobody says ``leave``."""
        while self._outcome is None or time.monotonic() - self._asked < unseen_s:
            time.sleep(min(GLANCE_S, unseen_s))
        _end()


def _channel(assignment: Assignment, job: Job, record: Observer) -> OwnChannel:
    if assignment.door is not None:
        return Door(**assignment.door).open(job, record)
    return RayChannel(assignment.run_id, job.silos, assignment.documents, assignment.code)


def _end() -> None:
    ray.kill(ray.get_runtime_context().current_actor)


def remote_driver(assignment: Assignment, namespace: str, options: dict[str, Any]) -> Any:
    """Start the driver of a run, or find it."""
    return (
        as_actor(DriverActor, max_concurrency=16)
        .options(
            name=driver_name(assignment.run_id),
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
