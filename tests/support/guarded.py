"""A silo of quadratics under a policy, with time that the test sets; and what it is asked."""

import json
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from orchestrator.core.messages import Evaluate, Join, Refused, Train
from orchestrator.job import Job
from silos.config import SiloConfig
from silos.guard import PolicyGuard
from silos.silo import Silo
from tests.support.quadratic import PlainSite, job_of

RUN: dict[str, Any] = {"run_id": "run", "epoch": 1}
MODEL = {"params": np.ones(5, np.float32)}
JOB = job_of(["s0", "s1"], total=3)
NIGHTS = {"opening_hours": ["Mon-Fri 20:00-06:00"], "timezone": "Europe/Zurich"}


class Clock:
    """Time that the test sets: in Zurich, in June 2026 (the 1st is a Monday)."""

    def __init__(self) -> None:
        self.set(1, 12)

    def set(self, day: int, hour: int) -> None:
        self.now = datetime(2026, 6, day, hour, tzinfo=ZoneInfo("Europe/Zurich")).timestamp()

    def __call__(self) -> float:
        return self.now


def guarded(site: PlainSite, clock: Clock, foreign_driver: bool = False, **policy: Any) -> Silo:
    """A new process of the silo, under this policy."""
    config = SiloConfig.model_validate(
        {"name": site.name, "datasets": {"none": {"path": "x"}}, "policy": policy}
    )
    site.guard = PolicyGuard(config, site.folder / "own", clock, foreign_driver)
    return Silo(site, clock)


def join(job: Job = JOB, **header: Any) -> Join:
    return Join(**{**RUN, **header}, job=job.model_dump_json(), job_digest=job.digest)


def train(version: int = 0, **given: Any) -> Train:
    known = {"attempt": 1, "model": MODEL, "model_digest": "m", "counted": version - 1, "inline": 100}
    return Train(**{**RUN, **known, "version": version, **given})


def evaluate(version: int, **given: Any) -> Evaluate:
    return Evaluate(**{**RUN, "version": version, "model": MODEL, "counted": version - 1, **given})


def lines(site: PlainSite, event: str = "") -> list[dict[str, Any]]:
    """What is on record, of one kind of event or of all."""
    path = site.folder / "own" / "audit.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in found if not event or line["event"] == event]


def refusal(reply: Any) -> tuple[str, str]:
    assert isinstance(reply, Refused), reply
    assert "\n" not in reply.reason
    return reply.code, reply.reason
