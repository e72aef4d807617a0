"""The policy at every request: opening hours, time budget, largest update; and the record of what left."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from orchestrator.core.errors import BadInput
from orchestrator.core.messages import Assess, Attack, Evaluate, LedgerHead, Refused, Train, Update, Work
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
from silos.job_counts import JobCounts
from silos.ledger import Unit
from silos.odometer import DELTA, RESERVED, Account, Odometer, OverBudget, Spent
from silos.site import Cancelled, Code, Guard
from silos.spending import Charge, Spend
from silos.statements import seen
from silos.told import public, whole

_REMEDY: Mapping[Unit, str] = {
    "record": "[{name: dp_sgd, ...}]",
    "patient": "[{name: dp_sgd, unit: patient, ...}]",
    "silo": "[{name: clip, ...}, {name: gaussian, ...}]",
}
"""Against a job that does not protect what the owner's budget is for."""


class PolicyGuard(Guard):
    """What ``policy`` and budgets in ``silo.yaml`` say about the moment and the numbers; the audit file, what each job
    has had, and the privacy ledger."""

    def __init__(
        self,
        config: SiloConfig,
        folder: Path,
        clock: Callable[[], float] = time.time,
        foreign_driver: bool = False,
    ) -> None:
        """``foreign_driver``: the driver is another organisation's, as wherever ``connection`` says whom to dial."""
        self.name, self.clock = config.name, clock
        self.obey(config)
        self._foreign_driver = foreign_driver or config.connection is not None
        self.audit = Audit(folder)
        self._counts = JobCounts(folder, clock)
        self.odometer = Odometer(folder, config.name, clock)
        self._repeats = Repeats()

    def obey(self, config: SiloConfig) -> None:
        """The document as it is now."""
        self.policy = config.policy
        self._budgets = {name: dataset.budget for name, dataset in config.datasets.items()}

    @property
    def policy_digest(self) -> str:
        return hashlib.sha256(self.policy.model_dump_json().encode()).hexdigest()

    def closed(self, job: Job) -> tuple[Code, str] | None:
        self.audit.ready()
        spent = self._spent(job)
        if spent is not None:
            return "policy", spent
        shut = self._shut()
        return None if shut is None else ("busy", shut)

    def joined(self, run_id: str, job: Job) -> None:
        self._counts.join(job.digest)
        self.audit.write("joined", run=run_id, job=job.name, job_digest=job.digest)

    def begins(self, job: Job, request: Work, state: Mapping[str, Vector]) -> str | None:
        """``max_rounds`` different trainings of a job, and ``max_evaluations``, where an assessment counts as one,
        and so do attacks."""
        if isinstance(request, Train):
            kind, most, rule = "trained", self.policy.max_rounds, "trainings of a job (policy.max_rounds)"
        else:
            kind, most, rule = "evaluated", *self.policy.evaluations
        if most is None or self._counts.begin(job.digest, kind, _identity(request, state), most):
            return None
        return f"{self.name} allows {most} {rule}, and this one has had them"

    def told_of(self, head: LedgerHead | None) -> None:
        self.odometer.check(head)

    def planned(self, job: Job, run_id: str, data: str, plan: Sequence[Spend]) -> Spent | None:
        account = self._account(job, data)
        if self.name in job.training:
            self._check_covered(job, account, plan)
        if not plan:
            return None
        try:
            return self.odometer.planned(account, plan, job.digest, run_id)
        except OverBudget as over:
            raise Cancelled("policy", f"{self._over(run_id, over)} (the whole job)") from None

    def had(self, job: Job, data: str) -> Sequence[Charge]:
        return self.odometer.had(self._account(job, data))

    def spends(
        self, job: Job, request: Work, data: str, spends: Sequence[Spend], head: LedgerHead | None = None
    ) -> Spent | None:
        account = self._account(job, data)
        if isinstance(request, Train):
            self._check_covered(job, account, spends)
        if not spends:
            return None
        try:
            spent = self.odometer.reserve(account, spends, job.digest, request.run_id, request.version, head)
        except OverBudget as over:
            raise Cancelled("policy", self._over(request.run_id, over)) from None
        self.left(
            RESERVED, request.run_id, version=request.version, length=spent.head.length, head=spent.head.hash
        )
        return spent

    def _over(self, run_id: str, over: OverBudget) -> str:
        """What the driver may know of it; the silo's own people have all."""
        if self.policy.share_counts:
            return str(over)
        self._write_seldom("error", run_id, reason=str(over))
        return over.public

    def _account(self, job: Job, data: str) -> Account:
        name = job.task.dataset
        delta = DELTA if job.dp_sgd is None else job.dp_sgd.delta
        return Account(name, data, self._budgets.get(name), delta)

    def _check_covered(self, job: Job, account: Account, spends: Sequence[Spend]) -> None:
        """Raises `Cancelled` where data with a budget would be trained on without any protection."""
        budget, name = account.budget, account.dataset
        if budget is not None and job.noise_repeats:
            raise Cancelled(
                "policy",
                f"{self.name}: '{name}' has a privacy budget (datasets.{name}.budget), and noise that repeats "
                f"(privacy: insecure_test_noise_seed) protects nobody",
            )
        protected = [each.unit for each in spends if each.part == "train"]
        if budget is None or budget.unit in protected:
            return
        whose = f"{self.name}: '{name}' has a privacy budget for each {budget.unit} (datasets.{name}.budget)"
        what = f"protects a {protected[0]} only" if protected else "trains on it without noise"
        raise Cancelled("policy", f"{whose}, and this job {what}: give privacy: {_REMEDY[budget.unit]}")

    def leaving(self, job: Job, update: Update, packet: Packet) -> str | None:
        norm, most = _norm(job, update, packet), self.policy.max_update_norm
        if most is not None and not norm <= most:
            rule = f"{self.name} lets no update leave whose norm is above {most:g} (policy.max_update_norm)"
            exact = f"{rule}; this one has {norm:.6g}"
            if job.sums is None:
                return exact
            self._write_seldom("error", update.run_id, reason=exact)
            return f"{rule}, and this one's is"
        self.left(
            "update",
            update.run_id,
            version=update.version,
            attempt=update.attempt,
            model_digest=update.model_digest,
            norm=norm if math.isfinite(norm) else str(norm),
            bytes=update.packet_bytes,
            **_receipt(update),
        )
        return None

    def left(self, what: str, run_id: str, **facts: Any) -> None:
        self.audit.write(what, run=run_id, **facts)

    def refused(self, run_id: str, reply: Refused) -> None:
        self._write_seldom("refused", run_id, code=reply.code, reason=reply.reason)

    def told(self, run_id: str, error: Exception) -> str:
        """A driver of another organisation, or one that is not to learn numbers of rows, is told no value, no row and
        no path; the record and the console have them."""
        if not self._foreign_driver and self.policy.share_counts:
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
        began = self._counts.first_join(job.digest) if most is not None else None
        if began is None or most is None or self.clock() - began < most * 3600:
            return None
        first = f"{datetime.fromtimestamp(began, UTC):%F %H:%M} UTC"
        return f"{self.name} gave this job {most:g} hours (policy.max_hours), which began on {first}"


