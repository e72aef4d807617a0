"""The policy at every request: opening hours, time budget, largest update; and the record of what left."""

import json
import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from orchestrator.core.errors import BadInput
from orchestrator.core.messages import Refused, Update
from orchestrator.core.printable import printable
from orchestrator.core.random import seed_of
from orchestrator.core.vector import Packet, blocks
from orchestrator.job import Job
from orchestrator.pipeline import CACHED
from orchestrator.privacy.clip import squared_norm
from silos import hours
from silos.audit import Audit, write_private
from silos.config import SiloConfig
from silos.site import Code, Guard
from silos.told import public, whole

FIRST_JOINS = "first_joins.json"


class PolicyGuard(Guard):
    """What ``policy`` in ``silo.yaml`` says about the moment and the numbers, and the audit file."""

    def __init__(
        self,
        config: SiloConfig,
        folder: Path,
        clock: Callable[[], float] = time.time,
        foreign_driver: bool = False,
    ) -> None:
        """``foreign_driver``: the driver is another organisation's, as wherever ``connection`` says whom to dial."""
        self.name, self.policy, self.clock = config.name, config.policy, clock
        self._foreign_driver = foreign_driver or config.connection is not None
        self.audit = Audit(folder)
        self._windows = [hours.parse(each) for each in config.policy.opening_hours]
        self._first_joins = folder / FIRST_JOINS
        self._last_refusal: tuple[str, str, str] | None = None
        self._last_error: tuple[str, str] | None = None

    def closed(self, run_id: str, rounds: int = 0) -> tuple[Code, str] | None:
        self.audit.ready()
        spent = self._spent(run_id, rounds)
        if spent is not None:
            return "policy", spent
        shut = self._shut()
        return None if shut is None else ("busy", shut)

    def joined(self, run_id: str, job: Job) -> None:
        self._begin(run_id)
        self.audit.write("joined", run=run_id, job=job.name, job_digest=job.digest)
        self._last_refusal = None

    def leaving(self, job: Job, update: Update, packet: Packet) -> str | None:
        norm, most = _norm(job, update, packet), self.policy.max_update_norm
        if most is not None and not norm <= most:
            rule = f"lets no update leave whose norm is above {most:g} (policy.max_update_norm)"
            return f"{self.name} {rule}; this one has {norm:.6g}"
        self.audit.write(
            "update",
            run=update.run_id,
            version=update.version,
            attempt=update.attempt,
            model_digest=update.model_digest,
            norm=norm if math.isfinite(norm) else str(norm),
            bytes=update.packet_bytes,
        )
        self._last_refusal = None
        return None

    def refused(self, run_id: str, reply: Refused) -> None:
        """Once where the driver asks again and again. Nothing leaves with a refusal, so a full disk is no obstacle."""
        this = (run_id, reply.code, reply.reason)
        if this != self._last_refusal:
            self._last_refusal = this
            with suppress(BadInput):
                self.audit.write("refused", run=run_id, code=reply.code, reason=reply.reason)

    def told(self, run_id: str, error: Exception) -> str:
        """A driver of another organisation is told no value, no row and no path; the record and the console have
        them, once where it asks again and again."""
        this = (run_id, printable(whole(error)))
        if self._foreign_driver and this != self._last_error:
            self._last_error = this
            logging.getLogger(__name__).warning("%s: %s", *this)
            with suppress(BadInput):
                self.audit.write("error", run=run_id, reason=this[1])
        return public(error) if self._foreign_driver else whole(error)

    def _shut(self) -> str | None:
        if not self._windows:
            return None
        zone = str(self.policy.timezone)
        local = datetime.fromtimestamp(self.clock(), ZoneInfo(zone))
        if hours.is_open(self._windows, local):
            return None
        return f"{self.name} is closed until {hours.next_opening(self._windows, local)} ({zone})"

    def _spent(self, run_id: str, rounds: int) -> str | None:
        limit, most = self.policy.max_rounds, self.policy.max_hours
        if limit is not None and rounds > limit:
            return f"{self.name} allows {limit} rounds (policy.max_rounds), and is asked for round {rounds}"
        began = self._read_joins().get(run_id) if most is not None else None
        if began is None or most is None or self.clock() - began < most * 3600:
            return None
        first = f"{datetime.fromtimestamp(began, UTC):%F %H:%M} UTC"
        return f"{self.name} gave this run {most:g} hours (policy.max_hours), which began on {first}"

    def _begin(self, run_id: str) -> None:
        """Note when the run joined first; on disk, since a new process must not give it its hours again."""
        joins = self._read_joins() if self.policy.max_hours is not None else {run_id: 0.0}
        if run_id not in joins:
            write_private(self._first_joins, json.dumps({**joins, run_id: self.clock()}, indent=1) + "\n")

    def _read_joins(self) -> dict[str, float]:
        try:
            joins: dict[str, Any] = json.loads(self._first_joins.read_text(encoding="utf-8"))
            return {run: float(began) for run, began in joins.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError):
            raise BadInput(f"{self._first_joins}: not what siloray wrote; remove it to begin anew") from None


def _norm(job: Job, update: Update, packet: Packet) -> float:
    """Euclidean norm of what the driver will decode, piece by piece as the driver does."""
    seed = seed_of(job.seed, "codec", update.version, update.silo)
    squared = 0.0
    for low, high in blocks(update.size, CACHED):
        piece = {name: array[low:high] for name, array in packet.items()}
        squared += squared_norm(job.codec.decode(piece, high - low, seed))
    return math.sqrt(squared)
