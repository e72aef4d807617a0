"""The policy at every request: opening hours, time budget, largest update; and the record of what left."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from orchestrator.core.errors import BadInput
from orchestrator.core.messages import Assess, Evaluate, Refused, Train, Update, Work
from orchestrator.core.printable import printable
from orchestrator.core.random import seed_of
from orchestrator.core.repeats import Repeats
from orchestrator.core.vector import Packet, Vector, blocks
from orchestrator.job import Job
from orchestrator.pipeline import CACHED
from orchestrator.privacy.clip import squared_norm
from silos import hours
from silos.audit import Audit
from silos.config import SiloConfig
from silos.ledger import Ledger
from silos.site import Code, Guard
from silos.told import public, whole


class PolicyGuard(Guard):
    """What ``policy`` in ``silo.yaml`` says about the moment and the numbers, the audit file and the ledger."""

    def __init__(
        self,
        config: SiloConfig,
        folder: Path,
        clock: Callable[[], float] = time.time,
        foreign_driver: bool = False,
    ) -> None:
        """``foreign_driver``: the driver is another organisation's, as wherever ``connection`` says whom to dial."""
        self.name, self.clock = config.name, clock
        self.policy = config.policy
        """As the document says now."""
        self._foreign_driver = foreign_driver or config.connection is not None
        self.audit = Audit(folder)
        self._ledger = Ledger(folder, clock)
        self._repeats = Repeats()

    def closed(self, job: Job) -> tuple[Code, str] | None:
        self.audit.ready()
        spent = self._spent(job)
        if spent is not None:
            return "policy", spent
        shut = self._shut()
        return None if shut is None else ("busy", shut)

    def joined(self, run_id: str, job: Job) -> None:
        self._ledger.join(job.digest)
        self.audit.write("joined", run=run_id, job=job.name, job_digest=job.digest)

    def begins(self, job: Job, request: Work, state: Mapping[str, Vector]) -> str | None:
        """``max_rounds`` different trainings of a job, and ``max_evaluations``, where an assessment counts as one."""
        if isinstance(request, Train):
            kind, most, rule = "trained", self.policy.max_rounds, "trainings of a job (policy.max_rounds)"
        else:
            kind, most, rule = "evaluated", *self.policy.evaluations
        if most is None or self._ledger.begin(job.digest, kind, _identity(request, state), most):
            return None
        return f"{self.name} allows {most} {rule}, and this one has had them"

    def leaving(self, job: Job, update: Update, packet: Packet) -> str | None:
        norm, most = _norm(job, update, packet), self.policy.max_update_norm
        if most is not None and not norm <= most:
            rule = f"lets no update leave whose norm is above {most:g} (policy.max_update_norm)"
            return f"{self.name} {rule}; this one has {norm:.6g}"
        self.left(
            "update",
            update.run_id,
            version=update.version,
            attempt=update.attempt,
            model_digest=update.model_digest,
            norm=norm if math.isfinite(norm) else str(norm),
            bytes=update.packet_bytes,
        )
        return None

    def left(self, what: str, run_id: str, **facts: Any) -> None:
        self.audit.write(what, run=run_id, **facts)

    def refused(self, run_id: str, reply: Refused) -> None:
        self._write_seldom("refused", run_id, code=reply.code, reason=reply.reason)

    def told(self, run_id: str, error: Exception) -> str:
        """A driver of another organisation is told no value, no row and no path; the record and the console have
        them."""
        if not self._foreign_driver:
            return whole(error)
        self._write_seldom("error", run_id, reason=printable(whole(error)))
        return public(error)

    def _write_seldom(self, event: str, run_id: str, **facts: str) -> None:
        """Where the driver asks again and again, the first, tenth, hundredth time. Nothing leaves with a refusal, so a
        full disk is no obstacle."""
        times = self._repeats.told(event, *facts.values())
        if times is None:
            return
        if event == "error":
            logging.getLogger(__name__).warning("%s: %s", run_id, facts["reason"])
        with suppress(BadInput):
            self.audit.write(event, run=run_id, **facts, times=times)

    def _shut(self) -> str | None:
        if not self.policy.opening_hours:
            return None
        zone = str(self.policy.timezone)
        windows = [hours.parse(each) for each in self.policy.opening_hours]
        local = datetime.fromtimestamp(self.clock(), ZoneInfo(zone))
        if hours.is_open(windows, local):
            return None
        return f"{self.name} is closed until {hours.next_opening(windows, local)} ({zone})"

    def _spent(self, job: Job) -> str | None:
        most = self.policy.max_hours
        began = self._ledger.first_join(job.digest) if most is not None else None
        if began is None or most is None or self.clock() - began < most * 3600:
            return None
        first = f"{datetime.fromtimestamp(began, UTC):%F %H:%M} UTC"
        return f"{self.name} gave this job {most:g} hours (policy.max_hours), which began on {first}"


def _identity(request: Work, state: Mapping[str, Vector]) -> str:
    """Digest of all that the result depends on: the same again tells the driver nothing new."""
    said = "" if isinstance(request, Evaluate) else f"{request.model_digest}"
    if isinstance(request, Assess):
        said = f"assess {said} {request.trainings} {request.num_steps}"
    digest = hashlib.sha256(f"{request.version} {said!r}".encode())
    for vectors in (request.model, state):
        for name in sorted(vectors):
            digest.update(f"\0{name!r} {vectors[name].size}\0".encode())
            digest.update(np.ascontiguousarray(vectors[name]).data)
    return digest.hexdigest()[:32]


def _norm(job: Job, update: Update, packet: Packet) -> float:
    """Euclidean norm of what the driver will decode, piece by piece as the driver does."""
    seed = seed_of(job.seed, "codec", update.version, update.silo)
    squared = 0.0
    for low, high in blocks(update.size, CACHED):
        piece = {name: array[low:high] for name, array in packet.items()}
        squared += squared_norm(job.codec.decode(piece, high - low, seed))
    return math.sqrt(squared)