def _identity(request: Work, state: Mapping[str, Vector]) -> str:
    """Digest of all that the result depends on: the same again tells the driver nothing new."""
    said = "" if isinstance(request, Evaluate) else f"{request.model_digest}"
    if isinstance(request, Assess | Attack):
        said = f"{type(request).__name__.lower()} {said} {request.trainings} {request.num_steps}"
    digest = hashlib.sha256(f"{request.version} {said!r}".encode())
    for vectors in (request.model, state):
        for name in sorted(vectors):
            digest.update(f"\0{name!r} {vectors[name].size}\0".encode())
            digest.update(np.ascontiguousarray(vectors[name]).data)
    return digest.hexdigest()[:32]


def _receipt(update: Update) -> dict[str, Any]:
    """What the silo signs of it."""
    receipt = update.receipt
    return (
        {} if receipt is None else {"received": receipt.received, "sha256": receipt.update, **seen(receipt)}
    )


def _norm(job: Job, update: Update, packet: Packet) -> float:
    """Euclidean norm of what the driver will decode, piece by piece as the driver does."""
    seed = seed_of(job.seed, "codec", update.version, update.silo)
    squared = 0.0
    for low, high in blocks(update.size, CACHED):
        piece = {name: array[low:high] for name, array in packet.items()}
        squared += squared_norm(job.codec.decode(piece, high - low, seed))
    return math.sqrt(squared)
